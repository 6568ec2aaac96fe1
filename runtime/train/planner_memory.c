#include <string.h>

#include "runtime/core/gpu_module.h"
#include "runtime/train/checkpoint.h"
#include "runtime/train/optimizer.h"
#include "runtime/train/planner_internal.h"

// No memory has this size, and sums with it do not overflow.
static const size_t no_limit_bytes = (size_t)1 << 60;

static size_t no_workspace(const td_workspace_query *query) {
    (void)query;
    return 0;
}

// A GPU that is not there. Planning asks whether memory is unified and nothing else.
static const td_device_table planned_gpu_table = {.name = "planned GPU"};
static const td_device planned_gpu = {.table = &planned_gpu_table};
static const td_ops planned_bf16 = {.name = "planned bf16",
                                    .activation = TD_BF16,
                                    .product = TD_BF16,
                                    .workspace_bytes = no_workspace};
static const td_ops planned_fp32 = {.name = "planned fp32",
                                    .activation = TD_F32,
                                    .product = TD_F32,
                                    .workspace_bytes = no_workspace};

static const td_ops *gpu_ops(const td_config *config, int *out_has_workspace) {
    const td_gpu_module *module;
    char reason[512];
    td_gpu_module_load(&module, reason, sizeof reason);
    *out_has_workspace = module != NULL;
    if (module)
        return config->bf16 ? module->ops_bf16 : module->ops_fp32;
    return config->bf16 ? &planned_bf16 : &planned_fp32;
}

// A session as on one rank of the planned job, as far as planning looks at it.
static td_status describe_rank(const td_planner *planner, const td_config *config,
                               td_planner_memory *memory, td_session *out) {
    const td_planner_options *options = &planner->options;
    *out = (td_session){.config = config,
                        .model = *options->model,
                        .lora = planner->lora,
                        .has_lora = 1,
                        .choice.transport = memory->is_gpu ? NULL : &td_device_transport_host};
    out->context.device = memory->is_gpu ? &planned_gpu : td_device_cpu();
    if (memory->is_gpu) {
        TD_TRY(td_device_check_gpu_precision(config->bf16, config->float32_matmul_precision));
        out->context.ops = gpu_ops(config, &memory->has_workspace);
        return TD_OK;
    }
    memory->has_workspace = 1;
    td_ops_cpu_set_threads(td_session_threads(config, options->n_ranks));
    return td_device_cpu_ops(config->float32_matmul_precision, &out->context.ops);
}

// Rank 0 owns the most pages. An evaluation has a loader of its own.
static td_status find_needs(const td_planner *planner, const td_session *session,
                            td_plan_needs *out) {
    const td_planner_options *options = &planner->options;
    const td_config *config = session->config;
    int64_t n = planner->lora.n_parameters, page = config->page_elements;
    int64_t longest = planner->steps.longest_row;
    td_page_map map;
    TD_TRY(td_page_map_init(&map, n, page < n ? page : n, options->n_ranks));
    size_t state_bytes = td_optimizer_state_bytes(config->optim, map.page_elements);
    int evaluates = config->eval_files.count > 0 || config->eval_split_ratio > 0;
    *out = (td_plan_needs){
        .max_tokens = planner->steps.micro_batch_tokens,
        .max_sequences = planner->steps.micro_batch_rows,
        .max_positions = longest > config->max_length ? longest : config->max_length,
        .checkpoint_bytes = td_checkpoint_plan(&map, state_bytes, 0),
        .pager = {.device = session->context.device,
                  .map = map,
                  .state_bytes = state_bytes,
                  .device_cache_bytes = (size_t)config->optimizer_cache_bytes},
        .n_loaders = evaluates ? 2 : 1,
        .embedding_dtype = options->embedding_dtype,
        .n_ranks = options->n_ranks,
    };
    return TD_OK;
}

