#!/usr/bin/env bash
# A run that stops at a random step and goes on has the straight run's losses, gradient norms, data order and adapter.
. "$(dirname "$0")/lib.sh"
begin 20 "straight, or stopped and resumed" "$1"
ranks=$(random 1 3) stop=$(random 1 15)
evaluation=(--set "eval_files=$cache/heldout.jsonl" --set eval_steps=3)
run straight "$ranks" "${evaluation[@]}"
expect_code 0
run run "$ranks" "${evaluation[@]}" --set stop_after_steps="$stop"
expect_code 75
run run "$ranks" "${evaluation[@]}" --resume auto
expect_code 0
numbers() {
    sed -E 's/, "(seconds|tokens_per_second)": .*//' "$runs/$1/metrics.jsonl"
}
[ "$(numbers straight | grep -c '"loss"')" -ge "$steps" ] || fail "the straight run's metrics have no losses"
diff <(numbers straight) <(numbers run) >"$work/diff.log" || fail "the metrics differ"
expect_same_bits run
pass "$ranks ranks, stopped after step $stop"
