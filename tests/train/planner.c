// The planner: the field's published figures digit for digit, from config.json alone; the memory
// that a run of the same settings plans; steps, time and cost.
#include <stdarg.h>

#include "runtime/train/checkpoint.h"
#include "runtime/train/planner.h"
#include "small_run.h"

typedef struct planned {
    td_config config;
    td_model_config model;
    td_lora_options lora;
    td_planner_options options;
    td_planner planner;
} planned;

static void set_lora(planned *self) {
    self->lora = (td_lora_options){
        .rank = self->config.lora_r,
        .alpha = self->config.lora_alpha,
        .target_modules = &self->config.target_modules,
        .target_modules_is_pattern = self->config.target_modules_is_pattern,
        .rank_pattern = self->config.rank_pattern,
    };
}

// Settings end with NULL; the plan itself is for the test to make.
static void describe(planned *self, const char *shape, ...) {
    char folder[512];
    va_list settings;
    *self = (planned){0};
    snprintf(folder, sizeof folder, TEST_SOURCE "/configs/shapes/%s", shape);
    small_require(td_config_init(&self->config), "config");
    va_start(settings, shape);
    for (const char *setting; (setting = va_arg(settings, const char *));)
        small_set(&self->config, setting);
    va_end(settings);
    small_require(td_model_config_read(folder, &self->model), shape);
    set_lora(self);
    self->options = (td_planner_options){
        .config = &self->config,
        .model = &self->model,
        .lora = &self->lora,
        .tokens = 140420000,
        .bits_per_token = 6.4,
        .n_ranks = 1,
        .embedding_dtype = TD_BF16,
        .price_per_hour = -1,
    };
}

static void make(planned *self) {
    small_require(td_planner_make(&self->options, &self->planner), "plan");
}

static void drop(planned *self) {
    td_planner_fini(&self->planner);
    td_config_fini(&self->config);
}

