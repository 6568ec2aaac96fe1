// Cross entropy of rows of logits, and its gradient in place. One block per row.
//
// As on the CPU the target's logit t is kept apart from the others: with m the largest logit and o
// the sum of exp(x - m) over the others, loss = log(o + exp(t - m)) + m - t and the target's
// gradient is -o / (o + exp(t - m)), which keep their digits when the target's probability is
// nearly one. Maximum and sum take one pass (online softmax, Milakov and Gimelshein 2018), the
// gradient another. A soft cap (Gemma 2) is taken anew in each: writing the capped logits between
// them would cost more, and without gradient the logits must stay.
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

// The softmax is of cap tanh(x / cap).
struct soft_cap {
    float cap, inverse;
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

// Its slope is 1 - t^2 with t = tanh(u), here exp(-2 |u|) (1 + |t|)^2, in which nothing cancels
// where t is nearly one.
struct capped_logit {
    float value, slope;
};

__device__ __forceinline__ capped_logit cap_logit(const soft_cap &cap, float x) {
    float u = x * cap.inverse, t = tanhf(u), grown = 1.0f + fabsf(t);
    return {__fmul_rn(t, cap.cap), expf(-2.0f * fabsf(u)) * (grown * grown)};
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

// As the softmax takes it. Capped, a logit of -infinity weighs something, and what is beside the
// row is told by its place.
template <bool CAPPED>
__device__ __forceinline__ float weighed(const row_view &row, const soft_cap &cap, int64_t i,
                                         float x) {
    if (!CAPPED)
        return x;
    return i >= row.begin && i < row.end ? cap_logit(cap, x).value : -INFINITY;
}

// This thread's share of the row, the target (from the first quad) left out.
template <bool CAPPED>
__device__ exponentials thread_others(const row_view &row, const soft_cap &cap, int64_t target) {
    exponentials total = {-INFINITY, 0.0};
    for (int64_t i = 4 * threadIdx.x; i < row.end; i += 4 * blockDim.x) {
        td_quad<float> quad = row_load(row, i);
        for (int k = 0; k < 4; k++)
            quad.x[k] = i + k == target ? -INFINITY : weighed<CAPPED>(row, cap, i + k, quad.x[k]);
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
                           const capped_logit &target, row_shared *shared) {
    double weight = exp(static_cast<double>(target.value) - static_cast<double>(largest));
    double total = others + weight, scale = static_cast<double>(args.gradient_scale);
    args.loss[blockIdx.x] = row_loss(others, weight, largest, target.value);
    shared->factor = static_cast<float>(scale / total);
    shared->target_gradient =
        static_cast<float>(-others / total * scale * static_cast<double>(target.slope));
}

// exp(z - largest), times the slope of z.
template <bool CAPPED>
__device__ __forceinline__ float gradient_of(const soft_cap &cap, float x, float largest) {
    if (!CAPPED)
        return expf(x - largest);
    capped_logit capped = cap_logit(cap, x);
    return expf(capped.value - largest) * capped.slope;
}

template <bool CAPPED>
__device__ void write_gradient(const row_view &row, const soft_cap &cap, int64_t target,
                               float largest, const row_shared *shared) {
    float factor = shared->factor, target_gradient = shared->target_gradient;
    for (int64_t i = 4 * threadIdx.x; i < row.end; i += 4 * blockDim.x) {
        td_quad<float> quad = row_load(row, i);
        for (int k = 0; k < 4; k++)
            quad.x[k] = i + k == target ? target_gradient
                                        : gradient_of<CAPPED>(cap, quad.x[k], largest) * factor;
        row_store(row, i, quad);
    }
}

// A target that is no class reads nothing and makes the row NaN, which the step counts as a fault.
template <bool CAPPED>
__global__ void __launch_bounds__(MOST_THREADS)
    cross_entropy_kernel(td_cross_entropy_args args, soft_cap cap) {
    row_shared *shared = td_cuda_shared<row_shared>();
    row_view row = view_of(args);
    int64_t target = args.targets[blockIdx.x];
    bool is_class = target >= 0 && target < args.n_vocabulary;
    target = is_class ? target + row.begin : -1;
    capped_logit logit = {is_class ? row.x[target] : NAN, 1.0f};
    if (CAPPED)
        logit = cap_logit(cap, logit.value);
    exponentials mine = thread_others<CAPPED>(row, cap, target);
    float largest = fmaxf(td_block_max(mine.largest, shared->largest), logit.value);
    mine.sum *= static_cast<double>(expf(mine.largest - largest));
    double others = td_block_sum(mine.sum, shared->sum);
    if (threadIdx.x == 0)
        row_finish(args, others, largest, logit, shared);
    if (!args.gradient)
        return;
    __syncthreads();
    write_gradient<CAPPED>(row, cap, target, largest, shared);
}

unsigned threads_for(int64_t n_vocabulary) {
    int64_t threads = n_vocabulary / ELEMENTS_PER_THREAD / 32 * 32;
    if (threads < LEAST_THREADS)
        return LEAST_THREADS;
    return threads < MOST_THREADS ? static_cast<unsigned>(threads) : MOST_THREADS;
}

} // namespace

td_status td_cuda_cross_entropy(const td_op_context *context, const td_cross_entropy_args *args) {
    bool capped = args->softcap > 0.0f;
    auto kernel = capped ? cross_entropy_kernel<true> : cross_entropy_kernel<false>;
    soft_cap cap = {args->softcap, capped ? 1.0f / args->softcap : 0.0f};
    return td_cuda_launch(context, "cross_entropy", kernel, static_cast<unsigned>(args->n_rows),
                          threads_for(args->n_vocabulary), sizeof(row_shared), *args, cap);
}
