// The memory plan of a run on a GPU: what it says is what is taken of the GPU, and what follows the
// GPU's limit.
#include "small_run.h"

static const char *const on_gpu[] = {"device=cuda", "share_gpus=true", NULL};
static const char *const large[] = {"device=cuda", "share_gpus=true", "micro_batch_tokens=8192",
                                    NULL};
enum { SLACK_BYTES = 64 << 20 }; // a GPU hands out memory in pieces of its own

static size_t free_bytes(const small_run *self) {
    const td_device *device = self->session.context.device;
    size_t free_now, total;
    small_require(device->table->memory_info(device, &free_now, &total), "memory");
    return free_now;
}

static size_t pool_bytes(const td_memory_plan *plan, td_memory_pool pool) {
    size_t sum = 0;
    for (int i = 0; i < plan->n_lines; i++)
        sum += plan->lines[i].pool == pool ? plan->lines[i].bytes : 0;
    return sum;
}

static void what_is_planned_is_taken(void) {
    small_run self;
    small_open(&self, large);
    size_t before = free_bytes(&self);
    small_require(small_plan(&self), "plan");
    small_require(td_session_load_base(&self.session), "base");
    small_require(td_run_allocate(&self.run, self.data.train, NULL), "allocate");
    const td_memory_plan *plan = &self.run.plan;
    double planned = (double)plan->total_bytes[TD_POOL_DEVICE];
    double taken = (double)before - (double)free_bytes(&self);
    CHECK(!plan->is_unified);
    CHECK(planned > 0 && plan->total_bytes[TD_POOL_DEVICE] == pool_bytes(plan, TD_POOL_DEVICE));
    CHECK(plan->total_bytes[TD_POOL_HOST] == pool_bytes(plan, TD_POOL_HOST));
    CHECK(plan->total_bytes[TD_POOL_HOST] >= td_memory_resident_bytes() / 2);
    if (!CHECK(taken >= 0.98 * planned && taken <= 1.02 * planned + SLACK_BYTES))
        fprintf(stderr, "    planned %.0f, taken %.0f bytes\n", planned, taken);
    small_close(&self);
}

static td_memory_plan plan_with(small_run *self, int64_t limit_bytes) {
    self->config.memory_limit_bytes = limit_bytes;
    td_run_destroy(&self->run);
    small_require(small_plan(self), "plan");
    return self->run.plan;
}

static void policy_follows_the_gpu(void) {
    small_run self;
    small_open(&self, large);
    self.session.model.tie_word_embeddings = 1; // they have to stay
    self.config.optimizer_cache_bytes = 1;
    self.config.dequantized_cache_bytes = -1;
    self.config.dequantize_ahead = TD_AHEAD_OFF;
    td_memory_plan plenty = plan_with(&self, (int64_t)1 << 40);
    size_t needed = plenty.total_bytes[TD_POOL_DEVICE];
    CHECK_INT(plenty.recompute, TD_RECOMPUTE_NONE);
    CHECK_INT(plan_with(&self, (int64_t)needed).recompute, TD_RECOMPUTE_NONE);
    CHECK(plan_with(&self, (int64_t)needed - 1).recompute > TD_RECOMPUTE_NONE);
    self.config.memory_limit_bytes = 1000;
    td_run_destroy(&self.run);
    CHECK_INT(small_plan(&self), TD_ERR_MEMORY);
    CHECK(strstr(td_error_message(), "MiB of GPU memory per rank") != NULL);
    td_error_clear();
    small_close(&self);
}

static size_t line_bytes(const td_memory_plan *plan, const char *name, td_memory_pool pool) {
    for (int i = 0; i < plan->n_lines; i++)
        if (plan->lines[i].pool == pool && strcmp(plan->lines[i].name, name) == 0)
            return plan->lines[i].bytes;
    return 0;
}

// The table of embeddings leaves the GPU before anything is computed again, unless the LM head is
// the same table.
static void embeddings_move_to_the_host_first(void) {
    static const char name[] = "embeddings (pinned host)";
    small_run self;
    small_open(&self, large);
    self.config.optimizer_cache_bytes = 1;
    self.config.dequantized_cache_bytes = -1;
    self.config.dequantize_ahead = TD_AHEAD_OFF;
    self.session.model.tie_word_embeddings = 0;
    td_memory_plan plenty = plan_with(&self, (int64_t)1 << 40);
    int64_t needed = (int64_t)plenty.total_bytes[TD_POOL_DEVICE];
    CHECK(!plenty.host_embedding && line_bytes(&plenty, name, TD_POOL_HOST) == 0);
    td_memory_plan moved = plan_with(&self, needed - 1);
    int64_t table = self.session.model.vocabulary * self.session.model.hidden * 2;
    CHECK(moved.host_embedding && self.session.host_embedding);
    CHECK_INT(moved.recompute, TD_RECOMPUTE_NONE);
    CHECK_INT(line_bytes(&moved, name, TD_POOL_HOST), table);
    CHECK_INT(moved.total_bytes[TD_POOL_DEVICE] + (size_t)table, (size_t)needed);
    CHECK(plan_with(&self, needed - table - 1).recompute > TD_RECOMPUTE_NONE);
    self.session.model.tie_word_embeddings = 1;
    CHECK(!plan_with(&self, needed - table - 1).host_embedding);
    small_close(&self);
}

