#include "runtime/core/tensor.h"

#include <stdint.h>

#include "scratch.h"

static uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// From the definition: sign, exponent field, fraction field.
static double f16_by_definition(uint16_t bits) {
    int exponent = (bits >> 10) & 31, fraction = bits & 1023;
    double size = exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
    return bits & 0x8000 ? -size : size;
}

static void every_f16_converts_exactly(void) {
    for (uint32_t bits = 0; bits < 0x10000; bits++) {
        float value = td_f16_to_f32((uint16_t)bits);
        if (((bits >> 10) & 31) < 31) {
            CHECK(value == f16_by_definition((uint16_t)bits));
            CHECK_INT(bits_of(value) >> 31, bits >> 15);
        } else if (bits & 1023) {
            CHECK(isnan(value));
        } else {
            CHECK(isinf(value) && (value < 0) == (bits >> 15));
        }
    }
}

static void every_bf16_survives_the_round_trip(void) {
    for (uint32_t bits = 0; bits < 0x10000; bits++) {
        float value = td_bf16_to_f32((uint16_t)bits);
        if (isnan(value))
            CHECK(isnan(td_bf16_to_f32(td_f32_to_bf16(value))));
        else
            CHECK_INT(td_f32_to_bf16(value), bits);
    }
}

static void bf16_rounds_to_nearest_even(void) {
    CHECK_INT(td_f32_to_bf16(float_of(0x3f808000)), 0x3f80); // tie, even stays
    CHECK_INT(td_f32_to_bf16(float_of(0x3f818000)), 0x3f82); // tie, odd goes up
    CHECK_INT(td_f32_to_bf16(float_of(0x3f808001)), 0x3f81);
    CHECK_INT(td_f32_to_bf16(float_of(0x3f817fff)), 0x3f81);
    CHECK_INT(td_f32_to_bf16(float_of(0x7f7fffff)), 0x7f80); // beyond the largest: infinity
    CHECK_INT(td_f32_to_bf16(float_of(0xff800000)), 0xff80);
    CHECK(isnan(td_bf16_to_f32(td_f32_to_bf16(float_of(0x7f800001)))));
    CHECK(isnan(td_bf16_to_f32(td_f32_to_bf16(float_of(0x7fffffff)))));
}

static void convert_reads_unaligned_sources(void) {
    unsigned char source[13];
    float out[3], values[3] = {1.5f, -2.25f, 3e-30f};
    memcpy(source + 1, values, sizeof values);
    td_convert_to_f32(source + 1, TD_F32, 3, out);
    CHECK(memcmp(out, values, sizeof out) == 0);
    uint16_t half[3] = {0x3e00, 0xc080, 0x0001};
    memcpy(source + 1, half, sizeof half);
    td_convert_to_f32(source + 1, TD_F16, 3, out);
    CHECK(out[0] == 1.5f && out[1] == -2.25f && out[2] == 0x1p-24f);
    uint16_t brain[3] = {0x3fc0, 0xc010, 0x7f80};
    memcpy(source + 1, brain, sizeof brain);
    td_convert_to_f32(source + 1, TD_BF16, 3, out);
    CHECK(out[0] == 1.5f && out[1] == -2.25f && isinf(out[2]));
}

static void elements_are_counted_with_care(void) {
    int64_t n = -1;
    td_tensor tensor = {.n_dims = 3, .shape = {2, 3, 4}};
    CHECK_INT(td_tensor_elements(&tensor, &n), TD_OK);
    CHECK_INT(n, 24);
    tensor.n_dims = 0;
    CHECK_INT(td_tensor_elements(&tensor, &n), TD_OK);
    CHECK_INT(n, 1);
    n = -1;
    tensor = (td_tensor){.n_dims = 2, .shape = {-1, 3}};
    CHECK_INT(td_tensor_elements(&tensor, &n), TD_ERR_DATA);
    CHECK_MESSAGE("negative");
    tensor = (td_tensor){.n_dims = 3, .shape = {INT64_C(1) << 32, INT64_C(1) << 31, 2}};
    CHECK_INT(td_tensor_elements(&tensor, &n), TD_ERR_DATA);
    CHECK_MESSAGE("64 bits");
    tensor.n_dims = TD_MAX_DIMS + 1;
    CHECK_INT(td_tensor_elements(&tensor, &n), TD_ERR_DATA);
    CHECK_MESSAGE("dimensions");
    CHECK_INT(n, -1);
}

static void dtypes_have_sizes_and_names(void) {
    CHECK_INT(td_dtype_bytes(TD_F32), 4);
    CHECK_INT(td_dtype_bytes(TD_BF16), 2);
    CHECK_INT(td_dtype_bytes(TD_I64), 8);
    CHECK_STRING(td_dtype_name(TD_BF16), "BF16");
    CHECK_STRING(td_dtype_name(TD_U8), "U8");
    CHECK_INT(td_dtype_bytes(TD_DTYPE_COUNT), 0);
    CHECK(td_mul_bytes(SIZE_MAX / 2, 3) == SIZE_MAX);
    CHECK_INT(td_mul_bytes(6, 7), 42);
}

int main(void) {
    TEST(every_f16_converts_exactly);
    TEST(every_bf16_survives_the_round_trip);
    TEST(bf16_rounds_to_nearest_even);
    TEST(convert_reads_unaligned_sources);
    TEST(elements_are_counted_with_care);
    TEST(dtypes_have_sizes_and_names);
    return test_report();
}
