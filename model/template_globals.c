// Global functions: dict, namespace, range, raise_exception, strftime_now.
#include <string.h>
#include <time.h>

#include "model/template_internal.h"

#define COUNT(table) (sizeof(table) / sizeof *(table))

static td_value make_dict(td_render *self, const td_arguments *arguments, td_value_kind kind) {
    td_value dict = td_dict_make(self, kind);
    if (arguments->count > 1)
        td_raise(self, "dict expected at most 1 argument, got %zu", arguments->count);
    if (arguments->count == 1 && arguments->items[0].kind == TD_DICT) {
        const td_dict *from = arguments->items[0].dict;
        for (size_t i = 0; i < from->count; i++)
            td_dict_set(self, dict.dict, from->entries[i].key, from->entries[i].value);
    } else if (arguments->count == 1) {
        const td_list *pairs = td_items(self, arguments->items[0]);
        for (size_t i = 0; i < pairs->count; i++) {
            const td_list *pair = td_items(self, pairs->items[i]);
            if (pair->count != 2)
                td_raise(self, "element %zu of the pairs of a dict has %zu items", i, pair->count);
            td_dict_set(self, dict.dict, pair->items[0], pair->items[1]);
        }
    }
    for (size_t i = 0; i < arguments->n_keywords; i++)
        td_dict_set(self, dict.dict, arguments->keywords[i].key, arguments->keywords[i].value);
    return dict;
}

static td_value global_dict(td_render *self, td_value base, const td_arguments *arguments) {
    (void)base;
    return make_dict(self, arguments, TD_DICT);
}

static td_value global_namespace(td_render *self, td_value base, const td_arguments *arguments) {
    (void)base;
    td_value made = make_dict(self, arguments, TD_NAMESPACE);
    for (size_t i = 0; i < made.dict->count; i++) {
        td_value key = made.dict->entries[i].key;
        if (key.kind == TD_STRING && key.string->bytes > 0 && key.string->text[0] == '_')
            td_raise(self, "an attribute of a namespace cannot begin with an underscore");
    }
    return made;
}

static td_value global_range(td_render *self, td_value base, const td_arguments *arguments) {
    enum { MAX_RANGE = 100000 };
    int64_t bounds[3] = {0, 0, 1}, span;
    (void)base;
    if (arguments->n_keywords > 0 || arguments->count < 1 || arguments->count > 3)
        td_raise(self, "range expected 1 to 3 arguments");
    for (size_t i = 0; i < arguments->count; i++)
        bounds[arguments->count == 1 ? 1 : i] = td_as_int(self, "range", arguments->items[i]);
    if (bounds[2] == 0)
        td_raise(self, "range() arg 3 must not be zero");
    if (bounds[2] == INT64_MIN || __builtin_sub_overflow(bounds[1], bounds[0], &span) ||
        span == INT64_MIN)
        td_raise(self, "range() beyond 64 bits");
    int64_t step = bounds[2] > 0 ? bounds[2] : -bounds[2];
    span = bounds[2] > 0 ? span : -span;
    int64_t count = span > 0 ? (span - 1) / step + 1 : 0;
    if (count > MAX_RANGE)
        td_raise(self, "Range too big. The sandbox blocks ranges larger than %d.", MAX_RANGE);
    td_range *range = td_take(self, sizeof *range);
    *range = (td_range){.begin = bounds[0], .end = bounds[1], .step = bounds[2], .count = count};
    return (td_value){.kind = TD_RANGE, .range = range};
}

static td_value global_raise(td_render *self, td_value base, const td_arguments *arguments) {
    static const char *const names[] = {"message"};
    td_value message = {0};
    (void)base;
    td_bind(self, "raise_exception", arguments, names, 1, &message);
    const td_string *text = td_str(self, message);
    td_raise(self, "the template refuses this chat: %.*s",
             (int)(text->bytes < 400 ? text->bytes : 400), text->text);
}

static td_value global_strftime(td_render *self, td_value base, const td_arguments *arguments) {
    static const char *const names[] = {"format"};
    td_value format = {0};
    char spelled[200], text[512];
    struct tm local;
    time_t now = time(NULL);
    (void)base;
    td_bind(self, "strftime_now", arguments, names, 1, &format);
    const td_string *given = td_as_string(self, "strftime_now", format);
    if (given->bytes >= sizeof spelled || memchr(given->text, '\0', given->bytes))
        td_raise(self, "strftime_now(): the format is too long");
    memcpy(spelled, given->text, given->bytes);
    spelled[given->bytes] = '\0';
    localtime_r(&now, &local);
    size_t bytes = *spelled ? strftime(text, sizeof text, spelled, &local) : 0;
    return td_text(td_string_make(self, text, bytes, 0));
}

static td_value global_joiner(td_render *self, td_value base, const td_arguments *arguments) {
    (void)base;
    (void)arguments;
    td_raise(self, "joiner, cycler and lipsum are not supported in chat templates");
}

td_builtin td_find_global(const td_string *name) {
    static const td_builtin_entry globals[] = {
        {"namespace", global_namespace},   {"raise_exception", global_raise},
        {"range", global_range},           {"dict", global_dict},
        {"strftime_now", global_strftime}, {"joiner", global_joiner},
        {"cycler", global_joiner},         {"lipsum", global_joiner},
    };
    return td_find_builtin(globals, COUNT(globals), name);
}
