#include "ops/reference.h"

#include <math.h>

#include "runtime/core/tensor.h"

static void down(const ref_linear *layer, double *xa) {
    for (int64_t t = 0; t < layer->n_tokens; t++)
        for (int64_t r = 0; r < layer->rank; r++) {
            double sum = 0.0;
            for (int64_t i = 0; i < layer->in; i++) {
                int64_t at = t * layer->in + i;
                sum += layer->x[at] * (layer->keep ? layer->keep[at] : 1.0) *
                       layer->a[r * layer->in + i];
            }
            xa[t * layer->rank + r] = sum;
        }
}

void ref_linear_forward(const ref_linear *layer, double *xa, double *y) {
    down(layer, xa);
    for (int64_t t = 0; t < layer->n_tokens; t++)
        for (int64_t o = 0; o < layer->out; o++) {
            double sum = layer->bias ? layer->bias[o] : 0.0, low = 0.0;
            for (int64_t i = 0; i < layer->in; i++)
                sum += layer->x[t * layer->in + i] * layer->weight[o * layer->in + i];
            for (int64_t r = 0; r < layer->rank; r++)
                low += xa[t * layer->rank + r] * layer->b[o * layer->rank + r];
            y[t * layer->out + o] = sum + layer->scaling * low;
        }
}

void ref_rmsnorm(int64_t rows, int64_t cols, const double *x, const double *weight, double eps,
                 double *y) {
    for (int64_t row = 0; row < rows; row++) {
        double sum = 0.0;
        for (int64_t i = 0; i < cols; i++)
            sum += x[row * cols + i] * x[row * cols + i];
        for (int64_t i = 0; i < cols; i++)
            y[row * cols + i] = x[row * cols + i] / sqrt(sum / (double)cols + eps) * weight[i];
    }
}

double ref_silu(double x) {
    return x / (1.0 + exp(-x));
}

double ref_gelu_tanh(double x) {
    const double pi = 3.14159265358979323846;
    return 0.5 * x * (1.0 + tanh(sqrt(2.0 / pi) * (x + 0.044715 * x * x * x)));
}

void ref_rope(int64_t n_tokens, int64_t n_heads, int64_t head_dim, double *x,
              const double *positions, const double *cosine, const double *sine, double sign) {
    int64_t half = head_dim / 2;
    for (int64_t t = 0; t < n_tokens; t++)
        for (int64_t h = 0; h < n_heads; h++)
            for (int64_t i = 0; i < half; i++) {
                double *head = x + (t * n_heads + h) * head_dim;
                double first = head[i], second = head[half + i];
                double c = cosine[(int64_t)positions[t] * half + i];
                double s = sign * sine[(int64_t)positions[t] * half + i];
                head[i] = first * c - second * s;
                head[half + i] = second * c + first * s;
            }
}

float ref_nf4_value(int code) {
    static const float values[16] = {
        -1.0f,
        -0.6961928009986877f,
        -0.5250730514526367f,
        -0.39491748809814453f,
        -0.28444138169288635f,
        -0.18477343022823334f,
        -0.09105003625154495f,
        0.0f,
        0.07958029955625534f,
        0.16093020141124725f,
        0.24611230194568634f,
        0.33791524171829224f,
        0.44070982933044434f,
        0.5626170039176941f,
        0.7229568362236023f,
        1.0f,
    };
    return values[code];
}

float ref_nf4_threshold(int code) {
    static const float thresholds[15] = {
        -0.8480964004993439f,  -0.6106329262256622f,  -0.4599952697753906f,   -0.33967943489551544f,
        -0.23460740596055984f, -0.13791173323988914f, -0.045525018125772476f, 0.03979014977812767f,
        0.1202552504837513f,   0.2035212516784668f,   0.2920137718319893f,    0.3893125355243683f,
        0.5016634166240692f,   0.6427869200706482f,   0.8614784178118011f,
    };
    return thresholds[code];
}

int ref_nf4_code(float x) {
    int code = 0;
    while (code < 15 && ref_nf4_threshold(code) < x)
        code++;
    return code;
}

double ref_nf4_decode(int code, float absmax, int bf16) {
    float value = ref_nf4_value(code) * absmax;
    return bf16 ? td_bf16_to_f32(td_f32_to_bf16(value)) : value;
}

int ref_nearest(const float *map, float x) {
    int code = 0;
    while (code < 255 && (map[code] + map[code + 1]) * 0.5f < x)
        code++;
    return code;
}
