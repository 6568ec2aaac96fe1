#include "runtime/data/prepare.h"
#include "runtime/core/json.h"
#include "runtime/data/account.h"
#include "runtime/data/store.h"
#include "unit/scratch.h"

enum { VOCABULARY = 900, END_OF_TEXT = 800, MAX_TEXT = 1 << 20 };

static td_tokenizer *tokenizer;
static char first_file[512], second_file[512];
static char *file_names[] = {first_file, second_file};
static td_string_list files = {.items = file_names, .count = 1};

static td_prepare_options defaults(void) {
    return (td_prepare_options){.files = &files,
                                .tokenizer = tokenizer,
                                .vocabulary = VOCABULARY,
                                .eos_id = END_OF_TEXT,
                                .max_length = 200,
                                .assistant_only_loss = 1,
                                .completion_only_loss = 1,
                                .near_duplicate_threshold = 0.8,
                                .seed = 1,
                                .n_threads = 2};
}

static void use_text(const char *text) {
    snprintf(first_file, sizeof first_file, "%s", scratch_file("rows.jsonl", text));
    files.count = 1;
}

// The stores of the call before last are overwritten.
static td_status run(const td_prepare_options *options, const char *train,
                     td_prepare_account *account) {
    const char *stores[TD_SPLITS] = {train, scratch("s-eval.h5"), scratch("s-test.h5")};
    td_hash fingerprint = {0};
    if (options->files->count > 0)
        TD_TRY(td_prepare_fingerprint(options, &fingerprint));
    return td_prepare(options, NULL, fingerprint, stores, account);
}

static td_store *prepare(const td_prepare_options *options, td_prepare_account *account) {
    const char *path = scratch("train.h5");
    td_store *store = NULL;
    if (!CHECK(run(options, path, account) == TD_OK))
        fprintf(stderr, "    %s\n", td_error_message());
    REQUIRE(td_store_open(path, &store) == TD_OK && td_store_verify(store) == TD_OK);
    return store;
}

static void close_all(td_store *store, td_prepare_account *account) {
    td_store_close(store);
    td_account_fini(account);
}

static void check_nothing_left(const char *name) {
    static const char *const endings[] = {"", ".tmp", ".parts"};
    char file[64];
    for (int i = 0; i < 3; i++) {
        snprintf(file, sizeof file, "%s%s", name, endings[i]);
        CHECK(!td_path_exists(scratch(file)));
    }
}

static void check_refused(const td_prepare_options *options, td_status expected, const char *part) {
    td_prepare_account account;
    unlink(scratch("none.h5"));
    unlink(scratch("s-eval.h5"));
    CHECK_INT(run(options, scratch("none.h5"), &account), expected);
    CHECK_MESSAGE(part);
    check_nothing_left("none.h5");
    check_nothing_left("s-eval.h5");
    CHECK(!td_path_exists(scratch("none.json")));
}

// Rows of ids 0..n-1, n = 2 + row % 50, whose last id names the row.
static char *number_rows(int n_rows) {
    char *text = malloc(MAX_TEXT), *at = text;
    REQUIRE(text != NULL);
    for (int row = 0; row < n_rows; row++) {
        at += sprintf(at, "{\"input_ids\":[");
        for (int i = 0; i < 1 + row % 50; i++)
            at += sprintf(at, "%d,", i);
        at += sprintf(at, "%d]}\n", row % VOCABULARY);
        REQUIRE(at - text < MAX_TEXT - 1024);
    }
    return text;
}

static void rows_keep_their_order_on_any_number_of_threads(void) {
    char *text = number_rows(3000);
    td_prepare_account account;
    td_hash hashes[3];
    use_text(text);
    for (int threads = 0; threads < 3; threads++) {
        int32_t tokens[64];
        uint8_t trained[64];
        td_prepare_options options = defaults();
        options.n_threads = threads * 2;
        td_store *store = prepare(&options, &account);
        CHECK_INT(account.rows_read, 3000);
        CHECK_INT(account.rows_kept, 3000);
        for (int row = 0; row < 3000; row++) {
            REQUIRE(td_store_read_row(store, row, tokens, trained) == TD_OK);
            int64_t length = td_store_offsets(store)[row + 1] - td_store_offsets(store)[row];
            CHECK_INT(length, 2 + row % 50);
            CHECK_INT(tokens[length - 1], row % VOCABULARY);
        }
        hashes[threads] = td_store_content_hash(store);
        close_all(store, &account);
    }
    CHECK(td_hash_equal(hashes[0], hashes[1]) && td_hash_equal(hashes[0], hashes[2]));
    free(text);
}

