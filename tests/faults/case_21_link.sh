#!/usr/bin/env bash
# Two hosts: a link that is down for 3 s changes nothing; one that stays down ends the job in bounded time on both, without
# orphans, and the run goes on from its checkpoint.
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/two_hosts.sh"
begin 21 "link flap and link loss between two hosts" "$1"
make_hosts # steps are slowed down below, so that the link goes down between two of them
step=$(random 2 8)
TANDEM_FAULT="step:nth=0:delay=200" start_on_hosts run 1 "$(random 1 2)" --set collective_deadline_seconds=10
await_step run "$step"
cut_link
sleep 3
mend_link
finish
expect_code 0
expect_same_bits run
flapped=$step
TANDEM_FAULT="step:nth=0:delay=200" start_on_hosts lost 1 1 --set collective_deadline_seconds=30
await_step lost "$step"
cut_link
break_now
finish
expect_failure
expect_exit_within 25
expect_gone_within 10
mend_link
expect_recovery lost 2
pass "flap in step $flapped, loss in step $step"
