#!/usr/bin/env bash
# Folders that somebody else has filled: links out of a run folder or a checkpoint, second names, pipes and devices in the
# place of files, names that lead elsewhere, files larger than any disk, damaged stores. The program ends in bounded time
# with one line or goes on with a warning, and changes nothing outside. And whatever the umask, only the owner may write
# what it makes. usage: untrusted.sh TANDEM SOURCE
set -uo pipefail
tandem=$1 source=$2
model=$source/tests/fixtures/train100 base=$source/launch/quickstart/base
folder=$(mktemp -d)
chmod 755 "$folder"
trap 'rm -rf "$folder"' EXIT
export OMP_NUM_THREADS=1 TANDEM_GPU_MODULE=none OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export ASAN_OPTIONS=detect_leaks=0
failed=0

report() {
    if [ "$1" -eq 0 ]; then
        echo "ok     $2"
    else
        echo "FAILED $2"
        sed 's/^/    /' "$folder/log"
        failed=1
    fi
}

# What lies outside, with times and modes.
outside() {
    find "$folder/outside" -printf '%p %y %s %m %T@ %l\n' | sort
    find "$folder/outside" -type f -exec cksum {} + | sort
}

# call COMMAND...: sets $code; nothing outside may have changed.
call() {
    code=0
    timeout -k 2 20 "$@" >"$folder/log" 2>&1 || code=$?
    outside | diff "$folder/before" - >>"$folder/log"
}

# works NAME [PATTERN] -- COMMAND...: code 0, and a line that matches.
works() {
    local name=$1 pattern=$2
    shift 3
    call "$@" && [ "$code" -eq 0 ] && grep -qE "$pattern" "$folder/log"
    report $? "$name"
}

# refused NAME PATTERN -- COMMAND...: its own exit code, and exactly one line of error, which matches.
refused() {
    local name=$1 pattern=$2
    shift 3
    call "$@" && { [ "$code" -eq 2 ] || [ "$code" -eq 3 ] || [ "$code" -eq 5 ]; } &&
        [ "$(grep -cE '^(\[[0-9]+\] )?error:' "$folder/log")" -eq 1 ] && grep -qE "^error: .*($pattern)" "$folder/log"
    report $? "$name"
}

# Arguments of a run in $folder/NAME; later ones win.
train() {
    local name=$1
    shift
    set -- train --set model_name_or_path="$model" --set train_files="$model/data.jsonl" --set output_dir="$folder/$name" \
        --set max_length=64 --set lora_r=4 --set gradient_accumulation_steps=2 --set max_steps=4 --set save_steps=2 "$@"
    words=("$tandem" "$@")
}

# A copy of the run that stopped after step 4, with two checkpoints, to plant something in. $run, $newest
fresh() {
    run=$folder/attack
    newest=$run/checkpoints/step-000004
    rm -rf "$run"
    cp -a "$folder/stopped" "$run"
    sed -i "s|$folder/stopped|$run|" "$run/config.json"
    train attack --set max_steps=6 --resume auto
}

mkdir -p "$folder/outside/folder"
echo "not to be changed" | tee "$folder/outside/precious" >"$folder/outside/folder/file"
outside >"$folder/before"

# --- Modes
umask 000
made=$folder/made/by/program
train made/by/program
works "a whole run" "" -- "${words[@]}"
works "export" "" -- "$tandem" export --checkpoint "$made" --output "$made/exported"
works "merge" "" -- "$tandem" merge --model "$model" --adapter "$made/adapter" --output "$made/merged"
works "quantize" "" -- "$tandem" quantize --model "$model" --output "$made/nf4"
for i in 1 2 3; do
    printf '{"messages": [{"role": "user", "content": "Say %d."}, {"role": "assistant", "content": "%d"}]}\n' $i $i
done >"$folder/rows.jsonl"
works "generate" "" -- "$tandem" generate --model "$base" --batch "$folder/rows.jsonl" --out "$made/answers.jsonl" \
    --max-new-tokens 2
works "prepare" "" -- "$tandem" prepare --set model_name_or_path="$model" --set train_files="$model/data.jsonl" \
    --set output_dir="$made/prepared" --set max_length=64 --set deduplicate=near
train made/by/program/chats --set model_name_or_path="$base" --set train_files="$folder/rows.jsonl" \
    --set max_steps=1 --set save_steps=1
works "a run with chats" "" -- "${words[@]}"
mkdir "$folder/scratch" && touch "$folder/watching"
while [ -e "$folder/watching" ]; do
    find "$folder/scratch" -maxdepth 1 -name 'tandem-*' -printf '%m\n'
