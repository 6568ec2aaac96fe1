// Methods of strings, lists, dicts and loops.
#include <string.h>
#include <utf8proc.h>

#include "model/template_internal.h"
#include "model/unicode.h"

#define COUNT(table) (sizeof(table) / sizeof *(table))

// What to strip: the argument, or NULL for white space.
static const td_string *strip_set(td_render *self, const char *function,
                                  const td_arguments *arguments) {
    static const char *const names[] = {"chars"};
    td_value set = td_none();
    td_bind(self, function, arguments, names, 1, &set);
    return set.kind == TD_NONE ? NULL : td_as_string(self, function, set);
}

static td_value str_strip(td_render *self, td_value base, const td_arguments *arguments) {
    const td_string *set = strip_set(self, "strip", arguments);
    return td_text(td_strip(self, base.string, set, true, true));
}

static td_value str_lstrip(td_render *self, td_value base, const td_arguments *arguments) {
    const td_string *set = strip_set(self, "lstrip", arguments);
    return td_text(td_strip(self, base.string, set, true, false));
}

static td_value str_rstrip(td_render *self, td_value base, const td_arguments *arguments) {
    const td_string *set = strip_set(self, "rstrip", arguments);
    return td_text(td_strip(self, base.string, set, false, true));
}

static void add_cut(td_render *self, td_list *list, const td_string *text, size_t begin,
                    size_t end) {
    td_list_add(self, list, td_text(td_string_cut(self, text, begin, end)));
}

static size_t skip_while(const td_string *text, size_t at, bool space) {
    size_t bytes;
    while (at < text->bytes && td_is_space(td_utf8_decode(text->text + at, &bytes)) == space)
        at += bytes;
    return at;
}

static size_t skip_back_while(const td_string *text, size_t end, bool space) {
    size_t bytes;
    while (end > 0 && td_is_space(td_utf8_decode_before(text->text, end, &bytes)) == space)
        end -= bytes;
    return end;
}

static void split_words(td_render *self, const td_string *text, int64_t limit, td_list *out) {
    for (size_t at = skip_while(text, 0, true); at < text->bytes; limit--) {
        size_t end = limit == 0 ? text->bytes : skip_while(text, at, false);
        add_cut(self, out, text, at, end);
        at = skip_while(text, end, true);
    }
}

static void split_at(td_render *self, const td_string *text, const td_string *separator,
                     int64_t limit, td_list *out) {
    size_t at = 0, found;
    for (; limit != 0 && (found = td_string_find(self, text, separator, at)) != SIZE_MAX; limit--) {
        add_cut(self, out, text, at, found);
        at = found + separator->bytes;
    }
    add_cut(self, out, text, at, text->bytes);
}

static void reverse(td_list *list) {
    for (size_t i = 0; i < list->count / 2; i++) {
        td_value other = list->items[list->count - 1 - i];
        list->items[list->count - 1 - i] = list->items[i];
        list->items[i] = other;
    }
}

static void split_words_back(td_render *self, const td_string *text, int64_t limit, td_list *out) {
    for (size_t end = skip_back_while(text, text->bytes, true); end > 0; limit--) {
        size_t begin = limit == 0 ? 0 : skip_back_while(text, end, false);
        add_cut(self, out, text, begin, end);
        end = skip_back_while(text, begin, true);
    }
}

static void split_at_back(td_render *self, const td_string *text, const td_string *separator,
                          int64_t limit, td_list *out) {
    const td_string *left = text;
    size_t found;
    for (; limit != 0 && (found = td_string_find_last(self, left, separator)) != SIZE_MAX;
         limit--) {
        add_cut(self, out, left, found + separator->bytes, left->bytes);
        left = td_string_cut(self, left, 0, found);
    }
    td_list_add(self, out, td_text(left));
}

static td_value split(td_render *self, td_value base, const td_arguments *arguments, bool is_back) {
    static const char *const names[] = {"sep", "maxsplit"};
    td_value values[2] = {td_none(), td_int(-1)};
    td_bind(self, "split", arguments, names, 2, values);
    int64_t limit = td_as_int(self, "split", values[1]);
    td_value list = td_list_make(self, TD_LIST, 0);
    if (values[0].kind == TD_NONE) {
        (is_back ? split_words_back : split_words)(self, base.string, limit, list.list);
    } else {
        const td_string *separator = td_as_string(self, "split", values[0]);
        if (separator->bytes == 0)
            td_raise(self, "empty separator");
        (is_back ? split_at_back : split_at)(self, base.string, separator, limit, list.list);
    }
    if (is_back)
        reverse(list.list);
    return list;
}

