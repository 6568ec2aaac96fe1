#!/usr/bin/env bash
# cpu_step.sh for the shapes and lengths that the README speaks of, one record each, in bounded time and memory.
# usage: benchmarks/peers/cpu_all.sh PYTHON FOLDER [THREADS [ROUNDS]]     records go to FOLDER/cpu-step-SHAPE-SEQ.jsonl; 2 rounds
#   CPU_ALL_SECONDS   how long all of it may take (1680); what is left is shared by the work that a step has
#   CPU_STEP_GIB      how much memory (22, or what is available if that is less)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ $# -ge 2 ] || { sed -n '3,5s/^# //p' "$0" >&2; exit 2; }
python=$1 folder=$2 threads=${3:-$(nproc)} rounds=${4:-2}
total=${CPU_ALL_SECONDS:-1680}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

# SHAPE SEQ STEPS WEIGHT; the weights are those of the seconds that two rounds take with the start (2 cores of a Zen 4)
runs=("smollm2-135m 512 2 12" "smollm2-135m 2048 1 21" "qwen3-0.6b 512 1 22" "qwen3-0.6b 2048 1 72")
left=0
for run in "${runs[@]}"; do
    read -r _ _ _ weight <<<"$run"
    left=$((left + weight))
done
for run in "${runs[@]}"; do
    read -r shape seq steps weight <<<"$run"
    limit=$(((total - SECONDS) * weight / left))
    [ "$weight" != "$left" ] || limit=$((limit * 10 / 12)) # cpu_step.sh ends at 6/5 of its limit at the latest
    left=$((left - weight))
    "$here/cpu_step.sh" "$python" "configs/shapes/$shape" "$seq" "$threads" "$rounds" \
        "$folder/cpu-step-$shape-$seq.jsonl" "$steps" "$limit" || echo "cpu_all: $shape $seq was not measured" >&2
done
