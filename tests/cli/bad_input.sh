#!/usr/bin/env bash
# Bad input ends all ranks with the documented code and one clear line, and leaves no adapter behind.
# usage: bad_input.sh TANDEM SOURCE
set -uo pipefail
tandem=$1 source=$2
fixtures=$source/tests/fixtures
folder=$(mktemp -d)
mounted=
cleanup() {
    [ -z "$mounted" ] || umount "$mounted"
    rm -rf "$folder"
}
trap cleanup EXIT
export OMP_NUM_THREADS=1
failed=0 passed=0

model=$folder/model
cp -r "$fixtures/train100" "$model"
head -n 8 "$fixtures/train100/data.jsonl" >"$folder/data.jsonl"

# A run of two ranks on the good model and data; options override.
train() {
    timeout 60 "$source/launch/mpirun.sh" 2 "$tandem" train \
        --set model_name_or_path="$model" --set train_files="$folder/data.jsonl" \
        --set output_dir="$folder/out" --set max_length=64 --set max_steps=2 --set lora_r=2 \
        --set gradient_accumulation_steps=2 --set page_elements=1000 "$@"
}

# check NAME CODE PATTERN COMMAND...: exit code, one error line in all, which matches, and no adapter.
check() {
    local name=$1 code=$2 pattern=$3 got=0 errors lines
    shift 3
    "$@" >"$folder/log" 2>&1 || got=$?
    errors=$(grep -cE '^(\[[0-9]+\] )?error:' "$folder/log")
    lines=$(grep -cE "^error: .*($pattern)" "$folder/log")
    if [ "$got" -eq "$code" ] && [ "$errors" -eq 1 ] && [ "$lines" -eq 1 ] && [ ! -e "$folder/out/adapter" ]; then
        echo "ok     $name"
        passed=$((passed + 1))
    else
        echo "FAILED $name: code $got (expected $code), $errors errors, $lines match '$pattern'"
        sed 's/^/    /' "$folder/log"
        failed=$((failed + 1))
    fi
    rm -rf "$folder/out"
}

# broken FILE: a copy of the model for one case; prints its folder.
copy_model() {
    rm -rf "$folder/broken"
    cp -r "$model" "$folder/broken"
}
with_broken() {
    train --set model_name_or_path="$folder/broken" "$@"
}

# Model folders.
check "missing model folder" 3 'there is no folder' train --set model_name_or_path="$folder/nowhere"
copy_model
rm "$folder/broken/model.safetensors"
check "missing weights" 3 'model\.safetensors' with_broken
copy_model
truncate -s -100 "$folder/broken/model.safetensors"
check "truncated weights" 3 'model\.safetensors' with_broken
copy_model
printf '\377\377\377\377\377\377\377\177' | dd of="$folder/broken/model.safetensors" conv=notrunc status=none
check "oversized header length" 3 'model\.safetensors' with_broken
copy_model
sed -i 's/"hidden_size": 64/"hidden_size": 32/; s/"head_dim": 16/"head_dim": 8/' "$folder/broken/config.json"
check "shapes differ from config.json" 3 'model\.safetensors.*must have the shape' with_broken
copy_model
sed -i 's/LlamaForCausalLM/MambaForCausalLM/; s/"model_type": "llama"/"model_type": "mamba"/' "$folder/broken/config.json"
check "unknown architecture" 3 'MambaForCausalLM' with_broken
copy_model
rm "$folder/broken/model.safetensors"
echo '{"metadata": {}, "weight_map": {"model.embed_tokens.weight": "../model/model.safetensors"}}' \
    >"$folder/broken/model.safetensors.index.json"
check "index names a file outside the folder" 3 'index\.json' with_broken
copy_model
echo '{"architectures": ["LlamaForCausalLM"' >"$folder/broken/config.json"
check "malformed config.json" 3 'config\.json' with_broken
copy_model
(printf '[%.0s' $(seq 5000)) >"$folder/broken/config.json"
check "deeply nested config.json" 3 'config\.json' with_broken

# Run configs.
check "unknown key" 2 'learning_rat.*learning_rate' train --set learning_rat=1
check "ill-typed key" 2 'lora_r.*integer' train --set 'lora_r="many"'
check "precision of which there is no product" 2 'float32_matmul_precision must be one of "highest", "medium", found "high"' \
    train --set float32_matmul_precision=high
