// manifest.json as untrusted input.
#include "checkpoint_run.h"
#include "runtime/core/json.h"

static td_manifest make_manifest(int size) {
    td_manifest manifest = {.meta = run_meta(12),
                            .identity = {.base_model = run_hash("base"),
                                         .data = run_hash("data"),
                                         .config = run_hash("config"),
                                         .layout = run_hash("layout")},
                            .state_bytes = RUN_STATE_BYTES,
                            .incarnation = "3-0123456789abcdef",
                            .config = cJSON_Parse("{\"lora_r\": 16, \"learning_rate\": 0.1}")};
    manifest.meta.has_best = 1;
    manifest.meta.best_loss = 0.1 + 0.2;
    manifest.meta.best_step = 5;
    REQUIRE(td_page_map_init(&manifest.map, RUN_ELEMENTS, RUN_PAGE, size) == TD_OK);
    for (int rank = 0; rank < size; rank++) {
        char name[TD_CHECKPOINT_NAME_CHARS];
        td_shard_name(name, rank, size);
        REQUIRE(td_manifest_add_file(&manifest, name, 1000 + (uint64_t)rank, run_hash(name)) ==
                TD_OK);
    }
    return manifest;
}

static char *print_manifest(int size) {
    td_manifest manifest = make_manifest(size);
    char *text = NULL;
    REQUIRE(td_manifest_print(&manifest, &text) == TD_OK);
    td_manifest_fini(&manifest);
    return text;
}

static int same_manifests(const td_manifest *a, const td_manifest *b) {
    int same = memcmp(&a->identity, &b->identity, sizeof a->identity) == 0 &&
               a->meta.step == b->meta.step && a->meta.epoch == b->meta.epoch &&
               a->meta.tokens_seen == b->meta.tokens_seen && a->meta.seed == b->meta.seed &&
               a->meta.has_best == b->meta.has_best && a->meta.best_step == b->meta.best_step &&
               a->meta.best_loss == b->meta.best_loss && a->map.size == b->map.size &&
               a->map.n_elements == b->map.n_elements &&
               a->map.page_elements == b->map.page_elements && a->state_bytes == b->state_bytes &&
               a->n_files == b->n_files && strcmp(a->incarnation, b->incarnation) == 0 &&
               cJSON_Compare(a->config, b->config, 1);
    for (int64_t i = 0; same && i < a->n_files; i++)
        same = strcmp(a->files[i].name, b->files[i].name) == 0 &&
               a->files[i].bytes == b->files[i].bytes &&
               td_hash_equal(a->files[i].hash, b->files[i].hash);
    return same;
}

static void a_printed_manifest_reads_back(void) {
    td_manifest manifest = make_manifest(3), back = {0};
    char *text = print_manifest(3);
    CHECK_INT(td_manifest_parse("m", text, strlen(text), &back), TD_OK);
    CHECK(same_manifests(&manifest, &back));
    CHECK(strstr(text, "\n\t\"step\":\t12") != NULL); // for people
    td_manifest_fini(&back);
    td_manifest_fini(&manifest);
    free(text);
}

static void every_flipped_bit_is_an_error_or_changes_nothing(void) {
    td_manifest manifest = make_manifest(2);
    char *text = print_manifest(2);
    size_t bytes = strlen(text), unchanged = 0;
    for (size_t i = 0; i < bytes * 8; i++) {
        td_manifest back = {0};
        text[i / 8] ^= (char)(1 << (i % 8));
        td_status status = td_manifest_parse("m", text, bytes, &back);
        if (status == TD_OK) {
            CHECK(same_manifests(&manifest, &back));
            unchanged++;
        } else {
            CHECK(status == TD_ERR_DATA && td_error_message()[0]);
        }
        td_error_clear();
        td_manifest_fini(&back);
        text[i / 8] ^= (char)(1 << (i % 8));
    }
    CHECK(unchanged < bytes); // white space, and the case of the checksum's digits
    td_manifest_fini(&manifest);
    free(text);
}

static void a_cut_manifest_is_refused(void) {
    char *text = print_manifest(2);
    size_t bytes = strlen(text);
    for (size_t i = 0; i < bytes; i++) {
        td_manifest back = {0};
        CHECK_INT(td_manifest_parse("m", text, i, &back), TD_ERR_DATA);
        td_error_clear();
        td_manifest_fini(&back);
    }
    free(text);
}

// Parses the manifest after `change`, with a checksum that fits it.
static td_status parse_changed(void (*change)(cJSON *root)) {
    char *text = print_manifest(2);
    cJSON *root = cJSON_Parse(text);
    free(text);
    cJSON_DeleteItemFromObject(root, "checksum");
    change(root);
    char *flat = td_json_print(root, 0), hex[TD_HASH_HEX_CHARS];
    td_hash_to_hex(td_hash_bytes(flat, strlen(flat)), hex);
    cJSON_AddStringToObject(root, "checksum", hex);
    text = td_json_print(root, 1);
    td_manifest back = {0};
    td_status status = td_manifest_parse("m", text, strlen(text), &back);
    td_manifest_fini(&back);
    cJSON_Delete(root);
    free(flat);
    free(text);
    return status;
}

static cJSON *first_file(cJSON *root) {
    return cJSON_GetObjectItem(root, "files")->child;
}

static void change_nothing(cJSON *root) {
    (void)root;
}

static void change_format(cJSON *root) {
    cJSON_SetValuestring(cJSON_GetObjectItem(root, "format"), "other");
}