// Ranks that share a GPU share what is free of it.
static void limit_is_this_ranks_part(void) {
    small_run self;
    small_open(&self, on_gpu);
    double part = (double)free_bytes(&self) / td_comm_size(small_comm);
    small_require(small_plan(&self), "plan");
    double limit = (double)self.run.plan.limit_bytes[TD_POOL_DEVICE];
    CHECK(limit <= part);
    CHECK(limit >= 0.9 * part);
    small_close(&self);
}

// What the host keeps for a GPU.
static void the_hosts_part_is_planned(void) {
    small_run self;
    size_t staging, of_device;
    small_open(&self, on_gpu);
    small_require(small_plan(&self), "plan");
    const td_memory_plan *plan = &self.run.plan;
    const td_page_map *map = &self.run.parameters.map;
    td_device_comm_options options = td_run_device_comm_options(&self.session, map);
    self.session.choice.transport->plan(&options, &staging, &of_device);
    size_t n = (size_t)map->n_elements;
    size_t owned = (size_t)td_page_map_owned_count(map, td_comm_rank(small_comm));
    size_t state = td_optimizer_state_bytes(self.config.optim, map->page_elements);
    CHECK(line_bytes(plan, "parameters on the host", TD_POOL_HOST) >= n * sizeof(float));
    CHECK(line_bytes(plan, "optimizer state (pinned host)", TD_POOL_HOST) >= owned * state);
    CHECK(line_bytes(plan, "inputs and tables", TD_POOL_HOST) > 0);
    CHECK(line_bytes(plan, "communication buffers", TD_POOL_HOST) >= staging);
    CHECK((staging > 0) == (td_comm_size(small_comm) > 1));
    small_close(&self);
}

// A GPU with room for everything does not help a host without.
static void hosts_limit_counts(void) {
    small_run self;
    td_memory_plan plan;
    small_open(&self, on_gpu);
    small_require(small_plan(&self), "plan");
    td_plan_needs needs = {
        .max_tokens = 64,
        .max_sequences = 1,
        .max_positions = 64,
        .n_loaders = 1,
        .embedding_dtype = TD_BF16,
        .pager = td_run_pager_options(&self.session, &self.run.parameters.map),
        .limit_bytes = {[TD_POOL_DEVICE] = (size_t)1 << 40, [TD_POOL_HOST] = (size_t)1 << 40},
    };
    CHECK_INT(td_memory_plan_make(&self.session, &needs, &plan), TD_OK);
    needs.limit_bytes[TD_POOL_HOST] = plan.total_bytes[TD_POOL_HOST] / 2;
    CHECK_INT(td_memory_plan_make(&self.session, &needs, &plan), TD_ERR_MEMORY);
    CHECK(strstr(td_error_message(), "MiB of host memory per rank") != NULL);
    td_error_clear();
    small_close(&self);
}

// What the rest leaves goes to optimizer pages, up to all of them.
static void pages_take_what_is_left(void) {
    small_run self;
    small_open(&self, on_gpu);
    self.config.dequantized_cache_bytes = -1;
    self.config.dequantize_ahead = TD_AHEAD_OFF;
    self.config.optimizer_cache_bytes = 1;
    size_t smallest = plan_with(&self, (int64_t)1 << 40).total_bytes[TD_POOL_DEVICE];
    self.config.optimizer_cache_bytes = 0;
    size_t largest = plan_with(&self, (int64_t)1 << 40).total_bytes[TD_POOL_DEVICE];
    size_t state = td_optimizer_state_bytes(self.config.optim, self.config.page_elements);
    int64_t pages = td_page_map_owned_count(&self.run.parameters.map, td_comm_rank(small_comm));
    REQUIRE(pages > 3);
    CHECK(largest > smallest + (size_t)(pages - 3) * state);
    size_t limit = smallest + 4 * state;
    td_memory_plan tight = plan_with(&self, (int64_t)limit);
    CHECK(tight.total_bytes[TD_POOL_DEVICE] > smallest);
    CHECK(tight.total_bytes[TD_POOL_DEVICE] <= limit);
    small_close(&self);
}

