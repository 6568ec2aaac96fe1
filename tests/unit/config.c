#include "runtime/core/config.h"

#include "runtime/core/json.h"
#include "scratch.h"

static td_config config;

static void reset(void) {
    td_config_fini(&config);
    REQUIRE(td_config_init(&config) == TD_OK);
}

static td_status read_text(const char *text) {
    return td_config_read(&config, scratch_file("config.json", text));
}

#define CHECK_SET(assignment) CHECK_INT(td_config_set(&config, assignment), TD_OK)
#define CHECK_SET_REFUSED(assignment, part)                                                        \
    do {                                                                                           \
        CHECK_INT(td_config_set(&config, assignment), TD_ERR_USAGE);                               \
        CHECK_MESSAGE(part);                                                                       \
    } while (0)
#define CHECK_READ_REFUSED(text, part)                                                             \
    do {                                                                                           \
        CHECK_INT(read_text(text), TD_ERR_USAGE);                                                  \
        CHECK_MESSAGE(part);                                                                       \
    } while (0)

static void defaults_are_those_of_the_table(void) {
    reset();
    CHECK(config.model_name_or_path == NULL);
    CHECK_INT(config.lora_r, 16);
    CHECK(config.lora_alpha == 32 && config.lora_dropout == 0.05);
    CHECK_INT(config.target_modules.count, 1);
    CHECK_STRING(config.target_modules.items[0], "all-linear");
    CHECK(config.target_modules_is_pattern && config.packing && config.load_in_4bit);
    CHECK_INT(config.train_files.count, 0);
    CHECK(config.learning_rate == 2e-4 && config.adam_epsilon == 1e-8);
    CHECK_INT(config.max_steps, -1);
    CHECK_INT(config.lr_scheduler_type, TD_SCHEDULE_COSINE);
    CHECK_INT(config.gradient_quantum_log2, -46);
    CHECK_STRING(config.resume_from_checkpoint, "never");
}

static void the_table_is_sound(void) {
    for (size_t i = 0; i < td_config_table_count; i++) {
        const td_key *key = &td_config_table[i];
        CHECK(key->name && key->section && key->fallback && key->help);
        CHECK(key->offset < sizeof(td_config));
        CHECK((key->type == TD_KEY_ENUM) == (key->choices != NULL));
        if (key->type == TD_KEY_INT || key->type == TD_KEY_FLOAT)
            CHECK(key->minimum < key->maximum);
        for (size_t j = 0; j < i; j++)
            CHECK(strcmp(key->name, td_config_table[j].name) != 0 &&
                  key->offset != td_config_table[j].offset);
    }
}

static void a_file_sets_every_type(void) {
    reset();
    CHECK_INT(
        read_text("{\"model_name_or_path\": \"m\", \"lora_r\": 8, \"lora_alpha\": 12.5,"
                  "\"packing\": false, \"optim\": \"adamw_8bit\","
                  "\"target_modules\": [\"q_proj\", \"v_proj\"], \"train_files\": \"a.jsonl\","
                  "\"rank_pattern\": {\"q_proj\": 4}, \"seed\": 9007199254740992}"),
        TD_OK);
    CHECK_STRING(config.model_name_or_path, "m");
    CHECK_INT(config.lora_r, 8);
    CHECK(config.lora_alpha == 12.5 && !config.packing);
    CHECK_INT(config.optim, TD_OPTIM_ADAMW_8BIT);
    CHECK_INT(config.target_modules.count, 2);
    CHECK_STRING(config.target_modules.items[1], "v_proj");
    CHECK(!config.target_modules_is_pattern);
    CHECK_INT(config.train_files.count, 1);
    CHECK_STRING(config.train_files.items[0], "a.jsonl");
    CHECK_INT(cJSON_GetObjectItem(config.rank_pattern, "q_proj")->valueint, 4);
    CHECK_INT(config.seed, INT64_C(9007199254740992));
}

static void assignments_set_every_type(void) {
    reset();
    CHECK_SET("lora_r=4");
    CHECK_SET("learning_rate=1e-3");
    CHECK_SET("packing=false");
    CHECK_SET("optim=adamw_8bit");
    CHECK_SET("lr_scheduler_type=\"linear\"");
    CHECK_SET("output_dir=runs/a b=c");
    CHECK_SET("train_files=[\"a\",\"b\"]");
    CHECK_SET("eval_files=e.jsonl");
    CHECK_SET("alpha_pattern={\"q\": 1.5}");
    CHECK(config.lora_r == 4 && config.learning_rate == 1e-3 && !config.packing);
    CHECK(config.optim == TD_OPTIM_ADAMW_8BIT && config.lr_scheduler_type == TD_SCHEDULE_LINEAR);
    CHECK_STRING(config.output_dir, "runs/a b=c");
    CHECK(config.train_files.count == 2 && config.eval_files.count == 1);
    CHECK(cJSON_IsObject(config.alpha_pattern));
    CHECK_STRING(td_error_message(), "");
}