check "key out of range" 2 'lora_dropout' train --set lora_dropout=1.5
echo '{"lora_r": 4,' >"$folder/config.json"
check "malformed run config" 2 'config\.json' timeout 60 "$source/launch/mpirun.sh" 2 "$tandem" train "$folder/config.json"
check "missing run config" 2 'nowhere\.json' timeout 60 "$source/launch/mpirun.sh" 2 "$tandem" train "$folder/nowhere.json"
check "target_modules match nothing" 2 'no_proj' train --set 'target_modules=["no_proj"]'
check "unknown option" 2 '\-\-resum.*--resume' train --resum auto
check "unknown command" 2 'trian.*train' "$tandem" trian
check "no data" 2 'train_files' train --set 'train_files=[]'
check "only evaluation data" 2 'train_files' train --set 'train_files=[]' --set eval_files="$folder/data.jsonl"
check "output folder cannot be made" 5 '/proc/nowhere' train --set output_dir=/proc/nowhere/out
check "missing data file" 3 'nowhere\.jsonl' train --set train_files="$folder/nowhere.jsonl"

# Data.
: >"$folder/empty.jsonl"
check "empty data" 3 'empty\.jsonl|no rows' train --set train_files="$folder/empty.jsonl"
{ head -n 3 "$folder/data.jsonl"; echo '{"input_ids": [1, 2'; tail -n 3 "$folder/data.jsonl"; } >"$folder/bad.jsonl"
check "bad line" 3 'bad\.jsonl:4' train --set train_files="$folder/bad.jsonl"
echo '{"input_ids": [1, 2, 900], "labels": [1, 2, 900]}' >"$folder/ids.jsonl"
check "token id outside the vocabulary" 3 'ids\.jsonl:1.*vocabulary' train --set train_files="$folder/ids.jsonl"
echo '{"input_ids": [1, 2, 3], "labels": [-100, -100, -100]}' >"$folder/untrained.jsonl"
check "rows without trained tokens" 3 'untrained\.jsonl|trained' train --set train_files="$folder/untrained.jsonl"
check "rows longer than max_length" 3 'data\.jsonl:[0-9]+.*max_length' train --set too_long=error --set max_length=16
echo '{"question": "?"}' >"$folder/unknown.jsonl"
check "unknown row format" 3 'unknown\.jsonl:1' train --set train_files="$folder/unknown.jsonl"

# Chats, with a tokenizer that has ChatML's tokens. One process says the same as two ranks and is sooner done.
cp -r "$source/launch/quickstart/base" "$folder/chat"
sed -i 's/"chat_template": *"[^\n]*"/"chat_template": null/' "$folder/chat/tokenizer_config.json"
answer='{"role": "assistant", "content": "Rain."}'
chat='{"messages": [{"role": "user", "content": "What is the weather?"}, '$answer']}'
# chat_fails NAME PATTERN [LINE]: LINE follows a good one; nothing is left in the output folder.
chat_fails() {
    printf '%s\n' "$chat" "${3:-$chat}" >"$folder/chats.jsonl"
    check "$1" 3 "$2" timeout 60 "$tandem" prepare --set model_name_or_path="$folder/chat" \
        --set train_files="$folder/chats.jsonl" --set output_dir="$folder/left"
    if [ -n "$(find "$folder/left" -type f 2>/dev/null)" ]; then
        echo "FAILED $1: left $(find "$folder/left" -type f)"
        failed=$((failed + 1))
    fi
    rm -rf "$folder/left"
}
template_fails() {
    printf '%s' "$3" >"$folder/chat/chat_template.jinja"
    chat_fails "$1" "$2" "${4:-}"
    rm "$folder/chat/chat_template.jinja"
}
template_fails "bracket that does not match" "jinja:2:9: found '\}' where '\]' was expected" $'{{ "a" }}\n{{ m["a"}}'
template_fails "block that does not end" "jinja:2:16: .*'endfor' was expected" $'{% for m in messages %}\n{{ m.content }}\n'
template_fails "unknown filter" "chats\.jsonl:1: .*jinja:2:8: No filter named 'shout'" $'\n{{ 1 | shout }}'
template_fails "unknown statement" "jinja:1:4: unknown statement 'fro'" '{% fro m in messages %}'
template_fails "template that does not end" 'chats\.jsonl:1: .*jinja:1:[0-9]+: .*(does not end|MiB)' \
    '{% for a in range(99999) %}{% for b in range(99999) %}{% if a == b + 1 %}{% endif %}{% endfor %}{% endfor %}'
