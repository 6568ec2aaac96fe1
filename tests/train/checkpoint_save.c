// Saving and resuming, by all ranks of the job.
#include "checkpoint_run.h"

static td_comm *comm;
static char base[256];
static int is_first;

static void open_run(toy_run *run, const char *name) {
    char folder[512];
    snprintf(folder, sizeof folder, "%s/%s", base, name);
    REQUIRE(td_comm_barrier(comm, "test") == TD_OK);
    run_open(run, comm, folder);
}

static void sync_ranks(void) {
    REQUIRE(td_comm_barrier(comm, "test") == TD_OK);
}

static void a_saved_run_comes_back(void) {
    toy_run run;
    open_run(&run, "back");
    td_checkpoint_writer *writer = run_writer(&run);
    CHECK_INT(run_resume(&run, "auto"), -1);
    run_fill(&run, 10);
    td_checkpoint_meta meta = run_meta(10);
    meta.has_best = 1;
    meta.best_loss = 1.0 / 3;
    meta.best_step = 7;
    int64_t committed = 0;
    CHECK_INT(td_checkpoint_save(writer, &meta, run.params, run.pager), TD_OK);
    CHECK_INT(td_checkpoint_finish(writer, &committed), TD_OK);
    CHECK_INT(committed, 10);
    td_checkpoint_destroy(writer);
    CHECK_INT(run_resume(&run, "auto"), 10);
    td_checkpoint *found = NULL;
    REQUIRE(td_checkpoint_find(&run.options, "auto", &found) == TD_OK && found);
    CHECK_INT(found->world_size, td_comm_size(comm));
    CHECK(memcmp(&found->meta.best_loss, &meta.best_loss, sizeof meta.best_loss) == 0);
    CHECK(found->meta.has_best && found->meta.best_step == 7 && found->meta.epoch == 1);
    CHECK(found->meta.tokens_seen == 3210 && found->meta.seed == 42);
    // Parameters alone, for evaluation and for the best model at the end.
    memset(run.params, 0, RUN_ELEMENTS * sizeof(float));
    CHECK_INT(td_checkpoint_load(found, &run.options, run.params, NULL), TD_OK);
    CHECK(run_holds(&run, 10));
    td_checkpoint_close(found);
    CHECK_INT(td_checkpoint_newest_step(run.folder), 10);
    CHECK_INT(td_checkpoint_newest_step("/nowhere"), -1);
    run_close(&run);
}

static void a_run_smaller_than_a_page_comes_back(void) {
    toy_run run;
    char folder[512];
    snprintf(folder, sizeof folder, "%s/small", base);
    sync_ranks();
    run_open_sized(&run, comm, folder, 5);
    td_checkpoint_writer *writer = run_writer(&run);
    CHECK_INT(run_write(&run, writer, 3), TD_OK);
    td_checkpoint_destroy(writer);
    CHECK_INT(run_resume(&run, "auto"), 3);
    run_close(&run);
}

static void polling_commits_once_all_have_written(void) {
    toy_run run;
    open_run(&run, "poll");
    td_checkpoint_writer *writer = run_writer(&run);
    int64_t committed = 0;
    CHECK_INT(td_checkpoint_poll(writer, &committed), TD_OK);
    CHECK_INT(committed, -1);
    CHECK_INT(run_save(&run, writer, 4), TD_OK);
    for (int i = 0; i < 30000 && committed < 0; i++) {
        REQUIRE(td_checkpoint_poll(writer, &committed) == TD_OK);
        usleep(1000);
    }
    CHECK_INT(committed, 4);
    CHECK_INT(td_checkpoint_poll(writer, &committed), TD_OK);
    CHECK_INT(committed, -1);
    td_checkpoint_destroy(writer);
    CHECK_INT(run_resume(&run, "auto"), 4);
    run_close(&run);
}

