#include "runtime/train/planner.h"

#include <math.h>

#include "runtime/data/sampler.h"
#include "runtime/train/planner_internal.h"
#include "runtime/train/schedule.h"

// Rows of a packed micro-batch when nobody says how long rows are. Only small tables depend on it.
enum { ASSUMED_ROW_TOKENS = 64 };

static const int64_t listed_ranks[TD_PLANNER_N_RANKS] = {4, 8, 16, 32, 64, 128, 256, 512, 1024};

// Counts of tokens and steps stay within 64 bits.
static const double most_tokens = 1e18;

static const char *status_of(double ratio) {
    return ratio < 0.8 ? "Under" : ratio < 1.2 ? "Knee" : ratio < 2.5 ? "Optimal" : "Over";
}

td_planner_capacity td_planner_capacity_of(int64_t rank, int64_t n_parameters, double tokens,
                                           double bits_per_token) {
    td_planner_capacity capacity = {.rank = rank, .n_parameters = n_parameters};
    double parameters = (double)n_parameters;
    double capacity_tokens = TD_PLANNER_BITS_PER_PARAMETER / bits_per_token * parameters;
    double ratio = tokens > 0 ? tokens / capacity_tokens : NAN;
    capacity.tokens_per_parameter = tokens > 0 ? tokens / parameters : NAN;
    capacity.ratio = ratio;
    capacity.memorization = ratio > 1 ? pow(ratio, -0.7) : ratio;
    capacity.generalization = 1 - capacity.memorization;
    capacity.status = tokens > 0 ? status_of(ratio) : NULL;
    return capacity;
}

static double distance(const td_planner_capacity *capacity) {
    return fabs(capacity->ratio - TD_PLANNER_BEST_RATIO);
}

// The parameters grow by the same number with every rank: two layouts tell it. Modules that
// rank_pattern names keep the rank that it gives.
static td_status find_growth(const td_planner *planner, int64_t *out) {
    td_lora other;
    td_lora_options at_rank = *planner->options.lora;
    int64_t rank = at_rank.rank;
    at_rank.rank = rank == 1 ? 2 : 1;
    at_rank.alpha_pattern = NULL;
    TD_TRY(td_lora_init(&other, planner->options.model, &at_rank));
    *out = (planner->lora.n_parameters - other.n_parameters) / (rank - at_rank.rank);
    td_lora_fini(&other);
    return TD_OK;
}

static td_status fill_capacities(td_planner *planner) {
    const td_planner_options *options = &planner->options;
    int64_t growth;
    TD_TRY(find_growth(planner, &growth));
    planner->recommended = -1;
    for (int i = 0; i < TD_PLANNER_N_RANKS; i++) {
        int64_t more = listed_ranks[i] - options->lora->rank;
        td_planner_capacity *row = &planner->capacities[i];
        *row = td_planner_capacity_of(listed_ranks[i], planner->lora.n_parameters + more * growth,
                                      planner->steps.tokens_seen, options->bits_per_token);
        int best = planner->recommended;
        if (row->status && (best < 0 || distance(row) < distance(&planner->capacities[best])))
            planner->recommended = i;
    }
    return TD_OK;
}

static int64_t up(int64_t a, int64_t b) {
    return a / b + (a % b != 0);
}

static int64_t packed_tokens(const td_config *config) {
    return config->micro_batch_tokens > 0 ? config->micro_batch_tokens : config->max_length;
}

// Of the rows themselves, by the sampler that a run would use.
static td_status count_store(const td_planner_options *options, td_planner_steps *steps) {
    const td_config *config = options->config;
    td_sampler *sampler;
    td_sampler_options sampling = {
        .n_rows = td_store_rows(options->store),
        .offsets = td_store_offsets(options->store),
        .row_trained = td_store_row_trained(options->store),
        .packing = config->packing,
        .micro_batch_tokens = packed_tokens(config),
        .sequences = config->per_device_train_batch_size,
        .accumulation = config->gradient_accumulation_steps,
    };
    TD_TRY(td_sampler_create(&sampling, &sampler));
    steps->tokens = td_store_tokens(options->store);
    steps->rows = sampling.n_rows;
    steps->is_exact = 1;
    steps->micro_batch_tokens = td_sampler_max_tokens(sampler);
    steps->micro_batch_rows = td_sampler_max_rows(sampler);
    steps->micro_batches = td_sampler_micro_batches_per_epoch(sampler);
    steps->longest_row = td_store_longest_row(options->store);
    td_sampler_destroy(sampler);
    return TD_OK;
}

