#define PCRE2_CODE_UNIT_WIDTH 8
#include <math.h>
#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "model/lora_internal.h"
#include "runtime/core/log.h"

// Steps for one name, which has some forty characters: a hundred times what a sensible pattern
// takes, and so few that a pattern made to hang is found out at once on every model.
enum { MAX_STEPS = 1 << 16 };

// The keys of rank_pattern or alpha_pattern, compiled, in the order of the file: the first that
// matches counts.
typedef struct pattern_keys {
    const char *option; // "rank_pattern"
    struct {
        const cJSON *item;
        pcre2_code *code;
        int was_used;
    } * keys;
    int count;
} pattern_keys;

struct td_lora_selector {
    const td_lora_options *options;
    int selects_all;     // "all-linear"
    pcre2_code *pattern; // or the list of names
    int *was_matched;    // per listed name
    pattern_keys ranks, alphas;
    pcre2_match_data *match;
    pcre2_match_context *limits;
};

static td_status fail_memory(void) {
    return td_fail(TD_ERR_MEMORY, "no memory to select the LoRA modules");
}

// Python reads "{,n}" as a repetition and PCRE2 as text: refused rather than read differently from
// PEFT.
static td_status compile(const char *what, const char *pattern, uint32_t options,
                         pcre2_code **out) {
    int error;
    PCRE2_SIZE offset;
    if (strstr(pattern, "{,"))
        return td_fail(TD_ERR_USAGE, "%s: in the pattern \"%s\" write {0, instead of {,", what,
                       pattern);
    *out = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
                         options | PCRE2_UTF | PCRE2_NEVER_BACKSLASH_C, &error, &offset, NULL);
    if (*out)
        return TD_OK;
    char reason[200] = "";
    pcre2_get_error_message(error, (PCRE2_UCHAR *)reason, sizeof reason);
    return td_fail(TD_ERR_USAGE, "%s: the pattern \"%s\" is malformed at character %zu: %s", what,
                   pattern, (size_t)offset, reason);
}

static td_status matches(const td_lora_selector *selector, const char *what, const pcre2_code *code,
                         const char *module, int *out) {
    int found = pcre2_match(code, (PCRE2_SPTR)module, strlen(module), 0, 0, selector->match,
                            selector->limits);
    if (found < 0 && found != PCRE2_ERROR_NOMATCH)
        return td_fail(TD_ERR_USAGE, "%s: matching the pattern with \"%s\" takes too long", what,
                       module);
    *out = found >= 0;
    return TD_OK;
}

// PEFT's get_pattern_key: re.match of "(.*\.)?(key)$".
static td_status compile_key(const char *option, const char *key, pcre2_code **out) {
    size_t room = strlen(key) + sizeof "(.*\\.)?()$";
    char *pattern = malloc(room);
    if (!pattern)
        return fail_memory();
    snprintf(pattern, room, "(.*\\.)?(%s)$", key);
    td_status status = compile(option, pattern, PCRE2_ANCHORED, out);
    free(pattern);
    return status;
}

static td_status check_rank(const cJSON *item) {
    double rank = item->valuedouble;
    if (cJSON_IsNumber(item) && rank == floor(rank) && rank >= 1 && rank <= TD_LORA_MAX_RANK)
        return TD_OK;
    return td_fail(TD_ERR_USAGE, "rank_pattern: \"%s\" must be an integer from 1 to %d",
                   item->string, TD_LORA_MAX_RANK);
}

static td_status check_alpha(const cJSON *item) {
    if (cJSON_IsNumber(item) && isfinite(item->valuedouble))
        return TD_OK;
    return td_fail(TD_ERR_USAGE, "alpha_pattern: \"%s\" must be a number", item->string);
}

static td_status compile_keys(const char *option, const cJSON *object,
                              td_status (*check)(const cJSON *), pattern_keys *out) {
    out->option = option;
    if (!object)
        return TD_OK;
    if (!cJSON_IsObject(object))
        return td_fail(TD_ERR_USAGE, "%s must be an object of patterns and numbers", option);
    out->keys = calloc((size_t)cJSON_GetArraySize(object) + 1, sizeof *out->keys);
    if (!out->keys)
        return fail_memory();
    for (const cJSON *item = object->child; item; item = item->next) {
        TD_TRY(check(item));
        out->keys[out->count].item = item;
        TD_TRY(compile_key(option, item->string, &out->keys[out->count].code));
        out->count++;
    }
    return TD_OK;
}

static void free_keys(pattern_keys *keys) {
    for (int i = 0; i < keys->count; i++)
        pcre2_code_free(keys->keys[i].code);
    free(keys->keys);
}

