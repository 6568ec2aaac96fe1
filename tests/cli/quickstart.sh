#!/usr/bin/env bash
# The quickstart from start to end: exact match from under 5 % to over 90 %, a lower evaluation loss, an adapter, and no rebuild.
# usage: quickstart.sh SOURCE
set -euo pipefail
source=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$source/launch/quickstart.sh" >"$folder/log" 2>&1 || { cat "$folder/log"; exit 1; }
tail -n 25 "$folder/log" | grep -vE '^step '

read -r before after <<<"$(sed -nE 's/^exact match +([0-9.]+) % +([0-9.]+) %.*/\1 \2/p' "$folder/log")"
read -r loss_before loss_after <<<"$(sed -nE 's/^eval loss +([0-9.]+) +([0-9.]+)$/\1 \2/p' "$folder/log")"
awk -v b="$before" -v a="$after" -v lb="$loss_before" -v la="$loss_after" \
    'BEGIN {exit !(b != "" && b < 5 && a > 90 && la > 0 && la < lb)}' ||
    { echo "FAILED: exact match $before -> $after, loss $loss_before -> $loss_after"; exit 1; }
# A second start would find nothing to install and nothing to build.
"$source/launch/dependencies.sh" --check
made() {
    stat -c '%n %y' "$source"/build/release/tandem "$source"/build/release/quickstart_chats
}
before_build=$(made)
"$source/launch/build.sh" release tandem quickstart_chats >/dev/null 2>&1 && [ "$(made)" = "$before_build" ] ||
    { echo "FAILED: a second quickstart would build again"; exit 1; }
for file in adapter/adapter_model.safetensors adapter/adapter_config.json checkpoints/latest metrics.jsonl; do
    [ -s "$source/runs/quickstart/run/$file" ] || { echo "FAILED: no $file"; exit 1; }
done
