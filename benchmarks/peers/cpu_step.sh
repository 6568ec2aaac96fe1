#!/usr/bin/env bash
# The training step on a CPU beside its peers, alternating in one run: tandem, PEFT + bitsandbytes NF4 and PyTorch fp32 LoRA, all
# computing in fp32; and once, for information, PEFT + bitsandbytes NF4 computing in bf16. Same shape, tokens, LoRA rank and threads.
# The peers stay in memory between rounds, idle, so that a round is made of steps and not of building models; every one of them has
# done a step of up to 512 tokens before. Prints each measurement as a JSON line to the record, then medians, spreads and ratios.
# usage: benchmarks/peers/cpu_step.sh PYTHON SHAPE SEQ THREADS ROUNDS RECORD [STEPS [SECONDS]]
#   PYTHON    has torch, transformers, peft, bitsandbytes (tests/reference/requirements.txt)
#   SHAPE     a folder of configs/shapes
#   STEPS     timed steps of each in a round (1)
#   SECONDS   no round is started that would end later than this (no limit)
set -euo pipefail
cd "$(dirname "$0")/../.."
[ $# -ge 6 ] || { sed -n '6,10s/^# //p' "$0" >&2; exit 2; }
python=$1 shape=$2 seq=$3 threads=$4 rounds=$5 record=$6 steps=${7:-1} limit=${8:-}
tandem=${TANDEM:-build/release/tandem}
export OMP_NUM_THREADS=$threads
work=$(mktemp -d)
peers=()
trap 'for peer in ${peers[@]+"${peers[@]}"}; do kill "$peer" 2>/dev/null || true; done; rm -rf "$work"' EXIT

die() {
    echo "cpu_step: $*" >&2
    exit 1
}

machine() {
    local cpu
    cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)
    printf '{"machine": "%s", "cores": %s, "memory_kib": %s, "memory_available_kib": %s, "load_average": %s, "commit": "%s", "date": "%s", "command": "%s"}\n' \
        "$cpu" "$(nproc --all)" "$(awk '/MemTotal/ {print $2}' /proc/meminfo)" "$(awk '/MemAvailable/ {print $2}' /proc/meminfo)" \
        "$(cut -d' ' -f1 /proc/loadavg)" "$(git rev-parse --short HEAD)" "$(date -u +%Y-%m-%d)" \
        "benchmarks/peers/cpu_step.sh PYTHON $shape $seq $threads $rounds RECORD $steps${limit:+ $limit}"
}

# Starts a peer and waits until it has built its model and done a step. Pipes: ask[VARIANT], answer[VARIANT]
declare -A ask answer
start() {
    local variant=$1 line
    mkfifo "$work/$variant.in" "$work/$variant.out"
    "$python" benchmarks/peers/torch_step.py --config "$shape" --seq "$seq" --rank 16 --threads "$threads" \
        --variant "$variant" --serve <"$work/$variant.in" >"$work/$variant.out" 2>"$work/$variant.log" &
    peers+=($!)
    exec {ask[$variant]}>"$work/$variant.in" {answer[$variant]}<"$work/$variant.out"
    read -r line <&"${answer[$variant]}" && [[ $line == *'"ready"'* ]] || die "$variant: $(tail -n 3 "$work/$variant.log")"
}

finish() {
    exec {ask[$1]}>&- {answer[$1]}<&-
}

peer() {
    local line
    echo "$steps" >&"${ask[$1]}"
    read -r line <&"${answer[$1]}" || die "$1: $(tail -n 3 "$work/$1.log")"
    echo "$line" >>"$record"
}

ours() {
    "$tandem" bench step --shape "$shape" --seq "$seq" --steps "$steps" --json --set device=cpu \
        --set lora_r=16 --set lora_alpha=32 --set lora_dropout=0 --set gradient_checkpointing=none >"$work/out" 2>"$work/log" ||
        die "tandem: $(tail -n 3 "$work/log")"
    tr -s '\n\t' '  ' <"$work/out" | sed "s/^ *{/{\"variant\": \"tandem\", \"load_average\": $(cut -d' ' -f1 /proc/loadavg), /; s/ *\$/\n/" >>"$record"
}

# usage: of VARIANT KEY: one number a line, sorted
of() {
    grep "\"variant\": \"$1\"" "$record" | sed -E "s/.*\"($2)\": *([-0-9.e+]+).*/\\2/" | sort -g
}
median() {
    of "$@" | awk '{v[NR] = $1} END {print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2}'
}
rate="tokens_per_second|tokens_per_s"
peak="peak_bytes|peak_resident_bytes"

summary() {
    local variant
    echo "$shape, seq $seq, $threads threads, $done rounds of $steps, load $(sed -nE '1s/.*"load_average": ([0-9.]+).*/\1/p' "$record") at the start; tokens/s = tokens of a step / median step"
    for variant in tandem nf4 fp32 nf4_bf16; do
        printf '  %-8s %9.1f tokens/s (%s), peak %.0f MiB\n' "$variant" "$(median $variant "$rate")" \
            "$(of $variant "$rate" | awk '{v[NR] = $1} END {printf "%.1f to %.1f", v[1], v[NR]}')" \
            "$(awk -v b="$(median $variant "$peak")" 'BEGIN {print b / 1048576}')"
    done
    # Ratios round by round: what slows the machine down for a while slows both.
    for variant in nf4 fp32; do
        paste <(in_order tandem) <(in_order $variant) | awk -v n="$variant" '{print $1 / $2}' | sort -g |
            awk -v n="$variant" '{v[NR] = $1} END {printf "  tandem / %s = %.2f (%.2f to %.2f), by rounds\n", n, NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2, v[1], v[NR]}'
    done
    awk -v t="$(median tandem "$rate")" -v b="$(median nf4_bf16 "$rate")" -v s="$(median tandem gemm_share)" -v p="$(median tandem gemm_peak_flops)" \
        -v q="$(median fp32 gemm_flops)" 'BEGIN {printf "  tandem (fp32) / nf4_bf16 = %.2f; GEMM share of the sgemm peak %.1f %%; sgemm %.0f GFLOP/s here, %.0f in PyTorch\n", t / b, 100 * s, p * 1e-9, q * 1e-9}'
}
in_order() {
    grep "\"variant\": \"$1\"" "$record" | sed -E "s/.*\"($rate)\": *([-0-9.e+]+).*/\\2/"
}

mkdir -p "$(dirname "$record")"
machine >"$record"
for variant in fp32 nf4; do
    start $variant
done
done=0
while [ "$done" -lt "$rounds" ]; do
    began=$SECONDS
    ours
    peer nf4
    peer fp32
    done=$((done + 1))
    if [ -n "$limit" ] && [ "$done" -lt "$rounds" ] && [ $((SECONDS + 14 * (SECONDS - began) / 10)) -gt "$limit" ]; then
        echo "cpu_step: $done of $rounds rounds: another one would end later than $limit s" >&2
        break
    fi
done
finish fp32
finish nf4
start nf4_bf16
peer nf4_bf16
summary
