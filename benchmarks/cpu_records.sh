#!/usr/bin/env bash
# The records of a CPU in one go: steps with the time of each part, every operation, and a drawing of them. About ten minutes on
# a machine that does nothing else; what it does besides is in each record as its load average.
# usage: benchmarks/cpu_records.sh [FOLDER]    (benchmarks/results; THREADS, STEPS, SHAPES, SEQS and PRECISIONS from the environment)
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-benchmarks/results}
tandem=${TANDEM:-build/release/tandem}
export OMP_NUM_THREADS=${THREADS:-$(nproc)}
mkdir -p "$folder"
drawn=()
settings="--set device=cpu --set lora_r=16 --set lora_alpha=32 --set lora_dropout=0"
for shape in ${SHAPES:-smollm2-135m qwen3-0.6b}; do
    for precision in ${PRECISIONS:-highest medium}; do
        suffix=
        [ "$precision" = highest ] || suffix=-$precision
        for seq in ${SEQS:-512 2048}; do
            record=$folder/cpu-breakdown-$shape-$seq$suffix.json
            "$tandem" bench step --shape "configs/shapes/$shape" --seq "$seq" --steps "${STEPS:-3}" --breakdown --record "$record" \
                $settings --set float32_matmul_precision="$precision"
            drawn+=("$record")
        done
        "$tandem" bench ops --shape "configs/shapes/$shape" --seq "${SEQ:-512}" --record "$folder/cpu-ops-$shape$suffix.json" \
            $settings --set float32_matmul_precision="$precision"
    done
done
benchmarks/plot.sh "${drawn[@]}" >"$folder/cpu-breakdown.svg"
echo "$folder/cpu-breakdown.svg"
