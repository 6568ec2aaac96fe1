// 100 training steps against PEFT and bitsandbytes: loss, gradient norm, learning rate of every
// step. On the CPU, with "medium" with products in bf16; with another argument on the GPU module,
// emulated or real.
//
//     test_train100 [medium|fp32|bf16]
#include "test.h"

#include <unistd.h>

#include "runtime/core/files.h"
#include "runtime/core/json.h"
#include "runtime/core/log.h"
#include "runtime/train/trainer.h"

static char folder[] = "/tmp/tandem-train100-XXXXXX";

// How a run computes, and how far its losses and gradient norms may be off, relative.
typedef struct way {
    const char *name, *device, *precision;
    double loss, norm;
} way;

static const way ways[] = {
    {"cpu", "device=cpu", "float32_matmul_precision=highest", 1e-4, 1e-3},
    {"medium", "device=cpu", "float32_matmul_precision=medium", 1e-2, 2e-2},
    {"fp32", "device=cuda", "bf16=false", 1e-4, 1e-3},
    {"bf16", "device=cuda", "bf16=true", 1e-2, 2e-2},
};
static const way *tested = &ways[0];

static void set(td_config *config, const char *format, const char *value) {
    char assignment[1024];
    snprintf(assignment, sizeof assignment, format, value);
    if (td_config_set(config, assignment) != TD_OK) {
        fprintf(stderr, "%s: %s\n", assignment, td_error_message());
        exit(1);
    }
}

static void train(void) {
    td_config config;
    td_comm *comm;
    td_train_summary summary;
    REQUIRE(td_config_init(&config) == TD_OK);
    set(&config, "model_name_or_path=\"%s/train100\"", test_fixtures());
    set(&config, "adapter_name_or_path=\"%s/train100/initial_adapter\"", test_fixtures());
    set(&config, "train_files=\"%s/train100/data.jsonl\"", test_fixtures());
    set(&config, "output_dir=\"%s\"", folder);
    static const char *const values[] = {
        "packing=false",
        "per_device_train_batch_size=2",
        "gradient_accumulation_steps=2",
        "shuffle=false",
        "max_length=64",
        "learning_rate=2e-3",
        "warmup_steps=10",
        "lr_scheduler_type=\"cosine\"",
        "weight_decay=0.01",
        "max_grad_norm=1.0",
        "max_steps=100",
        "lora_dropout=0",
        "page_elements=1000",
    };
    for (size_t i = 0; i < sizeof values / sizeof *values; i++)
        set(&config, "%s", values[i]);
    set(&config, "%s", tested->device);
    set(&config, "%s", tested->precision);
    REQUIRE(td_comm_bootstrap(&comm) == TD_OK);
    td_log_init(TD_LOG_WARN, 0, 1);
    td_status status = td_train(&config, comm, &summary);
    if (status != TD_OK)
        fprintf(stderr, "%s\n", td_error_message());
    REQUIRE(status == TD_OK);
    CHECK_INT(summary.steps, 100);
    CHECK_INT(td_comm_finish(comm), TD_OK);
    td_config_fini(&config);
}

static double number(const cJSON *object, const char *key) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    REQUIRE(cJSON_IsNumber(item));
    return item->valuedouble;
}

static double relative(double a, double b) {
    return fabs(a - b) / fabs(b);
}

static void hundred_steps_equal_peft_with_bitsandbytes(void) {
    char path[TD_PATH_MAX], *text, *line;
    size_t bytes;
    cJSON *expected;
    double worst_loss = 0, worst_norm = 0;
    int n_steps = 0, n_clipped = 0;
    train();
    snprintf(path, sizeof path, "%s/train100/losses.json", test_fixtures());
    REQUIRE(td_json_read(path, 1 << 20, &expected) == TD_OK);
    const cJSON *right = cJSON_GetObjectItemCaseSensitive(expected, "steps")->child;
    snprintf(path, sizeof path, "%s/metrics.jsonl", folder);
    REQUIRE(td_file_read(path, 1 << 20, &text, &bytes) == TD_OK);
    for (line = strtok(text, "\n"); line && right; line = strtok(NULL, "\n"), right = right->next) {
        cJSON *ours;
        REQUIRE(td_json_parse("metrics.jsonl", line, strlen(line), &ours) == TD_OK);
        worst_loss = fmax(worst_loss, relative(number(ours, "loss"), number(right, "loss")));
        worst_norm =
            fmax(worst_norm, relative(number(ours, "grad_norm"), number(right, "grad_norm")));
        n_clipped += number(right, "grad_norm") > 1;
        CHECK_NEAR(number(ours, "learning_rate"), number(right, "lr"), 1e-9);
        cJSON_Delete(ours);
        n_steps++;
    }
    CHECK_INT(n_steps, 100);
    CHECK(n_clipped > 0 && n_clipped < 100);
    printf("largest relative difference: loss %.2e, gradient norm %.2e\n", worst_loss, worst_norm);
    CHECK(worst_loss <= tested->loss);
    CHECK(worst_norm <= tested->norm);
    free(text);
    cJSON_Delete(expected);
}

static const way *find_way(const char *name) {
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++)
        if (strcmp(ways[i].name, name) == 0)
            return &ways[i];
    return NULL;
}

int main(int argc, char **argv) {
    tested = find_way(argc > 1 ? argv[1] : "cpu");
    if (!tested || argc > 2) {
        fprintf(stderr, "usage: %s [medium|fp32|bf16]\n", argv[0]);
        return 2;
    }
    REQUIRE(mkdtemp(folder) != NULL);
    TEST(hundred_steps_equal_peft_with_bitsandbytes);
    CHECK_INT(td_folder_remove_tree(folder), TD_OK);
    return test_report();
}