// Packed micro-batches are taken to be full, which best-fit packing of short rows comes close to.
static void estimate_data(const td_planner_options *options, td_planner_steps *steps) {
    const td_config *config = options->config;
    int64_t sequences = config->per_device_train_batch_size;
    steps->tokens = options->tokens;
    steps->rows = options->rows;
    if (config->packing) {
        int64_t row_tokens = ASSUMED_ROW_TOKENS;
        if (steps->tokens > steps->rows && steps->rows > 0)
            row_tokens = steps->tokens / steps->rows;
        steps->micro_batch_tokens = packed_tokens(config);
        steps->micro_batch_rows = up(steps->micro_batch_tokens, row_tokens);
        steps->micro_batches = up(steps->tokens, steps->micro_batch_tokens);
    } else {
        steps->micro_batch_tokens = config->max_length * sequences;
        steps->micro_batch_rows = sequences;
        steps->micro_batches = up(steps->rows, sequences);
    }
}

static td_status check_settings(const td_config *config) {
    if (!config->packing && config->max_length > INT32_MAX / config->per_device_train_batch_size)
        return td_fail(TD_ERR_USAGE,
                       "micro-batches of %lld sequences of %lld tokens are too large: lower "
                       "per_device_train_batch_size or max_length",
                       (long long)config->per_device_train_batch_size,
                       (long long)config->max_length);
    return td_config_check_steps(config);
}

static void add_time(const td_planner_options *options, td_planner_steps *steps) {
    steps->seconds = steps->cost = NAN;
    if (options->tokens_per_second > 0 && steps->tokens_seen > 0)
        steps->seconds = steps->tokens_seen / options->tokens_per_second;
    if (options->price_per_hour >= 0)
        steps->cost = steps->seconds / 3600 * options->price_per_hour * options->n_ranks;
}

static td_status count_steps(const td_planner_options *options, td_planner_steps *steps) {
    const td_config *config = options->config;
    TD_TRY(check_settings(config));
    if (options->store)
        TD_TRY(count_store(options, steps));
    else
        estimate_data(options, steps);
    double tokens = (double)steps->tokens, rows = (double)steps->rows;
    steps->epochs = config->num_train_epochs;
    if (fmax(tokens, rows) * steps->epochs > most_tokens)
        return td_fail(TD_ERR_USAGE, "%g epochs of %g tokens are more than can be counted",
                       steps->epochs, fmax(tokens, rows));
    if (steps->micro_batches > 0)
        steps->steps_per_epoch = up(steps->micro_batches, config->gradient_accumulation_steps);
    if (steps->steps_per_epoch > 0 || config->max_steps > 0)
        steps->steps = td_schedule_make(config, steps->steps_per_epoch).total_steps;
    if (config->max_steps > 0)
        steps->epochs = steps->steps_per_epoch > 0
                            ? (double)steps->steps / (double)steps->steps_per_epoch
                            : NAN;
    // Without rows, a given number of steps of an unpacked run has no known number of tokens.
    steps->tokens_seen = isnan(steps->epochs) ? 0 : tokens * steps->epochs;
    add_time(options, steps);
    return TD_OK;
}

td_status td_planner_make(const td_planner_options *options, td_planner *out) {
    out->options = *options;
    td_base_count(options->model, &out->base);
    out->without_embeddings = out->base.total - out->base.embedding - out->base.head;
    TD_TRY(td_lora_init(&out->lora, options->model, options->lora));
    TD_TRY(count_steps(options, &out->steps));
    TD_TRY(fill_capacities(out));
    return td_planner_plan_memory(out);
}

void td_planner_fini(td_planner *planner) {
    td_lora_fini(&planner->lora);
    *planner = (td_planner){0};
}
