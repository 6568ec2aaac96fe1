// The sum of words modulo 2^64: integers, so that warps may add theirs in any order.
#include "kernels/cuda/reduction.cuh"

namespace {

constexpr int QUADS = 8; // of a thread

__global__ void word_sum_kernel(td_word_sum_args args, bool aligned) {
    int64_t n = args.n_elements, threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
    int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    uint64_t sum = 0;
#pragma unroll
    for (int k = 0; k < QUADS; k++) {
        td_quad<int64_t> words = td_quad_load(args.words, (thread + k * threads) * 4, n, aligned);
        for (int64_t word : words.x) // zeros behind the end
            sum += static_cast<uint64_t>(word);
    }
    td_warp_add(td_warp_sum(sum), args.sum);
}

} // namespace

td_status td_cuda_word_sum(const td_op_context *context, const td_word_sum_args *args) {
    unsigned blocks = td_cuda_blocks(args->n_elements, 4 * QUADS * TD_CUDA_REDUCTION_THREADS);
    return td_cuda_launch(context, "word_sum", word_sum_kernel, blocks, TD_CUDA_REDUCTION_THREADS,
                          0, *args, td_is_quad_aligned(args->words));
}
