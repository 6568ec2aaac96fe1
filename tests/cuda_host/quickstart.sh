#!/usr/bin/env bash
# The quickstart, shortened, on the emulated GPU: the same adapter whatever the number of ranks, the transport and the
# emulation's seed, which orders threads, blocks and streams, with graphs or without, and with weights dequantized ahead
# or not; close to the CPU's losses; resumed on another number of ranks;
# evaluated and asked. usage: quickstart.sh TANDEM CHATS MODULE NCCL SOURCE
set -euo pipefail
tandem=$1 chats=$2 module=$3 nccl=$4 source=$5
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export OMP_NUM_THREADS=1 TANDEM_GPU_MODULE=$module TANDEM_NCCL_LIBRARY=$nccl TMPDIR=$folder
base=$source/launch/quickstart/base
"$chats" --seed 3 --train 40 --heldout 4 --out "$folder" >/dev/null

fail() {
    echo "FAILED: $1"
    tail -n 30 "${2:-/dev/null}"
    exit 1
}

# run CODE NAME RANKS SAYS [OPTION]...: trains, ends with the code and says how it computes.
run() {
    local expected=$1 name=$2 ranks=$3 says=$4 code=0
    shift 4
    timeout 150 "$source/launch/mpirun.sh" "$ranks" "$tandem" train \
        --set model_name_or_path="$base" --set train_files="$folder/train.jsonl" --set output_dir="$folder/$name" \
        --set max_length=128 --set micro_batch_tokens=128 --set gradient_accumulation_steps=3 --set max_steps=4 \
        --set learning_rate=1e-3 --set warmup_ratio=0 --set lora_r=8 --set lora_dropout=0.1 \
        --set page_elements=20000 "$@" >"$folder/$name.log" 2>&1 || code=$?
    [ "$code" -eq "$expected" ] || fail "$name ended with $code, expected $expected" "$folder/$name.log"
    grep -qE "$says" "$folder/$name.log" || fail "$name does not say '$says'" "$folder/$name.log"
}

expect_same() {
    cmp -s "$folder/$1/adapter/adapter_model.safetensors" "$folder/alone/adapter/adapter_model.safetensors" ||
        fail "the adapter of $1 differs from that of one rank" "$folder/$1.log"
    echo "ok     $1 has the bits of one rank"
}

losses_of() {
    sed -nE 's/.*"loss": ([^,]+), "grad_norm".*/\1/p' "$folder/$1/metrics.jsonl"
}

# expect_close NAME TOLERANCE: every step's loss against the CPU's, relative.
expect_close() {
    paste <(losses_of cpu) <(losses_of "$1") | awk -v tolerance="$2" '
        { d = $2 / $1 - 1; d = d < 0 ? -d : d; worst = d > worst ? d : worst }
        END { printf "worst difference of %d losses %.2g\n", NR, worst; exit !(NR == 4 && worst <= tolerance) }' \
        >"$folder/close" || fail "losses of $1 beyond $2 of the CPU: $(cat "$folder/close")" "$folder/$1.log"
    echo "ok     $1 is within $2 of the CPU: $(cat "$folder/close")"
}

run 0 cpu 1 '^CPU, 1 thread$' --set device=cpu
CUDA_HOST_SEED=1 run 0 alone 1 '^NVIDIA .*, bf16$' --set device=cuda
expect_close alone 1e-2
CUDA_HOST_SEED=8 run 0 queued 1 '^NVIDIA .*, bf16$' --set device=cuda --set cuda_graphs=off
expect_same queued
ahead=(--set dequantize_ahead=on --set dequantized_cache_bytes=-1)
CUDA_HOST_SEED=9 run 0 ahead 1 'weights dequantized ahead' --set device=cuda --set cuda_graphs=off "${ahead[@]}"
expect_same ahead
CUDA_HOST_SEED=10 run 0 ahead_block 2 'weights dequantized ahead' --set device=cuda --set share_gpus=true \
    --set gradient_checkpointing=block "${ahead[@]}"
expect_same ahead_block
CUDA_HOST_SEED=2 run 0 shared 2 'bf16, 2 ranks, gradients by MPI \(ranks 0 and 1 share a GPU\)' \
    --set device=cuda --set share_gpus=true
expect_same shared
CUDA_HOST_SEED=3 CUDA_HOST_GPUS=2 run 0 nccl 2 'bf16, 2 ranks, gradients by NCCL$' --set device=cuda
expect_same nccl
CUDA_HOST_SEED=4 run 0 fp32 1 '^NVIDIA .*, fp32$' --set device=cuda --set bf16=false
expect_close fp32 1e-4

# Stopped on two GPUs and on one, ended on two; the cache of optimizer pages is as small as it can be.
CUDA_HOST_SEED=5 CUDA_HOST_GPUS=2 run 75 resumed 2 'stopped on request after step 1' --set transport=mpi \
    --set stop_after_steps=1 --set optimizer_cache_bytes=1
CUDA_HOST_SEED=6 run 75 resumed 1 'stopped on request after step 2' --resume auto --set stop_after_steps=1
CUDA_HOST_SEED=7 CUDA_HOST_GPUS=2 run 0 resumed 2 'resumed from' --resume auto
expect_same resumed

# The comparison can fail: another seed of the run gives other bits.
run 0 other 1 '^NVIDIA' --set seed=43
! cmp -s "$folder/other/adapter/adapter_model.safetensors" "$folder/alone/adapter/adapter_model.safetensors" ||
    fail "the seed changes nothing"

# What was trained can be evaluated and asked, and gives the CPU's loss.
evaluate() {
    timeout 100 "$tandem" evaluate --model "$base" --adapter "$folder/alone/adapter" --data "$folder/heldout.jsonl" \
        --set max_length=128 --exact-match --max-new-tokens 4 --limit 1 --json "$@" 2>>"$folder/evaluate.log" |
        sed -E 's/.*"loss": ([^,]+),.*"rows": ([0-9]+).*/\1 \2/'
}
on_cpu=$(evaluate --set device=cpu) on_gpu=$(evaluate --set device=cuda)
awk -v a="$on_cpu" -v b="$on_gpu" 'BEGIN { split(a, c); split(b, g); d = g[1] / c[1] - 1
    exit !(c[2] == 1 && g[2] == 1 && c[1] > 0 && d < 1e-2 && d > -1e-2) }' ||
    fail "evaluate: '$on_gpu' on the GPU, '$on_cpu' on the CPU (loss, rows)" "$folder/evaluate.log"
echo "ok     evaluate gives the CPU's loss: $on_gpu, $on_cpu"
answer() {
    timeout 60 "$tandem" generate --model "$base" --chat Hello --max-new-tokens 8 "$@" 2>"$folder/answer.log"
}
[ "$(answer --set device=cuda --set bf16=false)" = "$(answer --set device=cpu)" ] ||
    fail "generate answers differently in fp32" "$folder/answer.log"
[ -n "$(answer --set device=cuda)" ] || fail "generate says nothing" "$folder/answer.log"
echo "ok     generate answers"
