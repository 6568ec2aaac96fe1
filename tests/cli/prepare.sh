#!/usr/bin/env bash
# Preparing data from outside: the same bytes on any ranks and threads, nothing to do twice, what train finds, a rank that is
# killed, refusals that leave nothing behind. usage: prepare.sh TANDEM CHATS SOURCE
set -uo pipefail
tandem=$1 chats=$2 source=$3
folder=$(mktemp -d)
mounted= background=
# mpirun and ranks at once; the path of the output folder is in no other command line.
end_all() {
    pgrep -f "output_dir=$folder/$1" | xargs -r kill -9
}
cleanup() {
    [ -n "$background" ] && end_all killed
    [ -n "$mounted" ] && umount "$mounted"
    rm -rf "$folder"
}
trap cleanup EXIT
export OMP_NUM_THREADS=1
ranks=$source/launch/mpirun.sh
failed=0

report() {
    if [ "$1" -eq 0 ]; then
        echo "ok     $2"
    else
        echo "FAILED $2"
        tail -n 20 "$folder/log" | sed 's/^/    /'
        failed=1
    fi
}

# prepare RANKS THREADS NAME [OPTION]...
prepare() {
    local n=$1 threads=$2 name=$3
    shift 3
    OMP_NUM_THREADS=$threads timeout 100 "$ranks" "$n" "$tandem" prepare --set max_length=128 \
        --set model_name_or_path="$source/launch/quickstart/base" --set train_files="$folder/rows" \
        --set output_dir="$folder/$name" "$@" >"$folder/log" 2>&1
}

# refuse NAME CODE PATTERN RANKS OPTION...: one line says it, and nothing is left behind.
refuse() {
    local name=$1 code=$2 pattern=$3 n=$4 got=0
    shift 4
    rm -rf "$folder/refused"
    prepare "$n" 1 refused "$@" || got=$?
    [ "$got" -eq "$code" ] && [ "$(grep -cE "^error: .*($pattern)" "$folder/log")" -eq 1 ] &&
        [ -z "$(ls -A "$folder/refused/data" 2>/dev/null)" ]
    report $? "$name"
}

same_files() {
    for file in train.h5 eval.h5 test.h5 train.json; do
        cmp "$folder/$1/data/$file" "$folder/$2/data/$file" >>"$folder/log" 2>&1 || return 1
    done
}

"$chats" --seed 5 --train 1500 --heldout 40 --out "$folder" >/dev/null
mkdir "$folder/rows"
head -n 700 "$folder/train.jsonl" >"$folder/rows/a.jsonl"
tail -n 800 "$folder/train.jsonl" | gzip >"$folder/rows/b.jsonl.gz"
head -n 60 "$folder/train.jsonl" >"$folder/rows/c.jsonl"

choices=(--set eval_split_ratio=0.1 --set test_split_ratio=0.05 --set deduplicate=near --set max_prompt_words=40)
prepare 1 1 one "${choices[@]}"
report $? "one rank"
for layout in "1 3" "2 1" "3 2"; do
    set -- $layout
    prepare "$1" "$2" "r$1" "${choices[@]}" && same_files one "r$1"
    report $? "$1 ranks of $2 threads write the same bytes"
    rm -rf "$folder/r$1"
done
grep -q '"exact_duplicate"' "$folder/one/data/train.json" && grep -A 3 '"exact_duplicate"' "$folder/one/data/train.json" | grep -q 'c.jsonl:1'
report $? "the account has the duplicates with an example"
[ -z "$(ls "$folder/one/data" | grep -E 'parts|tmp')" ]
report $? "no temporary is left"

prepare 2 1 one "${choices[@]}" && grep -q 'nothing to do' "$folder/log"
report $? "a second run does nothing"
prepare 1 1 one "${choices[@]}" --set seed=7 && ! grep -q 'nothing to do' "$folder/log"
report $? "another seed divides anew"

# Rows written as JSON Lines make the store they came from.
prepare 2 1 one "${choices[@]}" --jsonl "$folder/jsonl" &&
    prepare 1 1 again --set train_files="$folder/jsonl/train.jsonl" &&
    [ "$("$tandem" inspect "$folder/one/data/train.h5" 2>>"$folder/log" | grep -i 'hash')" = \
      "$("$tandem" inspect "$folder/again/data/train.h5" 2>>"$folder/log" | grep -i 'hash')" ] &&
    "$tandem" inspect "$folder/again/data/train.h5" | grep -i hash >/dev/null && [ "$(wc -l <"$folder/jsonl/eval.jsonl")" -gt 50 ]
report $? "rows written as JSON Lines make the same store"

