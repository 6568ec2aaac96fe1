#include "runtime/data/sampler.h"
#include "runtime/core/rng.h"
#include "test.h"

enum { ROWS = 203, STEPS = 200 };

static int64_t offsets[ROWS + 1];
static int32_t row_trained[ROWS];

static td_sampler_options options(int packing) {
    uint64_t key = td_rng_key(5, TD_RNG_TEST);
    for (int row = 0; row < ROWS; row++) {
        int64_t length = 2 + td_rng_word(key, 0, 0, (uint64_t)row) % 60;
        offsets[row + 1] = offsets[row] + length;
        row_trained[row] = (int32_t)(length / 2);
    }
    return (td_sampler_options){.n_rows = ROWS,
                                .offsets = offsets,
                                .row_trained = row_trained,
                                .packing = packing,
                                .micro_batch_tokens = 100,
                                .sequences = 4,
                                .accumulation = 3,
                                .shuffle = 1,
                                .seed = 42};
}

static td_sampler *create(const td_sampler_options *wanted) {
    td_sampler *sampler = NULL;
    REQUIRE(td_sampler_create(wanted, &sampler) == TD_OK);
    return sampler;
}

static td_batch batch_at(td_sampler *sampler, int64_t step) {
    td_batch batch;
    REQUIRE(td_sampler_batch(sampler, step, &batch) == TD_OK);
    return batch;
}

// The rows of a step in order, as one number.
static uint64_t digest(td_sampler *sampler, int64_t step) {
    td_batch batch = batch_at(sampler, step);
    uint64_t sum = 1469598103934665603u;
    for (int64_t m = 0; m < batch.n_micro_batches; m++) {
        for (int64_t i = 0; i < batch.micro_batches[m].n_rows; i++)
            sum = (sum ^ (uint64_t)batch.micro_batches[m].rows[i]) * 1099511628211u;
        sum = (sum ^ 0xffff) * 1099511628211u;
    }
    return sum;
}

static void check_epoch(td_sampler *sampler, int64_t epoch, int visits[ROWS]) {
    int64_t steps = td_sampler_steps_per_epoch(sampler), micro_batches = 0;
    memset(visits, 0, ROWS * sizeof *visits);
    for (int64_t step = 0; step < steps; step++) {
        td_batch batch = batch_at(sampler, epoch * steps + step);
        CHECK_INT(batch.epoch, epoch);
        micro_batches += batch.n_micro_batches;
        CHECK(batch.n_micro_batches == 3 || step == steps - 1);
        for (int64_t m = 0; m < batch.n_micro_batches; m++)
            for (int64_t i = 0; i < batch.micro_batches[m].n_rows; i++)
                visits[batch.micro_batches[m].rows[i]]++;
    }
    CHECK_INT(micro_batches, td_sampler_micro_batches_per_epoch(sampler));
}

static void every_epoch_visits_every_row_once(void) {
    int visits[ROWS];
    for (int packing = 0; packing < 2; packing++) {
        td_sampler_options wanted = options(packing);
        td_sampler *sampler = create(&wanted);
        for (int64_t epoch = 0; epoch < 4; epoch++) {
            check_epoch(sampler, epoch, visits);
            for (int row = 0; row < ROWS; row++)
                CHECK_INT(visits[row], 1);
        }
        td_sampler_destroy(sampler);
    }
}

static void a_step_is_the_same_however_it_is_reached(void) {
    static uint64_t straight[STEPS];
    for (int packing = 0; packing < 2; packing++) {
        td_sampler_options wanted = options(packing);
        td_sampler *sampler = create(&wanted);
        for (int step = 0; step < STEPS; step++)
            straight[step] = digest(sampler, step);
        for (int step = STEPS - 1; step >= 0; step -= 7) {
            td_sampler *resumed = create(&wanted);
            CHECK(digest(resumed, step) == straight[step]);
            CHECK(digest(sampler, step) == straight[step]);
            td_sampler_destroy(resumed);
        }
        td_sampler_destroy(sampler);
    }
}

static void seed_and_epoch_change_the_order(void) {
    for (int packing = 0; packing < 2; packing++) {
        td_sampler_options wanted = options(packing);
        td_sampler *sampler = create(&wanted);
        wanted.seed++;
        td_sampler *other = create(&wanted);
        CHECK(digest(sampler, 0) != digest(other, 0));
        CHECK(digest(sampler, 0) != digest(sampler, td_sampler_steps_per_epoch(sampler)));
        td_sampler_destroy(other);
        td_sampler_destroy(sampler);
    }
}

static void without_shuffling_rows_keep_their_order(void) {
    td_sampler_options wanted = options(0);
    wanted.shuffle = 0;
    td_sampler *sampler = create(&wanted);
    int64_t next = 0, steps = td_sampler_steps_per_epoch(sampler);
    for (int64_t step = 0; step < steps; step++) {
        td_batch batch = batch_at(sampler, steps + step);
        for (int64_t m = 0; m < batch.n_micro_batches; m++)
            for (int64_t i = 0; i < batch.micro_batches[m].n_rows; i++)
                CHECK_INT(batch.micro_batches[m].rows[i], next++);
    }
    CHECK_INT(next, ROWS);
    td_sampler_destroy(sampler);
}