static const char mixed[] = "\xef\xbb\xbf{\"text\":\"one two\"}\r\n"
                            "\n"
                            "{\"text\": broken\n"
                            "  \t\n"
                            "{\"prompt\":\"a\",\"completion\":\" b\"}\n"
                            "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]}\n"
                            "{\"input_ids\":[1,2,3]}\n"
                            "{\"text\":\"\"}";

static void bad_rows_stop_with_file_and_line(void) {
    td_prepare_options options = defaults();
    use_text(mixed);
    check_refused(&options, TD_ERR_DATA, "rows.jsonl:3: ");
}

static void bad_rows_are_skipped_and_counted(void) {
    td_prepare_account account;
    td_prepare_options options = defaults();
    options.bad_rows = TD_BAD_ROWS_SKIP;
    use_text(mixed);
    td_store *store = prepare(&options, &account);
    CHECK_INT(account.rows_read, 6);
    CHECK_INT(account.dropped[TD_OUTCOME_MALFORMED].rows, 1);
    CHECK_INT(account.dropped[TD_OUTCOME_UNTRAINED].rows,
              2); // no assistant; nothing but the end of an empty text
    CHECK_INT(account.rows_kept, 3);
    CHECK_INT(td_store_rows(store), 3);
    CHECK_INT(td_store_tokens(store), account.tokens);
    int64_t trained = 0;
    for (int64_t row = 0; row < 3; row++)
        trained += td_store_row_trained(store)[row];
    CHECK_INT(trained, account.trained_tokens);
    close_all(store, &account);
}

static int64_t number_in(const cJSON *object, const char *key) {
    const cJSON *item = cJSON_GetObjectItem(object, key);
    return cJSON_IsNumber(item) ? (int64_t)item->valuedouble : -1;
}

static void store_and_file_carry_the_account(void) {
    td_prepare_account account;
    td_prepare_options options = defaults();
    cJSON *object = NULL, *file = NULL;
    options.bad_rows = TD_BAD_ROWS_SKIP;
    use_text(mixed);
    td_store *store = prepare(&options, &account);
    const char *text = td_store_account(store);
    REQUIRE(td_json_parse("account", text, strlen(text), &object) == TD_OK);
    CHECK_INT(number_in(object, "rows_read"), 6);
    CHECK_INT(number_in(cJSON_GetObjectItem(object, "dropped"), "malformed"), 1);
    CHECK_INT(number_in(object, "tokens"), account.tokens);
    REQUIRE(td_json_read(scratch("train.json"), 1 << 20, &file) == TD_OK);
    const cJSON *dropped = cJSON_GetObjectItem(file, "dropped");
    const cJSON *untrained = cJSON_GetObjectItem(dropped, "untrained");
    CHECK_INT(number_in(untrained, "rows"), 2);
    const char *example = cJSON_GetStringValue(cJSON_GetObjectItem(untrained, "example"));
    CHECK(example && strstr(example, "rows.jsonl:6"));
    CHECK_INT(number_in(cJSON_GetArrayItem(cJSON_GetObjectItem(file, "files"), 0), "rows_kept"), 3);
    cJSON_Delete(file);
    cJSON_Delete(object);
    close_all(store, &account);
}

static void long_rows_follow_the_policy(void) {
    td_prepare_account account;
    td_prepare_options options = defaults();
    options.max_length = 3;
    use_text("{\"input_ids\":[1,2,3]}\n{\"input_ids\":[1,2,3,4]}\n"
             "{\"input_ids\":[1,2,3,4],\"labels\":[-100,-100,-100,4]}\n");
    td_store *store = prepare(&options, &account);
    CHECK_INT(account.rows_kept, 1);
    CHECK_INT(account.dropped[TD_OUTCOME_TOO_LONG].rows, 2);
    close_all(store, &account);
    options.too_long = TD_TOO_LONG_TRUNCATE;
    store = prepare(&options, &account);
    CHECK_INT(account.rows_kept, 2);
    CHECK_INT(account.rows_truncated, 1);
    CHECK_INT(account.dropped[TD_OUTCOME_UNTRAINED].rows, 1); // what was to be learned was cut off
    CHECK_INT(td_store_tokens(store), 6);
    close_all(store, &account);
    options.too_long = TD_TOO_LONG_ERROR;
    check_refused(&options, TD_ERR_DATA, "rows.jsonl:2: 4 tokens are more than max_length, 3");
}

