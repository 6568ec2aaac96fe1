#!/usr/bin/env bash
# merge, quantize and export from outside: what they write trains and answers, losses from an NF4 folder are those of quantizing
# while loading, and nothing is left behind by what fails. usage: merge.sh TANDEM SOURCE
set -uo pipefail
. "$(dirname "$0")/checks.sh"
tandem=$1 source=$2
fixtures=$source/tests/fixtures
model=$fixtures/train100
ranks=$source/launch/mpirun.sh

# works NAME COMMAND...
works() {
    local name=$1
    shift
    "$@" >"$folder/log" 2>&1
    report $? "$name"
}

# check NAME CODE PATTERN COMMAND...: exit code, one error line that matches, and no output.
check() {
    local name=$1 code=$2 pattern=$3 got=0
    shift 3
    timeout 60 "$@" >"$folder/log" 2>&1 || got=$?
    [ "$got" -eq "$code" ] && [ "$(grep -cE '^(\[[0-9]+\] )?error:' "$folder/log")" -eq 1 ] &&
        grep -qE "^error: .*($pattern)" "$folder/log" && [ ! -e "$folder/new" ] &&
        [ -z "$(find "$folder" -name '*.tmp-*')" ]
    report $? "$name"
}

train() {
    timeout 120 "$ranks" 2 "$tandem" train --set train_files="$model/data.jsonl" --set max_length=64 --set lora_r=4 \
        --set gradient_accumulation_steps=2 --set logging_steps=1 --set max_steps=6 --set save_steps=3 \
        --set target_modules=all-linear --set learning_rate=0.01 "$@"
}
losses() {
    grep -o '"loss": [^,]*' "$1/metrics.jsonl"
}

works "quantize" timeout 60 "$tandem" quantize --model "$model" --output "$folder/nf4"
works "train on the whole model" train --set model_name_or_path="$model" --set output_dir="$folder/run"
works "train on the NF4 folder" train --set model_name_or_path="$folder/nf4" --set output_dir="$folder/run-nf4"
[ "$(losses "$folder/run" | wc -l)" -ge 6 ] && diff <(losses "$folder/run") <(losses "$folder/run-nf4") >"$folder/log"
report $? "the losses are the same"
cmp "$folder/run/adapter/adapter_model.safetensors" "$folder/run-nf4/adapter/adapter_model.safetensors" >"$folder/log" 2>&1
report $? "the adapters are the same"

# Evaluated in fp32: the adapter beside the NF4 base, and merged into what NF4 stands for.
works "merge" timeout 60 "$tandem" merge --model "$model" --adapter "$folder/run/adapter" --output "$folder/merged" \
    --into nf4-dequantized --max-shard-size 100K
[ -e "$folder/merged/model.safetensors.index.json" ] && [ ! -e "$folder/merged/model.safetensors" ]
report $? "merge divides files"
loss_of() {
    timeout 60 "$tandem" evaluate --data "$model/data.jsonl" --set max_length=64 --json "$@" 2>"$folder/log" |
        sed -nE 's/.*"loss": *([0-9.]+).*/\1/p'
}
with=$(loss_of --model "$model" --adapter "$folder/run/adapter")
merged=$(loss_of --model "$folder/merged" --set load_in_4bit=false)
without=$(loss_of --model "$model")
echo "loss with adapter $with, merged $merged, without $without" >>"$folder/log"
awk -v a="$with" -v b="$merged" -v c="$without" \
    'BEGIN {d = a - b; e = a - c; exit !(a != "" && b != "" && d * d < 1e-10 && e * e > 1e-4)}'
report $? "the merged model has the adapter's loss"

checkpoint=$folder/run/checkpoints/step-000003
works "export of a checkpoint" timeout 60 "$tandem" export --checkpoint "$checkpoint" --output "$folder/step-3"
cmp -s "$checkpoint/adapter_model.safetensors" "$folder/step-3/adapter_model.safetensors" &&
    [ -s "$folder/step-3/adapter_config.json" ]
