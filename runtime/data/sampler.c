#include "runtime/data/sampler.h"

#include <stdlib.h>

#include "runtime/core/rng.h"

// Attention costs as much as everything else at about this length, for models of a few hundred
// million to a few billion parameters; the balance is not sensitive to it.
static const double attention_tokens = 8192;

struct td_sampler {
    td_sampler_options options;
    int64_t n_micro_batches; // per epoch
    int64_t max_tokens, max_rows;
    int64_t epoch;        // that `order` is of; -1: none yet
    int64_t *order;       // packing: micro-batches; else rows; in the epoch's order
    int64_t *rows;        // packing: rows, bin after bin
    int64_t *begins;      // packing: (n_micro_batches + 1) into rows
    td_micro_batch *step; // of the running step
    int *by_cost;
};

static int64_t length_of(const td_sampler *sampler, int64_t row) {
    return sampler->options.offsets[row + 1] - sampler->options.offsets[row];
}

static int64_t order_count(const td_sampler *sampler) {
    return sampler->options.packing ? sampler->n_micro_batches : sampler->options.n_rows;
}

// Rows sorted by bin, ascending within a bin: a counting sort.
static td_status fill_bins(td_sampler *sampler, const int64_t *bin) {
    int64_t n = sampler->options.n_rows, n_bins = sampler->n_micro_batches;
    sampler->rows = malloc((size_t)n * sizeof *sampler->rows);
    sampler->begins = calloc((size_t)n_bins + 2, sizeof *sampler->begins);
    if (!sampler->rows || !sampler->begins)
        return td_fail(TD_ERR_MEMORY, "no memory to pack %lld rows", (long long)n);
    int64_t *next = sampler->begins + 1;
    for (int64_t row = 0; row < n; row++)
        next[bin[row] + 1]++;
    for (int64_t i = 0; i < n_bins; i++)
        next[i + 1] += next[i];
    for (int64_t row = 0; row < n; row++)
        sampler->rows[next[bin[row]]++] = row;
    return TD_OK;
}

static td_status pack(td_sampler *sampler) {
    const td_sampler_options *options = &sampler->options;
    size_t n = (size_t)options->n_rows;
    int64_t *lengths = malloc(n * sizeof *lengths), *bin = malloc(n * sizeof *bin);
    td_status status = TD_OK;
    if (!lengths || !bin)
        status = td_fail(TD_ERR_MEMORY, "no memory to pack %zu rows", n);
    for (size_t row = 0; status == TD_OK && row < n; row++) {
        lengths[row] = length_of(sampler, (int64_t)row);
        if (lengths[row] > options->micro_batch_tokens)
            status = td_fail(TD_ERR_USAGE,
                             "a row of %lld tokens does not fit micro_batch_tokens of %lld",
                             (long long)lengths[row], (long long)options->micro_batch_tokens);
    }
    if (status == TD_OK) {
        sampler->n_micro_batches =
            td_pack_best_fit_decreasing(options->n_rows, lengths, options->micro_batch_tokens, bin);
        status = sampler->n_micro_batches < 0
                     ? td_fail(TD_ERR_MEMORY, "no memory to pack %zu rows", n)
                     : fill_bins(sampler, bin);
    }
    free(bin);
    free(lengths);
    return status;
}

// Tokens, trained tokens and cost of rows [begin, begin + count) of `rows`.
static td_micro_batch describe(const td_sampler *sampler, const int64_t *rows, int64_t count) {
    td_micro_batch micro_batch = {.rows = rows, .n_rows = count};
    double squares = 0;
    for (int64_t i = 0; i < count; i++) {
        int64_t length = length_of(sampler, rows[i]);
        micro_batch.n_tokens += length;
        micro_batch.n_trained += sampler->options.row_trained[rows[i]];
        squares += (double)length * (double)length;
    }
    micro_batch.cost = (double)micro_batch.n_tokens + squares / attention_tokens;
    return micro_batch;
}

