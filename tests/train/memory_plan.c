// The plan: what is measured is what is taken, the policy follows the limit, a refusal names
// numbers that fit.
#include "small_run.h"

static const char *const plain[] = {NULL};

static size_t line_bytes(const td_memory_plan *plan, const char *name) {
    for (int i = 0; i < plan->n_lines; i++)
        if (strcmp(plan->lines[i].name, name) == 0)
            return plan->lines[i].bytes;
    fprintf(stderr, "no line %s\n", name);
    exit(1);
}

// Plans again with other settings; the run is not allocated.
static td_status plan_again(small_run *self, td_memory_plan *out) {
    td_run_destroy(&self->run);
    td_status status = small_plan(self);
    *out = self->run.plan;
    return status;
}

static size_t total_with(small_run *self, td_recompute policy) {
    td_memory_plan plan;
    self->config.gradient_checkpointing = policy;
    small_require(plan_again(self, &plan), "plan");
    CHECK_INT(plan.recompute, policy);
    return plan.total_bytes[TD_POOL_DEVICE];
}

static void lines_add_up_and_hold_what_is_taken(void) {
    small_run self;
    size_t sum = 0;
    small_start(&self, plain);
    const td_memory_plan *plan = &self.run.plan;
    for (int i = 0; i < plan->n_lines; i++)
        sum += plan->lines[i].bytes;
    CHECK(sum == plan->total_bytes[TD_POOL_DEVICE]);
    CHECK(line_bytes(plan, "base model") == self.session.base->arena.capacity_bytes);
    size_t bytes = td_memory_parameter_bytes(&self.config, self.session.lora.n_parameters);
    CHECK(line_bytes(plan, "LoRA parameters and gradient sums") == bytes);
    CHECK(self.run.arena.capacity_bytes >= bytes);
    td_transformer_sizes sizes;
    REQUIRE(td_transformer_measure(&self.session.model, &self.session.lora, &plan->transformer,
                                   self.session.context.ops, &sizes) == TD_OK);
    CHECK(sizes.total_bytes == sizes.activations_bytes + sizes.logits_bytes +
                                   sizes.gradients_bytes + sizes.tables_bytes +
                                   sizes.workspace_bytes);
    CHECK(sizes.host_bytes > 0);
    size_t communication = line_bytes(plan, "communication buffers");
    CHECK((communication > 0) == (td_comm_size(small_comm) > 1));
    small_close(&self);
}

// The micro-batch is large enough for the policies to lie further apart than resident memory moves
// between two plans.
static const char *const large[] = {"micro_batch_tokens=16384", NULL};

static void thriftier_policies_need_less(void) {
    small_run self;
    small_open(&self, large);
    self.config.memory_limit_bytes = (int64_t)1 << 40;
    size_t none = total_with(&self, TD_RECOMPUTE_NONE);
    size_t norms = total_with(&self, TD_RECOMPUTE_NORMS_MLP);
    size_t block = total_with(&self, TD_RECOMPUTE_BLOCK);
    CHECK(block < norms && norms < none);
    small_close(&self);
}

// Below what a policy needs, the next one is taken.
static void policy_follows_the_limit(void) {
    small_run self;
    td_memory_plan plan;
    small_open(&self, large);
    self.config.memory_limit_bytes = (int64_t)1 << 40;
    size_t none = total_with(&self, TD_RECOMPUTE_NONE);
    size_t norms = total_with(&self, TD_RECOMPUTE_NORMS_MLP);
    size_t block = total_with(&self, TD_RECOMPUTE_BLOCK);
    self.config.gradient_checkpointing = TD_RECOMPUTE_AUTO;
    small_require(plan_again(&self, &plan), "plan");
    CHECK_INT(plan.recompute, TD_RECOMPUTE_NONE);
    self.config.memory_limit_bytes = (int64_t)((none + norms) / 2);
    small_require(plan_again(&self, &plan), "plan");
    CHECK_INT(plan.recompute, TD_RECOMPUTE_NORMS_MLP);
    self.config.memory_limit_bytes = (int64_t)((norms + block) / 2);
    small_require(plan_again(&self, &plan), "plan");
    CHECK_INT(plan.recompute, TD_RECOMPUTE_BLOCK);
    // Between a small micro-batch and this one, far from either: resident memory moves a little.
    small_set(&self.config, "micro_batch_tokens=256");
    size_t small = total_with(&self, TD_RECOMPUTE_BLOCK);
    small_set(&self.config, large[0]);
    self.config.gradient_checkpointing = TD_RECOMPUTE_AUTO;
    self.config.memory_limit_bytes = (int64_t)(small + (block - small) / 4 * 3);
    CHECK_INT(plan_again(&self, &plan), TD_ERR_MEMORY);
    const char *hint = strstr(td_error_message(), "max_length of ");
    int64_t tokens = hint ? atoll(hint + strlen("max_length of ")) : 0;
    if (!CHECK(tokens >= 16 && strstr(td_error_message(), "MiB per rank are needed")))
        fprintf(stderr, "    %s\n", td_error_message());
    td_error_clear();
    // What the message proposes fits.
    char assignment[64];
    snprintf(assignment, sizeof assignment, "micro_batch_tokens=%lld", (long long)tokens);
    small_set(&self.config, assignment);
    self.config.gradient_checkpointing = TD_RECOMPUTE_BLOCK;
    CHECK_INT(plan_again(&self, &plan), TD_OK);
    small_close(&self);
}

static void nothing_fits_into_a_megabyte(void) {
    small_run self;
    td_memory_plan plan;
    small_open(&self, plain);
    self.config.memory_limit_bytes = 1 << 20;
    CHECK_INT(plan_again(&self, &plan), TD_ERR_MEMORY);
    CHECK(strstr(td_error_message(), "no micro-batch size fits") != NULL);
    td_error_clear();
    small_close(&self);
}

static void threads_are_bounded(void) {
    td_config config;
    REQUIRE(td_config_init(&config) == TD_OK);
    setenv("OMP_NUM_THREADS", "3", 1);
    CHECK_INT(td_session_threads(&config, 2), 3);
    setenv("OMP_NUM_THREADS", "99999999999999999999", 1);
    CHECK_INT(td_session_threads(&config, 1), 4096);
    setenv("OMP_NUM_THREADS", "none", 1);
    int alone = td_session_threads(&config, 1);
    CHECK(alone >= 1 && td_session_threads(&config, 1 << 20) == 1);
    config.num_threads = 5;
    CHECK_INT(td_session_threads(&config, 1), 5);
    td_config_fini(&config);
}

int main(void) {
    small_begin();
    TEST(lines_add_up_and_hold_what_is_taken);
    TEST(thriftier_policies_need_less);
    TEST(policy_follows_the_limit);
    TEST(nothing_fits_into_a_megabyte);
    TEST(threads_are_bounded);
    return small_finish();
}
