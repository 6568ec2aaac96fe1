#!/usr/bin/env bash
# Attention alone on a GPU, forward and backward: tandem's kernels (tandem bench ops) beside FlashAttention and cuDNN through PyTorch,
# causal, in bf16, with the groups of heads of each SHAPE, in the same run. TFLOP/s = 4 D heads pairs forward and 10 backward over the
# median, with the same FLOPs for all. JSON lines to the record, then a table with ratios. What cannot run says why and is left out.
# usage: benchmarks/peers/gpu_attention.sh RECORD [--python PYTHON] [--cases "4x2048 1x8192"] [--backends "flash cudnn"] [--samples N]
#                                          [--calls N] [--seconds N] [--device cuda|cpu] SHAPE...
#   --cases     documents and their tokens
#   --seconds   nothing is started that could end later than this after the start (no limit)
#   TANDEM      the program (build/release/tandem)
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
usage() { sed -n '5,9s/^# //p' "$0" >&2; exit 2; }
[ $# -ge 2 ] || usage
record=$1 python=python3 cases="4x2048 1x8192" backends="flash cudnn" samples=20 calls=5 limit=100000 device=cuda
shift
while [ $# -gt 1 ] && [[ $1 == --* ]]; do
    case $1 in
    --python) python=$2 ;; --cases) cases=$2 ;; --backends) backends=$2 ;; --samples) samples=$2 ;; --calls) calls=$2 ;;
    --seconds) limit=$2 ;; --device) device=$2 ;; *) usage ;;
    esac
    shift 2
done
{ [ $# -gt 0 ] && [[ $1 != --* ]]; } || usage
tandem=${TANDEM:-$root/build/release/tandem}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$(dirname "$record")"
printf '{"gpu": "%s", "driver": "%s", "load_average": %s, "date": "%s", "command": "benchmarks/peers/gpu_attention.sh RECORD --cases %s --device %s %s"}\n' \
    "$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1)" \
    "$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1)" "$(cut -d' ' -f1 /proc/loadavg)" \
    "$(date -u +%Y-%m-%d)" "${cases// /,}" "$device" "$*" >"$record"

# usage: timed COMMAND...: into $work/out, or why not into $work/why
timed() {
    local left=$((limit - SECONDS))
    if [ "$left" -le 0 ]; then
        echo "no time" >"$work/why"
    elif timeout --kill-after=5 "$left" "$@" >"$work/out" 2>"$work/log"; then
        return 0
    else
        { grep -aE '[Ee]rror' "$work/log" || cat "$work/log"; } | tail -n 1 | cut -c1-300 >"$work/why"
        [ -s "$work/why" ] || echo "not done in time" >"$work/why"
    fi
    return 1
}
# The line of one operation out of a record of bench ops: its FLOPs and its median.
operation() {
    sed -E "s/.*\{\"op\": *\"$1\"[^{]*\"flops\": *([-0-9.e+]+)[^{]*\"seconds\": *\{\"median\": *([-0-9.e+]+).*/\1 \2/" "$work/line"
}
# usage: ours SHAPE DOCUMENTS TOKENS
ours() {
    local head="{\"variant\": \"tandem\", \"config\": \"$1\", \"documents\": $2, \"seq\": $3"
    if timed "$tandem" bench ops --shape "$1" --seq "$3" --tokens $(($2 * $3)) --only attention --json --set device="$device"; then
        tr -s '\n\t' '  ' <"$work/out" | sed 's/^ *{//; s/} *$/\n/' >"$work/line"
        read -r forward_flops forward_seconds < <(operation attention_forward)
        read -r backward_flops backward_seconds < <(operation attention_backward)
        echo "$head, \"forward_seconds\": $forward_seconds, \"backward_seconds\": $backward_seconds, \"forward_flops\": $forward_flops," \
            "\"backward_flops\": $backward_flops, \"record\": {$(cat "$work/line")}}" >>"$record"
    else
        echo "$head, \"skipped\": \"$(tr -d '"\\' <"$work/why")\"}" >>"$record"
    fi
}
# usage: theirs SHAPE
theirs() {
    local options=() each
    for each in $cases; do options+=(--case "$each"); done
    if timed "$python" "$root/benchmarks/peers/gpu_attention.py" --config "$1" "${options[@]}" --backends "${backends// /,}" \
        --samples "$samples" --calls "$calls" --device "$device"; then
        cat "$work/out" >>"$record"
    else
        for each in $backends; do
            echo "{\"variant\": \"$each\", \"config\": \"$1\", \"skipped\": \"$(tr -d '"\\' <"$work/why")\"}" >>"$record"
        done
    fi
}

# usage: find_line SHAPE DOCUMENTS TOKENS VARIANT: its line; one that was skipped for all cases names none
find_line() {
    { grep -F "{\"variant\": \"$4\", \"config\": \"$1\"" "$record" | grep -E "\"documents\": $2, \"seq\": $3[,}]|\"config\": \"[^\"]*\", \"skipped\"" ||
        true; } | head -n 1
}
number() {
    sed -nE "s/.*[{ ]\"$1\": *([-0-9.e+]+).*/\1/p" <<<"$2"
}
# usage: row SHAPE DOCUMENTS TOKENS VARIANT: "  variant  forward TFLOP/s ...", with ratios to tandem's
row() {
    local line own
    line=$(find_line "$@")
    own=$(find_line "$1" "$2" "$3" tandem)
    if [ -z "$(number forward_seconds "${line%%\"record\"*}")" ]; then
        echo "  $4: skipped: $(sed -nE 's/.*"skipped": "([^"]*)".*/\1/p' <<<"$line" | grep . || echo "no time")"
        return
    fi
    line=${line%%\"record\"*} own=${own%%\"record\"*}
    awk -v n="$4" -v f="$(number forward_seconds "$line")" -v b="$(number backward_seconds "$line")" -v ff="$(number forward_flops "$line")" \
        -v bf="$(number backward_flops "$line")" -v of="$(number forward_seconds "$own")" -v ob="$(number backward_seconds "$own")" 'BEGIN {
        printf "  %-7s forward %7.1f TFLOP/s, backward %7.1f TFLOP/s", n, ff / f * 1e-12, bf / b * 1e-12
        if (n != "tandem" && of) printf "; tandem / %s = %.2f forward, %.2f backward, %.2f both", n, f / of, b / ob, (f + b) / (of + ob)
        print "" }'
}

for shape in "$@"; do
    for each in $cases; do
        ours "$shape" "${each%x*}" "${each#*x}"
    done
    theirs "$shape"
    for each in $cases; do
        echo "$(basename "$shape"), $each tokens, causal"
        for variant in tandem $backends; do
            row "$shape" "${each%x*}" "${each#*x}" "$variant"
        done
    done
done
