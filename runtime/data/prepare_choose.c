// Which rows are dropped as duplicates and which store the others go to.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "runtime/core/log.h"
#include "runtime/core/progress.h"
#include "runtime/core/rng.h"
#include "runtime/data/duplicates.h"
#include "runtime/data/prepare_internal.h"

// Rows of one near cluster are one unit: they are all in one store. A unit is named by its first
// row.
typedef struct chooser {
    const td_preparation *preparation;
    const td_prepare_options *options;
    td_duplicates *duplicates;
    const uint32_t *exact_first, *near_first; // (n)
    uint8_t *choices;                         // (n)
    int64_t n;
    int64_t units[TD_SPLITS];
} chooser;

static td_status add_all(chooser *self, td_part_reader *reader) {
    td_part_item item;
    for (int found = 1;;) {
        TD_TRY(td_part_reader_next(reader, &item, &found));
        if (!found)
            return TD_OK;
        if (item.row.outcome != TD_OUTCOME_KEPT)
            continue;
        TD_TRY(td_duplicates_add(self->duplicates, item.row.content, item.signature));
        self->n++;
    }
}

static td_status find_duplicates(chooser *self) {
    const td_preparation *preparation = self->preparation;
    char path[TD_PATH_MAX];
    td_part_reader *reader = NULL;
    TD_TRY(td_path_join(path, preparation->folder, "duplicates"));
    td_duplicates_options options = {.path = path,
                                     .near = preparation->wants_signatures,
                                     .threshold = self->options->near_duplicate_threshold};
    TD_TRY(td_duplicates_create(&options, &self->duplicates));
    TD_TRY(td_part_reader_open(preparation->folder, preparation->team->size, 0,
                               preparation->wants_signatures, &reader));
    td_status status = add_all(self, reader);
    td_part_reader_close(reader);
    TD_TRY(status);
    TD_TRY(td_duplicates_finish(self->duplicates, NULL));
    self->exact_first = td_duplicates_exact_first(self->duplicates);
    self->near_first = td_duplicates_near_first(self->duplicates);
    return TD_OK;
}

static float draw(const chooser *self, int64_t unit) {
    uint64_t key = td_rng_key(self->options->seed, TD_RNG_SPLIT);
    return td_rng_uniform(td_rng_word(key, 0, 0, (uint64_t)unit));
}

// Splits are intervals of what is drawn: evaluation first, then test, then training.
static void interval_of(const chooser *self, td_split split, double *out_from, double *out_to) {
    double eval = self->options->split_ratios[TD_SPLIT_EVAL];
    double test = self->options->split_ratios[TD_SPLIT_TEST];
    *out_from = split == TD_SPLIT_EVAL ? 0 : split == TD_SPLIT_TEST ? eval : eval + test;
    *out_to = split == TD_SPLIT_EVAL ? eval : split == TD_SPLIT_TEST ? eval + test : 1;
}

static td_split split_of(const chooser *self, double value) {
    double from, to;
    for (int split = TD_SPLIT_EVAL; split < TD_SPLITS; split++) {
        interval_of(self, (td_split)split, &from, &to);
        if (value >= from && value < to)
            return (td_split)split;
    }
    return TD_SPLIT_TRAIN;
}

static int is_unit(const chooser *self, int64_t row) {
    return self->near_first[row] == (uint32_t)row;
}

static void draw_units(chooser *self) {
    for (int64_t row = 0; row < self->n; row++) {
        if (!is_unit(self, row))
            continue;
        self->choices[row] = (uint8_t)split_of(self, draw(self, row));
        self->units[self->choices[row]]++;
    }
}

// The unit that came nearest to the split and can be spared where it is; -1: none.
static int64_t nearest_unit(const chooser *self, td_split split) {
    double from, to, nearest = 2;
    int64_t found = -1;
    interval_of(self, split, &from, &to);
    for (int64_t row = 0; row < self->n; row++) {
        if (!is_unit(self, row) || self->units[self->choices[row]] < 2)
            continue;
        double value = draw(self, row), distance = value < from ? from - value : value - to;
        if (distance < nearest) {
            nearest = distance;
            found = row;
        }
    }
    return found;
}

// With few rows or a small share chance may leave a store empty.
static td_status fill_empty(chooser *self) {
    for (int split = 0; split < TD_SPLITS; split++) {
        if (self->units[split] > 0 ||
            (split != TD_SPLIT_TRAIN && self->options->split_ratios[split] <= 0))
            continue;
        int64_t row = nearest_unit(self, (td_split)split);
        if (row < 0) {
            char sources[TD_PATH_MAX];
            td_prepare_name_sources(self->options->files, sources);
            return td_fail(TD_ERR_DATA,
                           "%s: %lld rows, of which %lld are no duplicates of each other, cannot "
                           "be divided between training, evaluation and test: set "
                           "eval_split_ratio and test_split_ratio to 0, or give eval_files",
                           sources, (long long)self->n,
                           (long long)(self->units[0] + self->units[1] + self->units[2]));
        }
        self->units[self->choices[row]]--;
        self->units[split]++;
        self->choices[row] = (uint8_t)split;
    }
    return TD_OK;
}

// A row's unit is an earlier row or itself, so its choice is made when its turn comes.
static void follow_units(chooser *self) {
    td_deduplicate deduplicate = self->options->deduplicate;
    for (int64_t row = 0; row < self->n; row++)
        self->choices[row] = self->choices[self->near_first[row]];
    for (int64_t row = 0; row < self->n; row++) {
        if (deduplicate != TD_DEDUPLICATE_NONE && self->exact_first[row] != (uint32_t)row)
            self->choices[row] = TD_CHOICE_DROP | TD_OUTCOME_EXACT_DUPLICATE;
        else if (deduplicate == TD_DEDUPLICATE_NEAR && !is_unit(self, row))
            self->choices[row] = TD_CHOICE_DROP | TD_OUTCOME_NEAR_DUPLICATE;
    }
}

static td_status choose(chooser *self) {
    TD_TRY(find_duplicates(self));
    self->choices = calloc((size_t)self->n + 1, 1);
    if (!self->choices)
        return td_fail(TD_ERR_MEMORY, "no memory to divide %lld rows", (long long)self->n);
    if (td_preparation_has_splits(self->options) && self->n > 0) {
        draw_units(self);
        TD_TRY(fill_empty(self));
    }
    follow_units(self);
    return TD_OK;
}

td_status td_prepare_choose(const td_preparation *preparation, td_choices *out) {
    const td_prepare_options *options = preparation->options;
    chooser self = {.preparation = preparation, .options = options};
    *out = (td_choices){0};
    if (options->deduplicate == TD_DEDUPLICATE_NONE && !td_preparation_has_splits(options))
        return TD_OK;
    td_status status = choose(&self);
    td_duplicates_destroy(self.duplicates);
    if (status != TD_OK) {
        free(self.choices);
        return status;
    }
    *out = (td_choices){.choices = self.choices, .n = self.n};
    return TD_OK;
}
