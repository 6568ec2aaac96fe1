#!/usr/bin/env bash
# USR1 to mpirun: a checkpoint after the running step, code 75, and the resumed run ends with the same bits. Steps are slowed down,
# so that the signal finds some left.
. "$(dirname "$0")/lib.sh"
begin 6 "USR1" "$1"
ranks=$(random 1 3) step=$(random 1 8)
TANDEM_FAULT="step:nth=0:delay=200" start run "$ranks" --set save_steps=0
await_step run "$step"
break_now
for _ in $(seq "$(random 1 4)"); do # once or repeated: one request
    kill -USR1 "$(mpirun_pid)"
done
finish
expect_code 75
expect_exit_within 12
expect_gone_within 2
[ "$(committed run)" -ge "$step" ] || fail "committed $(committed run), not step $step or later"
expect_recovery run "$(random 1 3)" --set save_steps=0
pass "$ranks ranks, after step $step"