static td_value str_split(td_render *self, td_value base, const td_arguments *arguments) {
    return split(self, base, arguments, false);
}

static td_value str_rsplit(td_render *self, td_value base, const td_arguments *arguments) {
    return split(self, base, arguments, true);
}

static td_value str_splitlines(td_render *self, td_value base, const td_arguments *arguments) {
    static const char *const names[] = {"keepends"};
    td_value keep = td_bool(false);
    td_bind(self, "splitlines", arguments, names, 1, &keep);
    return (td_value){.kind = TD_LIST, .list = td_split_lines(self, base.string, td_truth(keep))};
}

// What find, count, startswith and endswith look in: characters [start, end) of the string.
static const td_string *within(td_render *self, const td_string *text, td_value start, td_value end,
                               size_t *out_offset) {
    int64_t bounds[2] = {0, text->chars};
    td_steps(self, text->bytes / 256);
    td_value given[2] = {start, end};
    for (int i = 0; i < 2; i++) {
        if (given[i].kind == TD_NONE)
            continue;
        int64_t at = td_as_int(self, "find", given[i]);
        at = at < -(int64_t)text->chars ? 0 : at < 0 ? at + text->chars : at;
        bounds[i] = at;
    }
    *out_offset = 0;
    bounds[1] = bounds[1] > text->chars ? text->chars : bounds[1];
    if (bounds[0] > bounds[1])
        return NULL;
    *out_offset = td_string_offset(text, (size_t)bounds[0]);
    return td_string_cut(self, text, *out_offset, td_string_offset(text, (size_t)bounds[1]));
}

typedef struct search {
    td_value part;
    const td_string *text; // NULL: nothing can be found
    size_t offset;
} search;

static search read_search(td_render *self, td_value base, const td_arguments *arguments) {
    static const char *const names[] = {"sub", "start", "end"};
    td_value values[3] = {{0}, td_none(), td_none()};
    search found;
    td_bind(self, "find", arguments, names, 3, values);
    found.part = values[0];
    found.text = within(self, base.string, values[1], values[2], &found.offset);
    return found;
}

static bool has_edge(td_render *self, const td_string *text, td_value part, bool is_end) {
    if (part.kind == TD_TUPLE) {
        for (size_t i = 0; i < part.list->count; i++)
            if (has_edge(self, text, part.list->items[i], is_end))
                return true;
        return false;
    }
    const td_string *edge = td_as_string(self, is_end ? "endswith" : "startswith", part);
    return edge->bytes <= text->bytes &&
           memcmp(text->text + (is_end ? text->bytes - edge->bytes : 0), edge->text, edge->bytes) ==
               0;
}

static td_value str_startswith(td_render *self, td_value base, const td_arguments *arguments) {
    search what = read_search(self, base, arguments);
    return td_bool(what.text && has_edge(self, what.text, what.part, false));
}

static td_value str_endswith(td_render *self, td_value base, const td_arguments *arguments) {
    search what = read_search(self, base, arguments);
    return td_bool(what.text && has_edge(self, what.text, what.part, true));
}

static int64_t find(td_render *self, td_value base, const td_arguments *arguments, bool is_last) {
    search what = read_search(self, base, arguments);
    const td_string *part = td_as_string(self, "find", what.part);
    if (!what.text)
        return -1;
    size_t at = is_last ? td_string_find_last(self, what.text, part)
                        : td_string_find(self, what.text, part, 0);
    return at == SIZE_MAX ? -1 : (int64_t)td_count_chars(base.string->text, what.offset + at);
}

static td_value str_find(td_render *self, td_value base, const td_arguments *arguments) {
    return td_int(find(self, base, arguments, false));
}

static td_value str_rfind(td_render *self, td_value base, const td_arguments *arguments) {
    return td_int(find(self, base, arguments, true));
}

static td_value str_index(td_render *self, td_value base, const td_arguments *arguments) {
    int64_t at = find(self, base, arguments, false);
    if (at < 0)
        td_raise(self, "substring not found");
    return td_int(at);
}

