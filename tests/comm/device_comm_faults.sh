#!/bin/bash
# One fault in a job whose gradients travel by device collectives, on emulated GPUs:
# device_comm_faults.sh PROGRAM CASE, with TANDEM_GPU_MODULE and TANDEM_NCCL_LIBRARY set.
# Checks exit code, the time from the fault to the end of every process, and what is printed.
set -u
program=$1
case=$2
. "$(dirname "$0")/fault_checks.sh"

# run RANKS TRANSPORT SCENARIO [FAULTY_RANK]
run() {
    timeout -k 1 50 mpirun -q --oversubscribe -n "$1" "$program" "$2" "$3" "${4:--1}" "$folder" 2 \
        >"$folder/out" 2>"$folder/err"
    exit_code=$?
    ended=$(date +%s.%N)
    cat "$folder/out" "$folder/err"
}

# library_fault NAME[:RANK] [RANKS]: planted in the emulated NCCL; counted from the start
library_fault() {
    touch "$folder/fault.0"
    CUDA_HOST_NCCL_FAULT=$1 run "${2:-3}" nccl none
}

expect_end() {
    expect_exit "$1"
    expect_gone_within "$2"
    expect_error_lines 1
}

case $case in
none)
    run 3 nccl none
    expect_exit 0
    expect_error_lines 0
    ;;
library_missing)
    TANDEM_NCCL_LIBRARY=/nowhere/libnccl.so.2 run 3 nccl library
    expect_end 2 5
    expect_line '^error: the NCCL library cannot be loaded: /nowhere/libnccl.so.2: cannot open'
    grep -q '^probe: the NCCL library cannot be loaded: /nowhere/libnccl.so.2' "$folder/out" ||
        fail "the probe does not say why"
    ;;
library_other)
    TANDEM_NCCL_LIBRARY=libm.so.6 run 3 nccl library
    expect_end 2 5
    expect_line '^error: libm.so.6 has no ncclGetVersion: NCCL 2.14 or newer is needed'
    ;;
init_fails)
    library_fault init_fails:1
    expect_end 6 6
    expect_line '\[1\] error: rank 1: NCCL failed on GPU 1 in its start: unhandled system error: the network is unreach'
    ;;
init_blocks)
    library_fault init_blocks:1
    expect_end 6 9
    expect_line 'all ranks are in collective [0-9]+ \(NCCL start\), but it does not complete'
    ;;
never_arrives)
    library_fault never_arrives:1
    expect_end 6 9
    expect_line 'all ranks are in collective [0-9]+ \(NCCL start\), but it does not complete'
    ;;
async_error)
    library_fault async_error:1
    expect_end 6 6
    expect_line 'rank 1: NCCL failed on GPU 1 in device collective 3 \(gradient page\): remote process exited.*: the connec'
    ;;
call_fails)
    library_fault call_fails:2
    expect_end 6 6
    expect_line 'rank 2: NCCL failed on GPU 2 in device collective 3 \(gradient page\): unhandled cuda error: the launch'
    ;;
hang)
    library_fault hang
    expect_end 6 9
    expect_line 'all ranks are in collective [0-9]+ \(gradient page\), but it does not complete for [0-9]+ s'
    ;;
hang_one)
    library_fault hang:1
    expect_end 6 9
    expect_line '(in|reach) collective [0-9]+ \((gradient page|norm)\)'
    ;;
hang_alone)
    library_fault hang 1
    expect_end 70 9
    expect_line "rank 0: GPU 0 has not finished NCCL's device collective 3 \(gradient page\) within 2 s"
    ;;
disagree)
    CUDA_HOST_NCCL_FAULT=disagree run 3 nccl disagree 1
    expect_end 6 5
    expect_line 'ranks disagree: rank 1 .* is in collective [0-9]+ \(another page\) while rank 0 is in [0-9]+ \(gradient page\)'
    ;;
create_*)
    run 3 "${case#*_}" create 1
    expect_end 6 7
    expect_line 'rank 1 \(host .*\) did not reach collective [0-9]+ \((NCCL|staged collectives)\) within 2 s, no progress'
    ;;
still_*)
    run 3 "${case#*_}" still 1
    expect_end 6 7
    expect_line 'rank 1 \(host .*\) did not reach collective [0-9]+ \(gradient page\) within 2 s, no progress'
    ;;
stop_*)
    run 3 "${case#*_}" stop 2
    expect_end 6 7
    expect_line 'rank 2 \(host .*\) did not reach collective [0-9]+ \(gradient page\) within 2 s, no sign of life'
    ;;
kill_*)
    run 3 "${case#*_}" kill 1
    expect_exit 137
    expect_gone_within 10
    ;;
destroy_nccl)
    run 3 nccl destroy 1
    expect_end 6 7
    expect_line 'rank 1 \(host .*\) did not reach collective [0-9]+ \((NCCL end|finish)\) within 2 s, no progress'
    ;;
device_*)
    run 3 "${case#*_}" device 1
    expect_end 70 9
    expect_line 'rank 1: GPU 1 has not finished the (copies of|work before) device collective 1 \(gradient page\) within 2 s'
    ;;
slow_*)
    run 3 "${case#*_}" slow 1
    expect_exit 0
    expect_error_lines 0
    ;;
*)
    fail "unknown case $case"
    ;;
esac
[ "$failures" = 0 ] && echo "ok $case"
exit $((failures > 0))
