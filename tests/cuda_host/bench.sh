#!/usr/bin/env bash
# Benchmarks on the emulated GPU: operations verified, and a step's parts by pairs of events. No times are judged.
# usage: bench.sh TANDEM MODULE SOURCE
set -uo pipefail
tandem=$1 module=$2 source=$3
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export OMP_NUM_THREADS=1 TANDEM_GPU_MODULE=$module TMPDIR=$folder
shape=$source/tests/fixtures/families/qwen3
failed=0

# expect NAME PATTERN FILE
expect() {
    if grep -qE -- "$2" "$3"; then
        echo "ok     $1"
    else
        echo "FAILED $1"
        tail -n 20 "$folder/out" | sed 's/^/    /'
        failed=1
    fi
}

for bf16 in true false; do
    timeout 100 "$tandem" bench ops --shape "$shape" --seq 12 --tokens 20 --set device=cuda --set bf16=$bf16 \
        --set page_elements=500 --set lora_dropout=0.1 --record "$folder/ops.json" >"$folder/out" 2>&1
    expect "operations, bf16=$bf16" '^verified: ' "$folder/out"
    expect "all of them are in the record" '"op":"linear_backward".*"op":"attention_backward".*"op":"adamw_8bit"' "$folder/ops.json"
done
timeout 100 "$tandem" bench step --shape "$shape" --seq 16 --steps 2 --accumulation 2 --breakdown --set device=cuda \
    --set gradient_checkpointing=block --record "$folder/step.json" >"$folder/out" 2>&1
expect "a step on the device" '^verified: +loss' "$folder/out"
for part in 'linear layers, forward' 'linear layers, recompute' 'linear layers, backward' 'attention, backward' \
    'gradient accumulation' 'update'; do
    expect "time of $part" "\"part\":\"$part\",\"calls\":[1-9][0-9]*,\"seconds\":[0-9.e-]*[1-9]" "$folder/step.json"
done
expect "the GPU in the record" '"device":"NVIDIA [^"]*","driver":"CUDA [0-9.]+","cuda_runtime":"CUDA [0-9.]+","compute_capability"' \
    "$folder/step.json"
expect "host memory beside the plan" '"host_plan_bytes":[1-9]' "$folder/step.json"
# The breakdown calls each product by itself, so it has none dequantized ahead.
timeout 100 "$tandem" bench step --shape "$shape" --seq 16 --steps 2 --accumulation 1 --breakdown --set device=cuda \
    --set dequantized_cache_bytes=-1 --set dequantize_ahead=on --record "$folder/ahead.json" >"$folder/out" 2>&1
expect "weights dequantized ahead" '^copies: .*the others are dequantized ahead$' "$folder/out"
expect "and their breakdown" '"dequantizes_ahead":1,.*"part":"linear layers, backward","calls":[1-9]' "$folder/ahead.json"
exit "$failed"
