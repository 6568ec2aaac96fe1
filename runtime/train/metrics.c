#include "runtime/train/metrics.h"

#include <errno.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "runtime/core/files.h"
#include "runtime/core/json.h"
#include "runtime/core/log.h"

double td_seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

double td_perplexity(double loss) {
    return fmin(exp(loss), DBL_MAX);
}

// Between two progress lines where standard error is no terminal.
static const double plain_line_seconds = 2;

static int is_kept(const char *line, size_t bytes, int64_t steps_done, int evaluates_again) {
    int64_t step = 0;
    cJSON *row;
    if (td_json_parse("metrics.jsonl", line, bytes, &row) != TD_OK) {
        td_error_clear();
        return 0;
    }
    td_status status = td_json_int("metrics.jsonl", row, "step", 0, INT64_MAX / 2, &step);
    int is_repeated = step > steps_done || (step == steps_done && evaluates_again &&
                                            cJSON_HasObjectItem(row, "eval_loss"));
    cJSON_Delete(row);
    td_error_clear();
    return status == TD_OK && !is_repeated;
}

// Length of the leading lines that stay; a torn line ends them.
static size_t lines_to_keep(const char *text, int64_t steps_done, int evaluates_again) {
    const char *line = text, *end;
    while ((end = strchr(line, '\n')) &&
           is_kept(line, (size_t)(end - line), steps_done, evaluates_again))
        line = end + 1;
    return (size_t)(line - text);
}

// A copy takes the place of the file even when all lines stay: a copy of the run folder by hard
// links must not get this run's lines.
static td_status drop_later_lines(const char *path, int64_t steps_done, int evaluates_again) {
    char *text;
    size_t bytes;
    if (!td_path_exists(path))
        return TD_OK;
    TD_TRY(td_file_read_no_link(path, (size_t)1 << 32, &text, &bytes));
    size_t keep = lines_to_keep(text, steps_done, evaluates_again);
    td_status status = td_file_write_atomic(path, text, keep);
    free(text);
    return status;
}

static td_status open_lines(const char *path, FILE **out) {
    int file;
    TD_TRY(td_file_open_append(path, &file));
    *out = fdopen(file, "a");
    if (*out)
        return TD_OK;
    close(file);
    return td_fail(TD_ERR_IO, "%s: cannot be written: %s", path, strerror(errno));
}

td_status td_metrics_open(td_metrics *metrics, const char *folder, int64_t steps_done,
                          int evaluates_again, int64_t total_steps, int is_writer) {
    char path[TD_PATH_MAX];
    *metrics = (td_metrics){.total_steps = total_steps, .last = td_seconds_now()};
    if (!is_writer)
        return TD_OK;
    TD_TRY(td_path_join(path, folder, "metrics.jsonl"));
    TD_TRY(drop_later_lines(path, steps_done, evaluates_again));
    return open_lines(path, &metrics->file);
}

void td_metrics_close(td_metrics *metrics) {
    if (metrics->file && fclose(metrics->file) != 0)
        td_warn("metrics.jsonl: %s", strerror(errno));
    metrics->file = NULL;
}

static void format_duration(double seconds, char *out, size_t room) {
    long whole = seconds > 0 ? lround(seconds) : 0;
    if (whole >= 3600)
        snprintf(out, room, "%ld:%02ld:%02ld", whole / 3600, whole / 60 % 60, whole % 60);
    else
        snprintf(out, room, "%ld:%02ld", whole / 60, whole % 60);
}

static double smooth(double before, double now) {
    return before > 0 ? before + 0.1 * (now - before) : now;
}

static void write_line(td_metrics *metrics, const char *text) {
    if (fputs(text, metrics->file) < 0 || fflush(metrics->file) != 0) {
        td_warn("metrics.jsonl: %s; no more lines will be written", strerror(errno));
        fclose(metrics->file);
        metrics->file = NULL;
    }
}

// A terminal's line is rewritten with every step; elsewhere (under mpirun, in a log) lines would
// pile up.
static int is_time_to_show(td_metrics *metrics, int64_t index, double now) {
    if (!isatty(STDERR_FILENO) && index + 1 < metrics->total_steps &&
        now - metrics->shown < plain_line_seconds)
        return 0;
    metrics->shown = now;
    return 1;
}

static void show(const td_metrics *metrics, int64_t index, const td_step_result *result) {
    char eta[32];
    format_duration((double)(metrics->total_steps - index - 1) * metrics->step_seconds, eta,
                    sizeof eta);
    td_log_progress(index + 1 == metrics->total_steps,
                    "step %lld/%lld  loss %.4f  grad norm %.3f  lr %.2e  %.0f tokens/s  ETA %s",
                    (long long)index + 1, (long long)metrics->total_steps, result->loss,
                    result->grad_norm, result->learning_rate, metrics->rate, eta);
}

void td_metrics_step(td_metrics *metrics, int64_t index, const td_step_result *result, double epoch,
                     int write) {
    char line[512];
    double now = td_seconds_now(), seconds = now - metrics->last;
    metrics->last = now;
    metrics->step_seconds = smooth(metrics->step_seconds, seconds);
    metrics->rate = smooth(metrics->rate, seconds > 0 ? (double)result->tokens / seconds : 0);
    if (is_time_to_show(metrics, index, now))
        show(metrics, index, result);
    if (!write || !metrics->file)
        return;
    snprintf(line, sizeof line,
             "{\"step\": %lld, \"epoch\": %.6g, \"loss\": %.9g, \"grad_norm\": %.9g, "
             "\"learning_rate\": %.9g, \"tokens\": %lld, \"trained_tokens\": %lld, "
             "\"seconds\": %.6f, \"tokens_per_second\": %.1f}\n",
             (long long)index + 1, epoch, result->loss, result->grad_norm, result->learning_rate,
             (long long)result->tokens, (long long)result->trained_tokens, seconds,
             seconds > 0 ? (double)result->tokens / seconds : 0);
    write_line(metrics, line);
}

void td_metrics_evaluation(td_metrics *metrics, int64_t index, double loss, int is_best) {
    char line[256];
    td_info("step %lld: evaluation loss %.4f, perplexity %.3f%s", (long long)index + 1, loss,
            td_perplexity(loss), is_best ? " (best)" : "");
    metrics->last = td_seconds_now();
    if (!metrics->file)
        return;
    snprintf(line, sizeof line,
             "{\"step\": %lld, \"eval_loss\": %.9g, \"perplexity\": %.9g, \"best\": %s}\n",
             (long long)index + 1, loss, td_perplexity(loss), is_best ? "true" : "false");
    write_line(metrics, line);
}
