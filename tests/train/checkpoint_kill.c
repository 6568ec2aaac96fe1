// A process that dies, or whose disk is full, at any point of a save: what was committed before
// loads, and the next start cleans up. Each victim is this program once more: checkpoint_kill
// victim FOLDER PHASE FILE_LIMIT
#include <errno.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "checkpoint_run.h"

// HDF5 itself loses a few bytes with a file that it cannot close. For the sanitizer; else nobody
// calls it.
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void) {
    return "leak:libhdf5";
}

static td_comm *comm;
static char base[256];
static const char *program;
static int kill_at = -1;

static td_status die_there(td_checkpoint_phase phase) {
    if ((int)phase == kill_at)
        raise(SIGKILL);
    return TD_OK;
}

// 0: no limit.
static void limit_files(long bytes) {
    struct rlimit limit;
    REQUIRE(getrlimit(RLIMIT_FSIZE, &limit) == 0);
    limit.rlim_cur = bytes > 0 ? (rlim_t)bytes : limit.rlim_max;
    REQUIRE(setrlimit(RLIMIT_FSIZE, &limit) == 0);
}

// Checkpoints of steps 1, 2 and 3, two kept; from step 3 on the end may come. Ends with the status
// of the last save.
static int victim(const char *folder, int phase, long file_limit) {
    toy_run run;
    REQUIRE(td_comm_bootstrap(&comm) == TD_OK);
    run_open(&run, comm, folder);
    run.options.keep_last = 2;
    td_checkpoint_writer *writer = run_writer(&run);
    REQUIRE(run_write(&run, writer, 1) == TD_OK);
    REQUIRE(run_write(&run, writer, 2) == TD_OK);
    kill_at = phase;
    td_checkpoint_test_hook = die_there;
    limit_files(file_limit);
    td_status status = run_write(&run, writer, 3);
    limit_files(0);
    if (status != TD_OK) {
        CHECK_MESSAGE("File too large");
        CHECK_INT(run_resume(&run, "auto"), 2);
        CHECK_INT(run_count(&run, ".tmp-"), 0);
        CHECK_INT(run_write(&run, writer, 4), TD_OK); // there is room again
        CHECK_INT(run_resume(&run, "auto"), 4);
    }
    td_checkpoint_destroy(writer);
    run_close(&run);
    return test_failures_ ? 99 : (int)status;
}

// Wait status of a victim.
static int run_victim(const char *folder, int phase, long file_limit) {
    char phase_text[16], limit_text[32];
    snprintf(phase_text, sizeof phase_text, "%d", phase);
    snprintf(limit_text, sizeof limit_text, "%ld", file_limit);
    fflush(NULL);
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        signal(SIGXFSZ, SIG_IGN);
        execl(program, program, "victim", folder, phase_text, limit_text, (char *)NULL);
        _exit(98);
    }
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child);
    return status;
}

static void run_folder(const char *name, int number, char out[512]) {
    snprintf(out, 512, "%s/%s-%d", base, name, number);
}

static void check_kill_at(int phase) {
    char folder[512];
    toy_run run;
    run_folder("kill", phase, folder);
    int status = run_victim(folder, phase, 0);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    run_open(&run, comm, folder);
    // Once it has its name, the new checkpoint is whole: it may and must be the one that loads.
    int64_t expected = phase > TD_CHECKPOINT_RENAME ? 3 : 2;
    CHECK_INT(run_resume(&run, "auto"), expected);
    CHECK_STRING(td_error_message(), "");
    td_checkpoint_writer *writer = run_writer(&run);
    CHECK_INT(run_count(&run, ".tmp-"), 0);
    CHECK_INT(run_resume(&run, "auto"), expected);
    CHECK_INT(run_write(&run, writer, 3), TD_OK);
    CHECK_INT(run_resume(&run, "auto"), 3);
    td_checkpoint_destroy(writer);
    run_close(&run);
}

static void the_checkpoint_before_survives_a_kill_at_every_phase(void) {
    for (int phase = 0; phase < TD_CHECKPOINT_PHASE_COUNT; phase++)
        check_kill_at(phase);
}

