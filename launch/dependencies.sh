#!/usr/bin/env bash
# Installs what building and running tandem needs on Debian or Ubuntu, and nothing when all of it is there.
# As root directly, otherwise through sudo.
# usage: launch/dependencies.sh [--tests] [--check]
#   --tests   also what some tests need; without it they are skipped and say so
#   --check   only says what is missing (exit 1 when something is)
set -euo pipefail

packages=(
    build-essential cmake ninja-build pkg-config
    libopenmpi-dev openmpi-bin
    libhdf5-dev libopenblas-openmp-dev
    libcjson-dev libpcre2-dev libutf8proc-dev libxxhash-dev zlib1g-dev libzstd-dev
    procps # pgrep and pkill, for the tests that kill ranks
)
test_packages=(
    slurmctld slurmd slurm-client munge libpmix-dev # a private Slurm: tests/faults/slurm_cluster.sh
)

check=""
for option in "$@"; do
    case $option in
    --tests) packages+=("${test_packages[@]}") ;;
    --check) check=yes ;;
    *) sed -n 4,6p "$0" >&2 && exit 2 ;;
    esac
done

missing=()
for package in "${packages[@]}"; do
    state=$(dpkg-query -W -f='${Status}' "$package" 2>/dev/null || true)
    [[ $state == "install ok installed"* ]] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0
if [ -n "$check" ]; then
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
    sudo true || { echo "sudo does not work; ask for: apt-get install ${missing[*]}" >&2; exit 1; }
    as_root=(sudo)
fi
echo "installing: ${missing[*]}" >&2
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# apt's hundreds of lines matter only when it fails. A source that cannot be updated need not be one that is needed,
# and another apt at work (unattended upgrades) is waited for.
if ! {
    "${as_root[@]}" apt-get update -q
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y \
        --no-install-recommends -o DPkg::Lock::Timeout=300 "${missing[@]}"
} </dev/null >"$log" 2>&1; then
    tail -n 30 "$log" >&2
    echo "apt-get could not install the packages" >&2
    exit 1
fi
