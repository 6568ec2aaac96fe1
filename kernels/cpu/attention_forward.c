// Attention forward: blocks of queries, each against its keys block by block with an online softmax
// (Dao et al., NeurIPS 2022, "FlashAttention"), so that memory does not grow with the square of the
// sequence.
//
// A row's result depends on its own keys only, never on the block or batch it was computed in: one
// token after a cache of keys gets the bits that it has as a row of the whole sequence.
#include <math.h>

#include "kernels/cpu/attention_internal.h"

// Of one thread.
typedef struct forward_scratch {
    td_attention_queries queries;
    float *q;             // (block_rows, left_stride), in fp32 scaled
    float *out;           // (block_rows, packed_stride)
    float *largest, *sum; // (block_rows)
    float *keys;          // (depth, TD_ATTENTION_SCORES) transposed
    float *key_rows;      // (TD_ATTENTION_KEYS, left_stride) on their way there, in bf16
    float *values;        // (steps of TD_ATTENTION_KEYS, packed_stride)
    float *scores;        // (TD_ATTENTION_STRIP, TD_ATTENTION_SCORES)
} forward_scratch;

typedef struct forward_job {
    td_attention_plan plan;
    const td_attention_forward_args *args;
    const td_attention_kernels *kernels;
    td_attention_queue queue;
} forward_job;

static forward_scratch scratch_carve(const td_attention_plan *plan, td_attention_carver *carver) {
    size_t rows = (size_t)plan->block_rows, stride = (size_t)plan->packed_stride;
    size_t left = (size_t)plan->left_stride, pair = (size_t)plan->pair, f = sizeof(float);
    return (forward_scratch){
        .queries.visible = td_attention_carve(carver, rows, sizeof(td_cpu_range)),
        .q = td_attention_carve(carver, rows * left, f),
        .out = td_attention_carve(carver, rows * stride, f),
        .largest = td_attention_carve(carver, rows, f),
        .sum = td_attention_carve(carver, rows, f),
        .keys = td_attention_carve(carver, (size_t)plan->depth * TD_ATTENTION_SCORES, f),
        .key_rows = td_attention_carve(carver, pair > 1 ? TD_ATTENTION_KEYS * left : 0, f),
        .values = td_attention_carve(carver, TD_ATTENTION_KEYS / pair * stride, f),
        .scores = td_attention_carve(carver, TD_ATTENTION_STRIP * TD_ATTENTION_SCORES, f),
    };
}

size_t td_attention_forward_thread_bytes(const td_attention_plan *plan) {
    td_attention_carver counter = {0};
    scratch_carve(plan, &counter);
    td_attention_carve(&counter, 0, 1);
    return counter.used;
}

static void block_begin(const forward_job *job, const td_attention_task *task,
                        forward_scratch *scratch) {
    const td_attention_plan *plan = &job->plan;
    // The last blocks see the most keys: started first, they do not leave one thread working alone
    // at the end.
    td_attention_queries_fill(plan, &task->sequence, task->n_blocks - 1 - task->block,
                              &scratch->queries);
    td_attention_pack_queries(plan, job->kernels,
                              (td_attention_tensor){job->args->q, plan->q_stride},
                              task->sequence.q_begin, task->key_head, scratch->queries.tokens,
                              plan->q_factor, (td_attention_packed){scratch->q, NULL});
    for (int64_t row = 0; row < scratch->queries.n_rows; row++) {
        scratch->largest[row] = -INFINITY;
        scratch->sum[row] = 0.0f;
    }
    memset(scratch->out, 0,
           (size_t)(scratch->queries.n_rows * plan->packed_stride) * sizeof(float));
}

// Keys [first_key, first_key + n_keys) in the form that the products read.
typedef struct key_block {
    int64_t first_key, n_keys;
    const float *values;
    int64_t values_stride;
} key_block;

