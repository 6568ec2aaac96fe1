#include "runtime/train/memory_plan.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/core/log.h"
#include "runtime/train/optimizer.h"
#include "runtime/train/tokens.h"

enum { MAX_COMMUNICATION_BYTES = 48 << 20 };

static const char copies_name[] = "copies of dequantized layers";

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

// Parts of one name and pool make one line.
static td_plan_line *line_of(td_memory_plan *plan, const char *name, td_memory_pool pool) {
    for (int i = 0; i < plan->n_lines; i++)
        if (plan->lines[i].pool == pool && strcmp(plan->lines[i].name, name) == 0)
            return &plan->lines[i];
    plan->lines[plan->n_lines] = (td_plan_line){.name = name, .pool = pool};
    return &plan->lines[plan->n_lines++];
}

static size_t add_saturating(size_t a, size_t b) {
    size_t sum;
    return __builtin_add_overflow(a, b, &sum) ? SIZE_MAX : sum;
}

static void add_line(td_memory_plan *plan, const char *name, td_memory_pool where, size_t bytes) {
    td_memory_pool pool = plan->is_unified ? TD_POOL_DEVICE : where;
    td_plan_line *line = line_of(plan, name, pool);
    line->bytes = add_saturating(line->bytes, bytes);
    plan->total_bytes[pool] = add_saturating(plan->total_bytes[pool], bytes);
}

// What the MPI library keeps for the reductions under way. In a binomial tree of n ranks a page's
// owner receives into one buffer of its own and every other rank with children, n / 2 - 1 of them,
// into two; the owners take turns.
static size_t communication_bytes(const td_session *session, const td_plan_needs *needs) {
    size_t item = session->config->reduce == TD_REDUCE_FP32 ? sizeof(float) : sizeof(int64_t);
    size_t bytes = td_mul_bytes((size_t)session->lora.n_parameters, item);
    size_t size = (size_t)(needs->n_ranks > 0 ? needs->n_ranks : td_comm_size(session->comm));
    int is_by_mpi = session->choice.transport == &td_device_transport_host ||
                    session->choice.transport == &td_device_transport_staged;
    if (size < 2 || !is_by_mpi)
        return 0;
    double share = (double)(2 * (size / 2) - 1) / (double)size * (double)bytes;
    return share < MAX_COMMUNICATION_BYTES ? (size_t)share : MAX_COMMUNICATION_BYTES;
}

// What is there when the base is loaded, and what loading takes beside it.
static void add_base_lines(const td_session *session, const td_plan_needs *needs,
                           td_memory_plan *plan, size_t out_loading_bytes[TD_N_POOLS]) {
    td_base_options options = td_session_base_options(session);
    td_base_sizes sizes = {0};
    size_t workspace = 0;
    options.host_embedding = plan->host_embedding;
    if (!session->base) {
        td_base_plan(&session->model, &options, needs->embedding_dtype, &sizes);
        workspace = td_base_workspace_bytes(session->context.ops);
    }
    add_line(plan, "program and libraries", TD_POOL_HOST, td_memory_resident_bytes());
    size_t sharers = needs->base_is_mapped ? (size_t)td_comm_local_size(session->comm) : 1;
    add_line(plan, sharers > 1 ? "base model, one copy on the node" : "base model", TD_POOL_DEVICE,
             sizes.arena_bytes / sharers);
    add_line(plan, "embeddings (pinned host)", TD_POOL_HOST, sizes.host_bytes);
    out_loading_bytes[TD_POOL_DEVICE] = sizes.slice_bytes + sizes.absmax_bytes + workspace;
    out_loading_bytes[TD_POOL_HOST] = plan->is_unified ? 0 : sizes.slice_bytes;
}

static void add_trainable_lines(const td_session *session, const td_plan_needs *needs,
                                td_memory_plan *plan) {
    size_t host_bytes, device_bytes;
    td_pager_options pager = needs->pager;
    pager.device_cache_bytes = plan->optimizer_cache_bytes;
    td_pager_plan(&pager, &host_bytes, &device_bytes);
    add_line(plan, "LoRA parameters and gradient sums", TD_POOL_DEVICE,
             td_memory_parameter_bytes(session->config, session->lora.n_parameters));
    add_line(plan, "communication buffers", TD_POOL_DEVICE, needs->travel_device_bytes);
    add_line(plan, "communication buffers", TD_POOL_HOST,
             add_saturating(communication_bytes(session, needs), needs->travel_host_bytes));
    add_line(plan, "optimizer state (pinned host)", TD_POOL_HOST, host_bytes);
    add_line(plan, "optimizer pages on the device", TD_POOL_DEVICE, device_bytes);
    add_line(plan, "page tables", TD_POOL_HOST, td_optimizer_host_bytes(pager.map.n_pages));
    add_line(plan, "checkpoint snapshot", TD_POOL_HOST, needs->checkpoint_bytes);
    if (!plan->is_unified) // an adapter is written from here
        add_line(plan, "parameters on the host", TD_POOL_HOST,
                 td_mul_bytes((size_t)session->lora.n_parameters, sizeof(float)));
}

