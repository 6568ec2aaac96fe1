// Learning rates against transformers' schedules.
#include "test.h"

#include "runtime/core/json.h"
#include "runtime/train/schedule.h"

static td_schedule_kind kind_of(const char *name) {
    if (strcmp(name, "cosine") == 0)
        return TD_SCHEDULE_COSINE;
    return strcmp(name, "linear") == 0 ? TD_SCHEDULE_LINEAR : TD_SCHEDULE_CONSTANT;
}

static double number(const cJSON *object, const char *key) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    REQUIRE(cJSON_IsNumber(item));
    return item->valuedouble;
}

static void rates_equal_transformers(void) {
    cJSON *root;
    const cJSON *one;
    int n_cases = 0;
    REQUIRE(td_json_read(TEST_FIXTURES "/ops/schedules.json", 1 << 20, &root) == TD_OK);
    cJSON_ArrayForEach(one, cJSON_GetObjectItemCaseSensitive(root, "cases")) {
        const cJSON *factor = cJSON_GetObjectItemCaseSensitive(one, "factor")->child;
        const char *name = cJSON_GetObjectItemCaseSensitive(one, "schedule")->valuestring;
        td_schedule schedule = {.kind = kind_of(name),
                                .peak = 3e-4,
                                .warmup_steps = (int64_t)number(one, "warmup_steps"),
                                .total_steps = (int64_t)number(one, "total_steps")};
        for (int64_t step = 0; factor; step++, factor = factor->next)
            CHECK_NEAR(td_schedule_rate(&schedule, step), 3e-4 * factor->valuedouble, 1e-18);
        n_cases++;
    }
    CHECK(n_cases >= 4);
    cJSON_Delete(root);
}

static td_schedule make(const char *first, const char *second, int64_t steps_per_epoch) {
    td_config config;
    REQUIRE(td_config_init(&config) == TD_OK);
    REQUIRE(td_config_set(&config, first) == TD_OK);
    REQUIRE(td_config_set(&config, second) == TD_OK);
    td_schedule schedule = td_schedule_make(&config, steps_per_epoch);
    td_config_fini(&config);
    return schedule;
}

static void lengths_are_rounded_up(void) {
    td_schedule epochs = make("num_train_epochs=1.5", "warmup_ratio=0.1", 7);
    CHECK_INT(epochs.total_steps, 11); // ceil(10.5)
    CHECK_INT(epochs.warmup_steps, 2); // ceil(1.1)
    CHECK_INT(make("max_steps=5", "num_train_epochs=3", 7).total_steps, 5);
    CHECK_INT(make("warmup_steps=4", "warmup_ratio=0.5", 100).warmup_steps, 4);
    CHECK_INT(make("warmup_steps=0", "warmup_ratio=0", 100).warmup_steps, 0);
}

int main(void) {
    TEST(rates_equal_transformers);
    TEST(lengths_are_rounded_up);
    return test_report();
}
