// Attention backward (Dao et al., NeurIPS 2022, algorithm 4): probabilities are computed again from
// the scores and lse.
//
// With p = exp(s - lse), delta = sum(dout * out):  dv = p^T dout,  ds = p (dout v^T - delta),  dq =
// scale ds k, dk = scale ds^T q; a soft cap multiplies ds by its slope. A task owns the dk and dv
// of one block of keys and walks over the queries that see it. dq is the sum over the blocks of
// keys: each block of queries takes the contributions in ascending order, a turn counter per block
// says whose is next. Tasks are handed out in that order too, so the lowest unfinished task never
// waits and the rest follow it; the sums are the same for any number of threads.
#include <sched.h>

#include "kernels/cpu/attention_internal.h"

// Of one thread. Rows are those of td_attention_pack_queries().
typedef struct backward_scratch {
    td_attention_queries queries;
    td_attention_packed q, dout;
    float *lse, *delta;                 // (block_rows)
    float *probabilities, *dscores;     // (block_rows, TD_ATTENTION_SCORES)
    float *dscore_pairs;                // (block_rows, TD_ATTENTION_PAIRS) in bf16
    float *keys_across, *values_across; // (depth, TD_ATTENTION_SCORES) transposed
    float *key_rows;                    // (TD_ATTENTION_KEYS, left_stride) on their way there
    float *keys;                        // (steps of TD_ATTENTION_KEYS, packed_stride)
    float *dkeys, *dvalues;             // (TD_ATTENTION_KEYS, packed_stride)
    float *dq;                          // (TD_ATTENTION_STRIP, packed_stride)
} backward_scratch;

typedef struct backward_job {
    td_attention_plan plan;
    const td_attention_backward_args *args;
    const td_attention_kernels *kernels;
    td_attention_queue queue;
    float *delta;   // (Tq, n_heads) sum of dout * out
    int32_t *turns; // (Tq, n_kv_heads) contributions to dq so far, at the first token of each block
                    // of queries
} backward_job;

// The block of keys of a task.
typedef struct key_block {
    const td_attention_task *task;
    int64_t first_key, n_keys;
} key_block;

static td_attention_packed packed_carve(const td_attention_plan *plan,
                                        td_attention_carver *carver) {
    size_t rows = (size_t)plan->block_rows, pairs = (rows + 1) / 2, f = sizeof(float);
    float *left = td_attention_carve(carver, rows * (size_t)plan->left_stride, f);
    if (plan->pair == 1)
        return (td_attention_packed){left, left};
    return (td_attention_packed){
        left, td_attention_carve(carver, pairs * (size_t)plan->packed_stride, f)};
}

static backward_scratch scratch_carve(const td_attention_plan *plan, td_attention_carver *carver) {
    size_t rows = (size_t)plan->block_rows, stride = (size_t)plan->packed_stride;
    size_t across = (size_t)plan->depth * TD_ATTENTION_SCORES;
    size_t keys = TD_ATTENTION_KEYS * stride, f = sizeof(float), pair = (size_t)plan->pair;
    size_t left = (size_t)plan->left_stride;
    return (backward_scratch){
        .queries.visible = td_attention_carve(carver, rows, sizeof(td_cpu_range)),
        .q = packed_carve(plan, carver),
        .dout = packed_carve(plan, carver),
        .lse = td_attention_carve(carver, rows, f),
        .delta = td_attention_carve(carver, rows, f),
        .probabilities = td_attention_carve(carver, rows * TD_ATTENTION_SCORES, f),
        .dscores = td_attention_carve(carver, rows * TD_ATTENTION_SCORES, f),
        .dscore_pairs = td_attention_carve(carver, pair > 1 ? rows * TD_ATTENTION_PAIRS : 0, f),
        .keys_across = td_attention_carve(carver, across, f),
        .values_across = td_attention_carve(carver, across, f),
        .key_rows = td_attention_carve(carver, pair > 1 ? TD_ATTENTION_KEYS * left : 0, f),
        .keys = td_attention_carve(carver, keys / pair, f),
        .dkeys = td_attention_carve(carver, keys, f),
        .dvalues = td_attention_carve(carver, keys, f),
        .dq = td_attention_carve(carver, TD_ATTENTION_STRIP * stride, f),
    };
}

size_t td_attention_backward_thread_bytes(const td_attention_plan *plan) {
    td_attention_carver counter = {0};
    scratch_carve(plan, &counter);
    td_attention_carve(&counter, 0, 1);
    return counter.used;
}

