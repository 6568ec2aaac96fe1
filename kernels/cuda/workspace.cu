// How large the workspace is, and how linear_* divide it.
#include "kernels/cuda/workspace.cuh"

#include "kernels/cuda/attention_internal.cuh"
#include "kernels/cuda/reduction.cuh"

namespace {

constexpr size_t part_align = 256;

size_t larger(size_t a, size_t b) {
    return a > b ? a : b;
}

int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

// Appends a part at *end and returns its offset; SIZE_MAX stays SIZE_MAX.
size_t append(size_t *end, int64_t elements, size_t element_bytes) {
    size_t offset = *end, bytes, padded;
    if (__builtin_mul_overflow(static_cast<size_t>(elements), element_bytes, &bytes) ||
        __builtin_add_overflow(bytes, part_align - 1, &padded) ||
        __builtin_add_overflow(offset, padded / part_align * part_align, end))
        *end = SIZE_MAX;
    return offset;
}

int64_t product(int64_t a, int64_t b) {
    int64_t result;
    return __builtin_mul_overflow(a, b, &result) ? INT64_MAX : result;
}

// Elements of a panel that hold any weight the query promises.
int64_t largest_panel(const td_workspace_query *query) {
    int64_t layer = smaller(query->max_weight_elements, TD_CUDA_NF4_PANEL_ELEMENTS);
    int64_t head =
        smaller(product(query->max_head_rows, query->max_in), TD_CUDA_CAST_PANEL_ELEMENTS);
    return layer > head ? layer : head;
}

// Every part grows with the extents, so the parts at the largest extents hold every layer's.
size_t linear_bytes(const td_workspace_query *query, td_dtype activation) {
    int64_t tokens = query->max_tokens, rank = query->max_rank;
    td_cuda_linear_parts parts = {};
    parts.weight = largest_panel(query);
    parts.dyb = product(tokens, rank);
    parts.masked = rank > 0 ? product(tokens, query->max_in) : 0;
    if (activation == TD_BF16) {
        parts.a = product(rank, query->max_in);
        parts.b = product(query->max_out, rank);
        parts.dy = product(query->max_head_tokens, query->max_head_rows);
    }
    return td_cuda_linear_layout_of(&parts, activation).total;
}

size_t workspace_bytes(const td_workspace_query *query, td_dtype activation) {
    size_t bytes = larger(linear_bytes(query, activation), TD_CUDA_REDUCTION_WORKSPACE_BYTES);
    return larger(bytes, td_cuda_attention_workspace_bytes(query));
}

} // namespace

td_cuda_linear_layout td_cuda_linear_layout_of(const td_cuda_linear_parts *parts,
                                               td_dtype activation) {
    size_t end = TD_CUDA_GEMM_PART_BYTES, bytes = td_dtype_bytes(activation);
    td_cuda_linear_layout layout = {};
    layout.weight = append(&end, parts->weight, bytes);
    layout.a = append(&end, parts->a, bytes);
    layout.b = append(&end, parts->b, bytes);
    layout.masked = append(&end, parts->masked, bytes);
    layout.dyb = append(&end, parts->dyb, bytes);
    layout.dy = append(&end, parts->dy, bytes);
    layout.total = end;
    return layout;
}

const void *td_cuda_weight_in_place(const td_matrix *weight, td_dtype activation) {
    if (weight->format == TD_MATRIX_NF4)
        return weight->resident;
    int has_type = weight->format == (activation == TD_BF16 ? TD_MATRIX_BF16 : TD_MATRIX_F32);
    return has_type ? weight->data : nullptr;
}

// A panel begins at a whole NF4 block and at an address that allows wide accesses: it has a
// multiple of 64 rows. A weight with a resident copy has the panels that it has without: they
// decide how sums are rounded.
int64_t td_cuda_panel_rows(const td_matrix *weight, td_dtype activation) {
    int is_nf4 = weight->format == TD_MATRIX_NF4;
    int64_t elements = is_nf4 ? TD_CUDA_NF4_PANEL_ELEMENTS : TD_CUDA_CAST_PANEL_ELEMENTS;
    int64_t rows = elements / weight->cols / TD_NF4_BLOCK * TD_NF4_BLOCK;
    int is_whole = !is_nf4 && td_cuda_weight_in_place(weight, activation);
    if (is_whole || rows >= weight->rows)
        return weight->rows;
    return rows > 0 ? rows : smaller(TD_NF4_BLOCK, weight->rows);
}

td_status td_cuda_need_workspace(const td_op_context *context, const char *op, size_t bytes) {
    size_t available = context->workspace ? context->workspace_bytes : 0;
    if (available < bytes)
        return td_fail(TD_ERR_INTERNAL, "%s: needs a workspace of %zu bytes, has %zu", op, bytes,
                       available);
    if (reinterpret_cast<uintptr_t>(context->workspace) % 16 != 0)
        return td_fail(TD_ERR_INTERNAL, "%s: the workspace at %p is not aligned to 16 bytes", op,
                       context->workspace);
    return TD_OK;
}

size_t td_cuda_workspace_bytes_bf16(const td_workspace_query *query) {
    return workspace_bytes(query, TD_BF16);
}

size_t td_cuda_workspace_bytes_fp32(const td_workspace_query *query) {
    return workspace_bytes(query, TD_F32);
}
