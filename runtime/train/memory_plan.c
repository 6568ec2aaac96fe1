#include "runtime/train/memory_plan.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/core/log.h"
#include "runtime/train/tokens.h"

enum { MAX_COMMUNICATION_BYTES = 48 << 20 };

static size_t status_field(const char *name) {
    FILE *file = fopen("/proc/self/status", "r");
    char line[256];
    size_t bytes = 0;
    while (file && fgets(line, sizeof line, file))
        if (strncmp(line, name, strlen(name)) == 0)
            bytes = (size_t)strtoull(line + strlen(name), NULL, 10) * 1024;
    if (file)
        fclose(file);
    return bytes;
}

size_t td_memory_resident_bytes(void) {
    return status_field("VmRSS:");
}

size_t td_memory_peak_bytes(void) {
    return status_field("VmHWM:");
}

const char *td_recompute_name(td_recompute policy) {
    static const char *const names[] = {
        [TD_RECOMPUTE_AUTO] = "auto",
        [TD_RECOMPUTE_NONE] = "none",
        [TD_RECOMPUTE_NORMS_MLP] = "norms_mlp",
        [TD_RECOMPUTE_BLOCK] = "block",
    };
    return names[policy];
}

size_t td_memory_parameter_bytes(const td_config *config, int64_t n_parameters) {
    size_t sum = config->reduce == TD_REDUCE_FP32 ? sizeof(float) : sizeof(int64_t);
    return td_mul_bytes((size_t)n_parameters, sizeof(float) + sum);
}

static void add_line(td_memory_plan *plan, const char *name, size_t bytes) {
    plan->lines[plan->n_lines++] = (td_plan_line){name, bytes};
    if (__builtin_add_overflow(plan->total_bytes, bytes, &plan->total_bytes))
        plan->total_bytes = SIZE_MAX;
}

// What the MPI library keeps for the reductions under way. In a binomial tree of n ranks a page's
// owner receives into one buffer of its own and every other rank with children, n / 2 - 1 of them,
// into two; the owners take turns.
static size_t communication_bytes(const td_session *session) {
    size_t item = session->config->reduce == TD_REDUCE_FP32 ? sizeof(float) : sizeof(int64_t);
    size_t bytes = td_mul_bytes((size_t)session->lora.n_parameters, item);
    size_t size = (size_t)td_comm_size(session->comm);
    if (size < 2)
        return 0;
    double share = (double)(2 * (size / 2) - 1) / (double)size * (double)bytes;
    return share < MAX_COMMUNICATION_BYTES ? (size_t)share : MAX_COMMUNICATION_BYTES;
}

// What is there when the base is loaded, and what it takes.
static void add_base_lines(const td_session *session, td_dtype embedding_dtype,
                           td_memory_plan *plan, size_t *out_staging_bytes) {
    td_base_options options = td_session_base_options(session);
    size_t base_bytes = 0, staging_bytes = 0;
    if (!session->base)
        td_base_plan(&session->model, &options, embedding_dtype, &base_bytes, &staging_bytes);
    add_line(plan, "program and libraries", td_memory_resident_bytes());
    add_line(plan, "base model", base_bytes);
    *out_staging_bytes = staging_bytes;
}

static void add_trainable_lines(const td_session *session, const td_plan_needs *needs,
                                td_memory_plan *plan) {
    add_line(plan, "LoRA parameters and gradient sums",
             td_memory_parameter_bytes(session->config, session->lora.n_parameters));
    add_line(plan, "communication buffers", communication_bytes(session));
    add_line(plan, "optimizer state (pinned host)", needs->optimizer_host_bytes);
    add_line(plan, "optimizer pages on the device", needs->optimizer_device_bytes);
    add_line(plan, "checkpoint snapshot", needs->checkpoint_bytes);
}