static void the_next_save_commits_the_one_before(void) {
    toy_run run;
    open_run(&run, "next");
    td_checkpoint_writer *writer = run_writer(&run);
    CHECK_INT(run_save(&run, writer, 1), TD_OK);
    CHECK_INT(run_save(&run, writer, 2), TD_OK);
    CHECK_INT(run_resume(&run, "auto"), 1);
    CHECK_INT(td_checkpoint_finish(writer, NULL), TD_OK);
    CHECK_INT(run_resume(&run, "auto"), 2);
    td_checkpoint_destroy(writer);
    run_close(&run);
}

static td_status wait_a_moment(td_checkpoint_phase phase) {
    if (phase == TD_CHECKPOINT_WRITE)
        usleep(3000);
    return TD_OK;
}

static void what_changes_after_save_does_not_show(void) {
    toy_run run;
    open_run(&run, "late");
    td_checkpoint_writer *writer = run_writer(&run);
    REQUIRE(run_write(&run, writer, 5) == TD_OK);
    char path[TD_PATH_MAX], name[TD_CHECKPOINT_NAME_CHARS];
    td_shard_name(name, 0, td_comm_size(comm));
    run_path(&run, 5, name, path);
    td_hash waited = {0}, overtaken = {1, 1};
    CHECK_INT(td_hash_file(path, &waited), TD_OK);
    sync_ranks();
    td_checkpoint_test_hook = wait_a_moment;
    CHECK_INT(run_save(&run, writer, 5), TD_OK);
    run_fill(&run, 6); // while the thread writes
    CHECK_INT(td_checkpoint_finish(writer, NULL), TD_OK);
    td_checkpoint_test_hook = NULL;
    CHECK_INT(td_hash_file(path, &overtaken), TD_OK);
    CHECK(td_hash_equal(waited, overtaken));
    td_checkpoint_destroy(writer);
    CHECK_INT(run_resume(&run, "auto"), 5);
    run_close(&run);
}

static void save_steps(toy_run *run, int64_t keep_last, int64_t best_step, int64_t n) {
    run->options.keep_last = keep_last;
    td_checkpoint_writer *writer = run_writer(run);
    for (int64_t step = 1; step <= n; step++) {
        td_checkpoint_meta meta = run_meta(step);
        meta.has_best = best_step > 0 && step >= best_step;
        meta.best_step = best_step;
        run_fill(run, step);
        CHECK_INT(td_checkpoint_save(writer, &meta, run->params, run->pager), TD_OK);
    }
    CHECK_INT(td_checkpoint_finish(writer, NULL), TD_OK);
    td_checkpoint_destroy(writer);
    sync_ranks();
}

static void the_last_n_and_the_best_are_kept(void) {
    toy_run run;
    open_run(&run, "keep2");
    save_steps(&run, 2, 3, 7);
    for (int64_t step = 1; step <= 7; step++)
        CHECK_INT(run_has_step(&run, step), step == 3 || step >= 6);
    CHECK_INT(run_count(&run, ".tmp-"), 0);
    char path[TD_PATH_MAX];
    char *text = NULL;
    snprintf(path, sizeof path, "%s/checkpoints/latest", run.folder);
    REQUIRE(td_file_read(path, 100, &text, NULL) == TD_OK);
    CHECK_STRING(text, "step-000007\n");
    free(text);
    run_close(&run);
    open_run(&run, "keep1");
    save_steps(&run, 1, 0, 3);
    CHECK_INT(run_count(&run, "step-"), 1);
    CHECK_INT(run_resume(&run, "auto"), 3);
    run_close(&run);
    open_run(&run, "keepall");
    save_steps(&run, 0, 0, 4);
    CHECK_INT(run_count(&run, "step-"), 4);
    run_close(&run);
}