template_fails "template without end in itself" 'chats\.jsonl:1: .*jinja:1:[0-9]+: nested more than' '{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}'
template_fails "template that explodes" 'chats\.jsonl:1: .*jinja:1:[0-9]+: .*MiB' \
    '{% set n = namespace(t="xxxxxxxx") %}{% for i in range(99) %}{% set n.t = n.t + n.t %}{% endfor %}{{ n.t }}'
template_fails "roles out of order" 'chats\.jsonl:2: .*the template refuses this chat: user first' \
    '{% if messages[0].role != "user" %}{{ raise_exception("user first") }}{% endif %}{{ messages[0].content }}{{ messages[1].content }}' \
    '{"messages": ['"$answer"']}'
cp "$folder/chat/tokenizer_config.json" "$folder/kept.json"
echo '{"eos_token": "<|im_end|>", "chat_template": 7}' >"$folder/chat/tokenizer_config.json"
chat_fails "template that is no text" '"chat_template" must be'
echo '{"eos_token": "<|im_end|>", "chat_template": [{"name": "rag", "template": "a"}]}' >"$folder/chat/tokenizer_config.json"
chat_fails "no default among the templates" 'tokenizer_config\.json: none of the templates .* "default"'
echo '{"eos_token": "<|im_end|>", "chat_template": ["a"]}' >"$folder/chat/tokenizer_config.json"
chat_fails "list of what is no template" 'must be objects with "name" and "template"'
cp "$folder/kept.json" "$folder/chat/tokenizer_config.json"
cp "$folder/chat/tokenizer.json" "$folder/kept.json"
sed -i 's/<|im_\(start\|end\)|>/<|my_\1|>/g' "$folder/chat/tokenizer.json"
chat_fails "no template" 'chats\.jsonl:1: the model has no chat template'
cp "$folder/kept.json" "$folder/chat/tokenizer.json"
cp "$folder/chat/config.json" "$folder/kept.json"
sed -i 's/"vocab_size": *[0-9]*/"vocab_size": 1000/' "$folder/chat/config.json"
chat_fails "tokenizer larger than the vocabulary" 'tokenizer\.json: the tokenizer has [0-9]+ tokens, the model.s vocabulary 1000'
cp "$folder/kept.json" "$folder/chat/config.json"
chat_fails "invalid UTF-8" 'chats\.jsonl:2: column 49: invalid UTF-8' $'{"messages": [{"role": "assistant", "content": "\xff"}]}'
chat_fails "half a surrogate pair" 'chats\.jsonl:2: column' '{"messages": [{"role": "assistant", "content": "\ud800"}]}'
chat_fails "no messages" 'chats\.jsonl:2: "messages" must be' '{"messages": []}'
chat_fails "message without role" 'chats\.jsonl:2: messages\[0\] must have "role"' '{"messages": [{"content": "a"}]}'
chat_fails "message that is a text" 'chats\.jsonl:2: messages\[0\] must have "role"' '{"messages": ["a"]}'
chat_fails "tool calls as text" 'chats\.jsonl:2: messages\[0\]: "tool_calls" must be a list' '{"messages": [{"role": "assistant", "content": "", "tool_calls": "f(1)"}]}'
chat_fails "tool calls as an object" 'chats\.jsonl:2: messages\[0\]: "tool_calls" must be a list' '{"messages": [{"role": "assistant", "content": "", "tool_calls": {"function": {"name": "f", "arguments": {}}}}]}'
chat_fails "tools as an object" 'chats\.jsonl:2: "tools" must be a list' '{"messages": ['"$answer"'], "tools": {"name": "f"}}'

# Every format in one file; arguments of a tool as text and as an object come out alike; an added token that the model has no row
# for, as Gemma 3's for images, only matters to a text that names it.
printf '%s' '{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.arguments if c.function.arguments is string else c.function.arguments | tojson }}{% endfor %}{% endfor %}' \
    >"$folder/chat/chat_template.jinja"
tail=$(grep -oE '"vocab_size": *[0-9]+' "$folder/chat/config.json" | grep -oE '[0-9]+$')
sed -i -z 's/\("added_tokens": *\[\)/\1{"id": '"$tail"', "content": "<image>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},/' \
    "$folder/chat/tokenizer.json"
