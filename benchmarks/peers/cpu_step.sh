#!/usr/bin/env bash
# The training step on a CPU beside its peers, alternating in one run, like with like in two precisions: tandem beside PEFT +
# bitsandbytes NF4 and PyTorch LoRA, all in fp32; and tandem_medium (float32_matmul_precision medium: products of bf16 operands)
# beside PEFT + bitsandbytes NF4 with a bf16 model and bf16 compute. Same shape, tokens, LoRA rank and threads.
# The peers stay in memory between rounds, idle (the CPU time that they take meanwhile is in the record), so that a round is made of
# steps and not of building models; each has done a step of up to 512 tokens before. What does not fit beside a peer is stopped for it
# and built again. Prints each measurement as a JSON line to the record, then medians, spreads and ratios.
# PyTorch's own medium (fp32_medium, nf4_medium) is no peer by default: oneDNN takes bf16 operands for it only on CPUs with AMX.
# With AVX-512 alone its kernel for it is another fp32 one, 8 to 15 % faster than MKL's on a Zen 4 and half as fast as that for bf16.
# usage: benchmarks/peers/cpu_step.sh PYTHON SHAPE SEQ THREADS ROUNDS RECORD [STEPS [SECONDS]]
#   PYTHON    has torch, transformers, peft, bitsandbytes (tests/reference/requirements.txt)
#   SHAPE     a folder of configs/shapes
#   STEPS     timed steps of each in a round (1)
#   SECONDS   no round is started that would end later than this; at 6/5 of it what runs is stopped (no limit)
#   PEERS         environment: variants of torch_step.py, in order ("nf4 fp32 nf4_bf16")
#   CPU_STEP_GIB  environment: what all of it may take in memory (22, or what is available if that is less)
set -euo pipefail
cd "$(dirname "$0")/../.."
[ $# -ge 6 ] || { sed -n '10,16s/^# //p' "$0" >&2; exit 2; }
python=$1 shape=$2 seq=$3 threads=$4 rounds=$5 record=$6 steps=${7:-1} limit=${8:-}
tandem=${TANDEM:-build/release/tandem}
read -ra peers <<<"${PEERS:-nf4 fp32 nf4_bf16}"
export OMP_NUM_THREADS=$threads
work=$(mktemp -d)
# By the name of a process: its id, its pipes. By variant: why it is not measured, its highest peak in MiB.
declare -A pid ask answer left_out peak
trap 'for each in "${!pid[@]}"; do kill "${pid[$each]}" 2>/dev/null || true; done; rm -rf "$work"' EXIT

die() {
    echo "cpu_step: $*" >&2
    exit 1
}
leave_out() {
    left_out[$1]=$2
    echo "cpu_step: $1 is left out: $2" >&2
}
# Seconds until what runs is stopped.
left() {
    local seconds=$((${limit:-100000} * 6 / 5 - SECONDS))
    echo $((seconds > 1 ? seconds : 1))
}

# Whether products of this peer take bf16 operands, or may do so.
is_half() {
    [[ $1 == *_bf16 || $1 == *_medium ]]
}

machine() {
    local cpu
    cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)
    printf '{"machine": "%s", "cores": %s, "memory_kib": %s, "memory_available_kib": %s, "load_average": %s, "commit": "%s", "date": "%s", "command": "%s"}\n' \
        "$cpu" "$(nproc --all)" "$(awk '/MemTotal/ {print $2}' /proc/meminfo)" "$(awk '/MemAvailable/ {print $2}' /proc/meminfo)" \
        "$(cut -d' ' -f1 /proc/loadavg)" "$(git rev-parse --short HEAD)" "$(date -u +%Y-%m-%d)" \
        "benchmarks/peers/cpu_step.sh PYTHON $shape $seq $threads $rounds RECORD $steps${limit:+ $limit}"
}

# --- memory ------------------------------------------------------------------------------------------------------------------------

# MiB that a peer can take: weights in fp32, logits and their gradients, what blocks keep, and 1 GiB of libraries.
expected() {
    awk -v seq="$seq" '
        { for (key in size) if (match($0, "\"" key "\": *[0-9]+")) { split(substr($0, RSTART, RLENGTH), at, ":"); size[key] = at[2] + 0 } }
        BEGIN { split("hidden_size intermediate_size num_hidden_layers vocab_size", keys, " "); for (i in keys) size[keys[i]] = 0 }
        END {
            h = size["hidden_size"]; f = size["intermediate_size"]; n = size["num_hidden_layers"]; v = size["vocab_size"]
            printf "%d\n", 1024 + 4 * (2 * v * h + n * (4 * h * h + 3 * h * f) + seq * (4.5 * v + n * (8 * h + 5 * f))) / 1048576
        }' "$shape/config.json"
}
resident() {
    awk '/^VmRSS/ {print int($2 / 1024)}' "/proc/${pid[$1]}/status"
}
# Stops peers, the largest first, until `needed` MiB fit beside those that are left. usage: make_room NAME MIB
make_room() {
    local name=$1 needed=$2 each taken most most_name
    [ "$needed" -le "$memory" ] || return 1
    while :; do
        taken=0 most=-1 most_name=""
        for each in "${!pid[@]}"; do
            [ "$each" != "$name" ] || continue
            taken=$((taken + $(resident "$each")))
            [ "$(resident "$each")" -le "$most" ] || { most=$(resident "$each") && most_name=$each; }
        done
        [ $((taken + needed)) -gt "$memory" ] || return 0
        stop "$most_name"
    done
}

