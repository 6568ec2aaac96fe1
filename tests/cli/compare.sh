#!/usr/bin/env bash
# evaluate --compare: the same figures on any number of ranks, those of a plain evaluation, answers that are right, rows that hold
# what would break a table, and command lines that make no sense. usage: compare.sh TANDEM SOURCE
set -uo pipefail
. "$(dirname "$0")/checks.sh"
tandem=$1 source=$2
base=$source/launch/quickstart/base
ranks=$source/launch/mpirun.sh

# figure COLUMN KEY: of the comparison on one rank.
figure() {
    sed -E "s/.*\"$1\": \{([^}]*)\}.*/\1/; s/.*\"$2\": ([-0-9.e+]+).*/\1/" "$folder/alone"
}

row() {
    printf '{"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "%s"}, {"role": "assistant", "content": "%s"}]}\n' "$@"
}
for i in 1 2 3 4 5 6 7 8 9; do row "Ask $i" "Say $i."; done >"$folder/train.jsonl"
for i in 1 2 3; do
    printf '{"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "Tell %s"}]}\n' "$i"
done >"$folder/asks.jsonl"

timeout 60 "$tandem" train --set model_name_or_path="$base" --set train_files="$folder/train.jsonl" \
    --set output_dir="$folder/run" --set max_length=96 --set max_steps=3 --set lora_r=2 --set learning_rate=0.02 \
    >"$folder/out" 2>"$folder/err"
report $? "an adapter to compare"
adapter=$folder/run/adapter

# What the base model says is what the rows expect: the base is right, and only there.
expect "the base answers" 0 . "$tandem" generate --model "$base" --batch "$folder/asks.jsonl" --out "$folder/said.jsonl" --max-new-tokens 16
sed -E 's/\]\, "completion": ("([^"\\]|\\.)*").*"stop"\}$/, {"role": "assistant", "content": \1}]}/' "$folder/said.jsonl" |
    grep '"role": "assistant"' >"$folder/held.jsonl"
n_right=$(wc -l <"$folder/held.jsonl")
nasty='a|b\\n# c\\n|---|\\n<script>`x` ![i](http://e.f) \\u202e'
{
    row "$nasty" "$nasty"
    row "Tell 9" "no model says so"
    echo '{"prompt": "Two and ", "completion": "three"}'
    echo '{"text": "expects nothing"}'
} >>"$folder/held.jsonl"

compare=(evaluate --model "$base" --adapter "$adapter" --data "$folder/held.jsonl" --compare --max-new-tokens 16 --set max_length=160)
few=(--examples "$folder/train.jsonl" --few-shot 2)
expect "compare" 0 few_shot_base "$tandem" "${compare[@]}" "${few[@]}" --report "$folder/report.md" --json
sed 's/, "seconds".*//' "$folder/out" >"$folder/alone"
[ "$n_right" -ge 1 ] && [ "$(figure base matches)" -eq "$n_right" ] && grep -q '"skipped": 1,' "$folder/out"
report $? "the base is right where its own words are expected"
base_loss=$(figure base loss)
tuned_loss=$(figure tuned loss)
few_loss=$(figure few_shot_base loss)
awk -v a="$base_loss" -v b="$tuned_loss" -v c="$few_loss" 'BEGIN {exit !(a != b && a != c && a > 0 && c > 0)}'
report $? "three losses"
for n in 2 3; do
    expect "compare on $n ranks" 0 few_shot_base "$ranks" "$n" "$tandem" "${compare[@]}" "${few[@]}" \
        --report "$folder/report-$n.md" --json
    sed 's/, "seconds".*//' "$folder/out" | cmp -s - "$folder/alone"
    report $? "the same figures on $n ranks"
    diff <(grep -vE '^\| (time for|ranks)' "$folder/report.md") <(grep -vE '^\| (time for|ranks)' "$folder/report-$n.md") >"$folder/out"
    report $? "the same report on $n ranks"
done

