#!/usr/bin/env bash
# Starts that cannot work: a rank that never comes, ranks with different configs, a model that one rank cannot read, a rank
# that dies while data is prepared: one clear line and a code on all ranks, in bounded time.
. "$(dirname "$0")/lib.sh"
begin 25 "starts that fail" "$1"
ranks=$(random 2 3) rank=$(random 0 1)
export TANDEM_START_DEADLINE_SECONDS=4
case $((seed % 5)) in
0)  what="rank $rank leaves before it was there"
    TANDEM_FAULT="start:rank=$rank:exit=9" start run "$ranks" ;;
1)  what="rank $rank stands still before it was there"
    TANDEM_FAULT="start:rank=$rank:stop" start run "$ranks" ;;
2)  what="rank $rank cannot read the model"
    TANDEM_FAULT="base:rank=$rank:fail" start run "$ranks" ;;
3)  what="rank $rank dies while data is prepared"
    TANDEM_FAULT="data:rank=$rank:kill" start run "$ranks" ;;
4)  what="ranks have different configs"
    mapfile -t one < <(arguments run)
    mapfile -t other < <(arguments run --set learning_rate=1e-3)
    setsid timeout --foreground 60 mpirun -q --oversubscribe --bind-to none -n 1 "$FAULTS_PROGRAM" "${one[@]}" : -n 1 "$FAULTS_PROGRAM" "${other[@]}" >"$work/run.log" 2>&1 &
    launcher=$! current=run started_at=$SECONDS ;;
esac
break_now
finish
expect_failure
expect_exit_within 25
pkill -9 -f "$FAULTS_PROGRAM train.*$mark" # a stopped process takes its KILL only when it goes on
expect_gone_within 3
case $((seed % 5)) in
2) expect_log run "error: .*base: failed on purpose" ;;
4) expect_log run 'error: run config is not the same on all ranks' ;;
1) expect_log run 'error: .*(rank|MPI)' ;;
esac
case $((seed % 5)) in 1 | 2 | 4) expect_one_error run ;; esac
[ ! -e "$runs/run/adapter" ] || fail "an adapter of a run that did not start"
unset TANDEM_START_DEADLINE_SECONDS
expect_recovery run 2
pass "$what, of $ranks ranks"
