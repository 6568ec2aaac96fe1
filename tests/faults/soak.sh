#!/usr/bin/env bash
# A long training job that is killed again and again: kill -9 of a random rank, of mpirun, or of all at once, at random
# moments (saves included), until N kills were done; each restart goes on from the newest whole checkpoint. The final adapter
# must equal that of an undisturbed run. usage: soak.sh --runs N [--seed S] [--build FOLDER] [--ranks MOST]
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
source=$(dirname "$(dirname "$here")")
kills=100 seed=$RANDOM build=$source/build/release most=3
while [ $# -gt 0 ]; do
    case $1 in
    --runs) kills=$2 && shift ;;
    --seed) seed=$2 && shift ;;
    --build) build=$2 && shift ;;
    --ranks) most=$2 && shift ;;
    *) sed -n 4p "$0" >&2 && exit 2 ;;
    esac
    shift
done
export FAULTS_PROGRAM=${FAULTS_PROGRAM:-$build/tests/tandem_faulty} FAULTS_CHATS=${FAULTS_CHATS:-$build/quickstart_chats} FAULTS_SOURCE=$source
export FAULTS_LIMIT=300
. "$here/lib.sh"
steps=40
begin soak "random kills" "$seed"
reference_hash >/dev/null || exit 1
done_kills=0 job=0 worst=0 lost=0 died_by=(0 0 0) restarts=0

# Waits until the job has made some steps since its start, or SECONDS; then a random part of a step more.
wait_a_little() {
    local until=$((SECONDS + 20)) wanted=$(($(steps_of "$1") + $(random 0 6)))
    while [ "$SECONDS" -lt "$until" ] && kill -0 "$launcher" 2>/dev/null && [ "$(steps_of "$1")" -lt "$wanted" ]; do
        sleep 0.02
    done
    sleep "0.$(printf '%03d' "$(random 0 300)")"
}

# 0: one rank, 1: mpirun, 2: everything
strike() {
    local victims how=$1
    case $how in
    0) mapfile -t victims < <(pids) && victims=("${victims[$((RANDOM % (${#victims[@]} ? ${#victims[@]} : 1)))]:-}") ;;
    1) victims=("$(mpirun_pid)") ;;
    2) mapfile -t victims < <(pids) && victims+=("$(mpirun_pid)") ;;
    esac
    [ -n "${victims[0]}" ] || return 1
    kill -9 "${victims[@]}" 2>/dev/null || return 1
}

while [ "$done_kills" -lt "$kills" ]; do
    job=$((job + 1)) name=job$job
    while :; do
        before=$(committed "$name")
        start "$name" "$(random 1 "$most")" --resume auto --set load_best_model_at_end=false
        restarts=$((restarts + 1))
        [ "$done_kills" -ge "$kills" ] || wait_a_little "$name"
        how=$(random 0 2)
        if [ "$done_kills" -lt "$kills" ] && strike "$how"; then
            broken_at=$(date +%s.%N)
            done_kills=$((done_kills + 1)) died_by[how]=$((died_by[how] + 1))
        fi
        finish
        expect_gone_within 10
        [ "$(committed "$name")" -ge "$before" ] || fail "$name: step $before was committed, now the newest is $(committed "$name")"
        [ "$before" = 0 ] || ! grep -q '^.*resumed from' "$work/$name.log" || [ "$(resumed_from "$name")" -ge "$before" ] ||
            fail "$name: step $before was committed, it went on from $(resumed_from "$name")"
        worst=$(awk -v a="$worst" -v b="$exit_seconds" 'BEGIN { print (a > b ? a : b) }') exit_seconds=0
        [ "$code" != 0 ] || break
        ! grep -qE '^error: ' "$work/$name.log" || grep -qE '^error: .*(rank|peer|launcher|mpirun)' "$work/$name.log" ||
            fail "$name: $(grep -m 1 '^error: ' "$work/$name.log")"
    done
    expect_same_bits "$name"
    rm -rf "${runs:?}/$name"
    [ $((job % 5)) != 0 ] || echo "$done_kills kills, $job jobs, $restarts starts"
done
exit_seconds=$worst
pass "$done_kills kills (${died_by[0]} of a rank, ${died_by[1]} of mpirun, ${died_by[2]} of all), $job jobs, $restarts starts, all with the undisturbed run's adapter"
