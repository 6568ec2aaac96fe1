#!/usr/bin/env bash
# Installs what is missing, builds, and runs every test: the optimized build, then the unit tests again with
# AddressSanitizer and UndefinedBehaviorSanitizer. The last line counts.
# usage: tests/run.sh [--quick]     --quick leaves out the sanitizer build
set -uo pipefail
cd "$(dirname "$0")/.."
quick=${1:-}

launch/dependencies.sh || exit 1
launch/dependencies.sh --tests || echo "some tests will be skipped" >&2

passed=0
failed=0

# Runs a build's tests and adds to the counts; every test that failed prints its output.
run_build() {
    local preset=$1
    shift
    launch/build.sh "$preset" || { echo "the $preset build failed" >&2; exit 1; }
    local log="build/$preset/ctest.log"
    ctest --test-dir "build/$preset" --output-on-failure --no-tests=error -j 2 "$@" 2>&1 | tee "$log"
    local summary
    summary=$(grep -E 'tests passed, [0-9]+ tests? failed out of [0-9]+' "$log" | tail -n 1)
    local total bad
    total=$(sed -E 's/.*out of ([0-9]+).*/\1/' <<<"$summary")
    bad=$(sed -E 's/.*, ([0-9]+) tests? failed.*/\1/' <<<"$summary")
    [ -n "$summary" ] || { echo "the $preset tests did not run" >&2; exit 1; }
    passed=$((passed + total - bad))
    failed=$((failed + bad))
}

run_build release
[ "$quick" = "--quick" ] || run_build sanitize -LE 'slow|optimized'

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
