#!/usr/bin/env bash
# kill -9 at each point of a save: the checkpoint before loads (or the new one, once it was renamed).
. "$(dirname "$0")/lib.sh"
begin 8 "kill -9 in a save" "$1"
phases=(create write flush close verify manifest rename latest purge)
phase=${phases[$((seed % ${#phases[@]}))]}
ranks=$(random 1 3) rank=$(random 0 $((ranks - 1))) save=$(random 2 6)
case $phase in manifest | rename | latest | purge) rank=0 ;; esac
[ "$phase" != purge ] || save=$((save > 3 ? save - 2 : 1)) # the first purge comes with the third checkpoint
[ "$phase" != write ] || save=$((23 * $(random 1 2) + $(random 1 8))) # one save of all pages is 23 of them, on one rank
TANDEM_FAULT="checkpoint.$phase:rank=$rank:nth=$save:kill" start run "$ranks"
await run '^fault:'
break_now
finish
expect_failure
expect_exit_within 12
expect_gone_within 2
[ "$(committed run)" -ge 2 ] || fail "nothing was committed before the kill"
expect_recovery run "$(random 1 3)"
pass "$phase (number $save) on rank $rank of $ranks"
