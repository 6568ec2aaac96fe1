// Linear layers with LoRA, and the head.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "model/lora.h"
#include "runtime/train/bench_ops_internal.h"

enum { SAMPLES = 6 };

// One layer's operands; what an operation does not use stays empty.
typedef struct layer {
    int64_t tokens, in, out, rank;
    td_bench_weight weight;
    td_operand x, y, xa, dy, dx, a, b, da, db;
    td_lora_weights lora;
    int is_head;
    double dropout;
} layer;

static void take_layer(td_ops_bench *bench, layer *l) {
    td_dtype act = bench->act, wide = l->is_head ? TD_F32 : act;
    double p = l->dropout;
    td_bench_take_weight(bench, l->out, l->in, !l->is_head, &l->weight);
    l->x = td_bench_take(bench, act, l->tokens * l->in, 1);
    l->y = td_bench_take(bench, wide, l->tokens * l->out, 0);
    l->dy = td_bench_take(bench, wide, l->tokens * l->out, 1);
    l->dx = td_bench_take(bench, act, l->tokens * l->in, 0);
    if (l->is_head)
        return;
    l->xa = td_bench_take(bench, act, l->tokens * l->rank, 1);
    l->a = td_bench_take(bench, TD_F32, l->rank * l->in, 1 / sqrt((double)l->in));
    l->b = td_bench_take(bench, TD_F32, l->out * l->rank, 1 / sqrt((double)l->rank));
    l->da = td_bench_take(bench, TD_F32, l->rank * l->in, 0);
    l->db = td_bench_take(bench, TD_F32, l->out * l->rank, 0);
    l->lora = (td_lora_weights){.a = l->a.data,
                                .b = l->b.data,
                                .rank = l->rank,
                                .scaling = 0.5f,
                                .dropout = {.key = td_rng_key(1, TD_RNG_TEST), .scale = 1}};
    if (p > 0) {
        l->lora.dropout.threshold = (uint32_t)(p * 4294967296.0);
        l->lora.dropout.scale = (float)(1 / (1 - p));
    }
}

// What dropout multiplies element (token, i) of x by.
static double kept(const layer *l, int64_t token, int64_t i) {
    const td_dropout *dropout = &l->lora.dropout;
    if (dropout->threshold == 0)
        return 1;
    return td_dropout_keep(dropout, (uint64_t)(token * l->in + i)) ? dropout->scale : 0;
}

static double forward_at(const layer *l, int64_t token, int64_t out, const double *xa) {
    double sum = 0, low = 0;
    for (int64_t i = 0; i < l->in; i++)
        sum += td_bench_at(&l->x, token * l->in + i) * td_bench_weight_at(&l->weight, out, i);
    for (int64_t r = 0; !l->is_head && r < l->rank; r++)
        low += xa[r] * td_bench_at(&l->b, out * l->rank + r);
    return sum + (double)l->lora.scaling * low;
}

static void project_down(const layer *l, int64_t token, double *xa) {
    for (int64_t r = 0; r < l->rank; r++) {
        xa[r] = 0;
        for (int64_t i = 0; i < l->in; i++)
            xa[r] += kept(l, token, i) * td_bench_at(&l->x, token * l->in + i) *
                     td_bench_at(&l->a, r * l->in + i);
    }
}

static td_status verify_forward(td_ops_bench *bench, const layer *l) {
    double *xa = calloc((size_t)l->rank + 1, sizeof *xa);
    if (!xa)
        return td_fail(TD_ERR_MEMORY, "no memory to verify results");
    for (int s = 0; s < SAMPLES; s++) {
        int64_t token = td_bench_sample(s, l->tokens);
        if (!l->is_head)
            project_down(l, token, xa);
        for (int k = 0; k < SAMPLES; k++) {
            int64_t out = td_bench_sample(k, l->out);
            double got = td_bench_read_one(bench, &l->y, token * l->out + out);
            td_bench_expect(bench, got, forward_at(l, token, out, xa));
        }
    }
    free(xa);
    return td_bench_settle(bench, td_bench_tolerance(bench, 0));
}

// scaling * (dy B) of one token, column r.
static double dyb_at(const layer *l, int64_t token, int64_t r) {
    double sum = 0;
    for (int64_t out = 0; out < l->out; out++)
        sum += td_bench_at(&l->dy, token * l->out + out) * td_bench_at(&l->b, out * l->rank + r);
    return (double)l->lora.scaling * sum;
}

static td_status verify_dx(td_ops_bench *bench, const layer *l) {
    double *dyb = calloc((size_t)l->rank + 1, sizeof *dyb);
    if (!dyb)
        return td_fail(TD_ERR_MEMORY, "no memory to verify results");
    for (int s = 0; s < SAMPLES; s++) {
        int64_t token = td_bench_sample(s, l->tokens);
        for (int64_t r = 0; !l->is_head && r < l->rank; r++)
            dyb[r] = dyb_at(l, token, r);
        for (int k = 0; k < SAMPLES; k++) {
            int64_t i = td_bench_sample(k, l->in);
            double sum = 0, low = 0;
            for (int64_t out = 0; out < l->out; out++)
                sum += td_bench_at(&l->dy, token * l->out + out) *
                       td_bench_weight_at(&l->weight, out, i);
            for (int64_t r = 0; !l->is_head && r < l->rank; r++)
                low += dyb[r] * td_bench_at(&l->a, r * l->in + i);
            double got = td_bench_read_one(bench, &l->dx, token * l->in + i);
            td_bench_expect(bench, got, sum + (l->is_head ? 0 : kept(l, token, i) * low));
        }
    }
    free(dyb);
    return td_bench_settle(bench, td_bench_tolerance(bench, 0));
}

