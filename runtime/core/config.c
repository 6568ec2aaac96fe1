// Reading values into the fields of td_config, driven by the table.
#include "runtime/core/config.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/core/config_internal.h"
#include "runtime/core/json.h"

enum { MAX_CONFIG_BYTES = 16 << 20 };

// Enumerations are stored through int pointers.
_Static_assert(sizeof(td_recompute) == sizeof(int), "enumerations have the size of int");

const td_key *td_key_find(const char *name) {
    for (size_t i = 0; i < td_config_table_count; i++)
        if (strcmp(td_config_table[i].name, name) == 0)
            return &td_config_table[i];
    return NULL;
}

static td_status fail_no_memory(void) {
    return td_fail(TD_ERR_MEMORY, "no memory for the config");
}

static void list_clear(td_string_list *list) {
    for (int i = 0; i < list->count; i++)
        free(list->items[i]);
    free(list->items);
    *list = (td_string_list){0};
}

// `where` is the file, or "--set". The found value is shown as JSON, cut short.
static td_status fail_value(const char *where, const td_key *key, const char *expected,
                            const cJSON *found) {
    char *text = td_json_print(found, 0);
    (void)td_fail(TD_ERR_USAGE, "%s: %s must be %s, found %.60s", where, key->name, expected,
                  text ? text : "another type");
    free(text);
    return TD_ERR_USAGE;
}

static td_status fail_range(const char *where, const td_key *key, double value) {
    return td_fail(TD_ERR_USAGE, "%s: %s must be from %.17g to %.17g, found %.17g", where,
                   key->name, key->minimum, key->maximum, value);
}

static td_status set_string(const char *where, const td_key *key, char **field,
                            const cJSON *value) {
    if (!cJSON_IsString(value) && !cJSON_IsNull(value))
        return fail_value(where, key, "a string", value);
    char *copy = NULL;
    if (cJSON_IsString(value) && !(copy = strdup(value->valuestring)))
        return fail_no_memory();
    free(*field);
    *field = copy;
    return TD_OK;
}

static td_status set_int(const char *where, const td_key *key, int64_t *field, const cJSON *value) {
    if (!cJSON_IsNumber(value) || value->valuedouble != floor(value->valuedouble))
        return fail_value(where, key, "an integer", value);
    if (value->valuedouble < key->minimum || value->valuedouble > key->maximum)
        return fail_range(where, key, value->valuedouble);
    *field = (int64_t)value->valuedouble;
    return TD_OK;
}

static td_status set_float(const char *where, const td_key *key, double *field,
                           const cJSON *value) {
    if (!cJSON_IsNumber(value) || isnan(value->valuedouble))
        return fail_value(where, key, "a number", value);
    if (value->valuedouble < key->minimum || value->valuedouble > key->maximum)
        return fail_range(where, key, value->valuedouble);
    *field = value->valuedouble;
    return TD_OK;
}

static td_status set_bool(const char *where, const td_key *key, int *field, const cJSON *value) {
    if (!cJSON_IsBool(value))
        return fail_value(where, key, "true or false", value);
    *field = cJSON_IsTrue(value);
    return TD_OK;
}

static td_status fail_choice(const char *where, const td_key *key, const cJSON *value) {
    char expected[256] = "one of";
    size_t used = strlen(expected);
    for (int i = 0; key->choices[i] && used < sizeof expected; i++)
        used += (size_t)snprintf(expected + used, sizeof expected - used, "%s \"%s\"", i ? "," : "",
                                 key->choices[i]);
    return fail_value(where, key, expected, value);
}

static td_status set_choice(const char *where, const td_key *key, int *field, const cJSON *value) {
    if (!cJSON_IsString(value))
        return fail_choice(where, key, value);
    for (int i = 0; key->choices[i]; i++) {
        if (strcmp(key->choices[i], value->valuestring) == 0) {
            *field = i;
            return TD_OK;
        }
    }
    return fail_choice(where, key, value);
}

static td_status list_fill(td_string_list *list, const cJSON *value) {
    int count = cJSON_IsString(value) ? 1 : cJSON_GetArraySize(value);
    list->items = calloc((size_t)count + 1, sizeof *list->items);
    if (!list->items)
        return fail_no_memory();
    const cJSON *item = cJSON_IsString(value) ? value : value->child;
    for (; list->count < count; item = item->next) {
        char *copy = strdup(item->valuestring);
        if (!copy)
            return fail_no_memory();
        list->items[list->count++] = copy;
    }
    return TD_OK;
}

static int is_string_or_strings(const cJSON *value) {
    const cJSON *item;
    if (cJSON_IsString(value))
        return 1;
    if (!cJSON_IsArray(value))
        return 0;
    cJSON_ArrayForEach(item, value) {
        if (!cJSON_IsString(item))
            return 0;
    }
    return 1;
}

static td_status set_strings(const char *where, const td_key *key, td_string_list *field,
                             const cJSON *value) {
    if (!is_string_or_strings(value))
        return fail_value(where, key, "a string or a list of strings", value);
    td_string_list list = {0};
    td_status status = list_fill(&list, value);
    if (status != TD_OK) {
        list_clear(&list);
        return status;
    }
    list_clear(field);
    *field = list;
    return TD_OK;
}

static td_status set_object(const char *where, const td_key *key, cJSON **field,
                            const cJSON *value) {
    if (!cJSON_IsObject(value) && !cJSON_IsNull(value))
        return fail_value(where, key, "an object", value);
    cJSON *copy = NULL;
    if (cJSON_IsObject(value) && !(copy = cJSON_Duplicate(value, 1)))
        return fail_no_memory();
    cJSON_Delete(*field);
    *field = copy;
    return TD_OK;
}