// What all threads share.
static void shared_carve(backward_job *job, int64_t n_tokens, td_attention_carver *carver) {
    size_t tokens = (size_t)n_tokens;
    job->delta =
        td_attention_carve(carver, td_mul_bytes(tokens, (size_t)job->plan.n_heads), sizeof(float));
    job->turns = td_attention_carve(carver, td_mul_bytes(tokens, (size_t)job->plan.n_kv_heads),
                                    sizeof(int32_t));
    td_attention_carve(carver, 0, 1);
}

static size_t shared_bytes(const td_attention_plan *plan, int64_t n_tokens) {
    backward_job job = {.plan = *plan};
    td_attention_carver counter = {0};
    shared_carve(&job, n_tokens, &counter);
    return counter.used;
}

static size_t workspace_bytes(const td_workspace_query *query, td_dtype product) {
    td_attention_plan plan =
        td_attention_plan_make(query->n_heads, query->n_kv_heads, query->head_dim, product);
    size_t threads = (size_t)td_cpu_threads();
    td_attention_plan wide = td_attention_plan_widen(plan);
    size_t forward = td_mul_bytes(threads, td_attention_forward_thread_bytes(&wide));
    size_t backward = td_mul_bytes(threads, td_attention_backward_thread_bytes(&plan));
    if (__builtin_add_overflow(backward, shared_bytes(&plan, query->max_tokens), &backward))
        return SIZE_MAX;
    return forward > backward ? forward : backward;
}

size_t td_cpu_attention_workspace_bytes(const td_workspace_query *query) {
    if (query->n_heads <= 0 || query->n_kv_heads <= 0 || query->head_dim <= 0)
        return 0;
    size_t in_fp32 = workspace_bytes(query, TD_F32), in_bf16 = workspace_bytes(query, TD_BF16);
    return in_fp32 > in_bf16 ? in_fp32 : in_bf16;
}

static void keys_begin(const backward_job *job, const key_block *block, backward_scratch *scratch) {
    const td_attention_plan *plan = &job->plan;
    int64_t token = block->task->sequence.k_begin + block->first_key;
    td_attention_tensor keys =
        td_attention_keys_at(plan, job->args->k, plan->k_stride, token, block->task->key_head);
    td_attention_tensor values =
        td_attention_keys_at(plan, job->args->v, plan->v_stride, token, block->task->key_head);
    td_attention_pack_transposed(plan, job->kernels, keys, block->n_keys, scratch->key_rows,
                                 scratch->keys_across);
    td_attention_pack_transposed(plan, job->kernels, values, block->n_keys, scratch->key_rows,
                                 scratch->values_across);
    td_attention_pack_keys(plan, job->kernels, keys, block->n_keys, scratch->keys);
    size_t bytes = (size_t)(block->n_keys * plan->packed_stride) * sizeof(float);
    memset(scratch->dkeys, 0, bytes);
    memset(scratch->dvalues, 0, bytes);
}

static void keys_store(const backward_job *job, const key_block *block,
                       const backward_scratch *scratch) {
    const td_attention_plan *plan = &job->plan;
    size_t row_bytes = (size_t)plan->head_dim * sizeof(float);
    int64_t token = block->task->sequence.k_begin + block->first_key;
    int64_t head = block->task->key_head;
    float *dk = (float *)job->args->dk + td_attention_offset(plan, token, plan->k_stride, head);
    float *dv = (float *)job->args->dv + td_attention_offset(plan, token, plan->v_stride, head);
    for (int64_t key = 0; key < block->n_keys; key++) {
        int64_t from = key * plan->packed_stride;
        job->kernels->copy_row(scratch->dkeys + from, plan->head_dim, plan->score_factor,
                               dk + key * plan->k_stride, plan->head_dim);
        memcpy(dv + key * plan->v_stride, scratch->dvalues + from, row_bytes);
    }
}

static void queries_load(const backward_job *job, const td_attention_task *task, int64_t number,
                         backward_scratch *scratch) {
    const td_attention_plan *plan = &job->plan;
    const td_attention_sequence *sequence = &task->sequence;
    td_attention_queries_fill(plan, sequence, number, &scratch->queries);
    td_cpu_range tokens = scratch->queries.tokens;
    td_attention_tensor q = {job->args->q, plan->q_stride};
    td_attention_tensor dout = {job->args->dout, plan->out_stride};
    td_attention_pack_queries(plan, job->kernels, q, sequence->q_begin, task->key_head, tokens,
                              plan->q_factor, scratch->q);
    td_attention_pack_queries(plan, job->kernels, dout, sequence->q_begin, task->key_head, tokens,
                              1.0f, scratch->dout);
    int64_t heads = plan->heads_per_key, row = 0;
    for (int64_t token = tokens.begin; token < tokens.end; token++) {
        int64_t from = (sequence->q_begin + token) * plan->n_heads + task->key_head * heads;
        for (int64_t head = 0; head < heads; head++, row++) {
            scratch->lse[row] = job->args->lse[from + head];
            scratch->delta[row] = job->delta[from + head];
        }
    }
}