static void files_without_usable_rows_are_refused(void) {
    td_prepare_options options = defaults();
    use_text("");
    check_refused(&options, TD_ERR_DATA, "rows.jsonl: no rows");
    use_text("\n \n");
    check_refused(&options, TD_ERR_DATA, "rows.jsonl: no rows");
    use_text("{\"text\":\"\"}\n{\"input_ids\":[1]}\n");
    check_refused(&options, TD_ERR_DATA, "of 2 read: 2 without a trained token (the first: ");
    options.bad_rows = TD_BAD_ROWS_SKIP;
    use_text("{\"txt\":\"\"}\n");
    check_refused(&options, TD_ERR_DATA, "of 1 read: 1 malformed (the first: ");
    snprintf(first_file, sizeof first_file, "%s", scratch("missing.jsonl"));
    check_refused(&options, TD_ERR_DATA, "missing.jsonl");
    files.count = 0;
    check_refused(&options, TD_ERR_USAGE, "train_files");
}

// Every row would be skipped for the same reason, which is not the rows' fault.
static void a_tokenizer_of_another_model_is_not_skipped(void) {
    td_prepare_options options = defaults();
    options.bad_rows = TD_BAD_ROWS_SKIP;
    options.vocabulary = 50;
    use_text("{\"text\":\"the the\"}\n");
    check_refused(&options, TD_ERR_DATA, "outside the model's vocabulary of 50");
}

// Rows that have no five words in a row in common with another.
static char *different_rows(int n_rows) {
    char *text = malloc(MAX_TEXT), *at = text;
    REQUIRE(text != NULL);
    for (int row = 0; row < n_rows; row++) {
        at += sprintf(at, "{\"text\":\"");
        for (int i = 0; i < 8; i++)
            at += sprintf(at, "%x ", (row * 8 + i) * 2654435u);
        at += sprintf(at, "\"}\n");
        REQUIRE(at - text < MAX_TEXT - 1024);
    }
    return text;
}

static int64_t rows_of(const char *name) {
    td_store *store = NULL;
    REQUIRE(td_store_open(scratch(name), &store) == TD_OK && td_store_verify(store) == TD_OK);
    int64_t rows = td_store_rows(store);
    td_store_close(store);
    return rows;
}

static void check_split(int n_rows, double eval, double test, uint64_t seed,
                        int64_t out_rows[TD_SPLITS]) {
    td_prepare_account account;
    td_prepare_options options = defaults();
    char *text = different_rows(n_rows);
    options.split_ratios[TD_SPLIT_EVAL] = eval;
    options.split_ratios[TD_SPLIT_TEST] = test;
    options.seed = seed;
    use_text(text);
    td_store *train = prepare(&options, &account);
    out_rows[TD_SPLIT_TRAIN] = td_store_rows(train);
    out_rows[TD_SPLIT_EVAL] = eval > 0 ? rows_of("s-eval.h5") : 0;
    out_rows[TD_SPLIT_TEST] = test > 0 ? rows_of("s-test.h5") : 0;
    CHECK_INT(out_rows[0] + out_rows[1] + out_rows[2], n_rows);
    for (int split = 0; split < TD_SPLITS; split++)
        CHECK_INT(account.stores[split].rows, out_rows[split]);
    close_all(train, &account);
    free(text);
}

static void a_share_of_the_rows_is_set_apart(void) {
    int64_t rows[TD_SPLITS];
    check_split(2000, 0.2, 0, 3, rows);
    CHECK(rows[TD_SPLIT_EVAL] > 330 && rows[TD_SPLIT_EVAL] < 470);
    check_split(2000, 0.1, 0.3, 3, rows);
    CHECK(rows[TD_SPLIT_EVAL] > 150 && rows[TD_SPLIT_EVAL] < 250);
    CHECK(rows[TD_SPLIT_TEST] > 510 && rows[TD_SPLIT_TEST] < 690);
}

