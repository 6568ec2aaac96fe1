#!/bin/bash
# Saves on one number of ranks and resumes on another. Usage: checkpoint_ranks.sh PROGRAM FROM TO
set -eu
program=$1 from=$2 to=$3
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
timeout 60 mpirun -q --oversubscribe -n "$from" "$program" save "$folder/run"
timeout 60 mpirun -q --oversubscribe -n "$to" "$program" load "$folder/run"