# --- peers: one process for a variant and its _medium ------------------------------------------------------------------------------

# Starts a process and waits until it has built its model and done a step.
start() {
    local name=$1 line="" from=$SECONDS
    mkfifo "$work/$name.in" "$work/$name.out"
    "$python" benchmarks/peers/torch_step.py --config "$shape" --seq "$seq" --rank 16 --threads "$threads" \
        --variant "$name" --serve <"$work/$name.in" >"$work/$name.out" 2>"$work/$name.log" &
    pid[$name]=$!
    exec {ask[$name]}>"$work/$name.in" {answer[$name]}<"$work/$name.out"
    rm "$work/$name.in" "$work/$name.out"
    read -r -t "$(left)" line <&"${answer[$name]}" && [[ $line == *'"ready"'* ]] || return 1
    building=$((building + SECONDS - from))
}
stop() {
    kill "${pid[$1]}" 2>/dev/null || true
    wait "${pid[$1]}" 2>/dev/null || true
    exec {ask[$1]}>&- {answer[$1]}<&-
    unset "pid[$1]"
    stopped=1
}
# usage: peer VARIANT
peer() {
    local variant=$1 name=${1%_medium} line="" precision=highest
    [ -z "${left_out[$variant]:-}" ] || return 0
    [ "$name" = "$variant" ] || precision=medium
    make_room "$name" "${peak[$variant]:-$(expected)}" ||
        { leave_out "$variant" "it takes about ${peak[$variant]:-$(expected)} MiB of memory, $memory are there" && return; }
    if { [ -n "${pid[$name]:-}" ] || start "$name"; } && echo "$steps $precision" >&"${ask[$name]}" &&
        read -r -t "$(left)" line <&"${answer[$name]}"; then
        echo "${line/#\{/\{\"round\": $round, }" | sed -E 's/^\{("round": [0-9]+), ("variant": "[^"]*")/{\2, \1/' >>"$record"
        peak[$variant]=$(("$(last_number peak_resident_bytes)" / 1048576))
        return
    fi
    line=$(tail -n 1 "$work/$name.log")
    stop "$name"
    leave_out "$variant" "${line:-it was not done in time, or was killed}"
}
last_number() {
    tail -n 1 "$record" | sed -E "s/.*\"$1\": *([0-9]+).*/\1/"
}

# Seconds of CPU that all peers have had.
peers_cpu() {
    local each
    for each in "${!pid[@]}"; do
        sed 's/.*) //' "/proc/${pid[$each]}/stat"
    done | awk -v hz="$(getconf CLK_TCK)" '{ticks += $12 + $13} END {printf "%.2f\n", ticks / hz}'
}
# usage: ours VARIANT [OPTION...]
ours() {
    local variant=$1 load before why
    shift
    [ -z "${left_out[$variant]:-}" ] || return 0
    make_room "" "${peak[tandem]:-$(expected)}" || die "a step takes about $(expected) MiB of memory, $memory are there"
    load=$(cut -d' ' -f1 /proc/loadavg) before=$(peers_cpu)
    if ! timeout --kill-after=5 "$(left)" "$tandem" bench step --shape "$shape" --seq "$seq" --steps "$steps" --json --set device=cpu \
        --set lora_r=16 --set lora_alpha=32 --set lora_dropout=0 --set gradient_checkpointing=none "$@" >"$work/out" 2>"$work/log"; then
        why=$(grep -a '^error' "$work/log" | tail -n 1) || why="it was not done in time"
        [ "$variant" != tandem ] || [ "$round" != 1 ] || die "tandem: $why"
        leave_out "$variant" "$why"
        return
    fi
    tr -s '\n\t' '  ' <"$work/out" | sed "s/^ *{/{\"variant\": \"$variant\", \"round\": $round, \"load_average_then\": $load, \"peers_cpu_seconds\": $(
        awk -v a="$before" -v b="$(peers_cpu)" 'BEGIN {printf "%.2f", b - a}'), /; s/ *\$/\n/" >>"$record"
    peak[tandem]=$(awk -v b="$(of "$variant" peak_bytes | tail -n 1)" 'BEGIN {printf "%d", b / 1048576}')
}

# --- what was found ----------------------------------------------------------------------------------------------------------------