static void find_packed_extents(td_sampler *sampler) {
    for (int64_t i = 0; i < sampler->n_micro_batches; i++) {
        int64_t begin = sampler->begins[i], count = sampler->begins[i + 1] - begin;
        td_micro_batch micro_batch = describe(sampler, sampler->rows + begin, count);
        if (micro_batch.n_tokens > sampler->max_tokens)
            sampler->max_tokens = micro_batch.n_tokens;
        if (count > sampler->max_rows)
            sampler->max_rows = count;
    }
}

static int descending(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x < y) - (x > y);
}

// Shuffling may bring the longest rows together.
static td_status find_unpacked_extents(td_sampler *sampler) {
    int64_t n = sampler->options.n_rows, most = sampler->options.sequences;
    int64_t *lengths = malloc((size_t)n * sizeof *lengths);
    if (!lengths)
        return td_fail(TD_ERR_MEMORY, "no memory for the lengths of %lld rows", (long long)n);
    for (int64_t row = 0; row < n; row++)
        lengths[row] = length_of(sampler, row);
    qsort(lengths, (size_t)n, sizeof *lengths, descending);
    sampler->max_rows = most < n ? most : n;
    for (int64_t i = 0; i < sampler->max_rows; i++)
        sampler->max_tokens += lengths[i];
    sampler->n_micro_batches = (n - 1) / most + 1;
    free(lengths);
    return TD_OK;
}

static td_status create(td_sampler *sampler) {
    const td_sampler_options *options = &sampler->options;
    if (options->n_rows < 1 || options->accumulation < 1 ||
        (!options->packing && options->sequences < 1))
        return td_fail(TD_ERR_INTERNAL, "a sampler of %lld rows, %lld micro-batches per step",
                       (long long)options->n_rows, (long long)options->accumulation);
    if (options->packing) {
        TD_TRY(pack(sampler));
        find_packed_extents(sampler);
    } else {
        TD_TRY(find_unpacked_extents(sampler));
    }
    int64_t most = sampler->n_micro_batches;
    size_t per_step = (size_t)(options->accumulation < most ? options->accumulation : most);
    sampler->order = malloc((size_t)order_count(sampler) * sizeof *sampler->order);
    sampler->step = calloc(per_step, sizeof *sampler->step);
    sampler->by_cost = calloc(per_step, sizeof *sampler->by_cost);
    if (!sampler->order || !sampler->step || !sampler->by_cost)
        return td_fail(TD_ERR_MEMORY, "no memory for the order of %lld rows",
                       (long long)options->n_rows);
    return TD_OK;
}

td_status td_sampler_create(const td_sampler_options *options, td_sampler **out) {
    td_sampler *sampler = calloc(1, sizeof *sampler);
    if (!sampler)
        return td_fail(TD_ERR_MEMORY, "no memory for the sampler");
    sampler->options = *options;
    sampler->epoch = -1;
    td_status status = create(sampler);
    if (status != TD_OK) {
        td_sampler_destroy(sampler);
        return status;
    }
    *out = sampler;
    return TD_OK;
}

void td_sampler_destroy(td_sampler *sampler) {
    if (!sampler)
        return;
    free(sampler->by_cost);
    free(sampler->step);
    free(sampler->begins);
    free(sampler->rows);
    free(sampler->order);
    free(sampler);
}

int64_t td_sampler_micro_batches_per_epoch(const td_sampler *sampler) {
    return sampler->n_micro_batches;
}

int64_t td_sampler_steps_per_epoch(const td_sampler *sampler) {
    return (sampler->n_micro_batches - 1) / sampler->options.accumulation + 1;
}

int64_t td_sampler_max_tokens(const td_sampler *sampler) {
    return sampler->max_tokens;
}

int64_t td_sampler_max_rows(const td_sampler *sampler) {
    return sampler->max_rows;
}

// The words of one epoch's shuffle.
typedef struct word_stream {
    uint64_t key, index;
    uint32_t epoch;
} word_stream;

// Uniform below bound, without bias: words beyond the last whole multiple of the bound are passed
// over.
static uint64_t below(word_stream *words, uint64_t bound) {
    uint64_t limit = UINT64_MAX - UINT64_MAX % bound, value;
    do {
        uint64_t high = td_rng_word(words->key, words->epoch, 0, words->index++);
        value = high << 32 | td_rng_word(words->key, words->epoch, 0, words->index++);
    } while (value >= limit);
    return value % bound;
}

