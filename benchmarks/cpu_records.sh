#!/usr/bin/env bash
# The records of a CPU in one go: steps with the time of each part, every operation, and a drawing of them. About ten minutes on
# a machine that does nothing else; what it does besides is in each record as its load average.
# usage: benchmarks/cpu_records.sh [FOLDER]    (benchmarks/results; THREADS, STEPS and SHAPES from the environment)
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-benchmarks/results}
tandem=${TANDEM:-build/release/tandem}
export OMP_NUM_THREADS=${THREADS:-$(nproc)}
mkdir -p "$folder"
drawn=()
for shape in ${SHAPES:-smollm2-135m qwen3-0.6b}; do
    for seq in ${SEQS:-512 2048}; do
        record=$folder/cpu-breakdown-$shape-$seq.json
        "$tandem" bench step --shape "configs/shapes/$shape" --seq "$seq" --steps "${STEPS:-3}" --breakdown --record "$record" \
            --set device=cpu --set lora_r=16 --set lora_alpha=32 --set lora_dropout=0
        drawn+=("$record")
    done
    "$tandem" bench ops --shape "configs/shapes/$shape" --seq "${SEQ:-512}" --record "$folder/cpu-ops-$shape.json" \
        --set device=cpu --set lora_r=16
done
benchmarks/plot.sh "${drawn[@]}" >"$folder/cpu-breakdown.svg"
echo "$folder/cpu-breakdown.svg"
