#!/usr/bin/env bash
# Makes a relocatable tar of the program, the CUDA module if it was built, Open MPI and every library that is not part of
# the system's C library, for clusters without root. It runs wherever the C library is the same or newer.
# usage: launch/bundle.sh [--build FOLDER] [--with-tests] [--with-cuda-libraries]
#   --build FOLDER          packs what is built in FOLDER; default: builds the preset "bundle" first
#   --with-tests            also makes a second tar, to be unpacked over the first: tests/gpu_check.sh, benchmarks/gpu_bench.sh, and
#                           what they run
#   --with-cuda-libraries   adds cuBLASLt (hundreds of MiB) and NCCL; without it they must be on the loader's path
# The tars are written to FOLDER, what is in them to FOLDER/package.
set -euo pipefail
cd "$(dirname "$0")/.."

build=""
with_tests=""
with_cuda_libraries=""
while [ $# -gt 0 ]; do
    case $1 in
    --build) build=${2:?--build needs a folder} && shift ;;
    --with-tests) with_tests=yes ;;
    --with-cuda-libraries) with_cuda_libraries=yes ;;
    *) sed -n '2,9s/^# //p' "$0" >&2 && exit 2 ;;
    esac
    shift
done

die() {
    echo "bundle: $*" >&2
    exit 1
}

targets=(tandem quickstart_chats set_rpath)
if [ -z "$build" ]; then
    build=build/bundle
    launch/build.sh bundle # configured here if it was not, and then everything in it is built
elif [ ! -x "$build/set_rpath" ]; then
    die "$build has no set_rpath; build the targets ${targets[*]} first"
fi
version=$(sed -nE 's/^CMAKE_PROJECT_VERSION:STATIC=//p' "$build/CMakeCache.txt")
name=tandem-$version
out=$build/package
rm -rf "$out"
mkdir -p "$out/$name"
root=$out/$name

# Part of the C library or of the compiler's, libgcc_s and libstdc++ (which only NCCL needs): the system's must be used, since its
# other libraries may need what is newer in them. The driver's belong to the kernel's driver.
system_libraries='^(ld-linux.*|linux-vdso|lib(c|m|mvec|pthread|dl|rt|util|resolv|anl|nsl|gcc_s|stdc\+\+)|libnss_.*|libcuda|libnvidia-.*)\.so'
cuda_libraries='^lib(cublas|cublasLt|nccl|cudart)\.so'

# NAME PATH of each library that the files need, themselves or by way of another.
needed() {
    ldd "$@" 2>/dev/null | sed -nE 's/^\t(lib[^ ]+) => (\/[^ ]+) .*/\1 \2/p' | sort -u |
        grep -vE "$system_libraries" | grep -vE "$cuda_libraries" || true
}

install_program() {
    install -m 755 "$1" "$root/libexec/$2"
    "$build/set_rpath" "\$ORIGIN/../lib" "$root/libexec/$2"
}

# The files of the system that were bundled, for their licenses.
sources=()

add_libraries() {
    local soname path
    while read -r soname path; do
        [ -n "$soname" ] && [ ! -e "$root/lib/$soname" ] || continue
        install -m 755 "$path" "$root/lib/$soname"
        "$build/set_rpath" "\$ORIGIN" "$root/lib/$soname"
        sources+=("$path")
    done < <(needed "$@")
}

add_plugins() {
    local to=$1 path
    shift
    mkdir -p "$root/lib/$to"
    for path in "$@"; do
        install -m 755 "$path" "$root/lib/$to/"
        "$build/set_rpath" "\$ORIGIN/.." "$root/lib/$to/$(basename "$path")"
    done
    add_libraries "$@"
    sources+=("$@")
}

add_program() {
    mkdir -p "$root/bin" "$root/lib" "$root/libexec" "$root/share/tandem"
    install -m 644 launch/bundle/environment.sh "$root/libexec/"
    local program
    for program in tandem quickstart_chats; do
        install_program "$build/$program" "$program"
        install -m 755 launch/bundle/command "$root/bin/$program"
    done
    add_libraries "$build/tandem"
    if [ -e "$build/libtandem_cuda.so" ]; then
        add_plugins tandem "$build/libtandem_cuda.so"
        unset 'sources[-1]'
    fi
}

