#!/usr/bin/env bash
# A shard of the newest checkpoint is deleted: a refusal that names it, or the checkpoint before; never zeros.
. "$(dirname "$0")/lib.sh"
begin 9 "a shard is missing" "$1"
stopped_run run "$(random 1 3)"
pick_shard
files=("$shard" "$shard" manifest.json adapter_model.safetensors)
file=${files[$((seed % 4))]}
rm "$newest/$file"
expect_fallback run "$(random 1 3)" "$file"
pass "$file"
