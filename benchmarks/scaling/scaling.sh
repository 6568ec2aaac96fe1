#!/usr/bin/env bash
# Strong and weak scaling of the training step over ranks, the collectives by size, what exact sums cost: measured, then fitted and
# extrapolated (model.awk). Every rank computes with one thread on a CPU, so that ranks and not threads are what is scaled.
# usage: benchmarks/scaling/scaling.sh SHAPE SEQ RECORD RANKS...      (1 2 3; RANKS in ascending order)
#   TANDEM                the program (build/release/tandem)
#   TANDEM_SCALING_LAUNCH command that takes RANKS PROGRAM ARGUMENT... (launch/mpirun.sh)
#   STEPS, ROUNDS         timed steps (5), timed collectives of every size (20)
#   MODEL                 what model.awk is to be told, as "-v parameters=41943040 -v rate=18000"
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
if [ $# -lt 4 ]; then
    sed -n 4,9p "${BASH_SOURCE[0]}" >&2
    exit 2
fi
shape=$1 seq=$2 record=$3
shift 3
most=${*: -1}
tandem=${TANDEM:-build/release/tandem}
launch=${TANDEM_SCALING_LAUNCH:-launch/mpirun.sh}
steps=${STEPS:-5} rounds=${ROUNDS:-20}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# step KIND RANKS MICRO_BATCHES
step() {
    echo "$1 scaling, $2 ranks" >&2
    $launch "$2" "$tandem" bench step --json --shape "$shape" --seq "$seq" --accumulation "$3" --steps "$steps" 2>/dev/null |
        sed "s/^{/{\"scaling\": \"$1\", /" >>"$record"
}

mkdir -p "$(dirname "$record")"
printf '{"machine": "%s", "cores": %s, "load_average": "%s", "date": "%s", "command": "benchmarks/scaling/scaling.sh %s %s RECORD %s"}\n' \
    "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)" "$(getconf _NPROCESSORS_ONLN)" "$(cut -d ' ' -f 1-3 /proc/loadavg)" \
    "$(date -u +%Y-%m-%d)" "$shape" "$seq" "$*" >"$record"
for ranks in "$@"; do
    step strong "$ranks" "$most"
    step weak "$ranks" "$ranks"
    echo "collectives, $ranks ranks" >&2
    $launch "$ranks" "$tandem" bench comm --json --shape "$shape" --seq "$seq" --steps "$steps" --rounds "$rounds" \
        --max-bytes "${MAX_BYTES:-67108864}" 2>/dev/null >>"$record"
done
# shellcheck disable=SC2086
awk -f benchmarks/scaling/model.awk ${MODEL:-} "$record"
