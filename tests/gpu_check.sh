#!/usr/bin/env bash
# Every check that needs a GPU, in under 8 minutes on a data center GPU with 16 cores: from an unpacked bundle with its tests
# (launch/bundle.sh --with-tests), or from a build tree. Prints a table and writes a record to ${OUT:-.}/gpu-check.json.
# Ends with 0 only if every check passed; one that could not run has not passed.
# usage: tests/gpu_check.sh [CHECK...]      only these checks (names as in the table)
#   TANDEM_BUILD          the build tree; default: build/release
#   GPU_CHECK_SECONDS     when to end at the latest (470)
#   GPU_CHECK_SANITIZER   the compute-sanitizer to use
#   GPU_CHECK_QUICK=1     a few operations and steps: the checks themselves, tried out under the tests' emulation
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
. "$here/gpu/record.sh"
. "$here/gpu/machine.sh"

only=("$@")
quick=${GPU_CHECK_QUICK:-}
deadline=${GPU_CHECK_SECONDS:-470}
out=${OUT:-.}
mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cores=$(nproc)
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_btl_vader_single_copy_mechanism=${OMPI_MCA_btl_vader_single_copy_mechanism:-none} # containers may forbid it
export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-lo} NCCL_IB_DISABLE=${NCCL_IB_DISABLE:-1} # all ranks are here
export OMP_NUM_THREADS=$((cores >= 8 ? cores / 8 : 1)) OMP_WAIT_POLICY=passive

if [ -x "$root/bin/tandem" ]; then
    . "$root/libexec/environment.sh" # for the test programs, which have no wrappers
    from=bundle programs=$root/bin tests=$root/libexec mpirun=$root/bin/mpirun
    commit=$(sed -n 's/^commit //p' "$root/share/tandem/BUILD")
else
    from=build programs=${TANDEM_BUILD:-$root/build/release}
    tests=$programs/tests mpirun=mpirun
    # Test programs lie elsewhere than the program, beside which the module is looked for.
    [ -n "${TANDEM_GPU_MODULE:-}" ] || [ ! -e "$programs/libtandem_cuda.so" ] ||
        export TANDEM_GPU_MODULE=$programs/libtandem_cuda.so
    commit=$(git -C "$root" rev-parse HEAD 2>/dev/null || echo unknown)
fi
tandem=$programs/tandem
cd "$root" || exit 1 # the test programs find their fixtures from here
[ -x "$tandem" ] || { echo "gpu_check: there is no $tandem" >&2; exit 1; }
find_library libcublasLt.so.13
find_library libnccl.so.2
sanitizer=$(find_sanitizer)

operations=(linear_forward linear_backward nf4_quantize absmax_quantize dequantize embedding rmsnorm_forward
    rmsnorm_backward rope attention_forward attention_backward glu_forward glu_backward add gather_rows
    scatter_rows cross_entropy fixed_add fixed_to_f32 f32_add sum_squares word_sum adamw adamw_8bit)
[ -z "$quick" ] || operations=(add f32_add)

