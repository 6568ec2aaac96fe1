// Tables of the rotary embedding against the formulas in double (CONTRACT.md, "Model").
#include "model/model_config.h"
#include "test.h"

enum { POSITIONS = 200 };

// The wavelengths of 32 pairs lie on both sides of the bounds and between them.
static double scaled(const td_rope_config *rope, double f) {
    double length = 2 * M_PI / f, old = (double)rope->original_max_positions;
    if (rope->kind == TD_ROPE_LINEAR)
        return f / rope->factor;
    if (rope->kind == TD_ROPE_DEFAULT || length < old / rope->high_freq_factor)
        return f;
    if (length > old / rope->low_freq_factor)
        return f / rope->factor;
    double s =
        (old / length - rope->low_freq_factor) / (rope->high_freq_factor - rope->low_freq_factor);
    return (1 - s) * f / rope->factor + s * f;
}

static void check_tables(td_rope_config rope, int64_t head_dim) {
    int64_t half = head_dim / 2;
    float *cosines = malloc((size_t)(POSITIONS * half) * sizeof *cosines);
    float *sines = malloc((size_t)(POSITIONS * half) * sizeof *sines);
    td_rope_fill_tables(&rope, head_dim, POSITIONS, cosines, sines);
    double worst = 0;
    for (int64_t position = 0; position < POSITIONS; position++)
        for (int64_t pair = 0; pair < half; pair++) {
            double f = scaled(&rope, pow(rope.theta, -2.0 * (double)pair / (double)head_dim));
            double angle = (double)position * f;
            double a = fabs(cosines[position * half + pair] - cos(angle));
            double b = fabs(sines[position * half + pair] - sin(angle));
            worst = fmax(worst, fmax(a, b) / fmax(1.0, angle));
        }
    // The angle is rounded three or four times to 24 bits.
    CHECK_NEAR(worst, 0, 4e-7);
    free(cosines);
    free(sines);
}

static void default_tables(void) {
    check_tables((td_rope_config){.theta = 10000.0, .factor = 1}, 64);
    check_tables((td_rope_config){.theta = 5e6, .factor = 1}, 128);
}

static void linear_tables(void) {
    check_tables((td_rope_config){.kind = TD_ROPE_LINEAR, .theta = 10000.0, .factor = 3}, 64);
}

static void llama3_tables(void) {
    td_rope_config rope = {.kind = TD_ROPE_LLAMA3,
                           .theta = 500000.0,
                           .factor = 8,
                           .low_freq_factor = 1,
                           .high_freq_factor = 4,
                           .original_max_positions = 8192};
    check_tables(rope, 128);
    rope.original_max_positions = 64;
    check_tables(rope, 64);
}

// Either set of factors, by the length of the run; cos and sin scaled. A part of a head.
static void check_long(int64_t original, int is_long) {
    enum { DIM = 12 };
    td_rope_config rope = {.kind = TD_ROPE_LONG,
                           .theta = 10000.0,
                           .original_max_positions = original,
                           .attention_factor = 1.19};
    float cosines[POSITIONS * DIM / 2], sines[POSITIONS * DIM / 2];
    double worst = 0;
    for (int i = 0; i < DIM / 2; i++) {
        rope.short_factor[i] = 1.0f + 0.25f * (float)i;
        rope.long_factor[i] = 2.0f + 3.5f * (float)i;
    }
    td_rope_fill_tables(&rope, DIM, POSITIONS, cosines, sines);
    for (int position = 0; position < POSITIONS; position++)
        for (int pair = 0; pair < DIM / 2; pair++) {
            double factor = is_long ? rope.long_factor[pair] : rope.short_factor[pair];
            double angle = position * pow(10000.0, -2.0 * pair / DIM) / factor;
            int at = position * DIM / 2 + pair;
            double a = fabs(cosines[at] - 1.19 * cos(angle));
            double b = fabs(sines[at] - 1.19 * sin(angle));
            worst = fmax(worst, fmax(a, b) / fmax(1.0, angle));
        }
    CHECK_NEAR(worst, 0, 6e-7);
}

static void long_tables(void) {
    check_long(POSITIONS, 0);
    check_long(POSITIONS - 1, 1);
}

int main(void) {
    TEST(default_tables);
    TEST(linear_tables);
    TEST(llama3_tables);
    TEST(long_tables);
    return test_report();
}