// As in a run that fails while a save is under way.
static void a_save_that_is_not_committed_leaves_nothing(void) {
    toy_run run;
    open_run(&run, "uncommitted");
    td_checkpoint_writer *writer = run_writer(&run);
    td_checkpoint_meta meta = run_meta(1);
    run_fill(&run, 1);
    CHECK_INT(td_checkpoint_save(writer, &meta, run.params, run.pager), TD_OK);
    td_checkpoint_destroy(writer);
    sync_ranks();
    CHECK_STRING(td_error_message(), "");
    CHECK_INT(run_count(&run, ".tmp-"), 0);
    CHECK_INT(run_count(&run, "step-"), 0);
    run_close(&run);
}

static void a_step_can_be_saved_again(void) {
    toy_run run;
    char path[TD_PATH_MAX];
    open_run(&run, "again");
    td_checkpoint_writer *writer = run_writer(&run);
    CHECK_INT(run_write(&run, writer, 1), TD_OK);
    CHECK_INT(run_write(&run, writer, 2), TD_OK);
    run_path(&run, 2, "manifest.json", path);
    if (is_first)
        REQUIRE(unlink(path) == 0);
    sync_ranks();
    CHECK_INT(run_resume(&run, "auto"), 1);
    CHECK_INT(run_write(&run, writer, 2), TD_OK);
    CHECK_INT(run_resume(&run, "auto"), 2);
    CHECK_INT(run_count(&run, ".tmp-"), 0);
    td_checkpoint_destroy(writer);
    run_close(&run);
}

static int adapter_calls;

static td_status write_adapter(void *context, const char *folder, const float *params) {
    char path[TD_PATH_MAX];
    adapter_calls++;
    TD_TRY(td_path_join(path, folder, "adapter_config.json"));
    TD_TRY(td_file_write_atomic(path, context, strlen(context)));
    TD_TRY(td_path_join(path, folder, "adapter_model.safetensors"));
    return td_file_write_atomic(path, params, RUN_ELEMENTS * sizeof *params);
}

static void check_adapter(const toy_run *run, int64_t step) {
    char path[TD_PATH_MAX];
    char *bytes = NULL;
    size_t n_bytes = 0;
    run_path(run, step, "adapter_model.safetensors", path);
    REQUIRE(td_file_read(path, 1 << 20, &bytes, &n_bytes) == TD_OK);
    REQUIRE(n_bytes == RUN_ELEMENTS * sizeof(float));
    for (int64_t i = 0; i < RUN_ELEMENTS; i++) {
        float expected = run_param(step, i);
        CHECK(memcmp(bytes + i * 4, &expected, sizeof expected) == 0);
    }
    free(bytes);
}

static void the_adapter_is_part_of_the_checkpoint(void) {
    toy_run run;
    char path[TD_PATH_MAX];
    open_run(&run, "adapter");
    run.options.write_adapter = write_adapter;
    run.options.write_adapter_context = (void *)"{}";
    adapter_calls = 0;
    td_checkpoint_writer *writer = run_writer(&run);
    CHECK_INT(run_write(&run, writer, 1), TD_OK);
    CHECK_INT(run_write(&run, writer, 2), TD_OK);
    td_checkpoint_destroy(writer);
    CHECK_INT(adapter_calls, is_first ? 2 : 0);
    check_adapter(&run, 2);
    run_path(&run, 2, ".adapter", path);
    CHECK(!td_path_exists(path));
    run_path(&run, 2, "adapter_config.json", path);
    sync_ranks();
    if (is_first)
        REQUIRE(unlink(path) == 0);
    sync_ranks();
    CHECK_INT(run_resume(&run, "auto"), 1); // without it the checkpoint is not whole
    run_close(&run);
}