# Without the network libraries of particular hardware (they belong to the cluster's drivers; messages between hosts go over TCP, gradients
# between GPUs over NCCL), OpenSHMEM, and monitoring.
left_out='mca_(btl_(ofi|openib|uct|usnic)|mtl_(ofi|psm2?)|(pml|osc|atomic|spml|sshmem)_ucx|[a-z]+_monitoring|atomic_.*|memheap_.*|scoll_.*|spml_.*|sshmem_.*|io_romio.*)\.so$'

add_open_mpi() {
    local path plugins data pmix program
    path=$(ompi_info --parsable --path pkglibdir | sed 's/^path:pkglibdir://')
    data=$(ompi_info --parsable --path pkgdatadir | sed 's/^path:pkgdatadir://')
    [ -d "$path" ] && [ -d "$data" ] || die "ompi_info does not say where Open MPI is"
    mapfile -t plugins < <(find "$path" -name 'mca_*.so' | grep -vE "$left_out" | sort)
    add_plugins openmpi "${plugins[@]}"
    mkdir -p "$root/share/openmpi" "$root/etc/openmpi"
    install -m 644 "$data"/help-*.txt "$root/share/openmpi/"
    install -m 644 "$(ompi_info --parsable --path sysconfdir | sed 's/^path:sysconfdir://')"/openmpi-mca-params.conf \
        "$root/etc/openmpi/"
    for program in mpirun orted; do
        path=$(realpath "$(command -v $program)")
        install_program "$path" $program
        add_libraries "$path"
        sources+=("$path")
    done
    install -m 755 launch/bundle/mpirun "$root/bin/mpirun"
    install -m 755 launch/bundle/command "$root/bin/orted"
    # PMIx, which Open MPI's plugin brought along, has plugins and messages of its own.
    pmix=$(for path in "${sources[@]}"; do echo "$path"; done | sed -nE '/\/libpmix\.so/p' | head -n 1)
    if [ -n "$pmix" ]; then
        pmix=$(dirname "$(realpath "$pmix")")
        add_plugins pmix "$pmix"/pmix/*.so
        mkdir -p "$root/share/pmix"
        install -m 644 "$pmix"/../share/pmix/help-*.txt "$root/share/pmix/"
    fi
}

add_cuda_libraries() {
    local path terms
    for path in $(ldd "$build/libtandem_cuda.so" | sed -nE 's/^\tlibcublas[^ ]* => (\/[^ ]+) .*/\1/p') \
        "$(find "$(dirname "$(realpath "$(command -v nvcc)")")/.." /usr/lib -name libnccl.so.2 2>/dev/null | head -n 1)"; do
        [ -e "$path" ] || die "cuBLASLt or NCCL was not found"
        install -m 755 "$path" "$root/lib/"
        # Under the terms of its toolkit, where they are a file.
        for terms in "$(dirname "$(realpath "$path")")"/../{EULA.txt,LICENSE*} "$(dirname "$(realpath "$path")")"/../../EULA.txt; do
            [ ! -f "$terms" ] || install -D -m 644 "$terms" "$root/share/doc/cuda/$(basename "$terms")"
        done
    done
}

add_quickstart() {
    mkdir -p "$root/launch/quickstart" "$root/configs"
    install -m 755 launch/quickstart.sh launch/mpirun.sh "$root/launch/"
    cp -R launch/slurm "$root/launch/slurm"
    cp -R launch/quickstart/base "$root/launch/quickstart/base"
    cp configs/quickstart.json "$root/configs/"
}

# Debian's packages of the files; nothing where there is no dpkg. Files may be registered under /lib or /usr/lib.
packages_of() {
    realpath "$@" | sed 'p; s|^/usr/|/|' | xargs -d '\n' dpkg-query -S 2>/dev/null | sed 's/:.*//' | sort -u || true
}