# usage: by_round VARIANT KEY: "ROUND NUMBER" a line
by_round() {
    { grep "^{\"variant\": \"$1\"," "$record" || true; } | sed -E "s/.*\"round\": ([0-9]+),.*\"($2)\": *([-0-9.e+]+).*/\1 \3/"
}
of() {
    by_round "$@" | cut -d' ' -f2 | sort -g
}
# Of numbers, one a line: "MEDIAN LEAST MOST"
spread() {
    sort -g | awk '{v[NR] = $1} END {if (NR) print (NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2), v[1], v[NR]}'
}
median() {
    of "$@" | spread | cut -d' ' -f1
}
rate="tokens_per_second|tokens_per_s"
memory_key="peak_bytes|peak_resident_bytes"

# Products of a step (as tandem counts them) over the seconds that a peer takes, of what its library reaches in a large product.
share() {
    case $1 in
    tandem*) echo "$(median "$1" gemm_share) $(median "$1" gemm_peak_flops)" ;;
    *) awk -v f="$(median tandem gemm_flops)" -v s="$(median "$1" step_s)" -v p="$(median "$1" gemm_flops)" 'BEGIN {print f / s / p, p}' ;;
    esac
}
row() {
    if [ -z "$(of "$1" "$rate")" ]; then
        echo "  $1: not measured: ${left_out[$1]:-no time}"
        return
    fi
    awk -v n="$1" -v r="$(of "$1" "$rate" | spread)" -v b="$(median "$1" "$memory_key")" -v g="$(share "$1")" 'BEGIN {
        split(r, at, " "); split(g, of, " ")
        printf "  %-13s %8.1f tokens/s (%.1f to %.1f), peak %5.0f MiB, products at %.1f %% of %.0f GFLOP/s\n", n, at[1], at[2], at[3],
            b / 1048576, 100 * of[1], of[2] * 1e-9 }'
}
# Ratios round by round: what slows the machine down for a while slows both. usage: ratio OURS PEER
ratio() {
    join <(by_round "$1" "$rate") <(by_round "$2" "$rate") | awk '{print $2 / $3}' | spread |
        awk -v a="$1" -v b="$2" -v m="$(median "$1" "$memory_key")" -v p="$(median "$2" "$memory_key")" \
            '{printf "  %s / %s = %.2f (%.2f to %.2f), by rounds; memory %.2f of its\n", a, b, $1, $2, $3, m / p}'
}
# usage: fastest WHERE PEER...
fastest() {
    local variant where=$1
    shift
    for variant in "$@"; do
        echo "$(median "$variant" "$rate") $variant"
    done | sort -g | awk -v where="$where" 'NF == 2 {n++; name = $2} END {if (n > 1) print "  the fastest peer " where " is " name}'
}

summary() {
    local variant full=() half=()
    echo "$shape, seq $seq, $threads threads, $done rounds of $steps, load $(sed -nE '1s/.*"load_average": ([0-9.]+).*/\1/p' "$record") at the start, idle peers took $(
        { of tandem peers_cpu_seconds && of tandem_medium peers_cpu_seconds; } | awk '{s += $1} END {printf "%.2f", s}') s of CPU; tokens/s = tokens of a step / median step"
    for variant in tandem tandem_medium "${peers[@]}"; do
        row "$variant"
        [[ $variant != tandem* ]] || continue
        if is_half "$variant"; then half+=("$variant"); else full+=("$variant"); fi
    done
    for variant in ${full[@]+"${full[@]}"}; do ratio tandem "$variant"; done
    for variant in ${half[@]+"${half[@]}"}; do ratio tandem_medium "$variant"; done
    fastest "in fp32" ${full[@]+"${full[@]}"}
    fastest "with products in bf16" ${half[@]+"${half[@]}"}
}

memory=$(awk -v most=$((${CPU_STEP_GIB:-22} * 1024)) '/MemAvailable/ {m = int($2 / 1024); print m < most ? m : most}' /proc/meminfo)
mkdir -p "$(dirname "$record")"
machine >"$record"
done=0 building=0 stopped=0
while [ "$done" -lt "$rounds" ]; do
    began=$SECONDS round=$((done + 1)) before=fp32 building=0
    ours tandem
    for variant in "${peers[@]}"; do
        if is_half "$variant" && [ "$before" = fp32 ]; then
            ours tandem_medium --set float32_matmul_precision=medium
            before=bf16
        fi
        peer "$variant"
    done
    done=$((done + 1))
    # Models are built once, unless there is no room to keep them.
    [ "$stopped" = 1 ] || began=$((began + building))
    if [ -n "$limit" ] && [ "$done" -lt "$rounds" ] && [ $((SECONDS + 11 * (SECONDS - began) / 10)) -gt "$limit" ]; then
        echo "cpu_step: $done of $rounds rounds: another one would end later than $limit s" >&2
        break
    fi
done
summary
