#!/usr/bin/env bash
# Every command explains itself, with every option and an example, without MPI and without a model. usage: help.sh TANDEM
set -uo pipefail
tandem=$1
failed=0

# expect NAME PATTERN TEXT
expect() {
    if grep -qE -- "$2" <<<"$3"; then
        echo "ok     $1"
    else
        echo "FAILED $1: no '$2' in:"
        echo "$3"
        failed=1
    fi
}

overview=$("$tandem" --help) || failed=1
for command in train prepare evaluate generate inspect config bench plan merge quantize export; do
    expect "the overview lists $command" "^  $command +[a-z]" "$overview"
    help=$("$tandem" "$command" --help) || failed=1
    expect "$command: usage" "^usage: tandem $command" "$help"
    expect "$command: options" '^  --[a-z-]+.* [a-z]' "$help"
done
expect "the overview lists exit codes" 'exit codes: 0 done' "$overview"
for command in train prepare evaluate generate inspect bench plan merge quantize export; do
    expect "$command: example" '^example: .*tandem' "$("$tandem" "$command" --help)"
done
[ "$("$tandem" help)" = "$overview" ] || { echo "FAILED help: not the overview"; failed=1; }
[ "$("$tandem" help train)" = "$("$tandem" train --help)" ] || { echo "FAILED help train: not train --help"; failed=1; }
expect "help of a misspelled command" 'did you mean train' "$("$tandem" help trian 2>&1)"
version=$("$tandem" --version) || failed=1
expect "the version and its commit" '^tandem [0-9]+\.[0-9]+\.[0-9]+ \(commit [^)]+\), compiler ' "$version"
for part in 'MPI:    .*v?[0-9]+\.[0-9]+' 'HDF5:   [0-9]+\.[0-9]+\.[0-9]+' 'CPU:    vectors (none|AVX2|AVX-512|AVX-512 with bf16 products), [0-9]+ threads' 'GPU.*:  '; do
    expect "the version says: ${part%% *}" "^$part" "$version"
done
table=$("$tandem" config)
for key in learning_rate lora_alpha target_modules bnb_4bit_use_double_quant resume_from_checkpoint; do
    expect "the table explains $key" "^ *$key " "$table"
done
values=$("$tandem" config --set lora_r=5)
expect "values in force" '"lora_r":[[:space:]]*5' "$values"
none=$("$tandem" 2>&1)
[ $? -eq 2 ] || { echo "FAILED no command: code 2 expected"; failed=1; }
expect "no command shows the usage" '^usage: tandem' "$none"
exit "$failed"