static void check_text(const char *expected, const char *format, ...) {
    char text[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    CHECK_STRING(text, expected);
}

static void parameters_of_qwen3(void) {
    static const char *const projections[TD_PROJ_COUNT] = {
        [TD_PROJ_Q] = "117.44",    [TD_PROJ_K] = "58.72",     [TD_PROJ_V] = "58.72",
        [TD_PROJ_O] = "117.44",    [TD_PROJ_GATE] = "352.32", [TD_PROJ_UP] = "352.32",
        [TD_PROJ_DOWN] = "352.32",
    };
    planned self;
    describe(&self, "qwen3-1.7b", NULL);
    make(&self);
    const td_base_counts *base = &self.planner.base;
    check_text("311.16", "%.2f", (double)base->embedding / 1e6);
    for (int i = 0; i < TD_PROJ_COUNT; i++)
        check_text(projections[i] ? projections[i] : "0.00", "%.2f",
                   (double)base->projections[i] / 1e6);
    CHECK_INT(base->head, 0); // tied
    check_text("1409.41", "%.2f", (double)self.planner.without_embeddings / 1e6);
    CHECK_INT(base->total, base->embedding + self.planner.without_embeddings);
    drop(&self);
}

static void capacity_of_qwen3(void) {
    static const char *const rows[TD_PLANNER_N_RANKS] = {
        "4: 4.4, 64.44, 114.56, 0.036, 0.964, Over",
        "8: 8.7, 32.22, 57.28, 0.059, 0.941, Over",
        "16: 17.4, 16.11, 28.64, 0.096, 0.904, Over",
        "32: 34.9, 8.06, 14.32, 0.155, 0.845, Over",
        "64: 69.7, 4.03, 7.16, 0.252, 0.748, Over",
        "128: 139.5, 2.01, 3.58, 0.410, 0.590, Over",
        "256: 278.9, 1.01, 1.79, 0.665, 0.335, Optimal",
        "512: 557.8, 0.50, 0.90, 0.895, 0.105, Knee",
        "1024: 1115.7, 0.25, 0.45, 0.448, 0.552, Under",
    };
    static const char *const ranks[] = {"lora_r=1", "lora_r=16", "lora_r=1024"};
    for (size_t set = 0; set < sizeof ranks / sizeof *ranks; set++) {
        planned self;
        describe(&self, "qwen3-1.7b", "num_train_epochs=2", ranks[set], NULL);
        make(&self);
        for (int i = 0; i < TD_PLANNER_N_RANKS; i++) {
            const td_planner_capacity *row = &self.planner.capacities[i];
            check_text(rows[i], "%lld: %.1f, %.2f, %.2f, %.3f, %.3f, %s", (long long)row->rank,
                       (double)row->n_parameters / 1e6, row->tokens_per_parameter, row->ratio,
                       row->memorization, row->generalization, row->status);
        }
        CHECK_INT(self.planner.capacities[self.planner.recommended].rank, 256);
        drop(&self);
    }
}

static void bounds_of_the_statuses(void) {
    static const struct {
        double ratio;
        const char *status;
    } cases[] = {{0.799, "Under"},   {0.801, "Knee"},    {1.199, "Knee"},
                 {1.201, "Optimal"}, {2.499, "Optimal"}, {2.501, "Over"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        td_planner_capacity row = td_planner_capacity_of(1, 1000000, cases[i].ratio * 1e6, 3.6);
        CHECK_NEAR(row.ratio, cases[i].ratio, 1e-12);
        CHECK_STRING(row.status, cases[i].status);
        CHECK_NEAR(row.memorization + row.generalization, 1, 1e-15);
    }
    td_planner_capacity unknown = td_planner_capacity_of(8, 1000, 0, 4.5);
    CHECK(isnan(unknown.ratio) && isnan(unknown.memorization) && !unknown.status);
}

static void share_of_llama(void) {
    planned self;
    describe(&self, "llama-3.1-8b", "lora_r=64",
             "target_modules=[\"q_proj\",\"k_proj\",\"v_proj\",\"o_proj\",\"gate_proj\","
             "\"up_proj\",\"down_proj\"]",
             NULL);
    make(&self);
    int64_t trainable = self.planner.lora.n_parameters;
    int64_t total = self.planner.base.total + trainable;
    CHECK_INT(trainable, 167772160);
    CHECK_INT(total, 8198033408);
    check_text("2.0465", "%.4f", 100.0 * (double)trainable / (double)total);
    CHECK_INT(self.planner.base.head, 128256LL * 4096);
    drop(&self);
}

// Modules with a rank of their own keep it in every row.
static void rank_pattern_stays(void) {
    planned self, plain;
    describe(&self, "qwen3-1.7b", "target_modules=[\"q_proj\",\"v_proj\"]",
             "rank_pattern={\"v_proj\": 3}", NULL);
    describe(&plain, "qwen3-1.7b", "target_modules=[\"q_proj\"]", NULL);
    make(&self);
    make(&plain);
    int64_t fixed = 28 * 3 * (2048 + 1024);
    for (int i = 0; i < TD_PLANNER_N_RANKS; i++)
        CHECK_INT(self.planner.capacities[i].n_parameters,
                  plain.planner.capacities[i].n_parameters + fixed);
    drop(&plain);
    drop(&self);
}

static void scales_of_nf4(void) {
    planned self;
    describe(&self, "qwen3-1.7b", NULL);
    make(&self);
    check_text("0.500 0.127", "%.3f %.3f", self.planner.memory.plain_scale_bits,
               self.planner.memory.scale_bits);
    size_t nested = self.planner.memory.plans[0].total_bytes[TD_POOL_DEVICE];
    td_planner_fini(&self.planner);
    small_set(&self.config, "bnb_4bit_use_double_quant=false");
    make(&self);
    check_text("0.500", "%.3f", self.planner.memory.scale_bits);
    double saved =
        (double)self.planner.memory.plans[0].total_bytes[TD_POOL_DEVICE] - (double)nested;
    double elements = 1409.286144e6; // linear layers
    CHECK_NEAR(saved * 8 / elements, 0.373, 0.01);
    // What the folder holds counts, not what the config says.
    td_planner_fini(&self.planner);
    self.model.stored = TD_STORED_NF4_NESTED;
    make(&self);
    check_text("0.127", "%.3f", self.planner.memory.scale_bits);
    drop(&self);
}

static size_t bytes_of(const td_memory_plan *plan, const char *name, td_memory_pool pool) {
    for (int i = 0; i < plan->n_lines; i++)
        if (plan->lines[i].pool == pool && strcmp(plan->lines[i].name, name) == 0)
            return plan->lines[i].bytes;
    return 0;
}

static const char *const run_settings[] = {"gradient_checkpointing=none", "eval_split_ratio=0.2",
                                           "num_train_epochs=2.5", NULL};

// On rank 0, which owns the most pages: line by line what the run takes, but for the process itself
// and the snapshot that this run has none of.
static void check_against_run(const small_run *run, const planned *self) {
    const td_memory_plan *real = &run->run.plan, *plan = &self->planner.memory.plans[0];
    CHECK_INT(self->planner.memory.n_plans, 1);
    CHECK(real->n_lines >= 10);
    for (int i = 0; i < real->n_lines; i++) {
        const td_plan_line *line = &real->lines[i];
        size_t bytes = bytes_of(plan, line->name, line->pool);
        int differs = strcmp(line->name, "program and libraries") == 0 ||
                      strcmp(line->name, "checkpoint snapshot") == 0 ||
                      strcmp(line->name, "buffers while loading") == 0;
        if (!differs && !CHECK(bytes == line->bytes))
            fprintf(stderr, "    %s: %zu planned, %zu in the run\n", line->name, bytes,
                    line->bytes);
    }
    const td_page_map *map = &run->run.parameters.map;
    size_t state = td_optimizer_state_bytes(run->config.optim, map->page_elements);
    CHECK(bytes_of(plan, "checkpoint snapshot", TD_POOL_DEVICE) ==
          td_checkpoint_plan(map, state, 0));
    CHECK_INT(self->planner.steps.steps, run->run.step.schedule.total_steps);
    CHECK_INT(self->planner.steps.tokens, td_store_tokens(run->data.train));
}

static void memory_and_steps_of_a_run(void) {
    small_run run;
    planned self = {0};
    small_start(&run, run_settings);
    if (td_comm_rank(small_comm) == 0) {
        self.config = run.config;
        self.model = run.session.model;
        set_lora(&self);
        self.options = (td_planner_options){
            .config = &run.config,
            .model = &self.model,
            .lora = &self.lora,
            .store = run.data.train,
            .bits_per_token = 4.5,
            .n_ranks = td_comm_size(small_comm),
            .embedding_dtype = TD_F32,
            .price_per_hour = -1,
        };
        make(&self);
        check_against_run(&run, &self);
        td_planner_fini(&self.planner);
    }
    small_close(&run);
}

static void a_gpu_that_is_not_there(void) {
    planned self;
    describe(&self, "qwen3-1.7b", "max_length=8192", NULL);
    self.options.gpu_bytes = (size_t)80 << 30;
    make(&self);
    const td_planner_memory *memory = &self.planner.memory;
    CHECK_INT(memory->n_plans, 3);
    CHECK_INT(memory->limit_bytes, self.options.gpu_bytes / 32 * 31);
    CHECK_INT(memory->chosen, 0);
    size_t total = memory->plans[0].total_bytes[TD_POOL_DEVICE];
    size_t state = bytes_of(&memory->plans[0], "optimizer state (pinned host)", TD_POOL_HOST);
    CHECK(total < memory->limit_bytes && state > 0);
    // What is left caches all of the optimizer state.
    CHECK(bytes_of(&memory->plans[0], "optimizer pages on the device", TD_POOL_DEVICE) == state);
    td_planner_fini(&self.planner);
    self.options.gpu_bytes = (size_t)((double)total * 0.6);
    make(&self);
    CHECK(memory->chosen > 0 && !memory->fits[0] && memory->fits[memory->chosen]);
    td_planner_fini(&self.planner);
    self.options.gpu_bytes = (size_t)256 << 20;
    make(&self);
    CHECK_INT(memory->chosen, -1);
    CHECK(strstr(memory->refusal, "of GPU memory per rank are needed") != NULL);
    CHECK(memory->plans[2].total_bytes[TD_POOL_DEVICE] > self.options.gpu_bytes);
    drop(&self);
}

// bf16 activations take half of what fp32 ones take.
static void activation_types(void) {
    planned self;
    describe(&self, "qwen3-1.7b", NULL);
    self.options.gpu_bytes = (size_t)80 << 30;
    make(&self);
    double bf16 = (double)bytes_of(&self.planner.memory.plans[0], "activations", TD_POOL_DEVICE);
    td_planner_fini(&self.planner);
    small_set(&self.config, "bf16=false");
    make(&self);
    double fp32 = (double)bytes_of(&self.planner.memory.plans[0], "activations", TD_POOL_DEVICE);
    CHECK_NEAR(fp32 / bf16, 2, 0.05);
    drop(&self);
}

static void more_ranks_share_the_state(void) {
    planned self;
    describe(&self, "qwen3-1.7b", "lora_r=256", NULL);
    make(&self);
    const td_memory_plan *plan = &self.planner.memory.plans[0];
    double alone = (double)bytes_of(plan, "optimizer state (pinned host)", TD_POOL_DEVICE);
    CHECK(bytes_of(plan, "communication buffers", TD_POOL_DEVICE) == 0);
    td_planner_fini(&self.planner);
    self.options.n_ranks = 4;
    make(&self);
    double shared = (double)bytes_of(plan, "optimizer state (pinned host)", TD_POOL_DEVICE);
    CHECK_NEAR(alone / shared, 4, 0.1);
    CHECK(bytes_of(plan, "communication buffers", TD_POOL_DEVICE) > 0);
    drop(&self);
}

static void time_and_cost(void) {
    planned self;
    describe(&self, "qwen3-1.7b", "num_train_epochs=2", "max_length=1000",
             "gradient_accumulation_steps=16", NULL);
    self.options.tokens_per_second = 10000;
    self.options.price_per_hour = 2.5;
    self.options.n_ranks = 8;
    make(&self);
    const td_planner_steps *steps = &self.planner.steps;
    CHECK_INT(steps->micro_batches, 140420);
    CHECK_INT(steps->steps_per_epoch, 8777); // 8776.25
    CHECK_INT(steps->steps, 17554);
    CHECK_NEAR(steps->tokens_seen, 280840000, 0.5);
    CHECK_NEAR(steps->seconds, 28084, 1e-6);
    CHECK_NEAR(steps->cost, 28084.0 / 3600 * 2.5 * 8, 1e-9);
    td_planner_fini(&self.planner);
    small_set(&self.config, "max_steps=8777");
    make(&self);
    CHECK_INT(steps->steps, 8777);
    CHECK_NEAR(steps->seconds, 14042, 1e-6);
    td_planner_fini(&self.planner);
    small_set(&self.config, "packing=false");
    small_set(&self.config, "per_device_train_batch_size=4");
    small_set(&self.config, "max_steps=-1");
    self.options.rows = 1001;
    make(&self);
    CHECK_INT(steps->micro_batches, 251);
    CHECK_INT(steps->steps_per_epoch, 16);
    CHECK_INT(steps->micro_batch_tokens, 4000);
    drop(&self);
}

// The plan is refused with a usage error that says `what`.
static void check_refused(planned *self, const char *what) {
    CHECK_INT(td_planner_make(&self->options, &self->planner), TD_ERR_USAGE);
    if (!CHECK(strstr(td_error_message(), what) != NULL))
        fprintf(stderr, "    %s\n", td_error_message());
    td_error_clear();
    drop(self);
}

static void settings_no_run_accepts(void) {
    planned self;
    describe(&self, "qwen3-1.7b", "micro_batch_tokens=100", NULL);
    check_refused(&self, "micro_batch_tokens (100) is less than max_length (1024)");
    describe(&self, "qwen3-1.7b", "packing=false", "max_length=1000000",
             "per_device_train_batch_size=65536", NULL);
    check_refused(&self, "too large");
    describe(&self, "qwen3-1.7b", "num_train_epochs=1000000", NULL);
    self.options.tokens = 1000000000000000;
    check_refused(&self, "more than can be counted");
    describe(&self, "qwen3-1.7b", "target_modules=[\"x_proj\"]", NULL);
    check_refused(&self, "\"x_proj\" matches no module");
    describe(&self, "qwen3-1.7b", "optim=adamw_8bit", "page_elements=1000", NULL);
    check_refused(&self, "multiple of 256");
}

int main(void) {
    small_begin();
    TEST(memory_and_steps_of_a_run);
    if (td_comm_size(small_comm) == 1) {
        TEST(parameters_of_qwen3);
        TEST(capacity_of_qwen3);
        TEST(bounds_of_the_statuses);
        TEST(share_of_llama);
        TEST(rank_pattern_stays);
        TEST(scales_of_nf4);
        TEST(a_gpu_that_is_not_there);
        TEST(activation_types);
        TEST(more_ranks_share_the_state);
        TEST(time_and_cost);
        TEST(settings_no_run_accepts);
    }
    return small_finish();
}
