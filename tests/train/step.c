// The step and the evaluation on several ranks against the same work done by one rank alone, and
// what happens when numbers go wrong on one of them.
#include "small_run.h"

#include "runtime/train/exact_sum.h"

static const char *const plain[] = {"lora_dropout=0", "learning_rate=1e-2", NULL};

// The step's gradient computed by this rank alone, summed in double.
typedef struct lone_gradient {
    double *sum; // (n_parameters)
} lone_gradient;

static td_status add_module(void *self, int64_t offset, int64_t count, const float *values) {
    lone_gradient *gradient = self;
    for (int64_t i = 0; i < count; i++)
        gradient->sum[offset + i] += values[i];
    return TD_OK;
}

static double compute_alone(small_run *self, int64_t index, double *sum) {
    lone_gradient gradient = {sum};
    td_gradient_sink sink = {.module_done = add_module, .self = &gradient};
    td_batch batch;
    double loss = 0;
    REQUIRE(td_sampler_batch(self->run.sampler, index, &batch) == TD_OK);
    for (int64_t i = 0; i < batch.n_micro_batches; i++) {
        td_token_batch tokens;
        double part;
        td_dropout_key dropout = {.seed = (uint64_t)self->config.seed,
                                  .step = (uint32_t)index,
                                  .micro_batch = (uint32_t)i,
                                  .probability = self->config.lora_dropout};
        REQUIRE(td_token_loader_read(&self->run.loader, &batch.micro_batches[i], &tokens) == TD_OK);
        REQUIRE(td_transformer_train(self->run.transformer, self->run.parameters.values, &tokens,
                                     &dropout, 1.0f / (float)batch.n_trained, &sink,
                                     &part) == TD_OK);
        loss += part;
    }
    return loss / (double)batch.n_trained;
}

static double norm_of(const double *values, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += values[i] * values[i];
    return sqrt(sum);
}

// First update of AdamW in plain double: m and v start at zero, so each element moves by
// learning_rate * g / (|g| + epsilon), after decay.
static double updated(double before, double gradient, const td_config *config, double rate) {
    double decayed = before * (1 - rate * config->weight_decay);
    return decayed - rate * gradient / (fabs(gradient) + config->adam_epsilon);
}

static void check_step(const char *const *settings, double norm_tolerance) {
    small_run self;
    td_step_result result;
    small_start(&self, settings);
    int64_t n = self.session.lora.n_parameters;
    double *sum = calloc((size_t)n, sizeof *sum), worst = 0;
    float *before = malloc((size_t)n * sizeof *before), *after = self.run.parameters.values;
    double loss = compute_alone(&self, 0, sum), norm = norm_of(sum, n);
    memcpy(before, after, (size_t)n * sizeof *before);
    small_require(td_step_run(&self.run.step, 0, &result), "step");
    CHECK(result.loss == loss);
    CHECK_NEAR(result.grad_norm / norm, 1, norm_tolerance);
    CHECK_INT(result.micro_batches, 5);
    double clip = fmin(1, self.config.max_grad_norm / (norm + 1e-6));
    CHECK(clip < 1);
    int64_t n_compared = 0;
    for (int64_t i = 0; i < n; i++) {
        double expected = updated(before[i], sum[i] * clip, &self.config, result.learning_rate);
        if (fabs(sum[i] * clip) < 1e-5) // where the fixed point's rounding shows in g / |g|
            continue;
        worst = fmax(worst, fabs(after[i] - expected));
        n_compared++;
    }
    CHECK(n_compared > n / 4);
    CHECK(worst < 2e-6);
    small_close(&self);
    free(before);
    free(sum);
}

static void exact_step_equals_one_rank_alone(void) {
    check_step((const char *const[]){"lora_dropout=0", "learning_rate=1e-2", "weight_decay=0.1",
                                     "warmup_ratio=0", "max_grad_norm=0.05", NULL},
               1e-6);
}

static void dropout_belongs_to_the_micro_batch(void) {
    check_step((const char *const[]){"lora_dropout=0.3", "learning_rate=1e-2", "warmup_ratio=0",
                                     "max_grad_norm=0.05", NULL},
               1e-6);
}

