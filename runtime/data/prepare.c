#include "runtime/data/prepare.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "runtime/core/progress.h"
#include "runtime/data/prepare_internal.h"
#include "runtime/data/rows.h"

static void add_number(td_hasher *hasher, int64_t value) {
    td_hasher_add(hasher, &value, sizeof value);
}

static void add_double(td_hasher *hasher, double value) {
    td_hasher_add(hasher, &value, sizeof value);
}

static td_status hash_sources(td_hasher *hasher, const td_prepare_options *options) {
    td_hash hash = {0};
    for (int i = 0; i < options->files->count; i++) {
        TD_TRY(td_hash_file(options->files->items[i], &hash));
        td_hasher_add(hasher, &hash, sizeof hash);
        td_progress_tick();
    }
    if (options->tokenizer)
        hash = td_tokenizer_fingerprint(options->tokenizer);
    else
        hash = (td_hash){0};
    td_hasher_add(hasher, &hash, sizeof hash);
    return TD_OK;
}

static void hash_patterns(td_hasher *hasher, const td_string_list *patterns) {
    int count = patterns ? patterns->count : 0;
    add_number(hasher, count);
    for (int i = 0; i < count; i++)
        td_hasher_add_string(hasher, patterns->items[i]);
}

static void hash_filters(td_hasher *hasher, const td_filter_options *filters) {
    add_number(hasher, filters->min_prompt_words);
    add_number(hasher, filters->max_prompt_words);
    add_number(hasher, filters->min_response_words);
    add_number(hasher, filters->max_response_words);
    add_number(hasher, filters->min_tokens);
    add_double(hasher, filters->max_jaccard);
    hash_patterns(hasher, filters->drop_matching);
    hash_patterns(hasher, filters->keep_matching);
}

int td_preparation_has_splits(const td_prepare_options *options) {
    return options->split_ratios[TD_SPLIT_EVAL] > 0 || options->split_ratios[TD_SPLIT_TEST] > 0;
}

// What was not asked for has no say: another seed makes no other rows unless they are divided.
static void hash_choices(td_hasher *hasher, const td_prepare_options *options) {
    int has_splits = td_preparation_has_splits(options);
    add_number(hasher, options->deduplicate);
    add_number(hasher, has_splits);
    if (options->deduplicate == TD_DEDUPLICATE_NEAR || has_splits)
        add_double(hasher, options->near_duplicate_threshold);
    if (!has_splits)
        return;
    add_double(hasher, options->split_ratios[TD_SPLIT_EVAL]);
    add_double(hasher, options->split_ratios[TD_SPLIT_TEST]);
    td_hasher_add(hasher, &options->seed, sizeof options->seed);
}

td_status td_prepare_fingerprint(const td_prepare_options *options, td_hash *out) {
    td_hasher *hasher = NULL;
    TD_TRY(td_hasher_create(&hasher));
    td_status status = hash_sources(hasher, options);
    add_number(hasher, TD_PREPARE_VERSION);
    add_number(hasher, options->files->count);
    add_number(hasher, options->vocabulary);
    add_number(hasher, options->eos_id);
    add_number(hasher, options->max_length);
    add_number(hasher, options->assistant_only_loss != 0);
    add_number(hasher, options->completion_only_loss != 0);
    add_number(hasher, options->bad_rows);
    add_number(hasher, options->too_long);
    hash_filters(hasher, options->filters ? options->filters : &td_filters_off);
    hash_choices(hasher, options);
    if (status == TD_OK)
        *out = td_hasher_value(hasher);
    td_hasher_destroy(hasher);
    return status;
}

void td_prepare_name_sources(const td_string_list *files, char out[TD_PATH_MAX]) {
    if (files->count == 1)
        snprintf(out, TD_PATH_MAX, "%s", files->items[0]);
    else
        snprintf(out, TD_PATH_MAX, "%.3900s and %d more", files->items[0], files->count - 1);
}

td_status td_prepare_account_path(const char *store_path, char out[TD_PATH_MAX]) {
    size_t chars = strlen(store_path);
    size_t stem = chars > 3 && strcmp(store_path + chars - 3, ".h5") == 0 ? chars - 3 : chars;
    if (snprintf(out, TD_PATH_MAX, "%.*s.json", (int)stem, store_path) >= TD_PATH_MAX)
        return td_fail(TD_ERR_USAGE, "path is too long: %.80s...", store_path);
    return TD_OK;
}

td_status td_preparation_agree(const td_preparation *self, td_status mine, const char *what) {
    const td_prepare_team *team = self->team;
    return team->size > 1 ? team->agree(team->self, mine, what) : mine;
}

// What belongs to rank 0 while it prepares: the folder's lock, which ends with the process too.
typedef struct workplace {
    char folder[TD_PATH_MAX]; // of the parts
    char parent[TD_PATH_MAX];
    int lock; // -1: none
} workplace;

