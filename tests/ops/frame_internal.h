// Between the files of the frame.
#ifndef TANDEM_TESTS_OPS_FRAME_INTERNAL_H
#define TANDEM_TESTS_OPS_FRAME_INTERNAL_H

#include <stddef.h>
#include <stdint.h>

#include "ops/case.h"

typedef struct op_run_state {
    char op[32], shape[160];
    uint32_t seed;        // of the case
    uint32_t next_random; // word of the case
    op_buffer *buffers;
    struct op_host_array *arrays;
    void *workspace;
    // Hashes of all outputs in the order of their checks, set by the first variant.
    uint64_t *hashes;
    size_t n_hashes, hash_capacity, next_hash;
    int is_first_variant;
    double best_seconds, spent_seconds, started; // of the timed call
    int calls;
    int cases, checks, failures;
} op_run_state;

// Frees what the case holds; requires its guard bytes to be whole.
void op_buffers_release(op_run *run);

// One check: counts it, and prints where it failed.
int op_check(op_run *run, int ok, const char *format, ...) __attribute__((format(printf, 3, 4)));

// Ends the program: the test itself is broken or memory is short.
void op_abort(op_run *run, const char *what) __attribute__((noreturn));

void *op_need(op_run *run, void *memory);

#endif
