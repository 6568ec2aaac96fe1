// Products of the emulated cuBLASLt: queued on the stream, operands read when it gets there, summed
// in fp32 by OpenBLAS on one thread, so that the bits depend on nothing but the operands.
#include <cblas.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "cublaslt_internal.h"
#include "cuda_host.h"

namespace {

struct product_call {
    lt_problem problem;
    lt_algorithm algorithm;
    float alpha, beta;
    const void *a, *b, *c;
    void *d, *workspace;
    size_t workspace_bytes;
};

size_t bytes_of(const lt_layout &layout) {
    int64_t elements = (lt_major(layout) - 1) * layout.ld + lt_minor(layout);
    return static_cast<size_t>(elements) * lt_element_bytes(layout.type);
}

void check_operand(const char *name, const void *memory, const lt_layout &layout, uint32_t align) {
    if (reinterpret_cast<uintptr_t>(memory) % align != 0)
        cuda_host_fail("cublasLtMatmul: %s at %p, but the algorithm was chosen for multiples of %u",
                       name, memory, align);
    cuda_host_check_range(memory, bytes_of(layout), name);
}

bool overlap(const void *x, size_t x_bytes, const void *y, size_t y_bytes) {
    uintptr_t first = reinterpret_cast<uintptr_t>(x), second = reinterpret_cast<uintptr_t>(y);
    return first < second + y_bytes && second < first + x_bytes;
}

// Where reading and writing would race on a GPU.
void check_overlaps(const product_call &call) {
    const lt_problem &problem = call.problem;
    struct {
        const char *name;
        const void *memory;
        size_t bytes;
    } ranges[] = {{"a", call.a, bytes_of(problem.a)},
                  {"b", call.b, bytes_of(problem.b)},
                  {"d", call.d, bytes_of(problem.d)}};
    for (const auto &range : ranges) {
        if (overlap(range.memory, range.bytes, call.workspace, call.workspace_bytes))
            cuda_host_fail("cublasLtMatmul: %s lies in the workspace", range.name);
        if (range.memory != call.d &&
            overlap(range.memory, range.bytes, call.d, bytes_of(problem.d)))
            cuda_host_fail("cublasLtMatmul: %s overlaps d", range.name);
    }
    if (call.a == call.d || call.b == call.d)
        cuda_host_fail("cublasLtMatmul: an operand is d");
    if (call.c != call.d && call.beta != 0.0f)
        cuda_host_fail("cublasLtMatmul: c other than d is not emulated");
}

void check_call(const product_call &call) {
    const lt_algorithm &algorithm = call.algorithm;
    if (algorithm.mark != LT_ALGORITHM || algorithm.problem != lt_hash(call.problem))
        cuda_host_fail("cublasLtMatmul: the algorithm was chosen for another product");
    if (call.workspace_bytes < algorithm.workspace_bytes)
        cuda_host_fail("cublasLtMatmul: the algorithm needs %llu bytes of workspace, has %zu",
                       static_cast<unsigned long long>(algorithm.workspace_bytes),
                       call.workspace_bytes);
    if (reinterpret_cast<uintptr_t>(call.workspace) % 256 != 0)
        cuda_host_fail("cublasLtMatmul: the workspace at %p is not aligned to 256 bytes",
                       call.workspace);
    cuda_host_check_range(call.workspace, call.workspace_bytes, "workspace");
    check_operand("a", call.a, call.problem.a, algorithm.align[0]);
    check_operand("b", call.b, call.problem.b, algorithm.align[1]);
    check_operand("c", call.c, call.problem.c, algorithm.align[2]);
    check_operand("d", call.d, call.problem.d, algorithm.align[3]);
    check_overlaps(call);
}

float to_float(uint16_t bits) {
    uint32_t word = static_cast<uint32_t>(bits) << 16;
    float value;
    memcpy(&value, &word, sizeof value);
    return value;
}

float to_float(float value) {
    return value;
}

void from_float(float value, float *out) {
    *out = value;
}

// To nearest even.
void from_float(float value, uint16_t *out) {
    uint32_t word;
    memcpy(&word, &value, sizeof word);
    *out =
        value != value ? 0x7fff : static_cast<uint16_t>((word + 0x7fff + (word >> 16 & 1)) >> 16);
}

template <typename T> std::vector<float> widen(const void *memory, const lt_layout &layout) {
    int64_t minor = lt_minor(layout), major = lt_major(layout);
    std::vector<float> out(static_cast<size_t>(minor * major));
    for (int64_t j = 0; j < major; j++)
        for (int64_t i = 0; i < minor; i++)
            out[static_cast<size_t>(j * minor + i)] =
                to_float(static_cast<const T *>(memory)[j * layout.ld + i]);
    return out;
}

// The matrix as it lies in memory without gaps: columns of `minor` elements.
std::vector<float> operand(const void *memory, const lt_layout &layout) {
    return layout.type == CUDA_R_32F ? widen<float>(memory, layout)
                                     : widen<uint16_t>(memory, layout);
}

CBLAS_TRANSPOSE transpose_of(const lt_layout &layout, int32_t transpose) {
    bool rows_first = layout.order == CUBLASLT_ORDER_ROW;
    return (transpose == CUBLAS_OP_T) != rows_first ? CblasTrans : CblasNoTrans;
}

// sum (+)= op(a) op(b) over [begin, end) of the inner extent.
struct sum_of_products {
    const lt_problem *problem;
    std::vector<float> a, b, sum; // sum: (m, n) by columns
    int64_t m, n, k;

