#!/usr/bin/env bash
# Sourced by the cases (case_NN_name.sh SEED): a small training job, ways to break it, and what must hold afterwards.
#
# FAULTS_PROGRAM  tandem_faulty        FAULTS_CHATS  quickstart_chats     FAULTS_SOURCE  the source tree
# FAULTS_CACHE    a folder for what cases share (data, the undisturbed run); by default one of this case's own
# FAULTS_RECORD   a file to which each run adds a line: case, seed, result, seconds to exit, steps lost, remark, commit
#
# FAULTS_PATIENCE  bounds of time are this many times as long (1): for machines with other work to do
#
# A case calls `begin NUMBER "what must hold" SEED`, breaks a run, uses the expect_ functions, and ends with `pass`. The
# first expectation that does not hold ends it with FAILED.
set -uo pipefail
export OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 TANDEM_GPU_MODULE=none
export ASAN_OPTIONS=detect_leaks=0
patience=${FAULTS_PATIENCE:-1}
steps=${FAULTS_STEPS:-16} # of a whole run; a checkpoint every two

begin() {
    case_number=$1 case_title=$2 seed=$3
    RANDOM=$seed
    work=$(mktemp -d)
    echo $((seed * 7919 + 17)) >"$work/random"
    mark="tandem-faults-$$-$RANDOM"
    mkdir "$work/$mark"
    runs=$work/$mark
    cache=${FAULTS_CACHE:-$work/cache}
    mkdir -p "$cache"
    exit_seconds=0 steps_lost=0 launcher="" on_end=()
    trap end EXIT
    [ -e "$cache/train.jsonl" ] || "$FAULTS_CHATS" --seed 4 --train 120 --heldout 12 --out "$cache" >/dev/null ||
        fail "no chats"
}

end() {
    local command
    unset TANDEM_FAULT
    for command in ${on_end[@]+"${on_end[@]}"}; do
        eval "$command"
    done
    pkill -9 -f "$mark" 2>/dev/null
    rm -rf "$work"
}

