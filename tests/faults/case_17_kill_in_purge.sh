#!/usr/bin/env bash
# kill -9 while an old checkpoint is being removed: at least one whole checkpoint is there, and the rest is cleaned up.
. "$(dirname "$0")/lib.sh"
begin 17 "kill -9 in a purge" "$1"
ranks=$(random 1 3) nth=$(random 1 5)
TANDEM_FAULT="checkpoint.purge:rank=0:nth=$nth:kill" start run "$ranks" --set save_total_limit="$(random 1 2)"
await run '^fault:'
break_now
finish
expect_failure
expect_gone_within 12
[ "$(committed run)" -ge 2 ] || fail "no checkpoint is left"
expect_recovery run "$(random 1 3)"
pass "removal $nth, $ranks ranks"