// c (rows, columns) of one strip: rows of a against the transposed keys or values.
static void strip_product(const backward_job *job, const float *rows, const float *across,
                          const td_attention_strip *strip, float *c) {
    job->kernels->multiply(&(td_attention_product){
        .m = strip->n_rows,
        .n = strip->columns.end - strip->columns.begin,
        .k = job->plan.depth,
        .a = rows,
        .a_row = job->plan.left_stride,
        .a_step = 1,
        .b = across + strip->columns.begin,
        .ldb = TD_ATTENTION_SCORES,
        .c = c + strip->columns.begin,
        .ldc = TD_ATTENTION_SCORES,
    });
}

static void strip_gradient(const backward_job *job, const backward_scratch *scratch,
                           const key_block *block, td_cpu_range rows) {
    td_attention_strip strip = {
        .n_rows = rows.end - rows.begin,
        .visible = scratch->queries.visible + rows.begin,
        .first_key = block->first_key,
        .columns = td_attention_columns(&scratch->queries, rows, block->first_key, block->n_keys),
        .scale = job->plan.score_factor,
        .softcap = job->plan.softcap,
        .scores = scratch->probabilities + rows.begin * TD_ATTENTION_SCORES,
    };
    td_attention_gradient gradient = {
        .lse = scratch->lse + rows.begin,
        .delta = scratch->delta + rows.begin,
        .dscores = scratch->dscores + rows.begin * TD_ATTENTION_SCORES,
        .pairs =
            job->plan.pair > 1 ? scratch->dscore_pairs + rows.begin * TD_ATTENTION_PAIRS : NULL,
    };
    int64_t offset = rows.begin * job->plan.left_stride;
    strip_product(job, scratch->q.left + offset, scratch->keys_across, &strip, strip.scores);
    strip_product(job, scratch->dout.left + offset, scratch->values_across, &strip,
                  gradient.dscores);
    job->kernels->gradient(&strip, &gradient);
}

// sums (TD_LANES keys, packed_cols) += weights^T rows, over the rows that see any of the keys.
static void keys_accumulate(const backward_job *job, const float *weights, const float *rows,
                            td_cpu_range seen, int64_t column, int64_t n_columns, float *sums) {
    int64_t stride = job->plan.packed_stride, step = seen.begin / job->plan.pair;
    int64_t row = step * job->plan.pair;
    job->kernels->multiply(&(td_attention_product){
        .m = n_columns,
        .n = job->plan.packed_cols,
        .k = td_attention_steps(&job->plan, seen.end - row),
        .a = weights + row * TD_ATTENTION_SCORES + column,
        .a_row = 1,
        .a_step = job->plan.pair * TD_ATTENTION_SCORES,
        .b = rows + step * stride,
        .ldb = stride,
        .c = sums + column * stride,
        .ldc = stride,
        .accumulate = 1,
    });
}

// Columns go by whole lanes, as strip_gradient() wrote them: a row that sees one of them has all of
// them.
static void keys_gradient(const backward_job *job, const backward_scratch *scratch,
                          const key_block *block) {
    for (int64_t column = 0; column < block->n_keys; column += TD_LANES) {
        int64_t left = block->n_keys - column;
        int64_t n_columns = left < TD_LANES ? left : TD_LANES;
        int64_t key = block->first_key + column;
        td_cpu_range seen =
            td_attention_rows_that_see(&scratch->queries, (td_cpu_range){key, key + n_columns});
        if (seen.begin >= seen.end)
            continue;
        keys_accumulate(job, scratch->probabilities, scratch->dout.right, seen, column, n_columns,
                        scratch->dvalues);
        keys_accumulate(job, scratch->dscores, scratch->q.right, seen, column, n_columns,
                        scratch->dkeys);
    }
}

// Contributions of the blocks of keys to one block of queries: this one's number and whether it is
// the last.
typedef struct query_turn {
    int32_t *counter;
    int32_t number;
    int last;
} query_turn;

