#!/usr/bin/env bash
# A file of the newest checkpoint is cut short, emptied, or overwritten with zeros: as a missing one.
. "$(dirname "$0")/lib.sh"
begin 10 "a truncated or zeroed file" "$1"
stopped_run run "$(random 1 3)"
pick_shard
file=$shard
[ $((seed % 5)) != 4 ] || file=manifest.json
size=$(stat -c %s "$newest/$file")
case $((seed % 4)) in
0) how="cut to $((size / 2)) bytes" && truncate -s $((size / 2)) "$newest/$file" ;;
1) how="emptied" && : >"$newest/$file" ;;
2) how="zeros" && head -c "$size" /dev/zero >"$newest/$file" ;;
3) how="its second half zeros" && truncate -s $((size / 2)) "$newest/$file" && truncate -s "$size" "$newest/$file" ;;
esac
expect_fallback run "$(random 1 3)" "$file"
pass "$file: $how"
