#!/usr/bin/env bash
# A byte of what describes the data (HDF5's headers, our index, the manifest, the adapter's config) flips: an error, never other numbers.
. "$(dirname "$0")/lib.sh"
begin 13 "a flipped byte of metadata" "$1"
stopped_run run "$(random 1 3)"
pick_shard
file=$shard range=2048 first=0 # HDF5's superblock and object headers
[ $((seed % 2)) = 0 ] || { range=400 && first=$((shard_bytes - range)); } # our index, behind all of it
case $((seed % 3)) in
1) file=manifest.json first=0 range=$(stat -c %s "$newest/manifest.json") ;;
2) file=adapter_config.json first=0 range=$(stat -c %s "$newest/adapter_config.json") ;;
esac
offset=$((first + RANDOM % range))
old=$(byte_at "$newest/$file" "$offset") new=$(random 0 255)
[ "$new" != "$old" ] || new=$((old ^ 1))
set_bytes "$newest/$file" "$offset" "$new"
expect_fallback run "$(random 1 3)" "$file"
pass "byte $offset of $file: $old to $new"