static void the_identity_must_match(void) {
    toy_run run;
    open_run(&run, "identity");
    cJSON *then = cJSON_Parse("{\"lora_r\": 16, \"learning_rate\": 0.5}");
    cJSON *now = cJSON_Parse("{\"lora_r\": 16, \"learning_rate\": 0.25}");
    run.options.config = then;
    td_checkpoint_writer *writer = run_writer(&run);
    CHECK_INT(run_write(&run, writer, 1), TD_OK);
    td_checkpoint_destroy(writer);
    td_checkpoint_identity right = run.options.identity;
    run.options.identity.base_model.low ^= 1;
    CHECK_INT(run_resume(&run, "auto"), -2);
    CHECK_MESSAGE("another base model");
    run.options.identity = right;
    run.options.identity.data.high ^= 1;
    CHECK_INT(run_resume(&run, "auto"), -2);
    CHECK_MESSAGE("other training data");
    run.options.identity = right;
    run.options.identity.layout.high ^= 1;
    CHECK_INT(run_resume(&run, "auto"), -2);
    CHECK_MESSAGE("other modules");
    run.options.identity = right;
    run.options.identity.config.low ^= 1;
    run.options.config = now;
    CHECK_INT(run_resume(&run, "auto"), -2);
    CHECK_MESSAGE("learning_rate was 0.5 and is now 0.25");
    run.options.identity = right;
    run.options.map.page_elements = 64;
    CHECK_INT(run_resume(&run, "auto"), -2);
    CHECK_MESSAGE("another size");
    cJSON_Delete(then);
    cJSON_Delete(now);
    run_close(&run);
}

static void a_newer_incarnation_fences_the_old_one(void) {
    toy_run run;
    open_run(&run, "fence");
    td_checkpoint_writer *old_writer = run_writer(&run);
    CHECK_INT(run_write(&run, old_writer, 1), TD_OK);
    CHECK_INT(run_save(&run, old_writer, 2), TD_OK); // written, and then it hangs
    td_checkpoint_writer *new_writer = run_writer(&run);
    CHECK_INT(td_checkpoint_finish(old_writer, NULL), TD_ERR_IO);
    CHECK_MESSAGE("another incarnation");
    CHECK(td_checkpoint_is_fenced(old_writer) && !td_checkpoint_is_fenced(new_writer));
    CHECK(!run_has_step(&run, 2));
    CHECK_INT(run_resume(&run, "auto"), 1);
    CHECK_INT(run_write(&run, old_writer, 3), TD_ERR_IO);
    CHECK_MESSAGE("another incarnation");
    CHECK_INT(run_write(&run, new_writer, 2), TD_OK);
    CHECK_INT(run_resume(&run, "auto"), 2);
    td_checkpoint_destroy(old_writer);
    td_checkpoint_destroy(new_writer);
    run_close(&run);
}

// Nothing is cleaned away here: the comparison alone must stop the old process, also in the last
// moment.
static void take_incarnation(const char *folder) {
    char incarnation[TD_INCARNATION_CHARS];
    if (is_first)
        REQUIRE(td_incarnation_take(folder, incarnation) == TD_OK);
}

static char fenced_folder[512];

static td_status take_over_at_the_manifest(td_checkpoint_phase phase) {
    if (phase == TD_CHECKPOINT_MANIFEST)
        take_incarnation(fenced_folder);
    return TD_OK;
}

static void check_fenced(toy_run *run, td_checkpoint_writer *writer, td_status status) {
    CHECK_INT(status, TD_ERR_IO);
    CHECK(td_comm_is_agreed(comm));
    CHECK_MESSAGE("another incarnation");
    CHECK(td_checkpoint_is_fenced(writer) && !run_has_step(run, 2));
    sync_ranks();
    CHECK_INT(run_resume(run, "auto"), 1);
    td_checkpoint_destroy(writer);
}

static void a_fenced_process_cannot_commit_at_any_moment(void) {
    toy_run run;
    open_run(&run, "fence2");
    td_checkpoint_writer *writer = run_writer(&run);
    CHECK_INT(run_write(&run, writer, 1), TD_OK);
    take_incarnation(run.folder); // before the save
    check_fenced(&run, writer, run_save(&run, writer, 2));
    writer = run_writer(&run);
    CHECK_INT(run_save(&run, writer, 2), TD_OK);
    take_incarnation(run.folder); // before the commit
    check_fenced(&run, writer, td_checkpoint_finish(writer, NULL));
    writer = run_writer(&run);
    snprintf(fenced_folder, sizeof fenced_folder, "%s", run.folder);
    td_checkpoint_test_hook = take_over_at_the_manifest; // within the commit
    td_status status = run_write(&run, writer, 2);
    td_checkpoint_test_hook = NULL;
    check_fenced(&run, writer, status);
    run_close(&run);
}

