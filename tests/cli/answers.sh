#!/usr/bin/env bash
# evaluate, generate, inspect and bench from outside: numbers that do not depend on the ranks, rows that cannot be compared, and
# command lines that make no sense. usage: answers.sh TANDEM SOURCE
set -uo pipefail
tandem=$1 source=$2
base=$source/launch/quickstart/base
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export OMP_NUM_THREADS=1 TMPDIR=$folder/scratch
mkdir "$TMPDIR"
failed=0

report() {
    if [ "$1" -eq 0 ]; then
        echo "ok     $2"
    else
        echo "FAILED $2"
        sed 's/^/    /' "$folder/out" "$folder/err"
        failed=1
    fi
    if [ -n "$(ls "$TMPDIR" | grep '^tandem')" ]; then
        echo "FAILED $2: scratch folders are left behind"
        failed=1
        rm -rf "$TMPDIR"/tandem*
    fi
}

# expect NAME CODE PATTERN COMMAND...: the pattern is looked for in what is printed.
expect() {
    local name=$1 code=$2 pattern=$3 got=0
    shift 3
    timeout 60 "$@" >"$folder/out" 2>"$folder/err" || got=$?
    [ "$got" -eq "$code" ] && grep -qE -- "$pattern" "$folder/out" "$folder/err"
    report $? "$name"
}
ranks=$source/launch/mpirun.sh

ask='{"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "no such answer"}]}'
{
    echo "$ask"
    echo "$ask"
    echo
    echo '{"messages": [{"role": "assistant", "content": "Hello"}, {"role": "user", "content": "a question at the end"}]}'
    echo "$ask"
} >"$folder/rows.jsonl"

"$tandem" generate --model "$base" --chat Hello --max-new-tokens 20 >"$folder/answer" 2>"$folder/err"
[ -s "$folder/answer" ]
report $? "generate answers"
"$tandem" generate --model "$base" --chat Hello --max-new-tokens 20 --temperature 1 --seed 3 >"$folder/first" 2>/dev/null
"$tandem" generate --model "$base" --chat Hello --max-new-tokens 20 --temperature 1 --seed 3 >"$folder/second" 2>/dev/null
"$tandem" generate --model "$base" --chat Hello --max-new-tokens 20 --temperature 1 --seed 4 >"$folder/third" 2>/dev/null
cmp -s "$folder/first" "$folder/second" && ! cmp -s "$folder/first" "$folder/third"
report $? "a seed chooses the sample"

expect "exact match skips and counts" 0 '1 rows were skipped' "$tandem" evaluate --model "$base" \
    --data "$folder/rows.jsonl" --exact-match --max-new-tokens 8 --json
grep -q '"matches": 0, "rows": 3}' "$folder/out"
report $? "exact match counts rows"
cp "$folder/out" "$folder/alone"
for n in 2 3; do
    expect "evaluate on $n ranks" 0 perplexity "$ranks" "$n" "$tandem" evaluate --model "$base" \
        --data "$folder/rows.jsonl" --exact-match --max-new-tokens 8 --json
    cmp -s "$folder/alone" "$folder/out"
    report $? "evaluate prints the same on $n ranks"
done
expect "limit counts rows" 0 '\(0 of 2;' "$tandem" evaluate --model "$base" --data "$folder/rows.jsonl" \
    --exact-match --max-new-tokens 4 --limit 2
expect "rows too long for the loss" 3 'longer than max_length' "$tandem" evaluate --model "$base" \
    --data "$folder/rows.jsonl" --set max_length=4
{
    cat "$folder/rows.jsonl"
    echo '{"messages": [{"role": "user", "content": "a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a a"}, {"role": "assistant", "content": "a"}]}'
    echo '{"messages": 3}'
} >"$folder/mixed.jsonl"
expect "long and malformed rows are skipped" 0 '3 rows were skipped' "$ranks" 2 "$tandem" evaluate --model "$base" \
    --data "$folder/mixed.jsonl" --exact-match --max-new-tokens 4 --set max_length=40 --set bad_rows=skip
expect "malformed rows end it" 3 'mixed\.jsonl:7' "$ranks" 2 "$tandem" evaluate --model "$base" \
    --data "$folder/mixed.jsonl" --exact-match --max-new-tokens 4
echo '{"messages": [{"role": "assistant", "content": "Hello"}, {"role": "user", "content": "?"}]}' >"$folder/asks.jsonl"
expect "nothing to compare" 3 'no rows to answer' "$tandem" evaluate --model "$base" \
    --data "$folder/asks.jsonl" --exact-match
expect "no data" 2 'nothing to evaluate on' "$tandem" evaluate --model "$base"
expect "no such adapter" 3 'adapter_config\.json' "$ranks" 2 "$tandem" evaluate --model "$base" \
    --adapter "$folder" --data "$folder/rows.jsonl"

expect "generate is for one rank" 2 'one rank' "$ranks" 2 "$tandem" generate --model "$base" --chat x
expect "either chat or prompt" 2 'either --chat' "$tandem" generate --model "$base"
expect "temperature is a number" 2 'temperature.*finite' "$tandem" generate --model "$base" --chat x --temperature nan
expect "tokens in range" 2 'max-new-tokens' "$tandem" generate --model "$base" --chat x --max-new-tokens 9999999999
expect "no tokenizer" 3 'no tokenizer\.json' "$tandem" generate --model "$source/tests/fixtures/train100" --chat x
expect "help wins over a bad word" 0 '^.*usage: tandem train' "$tandem" train --bogus --help
expect "help as a value is help" 0 'usage: tandem generate' "$tandem" generate --prompt --help

expect "inspect shows a row" 0 '\[\[' "$tandem" inspect "$folder/rows.jsonl" --model "$base" --sample 2
expect "inspect counts lines from 1" 2 'from 1' "$tandem" inspect "$folder/rows.jsonl" --model "$base" --sample 0
expect "inspect past the end" 3 'no row 99' "$tandem" inspect "$folder/rows.jsonl" --model "$base" --sample 99
expect "inspect a model" 0 'vocabulary: +1024' "$tandem" inspect "$base"
expect "inspect nothing" 3 'no such file' "$tandem" inspect "$folder/nowhere"

expect "bench verifies and reports" 0 '"gemm_share"' "$ranks" 2 "$tandem" bench step --json --seq 16 --steps 2 \
    --accumulation 3 --shape "$base"
expect "bench in range" 2 'seq is in' "$tandem" bench step --shape "$base" --seq 99999999999
exit "$failed"
