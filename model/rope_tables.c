#include <math.h>

#include "model/model_config.h"

// All in fp32 and in the order of operations of transformers' modeling_rope_utils.py, so that the
// frequencies are the same numbers (apart from the last bit of powf, where PyTorch's own differs
// from the C library's now and then).
static float llama3_frequency(const td_rope_config *rope, float frequency) {
    float old = (float)rope->original_max_positions, factor = (float)rope->factor;
    float low = (float)rope->low_freq_factor;
    float low_wavelength = (float)((double)rope->original_max_positions / rope->low_freq_factor);
    float high_wavelength = (float)((double)rope->original_max_positions / rope->high_freq_factor);
    float wavelength = (float)(2.0 * M_PI) / frequency;
    if (wavelength > low_wavelength)
        return frequency / factor;
    if (wavelength < high_wavelength)
        return frequency;
    float range = (float)(rope->high_freq_factor - rope->low_freq_factor);
    float smooth = (old / wavelength - low) / range;
    return (1.0f - smooth) * frequency / factor + smooth * frequency;
}

static float frequency_of(const td_rope_config *rope, int64_t rotary_dim, int64_t pair,
                          int is_long) {
    float exponent = (float)(2 * pair) / (float)rotary_dim;
    float period = powf((float)rope->theta, exponent);
    switch (rope->kind) {
    case TD_ROPE_LINEAR:
        return 1.0f / period / (float)rope->factor;
    case TD_ROPE_LLAMA3:
        return llama3_frequency(rope, 1.0f / period);
    case TD_ROPE_LONG:
        return 1.0f / ((is_long ? rope->long_factor : rope->short_factor)[pair] * period);
    default:
        return 1.0f / period;
    }
}

void td_rope_fill_tables(const td_rope_config *rope, int64_t rotary_dim, int64_t n_positions,
                         float *cos, float *sin) {
    int64_t half = rotary_dim / 2;
    int is_long = n_positions > rope->original_max_positions;
    float scale = rope->kind == TD_ROPE_LONG ? (float)rope->attention_factor : 1.0f;
    for (int64_t pair = 0; pair < half; pair++) {
        float frequency = frequency_of(rope, rotary_dim, pair, is_long);
        for (int64_t position = 0; position < n_positions; position++) {
            float angle = (float)position * frequency;
            cos[position * half + pair] = scale * cosf(angle);
            sin[position * half + pair] = scale * sinf(angle);
        }
    }
}
