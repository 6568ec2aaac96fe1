// Plans: descriptors and the algorithm that cuBLASLt's heuristic picks, kept in a cache of fixed
// size. Asking the heuristic costs tens of microseconds, as much as a small product.
#include "kernels/cuda/gemm.cuh"

#include <cublasLt.h>

#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>

#include "kernels/cuda/workspace.cuh"

namespace {

enum {
    MAX_DEVICES = 64,
    SETS = 256, // of the cache; within a set the least recently used plan makes room
    WAYS = 8,
    // More is not asked for: no kernel accesses memory in wider pieces, and allocations that are
    // aligned at all then share their plans, whatever the offsets of buffers in an arena.
    MOST_ALIGNMENT = 16,
};

// All that the choice of an algorithm may depend on. No padding: compared and hashed as bytes.
struct plan_key {
    int32_t m, n, k;
    int32_t lda, ldb, ldc;
    uint8_t transpose_a, transpose_b;
    uint8_t type, c_type;
    uint8_t align_a, align_b, align_c;
    uint8_t accumulates; // beta is not 0
};
static_assert(sizeof(plan_key) == 32, "hashed as four words");

struct plan {
    plan_key key;
    uint64_t last_use; // 0: empty
    cublasLtMatmulDescOpaque_t product;
    cublasLtMatrixLayoutOpaque_t a, b, c;
    cublasLtMatmulAlgo_t algorithm;
};

struct gemm_device {
    cublasLtHandle_t handle;
    std::mutex lock; // of everything here; held while a product is queued, so no plan goes away
    uint64_t uses;
    td_cuda_gemm_counts counts;
    plan plans[SETS][WAYS];
};

std::mutex devices_lock;
gemm_device *devices[MAX_DEVICES]; // alive to the end of the process

td_status check(cublasStatus_t status, const char *op, const char *call) {
    if (status == CUBLAS_STATUS_SUCCESS)
        return TD_OK;
    return td_fail(TD_ERR_INTERNAL, "%s: %s: %s", op, call, cublasLtGetStatusName(status));
}

td_status make_device(int index, const char *op, gemm_device **out) {
    auto *device = static_cast<gemm_device *>(calloc(1, sizeof(gemm_device)));
    if (!device)
        return td_fail(TD_ERR_MEMORY, "%s: no memory for the plans of matrix products", op);
    new (&device->lock) std::mutex;
    td_status status = td_cuda_check(cudaSetDevice(index), op);
    if (status == TD_OK)
        status = check(cublasLtCreate(&device->handle), op, "cublasLtCreate");
    if (status != TD_OK) {
        free(device);
        return status;
    }
    *out = device;
    return TD_OK;
}

td_status device_of(const td_op_context *context, const char *op, gemm_device **out) {
    int index = context->device->index;
    if (index < 0 || index >= MAX_DEVICES)
        return td_fail(TD_ERR_INTERNAL, "%s: GPU %d: there are at most %d", op, index, MAX_DEVICES);
    std::lock_guard<std::mutex> guard(devices_lock);
    if (!devices[index])
        TD_TRY(make_device(index, op, &devices[index]));
    *out = devices[index];
    return TD_OK;
}

// The largest power of two that divides the address, up to MOST_ALIGNMENT.
uint8_t alignment_of(const void *pointer) {
    uintptr_t bits = reinterpret_cast<uintptr_t>(pointer) | MOST_ALIGNMENT;
    return static_cast<uint8_t>(bits & (~bits + 1));
}

plan_key key_of(const td_cuda_gemm_args *args) {
    plan_key key = {};
    key.m = static_cast<int32_t>(args->m);
    key.n = static_cast<int32_t>(args->n);
    key.k = static_cast<int32_t>(args->k);
    key.lda = static_cast<int32_t>(args->lda);
    key.ldb = static_cast<int32_t>(args->ldb);
    key.ldc = static_cast<int32_t>(args->ldc);
    key.transpose_a = args->transpose_a != 0;
    key.transpose_b = args->transpose_b != 0;
    key.type = static_cast<uint8_t>(args->type);
    key.c_type = static_cast<uint8_t>(args->c_type);
    key.align_a = alignment_of(args->a);
    key.align_b = alignment_of(args->b);
    key.align_c = alignment_of(args->c);
    key.accumulates = args->beta != 0.0f;
    return key;
}

uint64_t hash_of(const plan_key &key) {
    uint64_t words[sizeof key / sizeof(uint64_t)], hash = 0;
    memcpy(words, &key, sizeof key);
    for (uint64_t word : words) {
        hash = (hash ^ word) * 0x9E3779B97F4A7C15u;
        hash ^= hash >> 32;
    }
    return hash;
}

cudaDataType_t type_of(uint8_t dtype) {
    return dtype == TD_BF16 ? CUDA_R_16BF : CUDA_R_32F;
}

// A row-major matrix is the column-major form of its transpose, so cuBLASLt, which takes columns,
// is asked for c^T = op(b)^T op(a)^T: b comes first, and the flags stay as they are.
td_status describe(const plan_key &key, const char *op, plan *out) {
    cublasOperation_t transpose_first = key.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasOperation_t transpose_second = key.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    // Pedantic keeps fp32 products fp32: neither TF32 nor sums of bf16 pieces, whatever the
    // environment allows cuBLAS.
    cublasComputeType_t compute =
        key.type == TD_F32 ? CUBLAS_COMPUTE_32F_PEDANTIC : CUBLAS_COMPUTE_32F;
    TD_TRY(check(cublasLtMatmulDescInit(&out->product, compute, CUDA_R_32F), op,
                 "cublasLtMatmulDescInit"));
    TD_TRY(check(cublasLtMatmulDescSetAttribute(&out->product, CUBLASLT_MATMUL_DESC_TRANSA,
                                                &transpose_first, sizeof transpose_first),
                 op, "cublasLtMatmulDescSetAttribute(TRANSA)"));
    TD_TRY(check(cublasLtMatmulDescSetAttribute(&out->product, CUBLASLT_MATMUL_DESC_TRANSB,
                                                &transpose_second, sizeof transpose_second),
                 op, "cublasLtMatmulDescSetAttribute(TRANSB)"));
    auto layout = [&](cublasLtMatrixLayoutOpaque_t *matrix, uint8_t type, int64_t rows,
                      int64_t cols, int64_t ld) {
        return check(cublasLtMatrixLayoutInit(matrix, type_of(type), static_cast<uint64_t>(rows),
                                              static_cast<uint64_t>(cols), ld),
                     op, "cublasLtMatrixLayoutInit");
    };
    TD_TRY(layout(&out->a, key.type, key.transpose_a ? key.m : key.k,
                  key.transpose_a ? key.k : key.m, key.lda));
    TD_TRY(layout(&out->b, key.type, key.transpose_b ? key.k : key.n,
                  key.transpose_b ? key.n : key.k, key.ldb));
    return layout(&out->c, key.c_type, key.n, key.m, key.ldc);
}

// What an algorithm may rely on and do. Sums that are split over blocks are put together in a
// separate pass in fp32, in a fixed order; the other schemes add in the order of arrival, or in
// the output's type.
td_status limit(const plan_key &key, const char *op, cublasLtMatmulPreferenceOpaque_t *out) {
    uint64_t workspace_bytes = TD_CUDA_GEMM_WORKSPACE_BYTES;
    uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    uint32_t align_a = key.align_a, align_b = key.align_b, align_c = key.align_c;
    struct {
        cublasLtMatmulPreferenceAttributes_t attribute;
        const void *value;
        size_t bytes;
    } preferences[] = {
        {CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace_bytes, sizeof workspace_bytes},
        {CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &schemes, sizeof schemes},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &align_b, sizeof align_b},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &align_a, sizeof align_a},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &align_c, sizeof align_c},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &align_c, sizeof align_c},
    };
    TD_TRY(check(cublasLtMatmulPreferenceInit(out), op, "cublasLtMatmulPreferenceInit"));
    for (const auto &preference : preferences)
        TD_TRY(check(cublasLtMatmulPreferenceSetAttribute(out, preference.attribute,
                                                          preference.value, preference.bytes),
                     op, "cublasLtMatmulPreferenceSetAttribute"));
    return TD_OK;
}