static key_block keys_load(const forward_job *job, const td_attention_task *task, int64_t first_key,
                           const forward_scratch *scratch) {
    const td_attention_plan *plan = &job->plan;
    int64_t left = scratch->queries.keys.end - first_key;
    key_block block = {.first_key = first_key,
                       .n_keys = left < TD_ATTENTION_KEYS ? left : TD_ATTENTION_KEYS};
    int64_t token = task->sequence.k_begin + first_key;
    td_attention_tensor keys =
        td_attention_keys_at(plan, job->args->k, plan->k_stride, token, task->key_head);
    td_attention_tensor values =
        td_attention_keys_at(plan, job->args->v, plan->v_stride, token, task->key_head);
    td_attention_pack_transposed(plan, job->kernels, keys, block.n_keys, scratch->key_rows,
                                 scratch->keys);
    // Values that few rows will read are used where they are: decoding reads each just once.
    int in_place =
        plan->pair == 1 && scratch->queries.n_rows <= 8 && plan->head_dim == plan->packed_cols;
    if (!in_place)
        td_attention_pack_keys(plan, job->kernels, values, block.n_keys, scratch->values);
    block.values = in_place ? values.base : scratch->values;
    block.values_stride = in_place ? values.stride : plan->packed_stride;
    return block;
}

static void strip_scores(const forward_job *job, const forward_scratch *scratch, int64_t row,
                         const td_attention_strip *strip) {
    job->kernels->multiply(&(td_attention_product){
        .m = strip->n_rows,
        .n = strip->columns.end - strip->columns.begin,
        .k = job->plan.depth,
        .a = scratch->q + row * job->plan.left_stride,
        .a_row = job->plan.left_stride,
        .a_step = 1,
        .b = scratch->keys + strip->columns.begin,
        .ldb = TD_ATTENTION_SCORES,
        .c = strip->scores + strip->columns.begin,
        .ldc = TD_ATTENTION_SCORES,
    });
}

static void strip_values(const forward_job *job, const forward_scratch *scratch, td_cpu_range rows,
                         const float *probabilities, const key_block *block) {
    td_cpu_range keys =
        td_attention_keys_seen(&scratch->queries, rows, block->first_key, block->n_keys);
    int64_t first = keys.begin / job->plan.pair;
    job->kernels->multiply(&(td_attention_product){
        .m = rows.end - rows.begin,
        .n = job->plan.packed_cols,
        .k = td_attention_steps(&job->plan, keys.end - keys.begin),
        .a = probabilities + first,
        .a_row = TD_ATTENTION_SCORES,
        .a_step = 1,
        .b = block->values + first * block->values_stride,
        .ldb = block->values_stride,
        .c = scratch->out + rows.begin * job->plan.packed_stride,
        .ldc = job->plan.packed_stride,
        .accumulate = 1,
    });
}

static void strip_process(const forward_job *job, forward_scratch *scratch, td_cpu_range rows,
                          const key_block *block) {
    td_attention_strip strip = {
        .n_rows = rows.end - rows.begin,
        .visible = scratch->queries.visible + rows.begin,
        .first_key = block->first_key,
        .columns = td_attention_columns(&scratch->queries, rows, block->first_key, block->n_keys),
        .scale = job->plan.score_factor,
        .softcap = job->plan.softcap,
        .scores = scratch->scores,
    };
    if (strip.columns.begin == strip.columns.end)
        return;
    td_attention_softmax state = {
        .largest = scratch->largest + rows.begin,
        .sum = scratch->sum + rows.begin,
        .out = scratch->out + rows.begin * job->plan.packed_stride,
        .out_stride = job->plan.packed_stride,
        .out_cols = job->plan.packed_cols,
    };
    strip_scores(job, scratch, rows.begin, &strip);
    job->kernels->softmax(&strip, &state);
    strip_values(job, scratch, rows, strip.scores, block);
}

static void row_store(const forward_job *job, const forward_scratch *scratch, int64_t row,
                      int64_t token, int64_t head) {
    const td_attention_plan *plan = &job->plan;
    float factor = td_attention_factor(plan->score_factor, plan->softcap);
    float *to = (float *)job->args->out + td_attention_offset(plan, token, plan->out_stride, head);
    job->kernels->copy_row(scratch->out + row * plan->packed_stride, plan->head_dim,
                           1.0f / scratch->sum[row], to, plan->head_dim);
    if (job->args->lse)
        job->args->lse[token * plan->n_heads + head] =
            scratch->largest[row] * factor + logf(scratch->sum[row]);
}

