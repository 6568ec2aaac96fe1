// The workspace of the CUDA operations: who uses what of it.
//
//     [ cuBLASLt | weight | LoRA a | LoRA b | masked x | dyb | dy ]    linear_*
//     [ whatever attention asks for ]                                  attention_*
//     [ partial sums ]                                                 reductions
//
// An operation has all of it for itself, so the whole is as large as the largest user. Sizes depend
// on the extents only, never on the memory that happens to be free: the size of cuBLASLt's part
// decides which algorithms it may choose, and so the bits of the result.
#ifndef TANDEM_KERNELS_CUDA_WORKSPACE_CUH
#define TANDEM_KERNELS_CUDA_WORKSPACE_CUH

#include "kernels/cuda/cuda_internal.cuh"

#if defined(__CUDACC__)
enum : size_t {
    TD_CUDA_GEMM_WORKSPACE_BYTES = 32u << 20, // what NVIDIA recommends for sm_90
};
enum : int64_t {
    // A layer's NF4 weight is dequantized in one piece: the largest of a 70B model has 2^27.8
    // elements. Other formats that need converting, such as a head of another type than the
    // activations, go in smaller pieces.
    TD_CUDA_NF4_PANEL_ELEMENTS = 1 << 28,
    TD_CUDA_CAST_PANEL_ELEMENTS = 1 << 26,
};
#else // small extents that the tests reach
enum : size_t {
    TD_CUDA_GEMM_WORKSPACE_BYTES = 1u << 20,
};
enum : int64_t {
    TD_CUDA_NF4_PANEL_ELEMENTS = 1 << 20,
    TD_CUDA_CAST_PANEL_ELEMENTS = 1 << 18,
};
#endif

// cuBLASLt wants its part on multiples of 256 bytes, wherever the workspace begins.
enum : size_t {
    TD_CUDA_GEMM_ALIGN = 256,
    TD_CUDA_GEMM_PART_BYTES = TD_CUDA_GEMM_WORKSPACE_BYTES + TD_CUDA_GEMM_ALIGN,
};

// What linear_* keep beside cuBLASLt's part, in elements of the activation type; 0: not needed.
typedef struct td_cuda_linear_parts {
    int64_t weight; // panel of the weight in the activation type
    int64_t a, b;   // (rank, in), (out, rank)
    int64_t masked; // (T, in): input with the dropped elements zeroed, or LoRA's part of dx
    int64_t dyb;    // (T, rank): scaling * dy B
    int64_t dy;     // (T, out): fp32 gradient of logits, rounded
} td_cuda_linear_parts;

// Where each part begins, in bytes from the start of the workspace.
typedef struct td_cuda_linear_layout {
    size_t weight, a, b, masked, dyb, dy;
    size_t total;
} td_cuda_linear_layout;

// SIZE_MAX in total when the sum does not fit.
td_cuda_linear_layout td_cuda_linear_layout_of(const td_cuda_linear_parts *parts,
                                               td_dtype activation);

// Rows of a weight that are multiplied with at a time, because they are converted to the activation
// type at a time; all of them where the format is that type.
int64_t td_cuda_panel_rows(const td_matrix *weight, td_dtype activation);
// All of the weight in the activation type, or NULL when it has to be converted.
const void *td_cuda_weight_in_place(const td_matrix *weight, td_dtype activation);

// TD_ERR_INTERNAL, with both numbers, unless the context's workspace has `bytes` and is aligned for
// 16-byte accesses.
td_status td_cuda_need_workspace(const td_op_context *context, const char *op, size_t bytes);

#endif