static td_value str_rindex(td_render *self, td_value base, const td_arguments *arguments) {
    int64_t at = find(self, base, arguments, true);
    if (at < 0)
        td_raise(self, "substring not found");
    return td_int(at);
}

static td_value str_count(td_render *self, td_value base, const td_arguments *arguments) {
    search what = read_search(self, base, arguments);
    const td_string *part = td_as_string(self, "count", what.part);
    int64_t count = 0;
    if (!what.text)
        return td_int(0);
    if (part->bytes == 0)
        return td_int((int64_t)what.text->chars + 1);
    for (size_t at = 0; (at = td_string_find(self, what.text, part, at)) != SIZE_MAX; count++)
        at += part->bytes;
    return td_int(count);
}

static td_value str_replace(td_render *self, td_value base, const td_arguments *arguments) {
    static const char *const names[] = {"old", "new", "count"};
    td_value values[3] = {{0}, {0}, td_int(-1)};
    td_bind(self, "replace", arguments, names, 3, values);
    return td_text(td_replace(self, base.string, td_as_string(self, "replace", values[0]),
                              td_as_string(self, "replace", values[1]),
                              td_as_int(self, "replace", values[2])));
}

static td_value str_join(td_render *self, td_value base, const td_arguments *arguments) {
    static const char *const names[] = {"iterable"};
    td_value value = {0};
    td_builder out = {0};
    td_bind(self, "join", arguments, names, 1, &value);
    const td_list *items = td_items(self, value);
    for (size_t i = 0; i < items->count; i++) {
        if (i > 0)
            td_build_string(self, &out, base.string);
        td_build_string(self, &out, td_as_string(self, "join", items->items[i]));
    }
    return td_text(td_built(self, &out));
}

static void no_arguments(td_render *self, const td_arguments *arguments) {
    td_bind(self, "method", arguments, NULL, 0, NULL);
}

static td_value str_upper(td_render *self, td_value base, const td_arguments *arguments) {
    no_arguments(self, arguments);
    return td_text(td_case(self, base.string, true));
}

static td_value str_lower(td_render *self, td_value base, const td_arguments *arguments) {
    no_arguments(self, arguments);
    return td_text(td_case(self, base.string, false));
}

static td_value str_capitalize(td_render *self, td_value base, const td_arguments *arguments) {
    no_arguments(self, arguments);
    return td_text(td_capitalize(self, base.string));
}

static bool is_cased(uint32_t code) {
    return utf8proc_toupper((utf8proc_int32_t)code) != utf8proc_tolower((utf8proc_int32_t)code);
}

// Upper case after anything that has no case, lower case after what has.
static td_value str_title(td_render *self, td_value base, const td_arguments *arguments) {
    td_builder out = {0};
    bool is_inside = false;
    size_t bytes;
    no_arguments(self, arguments);
    for (size_t at = 0; at < base.string->bytes; at += bytes) {
        uint32_t code = td_utf8_decode(base.string->text + at, &bytes);
        const td_string *one = td_string_cut(self, base.string, at, at + bytes);
        td_build_string(self, &out, td_case(self, one, !is_inside));
        is_inside = is_cased(code);
    }
    return td_text(td_built(self, &out));
}

static td_value str_swapcase(td_render *self, td_value base, const td_arguments *arguments) {
    td_builder out = {0};
    size_t bytes;
    no_arguments(self, arguments);
    for (size_t at = 0; at < base.string->bytes; at += bytes) {
        uint32_t code = td_utf8_decode(base.string->text + at, &bytes);
        bool is_lower = utf8proc_toupper((utf8proc_int32_t)code) != (utf8proc_int32_t)code;
        const td_string *one = td_string_cut(self, base.string, at, at + bytes);
        td_build_string(self, &out, td_case(self, one, is_lower));
    }
    return td_text(td_built(self, &out));
}

// All characters of a kind, and at least one.
static bool all_of(const td_string *text, bool (*is_kind)(uint32_t)) {
    size_t bytes;
    for (size_t at = 0; at < text->bytes; at += bytes)
        if (!is_kind(td_utf8_decode(text->text + at, &bytes)))
            return false;
    return text->bytes > 0;
}