static void block_store(const forward_job *job, const td_attention_task *task,
                        const forward_scratch *scratch) {
    td_cpu_range tokens = scratch->queries.tokens;
    int64_t heads = job->plan.heads_per_key, row = 0;
    for (int64_t token = tokens.begin; token < tokens.end; token++)
        for (int64_t head = 0; head < heads; head++, row++)
            row_store(job, scratch, row, task->sequence.q_begin + token,
                      task->key_head * heads + head);
}

// A strip's share of the keys and values behind this block.
static void next_prefetch(const forward_job *job, const td_attention_task *task,
                          const td_attention_queries *queries, td_cpu_range rows,
                          int64_t first_key) {
    const td_attention_plan *plan = &job->plan;
    int64_t token = task->sequence.k_begin, head = task->key_head;
    td_attention_tensor keys =
        td_attention_keys_at(plan, job->args->k, plan->k_stride, token, head);
    td_attention_tensor values =
        td_attention_keys_at(plan, job->args->v, plan->v_stride, token, head);
    int64_t key = first_key + TD_ATTENTION_KEYS * rows.begin / queries->n_rows;
    int64_t end = first_key + TD_ATTENTION_KEYS * rows.end / queries->n_rows;
    for (; key < end && key < queries->keys.end; key++) {
        td_attention_prefetch(keys.base + key * keys.stride, plan->head_dim);
        td_attention_prefetch(values.base + key * values.stride, plan->head_dim);
    }
}

static void block_process(const forward_job *job, const td_attention_task *task,
                          forward_scratch *scratch) {
    block_begin(job, task, scratch);
    int64_t n_rows = scratch->queries.n_rows;
    int64_t key = scratch->queries.keys.begin / TD_ATTENTION_KEYS * TD_ATTENTION_KEYS;
    for (; key < scratch->queries.keys.end; key += TD_ATTENTION_KEYS) {
        key_block block = keys_load(job, task, key, scratch);
        for (int64_t row = 0; row < n_rows; row += TD_ATTENTION_STRIP) {
            int64_t end = row + TD_ATTENTION_STRIP;
            td_cpu_range rows = {row, end < n_rows ? end : n_rows};
            next_prefetch(job, task, &scratch->queries, rows, key + TD_ATTENTION_KEYS);
            strip_process(job, scratch, rows, &block);
        }
    }
    block_store(job, task, scratch);
}

static void worker(forward_job *job, void *memory) {
    td_attention_carver carver = {.base = memory};
    forward_scratch scratch = scratch_carve(&job->plan, &carver);
    td_attention_cursor cursor = {0};
    td_attention_task task;
    unsigned before = td_attention_flush(&job->plan);
    while (td_attention_take(&job->queue, &cursor, &task))
        block_process(job, &task, &scratch);
    td_attention_restore(before);
}

// Wide blocks where each thread still gets several: what is left over at the end is small then.
static td_attention_plan plan_for(const td_attention_shape *shape, td_dtype product, int threads) {
    enum { ENOUGH = 6 };
    td_attention_plan plan = td_attention_plan_of(shape, product),
                      wide = td_attention_plan_widen(plan);
    int64_t tasks = 0;
    for (int64_t i = 0; i < shape->n_sequences; i++)
        tasks += td_attention_blocks(shape->cu_q[i + 1] - shape->cu_q[i], wide.block_tokens);
    return tasks * plan.n_kv_heads >= ENOUGH * (int64_t)threads ? wide : plan;
}

td_status td_cpu_attention_forward(const td_op_context *context,
                                   const td_attention_forward_args *args) {
    td_dtype product = context->ops->product;
    forward_job job = {.plan = plan_for(&args->shape, product, td_cpu_threads()),
                       .args = args,
                       .kernels = td_attention_kernels_find(product),
                       .queue = {.shape = &args->shape}};
    job.queue.n_queries = job.plan.block_tokens;
    size_t thread_bytes = td_attention_forward_thread_bytes(&job.plan);
    TD_TRY(td_cpu_need_workspace(context, "attention_forward", thread_bytes));
    int threads = td_attention_team(context, &args->shape, 0, thread_bytes);
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int i = 0; i < threads; i++)
        worker(&job, (char *)context->workspace + (size_t)i * thread_bytes);
    return TD_OK;
}
