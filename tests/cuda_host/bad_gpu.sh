#!/usr/bin/env bash
# What can be wrong with GPUs ends all ranks with the documented code and one clear line, in bounded time, and leaves no adapter
# behind; without a module, a driver or a GPU the program uses the CPU and says why.
# usage: bad_gpu.sh TANDEM MODULE NCCL OTHER_MODULE SOURCE
set -uo pipefail
tandem=$1 module=$2 nccl=$3 other=$4 source=$5
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export OMP_NUM_THREADS=1 TANDEM_GPU_MODULE=$module TANDEM_NCCL_LIBRARY=$nccl FAKE_VERSION=9
failed=0 passed=0
model=$source/tests/fixtures/train100
alone=$folder/alone/tandem # with no module beside it
mkdir "$folder/alone"
cp "$tandem" "$alone"
head -n 8 "$model/data.jsonl" >"$folder/data.jsonl"
settings=(train --set model_name_or_path="$model" --set train_files="$folder/data.jsonl"
    --set output_dir="$folder/out" --set max_length=64 --set max_steps=1 --set lora_r=2
    --set gradient_accumulation_steps=2 --set page_elements=1000)

# train RANKS [OPTION]...
train() {
    local launcher=("$source/launch/mpirun.sh" "$1")
    [ "$1" -gt 1 ] || launcher=()
    shift
    timeout 60 "${launcher[@]}" "$tandem" "${settings[@]}" "$@" </dev/null
}

report() {
    if [ "$1" -eq 0 ]; then
        echo "ok     $2"
        passed=$((passed + 1))
    else
        echo "FAILED $2"
        tail -n 30 "$folder/log" | sed 's/^/    /'
        failed=$((failed + 1))
    fi
    rm -rf "$folder/out"
}

# ends NAME CODE PATTERN COMMAND...: exit code, one error line in all, which matches, and no adapter.
ends() {
    local name=$1 code=$2 pattern=$3 got=0 errors lines
    shift 3
    "$@" >"$folder/log" 2>&1 || got=$?
    errors=$(grep -cE '^(\[[0-9]+\] )?error:' "$folder/log")
    lines=$(grep -cE "^error: .*($pattern)" "$folder/log")
    [ "$got" -eq "$code" ] && [ "$errors" -eq 1 ] && [ "$lines" -eq 1 ] && [ ! -e "$folder/out/adapter" ]
    report $? "$name: code $got, $errors errors, $lines match"
}

# runs NAME PATTERN COMMAND...: ends well and says how it computes, once.
runs() {
    local name=$1 pattern=$2 got=0
    shift 2
    "$@" >"$folder/log" 2>&1 || got=$?
    [ "$got" -eq 0 ] && [ "$(grep -cE "$pattern" "$folder/log")" -eq 1 ] && [ -e "$folder/out/adapter" ]
    report $? "$name: code $got"
}

# Which device, on 1 and 2 ranks.
for ranks in 1 2; do
    with() { # SETTING... -- [OPTION]...
        local environment=()
        while [ "$1" != -- ]; do
            environment+=("$1")
            shift
        done
        shift
        (export "${environment[@]}" && train "$ranks" "$@")
    }
    while IFS='|' read -r name environment reason; do
        runs "$name, auto, $ranks ranks" "^CPU, 1 thread \(no GPU: .*$reason.*\)$" with "$environment" --
        ends "$name, cuda, $ranks ranks" 2 "device \"cuda\".*$reason" with "$environment" -- --set device=cuda
    done <<END