plain=(evaluate --model "$base" --data "$folder/held.jsonl" --set max_length=160 --json)
expect "evaluate the base" 0 . "$tandem" "${plain[@]}"
awk -v a="$(sed -E 's/.*"loss": ([0-9.]+).*/\1/' "$folder/out")" -v b="$base_loss" 'BEGIN {d = a / b - 1; exit !(d * d < 1e-16)}'
report $? "its loss is that of the comparison"
expect "evaluate the adapter" 0 . "$tandem" "${plain[@]}" --adapter "$adapter"
awk -v a="$(sed -E 's/.*"loss": ([0-9.]+).*/\1/' "$folder/out")" -v b="$tuned_loss" 'BEGIN {d = a / b - 1; exit !(d * d < 1e-16)}'
report $? "and the adapter's"

# Every line of a table has as many cells as its head, and nothing of the data is outside of one.
awk -F'|' '/^\|/ {if (!open) n = NF; open = 1; if (NF != n) {print FILENAME ":" NR ": " NF " cells, not " n; bad = 1} next} {open = 0}
           END {exit bad}' "$folder/report.md" >"$folder/out"
report $? "tables hold whatever the rows hold"
! grep -qE '<script|^# c|!\[i\]|http://e' "$folder/report.md" && grep -q '&#60;script&#62;' "$folder/report.md" &&
    [ "$(grep -c '^# ' "$folder/report.md")" -eq 1 ]
report $? "rows are escaped"
grep -q 'adapter&#95;model.safetensors | `[0-9a-f]\{32\}`' "$folder/report.md"
report $? "the report names what was compared"

sed -nE 's/^\| [^|]*held\.jsonl:([0-9]+) \|.*/\1/p' "$folder/report.md" >"$folder/out"
[ "$(wc -l <"$folder/out")" -eq 6 ] && sort -n -c -u "$folder/out" 2>/dev/null
report $? "sample rows stand in their order"

# 250 examples of about 16 tokens do not fit into 512 positions.
for i in $(seq 250); do row "Ask for number $i" "This is $i."; done >"$folder/many.jsonl"
expect "too many examples" 0 'Not all fit before 5 questions and 5 rows of the loss \(limit: 496 tokens\)' \
    "$tandem" "${compare[@]}" --examples "$folder/many.jsonl" --few-shot 250
expect "no examples" 0 'tuned \|$' "$tandem" "${compare[@]}"
expect "the config's run" 0 'base with examples' "$tandem" evaluate "$folder/run/config.json" --compare \
    --data "$folder/held.jsonl" --max-new-tokens 2 --limit 1


for i in 1 2 3; do printf '{"text": "Line %s of a text that asks nothing."}\n' "$i"; done >"$folder/texts.jsonl"
texts=(evaluate --model "$base" --adapter "$adapter" --data "$folder/texts.jsonl" --compare)
expect "texts alone: losses only" 0 'No row asks a question' "$ranks" 2 "$tandem" "${texts[@]}"
grep -qE '^\| loss per token \| [0-9.]+ \| [0-9.]+ \|' "$folder/out" && ! grep -q 'exact match |' "$folder/out"
report $? "a table of losses only"
expect "texts alone, as JSON" 0 '"loss_rows": 3, "rows": 0,' "$tandem" "${texts[@]}" --json
expect "nothing to compare with" 2 'give --adapter' "$tandem" evaluate --model "$base" --data "$folder/held.jsonl" --compare
expect "few-shot without rows" 2 'give --examples' "$tandem" "${compare[@]}" --few-shot 3
expect "few-shot without compare" 2 'go with --compare' "$tandem" "${plain[@]}" --few-shot 3
expect "few-shot in range" 2 'few-shot is in' "$tandem" "${compare[@]}" --few-shot 9999
expect "a report that cannot be written" 5 'nowhere' "$ranks" 2 "$tandem" "${compare[@]}" --limit 1 --report "$folder/nowhere/r.md"
cp -r "$base" "$folder/elsewhere"
expect "an adapter of a base with another name" 0 'was made for the base model .*quickstart/base' \
    "$tandem" generate --model "$folder/elsewhere" --adapter "$adapter" --chat x --max-new-tokens 1
expect "an adapter of another base" 3 'must have the shape' "$ranks" 2 "$tandem" evaluate \
    --model "$source/tests/fixtures/train100" --adapter "$adapter" --data "$source/tests/fixtures/train100/data.jsonl"
exit "$failed"