static void fp32_reduction_is_close(void) {
    check_step((const char *const[]){"lora_dropout=0", "learning_rate=1e-2", "warmup_ratio=0",
                                     "max_grad_norm=0.05", "reduce=fp32", NULL},
               1e-5);
}

// Later steps use the bias correction and the moments of their own update.
static void second_update_uses_both_moments(void) {
    small_run self;
    td_step_result result;
    small_start(&self, (const char *const[]){"lora_dropout=0", "learning_rate=1e-2",
                                             "warmup_ratio=0", "max_grad_norm=0", NULL});
    int64_t n = self.session.lora.n_parameters;
    double *first = calloc((size_t)n, sizeof *first), *second = calloc((size_t)n, sizeof *second);
    float *between = malloc((size_t)n * sizeof *between), *after = self.run.parameters.values;
    double worst = 0;
    compute_alone(&self, 0, first);
    small_require(td_step_run(&self.run.step, 0, &result), "step");
    memcpy(between, after, (size_t)n * sizeof *between);
    compute_alone(&self, 1, second);
    small_require(td_step_run(&self.run.step, 1, &result), "step");
    for (int64_t i = 0; i < n; i++) {
        double b1 = self.config.adam_beta1, b2 = self.config.adam_beta2;
        double m = b1 * (1 - b1) * first[i] + (1 - b1) * second[i];
        double v = b2 * (1 - b2) * first[i] * first[i] + (1 - b2) * second[i] * second[i];
        double step = m / (1 - b1 * b1) / (sqrt(v / (1 - b2 * b2)) + self.config.adam_epsilon);
        if (fmin(fabs(first[i]), fabs(second[i])) > 1e-5)
            worst = fmax(worst, fabs(after[i] - (between[i] - result.learning_rate * step)));
    }
    CHECK(worst < 2e-6);
    small_close(&self);
    free(between);
    free(second);
    free(first);
}

// A step that goes wrong on the last rank fails on every rank and changes nothing.
static void check_refused(small_run *self, const char *pattern) {
    size_t bytes = (size_t)self->session.lora.n_parameters * sizeof(float);
    float *before = malloc(bytes);
    td_step_result result;
    memcpy(before, self->run.parameters.values, bytes);
    CHECK_INT(td_step_run(&self->run.step, 0, &result), TD_ERR_NUMERIC);
    if (!CHECK(strstr(td_error_message(), pattern) != NULL))
        fprintf(stderr, "    %s\n", td_error_message());
    CHECK(memcmp(before, self->run.parameters.values, bytes) == 0);
    td_error_clear();
    free(before);
    small_close(self);
}

static int is_last_rank(void) {
    return td_comm_rank(small_comm) == td_comm_size(small_comm) - 1;
}

static void loss_that_is_not_finite_is_refused(void) {
    small_run self;
    small_start(&self, plain);
    if (is_last_rank())
        ((float *)self.session.base->final_norm)[0] = NAN;
    check_refused(&self, "loss of micro-batch");
}

// With B zero the outputs do not depend on A, but B's gradient does.
static void gradient_beyond_the_range_is_refused(void) {
    small_run self;
    small_start(&self, (const char *const[]){"lora_dropout=0", "gradient_quantum_log2=-60", NULL});
    const td_lora_module *module = td_lora_at(&self.session.lora, 1, TD_PROJ_DOWN);
    for (int64_t i = 0; is_last_rank() && i < module->rank * module->in; i++)
        self.run.parameters.values[module->a_offset + i] *= 1e9f;
    check_refused(&self, "fixed-point range");
}

