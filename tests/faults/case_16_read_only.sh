#!/usr/bin/env bash
# The folder of checkpoints cannot be written, or an old checkpoint cannot be removed: a warning, and training goes on.
. "$(dirname "$0")/lib.sh"
begin 16 "read-only folder or failed purge" "$1"
ranks=$(random 1 3)
TANDEM_FAULT="step:nth=0:delay=200" start run "$ranks" # so that there are steps left when the folder changes
await_step run 5
if [ $((seed % 2)) = 0 ]; then
    what="read-only folder"
    mount --bind "$runs/run/checkpoints" "$runs/run/checkpoints" 2>/dev/null && on_end+=("umount -l $runs/run/checkpoints") &&
        mount -o remount,bind,ro "$runs/run/checkpoints" || skip "cannot mount here (not root, or no permission)"
    said='^warning: .*[Rr]ead-only file system.*training goes on'
else
    what="failed purge"
    oldest=$(ls -d "$runs"/run/checkpoints/step-* | head -n 1)
    mount --bind "$oldest" "$oldest" 2>/dev/null && on_end+=("umount -l $oldest") || skip "cannot mount here (not root, or no permission)"
    said='^warning: .*(remove|purge|busy)'
fi
finish
expect_code 0
expect_log run "$said"
[ "$(hash_of run)" = "$(reference_hash)" ] || fail "run: the adapter differs from the undisturbed run's"
pass "$what, $ranks ranks"
