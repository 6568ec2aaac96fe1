// status.h, log.h and progress.h.
#define _XOPEN_SOURCE 700
#define _DEFAULT_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include "runtime/core/log.h"
#include "runtime/core/progress.h"
#include "runtime/core/status.h"
#include "scratch.h"

static void the_first_message_is_kept(void) {
    CHECK_STRING(td_error_message(), "");
    CHECK_INT(td_fail(TD_ERR_DATA, "first %d", 1), TD_ERR_DATA);
    CHECK_INT(td_fail(TD_ERR_IO, "second"), TD_ERR_IO);
    CHECK_STRING(td_error_message(), "first 1");
    td_error_clear();
    CHECK_STRING(td_error_message(), "");
}

static void *message_of_another_thread(void *unused) {
    (void)unused;
    static char seen[8];
    snprintf(seen, sizeof seen, "%s", td_error_message());
    (void)td_fail(TD_ERR_IO, "other");
    return seen;
}

static void the_record_belongs_to_the_thread(void) {
    (void)td_fail(TD_ERR_DATA, "mine");
    pthread_t thread;
    void *seen;
    REQUIRE(pthread_create(&thread, NULL, message_of_another_thread, NULL) == 0);
    REQUIRE(pthread_join(thread, &seen) == 0);
    CHECK_STRING(seen, "");
    CHECK_STRING(td_error_message(), "mine");
    td_error_clear();
}

static void a_long_message_is_cut(void) {
    char text[5000];
    memset(text, 'x', sizeof text);
    text[sizeof text - 1] = '\0';
    (void)td_fail(TD_ERR_DATA, "%s", text);
    CHECK(strlen(td_error_message()) > 1000 && strlen(td_error_message()) < sizeof text - 1);
    td_error_clear();
}

static td_status two_steps(td_status first, int *reached) {
    TD_TRY(first);
    *reached = 1;
    return TD_OK;
}

static void try_returns_on_failure(void) {
    int reached = 0;
    CHECK_INT(two_steps(TD_ERR_IO, &reached), TD_ERR_IO);
    CHECK_INT(reached, 0);
    CHECK_INT(two_steps(TD_OK, &reached), TD_OK);
    CHECK_INT(reached, 1);
}

static int saved_stderr;

static void stderr_to(int file) {
    fflush(stderr);
    saved_stderr = dup(STDERR_FILENO);
    REQUIRE(dup2(file, STDERR_FILENO) >= 0);
}

static void stderr_back(void) {
    REQUIRE(dup2(saved_stderr, STDERR_FILENO) >= 0);
    close(saved_stderr);
}

static void read_into(int file, char *out, size_t room) {
    ssize_t got = read(file, out, room - 1);
    out[got > 0 ? got : 0] = '\0';
}

static void some_messages(void) {
    td_error("e %d", 1);
    td_warn("w");
    td_info("i");
    td_debug("d");
    td_log_progress(0, "p1");
    td_log_progress(1, "p2");
    td_info("two\nlines\x1b[31m");
}

// What some_messages() leaves in a pipe.
static void capture_in_pipe(char *out, size_t room) {
    int ends[2];
    REQUIRE(pipe(ends) == 0);
    stderr_to(ends[1]);
    some_messages();
    stderr_back();
    read_into(ends[0], out, room);
    close(ends[0]);
    close(ends[1]);
}

static void rank_0_prints_plain_lines(void) {
    char text[4096];
    td_log_init(TD_LOG_INFO, 0, 2);
    capture_in_pipe(text, sizeof text);
    CHECK_STRING(text, "error: e 1\nwarning: w\ni\np1\np2\ntwo lines [31m\n");
    CHECK_INT(td_log_get_level(), TD_LOG_INFO);
}

static void other_ranks_print_errors_with_a_prefix(void) {
    char text[4096];
    td_log_init(TD_LOG_DEBUG, 3, 4);
    capture_in_pipe(text, sizeof text);
    CHECK_STRING(text, "[3] error: e 1\n[3] warning: w\n[3] debug: d\n");
}

static void levels_filter(void) {
    char text[4096];
    td_log_init(TD_LOG_ERROR, -1, 1);
    capture_in_pipe(text, sizeof text);
    CHECK_STRING(text, "error: e 1\n");
}

static int open_terminal(int *out_other_side, unsigned short columns) {
    int side = posix_openpt(O_RDWR | O_NOCTTY);
    REQUIRE(side >= 0 && grantpt(side) == 0 && unlockpt(side) == 0);
    int terminal = open(ptsname(side), O_RDWR | O_NOCTTY);
    REQUIRE(terminal >= 0);
    struct termios mode;
    REQUIRE(tcgetattr(terminal, &mode) == 0);
    mode.c_oflag &= ~(tcflag_t)OPOST;
    REQUIRE(tcsetattr(terminal, TCSANOW, &mode) == 0);
    struct winsize window = {.ws_row = 10, .ws_col = columns};
    REQUIRE(ioctl(terminal, TIOCSWINSZ, &window) == 0);
    *out_other_side = side;
    return terminal;
}

static void a_terminal_line_is_rewritten_and_ended(void) {
    char text[4096];
    int side, terminal = open_terminal(&side, 6);
    td_log_init(TD_LOG_INFO, 0, 2);
    stderr_to(terminal);
    td_log_progress(0, "one");
    td_log_progress(0, "\u00e9longer than that");
    td_info("hello");
    td_log_progress(1, "end");
    td_info("bye");
    stderr_back();
    read_into(side, text, sizeof text);
    CHECK_STRING(text, "\rone\x1b[K\r\u00e9long\x1b[K\nhello\n\rend\x1b[K\nbye\n");
    close(terminal);
    close(side);
}

static void progress_words_tell_where_we_are(void) {
    td_progress before = td_progress_read();
    td_progress_phase(TD_PHASE_BACKWARD);
    td_progress_step(7);
    td_progress_micro_batch(2);
    td_progress_layer(5);
    td_progress_tick();
    td_progress after = td_progress_read();
    CHECK_INT(after.phase, TD_PHASE_BACKWARD);
    CHECK_INT(after.step, 7);
    CHECK_INT(after.micro_batch, 2);
    CHECK_INT(after.layer, 5);
    CHECK_INT(after.ticks - before.ticks, 5);
    CHECK_STRING(td_phase_name(TD_PHASE_BACKWARD), "backward");
    for (int phase = 0; phase < TD_PHASE_COUNT; phase++)
        CHECK(td_phase_name((td_phase)phase) != NULL);
    CHECK_STRING(td_phase_name((td_phase)99), "unknown phase");
}

int main(void) {
    TEST(the_first_message_is_kept);
    TEST(the_record_belongs_to_the_thread);
    TEST(a_long_message_is_cut);
    TEST(try_returns_on_failure);
    TEST(rank_0_prints_plain_lines);
    TEST(other_ranks_print_errors_with_a_prefix);
    TEST(levels_filter);
    TEST(a_terminal_line_is_rewritten_and_ended);
    TEST(progress_words_tell_where_we_are);
    return test_report();
}