// Two buffers of the largest weight, when the rest has its memory: what is given up first.
static void weights_ahead_take_what_is_left(void) {
    small_run self;
    small_open(&self, large);
    const td_model_config *model = &self.session.model;
    self.config.optimizer_cache_bytes = 1;
    self.config.dequantized_cache_bytes = -1;
    self.config.dequantize_ahead = TD_AHEAD_OFF;
    td_memory_plan off = plan_with(&self, (int64_t)1 << 40);
    self.config.dequantize_ahead = TD_AHEAD_ON;
    td_memory_plan on = plan_with(&self, (int64_t)1 << 40);
    size_t needed = on.total_bytes[TD_POOL_DEVICE];
    size_t bytes = line_bytes(&on, "weights dequantized ahead", TD_POOL_DEVICE);
    CHECK(on.dequantize_ahead && on.transformer.dequantize_ahead && !off.dequantize_ahead);
    CHECK_INT(bytes, 2 * 2 * model->intermediate * model->hidden); // bf16
    CHECK_INT(needed, off.total_bytes[TD_POOL_DEVICE] + bytes);
    CHECK(plan_with(&self, (int64_t)needed).dequantize_ahead);
    td_memory_plan tight = plan_with(&self, (int64_t)needed - 1);
    CHECK(!tight.dequantize_ahead && tight.ahead_is_given_up && !tight.host_embedding);
    CHECK_INT(tight.recompute, on.recompute);
    // With copies of all layers nothing is left to do.
    self.config.dequantized_cache_bytes = 0;
    td_memory_plan copied = plan_with(&self, (int64_t)1 << 40);
    CHECK(copied.copies.n_copied == model->n_layers && !copied.dequantize_ahead);
    CHECK(!copied.ahead_is_given_up);
    small_close(&self);
}

static int goes_ahead(const small_run *self, int64_t tokens) {
    td_memory_plan plan;
    td_plan_needs needs = {
        .max_tokens = tokens,
        .max_sequences = 1,
        .max_positions = 64,
        .n_loaders = 1,
        .embedding_dtype = TD_BF16,
        .pager = td_run_pager_options(&self->session, &self->run.parameters.map),
        .limit_bytes = {[TD_POOL_DEVICE] = (size_t)1 << 40, [TD_POOL_HOST] = (size_t)1 << 40},
    };
    CHECK_INT(td_memory_plan_make(&self->session, &needs, &plan), TD_OK);
    return plan.dequantize_ahead;
}

// Of short micro-batches dequantization is a large part, of long ones a small one, and of products
// in fp32 too.
static void weights_ahead_where_it_pays(void) {
    static const char *const fp32[] = {"device=cuda", "share_gpus=true", "bf16=false", NULL};
    for (int is_fp32 = 0; is_fp32 < 2; is_fp32++) {
        small_run self;
        small_open(&self, is_fp32 ? fp32 : on_gpu);
        self.config.dequantized_cache_bytes = -1;
        small_require(small_plan(&self), "plan");
        CHECK_INT(self.config.dequantize_ahead, TD_AHEAD_AUTO);
        CHECK_INT(goes_ahead(&self, 2048), !is_fp32);
        CHECK_INT(goes_ahead(&self, 8192), 0);
        small_close(&self);
    }
}

// The buffers may take what is too small for a copy, but not the copy of a layer when only one more
// has none.
static void copies_of_most_layers_are_the_better_use(void) {
    small_run self;
    small_open(&self, on_gpu);
    self.config.optimizer_cache_bytes = 1;
    td_memory_plan all = plan_with(&self, (int64_t)1 << 40);
    int64_t n = all.copies.n_copied, total = (int64_t)all.total_bytes[TD_POOL_DEVICE];
    REQUIRE(n > 1 && n == all.copies.n_quantized);
    CHECK(!all.dequantize_ahead);
    td_memory_plan room = plan_with(&self, total - 1);
    CHECK(room.copies.n_copied == n - 1 && room.dequantize_ahead);
    td_memory_plan most = plan_with(&self, total - (int64_t)all.copies.bytes / n);
    CHECK(most.copies.n_copied == n - 1 && !most.dequantize_ahead);
    small_close(&self);
}

// The pager has the cache that was planned: with room for all pages each is fetched once.
static void pages_are_cached_as_planned(void) {
    small_run self;
    small_start(&self, on_gpu);
    int rank = td_comm_rank(small_comm), size = td_comm_size(small_comm);
    int64_t owned = td_page_map_owned_count(&self.run.parameters.map, rank);
    for (int64_t i = 0; i < 2 * owned; i++) {
        td_stream *stream = self.session.context.stream;
        int64_t page = rank + i % owned * size;
        void *state;
        small_require(td_pager_acquire(self.run.pager, page, stream, &state), "acquire");
        small_require(td_pager_release(self.run.pager, page, stream, 0), "release");
    }
    CHECK_INT((int64_t)td_pager_read_counters(self.run.pager).misses, owned);
    small_close(&self);
}

int main(void) {
    small_begin();
    TEST(what_is_planned_is_taken);
    TEST(policy_follows_the_gpu);
    TEST(embeddings_move_to_the_host_first);
    TEST(limit_is_this_ranks_part);
    TEST(the_hosts_part_is_planned);
    TEST(hosts_limit_counts);
    TEST(pages_take_what_is_left);
    TEST(weights_ahead_take_what_is_left);
    TEST(weights_ahead_where_it_pays);
    TEST(copies_of_most_layers_are_the_better_use);
    TEST(pages_are_cached_as_planned);
    return small_finish();
}
