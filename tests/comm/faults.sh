#!/bin/bash
# One fault in a job of several ranks: faults.sh PROGRAM CASE
# Checks exit code, the time from the fault to the end of every process, and what is printed.
set -u
program=$1
case=$2
. "$(dirname "$0")/fault_checks.sh"

# run RANKS SCENARIO FAULTY_RANK [DEADLINE], with $mpirun_options
run() {
    local ranks=$1 scenario=$2 faulty=$3 deadline=${4:-2}
    timeout -k 1 50 mpirun -q --oversubscribe ${mpirun_options:-} -n "$ranks" \
        "$program" "$scenario" "$faulty" "$folder" "$deadline" >"$folder/out" 2>"$folder/err"
    exit_code=$?
    ended=$(date +%s.%N)
    cat "$folder/out" "$folder/err"
}

case $case in
still)
    run 3 still 2
    expect_exit 6
    expect_gone_within 7
    expect_error_lines 1
    expect_line 'rank 2 \(host .*, pid [0-9]+\) did not reach collective 13 \(norm\) within 2 s, no progress'
    expect_line 'ranks 0-1: step 7, backward, in collective 13 \(norm\)'
    expect_line 'rank 2: step 7, backward, micro-batch 0, layer 1, after collective 12 \(adapter gather\)'
    ;;
stop)
    run 3 stop 2
    expect_exit 6
    expect_gone_within 7
    expect_error_lines 1
    expect_line 'rank 2 \(host .*\) did not reach collective 13 \(norm\) within 2 s, no sign of life'
    ;;
stop_first)
    run 3 stop 0
    expect_exit 6
    expect_gone_within 7
    expect_error_lines 1
    expect_line 'rank 0 \(host .*\) did not reach collective 13 \(norm\) within 2 s, no sign of life'
    ;;
kill)
    run 3 kill 1
    expect_exit 137
    expect_gone_within 10
    ;;
kill_without_cleanup)
    # The launcher lets the others go on: the deadline has to end them.
    mpirun_options="--enable-recovery" run 3 kill 1
    expect_gone_within 10
    expect_error_lines 1
    expect_line 'rank 1 \(host .*\) did not reach collective 13'
    ;;
leave)
    run 3 leave 1
    [ "$exit_code" != 0 ] || fail "exit code 0"
    expect_gone_within 10
    ;;
skip)
    run 3 skip 2
    expect_exit 6
    expect_gone_within 5
    expect_error_lines 1
    expect_line 'ranks disagree: rank 2 .* is in collective 13 \(adapter gather\) while rank 0 is in 13 \(norm\)'
    ;;
skip_to_longer)
    run 3 longer 0
    expect_exit 6
    expect_gone_within 5
    expect_error_lines 1
    expect_line 'ranks disagree: rank [0-9] .* is in collective 13 \((norm|embedding)\) while rank'
    ;;
skip_alike)
    run 3 alike 1
    expect_exit 6
    expect_gone_within 5
    expect_error_lines 1
    expect_line 'ranks disagree: rank 1 .* is in collective [0-9]+ \(loss\) while rank 0 is in'
    ;;
finish_early)
    run 3 finish 2
    expect_exit 6
    expect_gone_within 5
    expect_error_lines 1
    expect_line 'rank 2 .* is in collective 13 \(finish\) while rank 0 is in 13 \(norm\)'
    ;;
slow)
    run 3 slow 1
    expect_exit 0
    expect_error_lines 0
    ;;
nap)
    run 3 nap -1
    expect_exit 0
    expect_error_lines 0
    ;;
abort)
    run 3 abort 1 20
    expect_exit 3
    expect_gone_within 5
    expect_error_lines 1
    expect_line '^\[1\] error: line 7 is broken$'
    ;;
abort_together)
    run 3 abort -1 20
    expect_exit 3
    expect_gone_within 5
    expect_error_lines 1
    expect_line '^error: line 7 is broken$'
    ;;
abort_without_cleanup)
    # Others that fail after they were told are silent, and go though the launcher does not end them.
    mpirun_options="--enable-recovery" run 3 abort -1 20
    expect_gone_within 5
    expect_error_lines 1
    expect_line '^error: line 7 is broken$'
    ;;
abort_in_thread)
    run 4 thread 3 20
    expect_exit 7
    expect_gone_within 5
    expect_error_lines 1
    expect_line '^\[3\] error: the loss is not a number$'
    ;;
alone)
    "$program" abort 0 "$folder" >"$folder/out" 2>"$folder/err"
    exit_code=$?
    expect_exit 3
    expect_error_lines 1
    ;;
absent)
    export TANDEM_START_DEADLINE_SECONDS=2
    run 3 absent 1
    expect_exit 6
    expect_gone_within 10
    expect_error_lines 1
    expect_line 'MPI_Init has not returned for 2 s'
    ;;
launcher)
    # The launcher dies and cleans nothing up.
    mpirun -q --oversubscribe -n 3 "$program" still 2 "$folder" 30 >"$folder/out" 2>&1 &
    launcher=$!
    for _ in $(seq 100); do
        ls "$folder"/fault.* >/dev/null 2>&1 && break
        sleep 0.1
    done
    touch "$folder"/fault.*
    kill -9 $launcher
    wait $launcher 2>/dev/null
    ended=$(date +%s.%N)
    expect_gone_within 3
    ;;
stuck)
    timeout 20 "$program" stuck 0 "$folder" >"$folder/out" 2>"$folder/err"
    exit_code=$?
    expect_exit 6
    ls "$folder"/kicked.* >/dev/null 2>&1 || fail "ended although it was kicked"
    expect_line 'error: MPI_Example has not returned'
    ;;
none)
    run 4 none 0
    expect_exit 0
    expect_error_lines 0
    ;;
*)
    fail "unknown case $case"
    ;;
esac
[ "$failures" = 0 ] && echo "ok $case"
exit $((failures > 0))
