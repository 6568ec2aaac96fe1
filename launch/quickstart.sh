#!/usr/bin/env bash
# From a bare Debian 12 to a fine-tuned adapter: installs what is missing, builds, and teaches the bundled base model, on two
# ranks, to answer requests with JSON tool calls. In an unpacked bundle nothing is installed or built.
# usage: launch/quickstart.sh
set -euo pipefail
cd "$(dirname "$0")/.."

folder=runs/quickstart
config=configs/quickstart.json
ranks=${TANDEM_QUICKSTART_RANKS:-2}
device=${TANDEM_QUICKSTART_DEVICE:-cpu} # a machine with one GPU has none for the second rank

if [ -x bin/tandem ]; then
    programs=bin
    PATH=$PWD/bin:$PATH # for its mpirun
else
    programs=build/release
    launch/dependencies.sh
    launch/build.sh release tandem quickstart_chats
fi
tandem=$programs/tandem

rm -rf "$folder"
mkdir -p "$folder/chats"
"$programs/quickstart_chats" --seed 1 --train "${TANDEM_QUICKSTART_ROWS:-6400}" --heldout 200 --out "$folder/chats"

# One figure of a one-line JSON object.
figure() {
    sed -E "s/.*\"$1\": ([-0-9.e+]+).*/\1/" <<<"$2"
}

evaluate() {
    launch/mpirun.sh "$ranks" "$tandem" evaluate "$config" --set device="$device" --exact-match --max-new-tokens 96 --json "$@"
}

percent() {
    awk -v share="$(figure exact_match "$1")" 'BEGIN { printf "%.1f %%", 100 * share }'
}

# What ROLE says in a row of chats, with the JSON escapes of quotes undone.
said() {
    sed -E -e "s/.*\"role\":\"$1\",\"content\":\"(([^\"\\]|\\\\.)*)\".*/\1/" -e 's/\\(["\\])/\1/g' <<<"$2"
}

start=$SECONDS
echo "== held-out tool calls before training"
before=$(evaluate)
echo "== training on $ranks ranks"
launch/mpirun.sh "$ranks" "$tandem" train "$config" --set device="$device"
echo "== held-out tool calls after training"
after=$(evaluate --adapter "$folder/run/adapter")

echo
echo "                 before      after"
printf 'exact match  %10s %10s   (%s held-out requests; no argument value of theirs occurs in training)\n' \
    "$(percent "$before")" "$(percent "$after")" "$(figure rows "$after")"
printf 'eval loss    %10.4f %10.4f\n' "$(figure loss "$before")" "$(figure loss "$after")"
echo "adapter:     $folder/run/adapter   (PEFT: adapter_config.json, adapter_model.safetensors)"
echo "checkpoints: $folder/run/checkpoints"
echo "time:        $((SECONDS - start)) s"
echo

row=$(grep -m 1 book_table "$folder/chats/heldout.jsonl")
answer=("$tandem" generate --model launch/quickstart/base --adapter "$folder/run/adapter")
chat=(--system "$(said system "$row")" --chat "$(said user "$row")")
answered=$("${answer[@]}" "${chat[@]}" 2>"$folder/answer.log") || { cat "$folder/answer.log" >&2 && exit 1; }
echo "one held-out request:"
echo "  request   $(said user "$row")"
echo "  expected  $(said assistant "$row")"
echo "  answer    $answered"
echo "ask it yourself:"
echo "  ${answer[*]} \\"
echo "    --system '${chat[1]}' --chat '${chat[3]}'"