no GPU|CUDA_HOST_GPUS=0|the driver sees no GPU
driver too old|CUDA_HOST_GPUS=-1|driver is too old
GPU too old|CUDA_HOST_MODELS=T4|GPU 0, Tesla T4, has compute capability 7.5, 8.0 or newer is needed
module missing|TANDEM_GPU_MODULE=$folder/nowhere|there is no file $folder/nowhere
module of another version|TANDEM_GPU_MODULE=$other|version 9.*same build
module damaged|TANDEM_GPU_MODULE=$folder/data.jsonl|cannot be loaded
END
    tandem=$alone runs "no module is built, $ranks ranks" \
        '^CPU, 1 thread \(no GPU: no libtandem_cuda.so .*CPUs only\)$' with TANDEM_GPU_MODULE= --
    # The module for real GPUs, on a machine that has none.
    [ ! -e "$(dirname "$tandem")/libtandem_cuda.so" ] || [ -e /dev/nvidiactl ] ||
        runs "no driver, $ranks ranks" '^CPU, 1 thread \(no GPU: no NVIDIA driver .*\)$' with TANDEM_GPU_MODULE= --
    runs "device=cpu is no question, $ranks ranks" '^CPU, 1 thread$' with A=1 -- --set device=cpu
    ends "memory plan, $ranks ranks" 4 'memory plan: .*MiB of GPU memory per rank' \
        with CUDA_HOST_MEMORY_MB=1 -- --set share_gpus=true
    ends "gradients beyond the range, $ranks ranks" 7 'gradient values of rank . are not finite or beyond' \
        with A=1 -- --set share_gpus=true --set gradient_quantum_log2=-60 --set lora_alpha=1000000
    ends "NCCL on the CPU, $ranks ranks" 2 'transport "nccl" is for GPUs' \
        with A=1 -- --set device=cpu --set transport=nccl
done

# Products of fp32 activations in bf16 are the CPU's. With bf16 activations the key says nothing new.
for ranks in 1 2; do
    ends "fp32 with medium products, $ranks ranks" 2 'float32_matmul_precision "medium" with bf16=false .* bf16=true or .*=highest' \
        train "$ranks" --set share_gpus=true --set bf16=false --set float32_matmul_precision=medium
done
ends "and planned" 2 'float32_matmul_precision "medium" with bf16=false' "$tandem" plan --model "$model" --rows 10 \
    --gpu-memory 80G --set bf16=false --set float32_matmul_precision=medium
runs "bf16 with medium products" '^NVIDIA .*, bf16$' train 1 --set float32_matmul_precision=medium

# Ranks among themselves.
ends "fewer GPUs than ranks" 2 'ranks 0 and 2 have the same GPU: 3 ranks on .* see 2 GPUs' env CUDA_HOST_GPUS=2 \
    "$source/launch/mpirun.sh" 3 "$tandem" "${settings[@]}"
ends "mixed models" 2 'rank 0 .*H200 .* rank 1 .*A100' env CUDA_HOST_GPUS=2 CUDA_HOST_MODELS=H200,A100 \
    "$source/launch/mpirun.sh" 2 "$tandem" "${settings[@]}"
ends "one rank without a GPU" 2 'rank 1 on .* has no GPU \(the driver sees no GPU.*rank 0 on .* has one' timeout 60 \
    mpirun --quiet --oversubscribe --bind-to none --allow-run-as-root -n 1 "$tandem" "${settings[@]}" : \
    -n 1 env CUDA_HOST_GPUS=0 "$tandem" "${settings[@]}"
for setting in device=cpu transport=mpi share_gpus=true; do
    ends "ranks disagree on $setting" 2 'not the same on ranks 0 and 1' timeout 60 \
        mpirun --quiet --oversubscribe --bind-to none --allow-run-as-root -n 1 "$tandem" "${settings[@]}" : \
        -n 1 "$tandem" "${settings[@]}" --set "$setting"
done
ends "NCCL is missing" 2 'transport "nccl" cannot be used: no NCCL on rank 0' env CUDA_HOST_GPUS=2 \
    TANDEM_NCCL_LIBRARY="$folder/nowhere" "$source/launch/mpirun.sh" 2 "$tandem" "${settings[@]}" --set transport=nccl