static bool is_digit(uint32_t code) {
    return code < 0x80 ? code >= '0' && code <= '9'
                       : utf8proc_category((utf8proc_int32_t)code) == UTF8PROC_CATEGORY_ND;
}

static bool is_letter(uint32_t code) {
    utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)code);
    return category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO;
}

static bool is_alphanumeric(uint32_t code) {
    utf8proc_category_t category = utf8proc_category((utf8proc_int32_t)code);
    return is_letter(code) ||
           (category >= UTF8PROC_CATEGORY_ND && category <= UTF8PROC_CATEGORY_NO);
}

static bool is_ascii(uint32_t code) {
    return code < 0x80;
}

static td_value str_isdigit(td_render *self, td_value base, const td_arguments *arguments) {
    no_arguments(self, arguments);
    return td_bool(all_of(base.string, is_digit));
}

static td_value str_isalpha(td_render *self, td_value base, const td_arguments *arguments) {
    no_arguments(self, arguments);
    return td_bool(all_of(base.string, is_letter));
}

static td_value str_isalnum(td_render *self, td_value base, const td_arguments *arguments) {
    no_arguments(self, arguments);
    return td_bool(all_of(base.string, is_alphanumeric));
}

static td_value str_isascii(td_render *self, td_value base, const td_arguments *arguments) {
    no_arguments(self, arguments);
    return td_bool(base.string->bytes == 0 || all_of(base.string, is_ascii));
}

static td_value str_isspace(td_render *self, td_value base, const td_arguments *arguments) {
    no_arguments(self, arguments);
    return td_bool(all_of(base.string, td_is_space));
}

// No character of the other case, and at least one of this.
static bool has_only_case(const td_string *text, bool upper) {
    bool has_case = false;
    size_t bytes;
    for (size_t at = 0; at < text->bytes; at += bytes) {
        utf8proc_int32_t code = (utf8proc_int32_t)td_utf8_decode(text->text + at, &bytes);
        if ((upper ? utf8proc_toupper(code) : utf8proc_tolower(code)) != code)
            return false;
        has_case = has_case || is_cased((uint32_t)code);
    }
    return has_case;
}

static td_value str_isupper(td_render *self, td_value base, const td_arguments *arguments) {
    no_arguments(self, arguments);
    return td_bool(has_only_case(base.string, true));
}

static td_value str_islower(td_render *self, td_value base, const td_arguments *arguments) {
    no_arguments(self, arguments);
    return td_bool(has_only_case(base.string, false));
}

static td_value partition(td_render *self, td_value base, const td_arguments *arguments,
                          bool is_last) {
    static const char *const names[] = {"sep"};
    td_value separator = {0}, out = td_list_make(self, TD_TUPLE, 3);
    td_bind(self, "partition", arguments, names, 1, &separator);
    const td_string *text = base.string, *sep = td_as_string(self, "partition", separator);
    if (sep->bytes == 0)
        td_raise(self, "empty separator");
    size_t at = is_last ? td_string_find_last(self, text, sep) : td_string_find(self, text, sep, 0);
    size_t begin = at != SIZE_MAX ? at : is_last ? 0 : text->bytes;
    size_t end = at != SIZE_MAX ? at + sep->bytes : begin;
    add_cut(self, out.list, text, 0, begin);
    add_cut(self, out.list, text, begin, end);
    add_cut(self, out.list, text, end, text->bytes);
    return out;
}

static td_value str_partition(td_render *self, td_value base, const td_arguments *arguments) {
    return partition(self, base, arguments, false);
}

static td_value str_rpartition(td_render *self, td_value base, const td_arguments *arguments) {
    return partition(self, base, arguments, true);
}

static td_value str_removeprefix(td_render *self, td_value base, const td_arguments *arguments) {
    static const char *const names[] = {"prefix"};
    td_value part = {0};
    td_bind(self, "removeprefix", arguments, names, 1, &part);
    bool has = has_edge(self, base.string, part, false);
    return td_text(
        td_string_cut(self, base.string, has ? part.string->bytes : 0, base.string->bytes));
}

static td_value str_removesuffix(td_render *self, td_value base, const td_arguments *arguments) {
    static const char *const names[] = {"suffix"};
    td_value part = {0};
    td_bind(self, "removesuffix", arguments, names, 1, &part);
    bool has = has_edge(self, base.string, part, true);
    return td_text(
        td_string_cut(self, base.string, 0, base.string->bytes - (has ? part.string->bytes : 0)));
}

