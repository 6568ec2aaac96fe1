#!/usr/bin/env bash
# Draws records as an SVG on standard output: throughput of steps beside their peers, the parts of a step against their bounds, and
# scaling over ranks; what a file has none of is left out. Records are what `tandem bench ... --record`, benchmarks/peers and
# benchmarks/scaling write.
# usage: benchmarks/plot.sh [RECORD...] >plot.svg    (all of benchmarks/results without arguments)
set -euo pipefail
[ $# -gt 0 ] || set -- "$(dirname "$0")"/results/*.json*
exec awk -f "$(dirname "$0")/plot.awk" "$@"
