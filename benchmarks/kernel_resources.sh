#!/usr/bin/env bash
# What the compiler says of every CUDA kernel (registers, stack, spills), the block and the shared memory of its launch, and the
# occupancy that follows by the rules of sm_80 (A100) and sm_90 (H100, H200). Nothing is run: occupancy is not speed.
# usage: benchmarks/kernel_resources.sh [--keep FOLDER] >benchmarks/results/kernel-resources.txt
#   --keep FOLDER   keeps the compiler's messages there, and takes those that are newer than their source
# Needs nvcc, g++ and c++filt. Block and shared memory come from the constants of the sources, which the host compiler evaluates
# (list at the end); where a kernel is not in that list, they are those of its __launch_bounds__, or unknown ("?").
set -euo pipefail
cd "$(dirname "$0")/.."
keep=""
[ "${1:-}" != --keep ] || keep=${2:?--keep needs a folder}
[ $# = 0 ] || [ -n "$keep" ] || { sed -n '4,7s/^# //p' "$0" >&2; exit 2; }
command -v nvcc >/dev/null || { echo "kernel_resources: there is no nvcc" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
keep=${keep:-$work/messages}
mkdir -p "$keep"

# As CMakeLists.txt compiles the module.
flags=(-std=c++17 -O3 -DNDEBUG --fmad=false -I. -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=sm_90
    -Xcompiler -fPIC --resource-usage)
sources=$(grep -lE '__global__|attention_.*_kernel\.cuh|sum_squares\.cuh|attention_f32\.cuh' kernels/cuda/*.cu)

# Messages are of the sources as they are: neither the file nor a header is newer.
compile() {
    local source=$1 name messages
    name=$(basename "$1" .cu)
    messages=$keep/$name.ptxas
    [ "$messages" -nt "$source" ] && [ -z "$(find kernels -name '*.*h' -newer "$messages")" ] && return
    if nvcc "${flags[@]}" -c "$source" -o "$work/$name.o" >"$work/$name.messages" 2>&1; then
        mv "$work/$name.messages" "$messages"
    else
        cat "$work/$name.messages" >&2
        echo "$source" >>"$work/failed"
    fi
}

# FILE|ARCHITECTURE|REGISTERS|STACK|SPILL STORES|SPILL LOADS|NAME of each kernel
read_messages() {
    awk -v file="$(basename "$1" .cu)" '
        /Compiling entry function/ { split($0, at, "\047"); name = at[2]; arch = at[4] }
        /bytes stack frame/ { stack = $1; stores = $5; loads = $9 }
        /Used [0-9]+ registers/ { match($0, /Used [0-9]+/); print file "|" arch "|" substr($0, RSTART + 5, RLENGTH - 5) "|" stack "|" stores "|" loads "|" name }
    ' "$keep/$(basename "$1" .cu).ptxas" | c++filt | sed -E 's/\(anonymous namespace\):://g; s/__nv_bfloat16/bf16/g; s/^([^|]*\|[^|]*\|[^|]*\|[^|]*\|[^|]*\|[^|]*\|)(void )?/\1/' |
        awk -F'|' -v OFS='|' '{
            # Arguments of the function go, those of the template stay.
            depth = 0
            for (i = 1; i <= length($7); i++) {
                c = substr($7, i, 1)
                if (c == "<") depth++
                if (c == ">") depth--
                if (c == "(" && !depth) break
            }
            $7 = substr($7, 1, i - 1)
            gsub(/\((int|bool|unsigned int|td_[a-z_]+|pass|[a-z_]+_kind)\)/, "", $7)
            print
        }'
}

# Lines of constants: number, threads, bytes. Evaluated by g++ against the headers of the tests' emulation, as sizes of arrays.
evaluate() {
    local source=$1 probe=$work/probe.cc
    {
        echo "#include \"$source\""
        awk -F'|' '$8 != "?" {printf "extern \"C\" { char td_probe_%d_threads[%s]; char td_probe_%d_shared[1 + (%s)]; }\n", $1, $8, $1, $9}' "$work/rows"
    } >"$probe"
    g++ -std=c++17 -w -I. -Itests/cuda_host/include -c "$probe" -o "$work/probe.o" || exit 1
    nm -S "$work/probe.o" | awk '/td_probe_/ {split($4, at, "_"); print at[3], at[4], $2}' |
        while read -r number what size; do echo "$number $what $((16#$size))"; done
}

# Appends "|THREADS EXPRESSION|SHARED EXPRESSION" by the list at the end of this file.
find_launch() {
    awk -F'|' -v OFS='|' '
        NR == FNR { if ($0 !~ /^#/ && NF == 4) { n++; where[n] = $1; which[n] = $2; threads[n] = $3; shared[n] = $4 } next }
        {
            t = "?"; s = "0"
            name = $8; arguments = ""
            if (match(name, /<.*>/)) { arguments = substr(name, RSTART + 1, RLENGTH - 2); name = substr(name, 1, RSTART - 1) }
            split(arguments, part, /, */)
            for (i = 1; i <= n; i++) if ($2 ~ "^(" where[i] ")$" && name ~ "^(" which[i] ")$") { t = threads[i]; s = shared[i]; break }
            for (i = 1; i <= 4; i++) { gsub("@" i, part[i], t); gsub("@" i, part[i], s) }
            print $1, $2, $3, $4, $5, $6 "+" $7, $8, t, s
        }' <(sed -n '/^: <<.LAUNCHES.$/,/^LAUNCHES$/p' "$0" | sed '1d;$d') -
}

for source in $sources; do
    while [ "$(jobs -rp | wc -l)" -ge "$(nproc)" ]; do
        wait -n
    done
    compile "$source" &
