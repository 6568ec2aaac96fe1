#include "runtime/train/parallel_copy.h"

#include <string.h>

// Small enough that a thread that is held up leaves its share to the others.
static const size_t piece_bytes = (size_t)1 << 20;

static void copy_piece(const td_copy_span *span, int64_t index) {
    size_t begin = (size_t)index * piece_bytes, left = span->bytes - begin;
    memcpy((char *)span->to + begin, (const char *)span->from + begin,
           left < piece_bytes ? left : piece_bytes);
}

void td_copy_parallel(const td_copy_span *spans, int64_t count) {
#pragma omp parallel
    for (int64_t s = 0; s < count; s++) {
        const td_copy_span *span = &spans[s];
        int64_t n_pieces = (int64_t)(span->bytes / piece_bytes + (span->bytes % piece_bytes != 0));
#pragma omp for schedule(dynamic) nowait
        for (int64_t i = 0; i < n_pieces; i++)
            copy_piece(span, i);
    }
}
