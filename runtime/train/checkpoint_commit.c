// What rank 0 does in the run's folder: incarnations, the commit, purging, cleaning up.
#define _GNU_SOURCE // renameat2
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "runtime/core/log.h"
#include "runtime/core/progress.h"
#include "runtime/train/checkpoint_internal.h"

enum {
    MAX_INCARNATION_BYTES = 256,
    SPARE_BYTES = 1 << 20, // manifest, file headers
};

static const char temporary_prefix[] = ".tmp-";
static const char aside_suffix[] = "-old"; // of a checkpoint that steps aside for its replacement

// Turns a failure that does not matter to training into a warning.
static void warn_and_clear(const char *what) {
    td_warn("%s: %s", what, td_error_message());
    td_error_clear();
}

// read the same number.

static td_status read_incarnation(const char *path, char out[TD_INCARNATION_CHARS]) {
    char *text = NULL;
    TD_TRY(td_file_read_no_link(path, MAX_INCARNATION_BYTES, &text, NULL));
    text[strcspn(text, "\n")] = '\0';
    snprintf(out, TD_INCARNATION_CHARS, "%.*s", TD_INCARNATION_CHARS - 1, text);
    free(text);
    return TD_OK;
}

static td_status next_incarnation(const char *path, char out[TD_INCARNATION_CHARS]) {
    char before[TD_INCARNATION_CHARS] = "";
    uint32_t token[2];
    if (td_path_exists(path))
        TD_TRY(read_incarnation(path, before));
    if (getrandom(token, sizeof token, 0) != (ssize_t)sizeof token)
        return td_fail(TD_ERR_IO, "the system gives no random numbers: %s", strerror(errno));
    unsigned long number = strtoul(before, NULL, 10) % 1000000000ul;
    snprintf(out, TD_INCARNATION_CHARS, "%lu-%08x%08x", number + 1, (unsigned)token[0],
             (unsigned)token[1]);
    return TD_OK;
}

td_status td_incarnation_take(const char *run_folder, char out[TD_INCARNATION_CHARS]) {
    char path[TD_PATH_MAX], line[TD_INCARNATION_CHARS + 1];
    TD_TRY(td_path_join(path, run_folder, "incarnation"));
    TD_TRY(next_incarnation(path, out));
    int bytes = snprintf(line, sizeof line, "%s\n", out);
    return td_file_write_atomic(path, line, (size_t)bytes);
}

td_status td_incarnation_require(const char *run_folder, const char *incarnation, int *out_fenced) {
    char path[TD_PATH_MAX], found[TD_INCARNATION_CHARS];
    TD_TRY(td_path_join(path, run_folder, "incarnation"));
    if (read_incarnation(path, found) != TD_OK)
        return TD_ERR_IO; // our own file: training can go on, and try again with the next save
    if (strcmp(found, incarnation) == 0)
        return TD_OK;
    *out_fenced = 1;
    return td_fail(
        TD_ERR_IO,
        "another incarnation (%s) of the run in %s has started; this one (%s) is stale and "
        "must not write checkpoints",
        found, run_folder, incarnation);
}

void td_checkpoint_step_name(char out[TD_CHECKPOINT_NAME_CHARS], int64_t step) {
    snprintf(out, TD_CHECKPOINT_NAME_CHARS, "step-%06lld", (long long)step);
}

td_status td_checkpoint_step_folder(char out[TD_PATH_MAX], const char *run_folder, int64_t step) {
    char folder[TD_PATH_MAX], name[TD_CHECKPOINT_NAME_CHARS];
    td_checkpoint_step_name(name, step);
    TD_TRY(td_path_join(folder, run_folder, "checkpoints"));
    return td_path_join(out, folder, name);
}

// -1 when the name is not one that td_checkpoint_step_name() gives.
static int64_t step_of_name(const char *name) {
    char again[TD_CHECKPOINT_NAME_CHARS];
    long long step;
    if (sscanf(name, "step-%15lld", &step) != 1 || step < 0)
        return -1;
    td_checkpoint_step_name(again, step);
    return strcmp(name, again) == 0 ? (int64_t)step : -1;
}

static int newest_first(const void *a, const void *b) {
    int64_t left = *(const int64_t *)a, right = *(const int64_t *)b;
    return (left < right) - (left > right);
}

static td_status fail_link(const char *folder) {
    return td_fail(TD_ERR_DATA,
                   "%s: is a link; checkpoints are neither read nor removed outside the run's "
                   "folder (that folder itself may be a link)",
                   folder);
}

td_status td_checkpoint_require_own(const char *folder) {
    return td_path_is_link(folder) ? fail_link(folder) : TD_OK;
}