// One row of da and one column of db: they take all tokens.
static td_status verify_lora_gradients(td_ops_bench *bench, const layer *l) {
    int64_t r = td_bench_sample(2, l->rank);
    double da[SAMPLES] = {0}, db[SAMPLES] = {0};
    for (int64_t token = 0; token < l->tokens; token++) {
        double dyb = dyb_at(l, token, r), xa = td_bench_at(&l->xa, token * l->rank + r);
        for (int k = 0; k < SAMPLES; k++) {
            int64_t i = td_bench_sample(k, l->in), out = td_bench_sample(k, l->out);
            da[k] += dyb * kept(l, token, i) * td_bench_at(&l->x, token * l->in + i);
            db[k] += (double)l->lora.scaling * td_bench_at(&l->dy, token * l->out + out) * xa;
        }
    }
    for (int k = 0; k < SAMPLES; k++)
        td_bench_expect(
            bench, td_bench_read_one(bench, &l->da, r * l->in + td_bench_sample(k, l->in)), da[k]);
    TD_TRY(td_bench_settle(bench, td_bench_tolerance(bench, 0)));
    for (int k = 0; k < SAMPLES; k++)
        td_bench_expect(bench,
                        td_bench_read_one(bench, &l->db, td_bench_sample(k, l->out) * l->rank + r),
                        db[k]);
    return td_bench_settle(bench, td_bench_tolerance(bench, 0));
}

static td_status forward(td_ops_bench *bench, const layer *l, const char *name) {
    td_linear_forward_args args = {.n_tokens = l->tokens,
                                   .x = l->x.data,
                                   .weight = &l->weight.matrix,
                                   .lora = l->is_head ? NULL : &l->lora,
                                   .xa = l->is_head ? NULL : l->xa.data,
                                   .y = l->y.data,
                                   .y_is_f32 = l->is_head};
    TD_TRY(td_bench_call(bench, name, TD_OP_linear_forward, &args));
    TD_TRY(verify_forward(bench, l));
    return td_bench_time_op(bench, &args);
}

static td_status backward(td_ops_bench *bench, const layer *l, const char *name) {
    td_linear_backward_args args = {.n_tokens = l->tokens,
                                    .dy = l->dy.data,
                                    .x = l->x.data,
                                    .xa = l->xa.data,
                                    .weight = &l->weight.matrix,
                                    .lora = l->is_head ? NULL : &l->lora,
                                    .dx = l->dx.data,
                                    .da = l->da.data,
                                    .db = l->db.data,
                                    .dy_is_f32 = l->is_head};
    TD_TRY(td_bench_call(bench, name, TD_OP_linear_backward, &args));
    TD_TRY(verify_dx(bench, l));
    if (!l->is_head)
        TD_TRY(verify_lora_gradients(bench, l));
    return td_bench_time_op(bench, &args);
}

// Backward first: going forward overwrites xa, whose first values the check knows.
static td_status both_ways(td_ops_bench *bench, layer *l, const char *name) {
    take_layer(bench, l);
    td_status status = backward(bench, l, name);
    if (status == TD_OK)
        status = forward(bench, l, name);
    td_bench_release(bench);
    return status;
}

static int is_first_of_extents(const td_model_config *model, td_projection projection) {
    for (int p = 0; p < (int)projection; p++)
        if (td_projection_exists(model, (td_projection)p) &&
            td_projection_in(model, (td_projection)p) == td_projection_in(model, projection) &&
            td_projection_out(model, (td_projection)p) == td_projection_out(model, projection))
            return 0;
    return 1;
}

static td_status projection_ops(td_ops_bench *bench, td_projection projection, double dropout) {
    const td_model_config *model = bench->model;
    char name[64];
    layer l = {.tokens = bench->options->tokens,
               .in = td_projection_in(model, projection),
               .out = td_projection_out(model, projection),
               .rank = bench->options->rank,
               .dropout = dropout};
    snprintf(name, sizeof name, "%s (%lld, %lld)%s", td_projection_name(projection),
             (long long)l.out, (long long)l.in, dropout > 0 ? ", dropout" : "");
    return both_ways(bench, &l, name);
}

static td_status head_ops(td_ops_bench *bench) {
    char name[64];
    layer head = {.tokens = bench->options->head_tokens,
                  .in = bench->model->hidden,
                  .out = bench->model->vocabulary,
                  .is_head = 1};
    snprintf(name, sizeof name, "head (%lld, %lld)", (long long)head.out, (long long)head.in);
    return both_ways(bench, &head, name);
}

// Projections of the same extents once, by the first one's name; the first one always with dropout
// too.
td_status td_bench_linear_ops(td_ops_bench *bench) {
    static const double some_dropout = 0.1;
    const td_model_config *model = bench->model;
    double dropout = bench->options->dropout;
    int is_covered = dropout > 0;
    for (int p = 0; p < TD_PROJ_COUNT; p++) {
        td_projection projection = (td_projection)p;
        if (!td_projection_exists(model, projection) || !is_first_of_extents(model, projection))
            continue;
        TD_TRY(projection_ops(bench, projection, dropout));
        if (!is_covered)
            TD_TRY(projection_ops(bench, projection, some_dropout));
        is_covered = 1;
    }
    return head_ops(bench);
}
