#!/usr/bin/env bash
# kill -9 of one rank at a random moment: every process is gone within 10 s, and --resume auto finishes with the adapter of an
# undisturbed run. usage: kill_rank.sh TANDEM CHATS SOURCE [ROUNDS] [SEED]
set -euo pipefail
tandem=$1 chats=$2 source=$3 rounds=${4:-3}
seed=${5:-$$}
RANDOM=$seed
echo "seed $seed of $rounds rounds"
folder=$(mktemp -d)
mark="tandem-kill-test-$$"
cleanup() {
    pkill -9 -f "$mark" 2>/dev/null || true
    rm -rf "$folder"
}
trap cleanup EXIT
export OMP_NUM_THREADS=1
"$chats" --seed 4 --train 300 --heldout 20 --out "$folder" >/dev/null

# command OUTPUT [OPTION]...: the run's command line; the mark in it finds its processes.
command_line() {
    local output=$1
    shift
    echo "$source/launch/mpirun.sh" 2 "$tandem" train \
        --set model_name_or_path="$source/launch/quickstart/base" \
        --set train_files="$folder/train.jsonl" --set output_dir="$folder/$mark/$output" \
        --set max_length=128 --set micro_batch_tokens=160 --set gradient_accumulation_steps=4 \
        --set max_steps=60 --set lora_r=8 --set lora_dropout=0.1 --set page_elements=20000 \
        --set save_steps=5 "$@"
}

ranks_of_run() {
    pgrep -f "^$tandem train.*$mark" || true
}

fail() {
    echo "FAILED: $1"
    cat "$folder"/*.log
    exit 1
}

mkdir "$folder/$mark"
timeout 240 $(command_line straight) >"$folder/straight.log" 2>&1 || fail "the undisturbed run failed"
reference=$(sha256sum <"$folder/$mark/straight/adapter/adapter_model.safetensors")
steps_file=metrics.jsonl

for round in $(seq "$rounds"); do
    output=run$round
    $(command_line "$output" --resume auto) >"$folder/$output.log" 2>&1 &
    launcher=$!
    wanted=$((RANDOM % 50 + 1))
    for _ in $(seq 600); do
        done_steps=$({ wc -l <"$folder/$mark/$output/$steps_file"; } 2>/dev/null || echo 0)
        [ "$done_steps" -lt "$wanted" ] || break
        kill -0 "$launcher" 2>/dev/null || break
        sleep 0.05
    done
    victims=($(ranks_of_run))
    [ ${#victims[@]} -eq 2 ] || fail "round $round: expected 2 ranks, found ${#victims[@]}"
    victim=${victims[$((RANDOM % 2))]}
    kill -9 "$victim"
    killed=$(date +%s%N)
    code=0
    wait "$launcher" || code=$?
    while [ -n "$(ranks_of_run)" ] && [ $((($(date +%s%N) - killed) / 1000000)) -lt 10000 ]; do
        sleep 0.05
    done
    took=$((($(date +%s%N) - killed) / 1000000))
    [ -z "$(ranks_of_run)" ] || fail "round $round: processes are left after 10 s"
    [ "$took" -lt 10000 ] || fail "round $round: the job took $took ms to end"
    [ "$code" -ne 0 ] || fail "round $round: the launcher reported success"
    timeout 240 $(command_line "$output" --resume auto) >"$folder/$output-resumed.log" 2>&1 ||
        fail "round $round: the resumed run failed"
    result=$(sha256sum <"$folder/$mark/$output/adapter/adapter_model.safetensors")
    [ "$result" = "$reference" ] || fail "round $round: the adapter differs from the undisturbed run's"
    echo "ok     killed after step $wanted: gone in $took ms, resumed to the same bits"
done