// As gradients double, steps are right until they are refused: sums over the ranks never wrap.
static void range_ends_before_sums_wrap(void) {
    small_run self;
    td_step_result result;
    td_status status = TD_OK;
    small_start(&self, (const char *const[]){"lora_dropout=0", "gradient_quantum_log2=-60",
                                             "learning_rate=0", NULL});
    size_t n = (size_t)self.session.lora.n_parameters;
    double *sum = malloc(n * sizeof *sum);
    int doublings = 0;
    for (; status == TD_OK && doublings < 40; doublings++) {
        memset(sum, 0, n * sizeof *sum);
        compute_alone(&self, 0, sum);
        status = td_step_run(&self.run.step, 0, &result);
        if (status == TD_OK)
            CHECK_NEAR(result.grad_norm / norm_of(sum, (int64_t)n), 1, 1e-5);
        for (size_t i = 0; i < n; i++) // B is zero and stays it
            self.run.parameters.values[i] *= 2;
    }
    CHECK_INT(status, TD_ERR_NUMERIC);
    CHECK(doublings > 2);
    td_error_clear();
    free(sum);
    small_close(&self);
}

static void fp32_gradient_that_is_infinite_is_refused(void) {
    small_run self;
    small_start(&self, (const char *const[]){"lora_dropout=0", "reduce=fp32", NULL});
    const td_lora_module *module = td_lora_at(&self.session.lora, 1, TD_PROJ_DOWN);
    for (int64_t i = 0; is_last_rank() && i < module->rank * module->in; i++)
        self.run.parameters.values[module->a_offset + i] *= 3e38f;
    check_refused(&self, "step was not applied");
}

static void stop_request_of_one_rank_reaches_all(void) {
    small_run self;
    td_step_result result;
    volatile int asked = is_last_rank();
    small_start(&self, plain);
    self.run.step.stop_requested = &asked;
    small_require(td_step_run(&self.run.step, 0, &result), "step");
    CHECK_INT(result.stop, 1);
    asked = 0;
    small_require(td_step_run(&self.run.step, 1, &result), "step");
    CHECK_INT(result.stop, 0);
    small_close(&self);
}

// First elements of A and the number of elements that are not zero: B starts at zero.
static int64_t initial_parameters(const char *seed, float out[8]) {
    small_run self;
    int64_t n_nonzero = 0;
    small_start(&self, (const char *const[]){seed, NULL});
    memcpy(out, self.run.parameters.values, 8 * sizeof *out);
    for (int64_t i = 0; i < self.session.lora.n_parameters; i++)
        n_nonzero += self.run.parameters.values[i] != 0;
    small_close(&self);
    return n_nonzero;
}

static void seed_chooses_the_parameters(void) {
    float first[8], again[8], other[8];
    int64_t n_nonzero = initial_parameters("seed=1", first);
    CHECK(n_nonzero > 8);
    CHECK_INT(initial_parameters("seed=1", again), n_nonzero);
    initial_parameters("seed=2", other);
    CHECK(memcmp(first, again, sizeof first) == 0);
    CHECK(memcmp(first, other, sizeof first) != 0);
}

// More micro-batches asked for than an epoch has.
static void long_accumulation_takes_an_epoch(void) {
    small_run self;
    td_step_result result;
    small_start(&self, (const char *const[]){"lora_dropout=0",
                                             "gradient_accumulation_steps=1048576", NULL});
    small_require(td_step_run(&self.run.step, 0, &result), "step");
    CHECK_INT(result.micro_batches, td_sampler_micro_batches_per_epoch(self.run.sampler));
    CHECK_INT(self.run.step.max_micro_batches, result.micro_batches);
    small_close(&self);
}

static void evaluation_is_the_same_on_any_number_of_ranks(void) {
    small_run self;
    double loss, alone = 0;
    // Training micro-batches are short here: the evaluation's are the ones that size the plan.
    small_start(&self, (const char *const[]){"eval_files=\"" TEST_FIXTURES "/train100/data.jsonl\"",
                                             "micro_batch_tokens=200", "packing=false", NULL});
    const td_batch *batch = &self.evaluation.batch;
    CHECK(batch->n_micro_batches > 3);
    CHECK(td_evaluation_max_tokens(&self.evaluation) > td_sampler_max_tokens(self.run.sampler));
    small_require(td_evaluation_loss(&self.evaluation, self.run.transformer,
                                     self.run.parameters.values, &loss),
                  "evaluation");
    for (int64_t i = 0; i < batch->n_micro_batches; i++) {
        td_token_batch tokens;
        double part;
        REQUIRE(td_token_loader_read(&self.evaluation.loader, &batch->micro_batches[i], &tokens) ==
                TD_OK);
        REQUIRE(td_transformer_loss(self.run.transformer, self.run.parameters.values, &tokens,
                                    &part) == TD_OK);
        alone += part;
    }
    CHECK(loss == alone / (double)batch->n_trained);
    if (is_last_rank())
        ((float *)self.session.base->final_norm)[0] = NAN;
    CHECK_INT(td_evaluation_loss(&self.evaluation, self.run.transformer, self.run.parameters.values,
                                 &loss),
              TD_ERR_NUMERIC);
    td_error_clear();
    small_close(&self);
}

