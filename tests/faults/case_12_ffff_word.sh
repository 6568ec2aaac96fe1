#!/usr/bin/env bash
# A word 0x0000 of a shard becomes 0xFFFF, which HDF5's fletcher32 does not see: detected.
. "$(dirname "$0")/lib.sh"
begin 12 "a word 0x0000 becomes 0xFFFF" "$1"
stopped_run run "$(random 1 3)"
pick_shard
# The first zero word at or after the random place, or from the beginning.
word=$(od -An -v -tx2 -w2 "$newest/$shard" | awk -v from=$((offset / 2)) '
    $1 == "0000" { if (NR - 1 >= from) { print NR - 1; found = 1; exit } else if (first == "") first = NR - 1 }
    END { if (!found) print first }')
[ -n "$word" ] || fail "$shard has no zero word"
set_bytes "$newest/$shard" $((word * 2)) 255 255
expect_fallback run "$(random 1 3)" "$shard"
pass "word $word of $shard"
