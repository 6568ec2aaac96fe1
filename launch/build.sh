#!/usr/bin/env bash
# Builds tandem with a preset (default: release) into build/PRESET. Does nothing when it is up to date.
set -euo pipefail
cd "$(dirname "$0")/.."
preset=${1:-release}
[ -f "build/$preset/build.ninja" ] || cmake --preset "$preset"
cmake --build "build/$preset"
