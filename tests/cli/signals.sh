#!/usr/bin/env bash
# Runs that are asked to stop: SIGUSR1 to mpirun and SIGTERM to one rank end in a checkpoint and code 75, and --resume auto
# finishes with the adapter, best adapter and evaluations of an undisturbed run. Also what a resumed run finds missing or done
# already. usage: signals.sh TANDEM CHATS SOURCE
set -uo pipefail
tandem=$1 chats=$2 source=$3
folder=$(mktemp -d)
launcher= mounted=
cleanup() {
    [ -z "$launcher" ] || kill -9 "$launcher" 2>/dev/null
    [ -z "$mounted" ] || umount "$mounted"
    rm -rf "$folder"
}
trap cleanup EXIT
export OMP_NUM_THREADS=1
"$chats" --seed 5 --train 300 --heldout 20 --out "$folder" >/dev/null

fail() {
    echo "FAILED: $1"
    tail -n 8 "$folder"/*.log
    exit 1
}

# command_line OUTPUT [OPTION]...
command_line() {
    local output=$1
    shift
    echo "$source/launch/mpirun.sh" 2 "$tandem" train \
        --set model_name_or_path="$source/launch/quickstart/base" \
        --set train_files="$folder/train.jsonl" --set eval_files="$folder/heldout.jsonl" \
        --set output_dir="$folder/$output" --set max_length=128 --set micro_batch_tokens=160 \
        --set gradient_accumulation_steps=4 --set max_steps=40 --set lora_r=8 \
        --set lora_dropout=0.1 --set page_elements=20000 --set eval_steps=4 \
        --set learning_rate=2e-2 --set lr_scheduler_type=constant --set load_best_model_at_end=true "$@"
}

# expect CODE OUTPUT [OPTION]...: runs to the end.
expect() {
    local code=$1 got=0
    shift
    timeout 120 $(command_line "$@") >"$folder/$1.log" 2>&1 || got=$?
    [ "$got" -eq "$code" ] || fail "$*: code $got, expected $code"
}

hash_of() {
    sha256sum <"$folder/$1/adapter/adapter_model.safetensors"
}

# Lines of metrics.jsonl without what depends on the clock.
metrics_of() {
    sed -E 's/, "seconds": .*//' "$folder/$1/metrics.jsonl"
}

expect_like_straight() {
    [ "$(hash_of "$1")" = "$(hash_of straight)" ] || fail "$1: another adapter than the straight run's"
    diff <(metrics_of straight) <(metrics_of "$1") >"$folder/diff.log" || fail "$1: other metrics"
    echo "ok     $1 ends like the straight run"
}

# rank_of_run OUTPUT: process id of one rank, by its command line.
rank_of_run() {
    pgrep -f "^$tandem train.*output_dir=$folder/$1 " | tail -n 1
}

# stop OUTPUT SIGNAL launcher|rank
stop() {
    local output=$1 code=0 target
    $(command_line "$output") >"$folder/$output.log" 2>&1 &
    launcher=$!
    for _ in $(seq 400); do
        [ "$({ wc -l <"$folder/$output/metrics.jsonl"; } 2>/dev/null || echo 0)" -lt 3 ] || break
        sleep 0.05
    done
    target=$launcher
    [ "$3" = launcher ] || target=$(rank_of_run "$output")
    kill -s "$2" "$target" || fail "$output: nothing to send the signal to"
    # The same request, passed on twice, is one request.
    [ "$2" != TERM ] || { sleep 0.03 && kill -s TERM "$target" 2>/dev/null; }
    wait "$launcher" || code=$?
    launcher=
    [ "$code" -eq 75 ] || fail "$output: code $code after $2, expected 75"
    grep -q 'stopped on request after step' "$folder/$output.log" || fail "$output: says nothing"
    ! grep -q 'error:' "$folder/$output.log" || fail "$output: a stop is no error"
    [ ! -e "$folder/$output/adapter" ] || fail "$output: an adapter of an unfinished run"
    expect 0 "$output" --resume auto
    expect_like_straight "$output"
}

expect 0 straight
[ "$(grep -c eval_loss "$folder/straight/metrics.jsonl")" -eq 10 ] || fail "10 evaluations expected"
best=$(grep '"best": true' "$folder/straight/metrics.jsonl" | tail -n 1 | grep -oE '"step": [0-9]+')
[ "$best" != '"step": 40' ] || fail "the best step should not be the last, so that it shows"
lowest=$(grep eval_loss "$folder/straight/metrics.jsonl" | sed -E 's/.*("step": [0-9]+), "eval_loss": ([^,]+),.*/\2 \1/' |
    sort -g | head -n 1 | cut -d' ' -f2-)
[ "$best" = "$lowest" ] || fail "best is $best, the lowest loss is that of $lowest"
cmp -s "$folder/straight/adapter/adapter_model.safetensors" "$folder/straight/best_adapter/adapter_model.safetensors" ||
    fail "load_best_model_at_end: the adapter is not the best one"
stop usr1 USR1 launcher
stop term TERM rank

# A stop where an evaluation is due: the resumed run makes it.
expect 75 due --set stop_after_steps=8
expect 75 due --resume auto --set stop_after_steps=8
grep -q 'stopped on request after step 16' "$folder/due.log" || fail "stop_after_steps counts from the start of the process"
# Lines of steps after the checkpoint, the last one torn, as a killed run leaves them.
printf '{"step": 17, "loss": 1}\n{"step": 18, "lo' >>"$folder/due/metrics.jsonl"
expect 0 due --resume auto --set stop_after_steps=0
expect_like_straight due

# Nothing left to do: the adapter is written again.
rm -r "$folder/due/adapter"
expect 0 due --resume auto
expect_like_straight due
! grep -q 'last step' "$folder/due.log" || fail "a loss of a step that was not made"

# The best adapter is gone: its checkpoint has it.
expect 0 gone --set save_steps=4 --set save_total_limit=0
rm -r "$folder/gone/best_adapter" "$folder/gone/adapter"
expect 0 gone --resume auto
expect_like_straight gone
# And without it the run ends all the same.
rm -r "$folder/due/best_adapter" "$folder/due/checkpoints/step-000008"
expect 0 due --resume auto
grep -q 'best_adapter of step .* is gone' "$folder/due.log" || fail "does not say that best_adapter is gone"
echo "ok     a missing best adapter is restored, or looked for anew"

# A checkpoint that cannot be written is no stop.
mkdir -p "$folder/full"
if mount -t tmpfs -o size=6m tmpfs "$folder/full" 2>/dev/null; then
    mounted=$folder/full
    expect 5 full/run --set stop_after_steps=2 --set lora_r=64
    grep -q 'not enough space for a checkpoint' "$folder/full/run.log"
    said=$?
    umount "$folder/full"
    mounted=
    [ "$said" -eq 0 ] || fail "says nothing of the checkpoint that could not be written"
    echo "ok     no checkpoint, no code 75"
fi

# Training can start from an adapter: its parameters are those of a run that changes nothing.
expect 0 from --set adapter_name_or_path="$folder/straight/adapter" --set learning_rate=0 --set warmup_ratio=0 \
    --set max_steps=1 --set load_best_model_at_end=false --set lora_r=2
[ "$(hash_of from)" = "$(hash_of straight)" ] || fail "training does not start from the given adapter"
expect 0 further --set adapter_name_or_path="$folder/straight/adapter" --set max_steps=1 \
    --set warmup_ratio=0 --set load_best_model_at_end=false
[ "$(hash_of further)" != "$(hash_of straight)" ] || fail "training from an adapter changes nothing"
echo "ok     training starts from a given adapter"
