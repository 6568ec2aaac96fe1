// Three steps have the same bits with any number of threads, and with AVX2 as with AVX-512; with
// products in bf16 also without the instruction for them.
#include "kernels/cpu/cpu_internal.h"
#include "train/small_run.h"

typedef struct processor_use {
    const char *threads;
    td_cpu_simd_level level;
    int without_bf16; // as if the processor had no such instruction
} processor_use;

typedef struct kind_of_run {
    const char *dropout, *precision, *seed;
} kind_of_run;

// The parameters after the steps of a model that is large enough for all threads to have work.
static float *train(const processor_use *way, const kind_of_run *kind, int64_t *n) {
    enum { STEPS = 3 };
    small_run self;
    td_cpu_simd_limit(way->level);
    td_cpu_bf16_allow(!way->without_bf16);
    small_start(&self,
                (const char *const[]){
                    "model_name_or_path=\"" TEST_SOURCE "/launch/quickstart/base\"", way->threads,
                    kind->dropout, kind->precision, kind->seed, "max_length=300", "packing=true",
                    "micro_batch_tokens=300", "gradient_accumulation_steps=2", "learning_rate=1e-3",
                    "warmup_ratio=0", NULL});
    for (int step = 0; step < STEPS; step++) {
        td_step_result result;
        small_require(td_step_run(&self.run.step, step, &result), "step");
        CHECK_INT(result.micro_batches, 2);
    }
    *n = self.session.lora.n_parameters;
    float *values = malloc((size_t)*n * sizeof *values);
    memcpy(values, self.run.parameters.values, (size_t)*n * sizeof *values);
    small_close(&self);
    return values;
}

static int64_t count_other_bits(const processor_use *way, const kind_of_run *kind,
                                const float *reference) {
    int64_t n, others = 0;
    float *values = train(way, kind, &n);
    for (int64_t i = 0; i < n; i++)
        others += memcmp(&values[i], &reference[i], sizeof values[i]) != 0;
    free(values);
    return others;
}

static const processor_use one = {"num_threads=1", TD_CPU_AVX512, 0};

static void check_ways(const kind_of_run *kind, const processor_use *ways, size_t n_ways) {
    kind_of_run reseeded = *kind;
    int64_t n;
    float *reference = train(&one, kind, &n);
    for (size_t i = 0; i < n_ways; i++)
        CHECK_INT(count_other_bits(&ways[i], kind, reference), 0);
    reseeded.seed = "seed=43";
    CHECK(count_other_bits(&one, &reseeded, reference) > n / 2);
    free(reference);
}

static void check_fp32(const char *dropout) {
    static const processor_use ways[] = {{"num_threads=2", TD_CPU_AVX512, 0},
                                         {"num_threads=3", TD_CPU_AVX512, 0},
                                         {"num_threads=1", TD_CPU_AVX2, 0},
                                         {"num_threads=5", TD_CPU_AVX2, 0}};
    check_ways(&(kind_of_run){dropout, "float32_matmul_precision=highest", "seed=42"}, ways,
               sizeof ways / sizeof *ways);
}

static void threads_and_vectors_change_no_bit(void) {
    check_fp32("lora_dropout=0");
}

static void nor_with_dropout(void) {
    check_fp32("lora_dropout=0.1");
}

static void nor_with_products_in_bf16(void) {
    static const processor_use ways[] = {{"num_threads=3", TD_CPU_AVX512, 0},
                                         {"num_threads=2", TD_CPU_AVX512, 1},
                                         {"num_threads=5", TD_CPU_AVX2, 0}};
    check_ways(&(kind_of_run){"lora_dropout=0.1", "float32_matmul_precision=medium", "seed=42"},
               ways, sizeof ways / sizeof *ways);
}

static void which_have_other_bits(void) {
    static const kind_of_run fp32 = {"lora_dropout=0", "float32_matmul_precision=highest",
                                     "seed=42"},
                             bf16 = {"lora_dropout=0", "float32_matmul_precision=medium",
                                     "seed=42"};
    int64_t n;
    float *reference = train(&one, &fp32, &n);
    CHECK(count_other_bits(&one, &bf16, reference) > n / 2);
    free(reference);
}

int main(void) {
    small_begin();
    TEST(threads_and_vectors_change_no_bit);
    TEST(nor_with_dropout);
    TEST(nor_with_products_in_bf16);
    TEST(which_have_other_bits);
    return small_finish();
}
