#!/usr/bin/env bash
# Every figure that needs a GPU, in under 8 minutes on an H200: steps of Llama-3.1-8B and Qwen3-1.7B (QLoRA, rank 16 on all seven
# projections, packed sequences of 2048) with and without recomputation and where their time goes, memory of 8B at 1 x 2048, blocked
# time of a checkpoint, load, operations, PyTorch + PEFT in the same run, and attention beside FlashAttention's and cuDNN's. From an
# unpacked bundle with its tests (launch/bundle.sh --with-tests) or from a build tree. A part that finds no time, or not what it
# needs, is skipped with the reason.
# Ends with 0 if every part that ran did so without an error; the table says which goals were met.
# usage: benchmarks/gpu_bench.sh [--out FOLDER] [--python PYTHON] [PART...]    only these parts (names as in the table)
#   records go to FOLDER (${OUT:-gpu-bench}); PYTHON (python3) has torch, transformers, peft, and bitsandbytes for NF4 peers
#   TANDEM_BUILD        the build tree; default: build/release
#   GPU_BENCH_SECONDS   when to end at the latest (470)
#   GPU_BENCH_QUICK=1   tiny shapes and few steps: the script itself, tried out on an emulation or a CPU
#   GPU_BENCH_DEVICE    cuda (default) or cpu, for that trial
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/tests/gpu/machine.sh"
out=${OUT:-gpu-bench} python=python3 only=()
while [ $# -gt 0 ]; do
    case $1 in
    --out) out=${2:?--out needs a folder} && shift ;;
    --python) python=${2:?--python needs a program} && shift ;;
    -*) sed -n '8,13s/^# //p' "$0" >&2 && exit 2 ;;
    *) only+=("$1") ;;
    esac
    shift
done
quick=${GPU_BENCH_QUICK:-} device=${GPU_BENCH_DEVICE:-cuda} deadline=${GPU_BENCH_SECONDS:-470}
mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 TMPDIR=$work
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc)}

if [ -x "$root/bin/tandem" ]; then
    tandem=$root/bin/tandem
    commit=$(sed -n 's/^commit //p' "$root/share/tandem/BUILD")
else
    programs=${TANDEM_BUILD:-$root/build/release}
    tandem=$programs/tandem
    commit=$(git -C "$root" rev-parse HEAD 2>/dev/null || echo unknown)
fi
[ -x "$tandem" ] || { echo "gpu_bench: there is no $tandem" >&2; exit 1; }
cd "$root" || exit 1 # records name shapes from here
find_library libcublasLt.so.13
export TANDEM=$tandem

big=configs/shapes/llama-3.1-8b small=configs/shapes/qwen3-1.7b
seq=2048 steps=5 big_batch="--batch 2 --accumulation 4" small_batch="--batch 4 --accumulation 2" peers="--rounds 2 --steps 3"
documents="4x2048 1x8192"
if [ -n "$quick" ]; then
    mkdir -p "$work/llama" "$work/qwen"
    shrink='s/("(hidden_size|intermediate_size)": )[0-9]+/\164/; s/("(num_hidden_layers)": )[0-9]+/\11/; s/("num_attention_heads": )[0-9]+/\14/
        s/("num_key_value_heads": )[0-9]+/\12/; s/("head_dim": )[0-9]+/\116/; s/("vocab_size": )[0-9]+/\164/; s/("(bos|eos)_token_id": )[0-9]+/\11/'
    sed -E "$shrink" $big/config.json >"$work/llama/config.json"
    sed -E "$shrink" $small/config.json >"$work/qwen/config.json"
    big=$work/llama small=$work/qwen seq=32 steps=1 big_batch="--batch 1 --accumulation 2" small_batch=$big_batch peers="--rounds 1 --steps 1" documents="4x8 1x32"
fi
lora="--set lora_r=16 --set lora_alpha=32 --set lora_dropout=0 --set device=$device"
[ "$device" = cuda ] || lora+=" --set bf16=false"

