// How attention is cut into blocks, and the packed copies of them.
#include <string.h>

#include "kernels/cpu/attention_internal.h"

td_attention_plan td_attention_plan_make(int64_t n_heads, int64_t n_kv_heads, int64_t head_dim) {
    td_attention_plan plan = {.n_heads = n_heads, .n_kv_heads = n_kv_heads, .head_dim = head_dim};
    plan.out_stride = n_heads * head_dim;
    plan.heads_per_key = n_heads / n_kv_heads;
    plan.block_tokens = TD_ATTENTION_ROWS / plan.heads_per_key;
    plan.block_tokens = plan.block_tokens > 0 ? plan.block_tokens : 1;
    plan.block_rows = plan.block_tokens * plan.heads_per_key;
    plan.packed_cols = td_lanes_round_up(head_dim);
    plan.packed_stride = plan.packed_cols | TD_LANES;
    return plan;
}

td_attention_plan td_attention_plan_of(const td_attention_shape *shape) {
    td_attention_plan plan =
        td_attention_plan_make(shape->n_heads, shape->n_kv_heads, shape->head_dim);
    plan.window = shape->window;
    plan.scale = shape->scale;
    plan.softcap = shape->softcap;
    plan.q_stride = shape->q_stride;
    plan.k_stride = shape->k_stride;
    plan.v_stride = shape->v_stride;
    return plan;
}

void td_attention_queries_fill(const td_attention_plan *plan, const td_attention_sequence *sequence,
                               int64_t block, td_attention_queries *queries) {
    int64_t begin = block * plan->block_tokens, end = begin + plan->block_tokens;
    queries->tokens = (td_cpu_range){begin, end < sequence->n_q ? end : sequence->n_q};
    int64_t row = 0;
    for (int64_t token = begin; token < queries->tokens.end; token++) {
        td_cpu_range visible = td_attention_visible(plan, sequence, token);
        for (int64_t head = 0; head < plan->heads_per_key; head++)
            queries->visible[row++] = visible;
    }
    queries->n_rows = row;
    queries->keys = (td_cpu_range){queries->visible[0].begin, queries->visible[row - 1].end};
}

td_cpu_range td_attention_columns(const td_attention_queries *queries, td_cpu_range rows,
                                  int64_t first_key, int64_t n_keys) {
    int64_t begin = queries->visible[rows.begin].begin - first_key;
    int64_t end = queries->visible[rows.end - 1].end - first_key;
    begin = begin > 0 ? begin / TD_LANES * TD_LANES : 0;
    end = td_lanes_round_up(end < n_keys ? end : n_keys);
    return begin < end ? (td_cpu_range){begin, end} : (td_cpu_range){0, 0};
}

// Both ends of the visible keys never decrease from one row to the next.
td_cpu_range td_attention_rows_that_see(const td_attention_queries *queries, td_cpu_range keys) {
    td_cpu_range rows = {0, queries->n_rows};
    while (rows.begin < rows.end && queries->visible[rows.begin].end <= keys.begin)
        rows.begin++;
    while (rows.begin < rows.end && queries->visible[rows.end - 1].begin >= keys.end)
        rows.end--;
    return rows;
}

static void pack_row(const float *row, int64_t n, int64_t padded, float factor, float *packed) {
    for (int64_t i = 0; i < n; i++)
        packed[i] = row[i] * factor;
    for (int64_t i = n; i < padded; i++)
        packed[i] = 0.0f;
}

void td_attention_pack_queries(const td_attention_plan *plan, td_attention_tensor tensor,
                               int64_t q_begin, int64_t key_head, td_cpu_range tokens, float factor,
                               float *packed) {
    for (int64_t token = tokens.begin; token < tokens.end; token++) {
        const float *rows = tensor.base + td_attention_offset(plan, q_begin + token, tensor.stride,
                                                              key_head * plan->heads_per_key);
        for (int64_t head = 0; head < plan->heads_per_key; head++, packed += plan->packed_stride)
            pack_row(rows + head * plan->head_dim, plan->head_dim, plan->packed_cols, factor,
                     packed);
    }
}