static void add_transformer_lines(const td_transformer_sizes *sizes, const td_plan_needs *needs,
                                  td_memory_plan *plan) {
    size_t loader = td_token_loader_bytes(plan->transformer.max_tokens, needs->max_sequences);
    add_line(plan, "activations", TD_POOL_DEVICE, sizes->activations_bytes);
    add_line(plan, "logits chunk and head", TD_POOL_DEVICE, sizes->logits_bytes);
    add_line(plan, "activation gradients", TD_POOL_DEVICE, sizes->gradients_bytes);
    add_line(plan, "workspace of the operations", TD_POOL_DEVICE, sizes->workspace_bytes);
    add_line(plan, "weights dequantized ahead", TD_POOL_DEVICE, sizes->ahead_bytes);
    add_line(plan, "inputs and tables", TD_POOL_DEVICE, sizes->tables_bytes);
    add_line(plan, "inputs and tables", TD_POOL_HOST,
             sizes->host_bytes + (size_t)needs->n_loaders * loader);
}

// `out` brings the limits and what is decided about optimizer pages and dequantized weights.
static td_status plan_with(const td_session *session, const td_plan_needs *needs,
                           td_recompute policy, int64_t max_tokens, td_memory_plan *out) {
    td_memory_plan plan = {.recompute = policy,
                           .is_unified = session->context.device->unified,
                           .host_embedding = out->host_embedding,
                           .optimizer_cache_bytes = out->optimizer_cache_bytes,
                           .copies = out->copies,
                           .dequantize_ahead = out->dequantize_ahead};
    memcpy(plan.limit_bytes, out->limit_bytes, sizeof plan.limit_bytes);
    plan.transformer = (td_transformer_options){
        .max_tokens = max_tokens,
        .max_sequences = needs->max_sequences,
        .max_positions = needs->max_positions,
        .logits_chunk_tokens = session->config->logits_chunk_tokens < max_tokens
                                   ? session->config->logits_chunk_tokens
                                   : max_tokens,
        .recompute = policy,
        .training = 1,
        .graphs = session->config->cuda_graphs,
        .dequantize_ahead = plan.dequantize_ahead,
    };
    td_transformer_sizes sizes;
    size_t loading_bytes[TD_N_POOLS];
    TD_TRY(td_transformer_measure(&session->model, &session->lora, &plan.transformer,
                                  session->context.ops, &sizes));
    add_base_lines(session, needs, &plan, loading_bytes);
    for (int pool = 0; pool < TD_N_POOLS; pool++)
        loading_bytes[pool] = add_saturating(loading_bytes[pool], plan.total_bytes[pool]);
    add_trainable_lines(session, needs, &plan);
    add_transformer_lines(&sizes, needs, &plan);
    add_line(&plan, copies_name, TD_POOL_DEVICE, plan.copies.bytes);
    // The base is loaded before the rest is allocated.
    for (int pool = 0; pool < TD_N_POOLS; pool++)
        if (loading_bytes[pool] > plan.total_bytes[pool])
            add_line(&plan, "buffers while loading", (td_memory_pool)pool,
                     loading_bytes[pool] - plan.total_bytes[pool]);
    *out = plan;
    return TD_OK;
}

static td_status share_of_host(const td_session *session, size_t *out) {
    const td_device *host = td_device_cpu();
    size_t free_bytes, total_bytes;
    TD_TRY(host->table->memory_info(host, &free_bytes, &total_bytes));
    *out = free_bytes / (size_t)td_comm_local_size(session->comm) + td_memory_resident_bytes();
    return TD_OK;
}

// Kernels are loaded, and libraries take memory of a GPU, when they are first used: a part of what
// is free now stays out of the plan.
static td_status share_of_gpu(const td_session *session, size_t *out) {
    const td_device *device = session->context.device;
    size_t free_bytes, total_bytes;
    TD_TRY(device->table->memory_info(device, &free_bytes, &total_bytes));
    *out = (free_bytes - free_bytes / 32) / (size_t)session->choice.ranks_on_device;
    return TD_OK;
}

