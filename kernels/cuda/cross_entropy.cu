// Cross entropy of rows of logits, and its gradient in place. One block per row.
//
// As on the CPU the target's logit t is kept apart from the others: with m the largest logit and o
// the sum of exp(x - m) over the others, loss = log(o + exp(t - m)) + m - t and the target's
// gradient is -o / (o + exp(t - m)), which keep their digits when the target's probability is
// nearly one. Maximum and sum take one pass (online softmax, Milakov and Gimelshein 2018), the
// gradient another.
#include "kernels/cuda/reduction.cuh"

namespace {

enum : unsigned { LEAST_THREADS = 32, MOST_THREADS = 512 };
enum { ELEMENTS_PER_THREAD = 16 };

// Sum of exp(x - largest). Short fp32 sums are added up in double: a vocabulary is long enough for
// fp32 to lose digits.
struct exponentials {
    float largest;
    double sum;
};

// One row of logits in the quads of the whole matrix: with any vocabulary all but the first and the
// last one are moved 16 bytes at a time. Neighbours in those two belong to other blocks.
struct row_view {
    float *x;           // the start of the first quad
    int64_t begin, end; // of the row, from there
    bool aligned;
};

struct row_shared {
    double sum[TD_CUDA_MOST_WARPS];
    float largest[TD_CUDA_MOST_WARPS];
    float factor, target_gradient;
};

// Nothing to subtract yet: -infinity from -infinity would be NaN.
__device__ __forceinline__ float shift_of(float largest) {
    return largest == -INFINITY ? 0.0f : largest;
}

__device__ __forceinline__ void add_quad(exponentials *total, const td_quad<float> &quad) {
    float largest = fmaxf(fmaxf(quad.x[0], quad.x[1]), fmaxf(quad.x[2], quad.x[3]));
    if (largest > total->largest) {
        total->sum *= static_cast<double>(expf(total->largest - largest));
        total->largest = largest;
    }
    float shift = shift_of(total->largest), e[4];
    for (int k = 0; k < 4; k++)
        e[k] = expf(quad.x[k] - shift);
    total->sum += static_cast<double>((e[0] + e[1]) + (e[2] + e[3]));
}

__device__ row_view view_of(const td_cross_entropy_args &args) {
    int64_t flat = static_cast<int64_t>(blockIdx.x) * args.n_vocabulary, begin = flat % 4;
    return {args.logits + flat - begin, begin, begin + args.n_vocabulary,
            td_is_quad_aligned(args.logits)};
}

// -infinity beside the row: as logits they weigh nothing.
__device__ __forceinline__ td_quad<float> row_load(const row_view &row, int64_t i) {
    if (i >= row.begin)
        return td_quad_load(row.x, i, row.end, row.aligned, -INFINITY);
    td_quad<float> quad;
    for (int k = 0; k < 4; k++)
        quad.x[k] = i + k >= row.begin && i + k < row.end ? row.x[i + k] : -INFINITY;
    return quad;
}

__device__ __forceinline__ void row_store(const row_view &row, int64_t i,
                                          const td_quad<float> &quad) {
    if (i >= row.begin) {
        td_quad_store(row.x, i, row.end, row.aligned, quad);
        return;
    }
    for (int k = 0; k < 4; k++)
        if (i + k >= row.begin && i + k < row.end)
            row.x[i + k] = quad.x[k];
}

// This thread's share of the row, the target (from the first quad) left out.
__device__ exponentials thread_others(const row_view &row, int64_t target) {
    exponentials total = {-INFINITY, 0.0};
    for (int64_t i = 4 * threadIdx.x; i < row.end; i += 4 * blockDim.x) {
        td_quad<float> quad = row_load(row, i);
        for (int k = 0; k < 4; k++)
            quad.x[k] = i + k == target ? -INFINITY : quad.x[k];
        add_quad(&total, quad);
    }
    return total;
}

// When the target is the largest logit its exponential is one, and log1p keeps small losses.
__device__ float row_loss(double others, double target_weight, float largest, float target) {
    if (target == largest)
        return static_cast<float>(log1p(others));
    return static_cast<float>(log(others + target_weight) +
                              (static_cast<double>(largest) - static_cast<double>(target)));
}

// By one thread.
__device__ void row_finish(const td_cross_entropy_args &args, double others, float largest,
                           float target, row_shared *shared) {
    double weight = exp(static_cast<double>(target) - static_cast<double>(largest));
    double total = others + weight, scale = static_cast<double>(args.gradient_scale);
    args.loss[blockIdx.x] = row_loss(others, weight, largest, target);
    shared->factor = static_cast<float>(scale / total);
    shared->target_gradient = static_cast<float>(-others / total * scale);
}

__device__ void write_gradient(const row_view &row, int64_t target, float largest,
                               const row_shared *shared) {
    float factor = shared->factor, target_gradient = shared->target_gradient;
    for (int64_t i = 4 * threadIdx.x; i < row.end; i += 4 * blockDim.x) {
        td_quad<float> quad = row_load(row, i);
        for (int k = 0; k < 4; k++)
            quad.x[k] = i + k == target ? target_gradient : expf(quad.x[k] - largest) * factor;
        row_store(row, i, quad);
    }
}

// A target that is no class reads nothing and makes the row NaN, which the step counts as a fault.
__global__ void __launch_bounds__(MOST_THREADS) cross_entropy_kernel(td_cross_entropy_args args) {
    row_shared *shared = td_cuda_shared<row_shared>();
    row_view row = view_of(args);
    int64_t target = args.targets[blockIdx.x];
    bool is_class = target >= 0 && target < args.n_vocabulary;
    target = is_class ? target + row.begin : -1;
    float logit = is_class ? row.x[target] : NAN;
    exponentials mine = thread_others(row, target);
    float largest = fmaxf(td_block_max(mine.largest, shared->largest), logit);
    mine.sum *= static_cast<double>(expf(mine.largest - largest));
    double others = td_block_sum(mine.sum, shared->sum);
    if (threadIdx.x == 0)
        row_finish(args, others, largest, logit, shared);
    if (!args.gradient)
        return;
    __syncthreads();
    write_gradient(row, target, largest, shared);
}

unsigned threads_for(int64_t n_vocabulary) {
    int64_t threads = n_vocabulary / ELEMENTS_PER_THREAD / 32 * 32;
    if (threads < LEAST_THREADS)
        return LEAST_THREADS;
    return threads < MOST_THREADS ? static_cast<unsigned>(threads) : MOST_THREADS;
}

} // namespace

td_status td_cuda_cross_entropy(const td_op_context *context, const td_cross_entropy_args *args) {
    return td_cuda_launch(context, "cross_entropy", cross_entropy_kernel,
                          static_cast<unsigned>(args->n_rows), threads_for(args->n_vocabulary),
                          sizeof(row_shared), *args);
}
