#include <math.h>
#include <string.h>

#include "runtime/train/planner_internal.h"

enum { NUMBER_CHARS = 32 };

static const double million = 1e6, mib = 1048576.0;

// "167,772,160"
static const char *grouped(int64_t value, char out[NUMBER_CHARS]) {
    char digits[NUMBER_CHARS];
    int count = snprintf(digits, sizeof digits, "%lld", (long long)value), used = 0;
    for (int i = 0; i < count; i++) {
        if (i > 0 && (count - i) % 3 == 0)
            out[used++] = ',';
        out[used++] = digits[i];
    }
    out[used] = '\0';
    return out;
}

static void print_kind(FILE *out, const char *name, int64_t parameters, const char *remark) {
    fprintf(out, "  %-20s %10.2f%s\n", name, (double)parameters / million, remark);
}

static void print_parameters(const td_planner *planner, FILE *out) {
    const td_base_counts *base = &planner->base;
    int is_tied = planner->options.model->tie_word_embeddings;
    fprintf(out, "\nparameters             millions\n");
    print_kind(out, "embed_tokens", base->embedding, "");
    for (int i = 0; i < TD_PROJ_COUNT; i++)
        if (td_projection_exists(planner->options.model, (td_projection)i))
            print_kind(out, strchr(td_projection_name((td_projection)i), '.') + 1,
                       base->projections[i], "");
    if (base->biases > 0)
        print_kind(out, "biases", base->biases, "");
    print_kind(out, "norms", base->norms, "");
    print_kind(out, "lm_head", is_tied ? base->embedding : base->head,
               is_tied ? "  (tied, counted once)" : "");
    print_kind(out, "total", base->total, "");
    print_kind(out, "without embeddings", planner->without_embeddings, "");
}

static void print_adapter(const td_planner *planner, FILE *out) {
    const td_lora *lora = &planner->lora;
    char trainable[NUMBER_CHARS], all[NUMBER_CHARS];
    int64_t total = planner->base.total + lora->n_parameters;
    fprintf(out, "\nLoRA, r = %lld, %lld modules: %s trainable of %s (%.4f %%)\n",
            (long long)planner->options.lora->rank, (long long)lora->n_modules,
            grouped(lora->n_parameters, trainable), grouped(total, all),
            100.0 * (double)lora->n_parameters / (double)total);
}

static void print_capacities(const td_planner *planner, FILE *out) {
    const td_planner_steps *steps = &planner->steps;
    if (steps->tokens_seen <= 0) {
        fprintf(out, "\nrank   params M\n");
        for (int i = 0; i < TD_PLANNER_N_RANKS; i++)
            fprintf(out, "%4lld %10.1f\n", (long long)planner->capacities[i].rank,
                    (double)planner->capacities[i].n_parameters / million);
        fprintf(out, "(what they can hold of the data: --tokens or --data)\n");
        return;
    }
    fprintf(out,
            "\ninformation capacity: %.2f M tokens x %g epochs, %g bits/token, %g bits/parameter\n"
            "rank   params M  tokens/param  capacity ratio  memorization  generalization  status\n",
            (double)steps->tokens / million, steps->epochs, planner->options.bits_per_token,
            TD_PLANNER_BITS_PER_PARAMETER);
    for (int i = 0; i < TD_PLANNER_N_RANKS; i++) {
        const td_planner_capacity *row = &planner->capacities[i];
        fprintf(out, "%4lld %10.1f %13.2f %15.2f %13.3f %15.3f  %s%s\n", (long long)row->rank,
                (double)row->n_parameters / million, row->tokens_per_parameter, row->ratio,
                row->memorization, row->generalization, row->status,
                i == planner->recommended ? "  <- recommended" : "");
    }
    fprintf(out, "recommended rank: %lld (ratio nearest %g)\n",
            (long long)planner->capacities[planner->recommended].rank, TD_PLANNER_BEST_RATIO);
}

// 1 when an earlier plan has this part.
static int was_printed(const td_planner_memory *memory, int plan, const td_plan_line *line) {
    for (int i = 0; i < plan; i++)
        if (td_planner_line_bytes(&memory->plans[i], line->name, line->pool) > 0)
            return 1;
    return 0;
}

static void print_part(const td_planner_memory *memory, const td_plan_line *line, FILE *out) {
    fprintf(out, "  %-36s", line->name);
    for (int i = 0; i < memory->n_plans; i++)
        fprintf(out, " %10.1f",
                (double)td_planner_line_bytes(&memory->plans[i], line->name, line->pool) / mib);
    fprintf(out, "\n");
}

static void print_pool(const td_planner_memory *memory, td_memory_pool pool, const char *total,
                       FILE *out) {
    for (int i = 0; i < memory->n_plans; i++)
        for (int j = 0; j < memory->plans[i].n_lines; j++) {
            const td_plan_line *line = &memory->plans[i].lines[j];
            if (line->pool == pool && line->bytes > 0 && !was_printed(memory, i, line))
                print_part(memory, line, out);
        }
    fprintf(out, "  %-36s", total);
    for (int i = 0; i < memory->n_plans; i++)
        fprintf(out, " %10.1f", (double)memory->plans[i].total_bytes[pool] / mib);
    fprintf(out, "\n");
}

