#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/cli/cli.h"

enum { MAX_OPTIONS = 32 };

static void print_help(const td_command *command, const td_option *options, int n_options) {
    printf("usage: tandem %s %s\n\n%s\n\n%s\n\noptions:\n", command->name, command->arguments,
           command->summary, command->details);
    for (int i = 0; i < n_options; i++) {
        char left[64];
        snprintf(left, sizeof left, "%s%s%s", options[i].name, options[i].argument ? " " : "",
                 options[i].argument ? options[i].argument : "");
        printf("  %-28s %s\n", left, options[i].help);
    }
    printf("  %-28s %s\n", "--help", "this text");
}

static const td_option *find_option(const td_option *options, int n_options, const char *word) {
    for (int i = 0; i < n_options; i++)
        if (strcmp(options[i].name, word) == 0)
            return &options[i];
    return NULL;
}

static td_status unknown_option(const td_command *command, const td_option *options, int n_options,
                                const char *word) {
    const char *names[MAX_OPTIONS];
    for (int i = 0; i < n_options; i++)
        names[i] = options[i].name;
    const char *near = td_nearest_name(word, names, (size_t)n_options);
    if (near)
        return td_fail(TD_ERR_USAGE, "%s: unknown option; did you mean %s? (tandem %s --help)",
                       word, near, command->name);
    return td_fail(TD_ERR_USAGE, "%s: unknown option (tandem %s --help lists them)", word,
                   command->name);
}

static td_status store_number(const td_option *option, const char *value) {
    char *end;
    errno = 0;
    if (option->type == TD_OPTION_INT)
        *(int64_t *)option->target = strtoll(value, &end, 10);
    else
        *(double *)option->target = strtod(value, &end);
    int is_finite = option->type == TD_OPTION_INT || isfinite(*(double *)option->target);
    if (end == value || *end != '\0' || errno != 0 || !is_finite)
        return td_fail(TD_ERR_USAGE, "%s: %s is not %s", option->name, value,
                       option->type == TD_OPTION_INT ? "an integer in range" : "a finite number");
    return TD_OK;
}

static td_status store_value(const td_option *option, const char *value) {
    td_option_list *list = option->target;
    switch (option->type) {
    case TD_OPTION_STRING:
        *(const char **)option->target = value;
        return TD_OK;
    case TD_OPTION_LIST:
        if (list->count == (int)(sizeof list->items / sizeof *list->items))
            return td_fail(TD_ERR_USAGE, "%s is given too often", option->name);
        list->items[list->count++] = value;
        return TD_OK;
    default:
        return store_number(option, value);
    }
}

int td_options_want_help(int argc, char **argv) {
    for (int i = 0; i < argc; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)
            return 1;
    return 0;
}

td_status td_options_parse(const td_command *command, const td_option *options, int n_options,
                           int argc, char **argv, const char **positional, int max_positional,
                           int *out_help) {
    int n_positional = 0;
    for (int i = 0; i < max_positional; i++)
        positional[i] = NULL;
    *out_help = td_options_want_help(argc, argv);
    if (*out_help) {
        print_help(command, options, n_options);
        return TD_OK;
    }
    for (int i = 0; i < argc; i++) {
        const char *word = argv[i];
        if (word[0] != '-' || word[1] == '\0') {
            if (n_positional == max_positional)
                return td_fail(TD_ERR_USAGE, "%s: one word too many (tandem %s --help)", word,
                               command->name);
            positional[n_positional++] = word;
        } else {
            const td_option *option = find_option(options, n_options, word);
            if (!option)
                return unknown_option(command, options, n_options, word);
            if (option->type == TD_OPTION_FLAG)
                *(int *)option->target = 1;
            else if (i + 1 == argc)
                return td_fail(TD_ERR_USAGE, "%s needs %s", word, option->argument);
            else
                TD_TRY(store_value(option, argv[++i]));
        }
    }
    return TD_OK;
}

td_status td_cli_config(td_config *config, const char *path, const td_option_list *assignments) {
    TD_TRY(td_config_init(config));
    if (path)
        TD_TRY(td_config_read(config, path));
    for (int i = 0; i < assignments->count; i++)
        TD_TRY(td_config_set(config, assignments->items[i]));
    return TD_OK;
}

td_status td_cli_set(td_config *config, const char *key, const char *value) {
    if (!value)
        return TD_OK;
    cJSON *text = cJSON_CreateString(value);
    char *quoted = text ? cJSON_PrintUnformatted(text) : NULL;
    size_t room = quoted ? strlen(key) + strlen(quoted) + 2 : 0;
    char *assignment = malloc(room + 1);
    td_status status =
        quoted && assignment ? TD_OK : td_fail(TD_ERR_MEMORY, "no memory for %s", key);
    if (status == TD_OK) {
        snprintf(assignment, room, "%s=%s", key, quoted);
        status = td_config_set(config, assignment);
    }
    free(assignment);
    cJSON_free(quoted);
    cJSON_Delete(text);
    return status;
}
