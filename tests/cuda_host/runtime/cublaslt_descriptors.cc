// Descriptors of the emulated cuBLASLt. An attribute that the emulation would ignore is an error.
#include "cublaslt_internal.h"
#include "cuda_host.h"

struct cublasLtContext {
    int unused;
};

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) {
    *handle = new cublasLtContext();
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
    delete handle;
    return CUBLAS_STATUS_SUCCESS;
}

size_t cublasLtGetVersion(void) {
    return 130000;
}

const char *cublasLtGetStatusName(cublasStatus_t status) {
    switch (status) {
    case CUBLAS_STATUS_SUCCESS:
        return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED:
        return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_ALLOC_FAILED:
        return "CUBLAS_STATUS_ALLOC_FAILED";
    case CUBLAS_STATUS_INVALID_VALUE:
        return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_ARCH_MISMATCH:
        return "CUBLAS_STATUS_ARCH_MISMATCH";
    case CUBLAS_STATUS_MAPPING_ERROR:
        return "CUBLAS_STATUS_MAPPING_ERROR";
    case CUBLAS_STATUS_EXECUTION_FAILED:
        return "CUBLAS_STATUS_EXECUTION_FAILED";
    case CUBLAS_STATUS_INTERNAL_ERROR:
        return "CUBLAS_STATUS_INTERNAL_ERROR";
    case CUBLAS_STATUS_NOT_SUPPORTED:
        return "CUBLAS_STATUS_NOT_SUPPORTED";
    case CUBLAS_STATUS_LICENSE_ERROR:
        return "CUBLAS_STATUS_LICENSE_ERROR";
    }
    return "CUBLAS_STATUS_UNKNOWN";
}

const char *cublasLtGetStatusString(cublasStatus_t status) {
    return cublasLtGetStatusName(status);
}

// Reads an attribute's value of exactly the type that cuBLASLt documents.
template <typename T>
static T value_of(const char *call, int attribute, const void *value, size_t bytes) {
    T out;
    if (!value || bytes != sizeof out)
        cuda_host_fail("%s: attribute %d has %zu bytes, not %zu", call, attribute, sizeof out,
                       bytes);
    memcpy(&out, value, sizeof out);
    return out;
}

cublasStatus_t cublasLtMatrixLayoutInit_internal(cublasLtMatrixLayout_t layout, size_t bytes,
                                                 cudaDataType type, uint64_t rows, uint64_t cols,
                                                 int64_t ld) {
    if (!layout || bytes < sizeof *layout || (type != CUDA_R_32F && type != CUDA_R_16BF))
        return CUBLAS_STATUS_INVALID_VALUE;
    lt_layout state = {};
    state.mark = LT_LAYOUT;
    state.rows = static_cast<int64_t>(rows);
    state.cols = static_cast<int64_t>(cols);
    state.ld = ld;
    state.type = type;
    state.order = CUBLASLT_ORDER_COL;
    lt_write(layout, state);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t attribute,
                                                const void *value, size_t bytes) {
    static const char call[] = "cublasLtMatrixLayoutSetAttribute";
    lt_layout state = lt_read<lt_layout>(layout);
    if (attribute != CUBLASLT_MATRIX_LAYOUT_ORDER)
        cuda_host_fail("%s: attribute %d is not emulated", call, attribute);
    state.order = value_of<int32_t>(call, attribute, value, bytes);
    if (state.order != CUBLASLT_ORDER_COL && state.order != CUBLASLT_ORDER_ROW)
        cuda_host_fail("%s: order %d is not emulated", call, state.order);
    lt_write(layout, state);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescInit_internal(cublasLtMatmulDesc_t product, size_t bytes,
                                               cublasComputeType_t compute, cudaDataType_t scale) {
    if (!product || bytes < sizeof *product)
        return CUBLAS_STATUS_INVALID_VALUE;
    lt_product state = {};
    state.mark = LT_PRODUCT;
    state.compute = compute;
    state.scale = scale;
    lt_write(product, state);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t product,
                                              cublasLtMatmulDescAttributes_t attribute,
                                              const void *value, size_t bytes) {
    static const char call[] = "cublasLtMatmulDescSetAttribute";
    lt_product state = lt_read<lt_product>(product);
    if (attribute != CUBLASLT_MATMUL_DESC_TRANSA && attribute != CUBLASLT_MATMUL_DESC_TRANSB)
        cuda_host_fail("%s: attribute %d is not emulated", call, attribute);
    int32_t transpose = value_of<int32_t>(call, attribute, value, bytes);
    if (transpose != CUBLAS_OP_N && transpose != CUBLAS_OP_T)
        cuda_host_fail("%s: operation %d is not emulated", call, transpose);
    (attribute == CUBLASLT_MATMUL_DESC_TRANSA ? state.transpose_a : state.transpose_b) = transpose;
    lt_write(product, state);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceInit_internal(cublasLtMatmulPreference_t preference,
                                                     size_t bytes) {
    if (!preference || bytes < sizeof *preference)
        return CUBLAS_STATUS_INVALID_VALUE;
    lt_preference state = {};
    state.mark = LT_PREFERENCE;
    state.schemes = CUBLASLT_REDUCTION_SCHEME_MASK;
    for (uint32_t &align : state.align)
        align = 256;
    lt_write(preference, state);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void *value, size_t bytes) {
    static const char call[] = "cublasLtMatmulPreferenceSetAttribute";
    lt_preference state = lt_read<lt_preference>(preference);
    switch (attribute) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
        state.workspace_bytes = value_of<uint64_t>(call, attribute, value, bytes);
        break;
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
        state.schemes = value_of<uint32_t>(call, attribute, value, bytes);
        break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
        state.align[attribute - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES] =
            value_of<uint32_t>(call, attribute, value, bytes);
        break;
    default:
        cuda_host_fail("%s: attribute %d is not emulated", call, attribute);
    }
    lt_write(preference, state);
    return CUBLAS_STATUS_SUCCESS;
}