static void print_verdict(const td_planner_memory *memory, FILE *out) {
    double limit = (double)memory->limit_bytes / mib;
    if (memory->limit_bytes == 0)
        return;
    if (memory->chosen < 0) {
        fprintf(out, "  does not fit into %.1f MiB\n", limit);
        return;
    }
    const td_memory_plan *plan = &memory->plans[memory->chosen];
    fprintf(out, "  fits into %.1f MiB with recompute %s and leaves %.1f MiB\n", limit,
            td_recompute_name(plan->recompute),
            limit - (double)plan->total_bytes[TD_POOL_DEVICE] / mib);
}

static void print_memory(const td_planner *planner, FILE *out) {
    const td_planner_memory *memory = &planner->memory;
    fprintf(out, "\nmemory per rank, %s, %d rank%s, micro-batches of %lld tokens\n",
            memory->is_gpu ? "GPU" : "CPU", planner->options.n_ranks,
            planner->options.n_ranks == 1 ? "" : "s", (long long)planner->steps.micro_batch_tokens);
    fprintf(out, "  %-36s", "MiB, with recompute");
    for (int i = 0; i < memory->n_plans; i++)
        fprintf(out, " %10s", td_recompute_name(memory->plans[i].recompute));
    fprintf(out, "\n");
    print_pool(memory, TD_POOL_DEVICE, memory->is_gpu ? "total on the GPU" : "total", out);
    if (memory->is_gpu)
        print_pool(memory, TD_POOL_HOST, "total on the host", out);
    print_verdict(memory, out);
    if (memory->is_gpu && !memory->has_workspace)
        fprintf(out, "  left out: the workspace of the operations, which only a machine with a GPU "
                     "can tell\n");
    if (memory->is_gpu)
        fprintf(out, "  left out: what the driver, NCCL and MPI take for themselves\n");
    if (memory->is_nf4)
        fprintf(out, "  NF4 block scales: %.3f bits per parameter (%.3f with fp32 scales)\n",
                memory->scale_bits, memory->plain_scale_bits);
}

static void print_duration(double seconds, FILE *out) {
    if (seconds < 120)
        fprintf(out, "time:            %.1f s", seconds);
    else if (seconds < 7200)
        fprintf(out, "time:            %.1f min", seconds / 60);
    else
        fprintf(out, "time:            %.1f h", seconds / 3600);
}

static void print_steps(const td_planner *planner, FILE *out) {
    const td_planner_steps *steps = &planner->steps;
    const td_planner_options *options = &planner->options;
    int64_t accumulation = options->config->gradient_accumulation_steps;
    char number[NUMBER_CHARS];
    fprintf(out, "\n");
    if (steps->tokens > 0)
        fprintf(out, "data:            %s tokens an epoch", grouped(steps->tokens, number));
    if (steps->tokens > 0 && steps->rows > 0)
        fprintf(out, " in %s rows", grouped(steps->rows, number));
    fprintf(out, "%s", steps->tokens > 0 ? "\n" : "");
    if (steps->steps_per_epoch > 0)
        fprintf(out,
                "steps:           %lld, %lld an epoch, of %lld micro-batches with up to %lld "
                "tokens%s\n",
                (long long)steps->steps, (long long)steps->steps_per_epoch, (long long)accumulation,
                (long long)steps->micro_batch_tokens,
                steps->is_exact || !options->config->packing ? "" : " (taken to be full)");
    else if (steps->steps > 0)
        fprintf(out, "steps:           %lld\n", (long long)steps->steps);
    else
        fprintf(out, "steps:           not known without %s\n",
                options->config->packing ? "--tokens or --data" : "--rows or --data");
    if (steps->tokens_seen > 0)
        fprintf(out, "tokens:          %s in %g epochs\n",
                grouped((int64_t)steps->tokens_seen, number), steps->epochs);
    if (!isnan(steps->seconds)) {
        print_duration(steps->seconds, out);
        fprintf(out, " at %g tokens/s\n", options->tokens_per_second);
    }
    if (!isnan(steps->cost))
        fprintf(out, "cost:            %.2f = %d rank%s x %.3f h x %g\n", steps->cost,
                options->n_ranks, options->n_ranks == 1 ? "" : "s", steps->seconds / 3600,
                options->price_per_hour);
    if (accumulation < options->n_ranks)
        fprintf(out,
                "note:            %lld of %d ranks have work: gradient_accumulation_steps counts "
                "the micro-batches of all\n",
                (long long)accumulation, options->n_ranks);
}

void td_planner_print(const td_planner *planner, const char *name, FILE *out) {
    const td_model_config *model = planner->options.model;
    fprintf(out, "%s: %s, %lld layers, hidden %lld, vocabulary %lld\n", name, model->family->name,
            (long long)model->n_layers, (long long)model->hidden, (long long)model->vocabulary);
    print_parameters(planner, out);
    print_adapter(planner, out);
    print_capacities(planner, out);
    print_memory(planner, out);
    print_steps(planner, out);
}
