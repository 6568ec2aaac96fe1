// A table of operations in front of another one that notes how long each call takes, for the
// breakdown of a step. Each call is between two timed events of its stream, so that nothing waits
// for the device before td_ops_timed_collect(). A context that is to be watched has this table as
// its `ops`; nobody else pays for it.
//
// One thread at a time, one stream.
#ifndef TANDEM_KERNELS_OPS_TIMED_H
#define TANDEM_KERNELS_OPS_TIMED_H

#include "kernels/op_list.h"

typedef struct td_ops_timed td_ops_timed;

// Of a step. What is computed again on the way back is apart from the first time.
typedef enum td_timed_phase {
    TD_TIMED_FORWARD,
    TD_TIMED_RECOMPUTE,
    TD_TIMED_BACKWARD,
    TD_TIMED_PHASES,
} td_timed_phase;

typedef enum td_timed_part {
    // What a block does, up to TD_TIMED_ADD: this can be computed again.
    TD_TIMED_LINEAR, // with LoRA
    TD_TIMED_ATTENTION,
    TD_TIMED_NORMS,
    TD_TIMED_ROPE,
    TD_TIMED_GLU,
    TD_TIMED_ADD,
    TD_TIMED_EMBEDDING,
    TD_TIMED_HEAD, // product with the vocabulary
    TD_TIMED_LOSS, // cross entropy, and the rows that it is about
    TD_TIMED_ACCUMULATE,
    TD_TIMED_CHECKS,
    TD_TIMED_NORM, // of the gradient
    TD_TIMED_UPDATE,
    TD_TIMED_OTHER,
    TD_TIMED_PARTS,
} td_timed_part;

const char *td_timed_part_name(td_timed_part part);

typedef struct td_timed_sum {
    int64_t calls;
    double seconds;
    double flops, bytes; // td_op_work_of()
} td_timed_sum;

// Calls of linear layers with the same extents.
typedef struct td_timed_linear {
    td_op op;
    td_op_args args;      // of the last call; its buffers live as long as the caller's
    td_lora_weights lora; // what args points to, when has_lora
    int has_lora;
    td_timed_sum sum;
} td_timed_linear;

enum { TD_TIMED_MAX_LINEARS = 64 };

typedef struct td_timed_sums {
    td_timed_sum part[TD_TIMED_PARTS][TD_TIMED_PHASES];
    td_timed_linear linears[TD_TIMED_MAX_LINEARS]; // of TD_TIMED_LINEAR, all phases
    int n_linears;
} td_timed_sums;

// context->ops is the table to stand before; the context is copied. Not watching at first.
td_status td_ops_timed_create(const td_op_context *context, td_ops_timed **out);
void td_ops_timed_destroy(td_ops_timed *timed);
// For a context's `ops`; valid until destroyed.
const td_ops *td_ops_timed_table(const td_ops_timed *timed);
// While not watching, calls go straight through.
void td_ops_timed_watch(td_ops_timed *timed, int on);
// Drops what was collected of linear layers, which is kept apart. Events are made when they are
// first needed: a step that is watched and forgotten comes before those that count.
void td_ops_timed_forget(td_ops_timed *timed);
// Waits for the stream and adds what was watched since the last time to *sums.
td_status td_ops_timed_collect(td_ops_timed *timed, td_timed_sums *sums);

#endif
