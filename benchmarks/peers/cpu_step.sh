#!/usr/bin/env bash
# The training step on a CPU beside its peers, alternating in one run: tandem, PEFT + bitsandbytes NF4, PyTorch fp32 LoRA. Same
# shape, tokens, LoRA rank and threads. Prints each measurement as a JSON line to the record, then medians and ratios.
# usage: benchmarks/peers/cpu_step.sh PYTHON SHAPE SEQ THREADS ROUNDS RECORD
#   PYTHON has torch, transformers, peft, bitsandbytes (tests/reference/requirements.txt); SHAPE is a folder of configs/shapes
set -euo pipefail
cd "$(dirname "$0")/../.."
python=$1 shape=$2 seq=$3 threads=$4 rounds=$5 record=$6
tandem=${TANDEM:-build/release/tandem}
export OMP_NUM_THREADS=$threads

machine() {
    local cpu
    cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)
    printf '{"machine": "%s", "cores": %s, "memory_kib": %s, "commit": "%s", "date": "%s", "command": "%s"}\n' \
        "$cpu" "$(nproc)" "$(awk '/MemTotal/ {print $2}' /proc/meminfo)" "$(git rev-parse --short HEAD)" \
        "$(date -u +%Y-%m-%d)" "benchmarks/peers/cpu_step.sh PYTHON $shape $seq $threads $rounds"
}

mkdir -p "$(dirname "$record")"
machine >"$record"
for _ in $(seq "$rounds"); do
    "$tandem" bench step --shape "$shape" --seq "$seq" --steps 3 --json \
        --set lora_r=16 --set lora_alpha=32 --set lora_dropout=0 --set gradient_checkpointing=none 2>/dev/null |
        sed 's/^{/{"variant": "tandem", /' >>"$record"
    for variant in nf4 fp32; do
        "$python" benchmarks/peers/torch_step.py --config "$shape" --seq "$seq" --rank 16 \
            --threads "$threads" --steps 3 --variant "$variant" --json 2>/dev/null >>"$record"
    done
done

median() {
    grep "\"variant\": \"$1\"" "$record" | sed -E "s/.*\"($2)\": ([-0-9.e+]+).*/\\2/" | sort -g |
        awk '{v[NR] = $1} END {print v[int((NR + 1) / 2)]}'
}
spread() {
    grep "\"variant\": \"$1\"" "$record" | sed -E "s/.*\"($2)\": ([-0-9.e+]+).*/\\2/" | sort -g |
        awk '{v[NR] = $1} END {printf "%.1f to %.1f", v[1], v[NR]}'
}
echo "$shape, seq $seq, $threads threads, $rounds rounds, tokens/s = tokens of a step / median step"
for variant in tandem nf4 fp32; do
    printf '  %-8s %9.1f tokens/s (%s), peak %.0f MiB\n' "$variant" "$(median $variant "tokens_per_second|tokens_per_s")" \
        "$(spread $variant "tokens_per_second|tokens_per_s")" \
        "$(awk -v b="$(median $variant "peak_bytes|peak_resident_bytes")" 'BEGIN {print b / 1048576}')"
done
awk -v t="$(median tandem "tokens_per_second|tokens_per_s")" -v n="$(median nf4 "tokens_per_second|tokens_per_s")" -v f="$(median fp32 "tokens_per_second|tokens_per_s")" \
    -v s="$(median tandem gemm_share)" \
    'BEGIN {printf "  tandem / PEFT+bitsandbytes = %.2f, tandem / PyTorch fp32 LoRA = %.2f, GEMM share of the sgemm peak %.1f %%\n", t / n, t / f, 100 * s}'
