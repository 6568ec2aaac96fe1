#!/usr/bin/env bash
# TERM to every rank, as a scheduler sends it, and again some seconds later in the middle of the save: the last committed step
# is whole.
. "$(dirname "$0")/lib.sh"
begin 7 "TERM, and again in mid-save" "$1"
ranks=$(random 2 3) step=$(random 1 8)
TANDEM_FAULT="checkpoint.verify:nth=0:delay=9000;step:nth=0:delay=200" start run "$ranks" --set save_steps=0
await_step run "$step"
kill -TERM $(pids)
await run 'checkpoint.verify on rank' 20
sleep 6.2 # a repetition within 5 s is the same request
break_now
kill -TERM $(pids)
finish
expect_failure
expect_exit_within 5
expect_gone_within 2
expect_recovery run 2 --set save_steps=0
pass "$ranks ranks, after step $step"