static td_status name_workplace(workplace *place, const char *store) {
    char *slash;
    if (snprintf(place->folder, sizeof place->folder, "%s.parts", store) >= TD_PATH_MAX)
        return td_fail(TD_ERR_USAGE, "path is too long: %.80s...", store);
    snprintf(place->parent, sizeof place->parent, "%s", store);
    slash = strrchr(place->parent, '/');
    if (!slash)
        snprintf(place->parent, sizeof place->parent, ".");
    else
        slash[slash == place->parent] = '\0';
    return TD_OK;
}

// Two runs that prepare in one folder would remove each other's parts. Where the file system has no
// locks, they have to be kept apart by hand.
static td_status lock(workplace *place) {
    place->lock = open(place->parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (place->lock < 0)
        return td_fail(TD_ERR_IO, "%s: cannot open folder: %s", place->parent, strerror(errno));
    if (flock(place->lock, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
        return td_fail(TD_ERR_IO, "%s: another run is preparing data here: wait for it to end",
                       place->parent);
    return TD_OK;
}

static td_status clear(const workplace *place, const char *const stores[TD_SPLITS]) {
    char temporary[TD_PATH_MAX + 8];
    TD_TRY(td_folder_remove_tree(place->folder));
    for (int split = 0; split < TD_SPLITS; split++) {
        snprintf(temporary, sizeof temporary, "%s.tmp", stores[split] ? stores[split] : "");
        if (stores[split] && unlink(temporary) != 0 && errno != ENOENT)
            return td_fail(TD_ERR_IO, "%s: cannot remove: %s", temporary, strerror(errno));
    }
    return TD_OK;
}

static td_status open_workplace(workplace *place, const char *const stores[TD_SPLITS]) {
    TD_TRY(lock(place));
    TD_TRY(clear(place, stores));
    return td_folder_make_new(place->folder);
}

// An error that is recorded already is the one to report.
static void leave_workplace(workplace *place) {
    if (place->lock < 0)
        return;
    int has_failed = td_error_message()[0] != '\0';
    (void)td_folder_remove_tree(place->folder);
    if (!has_failed)
        td_error_clear();
    close(place->lock);
    place->lock = -1;
}

static td_status create_filters(td_preparation *self) {
    const td_prepare_options *options = self->options;
    self->wants_signatures =
        options->deduplicate == TD_DEDUPLICATE_NEAR || td_preparation_has_splits(options);
    self->wants_texts = self->wants_signatures;
    if (!options->filters)
        return TD_OK;
    TD_TRY(td_filters_create(options->filters, &self->filters));
    self->wants_texts = self->wants_texts || td_filters_need_texts(self->filters);
    return TD_OK;
}

static td_status finish(td_preparation *self, td_hash fingerprint, td_prepare_account *account) {
    td_choices choices;
    TD_TRY(td_prepare_choose(self, &choices));
    td_status status = td_prepare_write(self, &choices, fingerprint, account);
    free(choices.choices);
    return status;
}

static td_status prepare(td_preparation *self, workplace *place, td_hash fingerprint,
                         td_prepare_account *account) {
    int is_first = self->team->rank == 0;
    td_status status = create_filters(self);
    if (status == TD_OK && is_first)
        status = open_workplace(place, self->stores);
    TD_TRY(td_preparation_agree(self, status, "prepare data"));
    TD_TRY(td_prepare_read(self));
    status = is_first ? finish(self, fingerprint, account) : TD_OK;
    return td_preparation_agree(self, status, "prepare data");
}

td_status td_prepare(const td_prepare_options *options, const td_prepare_team *team,
                     td_hash fingerprint, const char *const stores[TD_SPLITS],
                     td_prepare_account *out) {
    static const td_prepare_team alone = {.size = 1};
    workplace place = {.lock = -1};
    td_prepare_account account = {0};
    td_preparation self = {
        .options = options,
        .team = team ? team : &alone,
        .stores = stores,
        .folder = place.folder,
    };
    if (options->files->count < 1)
        return td_fail(TD_ERR_USAGE, "no files with rows: set train_files or eval_files");
    TD_TRY(name_workplace(&place, stores[TD_SPLIT_TRAIN]));
    td_status status = prepare(&self, &place, fingerprint, &account);
    leave_workplace(&place);
    td_filters_destroy(self.filters);
    if (status == TD_OK && self.team->rank == 0)
        *out = account;
    else
        td_account_fini(&account);
    return status;
}

td_status td_prepare_row(const td_prepare_options *options, const char *where, const char *line,
                         size_t bytes, int32_t **out_tokens, uint8_t **out_trained,
                         int64_t *out_count) {
    td_row row = {0};
    TD_TRY(td_row_read(options, where, line, bytes, &row));
    *out_tokens = row.tokens;
    *out_trained = row.trained;
    *out_count = row.count;
    return TD_OK;
}
