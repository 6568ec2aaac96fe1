// What the emulated cuBLASLt keeps in its opaque structures.
#ifndef CUDA_HOST_CUBLASLT_INTERNAL_H
#define CUDA_HOST_CUBLASLT_INTERNAL_H

#include <cstring>

#include "cublasLt.h"

enum : uint64_t {
    LT_LAYOUT = 0x4c61796f7574u, // marks of initialised structures
    LT_PRODUCT = 0x50726f64u,
    LT_PREFERENCE = 0x50726566u,
    LT_ALGORITHM = 0x416c676fu,
};

enum : uint32_t { LT_WIDEST_ACCESS = 16 }; // bytes

struct lt_layout {
    uint64_t mark;
    int64_t rows, cols, ld;
    int32_t type, order;
};

struct lt_product {
    uint64_t mark;
    int32_t compute, scale;
    int32_t transpose_a, transpose_b;
};

struct lt_preference {
    uint64_t mark, workspace_bytes;
    uint32_t schemes;
    uint32_t align[4]; // of a, b, c, d
};

// `problem` is of the product and the layouts that the heuristic was asked about: an algorithm is
// good for no other.
struct lt_algorithm {
    uint64_t mark, problem, workspace_bytes;
    uint32_t align[4];
    uint32_t unordered; // sums come together in the order of arrival
};

// Copies between an opaque structure and what is in it.
template <typename T, typename Opaque> T lt_read(const Opaque *opaque) {
    static_assert(sizeof(T) <= sizeof(Opaque), "fits");
    T value;
    memcpy(&value, opaque, sizeof value);
    return value;
}
template <typename T, typename Opaque> void lt_write(Opaque *opaque, const T &value) {
    static_assert(sizeof(T) <= sizeof(Opaque), "fits");
    memset(opaque, 0, sizeof *opaque);
    memcpy(opaque, &value, sizeof value);
}

struct lt_problem {
    lt_product product;
    lt_layout a, b, c, d;
};

// Aborts unless everything is initialised and the extents and leading dimensions fit together.
lt_problem lt_problem_of(cublasLtMatmulDesc_t product, cublasLtMatrixLayout_t a,
                         cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c,
                         cublasLtMatrixLayout_t d);
uint64_t lt_hash(const lt_problem &problem);
bool lt_has_algorithm(const lt_problem &problem);

inline size_t lt_element_bytes(int32_t type) {
    return type == CUDA_R_32F ? 4 : 2;
}
inline int64_t lt_op_rows(const lt_layout &layout, int32_t transpose) {
    return transpose == CUBLAS_OP_N ? layout.rows : layout.cols;
}
inline int64_t lt_op_cols(const lt_layout &layout, int32_t transpose) {
    return transpose == CUBLAS_OP_N ? layout.cols : layout.rows;
}
// Elements in a row of memory, and how many such rows there are.
inline int64_t lt_minor(const lt_layout &layout) {
    return layout.order == CUBLASLT_ORDER_COL ? layout.rows : layout.cols;
}
inline int64_t lt_major(const lt_layout &layout) {
    return layout.order == CUBLASLT_ORDER_COL ? layout.cols : layout.rows;
}

#endif