report $? "export copies the checkpoint's adapter"
works "export of a run" timeout 60 "$tandem" export --checkpoint "$folder/run" --output "$folder/newest"
cmp -s "$folder/run/adapter/adapter_model.safetensors" "$folder/newest/adapter_model.safetensors"
report $? "export of a run takes the newest"
# Without its files, or with damaged ones, the adapter is rebuilt from the pages, wherever the base lies now.
same_adapter() {
    cmp "$folder/$1/adapter_model.safetensors" "$folder/$2/adapter_model.safetensors" >"$folder/log" 2>&1 &&
        cmp "$folder/$1/adapter_config.json" "$folder/$2/adapter_config.json" >>"$folder/log" 2>&1
}
last=$folder/run/checkpoints/step-000006
printf x | dd of="$last/adapter_model.safetensors" bs=1 seek=900 conv=notrunc 2>/dev/null
works "export with a damaged adapter" timeout 60 "$tandem" export --checkpoint "$last" --output "$folder/rebuilt"
same_adapter newest rebuilt
report $? "it is rebuilt bit for bit"
rm "$last"/adapter_*
works "export of a run without adapter files" timeout 60 "$tandem" export --checkpoint "$folder/run" --output "$folder/again" \
    --model "$folder/nf4"
same_adapter newest again
report $? "it is rebuilt bit for bit with the base elsewhere"
works "a run that starts from an adapter" train --set model_name_or_path="$model" --set output_dir="$folder/more" --set lora_r=8 \
    --set adapter_name_or_path="$folder/step-3"
rm "$folder"/more/checkpoints/step-000006/adapter_model.safetensors
mv "$folder/step-3" "$folder/moved"
works "export after its first adapter is gone" timeout 60 "$tandem" export --checkpoint "$folder/more" --output "$folder/more-again"
mv "$folder/moved" "$folder/step-3"
same_adapter more/adapter more-again
report $? "its layout is that of its checkpoint"
printf x | dd of="$last/pages-00000-of-00002.h5" bs=1 seek=9000 conv=notrunc 2>/dev/null
works "export passes over a damaged checkpoint" timeout 60 "$tandem" export --checkpoint "$folder/run" --output "$folder/older"
cmp -s "$folder/step-3/adapter_model.safetensors" "$folder/older/adapter_model.safetensors"
report $? "export takes the newest whole one"

out=(--output "$folder/new")
check "a rebuilt adapter needs its base" 3 'not the base model of this checkpoint' \
    "$tandem" export --checkpoint "$folder/more/checkpoints/step-000006" --model "$fixtures/families/smollm3" "${out[@]}"
check "a damaged checkpoint by name" 3 'damaged' \
    "$tandem" export --checkpoint "$folder/run/checkpoints/step-000006" "${out[@]}"
check "no checkpoint" 3 'neither a checkpoint nor a run' "$tandem" export --checkpoint "$model" "${out[@]}"
check "no such run" 3 'no folder' "$tandem" export --checkpoint "$folder/nowhere" "${out[@]}"
check "merge needs an adapter" 2 'needs --adapter' "$tandem" merge --model "$model" "${out[@]}"
check "unknown target" 2 'into is bf16' "$tandem" merge --model "$model" --adapter "$folder/step-3" "${out[@]}" --into int8
check "sizes have units" 2 'max-shard-size must be' \
    "$tandem" merge --model "$model" --adapter "$folder/step-3" "${out[@]}" --max-shard-size 5X
check "output exists" 2 'exists already' \
    "$tandem" merge --model "$model" --adapter "$folder/step-3" --output "$folder/merged"
check "adapter for another base" 3 'adapter' \
    "$tandem" merge --model "$fixtures/families/smollm3" --adapter "$folder/step-3" "${out[@]}"
mkdir "$folder/scaled"
sed 's/"use_dora":[[:space:]]*false/"use_dora": true/' "$folder/step-3/adapter_config.json" >"$folder/scaled/adapter_config.json"
cp "$folder/step-3/adapter_model.safetensors" "$folder/scaled"
check "DoRA" 3 '[Dd]o[Rr][Aa]|use_dora' "$tandem" merge --model "$model" --adapter "$folder/scaled" "${out[@]}"
check "quantized already" 3 'NF4 already' "$tandem" quantize --model "$folder/nf4" "${out[@]}"
check "no model" 3 'config\.json|no folder' "$tandem" quantize --model "$folder/nowhere" "${out[@]}"
check "one rank" 2 'one rank' "$ranks" 2 "$tandem" quantize --model "$model" "${out[@]}"
exit "$failed"
