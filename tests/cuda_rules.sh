#!/usr/bin/env bash
# What the emulation of CUDA cannot show, or would not see at all: constructs that the kernels keep clear of. usage: cuda_rules.sh SOURCE
set -euo pipefail
cd "$1"
failed=0

# Code without comments, each line behind its file. usage: code FILE...
code() {
    local file
    for file in "$@"; do
        sed -E 's@//.*@@' "$file" | grep -n . | sed "s@^@$file:@"
    done
}

# forbid WHAT PATTERN FILE...
forbid() {
    local what=$1 pattern=$2 hits
    shift 2
    hits=$(code "$@" | grep -E ":[0-9]+:.*($pattern)" || true)
    if [ -n "$hits" ]; then
        echo "FAILED: $what"
        echo "$hits"
        failed=1
    else
        echo "ok     $what"
    fi
}

except() {
    local left_out=$1 file
    shift
    for file in "$@"; do
        [ "$file" = "$left_out" ] || echo "$file"
    done
}

kernels=(kernels/cuda/*.cu kernels/cuda/*.cuh)
module=("${kernels[@]}" kernels/cuda/*.c runtime/core/*_cuda.c comm/*_nccl.c)

forbid "kernels are launched by td_cuda_launch()" '<<<|cudaLaunchKernel\(' "${kernels[@]}"
forbid "shared memory comes from td_cuda_shared()" '__shared__' $(except kernels/cuda/cuda_internal.cuh "${kernels[@]}")
forbid "PTX stays in ptx.cuh" '\basm\b|__asm' $(except kernels/cuda/ptx.cuh "${kernels[@]}")
forbid "PTX that touches memory, and only volatile PTX, says so" 'asm\("(ld|st|cp|red|atom|bar|mma)' kernels/cuda/ptx.cuh
# Threads of a warp need not be together: who takes part is named, and is the whole warp.
forbid "exchanges within a warp name their lanes" '\b__(shfl(_xor|_up|_down)?|any|all|ballot)\(|__activemask' "${kernels[@]}"
forbid "exchanges within a warp are the whole warp's" '__[a-z_]+_sync\(([^0]|0[^x]|0x[^f])' "${kernels[@]}"
# Sums have one order. A count of faults may be added up in any.
forbid "no atomics but for counts" '\batomic[A-Z]' $(except kernels/cuda/reduction.cuh "${kernels[@]}")
forbid "no approximations but ptx.cuh's" '\b(__(exp|exp10|log|log2|log10|pow|sin|cos|tan|sincos)f|__fdividef|__saturatef|__frcp_r[dzu]|rsqrtf?|__frsqrt_rn)\(' "${kernels[@]}"
forbid "no libcu++, CUB or cooperative groups" '#include *<(cuda/|cub/|cooperative_groups|thrust/)' "${kernels[@]}"
forbid "no managed memory, no default stream but for clearing" 'cudaMallocManaged|cudaMemAttachGlobal|cudaMemPrefetch|cudaStreamLegacy|cudaMemcpy\(|cudaMemcpyToSymbol' "${module[@]}"
forbid "kernels neither print nor allocate" '\b(printf|malloc|new [a-z])' $(except kernels/cuda/gemm.cu "${kernels[@]}")

# Products and sums that are rounded on their own everywhere else are so on the GPU.
if grep -q -- '--fmad=false' CMakeLists.txt && ! grep -qE 'use_fast_math|--ftz=true|--prec-(div|sqrt)=false' CMakeLists.txt CMakePresets.json; then
    echo "ok     nvcc rounds every operation"
else
    echo "FAILED: nvcc rounds every operation: CMakeLists.txt has to say --fmad=false, and nothing of fast math"
    failed=1
fi
exit "$failed"
