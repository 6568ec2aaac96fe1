#!/usr/bin/env bash
# A bit of a shard flips on the disk: detected, wherever it is.
. "$(dirname "$0")/lib.sh"
begin 11 "a flipped bit" "$1"
stopped_run run "$(random 1 3)"
pick_shard
bit=$(random 0 7)
set_bytes "$newest/$shard" "$offset" $(($(byte_at "$newest/$shard" "$offset") ^ (1 << bit)))
expect_fallback run "$(random 1 3)" "$shard"
pass "bit $bit of byte $offset of $shard"