td_status no_algorithm(const plan_key &key, const char *op, cublasStatus_t status) {
    return td_fail(TD_ERR_INTERNAL,
                   "%s: cuBLASLt has no algorithm for c (%d, %d)%s = a%s b%s over %d, %s to %s, "
                   "rows of %d, %d, %d at multiples of %d, %d, %d bytes: %s",
                   op, key.m, key.n, key.accumulates ? " +" : "", key.transpose_a ? "^T" : "",
                   key.transpose_b ? "^T" : "", key.k,
                   td_dtype_name(static_cast<td_dtype>(key.type)),
                   td_dtype_name(static_cast<td_dtype>(key.c_type)), key.lda, key.ldb, key.ldc,
                   key.align_a, key.align_b, key.align_c, cublasLtGetStatusName(status));
}

td_status make_plan(gemm_device *device, const plan_key &key, const char *op, plan *out) {
    cublasLtMatmulPreferenceOpaque_t preference;
    cublasLtMatmulHeuristicResult_t result = {};
    int n_results = 0;
    out->last_use = 0; // until it is whole
    TD_TRY(describe(key, op, out));
    TD_TRY(limit(key, op, &preference));
    cublasStatus_t status =
        cublasLtMatmulAlgoGetHeuristic(device->handle, &out->product, &out->b, &out->a, &out->c,
                                       &out->c, &preference, 1, &result, &n_results);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = n_results > 0 ? result.state : CUBLAS_STATUS_NOT_SUPPORTED;
    if (status != CUBLAS_STATUS_SUCCESS)
        return no_algorithm(key, op, status);
    out->algorithm = result.algo;
    out->key = key;
    return TD_OK;
}

