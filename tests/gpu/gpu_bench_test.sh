#!/usr/bin/env bash
# benchmarks/gpu_bench.sh itself, under the emulation and with tiny shapes: every part runs and leaves its record, peers alternate
# with the step, and what cannot run is told apart from what failed. usage: gpu_bench_test.sh SOURCE BUILD (with TANDEM_GPU_MODULE set)
set -euo pipefail
source=$1 build=$2
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export GPU_BENCH_QUICK=1 TANDEM_BUILD=$build OMP_NUM_THREADS=1

failed() {
    echo "FAILED: $*"
    cat "$folder/out"
    exit 1
}

# In place of Python with PyTorch: one variant answers, one cannot run.
cat >"$folder/python" <<'END'
#!/bin/sh
case "$*" in
-c*) exit 0 ;;
*gpu_attention.py*)
    echo '{"variant": "flash", "config": "'"$3"'", "documents": 4, "seq": 8, "forward_seconds": 1.0, "backward_seconds": 2.0, "forward_flops": 3e12, "backward_flops": 4e12}'
    echo '{"variant": "cudnn", "config": "'"$3"'", "documents": 4, "seq": 8, "skipped": "no cuDNN"}'
    ;;
*"--variant nf4"*) echo '{"variant": "nf4", "skipped": "no bitsandbytes in this Python"}' ;;
*--recompute*) echo "CUDA error: out of memory" >&2; exit 1 ;;
*) echo '{"variant": "bf16", "tokens_per_second": 2.0, "peak_bytes": 3e9, "grad_norm": 0.5}' ;;
esac
END
chmod +x "$folder/python"

# usage: expect CODE SECONDS [ARGUMENT...]
expect() {
    local expected=$1 seconds=$2 code=0
    shift 2
    rm -rf "$folder/records"
    GPU_BENCH_SECONDS=$seconds timeout 200 "$source/benchmarks/gpu_bench.sh" --out "$folder/records" "$@" >"$folder/out" 2>&1 || code=$?
    [ "$code" = "$expected" ] || failed "gpu_bench.sh $* ended with $code, expected $expected"
}

# A line of the table. usage: says STATE PART TEXT
says() {
    grep -qE "^$1 +$2 .*$3" "$folder/out" || failed "it does not say that $2 is $1 ($3)"
}

expect 0 190 --python "$folder/python"
[ "$(grep -cE '^(done|skipped) ' "$folder/out")" = 15 ] || failed "not all 15 parts are in the table"
for part in device step_8b step_8b_full step_1.7b step_1.7b_full memory_8b checkpoint_8b load_8b ops_8b; do
    says done "$part" '[0-9]'
    grep -q '"device": *"[^"]*[^"CPU]' "$folder/records/$part.json" || failed "the record of $part names no GPU"
done
says done load_8b 'from an NF4 image [0-9]'
grep -q '"recompute": *"block"' "$folder/records/step_8b_full.json" || failed "nothing was computed again"
grep -q '"recompute": *"none"' "$folder/records/step_8b.json" || failed "something was computed again"
says done peer_8b 'tandem / bf16 = [0-9].*nf4: skipped: no bitsandbytes in this Python'
says done peer_8b_full 'bf16: skipped: CUDA error: out of memory'
says done ahead_8b 'off [0-9]+ and [0-9]+, on [0-9]+ and [0-9]+ tokens/s: [0-9.]+ times'
grep -q '"dequantizes_ahead": *1' "$folder/records/ahead_8b-on.json" || failed "nothing was dequantized ahead"
grep -q '"dequantizes_ahead": *0' "$folder/records/ahead_8b-off.json" || failed "weights were dequantized ahead"
says done attention 'llama, 4x8: [0-9.]+ and [0-9.]+ TFLOP/s, / flash = [0-9.]+, / cudnn: none; llama, 1x32: .*; qwen, 4x8: [0-9.]+ and'
grep -qE '^  flash +forward +3.0 TFLOP/s, backward +2.0 TFLOP/s; tandem / flash = ' "$folder/records/attention.txt" || failed "no attention of the peer"
grep -q '^  cudnn: skipped: no cuDNN$' "$folder/records/attention.txt" || failed "it does not say why there is no cuDNN"
grep -q '^{"variant": "tandem", "config": "[^"]*", "documents": 1, "seq": 32, "forward_seconds": [0-9]' "$folder/records/attention.jsonl" ||
    failed "no attention of one document"
grep -q '^{"variant": "tandem", .*"recompute": *"block"' "$folder/records/peer_8b_full.jsonl" || failed "no step beside the peer"
[ "$(grep -c '(a trial)' "$folder/records/goals.txt")" -ge 5 ] || failed "the goals look like those of a measurement"
echo "ok     $(tail -n 1 "$folder/out" | sed 's/;.*//')"

expect 0 190 --python /nowhere peer_8b
says skipped peer_8b '/nowhere has no torch'
expect 0 5 memory_8b
says skipped memory_8b '[0-9] s are left, of up to 40'
TANDEM_GPU_MODULE=/nowhere.so expect 1 100 device step_8b
says failed device /nowhere.so
says skipped step_8b 'no GPU'
GPU_BENCH_QUICK= expect 1 100 device # where it matters there must be a driver
says failed device 'shows no driver'
expect 1 100 none_of_this
echo "ok     what is missing and what finds no time is skipped with the reason; what breaks makes it fail"