static td_status find_limits(const td_session *session, const td_plan_needs *needs,
                             size_t out[TD_N_POOLS]) {
    int is_unified = session->context.device->unified;
    if (needs->limit_bytes[TD_POOL_DEVICE] > 0) {
        memcpy(out, needs->limit_bytes, sizeof needs->limit_bytes);
        return TD_OK;
    }
    out[TD_POOL_HOST] = 0; // nothing is planned there on a unified device
    if (!is_unified)
        TD_TRY(share_of_host(session, &out[TD_POOL_HOST]));
    if (session->config->memory_limit_bytes > 0) {
        out[TD_POOL_DEVICE] = (size_t)session->config->memory_limit_bytes;
        return TD_OK;
    }
    return is_unified ? share_of_host(session, &out[TD_POOL_DEVICE])
                      : share_of_gpu(session, &out[TD_POOL_DEVICE]);
}

static int fits(const td_memory_plan *plan) {
    return plan->total_bytes[TD_POOL_DEVICE] <= plan->limit_bytes[TD_POOL_DEVICE] &&
           plan->total_bytes[TD_POOL_HOST] <= plan->limit_bytes[TD_POOL_HOST];
}

// The largest micro-batch, by halving, that fits with the most thrifty policy; 0: none.
static int64_t fitting_tokens(const td_session *session, const td_plan_needs *needs,
                              const td_memory_plan *refused) {
    for (int64_t tokens = needs->max_tokens / 2; tokens >= 16; tokens /= 2) {
        td_memory_plan plan = *refused;
        if (plan_with(session, needs, TD_RECOMPUTE_BLOCK, tokens, &plan) == TD_OK && fits(&plan))
            return tokens;
    }
    td_error_clear();
    return 0;
}

static td_status refuse(const td_session *session, const td_plan_needs *needs,
                        const td_memory_plan *plan) {
    double mib = 1048576.0;
    int64_t tokens = fitting_tokens(session, needs, plan);
    td_memory_pool pool = plan->total_bytes[TD_POOL_DEVICE] > plan->limit_bytes[TD_POOL_DEVICE]
                              ? TD_POOL_DEVICE
                              : TD_POOL_HOST;
    double needed = (double)plan->total_bytes[pool] / mib;
    double there = (double)plan->limit_bytes[pool] / mib;
    const char *kind = plan->is_unified         ? ""
                       : pool == TD_POOL_DEVICE ? " of GPU memory"
                                                : " of host memory";
    if (tokens == 0)
        return td_fail(
            TD_ERR_MEMORY,
            "memory plan: %.0f MiB%s per rank are needed with recompute %s, %.0f MiB are there; "
            "no micro-batch size fits (a smaller lora_r, or fewer ranks per node)",
            needed, kind, td_recompute_name(plan->recompute), there);
    return td_fail(
        TD_ERR_MEMORY,
        "memory plan: %.0f MiB%s per rank are needed with recompute %s, %.0f MiB are there; "
        "micro_batch_tokens and max_length of %lld with gradient_checkpointing \"block\" would fit",
        needed, kind, td_recompute_name(plan->recompute), there, (long long)tokens);
}

// Optimizer pages may take most of what the rest leaves of a GPU. More than all pages is never
// used.
static td_status enlarge_cache(const td_session *session, const td_plan_needs *needs,
                               td_memory_plan *plan) {
    size_t left = plan->limit_bytes[TD_POOL_DEVICE] - plan->total_bytes[TD_POOL_DEVICE];
    if (plan->is_unified || session->config->optimizer_cache_bytes > 0)
        return TD_OK;
    plan->optimizer_cache_bytes = left / 4 * 3;
    return plan_with(session, needs, plan->recompute, needs->max_tokens, plan);
}

// Copies of layers in what is left, with or without weights dequantized ahead. That need not fit.
static td_status plan_dequantized(const td_session *session, const td_plan_needs *needs,
                                  int dequantize_ahead, td_memory_plan *plan) {
    td_base_options options = td_session_base_options(session);
    int64_t given = session->config->dequantized_cache_bytes;
    plan->dequantize_ahead = dequantize_ahead;
    plan->copies = (td_weight_copies_plan){0};
    TD_TRY(plan_with(session, needs, plan->recompute, needs->max_tokens, plan));
    if (!fits(plan))
        return TD_OK;
    size_t left = plan->limit_bytes[TD_POOL_DEVICE] - plan->total_bytes[TD_POOL_DEVICE];
    if (given != 0 && given < (int64_t)left)
        left = given > 0 ? (size_t)given : 0;
    td_weight_copies_plan_make(&session->model, &options, session->context.ops->activation, left,
                               &plan->copies);
    return plan_with(session, needs, plan->recompute, needs->max_tokens, plan);
}

// To dequantize a weight to bf16 moves 2.56 bytes and to multiply with it takes 2 FLOP per token. A
// GPU of today computes about 180 FLOP while it moves a byte. Half of dequantization is expected to
// find room under other work: ARCHITECTURE.md, "Operations". None of this was measured.
static const double bytes_per_weight = 2.56, flops_per_byte = 180, hidden = 0.5, least_gain = 0.02;

