#!/usr/bin/env bash
# kill -9 of mpirun: the ranks are gone soon, and what they leave behind does not hinder the restart.
. "$(dirname "$0")/lib.sh"
begin 2 "kill -9 of mpirun" "$1"
ranks=$(random 2 3) step=$(random 2 10)
TANDEM_FAULT="step:nth=0:delay=200" start run "$ranks"
await_step run "$step"
sleep "0.0$(random 0 9)"
break_now
kill -9 "$(mpirun_pid)"
finish
expect_gone_within 3
expect_recovery run "$(random 1 3)"
pass "$ranks ranks, after step $step"