// side: '<' text first, '>' text last, '^' in the middle as Python's str.center() does.
static td_value justify(td_render *self, td_value base, const td_arguments *arguments, char side) {
    static const char *const names[] = {"width", "fillchar"};
    td_value values[2] = {{0}, td_text(td_string_literal(self, " "))};
    td_builder out = {0};
    td_bind(self, "center", arguments, names, 2, values);
    int64_t width = td_as_int(self, "center", values[0]);
    const td_string *fill = td_as_string(self, "center", values[1]);
    if (fill->chars != 1)
        td_raise(self, "The fill character must be exactly one character long");
    int64_t missing = width - base.string->chars;
    int64_t before = missing <= 0 || side == '<' ? 0
                     : side == '>'               ? missing
                                                 : missing / 2 + (missing & width & 1);
    td_build_repeated(self, &out, fill, before);
    td_build_string(self, &out, base.string);
    td_build_repeated(self, &out, fill, missing - before);
    return td_text(td_built(self, &out));
}

static td_value str_center(td_render *self, td_value base, const td_arguments *arguments) {
    return justify(self, base, arguments, '^');
}

static td_value str_ljust(td_render *self, td_value base, const td_arguments *arguments) {
    return justify(self, base, arguments, '<');
}

static td_value str_rjust(td_render *self, td_value base, const td_arguments *arguments) {
    return justify(self, base, arguments, '>');
}

static td_value str_zfill(td_render *self, td_value base, const td_arguments *arguments) {
    static const char *const names[] = {"width"};
    td_value width = {0};
    td_builder out = {0};
    td_bind(self, "zfill", arguments, names, 1, &width);
    const td_string *text = base.string;
    size_t sign = text->bytes > 0 && (text->text[0] == '-' || text->text[0] == '+');
    int64_t missing = td_as_int(self, "zfill", width) - text->chars;
    td_build_cut(self, &out, text, 0, sign);
    td_build_repeated(self, &out, td_string_literal(self, "0"), missing);
    td_build_cut(self, &out, text, sign, text->bytes);
    return td_text(td_built(self, &out));
}

static const td_builtin_entry string_methods[] = {
    {"strip", str_strip},
    {"lstrip", str_lstrip},
    {"rstrip", str_rstrip},
    {"split", str_split},
    {"rsplit", str_rsplit},
    {"splitlines", str_splitlines},
    {"startswith", str_startswith},
    {"endswith", str_endswith},
    {"find", str_find},
    {"rfind", str_rfind},
    {"index", str_index},
    {"rindex", str_rindex},
    {"count", str_count},
    {"replace", str_replace},
    {"join", str_join},
    {"upper", str_upper},
    {"lower", str_lower},
    {"casefold", str_lower},
    {"capitalize", str_capitalize},
    {"title", str_title},
    {"swapcase", str_swapcase},
    {"isdigit", str_isdigit},
    {"isdecimal", str_isdigit},
    {"isnumeric", str_isdigit},
    {"isalpha", str_isalpha},
    {"isalnum", str_isalnum},
    {"isascii", str_isascii},
    {"isspace", str_isspace},
    {"isupper", str_isupper},
    {"islower", str_islower},
    {"partition", str_partition},
    {"rpartition", str_rpartition},
    {"removeprefix", str_removeprefix},
    {"removesuffix", str_removesuffix},
    {"center", str_center},
    {"ljust", str_ljust},
    {"rjust", str_rjust},
    {"zfill", str_zfill},
    {"format", td_brace_format},
};

static td_value list_index(td_render *self, td_value base, const td_arguments *arguments) {
    static const char *const names[] = {"value"};
    td_value value = {0};
    td_bind(self, "index", arguments, names, 1, &value);
    for (size_t i = 0; i < base.list->count; i++)
        if (td_equal(self, base.list->items[i], value))
            return td_int((int64_t)i);
    td_raise(self, "the value is not in the list");
}

static td_value list_count(td_render *self, td_value base, const td_arguments *arguments) {
    static const char *const names[] = {"value"};
    td_value value = {0};
    int64_t count = 0;
    td_bind(self, "count", arguments, names, 1, &value);
    for (size_t i = 0; i < base.list->count; i++)
        count += td_equal(self, base.list->items[i], value);
    return td_int(count);
}