runs "NCCL is missing, auto" 'gradients by MPI \(no NCCL on rank 0' env CUDA_HOST_GPUS=2 \
    TANDEM_NCCL_LIBRARY="$folder/nowhere" "$source/launch/mpirun.sh" 2 "$tandem" "${settings[@]}"
ends "NCCL and a shared GPU" 2 'transport "nccl" cannot be used: ranks 0 and 1 share a GPU' \
    train 2 --set share_gpus=true --set transport=nccl
# What lets NCCL share a GPU is for tests that ask for NCCL.
runs "a shared GPU, auto, with NCCL_HOSTID" 'gradients by MPI \(ranks 0 and 1 share a GPU\)' env NCCL_HOSTID=a \
    "$source/launch/mpirun.sh" 2 "$tandem" "${settings[@]}" --set share_gpus=true

# Every allocation of device or pinned memory fails once, on each number of ranks, until there is none left to fail. Copies of
# layers are made where there is memory for them, and shortly before the end; weights are dequantized ahead where there is
# memory for both buffers.
for ranks in 1 2; do
    n=0 got=4 wrong=0
    while [ "$got" -ne 0 ] && [ "$wrong" -eq 0 ] && [ "$n" -lt 200 ]; do
        n=$((n + 1)) got=0
        CUDA_HOST_FAIL_ALLOC=$n train "$ranks" --set share_gpus=true --set dequantized_cache_bytes=-1 \
            --set dequantize_ahead=off >"$folder/log" 2>&1 || got=$?
        errors=$(grep -cE '^(\[[0-9]+\] )?error:' "$folder/log")
        lines=$(grep -cE '^error: GPU 0: cannot allocate .* MiB of (device|pinned host) memory for [a-zA-Z]' "$folder/log")
        if [ "$got" -ne 0 ]; then
            [ "$got" -eq 4 ] && [ "$errors" -eq 1 ] && [ "$lines" -eq 1 ] && [ ! -e "$folder/out/adapter" ] || wrong=1
        fi
        [ "$wrong" -eq 1 ] || rm -rf "$folder/out"
    done
    [ "$wrong" -eq 0 ] && [ "$got" -eq 0 ] && [ "$n" -gt 10 ]
    report $? "each of $((n - 1)) allocations fails, $ranks ranks (the last: code $got, $errors errors, $lines match)"
    copies=0
    for ((i = n; i > n - 6; i--)); do
        CUDA_HOST_FAIL_ALLOC=$i train "$ranks" --set share_gpus=true >"$folder/log" 2>&1 &&
            grep -qE 'GPU memory holds copies of [01] dequantized layers, not of 2$' "$folder/log" && copies=$((copies + 1))
        rm -rf "$folder/out"
    done
    [ "$copies" -eq 2 ]
    report $? "memory for one or no copy of a layer, $ranks ranks: $copies of 2 runs"
    without=0
    for ((i = n + 1; i > n - 8; i--)); do
        CUDA_HOST_FAIL_ALLOC=$i train "$ranks" --set share_gpus=true --set dequantized_cache_bytes=-1 \
            --set dequantize_ahead=on >"$folder/log" 2>&1 &&
            grep -qE '(^|\] )there is no memory left to dequantize weights ahead$' "$folder/log" && without=$((without + 1))
        rm -rf "$folder/out"
    done
    [ "$without" -eq 2 ]
    report $? "memory for one or none of the buffers of weights ahead, $ranks ranks: $without of 2 runs"
done

# Only rank 1 runs out of memory, while the base is loaded and while the run's vectors are allocated.
for n in 3 11; do
    ends "allocation $n fails on rank 1" 4 'rank 1: GPU 0: cannot allocate' timeout 60 \
        mpirun --quiet --oversubscribe --bind-to none --allow-run-as-root \
        -n 1 "$tandem" "${settings[@]}" --set share_gpus=true : \
        -n 1 env CUDA_HOST_FAIL_ALLOC=$n "$tandem" "${settings[@]}" --set share_gpus=true
done

echo "$passed ok, $failed failed"
[ "$failed" -eq 0 ]
