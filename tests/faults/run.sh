#!/usr/bin/env bash
# Runs the cases with random seeds and prints a table of what came of them.
# usage: run.sh [--runs N] [--case NN]... [--seed S] [--build FOLDER] [--record FILE] [--table]
#   --runs N      runs of each case (1)             --case NN      only this one; may be repeated
#   --seed S      seed of the first run (random)    --build FOLDER the build tree (build/release)
#   --record FILE lines are added to FILE (by default one of its own, thrown away)
#   --table       runs nothing: the table of --record
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
source=$(dirname "$(dirname "$here")")
runs=1 seed=$RANDOM build=$source/build/release record="" table="" only=()
while [ $# -gt 0 ]; do
    case $1 in
    --runs) runs=$2 && shift ;;
    --case) only+=("$2") && shift ;;
    --seed) seed=$2 && shift ;;
    --build) build=$2 && shift ;;
    --record) record=$2 && shift ;;
    --table) table=yes ;;
    *) sed -n 3,7p "$0" >&2 && exit 2 ;;
    esac
    shift
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
record=${record:-$work/record.tsv}
export FAULTS_PROGRAM=${FAULTS_PROGRAM:-$build/tests/tandem_faulty} FAULTS_CHATS=${FAULTS_CHATS:-$build/quickstart_chats}
export FAULTS_SOURCE=$source FAULTS_CACHE=$work/cache FAULTS_RECORD=$record FAULTS_BUILD=$build

# One line per case. A run that was not survived is a hang when its remark says that it did not end, and a wrong result when
# an adapter or what was loaded differed.
print_table() {
    sort -n "$record" | awk -F'\t' '
        { n[$1]++; if (!($1 in n_ok)) { order[++cases] = $1; n_ok[$1] = 0 } }
        $3 == "survived" { n_ok[$1]++ }
        $3 == "skipped" { n_skip[$1]++ }
        $3 == "failed" && $6 ~ /did not end|processes are left|to end, at most/ { hangs[$1]++ }
        $3 == "failed" && $6 ~ /differs|accepted/ { wrong[$1]++ }
        $4 > worst[$1] { worst[$1] = $4 }
        $5 > lost[$1] { lost[$1] = $5 }
        { all++; all_ok += $3 == "survived"; all_skip += $3 == "skipped" }
        END {
            print "| case | runs | survived | skipped | hangs | wrong numbers | longest exit, s | committed steps lost |"
            print "|---|---|---|---|---|---|---|---|"
            for (i = 1; i <= cases; i++) {
                c = order[i]
                printf "| %s | %d | %d | %d | %d | %d | %.1f | %d |\n", c, n[c], n_ok[c], n_skip[c], hangs[c], wrong[c], worst[c], lost[c]
            }
            printf "%d runs, %d survived, %d skipped\n", all, all_ok, all_skip
            exit all_ok + all_skip != all
        }'
}

if [ -z "$table" ]; then
    for i in $(seq "$runs"); do
        for case_file in "$here"/case_*.sh; do
            number=$(basename "$case_file" | sed -nE 's/^case_0*([0-9]+)_.*/\1/p')
            [ ${#only[@]} -eq 0 ] || [[ " ${only[*]#0} " == *" $number "* ]] || continue
            bash "$case_file" $((seed + i - 1))
        done
    done
fi
[ -s "$record" ] || { echo "no such case, or an empty record" >&2; exit 2; }
print_table
