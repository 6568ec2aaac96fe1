#!/usr/bin/env bash
# Builds tandem with a preset (default: release) into build/PRESET. Does nothing when it is up to date.
# usage: launch/build.sh [PRESET [TARGET]...]
set -euo pipefail
cd "$(dirname "$0")/.."
preset=${1:-release}
targets=("${@:2}")
quiet=()
[ -t 1 ] || quiet=(-- --quiet) # on a terminal ninja rewrites one line, elsewhere it would print hundreds

if [ ! -f "build/$preset/build.ninja" ]; then
    echo "configuring and building: $preset" >&2
    cmake --preset "$preset" -Wno-dev --log-level=NOTICE
fi
cmake --build "build/$preset" ${targets[@]:+--target "${targets[@]}"} "${quiet[@]}"
