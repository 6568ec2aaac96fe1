// Flops of a step against counts made by hand.
#include "test.h"

#include "runtime/train/bench_flops.h"

static td_bench_flops flops_of(const char *shape, const td_bench_shape *step) {
    static char *every[] = {"q_proj",    "k_proj",  "v_proj",   "o_proj",
                            "gate_proj", "up_proj", "down_proj"};
    const td_string_list targets = {every, 7};
    td_model_config model;
    td_lora lora;
    td_lora_options options = {.rank = 16, .alpha = 32, .target_modules = &targets};
    char folder[256];
    snprintf(folder, sizeof folder, "%s/configs/shapes/%s", TEST_SOURCE, shape);
    REQUIRE(td_model_config_read(folder, &model) == TD_OK);
    REQUIRE(td_lora_init(&lora, &model, &options) == TD_OK);
    td_bench_flops flops = td_bench_flops_of(&model, &lora, step);
    td_lora_fini(&lora);
    return flops;
}

// Llama-3.1-8B: 4096 wide, 14336 in the MLP, 8 of 32 heads for keys, 32 layers, 128256 tokens.
static void llama_8b_by_hand(void) {
    td_bench_shape step = {.seq_tokens = 2048,
                           .sequences = 2,
                           .micro_batches = 2,
                           .recompute = TD_RECOMPUTE_NONE,
                           .quantized = 1};
    double weights = 32.0 * (2 * 4096.0 * 4096 + 2 * 4096.0 * 1024 + 3 * 4096.0 * 14336);
    double adapters = 32.0 * 16 * (2 * 8192 + 2 * 5120 + 3 * 18432);
    double tokens = 2 * 2048, pairs = 2 * 2048.0 * 2049 / 2 * 32 * 32 * 128;
    td_bench_flops flops = flops_of("llama-3.1-8b", &step);
    CHECK_NEAR(flops.base, 4 * tokens * weights, 1);
    CHECK_NEAR(flops.lora, 6 * tokens * adapters, 1);
    CHECK_NEAR(flops.attention, 14 * pairs, 1);
    CHECK_NEAR(flops.head, 4 * 2 * 2047.0 * 128256 * 4096, 1);
    CHECK_NEAR(flops.dequantize, 2 * 2 * weights, 1);
    CHECK_INT(flops.recompute, 0);
    step.quantized = 0.25; // the other layers have copies
    CHECK_NEAR(flops_of("llama-3.1-8b", &step).dequantize, weights, 1);
    CHECK_NEAR(flops.model, flops.base + flops.lora + flops.attention + flops.head, 1);
}

// A block is computed again but for its last projection; the cheaper policy does the MLP's first
// two.
static void recompute_by_hand(void) {
    td_bench_shape step = {.seq_tokens = 2048,
                           .sequences = 1,
                           .micro_batches = 1,
                           .recompute = TD_RECOMPUTE_BLOCK,
                           .quantized = 1};
    double block = 32.0 * (2 * 4096.0 * 4096 + 2 * 4096.0 * 1024 + 2 * 4096.0 * 14336);
    double block_lora = 32.0 * 16 * (2 * 8192 + 2 * 5120 + 2 * 18432);
    double pairs = 2048.0 * 2049 / 2 * 32 * 32 * 128;
    CHECK_NEAR(flops_of("llama-3.1-8b", &step).recompute,
               2 * 2048 * (block + block_lora) + 4 * pairs, 1);
    step.recompute = TD_RECOMPUTE_NORMS_MLP;
    step.quantized = 0;
    double mlp = 32.0 * (2 * 4096.0 * 14336 + 16 * 2 * 18432);
    CHECK_NEAR(flops_of("llama-3.1-8b", &step).recompute, 2 * 2048 * mlp, 1);
    CHECK_INT(flops_of("llama-3.1-8b", &step).dequantize, 0);
}

// Extents as published with the models.
static void shapes_have_the_models_sizes(void) {
    static const struct {
        const char *name;
        double weights; // of the linear layers of the blocks
    } shapes[] = {
        {"smollm2-135m", 30.0 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536)},
        {"qwen3-0.6b", 28.0 * (2 * 1024 * 2048 + 2 * 1024 * 1024 + 3 * 1024 * 3072)},
        {"qwen3-1.7b", 28.0 * (2 * 2048 * 2048 + 2 * 2048 * 1024 + 3 * 2048 * 6144)},
        {"qwen3-4b", 36.0 * (2 * 2560 * 4096 + 2 * 2560 * 1024 + 3 * 2560 * 9728)},
        {"qwen3-8b", 36.0 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 12288)},
        {"qwen3-14b", 40.0 * (2 * 5120 * 5120 + 2 * 5120 * 1024 + 3 * 5120 * 17408)},
        {"llama-3.1-70b", 80.0 * (2.0 * 8192 * 8192 + 2 * 8192 * 1024 + 3.0 * 8192 * 28672)},
    };
    td_bench_shape step = {.seq_tokens = 2, .sequences = 1, .micro_batches = 1};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        CHECK_NEAR(flops_of(shapes[i].name, &step).base, 8 * shapes[i].weights, 1);
}

int main(void) {
    TEST(llama_8b_by_hand);
    TEST(recompute_by_hand);
    TEST(shapes_have_the_models_sizes);
    return test_report();
}
