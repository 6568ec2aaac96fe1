#include "kernels/dynamic_map.h"

#include <math.h>
#include <stdlib.h>

enum { MAP_SIZE = 256, EXPONENTS = 7 };

// Point i of torch.linspace(0.1, 1, n) in fp32: counted from the nearer end, with one rounding per
// point, as PyTorch's vectorized build computes it.
static float edge(int i, int n) {
    float step = (1.0f - 0.1f) / (float)(n - 1);
    return i < n / 2 ? fmaf(step, (float)i, 0.1f) : fmaf(-step, (float)(n - 1 - i), 1.0f);
}

static int ascending(const void *left, const void *right) {
    float a = *(const float *)left, b = *(const float *)right;
    return (a > b) - (a < b);
}

// For each power of ten the midpoints of `fractions << exponent` equal parts of [0.1, 1], with both
// signs when asked.
static void fill(int fractions, int both_signs, float out[MAP_SIZE]) {
    static const float powers[EXPONENTS] = {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1.0f};
    int n = 0;
    for (int exponent = 0; exponent < EXPONENTS; exponent++) {
        int parts = fractions << exponent;
        for (int i = 0; i < parts; i++) {
            float value = powers[exponent] * ((edge(i, parts + 1) + edge(i + 1, parts + 1)) / 2.0f);
            out[n++] = value;
            if (both_signs)
                out[n++] = -value;
        }
    }
    out[n++] = 0.0f;
    out[n] = 1.0f;
    qsort(out, MAP_SIZE, sizeof(float), ascending);
}

void td_dynamic_map_signed(float out[MAP_SIZE]) {
    fill(1, 1, out);
}

void td_dynamic_map_unsigned(float out[MAP_SIZE]) {
    fill(2, 0, out);
}

void td_dynamic_map_midpoints(const float map[MAP_SIZE], float out[MAP_SIZE]) {
    for (int i = 0; i + 1 < MAP_SIZE; i++)
        out[i] = (map[i] + map[i + 1]) * 0.5f;
    out[MAP_SIZE - 1] = NAN;
}
