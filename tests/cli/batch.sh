#!/usr/bin/env bash
# generate --batch: every row in order with its answer, the same bytes on any number of ranks and after an interruption, and nothing
# written over. usage: batch.sh TANDEM SOURCE
set -uo pipefail
. "$(dirname "$0")/checks.sh"
tandem=$1 source=$2
base=$source/launch/quickstart/base
ranks=$source/launch/mpirun.sh

rows=$folder/rows.jsonl
{
    echo '{"messages": [{"role": "user", "content": "Hello"}], "id": 1.0}'
    echo '{"prompt": "Once upon a", "note": "\u00e9 \"quoted\""}  '
    echo
    echo '{"prompt": [{"role": "user", "content": "Name a colour"}]}'
    echo '{"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "left out"}]}'
    echo '{"text": "The weather is"}'
    for i in 6 7 8 9 10 11 12 13; do echo "{\"messages\": [{\"role\": \"user\", \"content\": \"Say $i\"}]}"; done
} >"$rows"
batch=(generate --model "$base" --batch "$rows" --max-new-tokens 12)

expect "batch" 0 '13 answers' "$tandem" "${batch[@]}" --out "$folder/greedy.jsonl"
paste -d '\n' <(grep . "$rows" | sed -E 's/\} *$//') <(sed -E 's/, "completion": "([^"\\]|\\.)*", "completion_tokens": [0-9]+, "finish_reason": "(stop|length)"\}$//' \
    "$folder/greedy.jsonl") | awk 'NR % 2 {a = $0; next} {n++; bad += a != $0} END {exit bad || n != 13}' >"$folder/out"
report $? "every row in its place, as it was"
"$tandem" generate --model "$base" --chat Hello --max-new-tokens 12 >"$folder/chat" 2>"$folder/err"
[ "$(sed -nE '1s/.*"completion": "(.*)", "completion_tokens".*/\1/p' "$folder/greedy.jsonl" | sed 's/\\"/"/g')" = "$(cat "$folder/chat")" ]
report $? "the answer is that of generate --chat"
expect "lengths" 0 . "$tandem" "${batch[@]}" --max-new-tokens 1 --out "$folder/short.jsonl"
[ "$(grep -c '"completion_tokens": 1, "finish_reason": "length"' "$folder/short.jsonl")" -ge 12 ] &&
    ! grep -qE '"completion_tokens": ([2-9]|1[0-9])' "$folder/short.jsonl"
report $? "answers that are cut off say so"

sample=("${batch[@]}" --temperature 1.2 --top-p 0.95 --seed 3)
expect "sampled" 0 . "$tandem" "${sample[@]}" --out "$folder/one.jsonl"
! cmp -s "$folder/one.jsonl" "$folder/greedy.jsonl"
report $? "a sample is not the greedy answer"
for n in 2 3; do
    expect "sampled on $n ranks" 0 . "$ranks" "$n" "$tandem" "${sample[@]}" --out "$folder/$n.jsonl"
    cmp "$folder/one.jsonl" "$folder/$n.jsonl" >"$folder/out"
    report $? "the same bytes on $n ranks"
done
expect "another seed" 0 . "$tandem" "${sample[@]}" --seed 4 --out "$folder/seed.jsonl"
! cmp -s "$folder/one.jsonl" "$folder/seed.jsonl"
report $? "another seed draws otherwise"

# Interrupted within the sixth line.
head -c "$(($(head -n 5 "$folder/one.jsonl" | wc -c) + 20))" "$folder/one.jsonl" >"$folder/part.jsonl"
cp "$folder/part.jsonl" "$folder/part"
expect "what exists is not written over" 2 'exists already' "$ranks" 2 "$tandem" "${sample[@]}" --out "$folder/part.jsonl"
cmp "$folder/part" "$folder/part.jsonl" >"$folder/out"
report $? "and is left as it is"
expect "resumed" 0 '13 answers, 5 of them from before' "$ranks" 2 "$tandem" "${sample[@]}" --out "$folder/part.jsonl" --resume
cmp "$folder/one.jsonl" "$folder/part.jsonl" >"$folder/out"
report $? "the same bytes after an interruption"
expect "nothing left to do" 0 '13 of them from before' "$tandem" "${sample[@]}" --out "$folder/part.jsonl" --resume
cmp "$folder/one.jsonl" "$folder/part.jsonl" >"$folder/out"
report $? "the same bytes when nothing is left"
tail -n 4 "$folder/one.jsonl" >"$folder/other.jsonl"
expect "answers to other rows" 2 'line 1 does not answer .*rows\.jsonl:1' "$tandem" "${batch[@]}" --out "$folder/other.jsonl" --resume
{ cat "$folder/one.jsonl"; head -n 1 "$folder/one.jsonl"; } >"$folder/more.jsonl"
expect "more answers than rows" 2 'more answers than' "$tandem" "${batch[@]}" --out "$folder/more.jsonl" --resume

# Bad rows are found before anything is answered.
{
    cat "$rows"
    echo '{"messages": 3}'
    echo '{"prompt": "x", "completion": "y"}'
    printf '{"prompt": "%s"}\n' "$(printf 'word %.0s' $(seq 600))"
    echo '{"messages": [{"role": "assistant", "content": "Hello"}]}'
} >"$folder/bad.jsonl"
bad=(generate --model "$base" --batch "$folder/bad.jsonl" --out "$folder/bad-out.jsonl" --max-new-tokens 4)
expect "a bad row ends it" 3 'bad\.jsonl:15: ' "$tandem" "${bad[@]}"
[ ! -e "$folder/bad-out.jsonl" ]
report $? "and nothing is written"
expect "bad rows are skipped on request" 0 '4 malformed rows' "$ranks" 2 "$tandem" "${bad[@]}" --set bad_rows=skip
[ "$(wc -l <"$folder/bad-out.jsonl")" -eq 17 ] && sed -n 14p "$folder/bad-out.jsonl" | grep -q '^{"error": ".*:15: ' &&
    sed -n 15p "$folder/bad-out.jsonl" | grep -q 'has \\"completion\\" already' &&
    sed -n 16p "$folder/bad-out.jsonl" | grep -q '512 positions' && sed -n 17p "$folder/bad-out.jsonl" | grep -q 'asks nothing'
report $? "and stand as errors in their place"

printf 'Hello\n\nAnd then?\n' >"$folder/typed"
timeout 60 "$tandem" generate --model "$base" --interactive --max-new-tokens 8 <"$folder/typed" >"$folder/out" 2>"$folder/err"
[ "$(wc -l <"$folder/out")" -ge 2 ] && "$tandem" generate --model "$base" --chat Hello --max-new-tokens 8 2>"$folder/err" |
    cmp -s -n "$("$tandem" generate --model "$base" --chat Hello --max-new-tokens 8 2>/dev/null | wc -c)" - "$folder/out"
report $? "a chat with what is typed"

expect "batch needs an output" 2 'go together' "$tandem" generate --model "$base" --batch "$rows"
expect "one thing at a time" 2 'give either' "$tandem" "${batch[@]}" --out "$folder/new" --chat x
expect "resume is for batches" 2 'resume goes with' "$tandem" generate --model "$base" --chat x --resume
expect "an output that cannot be written" 5 'nowhere' "$ranks" 2 "$tandem" "${batch[@]}" --out "$folder/nowhere/a.jsonl"
exit "$failed"