done >"$folder/modes" 2>/dev/null &
works "evaluate" "" -- env TMPDIR="$folder/scratch" "$tandem" evaluate --compare --model "$base" --adapter "$made/chats/adapter" \
    --data "$folder/rows.jsonl" --examples "$folder/rows.jsonl" --few-shot 1 --max-new-tokens 2 \
    --report "$made/report.md"
rm "$folder/watching" && wait
umask 022
{ [ -s "$made/report.md" ] && [ -s "$made/answers.jsonl" ] && [ -s "$made/prepared/data/train.h5" ] &&
    [ -s "$made/metrics.jsonl" ]; } >"$folder/log"
report $? "all of it was written"
[ -z "$(find "$folder/made" -perm /022 ! -type l | tee "$folder/log")" ]
report $? "only the owner may write what the program makes"
sort -u "$folder/modes" >"$folder/log" && [ "$(cat "$folder/log")" = 700 ] && [ -z "$(ls "$folder/scratch")" ]
report $? "a temporary folder is for the owner alone, and gone at the end"

# --- A run folder
train stopped --set max_steps=6 --set stop_after_steps=4
call "${words[@]}"
[ "$code" -eq 75 ] && [ -d "$folder/stopped/checkpoints/step-000004" ]
report $? "a run to attack"
train straight --set max_steps=6
works "the same without a stop" "" -- "${words[@]}"
wanted=$(cksum <"$folder/straight/adapter/adapter_model.safetensors")

same_adapter() {
    [ "$(cksum <"$run/adapter/adapter_model.safetensors")" = "$wanted" ]
    report $? "  with the bits of the undisturbed run"
}

mv "$folder/stopped" "$folder/elsewhere" && ln -s elsewhere "$folder/stopped"
run=$folder/stopped
train stopped --set max_steps=6 --resume auto
cp -a "$folder/elsewhere" "$folder/keep"
works "a run folder that is a link itself" "4 steps are done" -- "${words[@]}"
same_adapter
rm -rf "$folder/stopped" "$folder/elsewhere" && mv "$folder/keep" "$folder/stopped"

# What can be replaced is replaced, and what it led to stays.
cp -a "$folder/stopped" "$folder/outside/run"
fresh
ln "$run/metrics.jsonl" "$folder/outside/metrics.jsonl"
ln "$run/checkpoints/latest" "$folder/outside/latest"
outside >"$folder/before"
ln -sfn "$folder/outside/folder" "$run/adapter"
ln -s "$folder/outside/folder" "$run/.adapter.new"
ln -s "$folder/outside/folder" "$run/checkpoints/.tmp-step-000004-1-00000000"
ln -s "$folder/outside/run/checkpoints/step-000002" "$run/checkpoints/.tmp-step-000001-1-00000000-old"
ln -s "$folder/outside/run/checkpoints/step-000002" "$run/checkpoints/step-000000"
ln -s "$folder/outside/run/checkpoints/step-000002" "$run/checkpoints/step-000006"
ln -s "$folder/outside/folder" "$run/data/train.h5.parts"
ln -s "$folder/outside/precious" "$run/data/train.h5.tmp"
echo >>"$run/data/train.h5" # so that it is prepared again
train attack --set max_steps=6 --set save_total_limit=1 --resume auto
works "links and second names in a run folder" "4 steps are done" -- "${words[@]}"
same_adapter
rm "$folder/outside/metrics.jsonl" "$folder/outside/latest"
outside >"$folder/before"

# What has to be as it was left is refused.
for name in metrics.jsonl config.json incarnation data checkpoints; do
    fresh
    rm -rf "${run:?}/$name"
    ln -s "$folder/outside/run/$name" "$run/$name"
    refused "$name that is a link" "/$name: is a link" -- "${words[@]}"
done
for name in metrics.jsonl config.json incarnation; do
    fresh
    rm "$run/$name" && mkfifo "$run/$name"
    refused "$name that is a pipe" "/$name: is not a regular file" -- "${words[@]}"
    rm "$run/$name" && truncate -s 1T "$run/$name" 2>/dev/null || continue
    refused "$name of 1 TiB" "/$name: has 1099511627776 bytes" -- "${words[@]}"
done

