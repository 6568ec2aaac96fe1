# Sourced by the scripts beside it: a scratch $folder that is removed at the end, and checks that print a line each. The script ends
# with exit "$failed".
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export OMP_NUM_THREADS=1
failed=0

# report CODE NAME: after a failure, with what was printed to out, err or log of $folder.
report() {
    local name
    if [ "$1" -eq 0 ]; then
        echo "ok     $2"
        return
    fi
    echo "FAILED $2"
    for name in out err log; do
        [ ! -f "$folder/$name" ] || sed 's/^/    /' "$folder/$name"
    done
    failed=1
}

# expect NAME CODE PATTERN COMMAND...: the pattern is looked for in what is printed.
expect() {
    local name=$1 code=$2 pattern=$3 got=0
    shift 3
    timeout 60 "$@" >"$folder/out" 2>"$folder/err" || got=$?
    [ "$got" -eq "$code" ] && grep -qE -- "$pattern" "$folder/out" "$folder/err"
    report $? "$name"
}
