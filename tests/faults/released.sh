#!/usr/bin/env bash
# The released program has none of the fault points; the program made for the tests has them. usage: released.sh TANDEM TANDEM_FAULTY
set -euo pipefail
count() {
    grep -c -a -E 'TANDEM_FAULT|on purpose' "$1" || true
}
[ "$(count "$1")" = 0 ] || { echo "FAILED: $1 has fault points"; exit 1; }
[ "$(count "$2")" != 0 ] || { echo "FAILED: $2 has no fault points"; exit 1; }
echo "ok     fault points are in the tests' program only"
