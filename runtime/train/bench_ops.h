// Timing every operation at the shapes that a model's training uses, each verified first against a
// plain computation in double on the host.
#ifndef TANDEM_TRAIN_BENCH_OPS_H
#define TANDEM_TRAIN_BENCH_OPS_H

#include "comm/comm.h"
#include "model/model_config.h"
#include "runtime/core/config.h"
#include "runtime/train/bench_ceilings.h"

enum { TD_BENCH_OPS_MAX = 64 };

typedef struct td_bench_ops_options {
    int64_t tokens, seq_tokens; // of a micro-batch; of its sequences, the last may be shorter
    int64_t rank;               // of LoRA
    double dropout;
    int64_t head_tokens;   // of a chunk of logits
    int64_t page_elements; // of the optimizer
    int nested;            // absmax of weights is quantized too
    double budget_seconds; // of timing one operation, at about
    const char *only;      // a group of operations (TD_BENCH_OPS_GROUPS); NULL: all of them
} td_bench_ops_options;

// Names of the groups, for people.
#define TD_BENCH_OPS_GROUPS "linear, weights, rows, attention, sums"

typedef struct td_bench_op_time {
    char name[64]; // "linear_forward q_proj (4096, 4096)"
    td_op op;
    td_op_work work;
    td_bench_spread seconds;
    int64_t n_samples;
    double *samples; // (n_samples) seconds
} td_bench_op_time;

typedef struct td_bench_ops_result {
    td_bench_op_time times[TD_BENCH_OPS_MAX];
    int count;
    td_bench_ceilings ceilings;
    cJSON *record; // of td_bench_ops()
} td_bench_ops_result;

// Local. context without a workspace. TD_ERR_NUMERIC names the first operation whose results are
// wrong; nothing wrong is timed. The result is to be finished in any case.
td_status td_bench_ops_run(const td_op_context *context, const td_model_config *model,
                           const td_bench_ops_options *options, td_bench_ops_result *out);
void td_bench_ops_fini(td_bench_ops_result *result);

// Collective: every rank does the same at the same time. config->model_name_or_path names a folder
// with a config.json, and config the rank, the page and the rest. only: a group, or NULL for all.
td_status td_bench_ops(const td_config *config, td_comm *comm, int64_t tokens, int64_t seq_tokens,
                       const char *only, const char *command, td_bench_ops_result *out);

void td_bench_ops_print(const td_bench_ops_result *result);

#endif