td_status td_checkpoint_list(const char *folder, int64_t **out_steps, size_t *out_count) {
    char **names = NULL;
    size_t n_names = 0, count = 0;
    TD_TRY(td_checkpoint_require_own(folder));
    if (td_path_is_folder(folder))
        TD_TRY(td_folder_list(folder, &names, &n_names));
    int64_t *steps = malloc((n_names + 1) * sizeof *steps);
    for (size_t i = 0; steps && i < n_names; i++) {
        int64_t step = step_of_name(names[i]);
        if (step >= 0)
            steps[count++] = step;
    }
    td_names_free(names, n_names);
    if (!steps)
        return td_fail(TD_ERR_MEMORY, "no memory for a list of %zu checkpoints", n_names);
    qsort(steps, count, sizeof *steps, newest_first);
    *out_steps = steps;
    *out_count = count;
    return TD_OK;
}

int64_t td_checkpoint_newest_step(const char *run_folder) {
    char folder[TD_PATH_MAX];
    int64_t *steps = NULL, newest = -1;
    size_t count = 0;
    int had_error = td_error_message()[0] != '\0';
    td_status status = td_path_join(folder, run_folder, "checkpoints");
    if (status == TD_OK)
        status = td_checkpoint_list(folder, &steps, &count);
    if (status == TD_OK && count > 0)
        newest = steps[0];
    if (status != TD_OK && !had_error)
        td_error_clear();
    free(steps);
    return newest;
}

static int has_prefix(const char *name, const char *prefix) {
    return strncmp(name, prefix, strlen(prefix)) == 0;
}

// A process that was killed between the two renames of exchange_folders() has left the old
// checkpoint without its name.
static int give_name_back(const char *folder, const char *name, const char *path) {
    char final_name[TD_CHECKPOINT_NAME_CHARS], final[TD_PATH_MAX];
    long long step;
    size_t chars = strlen(name), suffix = strlen(aside_suffix);
    if (chars < suffix || strcmp(name + chars - suffix, aside_suffix) != 0 ||
        sscanf(name, ".tmp-step-%15lld", &step) != 1 || step < 0)
        return 0;
    td_checkpoint_step_name(final_name, step);
    return snprintf(final, sizeof final, "%s/%s", folder, final_name) < (int)sizeof final &&
           !td_path_exists(final) && rename(path, final) == 0;
}

static td_status remove_leftover(const char *folder, const char *name) {
    char path[TD_PATH_MAX];
    TD_TRY(td_path_join(path, folder, name));
    return give_name_back(folder, name, path) ? TD_OK : td_folder_remove_tree(path);
}

static int is_leftover(const char *name) {
    return has_prefix(name, temporary_prefix) || td_name_is_temporary(name);
}

static void clean(const char *folder, int (*is_ours)(const char *name)) {
    char **names = NULL;
    size_t count = 0;
    if (td_folder_list(folder, &names, &count) != TD_OK) {
        warn_and_clear("cannot look for leftovers of killed runs");
        return;
    }
    for (size_t i = 0; i < count; i++) {
        if (!is_ours(names[i]))
            continue;
        if (remove_leftover(folder, names[i]) != TD_OK)
            warn_and_clear("cannot remove what a killed run left behind");
        td_progress_tick();
    }
    td_names_free(names, count);
}

void td_checkpoint_clean(const char *run_folder, const char *folder) {
    clean(folder, is_leftover);
    clean(run_folder, td_name_is_temporary);
}

td_status td_checkpoint_require_space(const char *folder, uint64_t bytes) {
    uint64_t free_bytes = 0, needed;
    TD_TRY(td_folder_free_bytes(folder, &free_bytes));
    if (__builtin_add_overflow(bytes, (uint64_t)SPARE_BYTES, &needed))
        needed = UINT64_MAX;
    if (free_bytes >= needed)
        return TD_OK;
    return td_fail(TD_ERR_IO,
                   "%s: not enough space for a checkpoint: %.1f MiB are needed, %.1f MiB are free",
                   folder, (double)needed / (1 << 20), (double)free_bytes / (1 << 20));
}

static td_status write_manifest(const char *temporary, const td_manifest *manifest) {
    char path[TD_PATH_MAX];
    char *text = NULL;
    TD_TRY(td_checkpoint_reach(TD_CHECKPOINT_MANIFEST));
    TD_TRY(td_path_join(path, temporary, "manifest.json"));
    TD_TRY(td_manifest_print(manifest, &text));
    td_status status = td_file_write_atomic(path, text, strlen(text));
    free(text);
    return status == TD_OK ? td_file_sync(temporary) : status;
}

static td_status fail_rename(const char *from, const char *to) {
    return td_fail(TD_ERR_IO, "%s: cannot rename to %s: %s", from, to, strerror(errno));
}

