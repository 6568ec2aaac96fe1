// The operation cases on the CPU backend.
//
//     test_ops                    every case in every variant
//     test_ops rope               only that operation
//     test_ops --time [rope]      large shapes, timed, with OMP_NUM_THREADS threads
//     test_ops medium [...]       the same with products in bf16
#include <string.h>

#include "kernels/cpu/cpu_internal.h"
#include "ops/case.h"

static void all_levels_two_threads(void) {
    td_cpu_simd_limit(TD_CPU_AVX512);
    td_ops_cpu_set_threads(2);
}

static void two_threads_avx2(void) {
    td_cpu_simd_limit(TD_CPU_AVX2);
    td_ops_cpu_set_threads(2);
}

static void two_threads_scalar(void) {
    td_cpu_simd_limit(TD_CPU_SCALAR);
    td_ops_cpu_set_threads(2);
}

static void one_thread(void) {
    td_cpu_simd_limit(TD_CPU_AVX512);
    td_ops_cpu_set_threads(1);
}

static void five_threads(void) {
    td_cpu_simd_limit(TD_CPU_AVX512);
    td_ops_cpu_set_threads(5);
}

static void five_threads_without_bf16(void) {
    five_threads();
    td_cpu_bf16_allow(0);
}

static void two_threads_avx2_with_bf16(void) {
    two_threads_avx2();
    td_cpu_bf16_allow(1);
}

#define EVERY "!"

// Where no product sums are reordered and no multiply-add is fused, vector width changes nothing.
#define ANY_LEVEL                                                                                  \
    "nf4_quantize absmax_quantize dequantize embedding rmsnorm_forward rmsnorm_backward rope "     \
    "glu_forward glu_backward add gather_rows scatter_rows fixed_add fixed_to_f32 f32_add "        \
    "sum_squares word_sum adamw adamw_8bit"

// Sixteen lanes and fused multiply-adds on AVX2 as on AVX-512 (lanes.h).
#define ANY_FUSED_LEVEL                                                                            \
    ANY_LEVEL " linear_forward linear_backward attention_forward attention_backward cross_entropy"

static const op_variant variants[] = {
    {"two threads", all_levels_two_threads, 0, EVERY},
    {"again, at other addresses", all_levels_two_threads, 1, EVERY},
    {"one thread", one_thread, 0, EVERY},
    {"five threads", five_threads, 0, EVERY},
    {"up to AVX2", two_threads_avx2, 3, ANY_FUSED_LEVEL},
    {"scalar", two_threads_scalar, 0, ANY_LEVEL},
};

// What one instruction multiplies is emulated without it.
static const op_variant medium_variants[] = {
    {"two threads", all_levels_two_threads, 0, EVERY},
    {"five threads without bf16, at other addresses", five_threads_without_bf16, 1, EVERY},
    {"up to AVX2", two_threads_avx2_with_bf16, 3, EVERY},
    {"scalar", two_threads_scalar, 0, ANY_LEVEL},
};

int main(int argc, char **argv) {
    int is_medium = argc > 1 && strcmp(argv[1], "medium") == 0;
    op_backend backend = {.device = td_device_cpu(),
                          .ops = &td_ops_cpu,
                          .variants = variants,
                          .n_variants = sizeof variants / sizeof *variants};
    if (is_medium) {
        backend.ops = &td_ops_cpu_medium;
        backend.variants = medium_variants;
        backend.n_variants = sizeof medium_variants / sizeof *medium_variants;
    }
    return op_main(argc - is_medium, argv + is_medium, &backend);
}