static void counts_are_those_of_the_rows(void) {
    for (int packing = 0; packing < 2; packing++) {
        td_sampler_options wanted = options(packing);
        td_sampler *sampler = create(&wanted);
        for (int64_t step = 0; step < 60; step++) {
            td_batch batch = batch_at(sampler, step);
            int64_t all_tokens = 0, all_trained = 0;
            for (int64_t m = 0; m < batch.n_micro_batches; m++) {
                const td_micro_batch *one = &batch.micro_batches[m];
                int64_t tokens = 0, trained = 0;
                for (int64_t i = 0; i < one->n_rows; i++) {
                    tokens += offsets[one->rows[i] + 1] - offsets[one->rows[i]];
                    trained += row_trained[one->rows[i]];
                }
                CHECK_INT(one->n_tokens, tokens);
                CHECK_INT(one->n_trained, trained);
                CHECK(one->cost >= (double)tokens);
                all_tokens += tokens;
                all_trained += trained;
            }
            CHECK_INT(batch.n_tokens, all_tokens);
            CHECK_INT(batch.n_trained, all_trained);
        }
        td_sampler_destroy(sampler);
    }
}

static void no_micro_batch_exceeds_the_plan(void) {
    for (int packing = 0; packing < 2; packing++) {
        td_sampler_options wanted = options(packing);
        td_sampler *sampler = create(&wanted);
        int64_t most_tokens = 0, most_rows = 0;
        for (int64_t step = 0; step < 20 * td_sampler_steps_per_epoch(sampler); step++) {
            td_batch batch = batch_at(sampler, step);
            for (int64_t m = 0; m < batch.n_micro_batches; m++) {
                int64_t tokens = batch.micro_batches[m].n_tokens;
                int64_t rows = batch.micro_batches[m].n_rows;
                most_tokens = tokens > most_tokens ? tokens : most_tokens;
                most_rows = rows > most_rows ? rows : most_rows;
            }
        }
        CHECK(most_tokens <= td_sampler_max_tokens(sampler));
        CHECK_INT(most_rows, td_sampler_max_rows(sampler));
        CHECK(!packing || most_tokens == td_sampler_max_tokens(sampler));
        CHECK(!packing || td_sampler_max_tokens(sampler) <= 100);
        td_sampler_destroy(sampler);
    }
}

// Four rows have 24 orders; over many epochs each comes up about equally often.
static void the_shuffle_is_unbiased(void) {
    enum { EPOCHS = 24000 };
    int counts[256] = {0};
    td_sampler_options wanted = options(0);
    wanted.n_rows = 4;
    wanted.sequences = 4;
    td_sampler *sampler = create(&wanted);
    for (int64_t epoch = 0; epoch < EPOCHS; epoch++) {
        const int64_t *rows = batch_at(sampler, epoch).micro_batches[0].rows;
        counts[rows[0] << 6 | rows[1] << 4 | rows[2] << 2 | rows[3]]++;
    }
    double expected = EPOCHS / 24.0, chi_square = 0;
    int orders = 0;
    for (int i = 0; i < 256; i++) {
        orders += counts[i] > 0;
        if (counts[i] > 0)
            chi_square += (counts[i] - expected) * (counts[i] - expected) / expected;
    }
    CHECK_INT(orders, 24);
    CHECK(chi_square < 49.7); // 23 degrees of freedom, p = 0.001
    td_sampler_destroy(sampler);
}

static void check_assignment(const td_batch *batch, int size) {
    int owner[64];
    double load[64] = {0}, total = 0, largest = 0, heaviest = 0;
    td_assign(batch, size, owner);
    for (int64_t m = 0; m < batch->n_micro_batches; m++) {
        double cost = batch->micro_batches[m].cost;
        REQUIRE(owner[m] >= 0 && owner[m] < size);
        load[owner[m]] += cost;
        total += cost;
        largest = cost > largest ? cost : largest;
    }
    for (int rank = 0; rank < size; rank++)
        heaviest = load[rank] > heaviest ? load[rank] : heaviest;
    // Graham's bound of longest processing time first, with the best makespan bounded from below.
    double best = total / size > largest ? total / size : largest;
    CHECK(heaviest <= best + largest);
    if (batch->n_micro_batches >= 4 * size)
        CHECK(heaviest <= 1.34 * total / size);
}

static void ranks_get_balanced_shares(void) {
    td_sampler_options wanted = options(1);
    wanted.accumulation = 40;
    td_sampler *sampler = create(&wanted);
    for (int64_t step = 0; step < 12; step++) {
        td_batch batch = batch_at(sampler, step);
        for (int size = 1; size <= 64; size = size * 2 + (size == 1))
            check_assignment(&batch, size);
    }
    td_sampler_destroy(sampler);
}

static void refuses_rows_longer_than_a_micro_batch(void) {
    td_sampler *sampler;
    td_sampler_options wanted = options(1);
    wanted.micro_batch_tokens = 30;
    CHECK(td_sampler_create(&wanted, &sampler) != TD_OK);
    CHECK(strstr(td_error_message(), "micro_batch_tokens") != NULL);
    td_error_clear();
}

int main(void) {
    TEST(every_epoch_visits_every_row_once);
    TEST(a_step_is_the_same_however_it_is_reached);
    TEST(seed_and_epoch_change_the_order);
    TEST(without_shuffling_rows_keep_their_order);
    TEST(counts_are_those_of_the_rows);
    TEST(no_micro_batch_exceeds_the_plan);
    TEST(the_shuffle_is_unbiased);
    TEST(ranks_get_balanced_shares);
    TEST(refuses_rows_longer_than_a_micro_batch);
    return test_report();
}