wanted() {
    [ ${#only[@]} -eq 0 ] || [[ " ${only[*]} " == *" $1 "* ]]
}

# Runs a check if it is wanted; after the first failed to find a GPU there is nothing to run the others on.
try() {
    wanted "$1" || return 0
    if [ "$1" != device ] && [ -e "$work/no_device" ]; then
        check "$1" fail "not run: no GPU"
    else
        check "$@"
    fi
}

# train FOLDER RANKS [KEY=VALUE]...: the small model with 100 recorded steps, for the smallest runs
train() {
    local folder=$1 n=$2 code=0 value sets=() command=()
    shift 2
    for value in model_name_or_path="tests/fixtures/train100" adapter_name_or_path="tests/fixtures/train100/initial_adapter" \
        train_files="tests/fixtures/train100/data.jsonl" output_dir="$folder" packing=false \
        per_device_train_batch_size=2 gradient_accumulation_steps=6 shuffle=false max_length=64 learning_rate=2e-3 \
        warmup_steps=10 weight_decay=0.01 lora_dropout=0 page_elements=1000 "$@"; do
        sets+=(--set "$value")
    done
    [ "$n" = 1 ] || command=("$mpirun" --quiet --oversubscribe --bind-to none -n "$n" ${rank_wrapper:+"$rank_wrapper"})
    rm -rf "$folder"
    run 120 ${command[@]+"${command[@]}"} "$tandem" train "${sets[@]}" >"$folder.log" 2>&1 || code=$?
    [ "$code" = 0 ] || fail "training ($*): $(why "$code" "$folder.log")"
}

# The GPU is seen, and the program computes on it.
check_device() {
    local name
    train "$work/device/run" 1 device=cuda max_steps=1
    name=$(sed -nE 's/^(.*), (bf16|fp32)$/\1/p' "$work/device/run.log" | head -n 1)
    [ -n "$name" ] || fail "the program does not say on which GPU it computes"
    echo "$name" >"$work/device_name"
    figure device "$name"
    [ -n "$quick" ] || [ -n "$(ask_driver driver_version)" ] ||
        fail "nvidia-smi shows no driver: this would not be a record of a GPU ($name)"
}

# usage: check_operations TYPE [OPERATION]...; without: the whole list
check_operations() {
    local type=$1 code=0 operation
    for operation in "${@:2}" $([ $# -gt 1 ] || echo all); do
        run 300 "$tests/test_ops_gpu" "$type" $([ "$operation" = all ] || echo "$operation") >"$check_folder/out" 2>&1 || code=$?
        cat "$check_folder/out"
        [ "$code" = 0 ] || fail "$(why "$code" "$check_folder/out")"
        grep -E '^[0-9]+ cases' "$check_folder/out" >>"$check_folder/counts"
    done
    figure cases "$(awk '{ n += $1 } END { print n + 0 }' "$check_folder/counts")"
    figure checks "$(awk '{ n += $3 } END { print n + 0 }' "$check_folder/counts")"
}

# Errors of calls are the program's to tell. Races are looked for in its own kernels: those of cuBLAS order their copies by
# means that the tool does not follow.
sanitize() {
    local tool=$1 type=$2 operation=$3 code=0 options=(--report-api-errors no)
    local name=$check_folder/$type-$operation
    [ "$tool" != racecheck ] || options+=(--kernel-name-exclude 'regex=.*(cublas|cutlass|nvjet|xmma|gemm|gemv|splitK).*')
    run "${GPU_CHECK_SANITIZE_SECONDS:-200}" "$sanitizer" --tool "$tool" --error-exitcode 99 --print-limit 5 "${options[@]}" \
        "$tests/test_ops_gpu" "$type" "$operation" >"$name.out" 2>&1 || code=$?
    # Without its summary it did not look, whatever the program said.
    [ "$code" = 0 ] && grep -qE 'SUMMARY: 0 (errors|hazards)' "$name.out" || echo "$type $operation: $(sanitizer_says "$code" "$name.out")" >"$name.bad"
}

sanitizer_says() {
    case $1 in
    99) grep -m 1 -E '^=+ +(Invalid|Error|Race|Warning|Program hit|.*hazard)' "$2" || tail -n 1 "$2" ;;
    0) echo "the sanitizer printed no summary without errors: $(grep -m 1 -E '^=+ ' "$2")" ;;
    *) why "$1" "$2" ;;
    esac
}

# compute-sanitizer on every operation in both types, several at once.
check_sanitizer() {
    local tool=$1 type operation bad
    [ -n "$sanitizer" ] || fail "there is no compute-sanitizer on this machine"
    for operation in "${operations[@]}"; do
        for type in bf16 fp32; do
            while [ "$(jobs -rp | wc -l)" -ge $((cores >= 8 ? cores / 3 : 1)) ]; do
                wait -n
            done
            sanitize "$tool" "$type" "$operation" &
        done
    done
    wait
    bad=$(find "$check_folder" -name '*.bad' | wc -l)
    figure runs $((2 * ${#operations[@]}))
    figure bad "$bad"
    [ "$bad" = 0 ] || fail "$bad of $((2 * ${#operations[@]})) runs are not clean: $(sort -m "$check_folder"/*.bad | head -n 4 | tr '\n' ';')"
}

# A program of the tests. usage: check_program RANKS PROGRAM [ARGUMENT]...
check_program() {
    local n=$1 program=$tests/$2 code=0 command=()
    shift 2
    [ -x "$program" ] || fail "${program##*/} was not built"
    [ "$n" = 1 ] || command=("$mpirun" --quiet --oversubscribe --bind-to none -n "$n")
    run 90 ${command[@]+"${command[@]}"} "$program" "$@" >>"$check_folder/out" 2>&1 || code=$?
    cat "$check_folder/out"
    [ "$code" = 0 ] || fail "$n ranks: $(why "$code" "$check_folder/out")"
}

check_pager() {
    check_program 1 test_pager_gpu
    check_program 1 test_pager_streams_gpu
}

# Programs that load the module and that no check names.
check_other_programs() {
    local program n=0
    for program in "$tests"/test_*_gpu; do
        case ${program##*/} in
        test_ops_gpu | test_device_comm_gpu | test_pager_gpu | test_pager_streams_gpu) continue ;;
        test_model_gpu | test_train100_gpu) continue ;;
        esac
        check_program 1 "${program##*/}"
        n=$((n + 1))
    done
    figure programs "$n"
}

# Logits, losses and gradients of every family, and 100 losses of training, against transformers, PEFT and bitsandbytes.
check_references() {
    local type
    for type in fp32 bf16; do
        check_program 1 test_model_gpu "$type"
        [ -n "$quick" ] || check_program 1 test_train100_gpu "$type"
    done
}

check_collectives() {
    local n
    for n in $([ -n "$quick" ] && echo 2 || echo 1 2 3); do
        check_program "$n" test_device_comm_gpu "$1"
    done
}

# Exact match, in percent, and loss of an adapter. usage: quickstart DEVICE
quickstart() {
    local device=$1 folder=$work/quickstart_$1 code=0 rows=6400 heldout=200
    [ -z "$quick" ] || rows=12 heldout=2
    mkdir -p "$folder/chats"
    "$programs/quickstart_chats" --seed 1 --train "$rows" --heldout "$heldout" --out "$folder/chats" >"$folder/log" 2>&1 ||
        fail "quickstart_chats: $(tail -n 1 "$folder/log")"
    local sets=(--set "device=$device" --set "train_files=$folder/chats/train.jsonl"
        --set "eval_files=$folder/chats/heldout.jsonl" --set "output_dir=$folder/run" --set eval_steps=0)
    [ -z "$quick" ] || sets+=(--set max_steps=1 --set micro_batch_tokens=128)
    run 240 "$tandem" train configs/quickstart.json "${sets[@]}" >"$folder/log" 2>&1 || code=$?
    [ "$code" = 0 ] || fail "training: $(why "$code" "$folder/log")"
    run 240 "$tandem" evaluate configs/quickstart.json "${sets[@]}" --exact-match --json \
        --max-new-tokens "$([ -n "$quick" ] && echo 4 || echo 96)" --adapter "$folder/run/adapter" >"$folder/out" 2>"$folder/log" || code=$?
    [ "$code" = 0 ] || fail "evaluation: $(why "$code" "$folder/log")"
    exact=$(json_number exact_match "$folder/out" | awk '{ printf "%.2f", 100 * $1 }')
    loss=$(json_number loss "$folder/out")
}

json_number() {
    sed -nE "s/.*\"$1\": ([-0-9.e+]+).*/\1/p" "$2" | tail -n 1
}

# The quickstart on a device, by itself.
check_quickstart() {
    quickstart "$1"
    figure exact_match_percent "$exact"
    figure eval_loss "$loss"
    echo "$exact" >"$work/exact_$1"
    [ -n "$quick" ] || awk -v e="$exact" 'BEGIN { exit !(e > 90) }' || fail "exact match is $exact %, not over 90 %"
}

check_quickstart_same() {
    [ -s "$work/exact_cpu" ] && [ -s "$work/exact_cuda" ] || fail "not run: a quickstart did not end"
    local cpu cuda
    cpu=$(cat "$work/exact_cpu") cuda=$(cat "$work/exact_cuda")
    figure cpu_percent "$cpu"
    figure gpu_percent "$cuda"
    awk -v a="$cpu" -v b="$cuda" 'BEGIN { d = a - b; exit !(d <= 2 && d >= -2) }' ||
        fail "exact match is $cuda % on the GPU and $cpu % on the CPU"
}

# 100 steps on the CPU and on the GPU: the largest relative difference of a step's loss.
check_losses() {
    local steps=100 worst
    [ -z "$quick" ] || steps=3
    train "$check_folder/cpu" 1 device=cpu max_steps=$steps
    train "$check_folder/cuda" 1 device=cuda bf16="$1" max_steps=$steps
    worst=$(paste <(losses "$check_folder/cpu") <(losses "$check_folder/cuda") |
        awk -v steps=$steps '{ d = ($2 - $1) / $1; if (d < 0) d = -d; if (!(d <= worst)) worst = d }
            END { if (NR != steps) print "none"; else printf "%.3e", worst }')
    figure steps $steps
    figure largest_relative_difference "$worst"
    awk -v w="$worst" 'BEGIN { exit !(w != "none" && w <= 1e-2) }' || fail "losses differ by $worst (relative; at most 1e-2)"
}

losses() {
    sed -nE 's/.*"loss": ([-0-9.e+]+|nan|inf).*"grad_norm".*/\1/p' "$1/metrics.jsonl"
}

hash_of() {
    sha256sum "$1/adapter/adapter_model.safetensors" | cut -d' ' -f1
}

# Adapters with the same bits. usage: same_bits NAME RANKS [KEY=VALUE]...
same_bits() {
    local name=$1 n=$2 steps=20 hash
    shift 2
    [ -z "$quick" ] || steps=2
    train "$check_folder/$name" "$n" device=cuda lora_dropout=0.1 max_steps=$steps "$@"
    hash=$(hash_of "$check_folder/$name")
    figure "$name" "${hash:0:16}"
    [ -s "$work/bits" ] || echo "$hash" >"$work/bits"
    [ "$hash" = "$(cat "$work/bits")" ] || fail "the adapter of $name differs from that of the first run"
}

check_same_bits() {
    same_bits first 1
    same_bits again 1
    same_bits two_ranks 2 transport=mpi share_gpus=true
    [ -n "$quick" ] || same_bits three_ranks 3 transport=mpi share_gpus=true
    # The comparison can fail: another seed gives other bits.
    train "$check_folder/other" 1 device=cuda lora_dropout=0.1 max_steps=2 seed=7
    [ "$(hash_of "$check_folder/other")" != "$(cat "$work/bits")" ] || fail "another seed gives the same bits"
}

check_nccl_bits() {
    [ -s "$work/bits" ] || same_bits one_rank 1
    rank_wrapper=$here/gpu/nccl_rank.sh same_bits two_ranks_nccl 2 transport=nccl share_gpus=true
    grep -q 'gradients by NCCL' "$check_folder/two_ranks_nccl.log" || fail "the run did not use NCCL"
}

check_timing() {
    local type code=0 operation
    for type in bf16 fp32; do
        for operation in "${operations[@]}"; do
            run 60 "$tests/test_ops_gpu" "$type" --time "$operation" >"$check_folder/out" 2>&1 || code=$?
            [ "$code" = 0 ] || fail "$type $operation: $(why "$code" "$check_folder/out")"
            grep ' ms' "$check_folder/out" | sed "s/^/$type /; s/  */ /g" >>"$work/timings" || true
        done
    done
    figure lines "$(wc -l <"$work/timings")"
}

# What needs the CPU more than the GPU, what computes for long, and the rest: side by side where there are the cores.
lane_operations() {
    try operations_bf16 check_operations bf16 ${quick:+"${operations[@]}"}
    try operations_fp32 check_operations fp32 ${quick:+"${operations[@]}"}
    try memcheck check_sanitizer memcheck
    try racecheck check_sanitizer racecheck
}

lane_training() {
    try pager check_pager
    try other_programs check_other_programs
    try references check_references
    try collectives_mpi check_collectives staged
    try collectives_nccl check_collectives nccl
    try losses_bf16 check_losses true
    try losses_fp32 check_losses false
    try same_bits check_same_bits
    try nccl_bits check_nccl_bits
    try quickstart_gpu check_quickstart cuda
}

lane_cpu() {
    try quickstart_cpu check_quickstart cpu
}

wide=""
[ "$cores" -lt 8 ] || wide=yes
try device check_device
if wanted device && [ "$(cat "$work/device/result")" = failed ]; then
    touch "$work/no_device"
fi
deadline=$((deadline - 60)) # the timing's
for lane in lane_cpu lane_training lane_operations; do
    if [ -n "$wide" ]; then $lane & else $lane; fi
done
wait
deadline=$((deadline + 60))
try quickstart_same check_quickstart_same
try timing check_timing

[ -s "$work/order" ] || { echo "gpu_check: there is no check called ${only[*]}" >&2; exit 1; }
failed=$(cat "$work"/*/result | grep -c failed)
passed=$([ "$failed" = 0 ] && echo true || echo false)
device=$(cat "$work/device_name" 2>/dev/null)
[ -n "$(ask_driver driver_version)" ] || device+=" (no driver: not a real one)"
write_record "$out/gpu-check.json" "$passed" commit "$commit" from "$from" \
    device "$device" driver "$(ask_driver driver_version)" \
    memory "$(ask_driver memory.total)" cuda "$(cuda_of_driver)" sanitizer "$sanitizer" cores "$cores" \
    module "${TANDEM_GPU_MODULE:-}" mode "${quick:+quick}"
for name in $(cat "$work/order"); do
    [ "$(cat "$work/$name/result")" = passed ] || { echo "== $name"; tail -n 15 "$work/$name/log"; } >&2
done
echo "$(wc -l <"$work/order") checks, $failed failed, ${SECONDS} s; record: $out/gpu-check.json"
[ "$failed" = 0 ]
