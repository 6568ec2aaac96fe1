// Sums over the ranks that come out the same on any number of ranks.
//
// Each slot of a table is filled by exactly one rank and zero elsewhere; the tables are added as
// integers, so every rank ends up with every slot's exact bits and adds them in slot order.
#ifndef TANDEM_TRAIN_EXACT_SUM_H
#define TANDEM_TRAIN_EXACT_SUM_H

#include <string.h>

#include "comm/comm.h"

static inline int64_t td_bits_of_double(double value) {
    int64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline double td_double_of_bits(int64_t bits) {
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// Sum in slot order of a table of doubles held as bits.
static inline double td_sum_slots(const int64_t *slots, int64_t count) {
    double sum = 0;
    for (int64_t i = 0; i < count; i++)
        sum += td_double_of_bits(slots[i]);
    return sum;
}

#endif