// What does not fit is shown all the same, with the smallest cache of optimizer pages and no copies
// of layers.
static td_status plan_anyway(const td_session *session, td_plan_needs needs, td_config config,
                             td_memory_plan *out) {
    td_session rank = *session;
    if (config.optimizer_cache_bytes == 0)
        config.optimizer_cache_bytes = 1;
    config.dequantized_cache_bytes = -1;
    config.dequantize_ahead = TD_AHEAD_OFF;
    needs.pager.device_cache_bytes = (size_t)config.optimizer_cache_bytes;
    needs.limit_bytes[TD_POOL_DEVICE] = no_limit_bytes;
    rank.config = &config;
    return td_memory_plan_make(&rank, &needs, out);
}

static td_status plan_policy(const td_session *session, const td_plan_needs *needs,
                             const td_config *config, td_planner_memory *memory) {
    int index = memory->n_plans++;
    td_memory_plan *plan = &memory->plans[index];
    td_status status = td_memory_plan_make(session, needs, plan);
    memory->fits[index] = status == TD_OK;
    if (status == TD_OK && memory->chosen < 0)
        memory->chosen = index;
    if (status != TD_ERR_MEMORY)
        return status;
    snprintf(memory->refusal, sizeof memory->refusal, "%s", td_error_message());
    td_error_clear();
    return plan_anyway(session, *needs, *config, plan);
}

// Bits per quantized parameter: an absmax for 64 of them in fp32, or 8 bits and an fp32 value for
// every 256 of those.
static void find_scale_bits(const td_planner *planner, td_planner_memory *memory) {
    const td_model_config *model = planner->options.model;
    double elements = 0, blocks = 0, nested = 0;
    for (int i = 0; i < TD_PROJ_COUNT; i++) {
        if (!td_projection_exists(model, (td_projection)i))
            continue;
        int64_t size =
            td_projection_in(model, (td_projection)i) * td_projection_out(model, (td_projection)i);
        elements += (double)size;
        blocks += (double)td_nf4_block_count(size);
        nested += (double)td_nf4_nested_count(size);
    }
    memory->plain_scale_bits = 32 * blocks / elements;
    int is_whole = model->stored == TD_STORED_WHOLE;
    int is_nested = is_whole ? planner->options.config->bnb_4bit_use_double_quant
                             : model->stored == TD_STORED_NF4_NESTED;
    memory->is_nf4 = !is_whole || planner->options.config->load_in_4bit;
    memory->scale_bits =
        is_nested ? (8 * blocks + 32 * nested) / elements : memory->plain_scale_bits;
}

// The same part of a GPU stays out of the plan as in a run.
static size_t device_limit(const td_planner_options *options) {
    size_t given = (size_t)options->config->memory_limit_bytes;
    return given > 0 ? given : options->gpu_bytes - options->gpu_bytes / 32;
}

td_status td_planner_plan_memory(td_planner *planner) {
    td_planner_memory *memory = &planner->memory;
    td_config config = *planner->options.config;
    td_recompute wanted = config.gradient_checkpointing;
    td_recompute first = wanted == TD_RECOMPUTE_AUTO ? TD_RECOMPUTE_NONE : wanted;
    td_recompute last = wanted == TD_RECOMPUTE_AUTO ? TD_RECOMPUTE_BLOCK : wanted;
    td_session session;
    td_plan_needs needs;
    *memory = (td_planner_memory){.is_gpu = planner->options.gpu_bytes > 0,
                                  .limit_bytes = device_limit(&planner->options),
                                  .chosen = -1};
    find_scale_bits(planner, memory);
    TD_TRY(describe_rank(planner, &config, memory, &session));
    TD_TRY(find_needs(planner, &session, &needs));
    needs.limit_bytes[TD_POOL_HOST] = no_limit_bytes;
    needs.limit_bytes[TD_POOL_DEVICE] =
        memory->limit_bytes > 0 ? memory->limit_bytes : no_limit_bytes;
    for (td_recompute policy = first; policy <= last; policy++) {
        config.gradient_checkpointing = policy;
        TD_TRY(plan_policy(&session, &needs, &config, memory));
    }
    return TD_OK;
}

size_t td_planner_line_bytes(const td_memory_plan *plan, const char *name, td_memory_pool pool) {
    for (int i = 0; i < plan->n_lines; i++)
        if (plan->lines[i].pool == pool && strcmp(plan->lines[i].name, name) == 0)
            return plan->lines[i].bytes;
    return 0;
}
