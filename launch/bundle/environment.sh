# What the commands in bin/ have in common: checks that the bundle is whole and tells Open MPI where it is now.
# Sourced with $0 the command's path; sets `root`.
root=$(dirname "$(dirname "$(readlink -f "$0")")")

while read -r _ name; do
    [ -e "$root/$name" ] && continue
    echo "$(basename "$0"): the bundle in $root is not whole: $name is missing; unpack it again" >&2
    exit 70
done <"$root/share/tandem/MANIFEST" || exit 70

export OPAL_PREFIX="$root" OPAL_LIBDIR="$root/lib" OPAL_PKGLIBDIR="$root/lib/openmpi"
export OPAL_PKGDATADIR="$root/share/openmpi" OPAL_SYSCONFDIR="$root/etc/openmpi"
export PMIX_PREFIX="$root" PMIX_LIBDIR="$root/lib" PMIX_PKGLIBDIR="$root/lib/pmix"
export PMIX_PKGDATADIR="$root/share/pmix" PMIX_SYSCONFDIR="$root/etc"
# Plugins of another hwloc that the system may have are not for this one.
export HWLOC_PLUGINS_PATH="$root/lib/hwloc"