static void a_small_split_is_never_empty(void) {
    int64_t rows[TD_SPLITS];
    for (uint64_t seed = 0; seed < 8; seed++) {
        check_split(3, 0.02, 0, seed, rows);
        CHECK_INT(rows[TD_SPLIT_EVAL], 1);
        check_split(2, 0.9, 0, seed, rows);
        CHECK_INT(rows[TD_SPLIT_EVAL], 1);
        check_split(3, 0.9, 0.01, seed, rows);
        CHECK(rows[TD_SPLIT_TRAIN] == 1 && rows[TD_SPLIT_EVAL] == 1 && rows[TD_SPLIT_TEST] == 1);
    }
    td_prepare_options options = defaults();
    options.split_ratios[TD_SPLIT_EVAL] = 0.5;
    use_text("{\"text\":\"the only one\"}\n");
    check_refused(&options, TD_ERR_DATA, "cannot be divided");
    use_text("{\"text\":\"the same\"}\n{\"text\":\"the same\"}\n");
    check_refused(&options, TD_ERR_DATA, "2 rows, of which 1 are no duplicates");
}

static td_hash fingerprint_of(const td_prepare_options *options) {
    td_hash hash = {0};
    REQUIRE(td_prepare_fingerprint(options, &hash) == TD_OK);
    return hash;
}

static void the_fingerprint_knows_what_changes_the_result(void) {
    td_prepare_options options = defaults();
    use_text("{\"text\":\"a b\"}\n");
    td_hash before = fingerprint_of(&options);
    options.n_threads = 7;
    options.seed = 99;                      // without a split nothing is drawn
    options.near_duplicate_threshold = 0.9; // nor is anything compared
    options.filters = &td_filters_off;
    CHECK(td_hash_equal(fingerprint_of(&options), before));
    td_prepare_options changed[13];
    static const td_filter_options short_answers = {.max_response_words = 9, .max_jaccard = 1};
    for (int i = 0; i < 13; i++)
        changed[i] = options;
    changed[0].max_length++;
    changed[1].assistant_only_loss = 0;
    changed[2].completion_only_loss = 0;
    changed[3].eos_id = -1;
    changed[4].too_long = TD_TOO_LONG_TRUNCATE;
    changed[5].tokenizer = NULL;
    changed[6].split_ratios[TD_SPLIT_EVAL] = 0.1;
    changed[7].vocabulary++;
    changed[8].split_ratios[TD_SPLIT_TEST] = 0.1;
    changed[9].deduplicate = TD_DEDUPLICATE_EXACT;
    changed[10].deduplicate = TD_DEDUPLICATE_NEAR;
    changed[11].filters = &short_answers;
    changed[12].bad_rows = TD_BAD_ROWS_SKIP;
    for (int i = 0; i < 13; i++)
        CHECK(!td_hash_equal(fingerprint_of(&changed[i]), before));
    use_text("{\"text\":\"a c\"}\n");
    CHECK(!td_hash_equal(fingerprint_of(&options), before));
}

static void several_files_follow_each_other(void) {
    td_prepare_account account;
    td_prepare_options options = defaults();
    int32_t tokens[8];
    uint8_t trained[8];
    use_text("{\"input_ids\":[1,2]}");
    snprintf(second_file, sizeof second_file, "%s",
             scratch_file("second.jsonl", "{\"input_ids\":[3,4]}\n{}"));
    files.count = 2;
    check_refused(&options, TD_ERR_DATA, "second.jsonl:2: unknown row format");
    options.bad_rows = TD_BAD_ROWS_SKIP;
    td_store *store = prepare(&options, &account);
    REQUIRE(td_store_rows(store) == 2);
    CHECK(td_store_read_row(store, 1, tokens, trained) == TD_OK);
    CHECK_INT(tokens[0], 3);
    close_all(store, &account);
}

int main(void) {
    REQUIRE(td_tokenizer_open(TEST_FIXTURES "/tokenizers/smollm", &tokenizer) == TD_OK);
    TEST(rows_keep_their_order_on_any_number_of_threads);
    TEST(bad_rows_stop_with_file_and_line);
    TEST(bad_rows_are_skipped_and_counted);
    TEST(store_and_file_carry_the_account);
    TEST(long_rows_follow_the_policy);
    TEST(files_without_usable_rows_are_refused);
    TEST(a_tokenizer_of_another_model_is_not_skipped);
    TEST(a_share_of_the_rows_is_set_apart);
    TEST(a_small_split_is_never_empty);
    TEST(the_fingerprint_knows_what_changes_the_result);
    TEST(several_files_follow_each_other);
    td_tokenizer_close(tokenizer);
    return test_report();
}
