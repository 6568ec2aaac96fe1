// The planner with a GPU at hand: its own memory plan for a GPU is the one that a run makes, line
// by line, workspace included.
#include "runtime/train/planner.h"
#include "small_run.h"

static const char *const settings[] = {"device=cuda", "share_gpus=true",
                                       "gradient_checkpointing=norms_mlp",
                                       "optimizer_cache_bytes=100000", NULL};

static td_planner_options options_of(const small_run *run, const td_lora_options *lora) {
    return (td_planner_options){
        .config = &run->config,
        .model = &run->session.model,
        .lora = lora,
        .store = run->data.train,
        .bits_per_token = 4.5,
        .n_ranks = td_comm_size(small_comm),
        .gpu_bytes = (size_t)1 << 40,
        .embedding_dtype = TD_F32,
        .price_per_hour = -1,
    };
}

// But for the process itself and what depends on how this run travels.
static int is_compared(const char *name) {
    return strcmp(name, "program and libraries") != 0 &&
           strcmp(name, "communication buffers") != 0 && strcmp(name, "checkpoint snapshot") != 0 &&
           strcmp(name, "buffers while loading") != 0;
}

static size_t line_bytes(const td_memory_plan *plan, const td_plan_line *like) {
    for (int i = 0; i < plan->n_lines; i++)
        if (plan->lines[i].pool == like->pool && strcmp(plan->lines[i].name, like->name) == 0)
            return plan->lines[i].bytes;
    return 0;
}

static void memory_of_a_run(void) {
    small_run run;
    small_open(&run, settings);
    small_require(small_plan(&run), "plan");
    td_planner_options options = options_of(&run, &run.session.lora_options);
    td_planner planner = {0};
    small_require(td_planner_make(&options, &planner), "planner");
    const td_memory_plan *real = &run.run.plan, *plan = &planner.memory.plans[0];
    CHECK_INT(planner.memory.n_plans, 1);
    CHECK(planner.memory.has_workspace);
    CHECK(!real->is_unified && real->n_lines >= 10);
    for (int i = 0; i < real->n_lines && td_comm_rank(small_comm) == 0; i++) {
        const td_plan_line *line = &real->lines[i];
        size_t bytes = line_bytes(plan, line);
        if (is_compared(line->name) && !CHECK(bytes == line->bytes))
            fprintf(stderr, "    %s: %zu planned, %zu in the run\n", line->name, bytes,
                    line->bytes);
    }
    td_planner_fini(&planner);
    small_close(&run);
}

int main(void) {
    small_begin();
    TEST(memory_of_a_run);
    return small_finish();
}