static void later_steps_are_not_purged(void) {
    toy_run run;
    open_run(&run, "future");
    run.options.keep_last = 1;
    td_checkpoint_writer *writer = run_writer(&run);
    CHECK_INT(run_write(&run, writer, 5), TD_OK);
    CHECK_INT(run_write(&run, writer, 2), TD_OK); // went back by hand
    CHECK_INT(run_write(&run, writer, 3), TD_OK);
    sync_ranks();
    CHECK(run_has_step(&run, 5) && run_has_step(&run, 3) && !run_has_step(&run, 2));
    td_checkpoint_destroy(writer);
    run_close(&run);
}

static td_checkpoint_phase failing_phase;
static int failing_rank;

static td_status fail_there(td_checkpoint_phase phase) {
    if (phase != failing_phase || td_comm_rank(comm) != failing_rank)
        return TD_OK;
    return td_fail(TD_ERR_IO, "test: failure at phase %d", (int)phase);
}

// Of phases before the rename. The file of the failing rank exists.
static void check_failure_at(toy_run *run, td_checkpoint_writer *writer, td_checkpoint_phase phase,
                             int rank) {
    failing_phase = phase;
    failing_rank = rank;
    td_checkpoint_test_hook = fail_there;
    CHECK_INT(run_write(run, writer, 50), TD_ERR_IO);
    CHECK(td_comm_is_agreed(comm)); // all ranks leave together, nobody aborts
    td_checkpoint_test_hook = NULL;
    CHECK_MESSAGE("test: failure at phase");
    sync_ranks();
    CHECK(!run_has_step(run, 50) && !td_checkpoint_is_fenced(writer));
    CHECK_INT(run_count(run, ".tmp-"), 0);
    CHECK_INT(run_resume(run, "auto"), 1);
}

static void a_failed_save_leaves_nothing_and_can_be_repeated(void) {
    toy_run run;
    open_run(&run, "fail");
    td_checkpoint_writer *writer = run_writer(&run);
    CHECK_INT(run_write(&run, writer, 1), TD_OK);
    int last_writer = td_comm_size(comm) < run.options.map.n_pages
                          ? td_comm_size(comm) - 1
                          : (int)run.options.map.n_pages - 1;
    for (int phase = TD_CHECKPOINT_CREATE; phase <= TD_CHECKPOINT_RENAME; phase++)
        check_failure_at(&run, writer, (td_checkpoint_phase)phase,
                         phase < TD_CHECKPOINT_MANIFEST ? last_writer : 0);
    CHECK_INT(run_write(&run, writer, 50), TD_OK);
    CHECK_INT(run_resume(&run, "auto"), 50);
    td_checkpoint_destroy(writer);
    run_close(&run);
}

static void failures_after_the_commit_are_warnings(void) {
    toy_run run;
    open_run(&run, "warn");
    run.options.keep_last = 1;
    td_checkpoint_writer *writer = run_writer(&run);
    CHECK_INT(run_write(&run, writer, 1), TD_OK);
    td_checkpoint_test_hook = fail_there;
    failing_rank = 0;
    failing_phase = TD_CHECKPOINT_LATEST;
    CHECK_INT(run_write(&run, writer, 2), TD_OK);
    failing_phase = TD_CHECKPOINT_PURGE;
    CHECK_INT(run_write(&run, writer, 3), TD_OK);
    td_checkpoint_test_hook = NULL;
    CHECK_STRING(td_error_message(), "");
    sync_ranks();
    CHECK(run_has_step(&run, 2)); // not purged
    CHECK_INT(run_resume(&run, "auto"), 3);
    CHECK_INT(run_write(&run, writer, 4), TD_OK);
    sync_ranks();
    CHECK_INT(run_count(&run, "step-"), 1);
    td_checkpoint_destroy(writer);
    run_close(&run);
}

