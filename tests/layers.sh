#!/usr/bin/env bash
# Includes point down the layers only, and MPI, HDF5 and BLAS stay where they belong. usage: layers.sh SOURCE
set -euo pipefail
cd "$1"
failed=0

# forbid WHAT PATTERN FOLDER...
forbid() {
    local what=$1 pattern=$2 hits
    shift 2
    hits=$(grep -rnE "$pattern" --include='*.c' --include='*.h' --include='*.cu' "$@" || true)
    if [ -n "$hits" ]; then
        echo "FAILED: $what"
        echo "$hits"
        failed=1
    else
        echo "ok     $what"
    fi
}

include='#include *[<"]'
forbid "core includes only core" "$include(model|kernels|comm|runtime/(data|train|cli))/" runtime/core
forbid "kernels include only core" "$include(model|comm|runtime/(data|train|cli))/" kernels
forbid "comm includes only core" "$include(model|kernels|runtime/(data|train|cli))/" comm
forbid "model includes only kernels and core" "$include(comm|runtime/(data|train|cli))/" model
forbid "data includes only model and core" "$include(comm|kernels|runtime/(train|cli))/" runtime/data
forbid "train does not include cli" "${include}runtime/cli/" runtime/train
forbid "MPI stays in comm" "${include}mpi\\.h" runtime model kernels
forbid "HDF5 stays in data and train" "${include}hdf5\\.h" runtime/core runtime/cli model kernels comm
forbid "BLAS stays in the CPU backend" "${include}cblas\\.h" runtime model comm
forbid "internal headers stay in their folder: kernels" "${include}kernels/.*_internal\\.h" runtime model comm
forbid "internal headers stay in their folder: comm" "${include}comm/.*_internal\\.h" runtime model kernels
forbid "internal headers stay in their folder: model" "${include}model/.*_internal\\.h" runtime kernels comm
exit "$failed"