// One held-out row, packed into one micro-batch: most ranks have nothing to evaluate.
static void evaluation_may_be_smaller_than_the_ranks(void) {
    small_run self;
    double loss = -1;
    small_start(&self, (const char *const[]){"eval_split_ratio=1e-9", NULL});
    CHECK_INT(td_store_rows(self.data.eval), 1);
    small_require(td_evaluation_loss(&self.evaluation, self.run.transformer,
                                     self.run.parameters.values, &loss),
                  "evaluation");
    CHECK(loss > 0);
    small_close(&self);
}

// A micro-batch is its rows one after the other; targets are the trained tokens, each at the row
// before it and in its own sequence.
static void micro_batches_hold_their_rows(void) {
    small_run self;
    td_batch batch;
    td_token_batch tokens;
    int32_t ids[64];
    uint8_t trained[64];
    small_start(&self, (const char *const[]){"micro_batch_tokens=200", NULL});
    REQUIRE(td_sampler_batch(self.run.sampler, 0, &batch) == TD_OK);
    const td_micro_batch *micro_batch = &batch.micro_batches[0];
    CHECK(micro_batch->n_rows > 3);
    REQUIRE(td_token_loader_read(&self.run.loader, micro_batch, &tokens) == TD_OK);
    CHECK_INT(tokens.n_sequences, micro_batch->n_rows);
    CHECK_INT(tokens.n_targets, micro_batch->n_trained);
    int64_t begin = 0, target = 0;
    for (int64_t i = 0; i < micro_batch->n_rows; i++) {
        int64_t row = micro_batch->rows[i];
        int64_t length =
            td_store_offsets(self.data.train)[row + 1] - td_store_offsets(self.data.train)[row];
        REQUIRE(td_store_read_row(self.data.train, row, ids, trained) == TD_OK);
        CHECK_INT(tokens.cu[i], begin);
        CHECK(memcmp(tokens.ids + begin, ids, (size_t)length * sizeof *ids) == 0);
        for (int64_t t = 1; t < length; t++)
            if (trained[t]) {
                CHECK_INT(tokens.target_rows[target], begin + t - 1);
                CHECK_INT(tokens.targets[target], ids[t]);
                target++;
            }
        begin += length;
    }
    CHECK_INT(tokens.cu[micro_batch->n_rows], begin);
    CHECK_INT(tokens.n_tokens, begin);
    CHECK_INT(tokens.n_targets, target);
    small_close(&self);
}

int main(void) {
    small_begin();
    TEST(micro_batches_hold_their_rows);
    TEST(exact_step_equals_one_rank_alone);
    TEST(dropout_belongs_to_the_micro_batch);
    TEST(fp32_reduction_is_close);
    TEST(second_update_uses_both_moments);
    TEST(loss_that_is_not_finite_is_refused);
    TEST(gradient_beyond_the_range_is_refused);
    TEST(range_ends_before_sums_wrap);
    TEST(fp32_gradient_that_is_infinite_is_refused);
    TEST(stop_request_of_one_rank_reaches_all);
    TEST(seed_chooses_the_parameters);
    TEST(long_accumulation_takes_an_epoch);
    TEST(evaluation_is_the_same_on_any_number_of_ranks);
    TEST(evaluation_may_be_smaller_than_the_ranks);
    return small_finish();
}