static void text_keys_take_what_looks_like_a_number(void) {
    reset();
    CHECK_SET("output_dir=7");
    CHECK_STRING(config.output_dir, "7");
    CHECK_SET("adapter_name_or_path=true");
    CHECK_STRING(config.adapter_name_or_path, "true");
    CHECK_SET("adapter_name_or_path=null");
    CHECK(config.adapter_name_or_path == NULL);
}

static void a_list_or_a_pattern_of_modules(void) {
    reset();
    CHECK_SET("target_modules=[\"q_proj\"]");
    CHECK(config.target_modules.count == 1 && !config.target_modules_is_pattern);
    CHECK_SET("target_modules=.*_proj");
    CHECK(config.target_modules.count == 1 && config.target_modules_is_pattern);
}

static void wrong_types_are_refused_with_both_types(void) {
    reset();
    CHECK_SET_REFUSED("output_dir=a\xff", "not UTF-8");
    CHECK_SET_REFUSED("lora_r=many", "lora_r must be an integer, found \"many\"");
    CHECK_SET_REFUSED("lora_r=1.5", "must be an integer, found 1.5");
    CHECK_SET_REFUSED("learning_rate=true", "learning_rate must be a number, found true");
    CHECK_SET_REFUSED("packing=1", "packing must be true or false, found 1");
    CHECK_SET_REFUSED("train_files=[1]", "a list of strings, found [1]");
    CHECK_SET_REFUSED("train_files={}", "a list of strings, found {}");
    CHECK_SET_REFUSED("rank_pattern=3", "rank_pattern must be an object");
    CHECK_SET_REFUSED("output_dir=[]", "output_dir must be a string");
    CHECK_SET_REFUSED("lora_r=null", "must be an integer, found null");
    CHECK_SET_REFUSED("optim=sgd", "optim must be one of \"adamw\", \"adamw_8bit\", found \"sgd\"");
    CHECK_READ_REFUSED("{\"optim\": 3}", "one of \"adamw\"");
    CHECK_INT(config.lora_r, 16);
}

static void ranges_are_inclusive_and_stated(void) {
    reset();
    CHECK_SET("gradient_quantum_log2=-60");
    CHECK_SET("gradient_quantum_log2=-20");
    CHECK_SET_REFUSED("gradient_quantum_log2=-61", "must be from -60 to -20, found -61");
    CHECK_SET_REFUSED("gradient_quantum_log2=-19", "from -60 to -20");
    CHECK_SET_REFUSED("lora_r=0", "from 1 to");
    CHECK_SET_REFUSED("lora_r=1e300", "from 1 to");
    CHECK_SET_REFUSED("learning_rate=1e999", "found inf");
    CHECK_SET_REFUSED("lora_dropout=1", "from 0 to 0.98999999999999999, found 1");
    CHECK_INT(config.gradient_quantum_log2, -20);
}

static void unknown_keys_get_a_hint(void) {
    reset();
    CHECK_SET_REFUSED("learnin_rate=1", "did you mean \"learning_rate\"");
    CHECK_SET_REFUSED("lora_rank=1", "did you mean \"lora_r\"");
    CHECK_SET_REFUSED("epochs=1", "did you mean \"num_train_epochs\"");
    CHECK_SET_REFUSED("zzzzzz=1", "lists all keys");
    CHECK_READ_REFUSED("{\"max_lenght\": 3}", "config.json: unknown key \"max_lenght\"");
    CHECK_SET_REFUSED("lora_r", "expected key=value");
    CHECK_SET_REFUSED("=3", "expected key=value");
}

static void nearest_names(void) {
    static const char *const names[] = {"alpha", "beta", "gamma_rate"};
    CHECK_STRING(td_nearest_name("alpah", names, 3), "alpha");
    CHECK_STRING(td_nearest_name("bet", names, 3), "beta");
    CHECK_STRING(td_nearest_name("rate", names, 3), "gamma_rate");
    CHECK(td_nearest_name("omega", names, 0) == NULL);
    CHECK(td_nearest_name("unrelated", names, 3) == NULL);
    CHECK(td_nearest_name("a", names, 3) == NULL);
    char endless[200];
    memset(endless, 'a', sizeof endless);
    endless[199] = '\0';
    CHECK(td_nearest_name(endless, names, 3) == NULL);
}