done
wait
[ ! -e "$work/failed" ] || { echo "kernel_resources: nvcc refuses $(tr '\n' ' ' <"$work/failed")" >&2; exit 1; }
for source in $sources; do
    read_messages "$source" | awk '{print NR "|" $0}' | find_launch >"$work/rows"
    evaluate "$source" >"$work/values"
    awk -v OFS='|' 'NR == FNR { value[$1 "_" $2] = $3; next }
        { split($0, f, "|"); t = value[f[1] "_threads"]; s = value[f[1] "_shared"]
          print f[2], f[3], f[4], f[5], f[6], f[7], (t == "" ? "?" : t), (s == "" ? "?" : s - 1) }' "$work/values" "$work/rows" >>"$work/table"
done

modified=$([ -z "$(git status --porcelain -- kernels/cuda 2>/dev/null)" ] || echo " with uncommitted changes")
echo "CUDA kernels as compiled by $(nvcc --version | sed -nE 's/.*release ([0-9.]+), (V[0-9.]+).*/nvcc \1 (\2)/p'), commit $(git rev-parse --short HEAD)$modified, $(date -u +%Y-%m-%d)"
echo "made by benchmarks/kernel_resources.sh; no kernel was run on hardware. spill: bytes stored + loaded; warps: resident of 64 on an SM; by: what limits them"
printf '%-24s %-6s %5s %6s %8s %7s %7s %6s %5s %-10s %s\n' file arch regs stack spill threads shared blocks warps by kernel
sort -t'|' -k1,1 -k6,6 -k2,2 "$work/table" | awk -F'|' '
    function least(value, why) { if (value < blocks) { blocks = value; by = why } }
    {
        threads = $7; shared = $8
        if (threads == "?") { printf "%-24s %-6s %5d %6d %8s %7s %7s %6s %5s %-10s %s\n", $1, $2, $3, $4, $5, "?", "?", "?", "?", "", $6; next }
        warps = int((threads + 31) / 32)
        blocks = 32; by = "blocks"
        least(int(64 / warps), "warps")
        # Registers are given to warps in units of 256; an SM has four parts of 16384.
        per_warp = int(($3 * 32 + 255) / 256) * 256
        least(int(4 * int(16384 / per_warp) / warps), "registers")
        capacity = $2 == "sm_80" ? 164 : 228
        bytes = int((shared + 1024 + 127) / 128) * 128 # 1 KiB of every block is the system\047s
        least(int(capacity * 1024 / bytes), "shared")
        printf "%-24s %-6s %5d %6d %8s %7d %7d %6d %5d %-10s %s\n", $1, $2, $3, $4, $5, threads, shared, blocks, blocks * warps, by, $6
    }'
exit 0

# FILE|KERNEL|THREADS|BYTES OF SHARED MEMORY; @1, @2: the template's arguments. Expressions of the sources.
: <<'LAUNCHES'
absmax|sum_kernel|MEAN_THREADS|TD_CUDA_MOST_WARPS * sizeof(double)
absmax|mean_kernel|TD_MEAN_BLOCKS|0
absmax|nested_kernel|TD_NF4_NESTED_BLOCK|sizeof(nested_shared)
adamw|adamw_kernel|THREADS|0
adamw_8bit|adamw_8bit_kernel|THREADS|sizeof(map_pair)
add|add_kernel|TD_FLAT_THREADS|0
attention_backward_bf16|delta_kernel|DELTA_THREADS|0
attention_dq_.*|td_attention_dq_kernel|TD_TILE_THREADS|td_dq_sizes<@1>::SHARED_BYTES
attention_dkdv_.*|td_attention_dkdv_kernel|TD_TILE_THREADS|td_dkdv_sizes<@1>::SHARED_BYTES
attention_forward_.*|td_attention_forward_kernel|TD_TILE_THREADS|td_forward_sizes<@1>::SHARED_BYTES
attention_f32_backward|delta_kernel|32 * DELTA_ROWS|0
attention_f32_backward|keys_kernel|TD_F32_THREADS|sizeof(backward_shared<@1, @2>)
attention_f32_backward|queries_kernel|TD_F32_THREADS|sizeof(backward_shared<@1, @2>)
attention_f32_forward|forward_kernel|TD_F32_THREADS|sizeof(forward_shared<@1, @2>)
cross_entropy|.*|MOST_THREADS|sizeof(row_shared)
dequantize|nf4_kernel|THREADS|sizeof(nf4_shared)
dequantize|convert_kernel|THREADS|0
draw_weights|draw_kernel|THREADS|0
dropout|dropout_kernel|THREADS|0
embedding|embedding_kernel|TD_FLAT_THREADS|0
fixed|.*sum_squares_kernel|TD_CUDA_REDUCTION_THREADS|TD_CUDA_MOST_WARPS * sizeof(double)
fixed|.*|TD_CUDA_REDUCTION_THREADS|0
glu|.*|TD_FLAT_THREADS|0
linear|bias_kernel|256|0
nf4|nf4_quantize_kernel|THREADS|0
reduction|finish_kernel|TD_CUDA_REDUCTION_THREADS|TD_CUDA_MOST_WARPS * sizeof(double)
rmsnorm|.*|block_threads<@2>|SHARED_BYTES
rope|rope_kernel|TD_FLAT_THREADS|0
rows|.*|32 * WARPS|0
sum_squares|td_sum_squares_kernel|TD_CUDA_REDUCTION_THREADS|TD_CUDA_MOST_WARPS * sizeof(double)
sum_squares|f32_add_kernel|TD_CUDA_REDUCTION_THREADS|0
word_sum|word_sum_kernel|TD_CUDA_REDUCTION_THREADS|0
LAUNCHES
