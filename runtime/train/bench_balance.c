#include <math.h>
#include <stdlib.h>

#include "runtime/core/rng.h"
#include "runtime/data/sampler.h"
#include "runtime/train/bench_comm.h"

enum { ROWS = 20000, PER_RANK = 4, MAX_STEPS = 50, RANKS_MAX = 1024 };
static const double median_tokens = 250, sigma = 1; // of the lengths' logarithm
static const int ranks_of[TD_BENCH_BALANCE_POINTS] = {1, 2, 3, 8, 16, 64, 128, 256, RANKS_MAX};

typedef struct rows {
    int64_t *offsets; // (ROWS + 1)
    int32_t *trained; // (ROWS)
    double *load;     // (RANKS_MAX)
    int *owners;      // (RANKS_MAX * PER_RANK)
} rows;

// Box and Muller's method.
static double normal_of(int64_t index) {
    uint64_t key = td_rng_key(1, TD_RNG_TEST);
    double u = ((double)td_rng_word(key, 0, 0, (uint64_t)index) + 1) / 4294967297.0;
    double v = (double)td_rng_word(key, 0, 1, (uint64_t)index) / 4294967296.0;
    return sqrt(-2 * log(u)) * cos(2 * M_PI * v);
}

static void draw_lengths(rows *all, int64_t longest) {
    for (int64_t i = 0; i < ROWS; i++) {
        double tokens = fmin(fmax(median_tokens * exp(sigma * normal_of(i)), 8), (double)longest);
        all->offsets[i + 1] = all->offsets[i] + (int64_t)tokens;
        all->trained[i] = (int32_t)tokens - 1;
    }
}

static double most_of(rows *all, const td_batch *batch, int size, double *total) {
    double most = 0;
    td_assign(batch, size, all->owners);
    for (int rank = 0; rank < size; rank++)
        all->load[rank] = 0;
    for (int64_t i = 0; i < batch->n_micro_batches; i++) {
        all->load[all->owners[i]] += batch->micro_batches[i].cost;
        *total += batch->micro_batches[i].cost;
    }
    for (int rank = 0; rank < size; rank++)
        most = all->load[rank] > most ? all->load[rank] : most;
    return most;
}

// Time of all steps over what it would be if every rank had the mean.
static td_status imbalance(rows *all, td_sampler_options options, int size, double *out) {
    td_sampler *sampler = NULL;
    double slowest = 0, total = 0;
    options.accumulation = (int64_t)size * PER_RANK;
    TD_TRY(td_sampler_create(&options, &sampler));
    int64_t batches = td_sampler_micro_batches_per_epoch(sampler);
    int64_t steps = batches / options.accumulation; // full ones
    td_status status = TD_OK;
    for (int64_t step = 0; status == TD_OK && step < steps && step < MAX_STEPS; step++) {
        td_batch batch;
        status = td_sampler_batch(sampler, step, &batch);
        if (status == TD_OK)
            slowest += most_of(all, &batch, size, &total);
    }
    *out = total > 0 ? slowest * size / total : NAN;
    td_sampler_destroy(sampler);
    return status;
}

static td_status measure(const td_config *config, rows *all, td_bench_balance_point *out) {
    td_sampler_options options = {.n_rows = ROWS,
                                  .offsets = all->offsets,
                                  .row_trained = all->trained,
                                  .micro_batch_tokens = config->max_length,
                                  .sequences = 1,
                                  .shuffle = 1,
                                  .seed = 1};
    for (int i = 0; i < TD_BENCH_BALANCE_POINTS; i++) {
        out[i].ranks = ranks_of[i];
        options.packing = 1;
        TD_TRY(imbalance(all, options, ranks_of[i], &out[i].packed));
        options.packing = 0;
        TD_TRY(imbalance(all, options, ranks_of[i], &out[i].not_packed));
    }
    return TD_OK;
}

td_status td_bench_balance(const td_config *config, td_bench_balance_point *out) {
    rows all = {.offsets = calloc(ROWS + 1, sizeof *all.offsets),
                .trained = calloc(ROWS, sizeof *all.trained),
                .load = calloc(RANKS_MAX, sizeof *all.load),
                .owners = calloc((size_t)RANKS_MAX * PER_RANK, sizeof *all.owners)};
    int has_all = all.offsets && all.trained && all.load && all.owners;
    td_status status = has_all ? TD_OK : td_fail(TD_ERR_MEMORY, "no memory for %d rows", ROWS);
    if (status == TD_OK) {
        draw_lengths(&all, config->max_length);
        status = measure(config, &all, out);
    }
    free(all.offsets);
    free(all.trained);
    free(all.load);
    free(all.owners);
    return status;
}
