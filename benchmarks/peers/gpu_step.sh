#!/usr/bin/env bash
# The training step on a GPU beside its peers, alternating in one run: tandem's QLoRA, PyTorch + PEFT in bf16, and with bitsandbytes
# NF4 where it is there. Same shape, packed tokens, LoRA rank and targets, recomputation as asked for. JSON lines to the record, then
# medians, spreads and ratios. A variant that cannot run says why and is left out.
# usage: benchmarks/peers/gpu_step.sh SHAPE RECOMPUTE RECORD [--python PYTHON] [--seq N] [--batch N] [--accumulation N]
#                                     [--rounds N] [--steps N] [--seconds N] [--device cuda|cpu]
#   RECOMPUTE   none or full: gradient_checkpointing of every block here and there
#   --seconds   nothing is started that could end later than this after the start (no limit)
#   TANDEM      the program (build/release/tandem)
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
usage() { sed -n '5,9s/^# //p' "$0" >&2; exit 2; }
[ $# -ge 3 ] || usage
shape=$1 recompute=$2 record=$3
shift 3
python=python3 seq=2048 batch=2 accumulation=4 rounds=2 steps=3 limit=100000 device=cuda
while [ $# -gt 1 ]; do
    case $1 in
    --python) python=$2 ;; --seq) seq=$2 ;; --batch) batch=$2 ;; --accumulation) accumulation=$2 ;;
    --rounds) rounds=$2 ;; --steps) steps=$2 ;; --seconds) limit=$2 ;; --device) device=$2 ;; *) usage ;;
    esac
    shift 2
done
[ $# = 0 ] || usage
case $recompute in
none) ours=none theirs="" ;;
full) ours=block theirs=--recompute ;;
*) usage ;;
esac
tandem=${TANDEM:-$root/build/release/tandem}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$(dirname "$record")"
printf '{"gpu": "%s", "driver": "%s", "load_average": %s, "date": "%s", "command": "benchmarks/peers/gpu_step.sh %s %s --seq %s --batch %s --accumulation %s --rounds %s --steps %s --device %s"}\n' \
    "$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1)" \
    "$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1)" "$(cut -d' ' -f1 /proc/loadavg)" \
    "$(date -u +%Y-%m-%d)" "$shape" "$recompute" "$seq" "$batch" "$accumulation" "$rounds" "$steps" "$device" >"$record"

# usage: measure VARIANT COMMAND...: a line of the record, or why there is none; a variant that failed once is not tried again
measure() {
    local variant=$1 left=$((limit - SECONDS))
    shift
    [ ! -e "$work/$variant.skip" ] || return 0
    if [ "$left" -le 0 ]; then
        echo "  $variant: not run again, the time is over" >&2
    elif ! timeout --kill-after=5 "$left" "$@" >"$work/out" 2>"$work/log"; then
        { grep -aE '[Ee]rror' "$work/log" || cat "$work/log"; } | tail -n 1 | cut -c1-300 >"$work/$variant.skip"
        [ -s "$work/$variant.skip" ] || echo "not done in time" >"$work/$variant.skip"
    elif grep -q '"skipped"' "$work/out"; then
        sed -E 's/.*"skipped": "([^"]*)".*/\1/' "$work/out" >"$work/$variant.skip"
    else
        tr -s '\n\t' '  ' <"$work/out" | sed "s/^ *{/{\"variant\": \"$variant\", /; s/ *\$/\n/" >>"$record"
    fi
}
peer() {
    measure "$1" "$python" "$root/benchmarks/peers/gpu_step.py" --config "$shape" --variant "$1" --seq "$seq" --batch "$batch" \
        --accumulation "$accumulation" --steps "$steps" --device "$device" $theirs
}

for _ in $(seq "$rounds"); do
    measure tandem "$tandem" bench step --shape "$shape" --seq "$seq" --batch "$batch" --accumulation "$accumulation" \
        --steps "$steps" --json --set device="$device" --set lora_r=16 --set lora_alpha=32 --set lora_dropout=0 \
        --set gradient_checkpointing=$ours
    peer bf16
    peer nf4
done

of() {
    { grep "{\"variant\": \"$1\"" "$record" || true; } | sed -E "s/.*\"$2\": *([-0-9.e+]+).*/\\1/" | sort -g
}
median() {
    of "$@" | awk '{v[NR] = $1} END {print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2}'
}
mine=$(median tandem tokens_per_second)
echo "$shape, seq $seq x $batch x $accumulation, recompute $recompute; tokens/s = tokens of a step / median step"
for variant in tandem bf16 nf4; do
    if [ -z "$(of $variant tokens_per_second)" ]; then
        echo "  $variant: skipped: $(cat "$work/$variant.skip" 2>/dev/null || echo "no time")"
        continue
    fi
    of $variant tokens_per_second | awk -v n="$variant" -v m="$(median $variant tokens_per_second)" -v t="$mine" \
        -v p="$(median $variant peak_bytes)" -v g="$(median $variant grad_norm)" '{v[NR] = $1} END {
        printf "  %-7s %9.0f tokens/s (%.0f to %.0f), peak %.2f GB, gradient norm %.3g", n, m, v[1], v[NR], p * 1e-9, g
        if (n != "tandem" && t) printf ", tandem / %s = %.2f", n, t / m
        print "" }'
done