static td_status set_field(const char *where, const td_key *key, td_config *config,
                           const cJSON *value) {
    void *field = td_key_field(config, key);
    switch (key->type) {
    case TD_KEY_STRING:
        return set_string(where, key, field, value);
    case TD_KEY_INT:
        return set_int(where, key, field, value);
    case TD_KEY_FLOAT:
        return set_float(where, key, field, value);
    case TD_KEY_BOOL:
        return set_bool(where, key, field, value);
    case TD_KEY_ENUM:
        return set_choice(where, key, field, value);
    case TD_KEY_STRINGS:
        TD_TRY(set_strings(where, key, field, value));
        // PEFT tells a pattern from a list by the type of the value.
        if (key->offset == offsetof(td_config, target_modules))
            config->target_modules_is_pattern = cJSON_IsString(value);
        return TD_OK;
    case TD_KEY_OBJECT:
        return set_object(where, key, field, value);
    }
    return td_fail(TD_ERR_INTERNAL, "config key %s has no type", key->name);
}

static td_status fail_unknown(const char *where, const char *name) {
    const char *names[256];
    size_t count = 0;
    for (; count < td_config_table_count && count < 256; count++)
        names[count] = td_config_table[count].name;
    const char *nearest = td_nearest_name(name, names, count);
    if (nearest)
        return td_fail(TD_ERR_USAGE, "%s: unknown key \"%.60s\"; did you mean \"%s\"?", where, name,
                       nearest);
    return td_fail(TD_ERR_USAGE, "%s: unknown key \"%.60s\"; \"tandem config\" lists all keys",
                   where, name);
}

static td_status set_named(const char *where, const char *name, td_config *config,
                           const cJSON *value) {
    const td_key *key = td_key_find(name);
    return key ? set_field(where, key, config, value) : fail_unknown(where, name);
}

static td_status set_fallback(const td_key *key, td_config *config) {
    cJSON *value = NULL;
    TD_TRY(td_json_parse(key->name, key->fallback, strlen(key->fallback), &value));
    td_status status = set_field("default", key, config, value);
    cJSON_Delete(value);
    return status;
}

td_status td_config_init(td_config *config) {
    memset(config, 0, sizeof *config);
    for (size_t i = 0; i < td_config_table_count; i++)
        TD_TRY(set_fallback(&td_config_table[i], config));
    return TD_OK;
}

void td_config_fini(td_config *config) {
    for (size_t i = 0; i < td_config_table_count; i++) {
        const td_key *key = &td_config_table[i];
        void *field = td_key_field(config, key);
        if (key->type == TD_KEY_STRING)
            free(*(char **)field);
        else if (key->type == TD_KEY_STRINGS)
            list_clear(field);
        else if (key->type == TD_KEY_OBJECT)
            cJSON_Delete(*(cJSON **)field);
    }
    memset(config, 0, sizeof *config);
}

// Of two equal keys one would silently win.
static td_status refuse_duplicates(const char *path, const cJSON *tree) {
    const cJSON *item;
    cJSON_ArrayForEach(item, tree) {
        for (const cJSON *other = item->next; other; other = other->next)
            if (strcmp(item->string, other->string) == 0)
                return td_fail(TD_ERR_USAGE, "%s: key \"%.60s\" is there twice", path,
                               item->string);
    }
    return TD_OK;
}

td_status td_config_read(td_config *config, const char *path) {
    cJSON *tree = NULL;
    // Whatever is wrong with this file is a mistake in the use of the program, not in its data.
    if (td_json_read(path, MAX_CONFIG_BYTES, &tree) != TD_OK)
        return TD_ERR_USAGE;
    td_status status = TD_OK;
    if (!cJSON_IsObject(tree))
        status = td_fail(TD_ERR_USAGE, "%s: a config is one JSON object", path);
    if (status == TD_OK)
        status = refuse_duplicates(path, tree);
    const cJSON *item;
    cJSON_ArrayForEach(item, tree) {
        if (status == TD_OK)
            status = set_named(path, item->string, config, item);
    }
    cJSON_Delete(tree);
    return status;
}

// JSON where it is JSON and the key can take it, else a string: output_dir=7 and optim=adamw need
// no quotes.
static td_status value_of_text(const td_key *key, const char *text, cJSON **out) {
    int had_error = td_error_message()[0] != '\0';
    int takes_text =
        key->type == TD_KEY_STRING || key->type == TD_KEY_ENUM || key->type == TD_KEY_STRINGS;
    cJSON *value = NULL;
    if (td_json_parse("--set", text, strlen(text), &value) != TD_OK && !had_error)
        td_error_clear();
    if (value && takes_text && (cJSON_IsNumber(value) || cJSON_IsBool(value))) {
        cJSON_Delete(value);
        value = NULL;
    }
    *out = value ? value : cJSON_CreateString(text);
    return *out ? TD_OK : fail_no_memory();
}

td_status td_config_set(td_config *config, const char *assignment) {
    const char *equals = strchr(assignment, '=');
    char name[64];
    if (!equals || equals == assignment)
        return td_fail(TD_ERR_USAGE, "--set %.80s: expected key=value", assignment);
    snprintf(name, sizeof name, "%.*s", (int)(equals - assignment), assignment);
    const td_key *key = td_key_find(name);
    if (!key)
        return fail_unknown("--set", name);
    if (!td_json_is_utf8(equals + 1, strlen(equals + 1)))
        return td_fail(TD_ERR_USAGE, "--set %s: the value is not UTF-8", name);
    cJSON *value = NULL;
    TD_TRY(value_of_text(key, equals + 1, &value));
    td_status status = set_field("--set", key, config, value);
    cJSON_Delete(value);
    return status;
}
