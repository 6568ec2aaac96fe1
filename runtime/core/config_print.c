// The config as JSON, as a fingerprint and as a table for people.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/core/config_internal.h"
#include "runtime/core/json.h"

static cJSON *strings_to_json(const td_string_list *list, int as_one) {
    if (as_one && list->count == 1)
        return cJSON_CreateString(list->items[0]);
    return cJSON_CreateStringArray((const char *const *)list->items, list->count);
}

cJSON *td_key_to_json(const td_config *config, const td_key *key) {
    const void *field = td_key_field_const(config, key);
    switch (key->type) {
    case TD_KEY_STRING: {
        const char *text = *(char *const *)field;
        return text ? cJSON_CreateString(text) : cJSON_CreateNull();
    }
    case TD_KEY_INT:
        return cJSON_CreateNumber((double)*(const int64_t *)field);
    case TD_KEY_FLOAT:
        return cJSON_CreateNumber(*(const double *)field);
    case TD_KEY_BOOL:
        return cJSON_CreateBool(*(const int *)field);
    case TD_KEY_ENUM:
        return cJSON_CreateString(key->choices[*(const int *)field]);
    case TD_KEY_STRINGS:
        return strings_to_json(field, key->offset == offsetof(td_config, target_modules) &&
                                          config->target_modules_is_pattern);
    case TD_KEY_OBJECT: {
        const cJSON *object = *(cJSON *const *)field;
        return object ? cJSON_Duplicate(object, 1) : cJSON_CreateNull();
    }
    }
    return NULL;
}

cJSON *td_config_to_json(const td_config *config) {
    cJSON *tree = cJSON_CreateObject();
    for (size_t i = 0; tree && i < td_config_table_count; i++) {
        cJSON *value = td_key_to_json(config, &td_config_table[i]);
        if (!value || !cJSON_AddItemToObject(tree, td_config_table[i].name, value)) {
            cJSON_Delete(value);
            cJSON_Delete(tree);
            return NULL;
        }
    }
    return tree;
}

// "name=value" lines of the keys that count, in table order.
static char *canonical_form(const td_config *config, size_t *out_bytes) {
    char *text = NULL;
    FILE *stream = open_memstream(&text, out_bytes);
    for (size_t i = 0; stream && i < td_config_table_count; i++) {
        const td_key *key = &td_config_table[i];
        if (!key->affects_result)
            continue;
        cJSON *value = td_key_to_json(config, key);
        char *printed = value ? td_json_print(value, 0) : NULL;
        fprintf(stream, "%s=%s\n", key->name, printed ? printed : "");
        free(printed);
        cJSON_Delete(value);
    }
    if (!stream || fclose(stream) != 0)
        return NULL;
    return text;
}

td_hash td_config_fingerprint(const td_config *config) {
    size_t bytes = 0;
    char *text = canonical_form(config, &bytes);
    td_hash hash = td_hash_bytes(text, text ? bytes : 0);
    free(text);
    return hash;
}

static int same_value(const cJSON *a, const cJSON *b) {
    char *text_a = a ? td_json_print(a, 0) : NULL;
    char *text_b = b ? td_json_print(b, 0) : NULL;
    int same = text_a && text_b ? strcmp(text_a, text_b) == 0 : text_a == text_b;
    free(text_a);
    free(text_b);
    return same;
}

const char *td_config_first_difference(const cJSON *a, const cJSON *b) {
    for (size_t i = 0; i < td_config_table_count; i++) {
        const td_key *key = &td_config_table[i];
        if (key->affects_result && !same_value(cJSON_GetObjectItemCaseSensitive(a, key->name),
                                               cJSON_GetObjectItemCaseSensitive(b, key->name)))
            return key->name;
    }
    return NULL;
}

static void describe_choices(const td_key *key, char *out, size_t room) {
    size_t used = 0;
    out[0] = '\0';
    for (int i = 0; key->choices[i] && used < room; i++)
        used += (size_t)snprintf(out + used, room - used, "%s%s", i ? "|" : "", key->choices[i]);
}

static void describe_type(const td_key *key, char *out, size_t room) {
    static const char *const names[] = {
        [TD_KEY_STRING] = "text",   [TD_KEY_INT] = "integer", [TD_KEY_FLOAT] = "number",
        [TD_KEY_BOOL] = "boolean",  [TD_KEY_ENUM] = "",       [TD_KEY_STRINGS] = "list of text",
        [TD_KEY_OBJECT] = "object",
    };
    if (key->type == TD_KEY_ENUM)
        describe_choices(key, out, room);
    else if (key->type == TD_KEY_INT || key->type == TD_KEY_FLOAT)
        snprintf(out, room, "%s %.16g..%.16g", names[key->type], key->minimum, key->maximum);
    else
        snprintf(out, room, "%s", names[key->type]);
}

static void print_key(const td_key *key) {
    char type[128];
    describe_type(key, type, sizeof type);
    printf("  %s (%s; default %s)\n      %s\n", key->name, type, key->fallback, key->help);
}

void td_config_print_table(void) {
    const char *section = "";
    for (size_t i = 0; i < td_config_table_count; i++) {
        const td_key *key = &td_config_table[i];
        if (strcmp(section, key->section) != 0)
            printf("%s%s\n", i ? "\n" : "", key->section);
        section = key->section;
        print_key(key);
    }
}
