#!/usr/bin/env bash
# A shard of another step, or of another run, in the place of the right one: refused.
. "$(dirname "$0")/lib.sh"
begin 14 "a shard of another step or run" "$1"
ranks=$(random 1 3)
stopped_run run "$ranks"
pick_shard
if [ $((seed % 2)) = 0 ]; then
    from=$runs/run/checkpoints/step-000006/$shard what="step 6"
else
    run other "$ranks" --set stop_after_steps=8 --set seed=43
    expect_code 75
    from=$runs/other/checkpoints/step-000008/$shard what="another run"
fi
cp "$from" "$newest/$shard"
expect_fallback run "$(random 1 3)" "$shard"
pass "$shard of $what"