    void add(int64_t begin, int64_t end, float beta) {
        CBLAS_TRANSPOSE op_a = transpose_of(problem->a, problem->product.transpose_a);
        CBLAS_TRANSPOSE op_b = transpose_of(problem->b, problem->product.transpose_b);
        int64_t lda = lt_minor(problem->a), ldb = lt_minor(problem->b);
        const float *first = a.data() + begin * (op_a == CblasNoTrans ? lda : 1);
        const float *second = b.data() + begin * (op_b == CblasNoTrans ? 1 : ldb);
        cblas_sgemm(CblasColMajor, op_a, op_b, static_cast<blasint>(m), static_cast<blasint>(n),
                    static_cast<blasint>(end - begin), 1.0f, first, static_cast<blasint>(lda),
                    second, static_cast<blasint>(ldb), beta, sum.data(), static_cast<blasint>(m));
    }
};

// How much of a sum is taken first. Algorithms for narrower accesses sum in an order of their own,
// unordered ones wherever their blocks happen to meet.
int64_t first_part(const lt_algorithm &algorithm, int64_t k) {
    uint32_t align = 0;
    for (uint32_t each : algorithm.align)
        align += each;
    if (algorithm.unordered && k > 1)
        return 1 + cuda_host_random(static_cast<uint32_t>(k - 1));
    return std::max<int64_t>(1, k * align / (4 * LT_WIDEST_ACCESS));
}

std::vector<float> multiply(const product_call &call) {
    const lt_problem &problem = call.problem;
    sum_of_products product;
    product.problem = &problem;
    product.a = operand(call.a, problem.a);
    product.b = operand(call.b, problem.b);
    product.m = problem.d.rows;
    product.n = problem.d.cols;
    product.k = lt_op_cols(problem.a, problem.product.transpose_a);
    product.sum.resize(static_cast<size_t>(product.m * product.n));
    int threads = openblas_get_num_threads();
    openblas_set_num_threads(1);
    int64_t split = first_part(call.algorithm, product.k);
    product.add(0, split, 0.0f);
    if (split < product.k)
        product.add(split, product.k, 1.0f);
    openblas_set_num_threads(threads);
    return std::move(product.sum);
}

// d = alpha * sum + beta * d, rounded once.
template <typename T> void store(const product_call &call, const std::vector<float> &sum) {
    const lt_layout &layout = call.problem.d;
    T *d = static_cast<T *>(call.d);
    for (int64_t j = 0; j < layout.cols; j++)
        for (int64_t i = 0; i < layout.rows; i++) {
            T *at =
                d + (layout.order == CUBLASLT_ORDER_COL ? j * layout.ld + i : i * layout.ld + j);
            float value = call.alpha * sum[static_cast<size_t>(j * layout.rows + i)];
            if (call.beta != 0.0f)
                value += call.beta * to_float(*at);
            from_float(value, at);
        }
}

int run(void *state) {
    const product_call &call = *static_cast<const product_call *>(state);
    std::vector<float> sum = multiply(call);
    if (call.workspace_bytes > 0)
        memset(call.workspace, 0xff, call.workspace_bytes); // all of it is cuBLASLt's
    if (call.problem.d.type == CUDA_R_32F)
        store<float>(call, sum);
    else
        store<uint16_t>(call, sum);
    return 1;
}

void release(void *state) {
    delete static_cast<product_call *>(state);
}

} // namespace

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t product,
                              const void *alpha, const void *a, cublasLtMatrixLayout_t a_layout,
                              const void *b, cublasLtMatrixLayout_t b_layout, const void *beta,
                              const void *c, cublasLtMatrixLayout_t c_layout, void *d,
                              cublasLtMatrixLayout_t d_layout,
                              const cublasLtMatmulAlgo_t *algorithm, void *workspace,
                              size_t workspace_bytes, cudaStream_t stream) {
    if (!handle || !algorithm)
        return CUBLAS_STATUS_INVALID_VALUE;
    auto call = std::make_unique<product_call>();
    call->problem = lt_problem_of(product, a_layout, b_layout, c_layout, d_layout);
    call->algorithm = lt_read<lt_algorithm>(algorithm);
    memcpy(&call->alpha, alpha, sizeof call->alpha);
    memcpy(&call->beta, beta, sizeof call->beta);
    call->a = a;
    call->b = b;
    call->c = c;
    call->d = d;
    call->workspace = workspace;
    call->workspace_bytes = workspace_bytes;
    check_call(*call);
    if (cuda_host_enqueue(stream, "cublasLtMatmul", run, call.release(), release) != cudaSuccess)
        return CUBLAS_STATUS_EXECUTION_FAILED;
    return CUBLAS_STATUS_SUCCESS;
}