# part NAME LIMIT FUNCTION [ARGUMENT]...: runs it within LIMIT seconds, or what is left of all. It says what was seen with `say`.
part() {
    local name=$1 state=done began=$SECONDS
    limit=$2
    shift 2
    [ ${#only[@]} -eq 0 ] || [[ " ${only[*]} " == *" $name "* ]] || return 0
    part_name=$name record=$out/$name.json ended=$((began + limit < deadline ? began + limit : deadline))
    echo "$name" >>"$work/order"
    if [ -e "$work/no_device" ]; then
        state=skipped && echo "no GPU" >"$work/$name.said"
    elif [ $((deadline - SECONDS)) -lt $((limit < 15 ? limit : 15)) ]; then
        state=skipped && echo "$((deadline > SECONDS ? deadline - SECONDS : 0)) s are left, of up to $limit that it may take" >"$work/$name.said"
    else
        ("$@") </dev/null >"$work/$name.log" 2>&1 || state=failed
        [ ! -e "$work/$name.skip" ] || { state=skipped && mv "$work/$name.skip" "$work/$name.said"; }
    fi
    [ "$state" != failed ] || [ -s "$work/$name.said" ] || tail -n 2 "$work/$name.log" | tr '\n' ' ' >"$work/$name.said"
    echo "$state" >"$work/$name.state"
    printf '%-8s %-18s %4d s  %s\n' "$state" "$name" $((SECONDS - began)) "$(head -c 400 "$work/$name.said" 2>/dev/null | tr '\n' ' ')"
}
say() {
    echo "$*" >>"$work/$part_name.said"
}
skip() {
    echo "$*" >"$work/$part_name.skip"
    exit 1
}
# Runs a command until its part's time is over. What it prints is kept beside the record.
run() {
    local left=$((ended - SECONDS)) code=0
    timeout --kill-after=5 $((left > 1 ? left : 1)) "$@" >"$out/$part_name.txt" 2>"$work/$part_name.err" || code=$?
    [ "$code" = 0 ] && return
    [ "$code" = 124 ] && say "not done in time"
    say "code $code: $({ grep -a '^error' "$work/$part_name.err" || cat "$work/$part_name.err"; } | tail -n 1)"
    exit 1
}
# number KEY [FILE]: the first number of that name, or its median
number() {
    sed -nE "s/.*\"$1\": *(\{\"median\": *)?([-0-9.e+]+).*/\2/p" "${2:-$record}" | head -n 1
}
# goal TEXT NAME VALUE COMPARISON LIMIT UNIT
goal() {
    awk -v n="$1" -v v="${2:-none}" -v c="$3" -v g="$4" -v u="$5" -v trial="$quick" 'BEGIN {
        met = v == "none" || v == "" ? "not measured" : (c == ">=" ? v + 0 >= g + 0 : v + 0 <= g + 0) ? "met" : "MISSED"
        if (trial != "") met = "(a trial)"
        printf "  %-44s %12s %-6s goal %s %s  %s\n", n, v == "none" || v == "" ? "-" : sprintf("%.4g", v), u, c, g, met }'
}

# step SHAPE RECOMPUTE BATCH...: with the table of where the time goes
step() {
    local shape=$1 recompute=$2
    shift 2
    run "$tandem" bench step --shape "$shape" --seq $seq --steps $steps "$@" $lora --set gradient_checkpointing="$recompute" \
        --breakdown --record "$record"
    say "$(awk -v t="$(number tokens_per_second)" -v p="$(number peak_bytes)" -v g="$(number grad_norm)" -v m="$(number mfu)" \
        'BEGIN {printf "%.0f tokens/s, MFU %.1f %%, peak %.2f GB, gradient norm %.3g", t, 100 * m, p * 1e-9, g}')"
    number tokens_per_second >"$work/$part_name.value"
}
# One sequence, every block again, and nothing cached that need not be: the least memory.
memory() {
    run "$tandem" bench step --shape $big --seq $seq --batch 1 --accumulation 1 --steps 2 $lora --set gradient_checkpointing=block \
        --set memory_limit_bytes=6500000000 --set dequantized_cache_bytes=-1 --set dequantize_ahead=off --set optimizer_cache_bytes=1 \
        --record "$record"
    number peak_bytes | awk '{printf "%.4f\n", $1 * 1e-9}' >"$work/$part_name.value"
    say "peak $(cat "$work/$part_name.value") GB, plan $(number plan_bytes | awk '{printf "%.4f", $1 * 1e-9}') GB"
}
# What dequantizing on a second stream gains where no layer has a copy, in turns.
ahead() {
    local mode speeds=""
    for mode in off on off on; do
        record=$out/$part_name-$mode.json
        run "$tandem" bench step --shape $big --seq $seq --batch 1 --accumulation 1 --steps $steps $lora --set gradient_checkpointing=none \
            --set dequantized_cache_bytes=-1 --set dequantize_ahead=$mode --record "$record"
        speeds+=" $(number tokens_per_second)"
    done
    say "$(awk -v s="$speeds" 'BEGIN {split(s, v, " "); printf "off %.0f and %.0f, on %.0f and %.0f tokens/s: %.3f times",
        v[1], v[3], v[2], v[4], (v[2] + v[4]) / (v[1] + v[3])}')"
}
checkpoint() {
    run "$tandem" bench checkpoint --shape $big $lora ${quick:+--saves 2} --record "$record"
    awk -v a="$(number save_seconds)" -v b="$(number poll_seconds)" -v c="$(number commit_seconds)" 'BEGIN {print 1e3 * (a + b + c)}' >"$work/$part_name.value"
    say "blocked $(cat "$work/$part_name.value") ms = $(number blocked_over_copy) copies of the state"
}
# Weights are written to memory: what is timed is what follows the page cache.
load() {
    local folder=$work needed=$((quick ? 1 : 26)) free
    [ ! -w /dev/shm ] || folder=$(mktemp -d /dev/shm/tandem-bench.XXXXXX)
    [ "$folder" = "$work" ] || trap 'rm -rf "$folder"' EXIT
    free=$(df --output=avail -k "$folder" | tail -n 1)
    [ "$free" -ge $((needed * 1048576)) ] || skip "$((free / 1048576)) GiB are free in $folder, $needed are needed"
    run "$tandem" bench load --shape $big --folder "$folder/model" --rounds $((quick ? 1 : 2)) $lora --record "$record"
    number first_step_seconds >"$work/$part_name.value"
    number image_first_step_seconds >"$work/load_image.value"
    say "first step after $(cat "$work/$part_name.value") s, from an NF4 image $(cat "$work/load_image.value") s"
}
operations() {
    [[ $("$tandem" bench ops --help 2>&1) == *'tandem bench ops'* ]] || skip "this build has no bench ops"
    run "$tandem" bench ops --shape "$1" $lora --seq $seq --tokens $((2 * seq)) ${quick:+--set page_elements=500} --record "$record"
    say "$(grep -c . "$out/$part_name.txt") lines in $part_name.txt"
}
# Kernels of ours beside those that PyTorch brings: whether cuDNN's attention would be faster.
attention() {
    run "$root/benchmarks/peers/gpu_attention.sh" "$out/$part_name.jsonl" --python "$python" --cases "$documents" \
        ${quick:+--samples 2 --calls 1} --seconds $((ended - SECONDS - 3)) --device "$device" $big $small
    # SHAPE CASE: FORWARD and BACKWARD, and the ratios of both together.
    say "$(awk '/causal$/ { printf "%s%s %s:", (NR > 1 ? "; " : ""), $1, $2; next }
        / forward / { if ($1 == "tandem") printf " %s and %s TFLOP/s", $3, $6; else printf ", / %s = %s", $1, $(NF - 1); next }
        { printf ", / %s none", $1 }' "$out/$part_name.txt")"
    grep -q '^  tandem  *forward' "$out/$part_name.txt"
}
# peer SHAPE RECOMPUTE BATCH...
peer() {
    local shape=$1 recompute=$2
    shift 2
    "$python" -c 'import torch, transformers, peft' 2>/dev/null || skip "$python has no torch, transformers and peft"
    run "$root/benchmarks/peers/gpu_step.sh" "$shape" "$recompute" "$out/$part_name.jsonl" --python "$python" --seq $seq "$@" \
        $peers --seconds $((ended - SECONDS - 3)) --device "$device"
    say "$(tail -n +2 "$out/$part_name.txt" | sed 's/^ *//' | paste -sd ';')"
}
look() {
    [ -n "$quick" ] || [ -n "$(ask_driver driver_version)" ] || { say "nvidia-smi shows no driver: this would not be a record of a GPU"; exit 1; }
    run "$tandem" bench step --shape $small --seq 32 --steps 1 $lora --record "$record"
    say "$(number tokens_per_second | xargs printf '%.0f') tokens/s of 32 tokens on $(sed -nE 's/.*"device": *"([^"]*)".*/\1/p' "$record")"
}

echo "commit $commit; $(ask_driver name), driver $(ask_driver driver_version), load $(cut -d' ' -f1 /proc/loadavg); records in $out"
if [ ${#only[@]} -eq 0 ] || [[ " ${only[*]} " == *" device "* ]]; then
    part device 60 look
    [ "$(cat "$work/device.state")" = done ] || touch "$work/no_device"
fi
part step_8b 60 step $big none $big_batch
part step_8b_full 60 step $big block $big_batch
part step_1.7b 45 step $small none $small_batch
part step_1.7b_full 45 step $small block $small_batch
part memory_8b 40 memory
part peer_8b 100 peer $big none $big_batch
part peer_1.7b 80 peer $small none $small_batch
part checkpoint_8b 30 checkpoint
part load_8b 90 load
part ops_8b 60 operations $big
part attention 75 attention
part ahead_8b 60 ahead
part peer_8b_full 80 peer $big full $big_batch
part peer_1.7b_full 60 peer $small full $small_batch
[ -n "$quick" ] || part ops_1.7b 40 operations $small

[ -s "$work/order" ] || { echo "gpu_bench: there is no part called ${only[*]}" >&2; exit 1; }
value() {
    cat "$work/$1.value" 2>/dev/null
}
{
    [ -z "$quick" ] || echo "a trial with tiny shapes: none of this is a measurement"
    goal "Llama-3.1-8B QLoRA, without recompute" "$(value step_8b)" ">=" 18000 tok/s
    goal "Qwen3-1.7B QLoRA, without recompute" "$(value step_1.7b)" ">=" 55000 tok/s
    goal "Llama-3.1-8B at 1 x 2048, full recompute" "$(value memory_8b)" "<=" 6.5 GB
    goal "checkpoint of 8B rank 16: blocked" "$(value checkpoint_8b)" "<=" 50 ms
    goal "first step of 8B from the page cache" "$(value load_8b)" "<=" 10 s
    goal "first step of 8B from an NF4 image" "$(value load_image)" "<=" 3 s
} | tee "$out/goals.txt"
failed=0
for name in $(cat "$work/order"); do
    [ "$(cat "$work/$name.state")" != failed ] || { failed=$((failed + 1)) && echo "== $name" && cat "$work/$name.log" "$work/$name.err" 2>/dev/null | tail -n 12; } >&2
done
echo "$(wc -l <"$work/order") parts, $(cat "$work"/*.state | grep -c skipped) skipped, $failed failed, ${SECONDS} s; records: $out"
[ "$failed" = 0 ]
