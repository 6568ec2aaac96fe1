# Finds what the checks need of the machine. Sourced by gpu_check.sh.

# A CUDA toolkit's folders, newest first, then those of Python packages.
cuda_folders() {
    ls -d "${CUDA_HOME:-/usr/local/cuda}"/lib64 /usr/local/cuda*/lib64 /usr/local/cuda*/targets/x86_64-linux/lib 2>/dev/null
    python3 -c 'import nvidia; print("\n".join(nvidia.__path__))' 2>/dev/null | while read -r folder; do
        ls -d "$folder"/*/lib 2>/dev/null
    done
}

# Puts the folder of a library that the loader does not find by itself on its path. usage: find_library NAME
find_library() {
    local folder
    ! ldconfig -p 2>/dev/null | grep -q "$1 " || return 0
    [ ! -e "$root/lib/$1" ] || return 0
    while read -r folder; do
        [ -e "$folder/$1" ] || continue
        case ":${LD_LIBRARY_PATH:-}:" in
        *":$folder:"*) ;;
        *) export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$folder" ;;
        esac
        return 0
    done < <(cuda_folders)
    echo "note: $1 was not found on this machine" >&2
}

find_sanitizer() {
    local path
    for path in "${GPU_CHECK_SANITIZER:-}" "$(command -v compute-sanitizer)" /usr/local/cuda*/bin/compute-sanitizer \
        /usr/local/cuda*/compute-sanitizer/compute-sanitizer /opt/nvidia/*/compute-sanitizer; do
        [ ! -x "$path" ] || { echo "$path" && return; }
    done
}

# What nvidia-smi says of the first GPU. usage: ask_driver FIELD
ask_driver() {
    nvidia-smi --query-gpu="$1" --format=csv,noheader 2>/dev/null | head -n 1
}

cuda_of_driver() {
    nvidia-smi 2>/dev/null | sed -nE 's/.*CUDA Version: *([0-9.]+).*/\1/p' | head -n 1
}
