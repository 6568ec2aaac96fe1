// Copies that the caller waits for.
#ifndef TANDEM_TRAIN_PARALLEL_COPY_H
#define TANDEM_TRAIN_PARALLEL_COPY_H

#include <stddef.h>
#include <stdint.h>

typedef struct td_copy_span {
    void *to;
    const void *from; // apart from `to`
    size_t bytes;
} td_copy_span;

// Copies all spans by all threads of the operations, which have nothing to do between two steps:
// one thread does not use all of the memory's bandwidth. They meet once, at the end.
void td_copy_parallel(const td_copy_span *spans, int64_t count);

#endif
