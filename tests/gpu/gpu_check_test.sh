#!/usr/bin/env bash
# gpu_check.sh itself, under the emulation: every check runs and is recorded; one that fails, or that nothing is there for,
# makes it fail. usage: gpu_check_test.sh SOURCE BUILD (with TANDEM_GPU_MODULE and TANDEM_NCCL_LIBRARY set)
set -euo pipefail
source=$1 build=$2
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export GPU_CHECK_QUICK=1 TANDEM_BUILD=$build OUT=$folder

failed() {
    echo "FAILED: $*"
    cat "$folder/out"
    exit 1
}

# In place of compute-sanitizer: runs the program after the options, and finds something in one operation.
cat >"$folder/sanitizer" <<'END'
#!/bin/sh
while [ "${1#--}" != "$1" ]; do shift 2; done
[ "${3:-}" != "${BLIND_IN:-}" ] || exec "$@"
"$@" || exit
echo "========= ERROR SUMMARY: 0 errors"
[ "${3:-}" != "${FIND_IN:-}" ] || { echo "========= Invalid __global__ write of size 4 bytes"; exit 99; }
END
chmod +x "$folder/sanitizer"

# usage: expect CODE [CHECK...]
expect() {
    local expected=$1 code=0
    shift
    rm -f "$folder/gpu-check.json"
    GPU_CHECK_SANITIZER=$folder/sanitizer timeout 200 "$source/tests/gpu_check.sh" "$@" >"$folder/out" 2>&1 || code=$?
    [ "$code" = "$expected" ] || failed "gpu_check.sh $* ended with $code, expected $expected"
}

# The record has this line for a check. usage: recorded CHECK RESULT TEXT
recorded() {
    grep -qE "\{\"name\": \"$1\", \"result\": \"$2\".*$3" "$folder/gpu-check.json" ||
        { cat "$folder/gpu-check.json" && failed "the record does not say \"$1\" $2 ($3)"; }
}

expect 0
[ "$(grep -c '"result": "passed"' "$folder/gpu-check.json")" = 18 ] || failed "not all 18 checks are in the record"
grep -q 'no driver: not a real one' "$folder/gpu-check.json" || failed "the record looks like that of a GPU"
recorded losses_bf16 passed '"largest_relative_difference": [0-9]'
recorded same_bits passed '"two_ranks": "[0-9a-f]{16}"'
echo "ok     $(tail -n 1 "$folder/out" | sed 's/;.*//')"

BLIND_IN=add expect 1 device racecheck
recorded racecheck failed 'fp32 add: the sanitizer printed no summary'
FIND_IN=f32_add expect 1 device memcheck
recorded memcheck failed 'bf16 f32_add: .*Invalid __global__ write'
grep -q '"passed": false' "$folder/gpu-check.json" || failed "the record says passed"
TANDEM_GPU_MODULE=/nowhere.so expect 1 device operations_fp32
recorded device failed '/nowhere.so'
recorded operations_fp32 failed 'not run: no GPU'
GPU_CHECK_SECONDS=60 expect 1 device losses_bf16 # all of them are kept for the timing: nothing is left for this one
recorded losses_bf16 failed 'not done in time'
GPU_CHECK_QUICK= expect 1 device # where it matters there must be a driver
recorded device failed 'no driver'
echo "ok     what is found, what is missing and what takes too long make it fail"