# A checkpoint that is not what it was is passed over.
passed_over() {
    works "$1: the checkpoint before" "^warning: .*($2)" -- "${words[@]}"
    grep -q "2 steps are done" "$folder/log"
    report $? "  was taken"
    same_adapter
}
fresh
rm -r "$newest" && ln -s "$folder/outside/run/checkpoints/step-000004" "$newest"
passed_over "a checkpoint that is a link" "step-000004: is a link"
pages="pages-00000-of-00001.h5"
for name in manifest.json $pages; do
    fresh
    ln -sf "$folder/outside/run/checkpoints/step-000004/$name" "$newest/$name"
    passed_over "$name that is a link" "$name: is a link"
    fresh
    rm "$newest/$name" && mkfifo "$newest/$name"
    passed_over "$name that is a pipe" "$name: is not a regular file"
    fresh
    truncate -s 1T "$newest/$name" 2>/dev/null || continue
    passed_over "$name of 1 TiB" "$name: (has 1099511627776 bytes|is damaged: has 1099511627776 bytes)"
done
fresh
sed -i "s|$pages|../$pages|" "$newest/manifest.json"
passed_over "a manifest with a name that leads elsewhere" "manifest.json: is damaged"
fresh
ln -sf "$folder/outside/run/checkpoints/step-000004/adapter_model.safetensors" "$newest/adapter_model.safetensors"
works "an adapter that is a link is made anew from the pages" "adapter_model.safetensors: is a link" -- \
    "$tandem" export --checkpoint "$newest" --output "$folder/rebuilt"
cmp "$folder/rebuilt/adapter_model.safetensors" "$folder/stopped/checkpoints/step-000004/adapter_model.safetensors" \
    >"$folder/log" 2>&1
report $? "  with the same bits"

# --- Token stores
store=$folder/store.h5 sound=$folder/stopped/data/train.h5
bytes=$(stat -c %s "$sound")
works "a store" "content hash" -- "$tandem" inspect "$sound"
broken=0
for i in $(seq 24); do
    cp "$sound" "$store"
    at=$(((i * 7919 + i * i * 104729) % bytes))
    [ "$i" -gt 8 ] || at=$((i * 5)) # HDF5's own first block
    value=$(od -An -tu1 -j "$at" -N 1 "$store" | tr -d ' ')
    printf "\\x$(printf %02x $((value ^ (1 << i % 8))))" | dd of="$store" bs=1 seek="$at" conv=notrunc status=none
    call "$tandem" inspect "$store" && [ "$code" -eq 3 ] && grep -q "^error: .*checksum of the file" "$folder/log" || broken=1
done
report $broken "a flipped bit anywhere in a store is refused before HDF5 reads it"
truncate -s 1T "$store" 2>/dev/null && refused "a store of 1 TiB" "no whole token store" -- "$tandem" inspect "$store"
rm "$store" && mkfifo "$store"
refused "a store that is a pipe" "not a regular file" -- "$tandem" inspect "$store"

# --- What is given by name
mkfifo "$folder/queue"
for name in "$folder/queue" /dev/zero; do
    train new --set train_files="$name"
    refused "rows from $(basename "$name")" "no regular file" -- "${words[@]}"
done
hostile=$folder/hostile
for shard in "../outside/weights.safetensors" "/etc/passwd" "..\\u002foutside" "a\\nb.safetensors" "." ""; do
    rm -rf "$hostile" && cp -a "$model" "$hostile"
    mv "$hostile/model.safetensors" "$folder/outside/weights.safetensors"
    outside >"$folder/before"
    printf '{"weight_map": {"model.embed_tokens.weight": "%s"}}' "$shard" >"$hostile/model.safetensors.index.json"
    train new --set model_name_or_path="$hostile"
    refused "a shard called \"$shard\"" "index.json" -- "${words[@]}"
done
for name in config.json tokenizer.json model.safetensors; do
    rm -rf "$hostile" && cp -a "$base" "$hostile"
    rm "$hostile/$name" && mkfifo "$hostile/$name"
    train new --set model_name_or_path="$hostile" --set train_files="$folder/rows.jsonl"
    refused "a model whose $name is a pipe" "$name: is not a regular file" -- "${words[@]}"
done
ln -s "$folder/outside/answers" "$folder/answers"
refused "answers through a link" "answers: is a link" -- "$tandem" generate --model "$base" \
    --batch "$folder/rows.jsonl" --out "$folder/answers" --max-new-tokens 2
refused "answers of a model without a tokenizer" "no tokenizer.json" -- "$tandem" evaluate --compare --model "$model" \
    --adapter "$made/adapter" --data "$model/data.jsonl" --examples "$model/data.jsonl"
# Two ranks agree on what rank 0 alone has seen.
fresh
ln -sf "$folder/outside/precious" "$run/metrics.jsonl"
refused "a link, with two ranks" "metrics.jsonl: is a link" -- "$source/launch/mpirun.sh" 2 "${words[@]}"
exit $failed
