#!/usr/bin/env bash
# kill -9 of a rank at a random point of a random step: all ranks end in time, and the resumed run ends with the same bits.
. "$(dirname "$0")/lib.sh"
begin 1 "kill -9 of a rank" "$1"
ranks=$(random 2 3) rank=$(random 0 $((ranks - 1)))
points=(step forward backward collective update gather snapshot)
point=${points[$(random 0 $((${#points[@]} - 1)))]}
step=$(random 3 12)
[ "$point" != snapshot ] || step=$((step / 2 * 2))
TANDEM_FAULT="$point:rank=$rank:step=$step:kill" start run "$ranks"
await run '^fault:'
break_now
finish
expect_failure
expect_exit_within 10
expect_gone_within 1
expect_recovery run 2
pass "$point of rank $rank of $ranks in step $step"