static void change_version(cJSON *root) {
    cJSON_SetNumberValue(cJSON_GetObjectItem(root, "format_version"), 1);
}

static void change_to_parent_path(cJSON *root) {
    cJSON_ReplaceItemInObject(first_file(root), "name", cJSON_CreateString("../../etc/passwd"));
}

static void change_to_absolute_path(cJSON *root) {
    cJSON_ReplaceItemInObject(first_file(root), "name", cJSON_CreateString("/etc/passwd"));
}

static void change_to_dots(cJSON *root) {
    cJSON_ReplaceItemInObject(first_file(root), "name", cJSON_CreateString(".."));
}

static void change_to_long_name(cJSON *root) {
    char name[300];
    memset(name, 'x', sizeof name);
    name[299] = '\0';
    cJSON_ReplaceItemInObject(first_file(root), "name", cJSON_CreateString(name));
}

static void change_to_other_line(cJSON *root) {
    cJSON_ReplaceItemInObject(first_file(root), "name", cJSON_CreateString("a\nerror: b"));
}

// Sparse files of such sizes cost an attacker nothing and their reader hours.
static void change_to_huge_shard(cJSON *root) {
    cJSON *shard = cJSON_GetArrayItem(cJSON_GetObjectItem(root, "files"), 1);
    cJSON_SetNumberValue(cJSON_GetObjectItem(shard, "bytes"), 1e9);
}

static void change_to_huge_file(cJSON *root) {
    cJSON_AddStringToObject(first_file(root), "was", "a shard");
    cJSON_ReplaceItemInObject(first_file(root), "name", cJSON_CreateString("other"));
    cJSON_SetNumberValue(cJSON_GetObjectItem(first_file(root), "bytes"), 1e12);
}

static void change_drop_shard(cJSON *root) {
    cJSON_DeleteItemFromArray(cJSON_GetObjectItem(root, "files"), 1);
}

static void change_ranks(cJSON *root) {
    cJSON_SetNumberValue(cJSON_GetObjectItem(root, "world_size"), 0);
}

static void change_pages(cJSON *root) {
    cJSON_SetNumberValue(cJSON_GetObjectItem(cJSON_GetObjectItem(root, "pages"), "n_pages"), 9);
}

static void change_page_size(cJSON *root) {
    cJSON *pages = cJSON_GetObjectItem(root, "pages");
    cJSON_SetNumberValue(cJSON_GetObjectItem(pages, "page_elements"), -1);
}

static void change_step(cJSON *root) {
    cJSON_SetNumberValue(cJSON_GetObjectItem(root, "step"), 1.5);
}

static void change_drop_config(cJSON *root) {
    cJSON_DeleteItemFromObject(root, "config");
}

static void change_bytes(cJSON *root) {
    cJSON_SetNumberValue(cJSON_GetObjectItem(first_file(root), "bytes"), -5);
}

static void check_refused(void (*change)(cJSON *root), td_status status, const char *part) {
    CHECK_INT(parse_changed(change), status);
    CHECK_MESSAGE(part);
}

// Somebody who can also make a fitting checksum.
static void what_is_out_of_range_is_refused(void) {
    CHECK_INT(parse_changed(change_nothing), TD_OK);
    check_refused(change_format, TD_ERR_DATA, "not the manifest");
    check_refused(change_version, TD_ERR_USAGE, "format version 1");
    check_refused(change_to_parent_path, TD_ERR_DATA, "\"../../etc/passwd\" is not allowed");
    check_refused(change_to_absolute_path, TD_ERR_DATA, "\"/etc/passwd\" is not allowed");
    check_refused(change_to_dots, TD_ERR_DATA, "\"..\" is not allowed");
    check_refused(change_to_long_name, TD_ERR_DATA, "is not allowed");
    check_refused(change_to_other_line, TD_ERR_DATA, "is not allowed");
    check_refused(change_to_huge_shard, TD_ERR_DATA, "would have 1000000000 bytes");
    check_refused(change_to_huge_file, TD_ERR_DATA, "would have 1000000000000 bytes");
    check_refused(change_drop_shard, TD_ERR_DATA, "does not list pages-00001-of-00002.h5");
    check_refused(change_ranks, TD_ERR_DATA, "world_size");
    check_refused(change_pages, TD_ERR_DATA, "9 pages do not fit");
    check_refused(change_page_size, TD_ERR_DATA, "page_elements");
    check_refused(change_step, TD_ERR_DATA, "step");
    check_refused(change_drop_config, TD_ERR_DATA, "config");
    check_refused(change_bytes, TD_ERR_DATA, "bytes");
}

static void space_is_asked_for(void) {
    CHECK_INT(td_checkpoint_require_space("/", 1), TD_OK);
    CHECK_INT(td_checkpoint_require_space("/", UINT64_MAX / 2), TD_ERR_IO);
    CHECK_MESSAGE("not enough space for a checkpoint");
    CHECK_INT(td_checkpoint_require_space("/", UINT64_MAX), TD_ERR_IO);
    CHECK_MESSAGE("not enough space for a checkpoint");
}

int main(void) {
    TEST(a_printed_manifest_reads_back);
    TEST(every_flipped_bit_is_an_error_or_changes_nothing);
    TEST(a_cut_manifest_is_refused);
    TEST(what_is_out_of_range_is_refused);
    TEST(space_is_asked_for);
    return test_report();
}
