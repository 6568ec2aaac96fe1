#!/usr/bin/env bash
# A rank that crashes (SIGSEGV, SIGABRT) or leaves by exit(): the others end, and the run goes on from its checkpoint.
. "$(dirname "$0")/lib.sh"
begin 4 "a rank crashes" "$1"
ranks=$(random 2 3) rank=$(random 0 $((ranks - 1)))
actions=(segv abort exit=3 exit=0)
action=${actions[$((seed % 4))]}
points=(step backward update gather snapshot)
point=${points[$(random 0 $((${#points[@]} - 1)))]}
step=$(random 3 12)
[ "$point" != snapshot ] || step=$((step / 2 * 2))
ulimit -c 0
TANDEM_FAULT="$point:rank=$rank:step=$step:$action" start run "$ranks"
await run '^fault:'
break_now
finish
expect_failure
expect_exit_within 12
expect_gone_within 2
expect_recovery run 2
pass "$action in $point of rank $rank of $ranks in step $step"