void td_attention_pack_keys(const td_attention_plan *plan, td_attention_tensor keys, int64_t n_keys,
                            float *packed) {
    for (int64_t key = 0; key < n_keys; key++)
        pack_row(keys.base + key * keys.stride, plan->head_dim, plan->packed_cols, 1.0f,
                 packed + key * plan->packed_stride);
}

// Four by four elements at a time: one element at a time would cost as much as a sixth of the
// products.
static void transpose4(const float *rows, int64_t stride, float *out, int64_t out_stride) {
    __m128 a = _mm_loadu_ps(rows), b = _mm_loadu_ps(rows + stride);
    __m128 c = _mm_loadu_ps(rows + 2 * stride), d = _mm_loadu_ps(rows + 3 * stride);
    _MM_TRANSPOSE4_PS(a, b, c, d);
    _mm_storeu_ps(out, a);
    _mm_storeu_ps(out + out_stride, b);
    _mm_storeu_ps(out + 2 * out_stride, c);
    _mm_storeu_ps(out + 3 * out_stride, d);
}

static void transpose(const float *rows, int64_t n_rows, int64_t n_cols, int64_t stride, float *out,
                      int64_t out_stride) {
    int64_t whole_rows = n_rows / 4 * 4, whole_cols = n_cols / 4 * 4;
    for (int64_t row = 0; row < whole_rows; row += 4)
        for (int64_t col = 0; col < whole_cols; col += 4)
            transpose4(rows + row * stride + col, stride, out + col * out_stride + row, out_stride);
    for (int64_t row = 0; row < n_rows; row++)
        for (int64_t col = row < whole_rows ? whole_cols : 0; col < n_cols; col++)
            out[col * out_stride + row] = rows[row * stride + col];
}

void td_attention_pack_transposed(const td_attention_plan *plan, td_attention_tensor keys,
                                  int64_t n_keys, float *packed) {
    transpose(keys.base, n_keys, plan->head_dim, keys.stride, packed, TD_ATTENTION_SCORES);
    int64_t padding = td_lanes_round_up(n_keys) - n_keys;
    for (int64_t col = 0; col < plan->head_dim && padding > 0; col++)
        memset(packed + col * TD_ATTENTION_SCORES + n_keys, 0, (size_t)padding * sizeof *packed);
}

int td_attention_take(td_attention_queue *queue, td_attention_cursor *cursor,
                      td_attention_task *task) {
    int64_t number = __atomic_fetch_add(&queue->next, 1, __ATOMIC_RELAXED);
    int64_t n_heads = queue->shape->n_kv_heads;
    for (; cursor->sequence < queue->shape->n_sequences; cursor->sequence++) {
        task->sequence = td_attention_sequence_at(queue->shape, cursor->sequence);
        int64_t extent = queue->by_keys ? task->sequence.n_k : task->sequence.n_q;
        task->n_blocks = td_attention_blocks(extent, queue->block);
        int64_t index = number - cursor->first_task;
        if (index < task->n_blocks * n_heads) {
            task->block = index / n_heads;
            task->key_head = index % n_heads;
            return 1;
        }
        cursor->first_task += task->n_blocks * n_heads;
    }
    return 0;
}

int td_attention_team(const td_op_context *context, const td_attention_shape *shape,
                      size_t fixed_bytes, size_t thread_bytes) {
    size_t room = (context->workspace_bytes - fixed_bytes) / thread_bytes;
    int threads = td_cpu_threads();
    double products = 0.0;
    for (int64_t i = 0; i < shape->n_sequences; i++) {
        td_attention_sequence sequence = td_attention_sequence_at(shape, i);
        products += (double)sequence.n_q * (double)sequence.n_k;
    }
    if (products * (double)(shape->n_heads * shape->head_dim) < TD_CPU_PARALLEL_ELEMENTS * 4)
        threads = 1;
    return room < (size_t)threads ? (int)room : threads;
}

void *td_attention_carve(td_attention_carver *carver, size_t count, size_t element_bytes) {
    enum { ALIGNMENT = 64 };
    size_t begin = (carver->used + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (__builtin_add_overflow(begin, td_mul_bytes(count, element_bytes), &carver->used))
        carver->used = SIZE_MAX - ALIGNMENT;
    return carver->base ? carver->base + begin : NULL;
}
