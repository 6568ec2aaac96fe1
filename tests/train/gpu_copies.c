// Copies of dequantized layers: a run has the same bits with as many as fit, some or none, they are
// what products read, and where memory ends a run has fewer of them.
#include "small_run.h"

static const char *const settings[] = {"device=cuda",        "share_gpus=true",
                                       "lora_dropout=0.1",   "gradient_accumulation_steps=1",
                                       "learning_rate=1e-2", NULL};

// What two steps leave.
typedef struct outcome {
    int64_t n_copied;
    double loss, norm;
    int64_t n;
    float *parameters; // (n)
} outcome;

static void start(small_run *self, int64_t cache_bytes, td_ahead_use ahead) {
    small_open(self, settings);
    self->config.dequantize_ahead = ahead;
    self->config.dequantized_cache_bytes = cache_bytes;
    small_require(small_plan(self), "plan");
    small_require(td_session_load_base(&self->session), "base");
    small_require(td_run_allocate(&self->run, self->data.train, NULL), "allocate");
}

static outcome run_steps(small_run *self) {
    const td_op_context *context = &self->session.context;
    td_step_result result;
    for (int64_t i = 0; i < 2; i++)
        small_require(td_step_run(&self->run.step, i, &result), "step");
    outcome out = {.n_copied = self->run.copies.n_copied,
                   .loss = result.loss,
                   .norm = result.grad_norm,
                   .n = self->session.lora.n_parameters};
    size_t bytes = (size_t)out.n * sizeof *out.parameters;
    out.parameters = malloc(bytes);
    REQUIRE(out.parameters != NULL);
    const td_device_table *table = context->device->table;
    small_require(table->copy(context->stream, out.parameters, self->run.parameters.values, bytes),
                  "copy");
    small_require(table->stream_synchronize(context->stream), "copy");
    return out;
}

static int same_bits(const outcome *a, const outcome *b) {
    return a->loss == b->loss && a->norm == b->norm && a->n == b->n &&
           memcmp(a->parameters, b->parameters, (size_t)a->n * sizeof *a->parameters) == 0;
}

static outcome run_ahead_or_not(int64_t cache_bytes, td_ahead_use ahead) {
    small_run self;
    start(&self, cache_bytes, ahead);
    outcome out = run_steps(&self);
    CHECK((td_transformer_ahead_count(self.run.transformer) > 0) == (ahead == TD_AHEAD_ON));
    CHECK_INT(out.n_copied, self.run.plan.copies.n_copied);
    small_close(&self);
    return out;
}

static outcome run_with(int64_t cache_bytes) {
    return run_ahead_or_not(cache_bytes, TD_AHEAD_OFF);
}

static size_t bytes_of_a_layer(int64_t *out_n_layers) {
    small_run self;
    td_weight_copies_plan one;
    small_open(&self, settings);
    small_require(small_plan(&self), "plan");
    td_base_options options = td_session_base_options(&self.session);
    const td_weight_copies_plan *all = &self.run.plan.copies;
    *out_n_layers = self.session.model.n_layers;
    CHECK_INT(all->n_quantized, *out_n_layers);
    CHECK_INT(all->n_copied, *out_n_layers);
    size_t bytes = all->bytes / (size_t)all->n_copied;
    td_weight_copies_plan_make(&self.session.model, &options, TD_BF16, bytes, &one);
    CHECK(one.n_copied == 1 && one.bytes == bytes);
    td_weight_copies_plan_make(&self.session.model, &options, TD_BF16, bytes - 1, &one);
    CHECK(one.n_copied == 0 && one.bytes == 0 && one.n_quantized == *out_n_layers);
    td_weight_copies_plan_make(&self.session.model, &options, TD_F32, 2 * bytes, &one);
    CHECK(one.n_copied == 1 && one.bytes == 2 * bytes);
    small_close(&self);
    return bytes;
}