static query_turn turn_of(const backward_job *job, const backward_scratch *scratch,
                          const key_block *block) {
    const td_attention_queries *queries = &scratch->queries;
    int64_t token = block->task->sequence.q_begin + queries->tokens.begin;
    int64_t first = queries->keys.begin / block->task->extent;
    int64_t last = (queries->keys.end - 1) / block->task->extent;
    return (query_turn){
        .counter = job->turns + token * job->plan.n_kv_heads + block->task->key_head,
        .number = (int32_t)(block->task->block - first),
        .last = block->task->block == last,
    };
}

static void turn_wait(const query_turn *turn) {
    for (int spins = 0; __atomic_load_n(turn->counter, __ATOMIC_ACQUIRE) != turn->number; spins++)
        if (spins < 1000)
            _mm_pause();
        else
            sched_yield();
}

typedef enum dq_direction { DQ_LOAD, DQ_STORE } dq_direction;

// Between the rows of a strip in the scratch and in dq.
static void dq_copy(const backward_job *job, const backward_scratch *scratch,
                    const td_attention_task *task, td_cpu_range rows, dq_direction direction,
                    float factor) {
    const td_attention_plan *plan = &job->plan;
    int64_t heads = plan->heads_per_key, n = plan->head_dim, head = rows.begin % heads;
    int64_t token = task->sequence.q_begin + scratch->queries.tokens.begin + rows.begin / heads;
    float *packed = scratch->dq;
    for (int64_t row = rows.begin; row < rows.end; row++, packed += plan->packed_stride) {
        float *dq = (float *)job->args->dq +
                    td_attention_offset(plan, token, plan->q_stride, task->key_head * heads + head);
        if (direction == DQ_LOAD)
            job->kernels->copy_row(dq, n, factor, packed, plan->packed_cols);
        else
            job->kernels->copy_row(packed, n, factor, dq, n);
        head = head + 1 < heads ? head + 1 : 0;
        token += head == 0;
    }
}

static void strip_dq(const backward_job *job, const backward_scratch *scratch,
                     const key_block *block, td_cpu_range rows, const query_turn *turn) {
    const td_attention_plan *plan = &job->plan;
    td_cpu_range keys =
        td_attention_keys_seen(&scratch->queries, rows, block->first_key, block->n_keys);
    int64_t a_row = plan->pair == 1 ? TD_ATTENTION_SCORES : TD_ATTENTION_PAIRS;
    const float *dscores = plan->pair == 1 ? scratch->dscores : scratch->dscore_pairs;
    int64_t first = keys.begin / plan->pair;
    if (turn->number > 0)
        dq_copy(job, scratch, block->task, rows, DQ_LOAD, 1.0f);
    job->kernels->multiply(&(td_attention_product){
        .m = rows.end - rows.begin,
        .n = plan->packed_cols,
        .k = td_attention_steps(plan, keys.end - keys.begin),
        .a = dscores + rows.begin * a_row + first,
        .a_row = a_row,
        .a_step = 1,
        .b = scratch->keys + first * plan->packed_stride,
        .ldb = plan->packed_stride,
        .c = scratch->dq,
        .ldc = plan->packed_stride,
        .accumulate = turn->number > 0,
    });
    dq_copy(job, scratch, block->task, rows, DQ_STORE, turn->last ? plan->scale : 1.0f);
}

static td_cpu_range strip_rows(const td_attention_queries *queries, int64_t begin) {
    int64_t end = begin + TD_ATTENTION_STRIP;
    return (td_cpu_range){begin, end < queries->n_rows ? end : queries->n_rows};
}

// What comes after these rows' products: their part of dq, and of the queries behind this block.
static void rows_prefetch(const backward_job *job, const td_attention_task *task,
                          const td_attention_queries *queries, td_cpu_range rows) {
    const td_attention_plan *plan = &job->plan;
    td_attention_tensor q = {job->args->q, plan->q_stride}, dq = {job->args->dq, plan->q_stride};
    td_attention_tensor dout = {job->args->dout, plan->out_stride};
    int64_t first = task->sequence.q_begin + queries->tokens.begin;
    td_attention_prefetch_queries(plan, dq, first, task->key_head, rows);
    int64_t left = (task->sequence.n_q - queries->tokens.end) * plan->heads_per_key;
    td_cpu_range next = {rows.begin, rows.end < left ? rows.end : left};
    first = task->sequence.q_begin + queries->tokens.end;
    td_attention_prefetch_queries(plan, q, first, task->key_head, next);
    td_attention_prefetch_queries(plan, dout, first, task->key_head, next);
}