// A folder of that name exists when a run went back to an earlier checkpoint and came to the same
// step again. The two change names in one operation where the file system can; else the old one
// steps aside first. *out_old: where it is now.
static td_status exchange_folders(const char *temporary, const char *final,
                                  char out_old[TD_PATH_MAX]) {
    snprintf(out_old, TD_PATH_MAX, "%s", temporary);
    if (renameat2(AT_FDCWD, temporary, AT_FDCWD, final, RENAME_EXCHANGE) == 0)
        return TD_OK;
    if (snprintf(out_old, TD_PATH_MAX, "%s%s", temporary, aside_suffix) >= TD_PATH_MAX)
        return td_fail(TD_ERR_USAGE, "path is too long: %.80s...", temporary);
    if (rename(final, out_old) != 0)
        return fail_rename(final, out_old);
    if (rename(temporary, final) == 0)
        return TD_OK;
    fail_rename(temporary, final);
    (void)rename(out_old, final);
    return TD_ERR_IO;
}

static td_status replace_folder(const char *temporary, const char *final) {
    char old[TD_PATH_MAX];
    TD_TRY(exchange_folders(temporary, final, old));
    if (td_folder_remove_tree(old) != TD_OK)
        warn_and_clear("cannot remove a replaced checkpoint");
    return TD_OK;
}

static td_status give_final_name(const char *temporary, const char *final) {
    TD_TRY(td_checkpoint_reach(TD_CHECKPOINT_RENAME));
    if (td_path_is_folder(final))
        return replace_folder(temporary, final);
    return rename(temporary, final) == 0 ? TD_OK : fail_rename(temporary, final);
}

static td_status write_latest(const td_checkpoint_commit *commit, int64_t step) {
    char path[TD_PATH_MAX], name[TD_CHECKPOINT_NAME_CHARS], line[TD_CHECKPOINT_NAME_CHARS + 1];
    TD_TRY(td_checkpoint_reach(TD_CHECKPOINT_LATEST));
    TD_TRY(td_path_join(path, commit->folder, "latest"));
    td_checkpoint_step_name(name, step);
    int bytes = snprintf(line, sizeof line, "%s\n", name);
    return td_file_write_atomic(path, line, (size_t)bytes);
}

// Takes the name away first: a kill in the middle leaves a temporary folder, not half a checkpoint.
static td_status remove_checkpoint(const td_checkpoint_commit *commit, int64_t step) {
    char name[TD_CHECKPOINT_NAME_CHARS], aside_name[TD_CHECKPOINT_NAME_CHARS + 32];
    char path[TD_PATH_MAX], aside[TD_PATH_MAX];
    TD_TRY(td_checkpoint_reach(TD_CHECKPOINT_PURGE));
    td_checkpoint_step_name(name, step);
    snprintf(aside_name, sizeof aside_name, "%spurge-%s", temporary_prefix, name);
    TD_TRY(td_path_join(path, commit->folder, name));
    TD_TRY(td_path_join(aside, commit->folder, aside_name));
    if (rename(path, aside) != 0)
        return fail_rename(path, aside);
    TD_TRY(td_checkpoint_reach(TD_CHECKPOINT_PURGE));
    td_progress_tick();
    return td_folder_remove_tree(aside);
}

// The new checkpoint is whole, so whatever else goes, one stays. Later steps than the new one are
// of a future that a restart has left; they are not counted.
static void purge(const td_checkpoint_commit *commit, const td_checkpoint_meta *meta) {
    int64_t *steps = NULL, kept = 0;
    size_t count = 0;
    if (commit->keep_last <= 0)
        return;
    if (td_checkpoint_list(commit->folder, &steps, &count) != TD_OK) {
        warn_and_clear("cannot purge old checkpoints");
        return;
    }
    for (size_t i = 0; i < count; i++) {
        int is_best = meta->has_best && steps[i] == meta->best_step;
        if (steps[i] > meta->step || kept++ < commit->keep_last || is_best)
            continue;
        if (remove_checkpoint(commit, steps[i]) != TD_OK)
            warn_and_clear("cannot purge an old checkpoint");
    }
    free(steps);
}

td_status td_checkpoint_publish(const td_checkpoint_commit *commit, const td_manifest *manifest,
                                int *out_fenced) {
    char final[TD_PATH_MAX];
    int64_t step = manifest->meta.step;
    TD_TRY(td_checkpoint_step_folder(final, commit->run_folder, step));
    TD_TRY(td_incarnation_require(commit->run_folder, commit->incarnation, out_fenced));
    TD_TRY(write_manifest(commit->temporary, manifest));
    // Again, as late as possible: between this look and the rename there is nothing to wait for.
    TD_TRY(td_incarnation_require(commit->run_folder, commit->incarnation, out_fenced));
    TD_TRY(give_final_name(commit->temporary, final));
    TD_TRY(td_file_sync(commit->folder));
    if (write_latest(commit, step) != TD_OK)
        warn_and_clear("cannot update the name of the latest checkpoint");
    purge(commit, &manifest->meta);
    return TD_OK;
}
