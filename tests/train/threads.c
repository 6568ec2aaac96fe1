// Three steps have the same bits with any number of threads, and with AVX2 as with AVX-512.
#include "kernels/cpu/cpu_internal.h"
#include "train/small_run.h"

typedef struct processor_use {
    const char *threads;
    td_cpu_simd_level level;
} processor_use;

// The parameters after the steps of a model that is large enough for all threads to have work.
static float *train(const processor_use *way, const char *dropout, const char *seed, int64_t *n) {
    enum { STEPS = 3 };
    small_run self;
    td_cpu_simd_limit(way->level);
    small_start(&self,
                (const char *const[]){
                    "model_name_or_path=\"" TEST_SOURCE "/launch/quickstart/base\"", way->threads,
                    dropout, seed, "max_length=300", "packing=true", "micro_batch_tokens=300",
                    "gradient_accumulation_steps=2", "learning_rate=1e-3", "warmup_ratio=0", NULL});
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

static int64_t count_other_bits(const processor_use *way, const char *dropout, const char *seed,
                                const float *reference) {
    int64_t n, others = 0;
    float *values = train(way, dropout, seed, &n);
    for (int64_t i = 0; i < n; i++)
        others += memcmp(&values[i], &reference[i], sizeof values[i]) != 0;
    free(values);
    return others;
}

static void check_ways(const char *dropout) {
    static const processor_use ways[] = {{"num_threads=2", TD_CPU_AVX512},
                                         {"num_threads=3", TD_CPU_AVX512},
                                         {"num_threads=1", TD_CPU_AVX2},
                                         {"num_threads=5", TD_CPU_AVX2}};
    processor_use one = {"num_threads=1", TD_CPU_AVX512};
    int64_t n;
    float *reference = train(&one, dropout, "seed=42", &n);
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++)
        CHECK_INT(count_other_bits(&ways[i], dropout, "seed=42", reference), 0);
    CHECK(count_other_bits(&one, dropout, "seed=43", reference) > n / 2);
    free(reference);
}

static void threads_and_vectors_change_no_bit(void) {
    check_ways("lora_dropout=0");
}

static void nor_with_dropout(void) {
    check_ways("lora_dropout=0.1");
}

int main(void) {
    small_begin();
    TEST(threads_and_vectors_change_no_bit);
    TEST(nor_with_dropout);
    return small_finish();
}
