#!/usr/bin/env bash
# The bundle: the same bytes when made twice; unpacked under another path, with a space in it, and with an empty environment it
# trains on one and two ranks with its own mpirun to the bits of the build it was made from, and takes no library from
# outside but the C library's and CUDA's. One without a library says so. usage: bundle.sh BUILD SOURCE
set -euo pipefail
build=$1 source=$2
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

failed() {
    echo "FAILED: $*"
    exit 1
}

make_bundle() {
    # Without the repository: a commit made between the two would be a difference.
    GIT_DIR=$folder/none "$source/launch/bundle.sh" --build "$build" >"$folder/bundle.log" 2>&1 || { cat "$folder/bundle.log"; exit 1; }
    sed -nE 's/^(.*\.tar\.gz): .*/\1/p' "$folder/bundle.log"
}

tar=$(make_bundle)
first=$(sha256sum "$tar")
[ "$(sha256sum "$(make_bundle)")" = "$first" ] || failed "a second bundle of the same build differs"
grep -E 'MiB|glibc' "$folder/bundle.log"

mkdir "$folder/an other" "$folder/home" "$folder/tmp"
tar -xzf "$tar" -C "$folder/an other"
root=$(echo "$folder/an other"/tandem-*)
(cd "$root" && sha256sum --check --quiet share/tandem/MANIFEST) || failed "files differ from the manifest"
find "$root" -type f | sed "s|^$root/||" | grep -v '^share/tandem/MANIFEST$' | LC_ALL=C sort >"$folder/files"
sed 's/^[^ ]*  //' "$root/share/tandem/MANIFEST" | LC_ALL=C sort | cmp - "$folder/files" ||
    failed "the manifest does not list what is in the tar"
for package in $(sed -nE 's/^package ([^ ]+) .*/\1/p' "$root/share/tandem/BUILD"); do
    [ -s "$root/share/doc/$package/copyright" ] || failed "no license text of $package"
done

# Nothing of this shell's environment but what Open MPI asks of root, and no commands but those of the wrappers: no ssh either.
mkdir "$folder/tools"
for tool in sh dirname basename readlink env; do
    ln -s "$(command -v $tool)" "$folder/tools/$tool"
done
bare() {
    env -i PATH="$folder/tools" HOME="$folder/home" TMPDIR="$folder/tmp" OMP_NUM_THREADS=1 \
        OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 "$(command -v timeout)" 120 "$@"
}

bare "$root/bin/tandem" --help >"$folder/help" || failed "tandem --help"
grep -q '^usage: tandem' "$folder/help" || failed "tandem --help prints no usage"
ln -s "$root/bin/tandem" "$folder/link"
bare "$folder/link" config >/dev/null || failed "tandem by way of a link"
bare "$root/bin/quickstart_chats" --seed 2 --train 100 --heldout 10 --out "$folder" >/dev/null

# train NAME COMMAND...
train() {
    local name=$1
    shift
    bare "$@" train --set model_name_or_path="$root/launch/quickstart/base" --set train_files="$folder/train.jsonl" \
        --set max_length=128 --set packing=true --set micro_batch_tokens=160 --set gradient_accumulation_steps=2 \
        --set max_steps=3 --set output_dir="$folder/$name" >"$folder/$name.log" 2>&1 ||
        { cat "$folder/$name.log"; failed "training $name"; }
    sha256sum <"$folder/$name/adapter/adapter_model.safetensors"
}

reference=$(train built "$build/tandem")
[ "$(train one "$root/bin/tandem")" = "$reference" ] || failed "one rank of the bundle gives other bits than the build"
two=$(train two env LD_DEBUG=files LD_DEBUG_OUTPUT="$folder/loaded" \
    "$root/bin/mpirun" --oversubscribe --bind-to none -n 2 "$root/bin/tandem")
[ "$two" = "$reference" ] || failed "two ranks of the bundle give other bits than the build"
echo "ok     1 and 2 ranks of the bundle give the bits of the build"

# What every process (mpirun, ranks, the shell of the wrappers) loaded.
cat "$folder"/loaded.* | sed -nE 's/.*calling init: (.*)/\1/p' | xargs -d '\n' realpath | sort -u >"$folder/libraries"
grep -q "^$root/lib/libopenblas" "$folder/libraries" || failed "it was not seen which libraries are loaded"
grep -q "^$root/lib/openmpi/mca_pml_ob1" "$folder/libraries" || failed "Open MPI's plugins are not the bundle's"
system='ld-linux[^/]*|lib(c|m|dl|rt|pthread|resolv|gcc_s|nss_[a-z]+)'
cuda='lib(cuda|cublasLt|nccl|nvidia-[a-z-]+|stdc\+\+)' # of the driver and the toolkit, which are not bundled
outside=$(grep -vE "^$root/|/($system|$cuda)\.so[.0-9]*$" "$folder/libraries" || true)
[ -z "$outside" ] || failed "loaded from outside the bundle: $outside"
echo "ok     $(grep -c "^$root/" "$folder/libraries") libraries of the bundle, outside it only the C library and CUDA's"

# A part is lost: one line, a code, at once.
rm "$root/lib/libcjson.so.1"
for command in tandem mpirun; do
    code=0
    bare "$root/bin/$command" --help >"$folder/out" 2>"$folder/err" || code=$?
    [ "$code" = 70 ] && [ ! -s "$folder/out" ] && [ "$(wc -l <"$folder/err")" = 1 ] &&
        grep -q 'lib/libcjson.so.1 is missing' "$folder/err" ||
        { cat "$folder/err"; failed "$command of a bundle that lost a library (code $code)"; }
done
echo "ok     $(cat "$folder/err")"
