// libFuzzer target: adapter_config.json and adapter_model.safetensors, with a zero byte between
// them, for a model of two layers. Whatever they say, they are refused or give a number for every
// parameter, and the adapter that is written from those reads back the same.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/adapter.h"
#include "runtime/core/files.h"
#include "runtime/core/log.h"
#include "tests/fuzz/support/fuzz.h"

enum { MAX_PARAMETERS = 1 << 14 };

static td_model_config tiny_model(void) {
    return (td_model_config){.family = &td_families[0],
                             .vocabulary = 16,
                             .hidden = 4,
                             .intermediate = 6,
                             .n_layers = 2,
                             .n_heads = 2,
                             .n_kv_heads = 1,
                             .head_dim = 2,
                             .max_positions = 16};
}

static void check_again(const td_lora *lora, const td_lora_options *options,
                        const float *parameters) {
    static float again[MAX_PARAMETERS];
    const char *folder = fuzz_path("written");
    fuzz_require(td_adapter_write(folder, lora, options, "base", parameters) == TD_OK,
                 "an adapter is written");
    fuzz_require(td_adapter_read(folder, lora, again) == TD_OK, "and read back");
    fuzz_require(memcmp(again, parameters, (size_t)lora->n_parameters * sizeof *again) == 0,
                 "with the same parameters");
}

static void check_weights(const td_lora *lora, const td_lora_options *options) {
    static float parameters[MAX_PARAMETERS];
    if (lora->n_parameters > MAX_PARAMETERS)
        return;
    if (td_adapter_read(fuzz_folder(), lora, parameters) != TD_OK) {
        fuzz_require(td_error_message()[0], "a refusal says why");
        return;
    }
    for (int64_t i = 0; i < lora->n_parameters; i++)
        fuzz_require(isfinite(parameters[i]), "a parameter is a number");
    check_again(lora, options, parameters);
}

static void check_adapter(const td_adapter_info *info) {
    td_model_config model = tiny_model();
    td_lora_options options = td_adapter_lora_options(info);
    td_lora lora = {0};
    if (td_lora_init(&lora, &model, &options) == TD_OK)
        check_weights(&lora, &options);
    else
        fuzz_require(td_error_message()[0], "a refusal says why");
    td_lora_fini(&lora);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_parts parts;
    td_adapter_info info;
    td_log_init(TD_LOG_ERROR, 0, 1);
    fuzz_parts_init(&parts, 2, data, size);
    fuzz_write("adapter_config.json", parts.text[0], parts.bytes[0]);
    fuzz_write("adapter_model.safetensors", parts.text[1], parts.bytes[1]);
    if (td_adapter_info_read(fuzz_folder(), &info) == TD_OK)
        check_adapter(&info);
    else
        fuzz_require(td_error_message()[0], "a refusal says why");
    td_adapter_info_fini(&info);
    td_error_clear();
    fuzz_parts_fini(&parts);
    return 0;
}