static void an_undisturbed_victim_succeeds(void) {
    char folder[512];
    run_folder("whole", 0, folder);
    int status = run_victim(folder, -1, 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

// Writes fail beyond a size, as on a full disk: in the first pages, in the tables, in the last
// bytes.
static void check_full_at(long limit) {
    char folder[512];
    toy_run run;
    run_folder("full", (int)limit, folder);
    int status = run_victim(folder, -1, limit);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == TD_ERR_IO);
    run_open(&run, comm, folder);
    CHECK_INT(run_resume(&run, "auto"), 4);
    CHECK(!run_has_step(&run, 3));
    run_close(&run);
}

static long shard_bytes(void) {
    char folder[512], path[TD_PATH_MAX];
    uint64_t bytes = 0;
    toy_run run;
    run_folder("whole", 0, folder);
    run_open(&run, comm, folder);
    run_path(&run, 3, "pages-00000-of-00001.h5", path);
    REQUIRE(td_file_size(path, &bytes) == TD_OK);
    run_close(&run);
    return (long)bytes;
}

static void a_full_disk_keeps_the_old_checkpoint(void) {
    long bytes = shard_bytes();
    for (int i = 1; i <= 8; i++)
        check_full_at(bytes * i / 9);
    check_full_at(bytes - 1);
}

// What a killed exchange leaves on a file system that cannot exchange names in one operation.
static void a_checkpoint_that_stepped_aside_gets_its_name_back(void) {
    char folder[512], from[TD_PATH_MAX], to[TD_PATH_MAX];
    toy_run run;
    run_folder("aside", 0, folder);
    run_open(&run, comm, folder);
    td_checkpoint_writer *writer = run_writer(&run);
    REQUIRE(run_write(&run, writer, 4) == TD_OK);
    td_checkpoint_destroy(writer);
    REQUIRE(td_checkpoint_step_folder(from, folder, 4) == TD_OK);
    snprintf(to, sizeof to, "%s/checkpoints/.tmp-step-000004-1-00-old", folder);
    REQUIRE(rename(from, to) == 0);
    CHECK_INT(run_resume(&run, "auto"), -1);
    td_checkpoint_destroy(run_writer(&run));
    CHECK_INT(run_resume(&run, "auto"), 4);
    CHECK_INT(run_count(&run, ".tmp-"), 0);
    run_close(&run);
}

static void other_files_in_the_folder_are_left_alone(void) {
    char folder[512], path[TD_PATH_MAX];
    toy_run run;
    run_folder("other", 0, folder);
    run_open(&run, comm, folder);
    run.options.keep_last = 1;
    snprintf(path, sizeof path, "%s/checkpoints/step-7", folder); // not a name of ours
    REQUIRE(td_folder_make(path) == TD_OK);
    td_checkpoint_writer *writer = run_writer(&run);
    CHECK_INT(run_write(&run, writer, 8), TD_OK);
    CHECK_INT(run_write(&run, writer, 9), TD_OK);
    CHECK(td_path_exists(path) && !run_has_step(&run, 8));
    CHECK_INT(run_resume(&run, "auto"), 9);
    td_checkpoint_destroy(writer);
    run_close(&run);
}

int main(int argc, char **argv) {
    program = argv[0];
    if (argc == 5 && strcmp(argv[1], "victim") == 0)
        return victim(argv[2], atoi(argv[3]), atol(argv[4]));
    REQUIRE(td_comm_bootstrap(&comm) == TD_OK);
    shared_scratch(comm, base);
    TEST(an_undisturbed_victim_succeeds);
    TEST(the_checkpoint_before_survives_a_kill_at_every_phase);
    TEST(a_full_disk_keeps_the_old_checkpoint);
    TEST(a_checkpoint_that_stepped_aside_gets_its_name_back);
    TEST(other_files_in_the_folder_are_left_alone);
    td_folder_remove_tree(base);
    REQUIRE(td_comm_finish(comm) == TD_OK);
    return test_report();
}
