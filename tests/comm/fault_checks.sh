# Sourced by the scripts that break jobs on purpose: what must hold afterwards.
# Sets $folder for the notes of the ranks: pid.PID at their start, fault.PID when it happens; out and err are what they
# print. The script sets $exit_code and $ended.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
# Open MPI leaves memory behind; a sanitizer's report would change the exit code.
export ASAN_OPTIONS=detect_leaks=0
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
failures=0

fail() {
    echo "failed: $*"
    failures=$((failures + 1))
}

expect_exit() {
    [ "$exit_code" = "$1" ] || fail "exit code $exit_code, expected $1"
}

# A zombie is gone: it waits for its new parent only.
is_alive() {
    local state
    state=$(sed 's/.*) //; s/ .*//' "/proc/$1/stat" 2>/dev/null) && [ -n "$state" ] && [ "$state" != Z ]
}

# Seconds from the fault to the end of mpirun and of all ranks.
expect_gone_within() {
    local fault pid
    fault=$(stat -c %.9Y "$folder"/fault.* | head -1)
    for pid in $(basename -a "$folder"/pid.* | cut -d. -f2); do
        for _ in $(seq 50); do
            is_alive "$pid" || break
            sleep 0.1
            ended=$(date +%s.%N)
        done
        is_alive "$pid" && fail "rank with pid $pid is still there"
    done
    awk -v a="$fault" -v b="$ended" -v m="$1" 'BEGIN { printf "%.2f s from fault to end\n", b - a
                                                       exit !(b - a <= m) }' ||
        fail "took longer than $1 s"
}

expect_line() {
    grep -qE -- "$1" "$folder/err" || fail "no line like: $1"
}

# Lines that this program prints, from whatever rank.
expect_error_lines() {
    local lines
    lines=$(grep -c 'error: ' "$folder/err")
    [ "$lines" = "$1" ] || fail "$lines error lines, expected $1"
}

