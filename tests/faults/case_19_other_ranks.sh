#!/usr/bin/env bash
# Checkpoints of 4, 2, 1 and 3 ranks are read by another number of ranks; five changes in one run: the same bits.
. "$(dirname "$0")/lib.sh"
begin 19 "resume on other numbers of ranks" "$1"
changes=(4 2 4 1 3 2)
[ $((seed % 2)) = 1 ] || changes=("$(random 1 4)" "$(random 1 4)" "$(random 1 4)" "$(random 1 4)" "$(random 1 4)" "$(random 1 4)")
last=$((${#changes[@]} - 1))
for i in $(seq 0 "$last"); do
    stop="" && [ "$i" = "$last" ] || stop="--set stop_after_steps=$(random 1 3)"
    before=$(committed run)
    run run "${changes[$i]}" --resume auto $stop
    [ "$i" = "$last" ] && expect_code 0 || expect_code 75
    [ "$(resumed_from run)" = "$before" ] || fail "step $before was committed, ${changes[$i]} ranks went on from $(resumed_from run)"
done
expect_same_bits run
pass "${changes[*]} ranks"