static atomic_int failures_left;

static td_status fail_once(td_checkpoint_phase phase) {
    if (phase != TD_CHECKPOINT_WRITE || !is_first || atomic_fetch_sub(&failures_left, 1) <= 0)
        return TD_OK;
    return td_fail(TD_ERR_IO, "test: failure");
}

static void a_failed_save_does_not_stop_the_next(void) {
    toy_run run;
    open_run(&run, "skip");
    td_checkpoint_writer *writer = run_writer(&run);
    atomic_store(&failures_left, 1);
    td_checkpoint_test_hook = fail_once;
    CHECK_INT(run_save(&run, writer, 1), TD_OK);
    CHECK_INT(run_save(&run, writer, 2), TD_OK);
    CHECK_INT(td_checkpoint_finish(writer, NULL), TD_OK);
    td_checkpoint_test_hook = NULL;
    CHECK_STRING(td_error_message(), "");
    CHECK(!run_has_step(&run, 1));
    CHECK_INT(run_resume(&run, "auto"), 2);
    td_checkpoint_destroy(writer);
    run_close(&run);
}

static void an_unusable_folder_is_refused_on_all_ranks(void) {
    toy_run run;
    char path[TD_PATH_MAX];
    td_checkpoint_writer *writer = NULL;
    open_run(&run, "unusable");
    snprintf(path, sizeof path, "%s/checkpoints", run.folder);
    if (is_first)
        REQUIRE(td_file_write_atomic(path, "x", 1) == TD_OK);
    sync_ranks();
    CHECK_INT(td_checkpoint_create(&run.options, &writer), TD_ERR_IO);
    CHECK_MESSAGE("unusable/checkpoints");
    CHECK(writer == NULL);
    run_close(&run);
}

static void the_plan_is_what_the_snapshot_takes(void) {
    td_page_map map;
    int rank = td_comm_rank(comm), size = td_comm_size(comm);
    REQUIRE(td_page_map_init(&map, 1000, 128, size) == TD_OK);
    int64_t owned = td_page_map_owned_count(&map, rank);
    CHECK_INT(td_checkpoint_plan(&map, 50, rank),
              ((rank ? owned : 8) + 1) * 128 * 4 + (owned + 1) * 50);
}

int main(void) {
    REQUIRE(td_comm_bootstrap(&comm) == TD_OK);
    is_first = td_comm_rank(comm) == 0;
    td_log_init(TD_LOG_ERROR, td_comm_rank(comm), td_comm_size(comm));
    shared_scratch(comm, base);
    TEST(a_saved_run_comes_back);
    TEST(a_run_smaller_than_a_page_comes_back);
    TEST(polling_commits_once_all_have_written);
    TEST(the_next_save_commits_the_one_before);
    TEST(what_changes_after_save_does_not_show);
    TEST(the_last_n_and_the_best_are_kept);
    TEST(a_save_that_is_not_committed_leaves_nothing);
    TEST(a_step_can_be_saved_again);
    TEST(the_adapter_is_part_of_the_checkpoint);
    TEST(the_identity_must_match);
    TEST(a_newer_incarnation_fences_the_old_one);
    TEST(a_fenced_process_cannot_commit_at_any_moment);
    TEST(later_steps_are_not_purged);
    TEST(a_failed_save_leaves_nothing_and_can_be_repeated);
    TEST(failures_after_the_commit_are_warnings);
    TEST(a_failed_save_does_not_stop_the_next);
    TEST(an_unusable_folder_is_refused_on_all_ranks);
    TEST(the_plan_is_what_the_snapshot_takes);
    sync_ranks();
    if (is_first)
        td_folder_remove_tree(base);
    REQUIRE(td_comm_finish(comm) == TD_OK);
    return test_report();
}