static td_status compile_targets(td_lora_selector *selector) {
    const td_lora_options *options = selector->options;
    if (!options->target_modules || options->target_modules->count == 0)
        return td_fail(TD_ERR_USAGE, "target_modules is empty");
    const char *first = options->target_modules->items[0];
    if (!options->target_modules_is_pattern)
        return TD_OK;
    selector->selects_all = strcasecmp(first, "all-linear") == 0;
    if (selector->selects_all)
        return TD_OK;
    return compile("target_modules", first, PCRE2_ANCHORED | PCRE2_ENDANCHORED, &selector->pattern);
}

static td_status prepare(td_lora_selector *selector) {
    const td_lora_options *options = selector->options;
    TD_TRY(compile_targets(selector));
    selector->was_matched =
        calloc((size_t)options->target_modules->count, sizeof *selector->was_matched);
    selector->match = pcre2_match_data_create(1, NULL);
    selector->limits = pcre2_match_context_create(NULL);
    if (!selector->was_matched || !selector->match || !selector->limits)
        return fail_memory();
    pcre2_set_match_limit(selector->limits, MAX_STEPS);
    TD_TRY(compile_keys("rank_pattern", options->rank_pattern, check_rank, &selector->ranks));
    return compile_keys("alpha_pattern", options->alpha_pattern, check_alpha, &selector->alphas);
}

td_status td_lora_selector_create(const td_lora_options *options, td_lora_selector **out) {
    td_lora_selector *selector = calloc(1, sizeof *selector);
    if (!selector)
        return fail_memory();
    selector->options = options;
    td_status status = prepare(selector);
    if (status != TD_OK) {
        td_lora_selector_destroy(selector);
        return status;
    }
    *out = selector;
    return TD_OK;
}

void td_lora_selector_destroy(td_lora_selector *selector) {
    if (!selector)
        return;
    free_keys(&selector->ranks);
    free_keys(&selector->alphas);
    pcre2_code_free(selector->pattern);
    pcre2_match_data_free(selector->match);
    pcre2_match_context_free(selector->limits);
    free(selector->was_matched);
    free(selector);
}

// The whole name, or its end after a dot.
static int is_suffix(const char *module, const char *name) {
    size_t module_chars = strlen(module), chars = strlen(name);
    if (chars > module_chars || strcmp(module + module_chars - chars, name) != 0)
        return 0;
    return chars == module_chars || module[module_chars - chars - 1] == '.';
}

static td_status is_target(td_lora_selector *selector, const char *module, int *out) {
    const td_string_list *names = selector->options->target_modules;
    *out = selector->selects_all;
    if (selector->selects_all)
        return TD_OK;
    if (selector->pattern)
        return matches(selector, "target_modules", selector->pattern, module, out);
    for (int i = 0; i < names->count; i++)
        if (is_suffix(module, names->items[i]))
            selector->was_matched[i] = *out = 1;
    return TD_OK;
}

// The number of the first key that matches, or `fallback`.
static td_status look_up(const td_lora_selector *selector, pattern_keys *keys, const char *module,
                         double fallback, double *out) {
    *out = fallback;
    for (int i = 0; i < keys->count; i++) {
        int found = 0;
        TD_TRY(matches(selector, keys->option, keys->keys[i].code, module, &found));
        if (!found)
            continue;
        keys->keys[i].was_used = 1;
        *out = keys->keys[i].item->valuedouble;
        break;
    }
    return TD_OK;
}

td_status td_lora_selector_ask(td_lora_selector *selector, const char *module, int *out_selected,
                               int64_t *out_rank, double *out_alpha) {
    int selected = 0;
    TD_TRY(is_target(selector, module, &selected));
    *out_selected = selected;
    if (!selected)
        return TD_OK;
    const td_lora_options *options = selector->options;
    double rank;
    TD_TRY(look_up(selector, &selector->ranks, module, (double)options->rank, &rank));
    *out_rank = (int64_t)rank;
    return look_up(selector, &selector->alphas, module, options->alpha, out_alpha);
}

const char *td_lora_selector_unmatched(const td_lora_selector *selector) {
    const td_string_list *names = selector->options->target_modules;
    for (int i = 0; !selector->options->target_modules_is_pattern && i < names->count; i++)
        if (!selector->was_matched[i])
            return names->items[i];
    return NULL;
}

static void report_unused(const pattern_keys *keys) {
    for (int i = 0; i < keys->count; i++)
        if (!keys->keys[i].was_used)
            td_info("%s: \"%s\" applies to no module", keys->option, keys->keys[i].item->string);
}

void td_lora_selector_report_unused(const td_lora_selector *selector) {
    report_unused(&selector->ranks);
    report_unused(&selector->alphas);
}