write_record() {
    [ -z "${FAULTS_RECORD:-}" ] ||
        printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$case_number" "$seed" "$1" "$exit_seconds" "$steps_lost" "${2//$'\n'/ }" \
            "$(git -C "$FAULTS_SOURCE" rev-parse --short HEAD 2>/dev/null || echo unknown)" >>"$FAULTS_RECORD"
}

fail() {
    echo "FAILED case $case_number (seed $seed): $*"
    tail -n 12 "$work"/*.log 2>/dev/null
    write_record failed "$*"
    exit 1
}

pass() {
    echo "ok     case $case_number (seed $seed): $case_title${1:+: $1}; exit in $exit_seconds s, $steps_lost steps lost"
    write_record survived "${1:-}"
    exit 0
}

# For what this machine cannot do. The reason is printed, and the test counts as skipped.
skip() {
    echo "SKIPPED case $case_number: $*"
    write_record skipped "$*"
    exit 77
}

# random A B: a whole number from A to B. Its state is in a file, since a subshell's $RANDOM does not follow from the seed.
random() {
    local state
    state=$((($(<"$work/random") * 1103515245 + 12345) % 2147483648))
    echo "$state" >"$work/random"
    echo $(($1 + (state >> 8) % ($2 - $1 + 1)))
}

# The program's arguments for the run NAME; later options win.
arguments() {
    local name=$1
    shift
    printf '%s\n' train --set model_name_or_path="$FAULTS_SOURCE/launch/quickstart/base" \
        --set train_files="$cache/train.jsonl" --set output_dir="$runs/$name" \
        --set max_length=128 --set micro_batch_tokens=160 --set gradient_accumulation_steps=4 \
        --set max_steps="$steps" --set lora_r=8 --set lora_dropout=0.1 --set page_elements=5000 \
        --set save_steps=2 --set collective_deadline_seconds=4 "$@"
}

# start NAME RANKS [OPTION]...: in the background, output in $work/NAME.log
start() {
    local name=$1 ranks=$2 words
    shift 2
    mapfile -t words < <(arguments "$name" "$@")
    setsid timeout --foreground --kill-after=5 "${FAULTS_LIMIT:-90}" mpirun -q --oversubscribe --bind-to none -n "$ranks" \
        "$FAULTS_PROGRAM" "${words[@]}" >"$work/$name.log" 2>&1 &
    launcher=$! started_at=$SECONDS
    current=$name
}

# Waits for the end of what start() started; sets $code. The time since break_now(), if it was called, is the time to exit.
finish() {
    code=0
    { wait "$launcher" || code=$?; } 2>/dev/null # without the shell's own line on what was killed
    [ -z "${broken_at:-}" ] || exit_seconds=$(awk -v a="$broken_at" -v b="$(date +%s.%N)" 'BEGIN { printf "%.1f", b - a }')
    broken_at=""
    [ $((SECONDS - started_at)) -lt "${FAULTS_LIMIT:-90}" ] || fail "$current: did not end by itself"
}

run() {
    start "$@"
    finish
}

# Process ids of the ranks that run, by command line.
pids() {
    pgrep -f "^$FAULTS_PROGRAM train.*$mark" || true
}

mpirun_pid() {
    pgrep -f "^mpirun .*$mark" | head -n 1
}

# pid_of RANK
pid_of() {
    local pid
    for pid in $(pids); do
        grep -qaz "^OMPI_COMM_WORLD_RANK=$1\$" "/proc/$pid/environ" 2>/dev/null && echo "$pid" && return
    done
}

# The moment at which the fault happened: now, or the time at which the log said so.
break_now() {
    broken_at=$(date +%s.%N)
}

# Waits until a line of the log matches. usage: await NAME REGEX [SECONDS]
await() {
    local i
    for i in $(seq $((${3:-60} * 50))); do
        ! grep -qE "$2" "$work/$1.log" 2>/dev/null || return 0
        [ -z "$launcher" ] || kill -0 "$launcher" 2>/dev/null || break
        sleep 0.02
    done
    grep -qE "$2" "$work/$1.log" || fail "$1: no \"$2\" in its log"
}

# Waits until NAME has done STEP steps (its metrics say so).
await_step() {
    local i
    for i in $(seq 3000); do
        [ "$(steps_of "$1")" -lt "$2" ] || return 0
        kill -0 "$launcher" 2>/dev/null || break
        sleep 0.02
    done
    [ "$(steps_of "$1")" -ge "$2" ] || fail "$1: ended before step $2"
}

steps_of() {
    { wc -l <"$runs/$1/metrics.jsonl"; } 2>/dev/null || echo 0
}

# Step of the newest committed checkpoint, 0 for none.
committed() {
    local newest
    newest=$(ls "$runs/$1/checkpoints" 2>/dev/null | sed -nE 's/^step-0*([0-9]+)$/\1/p' | sort -n | tail -n 1)
    echo "${newest:-0}"
}

# Step from which the run NAME went on, 0 when from the start.
resumed_from() {
    local step
    step=$(sed -nE 's/.*resumed from .*: ([0-9]+) steps are done.*/\1/p' "$work/$1.log" | tail -n 1)
    echo "${step:-0}"
}

hash_of() {
    sha256sum <"$runs/$1/adapter/adapter_model.safetensors" | cut -d' ' -f1
}

# Hash of the adapter of a run that nothing happens to, on one rank; made once per cache and number of steps.
reference_hash() {
    local file=$cache/reference-$steps
    if [ ! -s "$file" ]; then
        (unset TANDEM_FAULT && run reference 1 && [ "$code" = 0 ]) || fail "the undisturbed run failed"
        hash_of reference >"$file.$$" && mv "$file.$$" "$file"
    fi
    cat "$file"
}

expect_code() {
    [ "$code" = "$1" ] || fail "$current: code $code, expected $1"
}

expect_failure() {
    [ "$code" != 0 ] && [ "$code" != 75 ] || fail "$current: code $code after the fault"
}

# No process of the run is left SECONDS after now.
expect_gone_within() {
    local until=$(($(date +%s%N) + $1 * patience * 1000000000))
    while [ -n "$(pids)" ] && [ "$(date +%s%N)" -lt "$until" ]; do
        sleep 0.05
    done
    [ -z "$(pids)" ] || fail "$current: processes are left: $(pids | tr '\n' ' ')"
}

# The time to exit was at most SECONDS.
expect_exit_within() {
    local most=$(($1 * patience))
    awk -v a="$exit_seconds" -v b="$most" 'BEGIN { exit !(a <= b) }' || fail "$current: took $exit_seconds s to end, at most $most expected"
}

expect_log() {
    grep -qE "$2" "$work/$1.log" || fail "$1: its log has no \"$2\""
}

# Exactly one line with an error.
expect_one_error() {
    local n
    n=$(grep -cE '^(\[[0-9]+\] )?error:' "$work/$1.log")
    [ "$n" = 1 ] || fail "$1: $n error lines, expected one"
}

# Runs NAME on to its end on RANKS and compares: nothing that was committed is lost, the adapter has the bits of the
# undisturbed run. usage: expect_recovery NAME RANKS [OPTION]...
expect_recovery() {
    local name=$1 ranks=$2 before
    shift 2
    before=$(committed "$name")
    unset TANDEM_FAULT
    cp "$work/$name.log" "$work/$name-broken.log" 2>/dev/null
    run "$name" "$ranks" --resume auto "$@"
    expect_code 0
    steps_lost=$((before - $(resumed_from "$name")))
    [ "$steps_lost" -ge 0 ] || steps_lost=0
    [ "$steps_lost" = 0 ] || fail "$name: step $before was committed, it went on from $(resumed_from "$name")"
    expect_same_bits "$name"
}

# A run that stopped after 8 steps on RANKS, with whole checkpoints of steps 6 and 8. usage: stopped_run NAME RANKS
stopped_run() {
    run "$1" "$2" --set stop_after_steps=8
    expect_code 75
    [ "$(committed "$1")" = 8 ] && [ -d "$runs/$1/checkpoints/step-000006" ] || fail "$1: no checkpoints of steps 6 and 8"
    newest=$runs/$1/checkpoints/step-000008
}

# The newest checkpoint (of step 8) was damaged in FILE: asked for by name it is refused, naming the file; left to itself
# the run goes on from the one before, with a warning, to the same bits. usage: expect_fallback NAME RANKS FILE
expect_fallback() {
    local name=$1 ranks=$2 file=$3
    run "$name" "$ranks" --resume "$newest"
    expect_code 3
    expect_log "$name" "^error: .*$file"
    expect_one_error "$name"
    run "$name" "$ranks" --resume auto
    expect_code 0
    expect_log "$name" "^warning: .*$file"
    [ "$(resumed_from "$name")" = 6 ] || fail "accepted: $name went on from $(resumed_from "$name"), not from step 6"
    expect_same_bits "$name"
}

# A random shard's name and the offset of a random byte of its raw data (a page's parameters or state).
pick_shard() {
    local shards
    mapfile -t shards < <(cd "$newest" && ls pages-*.h5)
    shard=${shards[$((RANDOM % ${#shards[@]}))]}
    shard_bytes=$(stat -c %s "$newest/$shard")
    offset=$(((RANDOM * 32768 + RANDOM) % shard_bytes))
}

# byte_at FILE OFFSET: as a number. set_bytes FILE OFFSET BYTE...
byte_at() {
    od -An -tu1 -j "$2" -N 1 "$1" | tr -d ' '
}

set_bytes() {
    local file=$1 at=$2 byte
    shift 2
    for byte in "$@"; do
        printf "\\x$(printf %02x "$byte")"
    done | dd of="$file" bs=1 seek="$at" conv=notrunc status=none
}

expect_same_bits() {
    local wanted
    wanted=$(reference_hash) || exit 1
    [ "$(hash_of "$1")" = "$wanted" ] || fail "$1: the adapter differs from the undisturbed run's"
    [ -z "$(ls -A "$runs/$1/checkpoints" | grep -vE '^(step-[0-9]+|latest)$')" ] || fail "$1: left behind: $(ls -A "$runs/$1/checkpoints" | tr '\n' ' ')"
}