# train makes the same stores, or finds them.
train() {
    timeout 100 "$ranks" 2 "$tandem" train --set max_length=128 --set device=cpu \
        --set model_name_or_path="$source/launch/quickstart/base" --set train_files="$folder/rows" --set max_steps=1 \
        --set gradient_accumulation_steps=1 --set output_dir="$folder/$1" "${choices[@]}" >"$folder/log" 2>&1
}
prepare 1 1 found "${choices[@]}" && train found && ! grep -q 'prepared' "$folder/log"
report $? "train finds what prepare wrote"
train made && grep -q 'prepared .*train.h5' "$folder/log" && same_files made found
report $? "train on two ranks makes the same"

prepare 2 1 overlap --set eval_files="$folder/rows/c.jsonl" && grep -q '60 evaluation rows are duplicates of training rows' "$folder/log" &&
    grep -q '"rows_in_training":[[:space:]]*60' "$folder/overlap/data/eval.json"
report $? "evaluation rows that are training rows are counted"

# A rank is killed while parts are written.
mkdir "$folder/many"
for n in 1 2 3 4 5 6 7 8 9 10 11 12; do
    sed "s/\"role\": *\"user\", *\"content\": *\"/&$n /" "$folder/train.jsonl" >"$folder/many/$n.jsonl"
done
many=(--set train_files="$folder/many" --set deduplicate=exact)
prepare 2 1 whole "${many[@]}"
report $? "a longer preparation"
OMP_NUM_THREADS=1 "$ranks" 2 "$tandem" prepare --set max_length=128 --set model_name_or_path="$source/launch/quickstart/base" \
    --set output_dir="$folder/killed" "${many[@]}" >"$folder/log" 2>&1 &
background=$!
parts=$folder/killed/data/train.h5.parts
for _ in $(seq 1000); do
    [ -s "$parts/rank-00001.rows" ] && break
    sleep 0.01
done
[ -s "$parts/rank-00001.rows" ] && end_all killed
report $? "killed while it writes parts"
wait "$background" 2>/dev/null
background=
[ -d "$parts" ] && [ ! -e "$folder/killed/data/train.h5" ]
report $? "a killed preparation leaves parts and no store"
prepare 2 1 killed "${many[@]}" && cmp "$folder/killed/data/train.h5" "$folder/whole/data/train.h5" && [ ! -e "$parts" ]
report $? "the next run clears them and ends with the same store"

# Refusals.
: >"$folder/empty.jsonl"
refuse "empty input" 3 'empty.jsonl: no rows: the file is empty' 2 --set train_files="$folder/empty.jsonl"
refuse "everything is dropped" 3 'no rows left.*of 1560 read: 1560 longer than max_length' 1 --set max_length=4
refuse "a pattern without files" 3 'nothing\*' 1 --set train_files="$folder/nothing*.jsonl"
{ head -n 300 "$folder/train.jsonl"; echo '{"messages": 3}'; head -n 99 "$folder/train.jsonl"; } >"$folder/bad.jsonl"
refuse "a bad row" 3 'bad.jsonl:301: ' 3 --set train_files="$folder/bad.jsonl"
head -n 300 "$folder/train.jsonl" | gzip | head -c 3000 >"$folder/short.gz"
refuse "damaged compressed data" 3 'short.gz' 2 --set train_files="$folder/short.gz"
refuse "a folder that cannot be made" 5 '/proc/nowhere' 2 --set output_dir=/proc/nowhere/out
refuse "a pattern that is none" 2 'drop_matching' 1 --set 'drop_matching=["("]'
refuse "splits that leave nothing" 2 'eval_split_ratio and test_split_ratio' 1 --set eval_split_ratio=0.6 --set test_split_ratio=0.4
refuse "no train files" 2 'train_files is empty' 1 --set 'train_files=[]'

mkdir -p "$folder/locked/data"
exec 9<"$folder/locked/data"
flock 9
got=0
prepare 2 1 locked || got=$?
exec 9<&-
[ "$got" -eq 5 ] && grep -q 'another run is preparing data here' "$folder/log"
report $? "another run in the same folder"

mkdir "$folder/small"
if mount -t tmpfs -o size=300k tmpfs "$folder/small" 2>/dev/null; then
    mounted=$folder/small
    refuse "no disk space" 5 'disk|space' 2 --set output_dir="$folder/small/out"
    [ -z "$(ls -A "$folder/small/out/data" 2>/dev/null)" ]
    report $? "no disk space: nothing is left"
else
    echo "skipped no disk space: mounting a small file system needs root"
fi
exit "$failed"
