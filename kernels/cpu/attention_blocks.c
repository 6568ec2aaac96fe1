// How attention is cut into blocks, and the packed copies of them.
#include <math.h>
#include <string.h>

#include "kernels/cpu/attention_internal.h"

td_attention_plan td_attention_plan_make(int64_t n_heads, int64_t n_kv_heads, int64_t head_dim,
                                         td_dtype product) {
    td_attention_plan plan = {.n_heads = n_heads, .n_kv_heads = n_kv_heads, .head_dim = head_dim};
    plan.out_stride = n_heads * head_dim;
    plan.heads_per_key = n_heads / n_kv_heads;
    plan.block_tokens = TD_ATTENTION_ROWS / plan.heads_per_key;
    plan.block_tokens = plan.block_tokens > 0 ? plan.block_tokens : 1;
    plan.block_rows = plan.block_tokens * plan.heads_per_key;
    plan.packed_cols = td_lanes_round_up(head_dim);
    plan.packed_stride = plan.packed_cols | TD_LANES;
    plan.pair = product == TD_BF16 ? 2 : 1;
    plan.depth = td_attention_steps(&plan, head_dim);
    plan.left_stride = plan.pair == 1 ? plan.packed_stride : plan.packed_cols / 2;
    return plan;
}

td_attention_plan td_attention_plan_of(const td_attention_shape *shape, td_dtype product) {
    td_attention_plan plan =
        td_attention_plan_make(shape->n_heads, shape->n_kv_heads, shape->head_dim, product);
    plan.window = shape->window;
    plan.scale = plan.q_factor = shape->scale;
    plan.score_factor = 1.0f;
    if (product == TD_BF16 && shape->scale != 0.0f) {
        plan.q_factor = copysignf(1.0f, shape->scale);
        plan.score_factor = fabsf(shape->scale);
    }
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

td_cpu_range td_attention_keys_seen(const td_attention_queries *queries, td_cpu_range rows,
                                    int64_t first_key, int64_t n_keys) {
    td_cpu_range columns = td_attention_columns(queries, rows, first_key, n_keys);
    int64_t seen = queries->visible[rows.end - 1].end - first_key;
    seen = seen < n_keys ? seen : n_keys;
    columns.end = seen < columns.end ? seen : columns.end;
    return columns;
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

// How many rows ahead a row is asked for once more, into the nearest cache: a row is packed in less
// time than its lines take from the next one.
enum { NEAR_ROWS = 8 };

static void prefetch_near(const float *row, int64_t n) {
    enum { LINE = 16 };
    for (int64_t i = 0; i < n; i += LINE)
        _mm_prefetch((const char *)(row + i), _MM_HINT_T0);
}

static void pack_pairs(const td_attention_plan *plan, const td_attention_kernels *kernels,
                       td_attention_tensor rows, int64_t n_rows, float *packed) {
    for (int64_t row = 0; row < n_rows; row += 2, packed += plan->packed_stride) {
        const float *first = rows.base + row * rows.stride;
        for (int64_t next = row + NEAR_ROWS; next < row + NEAR_ROWS + 2 && next < n_rows; next++)
            prefetch_near(rows.base + next * rows.stride, plan->head_dim);
        kernels->pack_pair(first, row + 1 < n_rows ? first + rows.stride : NULL, plan->head_dim,
                           1.0f, packed, plan->packed_cols);
    }
}

// Where row `row` of the queries begins.
static const float *query_row(const td_attention_plan *plan, td_attention_tensor tensor,
                              int64_t first_token, int64_t key_head, int64_t row) {
    int64_t token = first_token + row / plan->heads_per_key;
    int64_t head = key_head * plan->heads_per_key + row % plan->heads_per_key;
    return tensor.base + td_attention_offset(plan, token, tensor.stride, head);
}

void td_attention_prefetch_queries(const td_attention_plan *plan, td_attention_tensor tensor,
                                   int64_t first_token, int64_t key_head, td_cpu_range rows) {
    for (int64_t row = rows.begin; row < rows.end; row++)
        td_attention_prefetch(query_row(plan, tensor, first_token, key_head, row), plan->head_dim);
}

void td_attention_pack_queries(const td_attention_plan *plan, const td_attention_kernels *kernels,
                               td_attention_tensor tensor, int64_t q_begin, int64_t key_head,
                               td_cpu_range tokens, float factor, td_attention_packed packed) {
    int64_t heads = plan->heads_per_key, n = plan->head_dim, cols = plan->packed_cols, row = 0;
    int64_t n_rows = (tokens.end - tokens.begin) * heads, near = (NEAR_ROWS + heads - 1) / heads;
    const float *previous = NULL;
    for (int64_t token = tokens.begin; token < tokens.end; token++)
        for (int64_t head = 0; head < heads; head++, row++) {
            const float *from =
                tensor.base +
                td_attention_offset(plan, q_begin + token, tensor.stride, key_head * heads + head);
            if (token + near < tokens.end)
                prefetch_near(from + near * tensor.stride, n);
            kernels->pack_row(from, n, factor, packed.left + row * plan->left_stride, cols);
            if (plan->pair > 1 && packed.right && (row % 2 || row + 1 == n_rows))
                kernels->pack_pair(row % 2 ? previous : from, row % 2 ? from : NULL, n, factor,
                                   packed.right + row / 2 * plan->packed_stride, cols);
            previous = from;
        }
}

void td_attention_pack_keys(const td_attention_plan *plan, const td_attention_kernels *kernels,
                            td_attention_tensor keys, int64_t n_keys, float *packed) {
    if (plan->pair > 1) {
        pack_pairs(plan, kernels, keys, n_keys, packed);
        return;
    }
    for (int64_t key = 0; key < n_keys; key++)
        kernels->copy_row(keys.base + key * keys.stride, plan->head_dim, 1.0f,
                          packed + key * plan->packed_stride, plan->packed_cols);
}

// A transposed copy of some of a matrix: out[col * out_stride + row] = rows[row * stride + col].
typedef struct transposition {
    const float *rows;
    int64_t stride;
    float *out;
    int64_t out_stride;
} transposition;

// Squares of elements at a time: one element at a time would cost as much as a sixth of the
// products.
static void transpose4(const transposition *t, int64_t row, int64_t col) {
    const float *from = t->rows + row * t->stride + col;
    float *to = t->out + col * t->out_stride + row;
    __m128 a = _mm_loadu_ps(from), b = _mm_loadu_ps(from + t->stride);
    __m128 c = _mm_loadu_ps(from + 2 * t->stride), d = _mm_loadu_ps(from + 3 * t->stride);
    _MM_TRANSPOSE4_PS(a, b, c, d);
    _mm_storeu_ps(to, a);
    _mm_storeu_ps(to + t->out_stride, b);
    _mm_storeu_ps(to + 2 * t->out_stride, c);
    _mm_storeu_ps(to + 3 * t->out_stride, d);
}

// Rows i and i + 4, four elements of each.
TD_TARGET_AVX2 static inline __m256 load_pair(const float *from, int64_t stride) {
    __m256 low = _mm256_castps128_ps256(_mm_loadu_ps(from));
    return _mm256_insertf128_ps(low, _mm_loadu_ps(from + 4 * stride), 1);
}

// Four columns of eight rows.
TD_TARGET_AVX2 static inline void transpose8x4(const float *from, int64_t stride, float *to,
                                               int64_t to_stride) {
    __m256 a = load_pair(from, stride), b = load_pair(from + stride, stride);
    __m256 c = load_pair(from + 2 * stride, stride), d = load_pair(from + 3 * stride, stride);
    __m256 ab_low = _mm256_unpacklo_ps(a, b), ab_high = _mm256_unpackhi_ps(a, b);
    __m256 cd_low = _mm256_unpacklo_ps(c, d), cd_high = _mm256_unpackhi_ps(c, d);
    _mm256_storeu_ps(to, _mm256_shuffle_ps(ab_low, cd_low, 0x44));
    _mm256_storeu_ps(to + to_stride, _mm256_shuffle_ps(ab_low, cd_low, 0xEE));
    _mm256_storeu_ps(to + 2 * to_stride, _mm256_shuffle_ps(ab_high, cd_high, 0x44));
    _mm256_storeu_ps(to + 3 * to_stride, _mm256_shuffle_ps(ab_high, cd_high, 0xEE));
}

TD_TARGET_AVX2 static void transpose8(const transposition *t, int64_t row, int64_t n_cols) {
    for (int64_t col = 0; col < n_cols; col += 4)
        transpose8x4(t->rows + row * t->stride + col, t->stride, t->out + col * t->out_stride + row,
                     t->out_stride);
}

static void transpose(const transposition *t, int64_t n_rows, int64_t n_cols) {
    int64_t whole_rows = n_rows / 4 * 4, whole_cols = n_cols / 4 * 4, row = 0;
    if (td_cpu_simd() >= TD_CPU_AVX2)
        for (; row + 8 <= n_rows; row += 8)
            transpose8(t, row, whole_cols);
    for (; row < whole_rows; row += 4)
        for (int64_t col = 0; col < whole_cols; col += 4)
            transpose4(t, row, col);
    for (row = 0; row < n_rows; row++)
        for (int64_t col = row < whole_rows ? whole_cols : 0; col < n_cols; col++)
            t->out[col * t->out_stride + row] = t->rows[row * t->stride + col];
}

void td_attention_pack_transposed(const td_attention_plan *plan,
                                  const td_attention_kernels *kernels, td_attention_tensor keys,
                                  int64_t n_keys, float *rows, float *packed) {
    transposition whole = {keys.base, keys.stride, packed, TD_ATTENTION_SCORES};
    if (plan->pair > 1) {
        for (int64_t key = 0; key < n_keys; key++) {
            if (key + NEAR_ROWS < n_keys)
                prefetch_near(keys.base + (key + NEAR_ROWS) * keys.stride, plan->head_dim);
            kernels->pack_row(keys.base + key * keys.stride, plan->head_dim, 1.0f,
                              rows + key * plan->left_stride, plan->packed_cols);
        }
        whole.rows = rows;
        whole.stride = plan->left_stride;
    }
    transpose(&whole, n_keys, plan->depth);
    int64_t padding = td_lanes_round_up(n_keys) - n_keys;
    for (int64_t col = 0; col < plan->depth && padding > 0; col++)
        memset(packed + col * TD_ATTENTION_SCORES + n_keys, 0, (size_t)padding * sizeof *packed);
}

// The task of a sequence with that number. The last group may have fewer heads.
static void place_task(const td_attention_queue *queue, int64_t index, td_attention_task *task) {
    int64_t n_heads = queue->shape->n_kv_heads, group = queue->n_together;
    group = group > 0 && group < n_heads ? group : n_heads;
    int64_t first = index / (task->n_blocks * group) * group;
    int64_t heads = n_heads - first < group ? n_heads - first : group;
    int64_t rest = index - first * task->n_blocks;
    task->block = rest / heads;
    task->key_head = first + rest % heads;
}

// Keys of a block that is a task: few of a short sequence, for there to be work for all threads.
static int64_t keys_together(int64_t n_keys) {
    return n_keys > TD_ATTENTION_KEYS ? TD_ATTENTION_KEYS : TD_ATTENTION_KEYS / 2;
}

int td_attention_take(td_attention_queue *queue, td_attention_cursor *cursor,
                      td_attention_task *task) {
    int64_t number = __atomic_fetch_add(&queue->next, 1, __ATOMIC_RELAXED);
    int64_t n_heads = queue->shape->n_kv_heads;
    for (; cursor->sequence < queue->shape->n_sequences; cursor->sequence++) {
        task->sequence = td_attention_sequence_at(queue->shape, cursor->sequence);
        int64_t n_keys = task->sequence.n_k;
        task->extent = queue->by_keys ? keys_together(n_keys) : queue->n_queries;
        task->n_blocks =
            td_attention_blocks(queue->by_keys ? n_keys : task->sequence.n_q, task->extent);
        int64_t index = number - cursor->first_task;
        if (index < task->n_blocks * n_heads) {
            place_task(queue, index, task);
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