static void bad_files_are_usage_errors(void) {
    reset();
    CHECK_READ_REFUSED("{\"lora_r\": 8, \"lora_r\": 9}", "twice");
    CHECK_READ_REFUSED("[]", "one JSON object");
    CHECK_READ_REFUSED("{\"lora_r\": 8", "config.json");
    CHECK_INT(td_config_read(&config, scratch("none.json")), TD_ERR_USAGE);
    CHECK_MESSAGE("none.json");
}

static td_hash fingerprint_after(const char *assignment) {
    reset();
    if (assignment)
        CHECK_SET(assignment);
    return td_config_fingerprint(&config);
}

static void the_fingerprint_covers_what_affects_the_result(void) {
    static const char *const affecting[] = {"lora_r=17",
                                            "learning_rate=1e-4",
                                            "max_steps=7",
                                            "seed=43",
                                            "target_modules=[\"all-linear\"]",
                                            "rank_pattern={\"a\":1}",
                                            "packing=false",
                                            "optim=adamw_8bit",
                                            "page_elements=512"};
    static const char *const free_to_change[] = {"output_dir=elsewhere",
                                                 "logging_steps=7",
                                                 "save_steps=5",
                                                 "eval_steps=3",
                                                 "num_threads=2",
                                                 "gradient_checkpointing=block",
                                                 "cuda_graphs=on",
                                                 "collective_deadline_seconds=5",
                                                 "resume_from_checkpoint=auto",
                                                 "optimizer_cache_bytes=123456",
                                                 "dequantized_cache_bytes=-1",
                                                 "dequantize_ahead=on"};
    td_hash base = fingerprint_after(NULL);
    CHECK(td_hash_equal(base, fingerprint_after("lora_r=16")));
    for (size_t i = 0; i < sizeof affecting / sizeof affecting[0]; i++)
        CHECK(!td_hash_equal(base, fingerprint_after(affecting[i])));
    for (size_t i = 0; i < sizeof free_to_change / sizeof free_to_change[0]; i++)
        CHECK(td_hash_equal(base, fingerprint_after(free_to_change[i])));
}

static void json_reads_back_to_the_same_config(void) {
    reset();
    CHECK_SET("learning_rate=0.1");
    CHECK_SET("target_modules=[\"one\"]");
    CHECK_SET("alpha_pattern={\"q\":0.1}");
    CHECK_SET("optim=adamw_8bit");
    td_hash before = td_config_fingerprint(&config);
    cJSON *tree = td_config_to_json(&config);
    REQUIRE(tree != NULL);
    CHECK_INT(cJSON_GetArraySize(tree), td_config_table_count);
    char *text = td_json_print(tree, 1);
    reset();
    CHECK(!td_hash_equal(before, td_config_fingerprint(&config)));
    CHECK_INT(read_text(text), TD_OK);
    CHECK(td_hash_equal(before, td_config_fingerprint(&config)));
    cJSON *again = td_config_to_json(&config);
    CHECK(td_config_first_difference(tree, again) == NULL);
    free(text);
    cJSON_Delete(tree);
    cJSON_Delete(again);
}

static void the_first_difference_is_named(void) {
    reset();
    cJSON *a = td_config_to_json(&config);
    CHECK_SET("output_dir=other");
    CHECK_SET("seed=1");
    CHECK_SET("lora_alpha=64");
    cJSON *b = td_config_to_json(&config);
    CHECK_STRING(td_config_first_difference(a, b), "lora_alpha");
    cJSON_DeleteItemFromObject(b, "load_in_4bit");
    CHECK_STRING(td_config_first_difference(a, b), "load_in_4bit");
    cJSON_Delete(a);
    cJSON_Delete(b);
}

static void set_path(const char *key, const char *path) {
    char assignment[600];
    snprintf(assignment, sizeof assignment, "%s=%s", key, path);
    CHECK_SET(assignment);
}

// A config that passes td_config_check().
static void reset_to_valid(void) {
    reset();
    set_path("model_name_or_path", scratch(""));
    set_path("train_files", scratch_file("train.jsonl", "{}"));
    set_path("output_dir", scratch("out"));
}

static void check_refused_with(const char *assignment, td_status status, const char *part) {
    reset_to_valid();
    CHECK_SET(assignment);
    CHECK_INT(td_config_check(&config), status);
    CHECK_MESSAGE(part);
}