works() {
    if "${@:2}" >"$folder/log" 2>&1; then
        echo "ok     $1"
        passed=$((passed + 1))
    else
        echo "FAILED $1"
        sed 's/^/    /' "$folder/log"
        failed=$((failed + 1))
    fi
}
show() {
    timeout 60 "$tandem" inspect "$folder/mixed.jsonl" --model "$folder/chat" --sample "$1"
}
call() {
    printf '{"messages": [{"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": %s}}]}]}\n' "$1"
}
{
    call '{"a": 1}'
    call '"{\"a\": 1}"'
    printf '%s\n' "$chat" '{"prompt": "a", "completion": "b"}' '{"instruction": "a", "input": "", "output": "b"}' '{"text": "a"}' \
        '{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}' '{"messages": [{"role": "assistant", "content": ""}]}'
} >"$folder/mixed.jsonl"
works "mixed formats, an added token without a row" timeout 60 "$tandem" prepare --set model_name_or_path="$folder/chat" \
    --set train_files="$folder/mixed.jsonl" --set output_dir="$folder/left"
rm -rf "$folder/left"
works "arguments as text or object" [ "$(show 1)" = "$(show 2)" ]
works "arguments are written" [ "$(show 1 | tr -d '[]' | grep -cF '{"a": 1}')" -eq 1 ]
chat_fails "a text that names it" "chats\.jsonl:2: token id $tail is outside the model" '{"text": "a <image>"}'
gzip -k "$folder/mixed.jsonl"
works "a compressed row is shown" [ "$(timeout 60 "$tandem" inspect "$folder/mixed.jsonl.gz" --model "$folder/chat" --sample 4)" = "$(show 4)" ]
(echo '['; paste -sd, "$folder/mixed.jsonl"; echo ']') >"$folder/mixed.json"
works "an element is shown" [ "$(timeout 60 "$tandem" inspect "$folder/mixed.json" --model "$folder/chat" --sample 4)" = "$(show 4)" ]
check "no such element" 3 'mixed\.json: no row 9, there are 8' timeout 60 "$tandem" inspect "$folder/mixed.json" --model "$folder/chat" --sample 9

# Adapters.
for command in evaluate merge; do
    case $command in
    evaluate) more=(--data "$folder/data.jsonl") ;;
    merge) more=(--output "$folder/left") ;;
    esac
    rm -rf "$folder/left"
    check "adapter of another base, $command" 3 'adapter_model\.safetensors: .*must have the shape' timeout 60 "$tandem" "$command" \
        --model "$model" --adapter "$fixtures/families/qwen3/adapter" "${more[@]}"
    works "and nothing is left" [ ! -e "$folder/left" ]
done
check "adapter of another base, train" 3 'adapter_model\.safetensors: .*must have the shape' train --set \
    adapter_name_or_path="$fixtures/families/qwen3/adapter"

# Ranks and runs.
check "ranks disagree on the config" 2 'config is not the same on all ranks' timeout 60 mpirun --quiet \
    --oversubscribe --bind-to none --allow-run-as-root \
    -n 1 "$tandem" train --set model_name_or_path="$model" --set train_files="$folder/data.jsonl" --set output_dir="$folder/out" : \
    -n 1 "$tandem" train --set model_name_or_path="$model" --set train_files="$folder/data.jsonl" --set output_dir="$folder/out" --set seed=9
check "ranks disagree on how products are computed" 2 'float32_matmul_precision.* not the same on ranks 0 and 1' timeout 60 mpirun --quiet \
    --oversubscribe --bind-to none --allow-run-as-root -n 1 "$tandem" evaluate --model "$model" --data "$folder/data.jsonl" : \
    -n 1 "$tandem" evaluate --model "$model" --data "$folder/data.jsonl" --set float32_matmul_precision=medium
check "memory plan does not fit" 4 'memory plan' train --set memory_limit_bytes=1000000
copy_model
printf '\377\377\377\177' | dd of="$folder/broken/model.safetensors" bs=1 conv=notrunc status=none \
    seek=$(($(stat -c %s "$folder/broken/model.safetensors") - 4))
check "loss is not finite" 7 'step 1: .*not finite' with_broken

