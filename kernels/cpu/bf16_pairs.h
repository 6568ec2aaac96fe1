// Operands of products in bf16: a word of 32 bits, kept where fp32 numbers are, holds two
// neighbours of a sum, the first in its low half. Rounded to nearest even; numbers below 2^-126
// become zero, as in VCVTNE2PS2BF16. The same bits at every level of vector instructions. Not for
// other folders.
#ifndef TANDEM_KERNELS_CPU_BF16_PAIRS_H
#define TANDEM_KERNELS_CPU_BF16_PAIRS_H

#include <immintrin.h>

#include "kernels/cpu/cpu_internal.h"

// Words of n elements.
static inline int64_t td_bf16_words(int64_t n) {
    return (n + 1) / 2;
}

// out[i] = (in[2 i], in[2 i + 1]), past n a zero.
void td_bf16_pair_up(const float *in, int64_t n, float *out);

// out[i] = (even[i], odd[i]) for i < n.
void td_bf16_interleave(const float *even, const float *odd, int64_t n, float *out);

// The lanes of a word's halves: lane 2 i of the result is lane i of the low half of what
// _mm512_cvtne2ps_pbh() gives, lane 2 i + 1 that of the high half.
TD_TARGET_BF16 static inline __m512i td_bf16_interleave_bf16(__m512 even, __m512 odd) {
    const __m512i order =
        _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                         21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(odd, even));
}

// Denormal numbers count as zero between the two, on the calling thread, as VDPBF16PS takes them.
static inline unsigned td_bf16_enter(void) {
    unsigned before = _mm_getcsr();
    _mm_setcsr(before | 0x8040);
    return before;
}

static inline void td_bf16_leave(unsigned before) {
    _mm_setcsr(before);
}

#endif