static void order_epoch(td_sampler *sampler, int64_t epoch) {
    int64_t n = order_count(sampler);
    word_stream words = {.key = td_rng_key(sampler->options.seed, TD_RNG_SAMPLER),
                         .epoch = (uint32_t)epoch};
    if (sampler->epoch == epoch)
        return;
    for (int64_t i = 0; i < n; i++)
        sampler->order[i] = i;
    for (int64_t i = n - 1; sampler->options.shuffle && i > 0; i--) {
        int64_t j = (int64_t)below(&words, (uint64_t)i + 1), swap = sampler->order[i];
        sampler->order[i] = sampler->order[j];
        sampler->order[j] = swap;
    }
    sampler->epoch = epoch;
}

static td_micro_batch micro_batch_at(const td_sampler *sampler, int64_t index) {
    if (sampler->options.packing) {
        int64_t bin = sampler->order[index], begin = sampler->begins[bin];
        return describe(sampler, sampler->rows + begin, sampler->begins[bin + 1] - begin);
    }
    int64_t begin = index * sampler->options.sequences, left = sampler->options.n_rows - begin;
    int64_t count = left < sampler->options.sequences ? left : sampler->options.sequences;
    return describe(sampler, sampler->order + begin, count);
}

// Heap sort of the step's indices, the most expensive first, equal ones in ascending order; in
// place.
static int comes_later(const td_sampler *sampler, int a, int b) {
    double x = sampler->step[a].cost, y = sampler->step[b].cost;
    return x < y || (x == y && a > b);
}

static void sift_down(td_sampler *sampler, int64_t n, int64_t i) {
    int *heap = sampler->by_cost;
    for (;;) {
        int64_t last = i, left = 2 * i + 1, right = left + 1;
        if (left < n && comes_later(sampler, heap[left], heap[last]))
            last = left;
        if (right < n && comes_later(sampler, heap[right], heap[last]))
            last = right;
        if (last == i)
            return;
        int swap = heap[i];
        heap[i] = heap[last];
        heap[last] = swap;
        i = last;
    }
}

static void sort_by_cost(td_sampler *sampler, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        sampler->by_cost[i] = (int)i;
    for (int64_t i = n / 2 - 1; i >= 0; i--)
        sift_down(sampler, n, i);
    for (int64_t end = n - 1; end > 0; end--) {
        int swap = sampler->by_cost[0];
        sampler->by_cost[0] = sampler->by_cost[end];
        sampler->by_cost[end] = swap;
        sift_down(sampler, end, 0);
    }
}

td_status td_sampler_batch(td_sampler *sampler, int64_t step, td_batch *out) {
    int64_t per_epoch = td_sampler_steps_per_epoch(sampler),
            accumulation = sampler->options.accumulation;
    int64_t epoch = step / per_epoch, first = step % per_epoch * accumulation;
    int64_t left = sampler->n_micro_batches - first;
    td_batch batch = {.micro_batches = sampler->step, .by_cost = sampler->by_cost, .epoch = epoch};
    batch.n_micro_batches = left < accumulation ? left : accumulation;
    order_epoch(sampler, epoch);
    for (int64_t i = 0; i < batch.n_micro_batches; i++) {
        sampler->step[i] = micro_batch_at(sampler, first + i);
        batch.n_trained += sampler->step[i].n_trained;
        batch.n_tokens += sampler->step[i].n_tokens;
    }
    sort_by_cost(sampler, batch.n_micro_batches);
    *out = batch;
    return TD_OK;
}

void td_assign(const td_batch *batch, int size, int *owner) {
    double load[TD_ASSIGN_MAX_RANKS];
    int ranks = size < TD_ASSIGN_MAX_RANKS ? size : TD_ASSIGN_MAX_RANKS;
    for (int rank = 0; rank < ranks; rank++)
        load[rank] = 0;
    for (int64_t i = 0; i < batch->n_micro_batches; i++) {
        int least = 0, index = batch->by_cost[i];
        for (int rank = 1; rank < ranks; rank++)
            if (load[rank] < load[least])
                least = rank;
        owner[index] = least;
        load[least] += batch->micro_batches[index].cost;
    }
}
