#!/usr/bin/env bash
# Wrong numbers on one rank (a NaN in a gradient, a flipped bit in a sum of gradients on its way, a flipped bit in the rank's copy of
# the parameters): found in the same step, or the next, on all ranks, and not applied.
. "$(dirname "$0")/lib.sh"
begin 24 "a NaN or flipped bit on one rank" "$1"
ranks=$(random 2 3) rank=$(random 0 $((ranks - 1))) step=$(random 3 12)
[ $((seed % 2)) = 0 ] || step=$((step / 2 * 2 + 1)) # the step before is still being saved
case $((seed % 3)) in
0) fault="gradient:nth=$(random 1 6)" action=nan expected="gradient values of rank $rank are not finite" told=$step ;;
1) fault="accumulator:nth=$(random 1 3)" action=bit expected="reached rank [0-9]+ as another sum" told=$step ;;
2) fault=parameters action=bit expected="parameters of rank [0-9]+ are not those of (the other ranks|another rank)" told=$((step + 1)) ;;
esac
TANDEM_FAULT="$fault:rank=$rank:step=$step:$action" start run "$ranks"
await run '^fault:'
break_now
finish
expect_code 7
expect_exit_within 12
expect_gone_within 2
expect_log run "^error: step $told: .*$expected.*not applied"
expect_one_error run
[ "$(steps_of run)" -lt "$told" ] || fail "accepted: step $told is in the metrics"
# What was wrong in memory is gone with the process; the last checkpoint may have been made of it only when it was not yet found.
[ "$(committed run)" -lt "$told" ] || fail "accepted: step $told was committed"
# The parameters that a wrong gradient was not applied to are right, and so is the save under way.
if [ "$fault" != parameters ]; then
    [ "$(committed run)" = $(((step - 1) / 2 * 2)) ] || fail "lost: $(committed run) is committed, step $step failed"
fi
if [ "$action" = bit ] && [ "$fault" = parameters ] && [ "$(committed run)" = "$step" ]; then
    pass "$fault on rank $rank of $ranks in step $step, which was being saved"
fi
expect_recovery run 2
pass "$fault on rank $rank of $ranks in step $step"
