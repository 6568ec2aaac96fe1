#!/usr/bin/env bash
# Installs what building and running tandem needs on Debian or Ubuntu, and nothing when all of it is there.
# As root directly, otherwise through sudo. "--check" only says what is missing (exit 1 when something is).
set -euo pipefail

packages=(
    build-essential cmake ninja-build pkg-config
    libopenmpi-dev openmpi-bin
    libhdf5-dev libopenblas-openmp-dev
    libcjson-dev libpcre2-dev libutf8proc-dev libxxhash-dev
)

missing=()
for package in "${packages[@]}"; do
    state=$(dpkg-query -W -f='${Status}' "$package" 2>/dev/null || true)
    [ "$state" = "install ok installed" ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0
if [ "${1:-}" = "--check" ]; then
    echo "missing packages: ${missing[*]}" >&2
    exit 1
fi
if ! command -v apt-get >/dev/null; then
    echo "this system has no apt-get; install by hand: ${missing[*]}" >&2
    exit 1
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "not root and no sudo; ask for: apt-get install ${missing[*]}" >&2
        exit 1
    fi
    as_root=(sudo)
fi
echo "installing: ${missing[*]}" >&2
"${as_root[@]}" apt-get update -q
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
    "${missing[@]}"