// cuBLASLt's part of the workspace, of which TD_CUDA_GEMM_WORKSPACE_BYTES remain.
void *aligned_part(const td_op_context *context) {
    uintptr_t begin = reinterpret_cast<uintptr_t>(context->workspace);
    size_t skipped = (TD_CUDA_GEMM_ALIGN - begin % TD_CUDA_GEMM_ALIGN) % TD_CUDA_GEMM_ALIGN;
    return static_cast<char *>(context->workspace) + skipped;
}

td_status find_plan(gemm_device *device, const plan_key &key, const char *op, const plan **out) {
    plan *set = device->plans[hash_of(key) % SETS], *found = nullptr, *oldest = set;
    for (plan *each = set; each < set + WAYS && !found; each++) {
        if (each->last_use > 0 && memcmp(&each->key, &key, sizeof key) == 0)
            found = each;
        if (each->last_use < oldest->last_use)
            oldest = each;
    }
    if (found) {
        device->counts.found++;
    } else {
        found = oldest;
        TD_TRY(make_plan(device, key, op, found));
        device->counts.made++;
    }
    found->last_use = ++device->uses;
    *out = found;
    return TD_OK;
}

} // namespace

td_status td_cuda_gemm(const td_op_context *context, const char *op,
                       const td_cuda_gemm_args *args) {
    gemm_device *device;
    const plan *found;
    TD_TRY(td_cuda_need_workspace(context, op, TD_CUDA_GEMM_PART_BYTES));
    TD_TRY(device_of(context, op, &device));
    std::lock_guard<std::mutex> guard(device->lock);
    TD_TRY(find_plan(device, key_of(args), op, &found));
    auto *a = const_cast<cublasLtMatrixLayoutOpaque_t *>(&found->a);
    auto *b = const_cast<cublasLtMatrixLayoutOpaque_t *>(&found->b);
    auto *c = const_cast<cublasLtMatrixLayoutOpaque_t *>(&found->c);
    auto *product = const_cast<cublasLtMatmulDescOpaque_t *>(&found->product);
    return check(cublasLtMatmul(device->handle, product, &args->alpha, args->b, b, args->a, a,
                                &args->beta, args->c, c, args->c, c, &found->algorithm,
                                aligned_part(context), TD_CUDA_GEMM_WORKSPACE_BYTES,
                                td_cuda_stream(context)),
                 op, "cublasLtMatmul");
}

td_cuda_gemm_counts td_cuda_gemm_counts_of(int device_index) {
    gemm_device *device;
    {
        std::lock_guard<std::mutex> guard(devices_lock);
        device = devices[device_index];
    }
    if (!device)
        return {};
    std::lock_guard<std::mutex> guard(device->lock);
    return device->counts;
}
