# Checks and their record. Sourced by gpu_check.sh, which sets `work` (a folder), `quick`, and `deadline` (in SECONDS).
#
# A check is a function. It says what was seen with `figure`, and ends with `fail` when something is wrong. Its commands
# go through `run`, so that none outlasts the whole.

# check NAME FUNCTION [ARGUMENT]...
check() {
    check_name=$1
    check_folder=$work/$1
    shift
    mkdir -p "$check_folder"
    echo "$check_name" >>"$work/order"
    local start result=passed
    start=$(date +%s.%N)
    ("$@") </dev/null >"$check_folder/log" 2>&1 || result=failed
    echo "$result" >"$check_folder/result"
    awk -v a="$start" -v b="$(date +%s.%N)" 'BEGIN { printf "%.1f\n", b - a }' >"$check_folder/seconds"
    # A check that ended by itself, in a way that it did not foresee, shows the end of what it printed.
    if [ "$result" = failed ] && [ ! -s "$check_folder/message" ]; then
        tail -n 3 "$check_folder/log" | tr '\n' ' ' >"$check_folder/message"
    fi
    printf '%-6s %-18s %6s s  %s\n' "$([ "$result" = passed ] && echo ok || echo FAILED)" "$check_name" \
        "$(cat "$check_folder/seconds")" "$(summary "$check_folder")"
}

summary() {
    [ ! -s "$1/message" ] || { head -c 300 "$1/message" && return; }
    [ ! -s "$1/figures" ] || tr '\n' ',' <"$1/figures" | sed 's/"//g; s/,$//; s/,/, /g'
}

fail() {
    echo "$*" >"$check_folder/message"
    exit 1
}

# figure KEY NUMBER, or text, which is quoted
figure() {
    if [[ $2 =~ ^-?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?$ ]]; then
        echo "\"$1\": $2"
    else
        echo "\"$1\": $(quoted "$2")"
    fi >>"$check_folder/figures"
}

quoted() {
    printf '"%s"' "$(printf '%s' "$1" | tr '\n\t' '  ' | tr -d '\000-\037' | sed 's/\\/\\\\/g; s/"/\\"/g')"
}

# run LIMIT COMMAND...: its code, 124 when it took longer than LIMIT seconds or than all checks may
run() {
    local limit=$1 left=$((deadline - SECONDS))
    shift
    [ "$left" -gt 0 ] || return 124
    timeout --kill-after=5 $((limit < left ? limit : left)) "$@"
}

# What a failed command says about itself: its own last line that names an error, or its code.
why() {
    local line
    line=$(grep -aE '^error|FAILED|[Ee]rror' "$2" | tail -n 1)
    [ "$1" = 124 ] && line="not done in time. $line"
    echo "code $1: ${line:-$(tail -n 1 "$2")}"
}

# The record, one JSON object. usage: write_record FILE PASSED KEY VALUE...
write_record() {
    local file=$1 passed=$2 name separator=""
    shift 2
    {
        printf '{"date": "%s", "passed": %s, "seconds": %d,\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$passed" "$SECONDS"
        while [ $# -gt 1 ]; do
            printf ' "%s": %s,\n' "$1" "$(quoted "$2")"
            shift 2
        done
        printf ' "checks": ['
        while read -r name; do
            printf '%s\n  {"name": "%s", "result": "%s", "seconds": %s' "$separator" "$name" \
                "$(cat "$work/$name/result")" "$(cat "$work/$name/seconds")"
            [ ! -s "$work/$name/message" ] || printf ', "message": %s' "$(quoted "$(cat "$work/$name/message")")"
            [ ! -s "$work/$name/figures" ] || printf ', %s' "$(tr '\n' ',' <"$work/$name/figures" | sed 's/,$//; s/,"/, "/g')"
            printf '}'
            separator=,
        done <"$work/order"
        printf '\n ],\n "timings": ['
        separator=""
        while read -r name; do
            printf '%s\n  %s' "$separator" "$(quoted "$name")"
            separator=,
        done < <(cat "$work"/timings 2>/dev/null)
        printf '\n ]}\n'
    } >"$file"
}