static void relations_are_checked(void) {
    reset_to_valid();
    CHECK_INT(td_config_check(&config), TD_OK);
    check_refused_with("model_name_or_path=null", TD_ERR_USAGE, "model_name_or_path is not set");
    check_refused_with("model_name_or_path=/none", TD_ERR_DATA, "no folder \"/none\"");
    check_refused_with("adapter_name_or_path=/none", TD_ERR_DATA, "adapter_name_or_path");
    check_refused_with("train_files=[]", TD_ERR_USAGE, "train_files is empty");
    check_refused_with("train_files=/none.jsonl", TD_ERR_DATA, "no file \"/none.jsonl\"");
    check_refused_with("eval_files=/none.jsonl", TD_ERR_DATA, "eval_files");
    check_refused_with("target_modules=[]", TD_ERR_USAGE, "target_modules is empty");
    check_refused_with("rank_pattern={\"q\":1.5}", TD_ERR_USAGE, "positive integer");
    check_refused_with("alpha_pattern={\"q\":\"x\"}", TD_ERR_USAGE, "positive number");
    check_refused_with("micro_batch_tokens=1000", TD_ERR_USAGE, "less than max_length (1024)");
    check_refused_with("max_steps=0", TD_ERR_USAGE, "max_steps is 0");
    check_refused_with("resume_from_checkpoint=/none", TD_ERR_DATA, "resume_from_checkpoint");
    check_refused_with("load_best_model_at_end=true", TD_ERR_USAGE, "needs eval_files");
    check_refused_with("output_dir=null", TD_ERR_USAGE, "output_dir is not set");
}

static void pairs_are_checked(void) {
    reset_to_valid();
    CHECK_SET("eval_split_ratio=0.1");
    CHECK_SET("load_best_model_at_end=true");
    CHECK_INT(td_config_check(&config), TD_OK);
    set_path("eval_files", scratch("train.jsonl"));
    CHECK_INT(td_config_check(&config), TD_ERR_USAGE);
    CHECK_MESSAGE("choose one");
    CHECK_SET("train_files=[]");
    CHECK_INT(td_config_check(&config), TD_ERR_USAGE);
    CHECK_MESSAGE("train_files is empty");
    reset_to_valid();
    CHECK_SET("optim=adamw_8bit");
    CHECK_INT(td_config_check(&config), TD_OK);
    CHECK_SET("page_elements=100");
    CHECK_INT(td_config_check(&config), TD_ERR_USAGE);
    CHECK_MESSAGE("multiple of 256");
    reset_to_valid();
    CHECK_SET("micro_batch_tokens=1000");
    CHECK_SET("packing=false");
    CHECK_INT(td_config_check(&config), TD_OK);
    set_path("output_dir", scratch("train.jsonl"));
    CHECK_INT(td_config_check(&config), TD_ERR_USAGE);
    CHECK_MESSAGE("not a folder");
}

// The table as td_config_print_table() writes it, through a file.
static void the_printed_table_names_every_key(void) {
    static char text[65536];
    fflush(stdout);
    int saved = dup(STDOUT_FILENO);
    REQUIRE(freopen(scratch("table"), "w", stdout) != NULL);
    td_config_print_table();
    fflush(stdout);
    REQUIRE(dup2(saved, STDOUT_FILENO) >= 0);
    close(saved);
    FILE *file = fopen(scratch("table"), "r");
    REQUIRE(file != NULL);
    text[fread(text, 1, sizeof text - 1, file)] = '\0';
    fclose(file);
    for (size_t i = 0; i < td_config_table_count; i++)
        CHECK(strstr(text, td_config_table[i].name) && strstr(text, td_config_table[i].help));
    CHECK(strstr(text, "cosine|linear|constant") && strstr(text, "-60..-20"));
}

int main(void) {
    TEST(defaults_are_those_of_the_table);
    TEST(the_table_is_sound);
    TEST(a_file_sets_every_type);
    TEST(assignments_set_every_type);
    TEST(text_keys_take_what_looks_like_a_number);
    TEST(a_list_or_a_pattern_of_modules);
    TEST(wrong_types_are_refused_with_both_types);
    TEST(ranges_are_inclusive_and_stated);
    TEST(unknown_keys_get_a_hint);
    TEST(nearest_names);
    TEST(bad_files_are_usage_errors);
    TEST(the_fingerprint_covers_what_affects_the_result);
    TEST(json_reads_back_to_the_same_config);
    TEST(the_first_difference_is_named);
    TEST(relations_are_checked);
    TEST(pairs_are_checked);
    TEST(the_printed_table_names_every_key);
    td_config_fini(&config);
    return test_report();
}
