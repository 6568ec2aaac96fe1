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

# Ranks and runs.
check "ranks disagree on the config" 2 'config is not the same on all ranks' timeout 60 mpirun --quiet \
    --oversubscribe --bind-to none --allow-run-as-root \
    -n 1 "$tandem" train --set model_name_or_path="$model" --set train_files="$folder/data.jsonl" --set output_dir="$folder/out" : \
    -n 1 "$tandem" train --set model_name_or_path="$model" --set train_files="$folder/data.jsonl" --set output_dir="$folder/out" --set seed=9
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
if mount -t tmpfs -o size=256k tmpfs "$folder/small" 2>/dev/null; then
    mounted=$folder/small
    check "no disk space" 5 'disk full' train --set output_dir="$folder/small/out" --set lora_r=64
else
    echo "skipped no disk space: mounting a small file system needs root"
fi

echo "$passed ok, $failed failed"
[ "$failed" -eq 0 ]