static void bits_do_not_depend_on_copies(void) {
    int64_t n_layers;
    size_t bytes = bytes_of_a_layer(&n_layers);
    REQUIRE(n_layers > 1);
    outcome none = run_with(-1), one = run_with((int64_t)bytes), all = run_with(0);
    outcome ahead = run_ahead_or_not(-1, TD_AHEAD_ON);
    outcome both = run_ahead_or_not((int64_t)bytes, TD_AHEAD_ON);
    CHECK_INT(none.n_copied, 0);
    CHECK_INT(one.n_copied, 1);
    CHECK_INT(all.n_copied, n_layers);
    CHECK(same_bits(&one, &none));
    CHECK_INT(ahead.n_copied, 0);
    CHECK_INT(both.n_copied, 1);
    CHECK(same_bits(&all, &none));
    CHECK(same_bits(&ahead, &none));
    CHECK(same_bits(&both, &none));
    free(ahead.parameters);
    free(both.parameters);
    free(none.parameters);
    free(one.parameters);
    free(all.parameters);
}

// Other numbers in the copies give other results: they are read in both directions.
static void copies_are_what_is_read(void) {
    small_run self;
    outcome right = run_with(0);
    start(&self, 0, TD_AHEAD_AUTO);
    const td_op_context *context = &self.session.context;
    const td_matrix *weight = &self.session.base->layers[1].linear[TD_PROJ_V];
    REQUIRE(weight->resident != NULL);
    size_t bytes = (size_t)(weight->rows * weight->cols) * sizeof(uint16_t);
    small_require(
        context->device->table->set(context->stream, (void *)(uintptr_t)weight->resident, 0, bytes),
        "overwrite");
    outcome wrong = run_steps(&self);
    CHECK(!same_bits(&right, &wrong));
    const td_base *base = self.session.base;
    td_run_destroy(&self.run);
    CHECK(base->layers[1].linear[TD_PROJ_V].resident == NULL);
    small_close(&self);
    free(right.parameters);
    free(wrong.parameters);
}

// The device of the session, with other answers about memory.
static const td_device *real_device;
static int64_t n_allowed; // allocations that do not fail
static size_t bytes_taken;

static td_status alloc_some(const td_device *device, size_t bytes, const char *purpose,
                            void **out) {
    (void)device;
    if (n_allowed-- <= 0)
        return td_fail(TD_ERR_MEMORY, "no memory for %s", purpose);
    bytes_taken += bytes;
    return real_device->table->alloc(real_device, bytes, purpose, out);
}

// A 64th of the total must stay free: room for one layer and not for two.
static size_t room_bytes;
static td_status tell_little(const td_device *device, size_t *free_bytes, size_t *total_bytes) {
    (void)device;
    *total_bytes = 64 * room_bytes;
    *free_bytes = 2 * room_bytes + room_bytes / 2 - bytes_taken;
    return TD_OK;
}

static int64_t copies_with(td_session *session, const td_device_table *table) {
    td_device device = *real_device;
    td_op_context context = session->context;
    td_weight_copies copies = {0};
    int64_t with_copy = 0;
    device.table = table;
    context.device = &device;
    bytes_taken = 0;
    small_require(td_weight_copies_make(&copies, session->base, &context, INT64_MAX), "copies");
    small_require(real_device->table->stream_synchronize(context.stream), "copies");
    for (int64_t i = 0; i < session->model.n_layers; i++)
        with_copy += session->base->layers[i].linear[TD_PROJ_DOWN].resident != NULL;
    CHECK_INT(with_copy, copies.n_copied);
    CHECK_STRING(td_error_message(), "");
    td_weight_copies_fini(&copies);
    return with_copy;
}

static void fewer_where_memory_ends(void) {
    small_run self;
    int64_t n_layers;
    room_bytes = bytes_of_a_layer(&n_layers);
    start(&self, -1, TD_AHEAD_OFF);
    real_device = self.session.context.device;
    td_device_table table = *real_device->table;
    table.alloc = alloc_some;
    for (int64_t allowed = 0; allowed <= n_layers; allowed++) {
        n_allowed = allowed;
        CHECK_INT(copies_with(&self.session, &table), allowed);
    }
    table.memory_info = tell_little;
    n_allowed = n_layers;
    CHECK_INT(copies_with(&self.session, &table), 1);
    small_close(&self);
}

int main(void) {
    small_begin();
    TEST(bits_do_not_depend_on_copies);
    TEST(copies_are_what_is_read);
    TEST(fewer_where_memory_ends);
    return small_finish();
}