add_licenses() {
    local package to=$root/share/doc
    mkdir -p "$to/tandem"
    cp LICENSE "$to/tandem/"
    cp README.md "$root/"
    packages_of "${sources[@]}" >"$out/packages"
    [ -s "$out/packages" ] || echo "bundle: no dpkg here: license texts of the libraries are not included" >&2
    while read -r package; do
        mkdir -p "$to/$package"
        cp "/usr/share/doc/$package/copyright" "$to/$package/" || die "no license text of $package"
    done <"$out/packages"
    # Licenses that those texts refer to.
    if [ -d /usr/share/common-licenses ]; then
        mkdir -p "$to/common-licenses"
        cp -L /usr/share/common-licenses/* "$to/common-licenses/"
    fi
}

# What was packed: tests/gpu_check.sh puts it into its record.
describe() {
    local commit
    commit=$(git rev-parse HEAD 2>/dev/null || echo unknown)
    [ -z "$(git --no-optional-locks status --porcelain --untracked-files=no 2>/dev/null)" ] || commit+="-modified"
    echo "version $version"
    echo "commit $commit"
    sed -nE 's/^CMAKE_BUILD_TYPE:[A-Z]+=/build_type /p' "$build/CMakeCache.txt"
    [ ! -e "$root/lib/tandem" ] ||
        sed -nE 's/^TANDEM_CUDA_ARCHITECTURES:[A-Z]+=/cuda_architectures /p' "$build/CMakeCache.txt"
    echo "glibc $(newest_glibc)"
    if [ -s "$out/packages" ]; then
        xargs dpkg-query -W -f 'package ${Package} ${Version}\n' <"$out/packages" | sort -u
    fi
}

elf_files() {
    find "$root/lib" "$root/libexec" -type f ! -name '*.sh'
}

newest_glibc() {
    elf_files | xargs -d '\n' readelf -W --version-info 2>/dev/null | grep -oE 'GLIBC_[0-9]+\.[0-9.]+' |
        sed 's/GLIBC_//' | sort -Vu | tail -n 1
}

# Every library that is not the system's must be in the bundle.
check_closed() {
    local file library missing=""
    while read -r file; do
        while read -r library; do
            [ -e "$root/lib/$library" ] || missing+=" $library (for ${file##*/})"
        done < <(readelf -W -d "$file" | sed -nE 's/.*\(NEEDED\).*\[(.*)\]/\1/p' |
            grep -vE "$system_libraries" | grep -vE "$cuda_libraries")
    done < <(elf_files)
    [ -z "$missing" ] || die "libraries are missing:$missing"
}

# pack NAME MANIFEST FILE-LIST: the same bytes from the same files.
pack() {
    local epoch
    epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
    (cd "$root" && LC_ALL=C sort "../$3" | xargs -d '\n' sha256sum >"$2")
    (cd "$out" && { sed "s|^|$name/|" "$3"; echo "$name/$2"; } | LC_ALL=C sort |
        tar --create --no-recursion --files-from=- --format=gnu --owner=0 --group=0 --numeric-owner \
            --mode=u=rwX,go=rX --mtime="@$epoch" | gzip -n -9 >"../$1.tar.gz")
    rm "$out/$3"
    echo "$build/$1.tar.gz: $(($(stat -c %s "$build/$1.tar.gz") / 1048576)) MiB, $(wc -l <"$root/$2") files"
}

list_files() {
    (cd "$root" && find . -type f | sed 's|^\./||')
}

add_program
add_open_mpi
[ -z "$with_cuda_libraries" ] || add_cuda_libraries
add_quickstart
add_licenses
check_closed
describe >"$root/share/tandem/BUILD"
list_files >"$out/files"
pack "$name-linux-x86_64" share/tandem/MANIFEST files

if [ -n "$with_tests" ]; then
    list_files | LC_ALL=C sort >"$out/before"
    mkdir -p "$root/tests/fixtures"
    mkdir -p "$root/tests/gpu"
    cp tests/gpu_check.sh "$root/tests/"
    cp tests/gpu/*.sh "$root/tests/gpu/"
    cp -R tests/fixtures/train100 tests/fixtures/families tests/fixtures/ops "$root/tests/fixtures/"
    mkdir -p "$root/benchmarks/peers" # benchmarks/gpu_bench.sh and what it runs
    cp benchmarks/gpu_bench.sh "$root/benchmarks/"
    cp benchmarks/peers/gpu_step.sh benchmarks/peers/gpu_step.py benchmarks/peers/gpu_attention.sh benchmarks/peers/gpu_attention.py "$root/benchmarks/peers/"
    cp -R configs/shapes "$root/configs/shapes"
    for program in "$build"/tests/test_*_gpu; do
        [ -x "$program" ] || die "$build/tests has no programs for GPUs; build the target gpu_tests first"
        install_program "$program" "$(basename "$program")"
    done
    check_closed
    list_files | LC_ALL=C sort | LC_ALL=C comm -13 "$out/before" - >"$out/files"
    rm "$out/before"
    pack "tandem-tests-$version-linux-x86_64" share/tandem/MANIFEST-tests files
fi
echo "needs glibc $(newest_glibc) or newer"
[ -n "$with_cuda_libraries" ] || [ ! -e "$root/lib/tandem" ] ||
    echo "without cuBLASLt and NCCL: the module finds them on the loader's path (LD_LIBRARY_PATH, or lib/ of the bundle)"
