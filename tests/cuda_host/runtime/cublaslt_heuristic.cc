// The choice of an algorithm, made to be as unkind as cuBLASLt may be: it relies on every bit of
// alignment and every reduction scheme that the preferences allow, and wants workspace always.
#include "cublaslt_internal.h"
#include "cuda_host.h"

enum : uint64_t { WORKSPACE_STEP = 4096, WORKSPACE_STEPS = 16 };

static void check_layout(const char *name, const lt_layout &layout) {
    if (layout.mark != LT_LAYOUT)
        cuda_host_fail("cuBLASLt: the layout of %s was not initialised", name);
    if (layout.rows <= 0 || layout.cols <= 0)
        cuda_host_fail("cuBLASLt: %s is %lld by %lld", name, static_cast<long long>(layout.rows),
                       static_cast<long long>(layout.cols));
    if (layout.ld < lt_minor(layout))
        cuda_host_fail("cuBLASLt: %s has a leading dimension of %lld, at least %lld is needed",
                       name, static_cast<long long>(layout.ld),
                       static_cast<long long>(lt_minor(layout)));
}

static void check_extents(const lt_problem &problem) {
    int64_t m = lt_op_rows(problem.a, problem.product.transpose_a);
    int64_t k = lt_op_cols(problem.a, problem.product.transpose_a);
    int64_t n = lt_op_cols(problem.b, problem.product.transpose_b);
    if (lt_op_rows(problem.b, problem.product.transpose_b) != k || problem.d.rows != m ||
        problem.d.cols != n)
        cuda_host_fail("cuBLASLt: extents do not fit: op(a) %lld by %lld, op(b) %lld by %lld, d "
                       "%lld by %lld",
                       static_cast<long long>(m), static_cast<long long>(k),
                       static_cast<long long>(lt_op_rows(problem.b, problem.product.transpose_b)),
                       static_cast<long long>(n), static_cast<long long>(problem.d.rows),
                       static_cast<long long>(problem.d.cols));
    if (memcmp(&problem.c, &problem.d, sizeof problem.c) != 0)
        cuda_host_fail("cuBLASLt: c and d of different layouts are not emulated");
}

lt_problem lt_problem_of(cublasLtMatmulDesc_t product, cublasLtMatrixLayout_t a,
                         cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c,
                         cublasLtMatrixLayout_t d) {
    lt_problem problem;
    memset(&problem, 0, sizeof problem);
    problem.product = lt_read<lt_product>(product);
    problem.a = lt_read<lt_layout>(a);
    problem.b = lt_read<lt_layout>(b);
    problem.c = lt_read<lt_layout>(c);
    problem.d = lt_read<lt_layout>(d);
    if (problem.product.mark != LT_PRODUCT)
        cuda_host_fail("cuBLASLt: the product's descriptor was not initialised");
    check_layout("a", problem.a);
    check_layout("b", problem.b);
    check_layout("c", problem.c);
    check_layout("d", problem.d);
    check_extents(problem);
    return problem;
}

uint64_t lt_hash(const lt_problem &problem) {
    unsigned char bytes[sizeof problem];
    uint64_t hash = 0xcbf29ce484222325u;
    memcpy(bytes, &problem, sizeof bytes);
    for (unsigned char byte : bytes)
        hash = (hash ^ byte) * 0x100000001b3u;
    return hash;
}

// Sums in fp32: fp32 to fp32 without TF32, or bf16 to bf16 or fp32.
bool lt_has_algorithm(const lt_problem &problem) {
    const lt_product &product = problem.product;
    if (product.scale != CUDA_R_32F || problem.a.type != problem.b.type)
        return false;
    if (product.compute == CUBLAS_COMPUTE_32F_PEDANTIC)
        return problem.a.type == CUDA_R_32F && problem.d.type == CUDA_R_32F;
    return product.compute == CUBLAS_COMPUTE_32F &&
           (problem.a.type == CUDA_R_16BF || problem.d.type == CUDA_R_32F);
}

static uint64_t wanted_workspace(uint64_t hash, uint64_t allowed) {
    uint64_t bytes = ((hash >> 20) % WORKSPACE_STEPS + 1) * WORKSPACE_STEP;
    return bytes < allowed ? bytes : allowed;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t product,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference,
                                              int n_requested,
                                              cublasLtMatmulHeuristicResult_t results[],
                                              int *n_returned) {
    lt_preference limits = lt_read<lt_preference>(preference);
    lt_problem problem = lt_problem_of(product, a, b, c, d);
    if (!handle || n_requested <= 0 || limits.mark != LT_PREFERENCE)
        return CUBLAS_STATUS_INVALID_VALUE;
    *n_returned = 0;
    if (!lt_has_algorithm(problem))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    lt_algorithm algorithm = {};
    algorithm.mark = LT_ALGORITHM;
    algorithm.problem = lt_hash(problem);
    algorithm.workspace_bytes = wanted_workspace(algorithm.problem, limits.workspace_bytes);
    algorithm.unordered = (limits.schemes & (CUBLASLT_REDUCTION_SCHEME_INPLACE |
                                             CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE)) != 0;
    for (int i = 0; i < 4; i++)
        algorithm.align[i] =
            limits.align[i] < LT_WIDEST_ACCESS ? limits.align[i] : LT_WIDEST_ACCESS;
    results[0] = {};
    lt_write(&results[0].algo, algorithm);
    results[0].workspaceSize = algorithm.workspace_bytes;
    results[0].state = CUBLAS_STATUS_SUCCESS;
    results[0].wavesCount = 1.0f;
    *n_returned = 1;
    return CUBLAS_STATUS_SUCCESS;
}
