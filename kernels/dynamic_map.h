// The dynamic 8-bit maps of bitsandbytes (Dettmers et al., ICLR 2022, "8-bit optimizers via
// block-wise quantization"): 256 ascending values in [-1, 1] (signed) or [0, 1] (unsigned), dense
// near zero. Pure functions; any thread.
#ifndef TANDEM_KERNELS_DYNAMIC_MAP_H
#define TANDEM_KERNELS_DYNAMIC_MAP_H

#include <stdint.h>

#include "runtime/core/portable.h"

TD_C_BEGIN

// Bit for bit what bitsandbytes' create_dynamic_map() gives on x86-64 with FMA.
void td_dynamic_map_signed(float out[256]);
void td_dynamic_map_unsigned(float out[256]);

// out[i] is the fp32 midpoint of map[i] and map[i + 1]; out[255] is NaN, which no comparison
// passes.
void td_dynamic_map_midpoints(const float map[256], float out[256]);

// Code nearest to x. A tie goes to the even code and NaN to code 0, as in bitsandbytes' dQuantize.
TD_INLINE uint8_t td_dynamic_map_nearest(const float midpoints[256], float x) {
    uint32_t code = 0;
    for (uint32_t step = 128; step > 0; step >>= 1)
        code += x > midpoints[code + step - 1] ? step : 0;
    return (uint8_t)(code + ((code & 1u) != 0 && x == midpoints[code]));
}

TD_C_END

#endif
