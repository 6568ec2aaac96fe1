#!/usr/bin/env bash
# SIGSTOP of a rank, which no library reports: the watchdog names it and ends the job within its deadline.
. "$(dirname "$0")/lib.sh"
begin 3 "SIGSTOP of a rank" "$1"
ranks=$(random 2 3) rank=$(random 0 $((ranks - 1)))
points=(step forward backward collective update gather)
point=${points[$(random 0 $((${#points[@]} - 1)))]}
step=$(random 3 12)
TANDEM_FAULT="$point:rank=$rank:step=$step:stop" start run "$ranks"
await run '^fault:'
break_now
finish
expect_failure
expect_exit_within 12 # a deadline of 4 s, what the watchdog grants on top, and the end of mpirun
expect_log run "error: rank $rank .*(did not reach|no sign of life|stands still)"
expect_one_error run
pkill -9 -f "$FAULTS_PROGRAM train.*$mark" # a stopped process takes its KILL only when it goes on
expect_gone_within 2
expect_recovery run 2
pass "$point of rank $rank of $ranks in step $step"
