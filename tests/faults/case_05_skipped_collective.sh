#!/usr/bin/env bash
# A rank that leaves out a collective: the job ends, and the message says which rank is where, in which collective.
. "$(dirname "$0")/lib.sh"
begin 5 "a rank skips a collective" "$1"
ranks=$(random 2 3) rank=$(random 0 $((ranks - 1)))
names=(losses "gradient norm")
name=${names[$((seed % 2))]}
step=$(random 3 12)
TANDEM_FAULT="collective.$name:rank=$rank:step=$step:skip" start run "$ranks"
await run '^fault:'
break_now
finish
expect_failure
expect_exit_within 12
expect_gone_within 2
expect_log run "error: .*collective [0-9]+ \("
expect_one_error run
expect_recovery run 2
pass "$name on rank $rank of $ranks in step $step"
