#!/usr/bin/env bash
# The disk fills up in the middle of a save: the older checkpoint stays, no temporary is left, the message says so, and training
# goes on to the end.
. "$(dirname "$0")/lib.sh"
begin 15 "disk full in a save" "$1"
ranks=$(random 1 3)
mkdir "$runs/disk" && mount -t tmpfs -o size=24m tmpfs "$runs/disk" 2>/dev/null || skip "cannot mount a tmpfs here (not root, or no permission)"
on_end+=("pkill -9 -f $mark; umount -l $runs/disk")
runs=$runs/disk
save=$(random 2 5)
# Between the check of the space and the end of the writing somebody else fills the disk.
TANDEM_FAULT="checkpoint.create:rank=0:nth=$save:delay=1500" start run "$ranks"
await run '^fault:'
sleep 0.$(random 2 6)
head -c 64m /dev/zero >"$runs/ballast" 2>/dev/null
before=$(committed run)
await run '^warning: .*(space|checkpoint)' 30
! ls "$runs/run/checkpoints" | grep -q tmp || sleep 1
ls -A "$runs/run/checkpoints" | grep -vE '^(step-[0-9]+|latest)$' | sed 's/^/left: /' >"$work/left.log"
[ "$(committed run)" -ge "$before" ] || fail "step $before was committed and is gone"
rm "$runs/ballast"
finish
expect_code 0
expect_log run '^warning: .*[Nn]o(t enough)? space.*training goes on without this checkpoint'
expect_same_bits run
cp -r "$runs/run/checkpoints" "$work/kept"
pass "save $save of $ranks ranks"