static td_value itself(td_render *self, td_value base, const td_arguments *arguments) {
    no_arguments(self, arguments);
    return base;
}

static const td_builtin_entry list_methods[] = {
    {"index", list_index},
    {"count", list_count},
    {"copy", itself},
};

static td_value dict_view(td_render *self, td_value base, const char *name, bool keys,
                          bool values) {
    td_value view = td_list_make(self, TD_VIEW, base.dict->count);
    view.list->name = name;
    for (size_t i = 0; i < base.dict->count; i++) {
        const td_entry *entry = &base.dict->entries[i];
        td_list_add(self, view.list,
                    keys && values ? td_pair(self, entry->key, entry->value)
                    : keys         ? entry->key
                                   : entry->value);
    }
    return view;
}

static td_value dict_items(td_render *self, td_value base, const td_arguments *arguments) {
    no_arguments(self, arguments);
    return dict_view(self, base, "dict_items", true, true);
}

static td_value dict_keys(td_render *self, td_value base, const td_arguments *arguments) {
    no_arguments(self, arguments);
    return dict_view(self, base, "dict_keys", true, false);
}

static td_value dict_values(td_render *self, td_value base, const td_arguments *arguments) {
    no_arguments(self, arguments);
    return dict_view(self, base, "dict_values", false, true);
}

static td_value dict_get(td_render *self, td_value base, const td_arguments *arguments) {
    static const char *const names[] = {"key", "default"};
    td_value values[2] = {{0}, td_none()};
    td_bind(self, "get", arguments, names, 2, values);
    const td_value *found = td_dict_find(self, base.dict, values[0]);
    return found ? *found : values[1];
}

static const td_builtin_entry dict_methods[] = {
    {"items", dict_items}, {"keys", dict_keys}, {"values", dict_values},
    {"get", dict_get},     {"copy", itself},
};

static bool is_one_of(const td_string *name, const char *const *names, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (td_string_is(name, names[i]))
            return true;
    return false;
}

static td_value loop_cycle(td_render *self, td_value base, const td_arguments *arguments) {
    if (arguments->count == 0)
        td_raise(self, "no items for cycling given");
    return arguments->items[base.loop->index % arguments->count];
}

static td_value loop_changed(td_render *self, td_value base, const td_arguments *arguments) {
    td_value value = td_list_make(self, TD_TUPLE, arguments->count);
    for (size_t i = 0; i < arguments->count; i++)
        td_list_add(self, value.list, arguments->items[i]);
    bool is_same = base.loop->has_changed && td_equal(self, base.loop->changed, value);
    base.loop->changed = value;
    base.loop->has_changed = true;
    return td_bool(!is_same);
}

static const td_builtin_entry loop_methods[] = {
    {"cycle", loop_cycle},
    {"changed", loop_changed},
};

static const td_builtin_entry *find_entry(const td_builtin_entry *table, size_t count,
                                          const td_string *name) {
    for (size_t i = 0; i < count; i++)
        if (td_string_is(name, table[i].name))
            return &table[i];
    return NULL;
}

const td_builtin_entry *td_find_method(td_value base, const td_string *name, bool *out_is_unsafe) {
    static const char *const list_changes[] = {"append", "clear", "pop",    "reverse",
                                               "insert", "sort",  "extend", "remove"};
    static const char *const dict_changes[] = {"clear", "pop", "popitem", "setdefault", "update"};
    *out_is_unsafe = (base.kind == TD_LIST && is_one_of(name, list_changes, COUNT(list_changes))) ||
                     (base.kind == TD_DICT && is_one_of(name, dict_changes, COUNT(dict_changes)));
    switch (base.kind) {
    case TD_STRING:
        return find_entry(string_methods, COUNT(string_methods), name);
    case TD_LIST:
        return find_entry(list_methods, COUNT(list_methods), name);
    case TD_TUPLE:
        return find_entry(list_methods, 2, name);
    case TD_DICT:
        return find_entry(dict_methods, COUNT(dict_methods), name);
    case TD_LOOP:
        return find_entry(loop_methods, COUNT(loop_methods), name);
    default:
        return NULL;
    }
}