// One block of queries against one block of keys.
static void tile_process(const backward_job *job, const key_block *block, int64_t query_block,
                         backward_scratch *scratch) {
    queries_load(job, block->task, query_block, scratch);
    const td_attention_queries *queries = &scratch->queries;
    for (int64_t row = 0; row < queries->n_rows; row += TD_ATTENTION_STRIP) {
        rows_prefetch(job, block->task, queries, strip_rows(queries, row));
        strip_gradient(job, scratch, block, strip_rows(queries, row));
    }
    keys_gradient(job, scratch, block);
    query_turn turn = turn_of(job, scratch, block);
    turn_wait(&turn);
    for (int64_t row = 0; row < queries->n_rows; row += TD_ATTENTION_STRIP)
        strip_dq(job, scratch, block, strip_rows(queries, row), &turn);
    __atomic_store_n(turn.counter, turn.number + 1, __ATOMIC_RELEASE);
}

// Query tokens that see any key of the block.
static td_cpu_range tokens_that_see(const td_attention_plan *plan, const key_block *block) {
    const td_attention_sequence *sequence = &block->task->sequence;
    int64_t ahead = sequence->n_k - sequence->n_q;
    int64_t begin = block->first_key - ahead, end = sequence->n_q;
    if (plan->window > 0) {
        int64_t last = block->first_key + block->n_keys - 1 - ahead + plan->window;
        end = last < end ? last : end;
    }
    return (td_cpu_range){begin > 0 ? begin : 0, end};
}

static void keys_process(const backward_job *job, const td_attention_task *task,
                         backward_scratch *scratch) {
    key_block block = {.task = task, .first_key = task->block * task->extent};
    int64_t left = task->sequence.n_k - block.first_key;
    block.n_keys = left < task->extent ? left : task->extent;
    keys_begin(job, &block, scratch);
    td_cpu_range tokens = tokens_that_see(&job->plan, &block);
    int64_t number = tokens.begin / job->plan.block_tokens;
    for (; number * job->plan.block_tokens < tokens.end; number++)
        tile_process(job, &block, number, scratch);
    keys_store(job, &block, scratch);
}

static void worker(backward_job *job, void *memory) {
    td_attention_carver carver = {.base = memory};
    backward_scratch scratch = scratch_carve(&job->plan, &carver);
    td_attention_cursor cursor = {0};
    td_attention_task task;
    unsigned before = td_attention_flush(&job->plan);
    while (td_attention_take(&job->queue, &cursor, &task))
        keys_process(job, &task, &scratch);
    td_attention_restore(before);
}

static void delta_compute(const backward_job *job, int64_t n_tokens, int threads) {
    int64_t n_rows = n_tokens * job->plan.n_heads, d = job->plan.head_dim;
    const float *out = job->args->out, *dout = job->args->dout;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int i = 0; i < threads; i++) {
        td_cpu_range rows = td_cpu_split(n_rows, 1, threads, i);
        job->kernels->row_dots(rows.end - rows.begin, d, out + rows.begin * d,
                               dout + rows.begin * d, job->delta + rows.begin);
    }
}

td_status td_cpu_attention_backward(const td_op_context *context,
                                    const td_attention_backward_args *args) {
    td_dtype product = context->ops->product;
    backward_job job = {.plan = td_attention_plan_of(&args->shape, product),
                        .args = args,
                        .kernels = td_attention_kernels_find(product),
                        .queue = {.shape = &args->shape, .by_keys = 1}};
    int64_t n_tokens = args->shape.cu_q[args->shape.n_sequences];
    size_t thread_bytes = td_attention_backward_thread_bytes(&job.plan);
    size_t shared = shared_bytes(&job.plan, n_tokens);
    TD_TRY(td_cpu_need_workspace(context, "attention_backward", shared + thread_bytes));
    td_attention_carver carver = {.base = context->workspace};
    shared_carve(&job, n_tokens, &carver);
    memset(job.turns, 0, (size_t)(n_tokens * job.plan.n_kv_heads) * sizeof(int32_t));
    int threads = td_attention_team(context, &args->shape, shared, thread_bytes);
    // A thread's queries, dout and dq of one head stay in the caches from block to block of keys.
    job.queue.n_together = threads;
    delta_compute(&job, n_tokens, threads);
    char *memory = (char *)context->workspace + shared;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int i = 0; i < threads; i++)
        worker(&job, memory + (size_t)i * thread_bytes);
    return TD_OK;
}
