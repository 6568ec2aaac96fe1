// libFuzzer target: a run config and one --set, with a zero byte between them. Whatever they say,
// they are refused or give values within the ranges of the table, which print to a config that
// means the same.
#include <stdlib.h>
#include <string.h>

#include "runtime/core/config.h"
#include "runtime/core/json.h"
#include "tests/fuzz/support/fuzz.h"

static void check_values(const td_config *config) {
    for (size_t i = 0; i < td_config_table_count; i++) {
        const td_key *key = &td_config_table[i];
        const char *field = (const char *)config + key->offset;
        double value = key->minimum;
        if (key->type == TD_KEY_INT)
            value = (double)*(const int64_t *)(const void *)field;
        else if (key->type == TD_KEY_FLOAT)
            value = *(const double *)(const void *)field;
        fuzz_require(key->type != TD_KEY_BOOL || (*(const int *)(const void *)field & ~1) == 0,
                     "a switch is on or off");
        fuzz_require(value >= key->minimum && value <= key->maximum, "a number is in its range");
    }
}

static void check_again(const td_config *config) {
    td_config again;
    cJSON *tree = td_config_to_json(config);
    fuzz_require(tree != NULL, "a config prints");
    char *text = td_json_print(tree, 1);
    fuzz_require(text != NULL, "a config prints");
    fuzz_write("printed.json", text, strlen(text));
    fuzz_require(td_config_init(&again) == TD_OK, "there are defaults");
    fuzz_require(td_config_read(&again, fuzz_path("printed.json")) == TD_OK, "and reads back");
    fuzz_require(td_hash_equal(td_config_fingerprint(config), td_config_fingerprint(&again)),
                 "with the same fingerprint");
    cJSON *second = td_config_to_json(&again);
    fuzz_require(second && !td_config_first_difference(tree, second), "and the same values");
    td_config_fini(&again);
    free(text);
    cJSON_Delete(tree);
    cJSON_Delete(second);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_parts parts;
    td_config config;
    fuzz_parts_init(&parts, 2, data, size);
    fuzz_write("config.json", parts.text[0], parts.bytes[0]);
    fuzz_require(td_config_init(&config) == TD_OK, "there are defaults");
    td_status status = td_config_read(&config, fuzz_path("config.json"));
    if (status == TD_OK && parts.text[1])
        status = td_config_set(&config, parts.text[1]);
    fuzz_require(status == TD_OK || td_error_message()[0], "a refusal says why");
    td_error_clear();
    check_values(&config);
    if (status == TD_OK) {
        fuzz_require(td_config_check(&config) == TD_OK || td_error_message()[0], "says why");
        td_error_clear();
        check_again(&config);
    }
    td_config_fini(&config);
    fuzz_parts_fini(&parts);
    return 0;
}