static double share_without_copy(const td_weight_copies_plan *copies) {
    return 1 - (double)copies->n_copied / (double)copies->n_quantized;
}

// As parts of the time of products: what is gained by dequantizing ahead, less what copies in the
// memory of its buffers would gain.
static int ahead_pays(const td_memory_plan *without, const td_memory_plan *with) {
    double tokens = (double)with->transformer.max_tokens;
    double dequantization = bytes_per_weight * flops_per_byte / (2 * tokens);
    double left = (1 - hidden) * share_without_copy(&with->copies);
    double gain = dequantization * (share_without_copy(&without->copies) - left);
    return with->copies.type == TD_BF16 && gain >= least_gain;
}

// Optimizer pages came first: what they save is a transfer to the host and back.
static td_status add_dequantized(const td_session *session, const td_plan_needs *needs,
                                 td_memory_plan *plan) {
    td_ahead_use use = session->config->dequantize_ahead;
    if (plan->is_unified)
        return TD_OK;
    TD_TRY(plan_dequantized(session, needs, 0, plan));
    if (use == TD_AHEAD_OFF || plan->copies.n_copied == plan->copies.n_quantized)
        return TD_OK;
    td_memory_plan ahead = *plan;
    TD_TRY(plan_dequantized(session, needs, 1, &ahead));
    plan->ahead_is_given_up = use == TD_AHEAD_ON && !fits(&ahead);
    if (fits(&ahead) && (use == TD_AHEAD_ON || ahead_pays(plan, &ahead)))
        *plan = ahead;
    return TD_OK;
}

// A row per token over PCIe takes far less time than computing anything again: the table of
// embeddings leaves a GPU before the next policy is tried.
static int may_move_embedding(const td_session *session) {
    return !session->context.device->unified && !session->base &&
           !session->model.tie_word_embeddings;
}

static td_status plan_policy(const td_session *session, const td_plan_needs *needs,
                             td_recompute policy, td_memory_plan *plan) {
    plan->host_embedding = 0;
    TD_TRY(plan_with(session, needs, policy, needs->max_tokens, plan));
    if (fits(plan) || !may_move_embedding(session))
        return TD_OK;
    plan->host_embedding = 1;
    return plan_with(session, needs, policy, needs->max_tokens, plan);
}

td_status td_memory_plan_make(const td_session *session, const td_plan_needs *needs,
                              td_memory_plan *out) {
    td_memory_plan plan = {.optimizer_cache_bytes = needs->pager.device_cache_bytes};
    td_recompute wanted = session->config->gradient_checkpointing;
    td_recompute first = wanted == TD_RECOMPUTE_AUTO ? TD_RECOMPUTE_NONE : wanted;
    td_recompute last = wanted == TD_RECOMPUTE_AUTO ? TD_RECOMPUTE_BLOCK : wanted;
    TD_TRY(find_limits(session, needs, plan.limit_bytes));
    for (td_recompute policy = first; policy <= last; policy++) {
        TD_TRY(plan_policy(session, needs, policy, &plan));
        if (fits(&plan)) {
            TD_TRY(enlarge_cache(session, needs, &plan));
            TD_TRY(add_dequantized(session, needs, &plan));
            *out = plan;
            return TD_OK;
        }
    }
    return refuse(session, needs, &plan);
}

static void print_line(const td_memory_plan *plan, const td_plan_line *line) {
    char name[64];
    snprintf(name, sizeof name, "%s", line->name);
    if (line->name == copies_name)
        snprintf(name, sizeof name, "%s copies of %lld of %lld layers",
                 plan->copies.type == TD_BF16 ? "bf16" : "fp32", (long long)plan->copies.n_copied,
                 (long long)plan->copies.n_quantized);
    td_info("  %-36s %10.1f MiB", name, (double)line->bytes / 1048576.0);
}

static void print_pool(const td_memory_plan *plan, td_memory_pool pool) {
    double mib = 1048576.0;
    for (int i = 0; i < plan->n_lines; i++)
        if (plan->lines[i].pool == pool && plan->lines[i].bytes > 0)
            print_line(plan, &plan->lines[i]);
    td_info("  %-36s %10.1f MiB of %.1f",
            plan->is_unified         ? "total"
            : pool == TD_POOL_DEVICE ? "total on the GPU"
                                     : "total on the host",
            (double)plan->total_bytes[pool] / mib, (double)plan->limit_bytes[pool] / mib);
}

void td_memory_plan_print(const td_memory_plan *plan) {
    td_info("memory per rank (recompute %s):", td_recompute_name(plan->recompute));
    print_pool(plan, TD_POOL_DEVICE);
    if (plan->ahead_is_given_up)
        td_info("  no memory is left to dequantize ahead");
    if (!plan->is_unified)
        print_pool(plan, TD_POOL_HOST);
}