# A run that could not start has not claimed its folder.
fresh=$folder/fresh
check "a run that cannot start" 4 'memory plan' train --set output_dir="$fresh" --set memory_limit_bytes=1000000 --set lora_r=3
keep=$fresh
train --set output_dir="$keep" >"$folder/log" 2>&1 || { cat "$folder/log"; echo "FAILED the good run"; failed=$((failed + 1)); }
check "output folder of the same run" 2 'already holds checkpoints' train --set output_dir="$keep"
check "output folder of another run" 2 'another lora_r' train --set output_dir="$keep" --set lora_r=4
check "resume with another config" 2 'another learning_rate' train --set output_dir="$keep" --set learning_rate=0.5 --resume auto
check "resume with other products" 2 'another float32_matmul_precision' train --set output_dir="$keep" \
    --set float32_matmul_precision=medium --resume auto
check "resume with other products, elsewhere" 3 'float32_matmul_precision was "highest" and is now "medium"' train \
    --set float32_matmul_precision=medium --resume "$(ls -d "$keep"/checkpoints/step-* | tail -n 1)"
check "resume from nowhere" 3 'nowhere' train --set output_dir="$keep" --resume "$folder/nowhere"
tail -n 7 "$folder/data.jsonl" >"$folder/other.jsonl"
check "resume with other data" 3 'other training data' train --set output_dir="$keep" --set train_files="$folder/other.jsonl" --resume auto
copy_model
printf '\101' | dd of="$folder/broken/model.safetensors" bs=1 seek=$(($(stat -c %s "$folder/broken/model.safetensors") - 7)) conv=notrunc status=none
check "resume with another base" 3 'another base model' with_broken --set output_dir="$keep" --resume auto

# A policy skips bad rows and says how many.
if train --set train_files="$folder/bad.jsonl" --set bad_rows=skip >"$folder/log" 2>&1 && grep -q '1 rows dropped: malformed (the first: .*bad.jsonl:4)' "$folder/log"; then
    echo "ok     bad rows can be skipped"
    passed=$((passed + 1))
else
    echo "FAILED bad rows can be skipped"
    cat "$folder/log"
    failed=$((failed + 1))
fi
rm -rf "$folder/out"

mkdir "$folder/small"
if mount -t tmpfs -o size=4k tmpfs "$folder/small" 2>/dev/null; then
    mounted=$folder/small
    check "no disk space" 5 'disk full|No space left' train --set output_dir="$folder/small/out" --set lora_r=64
else
    echo "skipped no disk space: mounting a small file system needs root"
fi

# note NAME: by the exit code of the command before.
note() {
    if [ $? -eq 0 ]; then
        echo "ok     $1" && passed=$((passed + 1))
    else
        echo "FAILED $1" && cat "$folder/log" && failed=$((failed + 1))
    fi
}

# What a start that failed has made is gone, what was there before is not.
echo '{}' >"$folder/bad.jsonl"
mkdir "$folder/mine"
for output in new mine; do
    check "bad rows, folder \"$output\"" 3 'unknown row format' train --set train_files="$folder/bad.jsonl" --set output_dir="$folder/$output"
    check "bad rows, prepare, folder \"$output\"" 3 'unknown row format' "$tandem" prepare --set model_name_or_path="$model" \
        --set train_files="$folder/bad.jsonl" --set output_dir="$folder/$output"
done
[ ! -e "$folder/new" ] && [ -d "$folder/mine" ] && [ -z "$(ls -A "$folder/mine")" ]
note "no empty folders are left"

# mpirun's own words would bury ours.
train --set train_files="$folder/bad.jsonl" >"$folder/log" 2>&1
[ "$(tail -n 1 "$folder/log" | cut -c1-7)" = "error: " ]
note "the error is the last line"

# What killed processes have left beside the run's own files.
mkdir "$folder/out"
touch "$folder/out/config.json.tmp-4242-7" "$folder/out/.tmp-notes" "$folder/out/a.tmp-1-x"
train >"$folder/log" 2>&1 && [ ! -e "$folder/out/config.json.tmp-4242-7" ] && [ -e "$folder/out/.tmp-notes" ] && [ -e "$folder/out/a.tmp-1-x" ]
note "temporaries of killed processes are gone after a start, other files are not"

echo "$passed ok, $failed failed"
[ "$failed" -eq 0 ]
