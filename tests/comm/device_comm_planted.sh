#!/bin/bash
# A transport without the waits for events on some of its streams: the cases must notice, whatever ran in time by luck.
# device_comm_planted.sh PROGRAM TRANSPORT POINT
set -u
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 ASAN_OPTIONS=detect_leaks=0
output=$(mktemp)
trap 'rm -f "$output"' EXIT
for seed in 1 2 3 4 5 6; do
    timeout -k 1 30 mpirun -q --oversubscribe -n 2 "$1" "$2" "$seed" "$3" >"$output" 2>&1
    code=$?
    [ "$code" = 124 ] && { echo "failed: hangs with seed $seed"; exit 1; }
    if [ "$code" != 0 ]; then
        grep -m 3 -E 'failed:|cuda_host:|error:' "$output"
        echo "ok     noticed with seed $seed"
        exit 0
    fi
done
echo "failed: missing waits at point $3 were not noticed"
exit 1
