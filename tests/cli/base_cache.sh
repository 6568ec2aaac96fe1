#!/usr/bin/env bash
# Adapters have the same bytes with and without an image of the base, on 1 and 2 ranks, whichever start made the image; a damaged
# one is told of and made again; ranks of a node map one copy. usage: base_cache.sh TANDEM CHATS SOURCE
set -euo pipefail
tandem=$1 chats=$2 source=$3
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export OMP_NUM_THREADS=1
"$chats" --seed 3 --train 60 --heldout 4 --out "$folder" >/dev/null

# run NAME RANKS [OPTION]...
run() {
    local name=$1 ranks=$2
    shift 2
    if ! timeout 100 "$source/launch/mpirun.sh" "$ranks" "$tandem" train --set device=cpu \
        --set model_name_or_path="$source/launch/quickstart/base" \
        --set train_files="$folder/train.jsonl" --set output_dir="$folder/$name" --set max_length=128 \
        --set packing=true --set micro_batch_tokens=160 --set gradient_accumulation_steps=2 --set max_steps=2 \
        --set lora_r=4 --set page_elements=20000 "$@" >"$folder/$name.log" 2>&1; then
        echo "FAILED: $name"
        cat "$folder/$name.log"
        exit 1
    fi
    cmp "$folder/plain/adapter/adapter_model.safetensors" "$folder/$name/adapter/adapter_model.safetensors"
    echo "ok     $name has the bits of a run without images"
}

expect() {
    if ! eval "$2"; then
        echo "FAILED: $1"
        cat "$folder"/*.log
        exit 1
    fi
    echo "ok     $1"
}

cache=$folder/cache
run plain 1
run makes 2 --set base_cache="$cache"
image=$(echo "$cache"/*.base)
expect "one image, and nothing beside it" '[ "$(ls -A "$cache" | wc -l)" -eq 1 ] && [ -f "$image" ]'
before=$(stat -c '%i %Y' "$image")
run maps 1 --set base_cache="$cache"
run shares 2 --set base_cache="$cache"
expect "the image was left as it was" '[ "$(stat -c "%i %Y" "$image")" = "$before" ]'
expect "the plan has one copy for two ranks" \
    'grep -q "base model, one copy on the node" "$folder/shares.log" && ! grep -q "one copy" "$folder/maps.log" "$folder/makes.log"'
printf '\xa5\x5a\xa5' | dd of="$image" bs=1 seek=100000 conv=notrunc 2>/dev/null
run mends 2 --set base_cache="$cache"
expect "one line says that it was damaged" '[ "$(grep -c "is damaged" "$folder/mends.log")" -eq 1 ]'
run again 1 --set base_cache="$cache"
expect "and it was made again" '! grep -q damaged "$folder/again.log"'
: >"$folder/file"
run nowhere 2 --set base_cache="$folder/file"
expect "a folder that cannot be is a warning" '[ "$(grep -c "^warning: no image of the base model is kept" "$folder/nowhere.log")" -eq 1 ]'
