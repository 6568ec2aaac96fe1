#!/usr/bin/env bash
# Adapters after 20 steps have the same bytes on 1, 2, 3 and 4 ranks, and a run that stops at step 10 and goes on with another
# number of ranks ends with those bytes too. Packing and dropout are on, pages are small, and 5 micro-batches per step do not
# divide evenly. The same with products in bf16, which are others. usage: same_bits.sh TANDEM CHATS SOURCE
set -euo pipefail
tandem=$1 chats=$2 source=$3
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export OMP_NUM_THREADS=1
"$chats" --seed 3 --train 300 --heldout 20 --out "$folder" >/dev/null

# run NAME RANKS [OPTION]...
run() {
    local name=$1 ranks=$2 code=0
    shift 2
    timeout 240 "$source/launch/mpirun.sh" "$ranks" "$tandem" train \
        --set model_name_or_path="$source/launch/quickstart/base" \
        --set train_files="$folder/train.jsonl" --set output_dir="$folder/$name" \
        --set max_length=128 --set packing=true --set micro_batch_tokens=160 \
        --set gradient_accumulation_steps=5 --set max_steps=20 --set learning_rate=1e-3 \
        --set lora_r=8 --set lora_dropout=0.1 --set page_elements=20000 "$@" \
        >"$folder/$name.log" 2>&1 || code=$?
    echo "$code" >"$folder/$name.code"
}

expect_code() {
    if [ "$(cat "$folder/$1.code")" != "$2" ]; then
        echo "FAILED: $1 ended with $(cat "$folder/$1.code"), expected $2"
        cat "$folder/$1.log"
        exit 1
    fi
}

hash_of() {
    sha256sum "$folder/$1/adapter/adapter_model.safetensors" | cut -d' ' -f1
}

expect_same() {
    if [ "$(hash_of "$1")" != "$reference" ]; then
        echo "FAILED: the adapter of $1 differs from that of one rank"
        exit 1
    fi
    echo "ok     $1 has the bits of one rank"
}

run ranks1 1
expect_code ranks1 0
reference=$(hash_of ranks1)
for ranks in 2 3 4; do
    run "ranks$ranks" "$ranks"
    expect_code "ranks$ranks" 0
    expect_same "ranks$ranks"
done

for change in "2 1" "1 3" "4 2"; do
    set -- $change
    name=from$1to$2
    run "$name" "$1" --set stop_after_steps=10
    expect_code "$name" 75
    run "$name" "$2" --resume auto
    expect_code "$name" 0
    expect_same "$name"
done

# Products in bf16, for some steps.
medium=(--set float32_matmul_precision=medium --set max_steps=6)
fp32_reference=$reference
run medium1 1 "${medium[@]}"
expect_code medium1 0
reference=$(hash_of medium1)
run short1 1 --set max_steps=6
expect_code short1 0
[ "$(hash_of short1)" != "$reference" ] || { echo "FAILED: float32_matmul_precision changes nothing"; exit 1; }
for ranks in 2 3; do
    run "medium$ranks" "$ranks" "${medium[@]}"
    expect_code "medium$ranks" 0
    expect_same "medium$ranks"
done
for change in "1 3" "2 1"; do
    set -- $change
    name=medium_from$1to$2
    run "$name" "$1" "${medium[@]}" --set stop_after_steps=3
    expect_code "$name" 75
    run "$name" "$2" "${medium[@]}" --resume auto
    expect_code "$name" 0
    expect_same "$name"
done
reference=$fp32_reference

# The comparison can fail: another seed gives other bits.
run other_seed 2 --set seed=43
expect_code other_seed 0
[ "$(hash_of other_seed)" != "$reference" ] || { echo "FAILED: the seed changes nothing"; exit 1; }
echo "ok     another seed gives other bits"