static td_status plan_with(const td_session *session, const td_plan_needs *needs,
                           td_recompute policy, int64_t max_tokens, td_memory_plan *out) {
    td_memory_plan plan = {.recompute = policy, .limit_bytes = out->limit_bytes};
    plan.transformer = (td_transformer_options){
        .max_tokens = max_tokens,
        .max_sequences = needs->max_sequences,
        .max_positions = needs->max_positions,
        .logits_chunk_tokens = session->config->logits_chunk_tokens < max_tokens
                                   ? session->config->logits_chunk_tokens
                                   : max_tokens,
        .recompute = policy,
        .training = 1,
    };
    td_transformer_sizes sizes;
    size_t staging_bytes, loading_bytes;
    TD_TRY(td_transformer_measure(&session->model, &session->lora, &plan.transformer,
                                  session->context.ops, &sizes));
    add_base_lines(session, needs->embedding_dtype, &plan, &staging_bytes);
    loading_bytes = plan.total_bytes + staging_bytes;
    add_trainable_lines(session, needs, &plan);
    add_line(&plan, "activations", sizes.activations_bytes);
    add_line(&plan, "logits chunk and head", sizes.logits_bytes);
    add_line(&plan, "activation gradients", sizes.gradients_bytes);
    add_line(&plan, "workspace of the operations", sizes.workspace_bytes);
    add_line(&plan, "inputs and tables",
             sizes.tables_bytes + sizes.host_bytes +
                 (size_t)needs->n_loaders *
                     td_token_loader_bytes(max_tokens, needs->max_sequences));
    // The base is loaded before the rest is allocated.
    if (loading_bytes > plan.total_bytes)
        add_line(&plan, "buffers while loading", loading_bytes - plan.total_bytes);
    *out = plan;
    return TD_OK;
}

static td_status find_limit(const td_session *session, size_t *out) {
    size_t free_bytes, total_bytes;
    if (session->config->memory_limit_bytes > 0) {
        *out = (size_t)session->config->memory_limit_bytes;
        return TD_OK;
    }
    const td_device *device = session->context.device;
    TD_TRY(device->table->memory_info(device, &free_bytes, &total_bytes));
    size_t ranks = device->unified ? (size_t)td_comm_local_size(session->comm) : 1;
    *out = free_bytes / ranks + td_memory_resident_bytes();
    return TD_OK;
}

// The largest micro-batch, by halving, that fits with the most thrifty policy; 0: none.
static int64_t fitting_tokens(const td_session *session, const td_plan_needs *needs, size_t limit) {
    for (int64_t tokens = needs->max_tokens / 2; tokens >= 16; tokens /= 2) {
        td_memory_plan plan = {.limit_bytes = limit};
        if (plan_with(session, needs, TD_RECOMPUTE_BLOCK, tokens, &plan) == TD_OK &&
            plan.total_bytes <= limit)
            return tokens;
    }
    td_error_clear();
    return 0;
}

static td_status refuse(const td_session *session, const td_plan_needs *needs,
                        const td_memory_plan *plan) {
    double mib = 1048576.0;
    int64_t tokens = fitting_tokens(session, needs, plan->limit_bytes);
    if (tokens == 0)
        return td_fail(
            TD_ERR_MEMORY,
            "memory plan: %.0f MiB per rank are needed with recompute %s, %.0f MiB are there; "
            "no micro-batch size fits (a smaller lora_r, or fewer ranks per node)",
            (double)plan->total_bytes / mib, td_recompute_name(plan->recompute),
            (double)plan->limit_bytes / mib);
    return td_fail(
        TD_ERR_MEMORY,
        "memory plan: %.0f MiB per rank are needed with recompute %s, %.0f MiB are there; "
        "micro_batch_tokens and max_length of %lld with gradient_checkpointing \"block\" would fit",
        (double)plan->total_bytes / mib, td_recompute_name(plan->recompute),
        (double)plan->limit_bytes / mib, (long long)tokens);
}

td_status td_memory_plan_make(const td_session *session, const td_plan_needs *needs,
                              td_memory_plan *out) {
    td_memory_plan plan = {0};
    td_recompute wanted = session->config->gradient_checkpointing;
    td_recompute first = wanted == TD_RECOMPUTE_AUTO ? TD_RECOMPUTE_NONE : wanted;
    td_recompute last = wanted == TD_RECOMPUTE_AUTO ? TD_RECOMPUTE_BLOCK : wanted;
    TD_TRY(find_limit(session, &plan.limit_bytes));
    for (td_recompute policy = first; policy <= last; policy++) {
        TD_TRY(plan_with(session, needs, policy, needs->max_tokens, &plan));
        if (plan.total_bytes <= plan.limit_bytes) {
            *out = plan;
            return TD_OK;
        }
    }
    return refuse(session, needs, &plan);
}

void td_memory_plan_print(const td_memory_plan *plan) {
    double mib = 1048576.0;
    td_info("memory per rank (recompute %s):", td_recompute_name(plan->recompute));
    for (int i = 0; i < plan->n_lines; i++)
        if (plan->lines[i].bytes > 0)
            td_info("  %-36s %10.1f MiB", plan->lines[i].name, (double)plan->lines[i].bytes / mib);
    td_info("  %-36s %10.1f MiB of %.1f", "total", (double)plan->total_bytes / mib,
            (double)plan->limit_bytes / mib);
}
