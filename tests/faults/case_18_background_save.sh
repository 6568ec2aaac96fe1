#!/usr/bin/env bash
# A save in the background while training goes on has the bytes of one that is waited for; a kill in the middle of it loses
# nothing that was committed.
. "$(dirname "$0")/lib.sh"
begin 18 "saves in the background" "$1"
ranks=$(random 1 3)
run waited "$ranks" --set stop_after_steps=4 --set save_steps=4
expect_code 75
# Pages take a while to write, in which steps are made; steps do too, so that the commit is there long before the kill.
TANDEM_FAULT="checkpoint.write:nth=0:delay=40;step:step=14:kill;step:nth=0:delay=150" start run "$ranks" --set save_steps=4 --set save_total_limit=0
await run 'checkpoint.write on rank . in step 5'
await run '^fault: step'
break_now
finish
expect_failure
expect_gone_within 12
[ -d "$runs/run/checkpoints/step-000004" ] || fail "step 4 was not committed by step 14"
for file in "$runs"/waited/checkpoints/step-000004/*; do
    name=$(basename "$file")
    [ "$name" != manifest.json ] || continue # it has the incarnation, which is of one start
    cmp -s "$file" "$runs/run/checkpoints/step-000004/$name" || fail "$name differs from that of a save that was waited for"
done
expect_recovery run "$(random 1 3)" --set save_steps=4
# Killed between the snapshot and the end of the writing.
TANDEM_FAULT="checkpoint.write:nth=0:delay=50;step:step=6:kill" start killed "$ranks" --set save_steps=5
await killed '^fault: step'
finish
expect_failure
[ "$(committed killed)" = 0 ] || fail "a save that was not finished was committed"
expect_recovery killed 2 --set save_steps=5
pass "$ranks ranks"
