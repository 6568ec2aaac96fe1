// Filters of sequences, and the tests.
#include <string.h>

#include "model/template_internal.h"
#include "model/unicode.h"

#define COUNT(table) (sizeof(table) / sizeof *(table))

static void no_arguments(td_render *self, const char *filter, const td_arguments *arguments) {
    td_bind(self, filter, arguments, NULL, 0, NULL);
}

// "a.b.0" as Jinja's attribute getters read it; the attribute may be a number too.
static td_value dig(td_render *self, td_value item, td_value path) {
    if (path.kind == TD_NONE)
        return item;
    if (path.kind != TD_STRING)
        return td_item(self, item, path);
    const td_string *dot = td_string_literal(self, ".");
    for (size_t at = 0, end; at <= path.string->bytes; at = end + 1) {
        int64_t index;
        end = td_string_find(self, path.string, dot, at);
        end = end == SIZE_MAX ? path.string->bytes : end;
        const td_string *part = td_string_cut(self, path.string, at, end);
        bool is_index = part->bytes > 0 && part->text[0] >= '0' && part->text[0] <= '9' &&
                        td_parse_int(part, 10, &index);
        item = td_item(self, item, is_index ? td_int(index) : td_text(part));
    }
    return item;
}

static td_value folded(td_render *self, td_value value, bool case_sensitive) {
    return value.kind == TD_STRING && !case_sensitive ? td_text(td_case(self, value.string, false))
                                                      : value;
}

static td_value filter_length(td_render *self, td_value base, const td_arguments *arguments) {
    no_arguments(self, "length", arguments);
    return td_int(td_length(self, base));
}

static td_value copy_of(td_render *self, const td_list *items) {
    td_value list = td_list_make(self, TD_LIST, items->count);
    for (size_t i = 0; i < items->count; i++)
        td_list_add(self, list.list, items->items[i]);
    return list;
}

static td_value filter_list(td_render *self, td_value base, const td_arguments *arguments) {
    no_arguments(self, "list", arguments);
    return copy_of(self, td_items(self, base));
}

static td_value filter_first(td_render *self, td_value base, const td_arguments *arguments) {
    no_arguments(self, "first", arguments);
    if (base.kind == TD_ITERATOR && base.list->next < base.list->count)
        return base.list->items[base.list->next++];
    const td_list *items = td_items(self, base);
    return items->count > 0 ? items->items[0]
                            : td_undefined(self, "No first item, sequence was empty.");
}

static td_value filter_last(td_render *self, td_value base, const td_arguments *arguments) {
    no_arguments(self, "last", arguments);
    if (base.kind == TD_ITERATOR)
        td_raise(self, "'generator' object is not reversible");
    const td_list *items = td_items(self, base);
    return items->count > 0 ? items->items[items->count - 1]
                            : td_undefined(self, "No last item, sequence was empty.");
}

static td_value filter_join(td_render *self, td_value base, const td_arguments *arguments) {
    static const char *const names[] = {"d", "attribute"};
    td_value values[2] = {td_text(td_string_literal(self, "")), td_none()};
    td_builder out = {0};
    td_bind(self, "join", arguments, names, 2, values);
    const td_list *items = td_items(self, base);
    const td_string *separator = td_str(self, values[0]);
    for (size_t i = 0; i < items->count; i++) {
        if (i > 0)
            td_build_string(self, &out, separator);
        td_build_str(self, &out, dig(self, items->items[i], values[1]));
    }
    return td_text(td_built(self, &out));
}

static td_value filter_items(td_render *self, td_value base, const td_arguments *arguments) {
    no_arguments(self, "items", arguments);
    td_value out = td_list_make(self, TD_ITERATOR, 0);
    if (base.kind == TD_UNDEFINED)
        return out;
    if (base.kind != TD_DICT)
        td_raise(self, "Can only get item pairs from a mapping.");
    for (size_t i = 0; i < base.dict->count; i++)
        td_list_add(self, out.list,
                    td_pair(self, base.dict->entries[i].key, base.dict->entries[i].value));
    return out;
}

static td_value filter_reverse(td_render *self, td_value base, const td_arguments *arguments) {
    no_arguments(self, "reverse", arguments);
    if (base.kind == TD_STRING)
        return td_slice(self, base, td_none(), td_none(), td_int(-1));
    const td_list *items = td_items(self, base);
    td_value out = td_list_make(self, TD_ITERATOR, items->count);
    for (size_t i = items->count; i-- > 0;)
        td_list_add(self, out.list, items->items[i]);
    return out;
}

typedef struct sortable {
    td_value key, value;
} sortable;

static bool comes_first(td_render *self, const sortable *a, const sortable *b, bool is_reversed) {
    return is_reversed ? td_order(self, a->key, b->key, "<") >= 0
                       : td_order(self, b->key, a->key, "<") >= 0;
}

static void merge(td_render *self, const sortable *from, sortable *to, size_t begin, size_t middle,
                  size_t end, bool is_reversed) {
    size_t left = begin, right = middle;
    for (size_t i = begin; i < end; i++) {
        bool take_left = left < middle && (right == end || comes_first(self, &from[left],
                                                                       &from[right], is_reversed));
        to[i] = take_left ? from[left++] : from[right++];
    }
}

// Stable; returns one of the two buffers.
static sortable *sort(td_render *self, sortable *items, size_t count, bool is_reversed) {
    sortable *other = td_take(self, (count + 1) * sizeof *other);
    for (size_t width = 1; width < count; width *= 2) {
        for (size_t begin = 0; begin < count; begin += 2 * width) {
            size_t middle = begin + width < count ? begin + width : count;
            size_t end = begin + 2 * width < count ? begin + 2 * width : count;
            merge(self, items, other, begin, middle, end, is_reversed);
        }
        sortable *swapped = items;
        items = other;
        other = swapped;
    }
    return items;
}

// Keys of "a,b" are lists; of one attribute the value itself orders the same.
static td_value sort_key(td_render *self, td_value item, td_value attribute, bool case_sensitive) {
    const td_string *comma = td_string_literal(self, ",");
    if (attribute.kind != TD_STRING || td_string_find(self, attribute.string, comma, 0) == SIZE_MAX)
        return folded(self, dig(self, item, attribute), case_sensitive);
    td_value keys = td_list_make(self, TD_LIST, 0);
    for (size_t at = 0, end; at <= attribute.string->bytes; at = end + 1) {
        end = td_string_find(self, attribute.string, comma, at);
        end = end == SIZE_MAX ? attribute.string->bytes : end;
        td_value part = td_text(td_string_cut(self, attribute.string, at, end));
        td_list_add(self, keys.list, folded(self, dig(self, item, part), case_sensitive));
    }
    return keys;
}

static td_value sorted(td_render *self, const td_list *items, td_value attribute,
                       bool case_sensitive, bool is_reversed) {
    sortable *keyed = td_take(self, (items->count + 1) * sizeof *keyed);
    td_value out = td_list_make(self, TD_LIST, items->count);
    for (size_t i = 0; i < items->count; i++)
        keyed[i] =
            (sortable){sort_key(self, items->items[i], attribute, case_sensitive), items->items[i]};
    keyed = sort(self, keyed, items->count, is_reversed);
    for (size_t i = 0; i < items->count; i++)
        td_list_add(self, out.list, keyed[i].value);
    return out;
}

static td_value filter_sort(td_render *self, td_value base, const td_arguments *arguments) {
    static const char *const names[] = {"reverse", "case_sensitive", "attribute"};
    td_value values[3] = {td_bool(false), td_bool(false), td_none()};
    td_bind(self, "sort", arguments, names, 3, values);
    return sorted(self, td_items(self, base), values[2], td_truth(values[1]), td_truth(values[0]));
}

static td_value filter_dictsort(td_render *self, td_value base, const td_arguments *arguments) {
    static const char *const names[] = {"case_sensitive", "by", "reverse"};
    td_value values[3] = {td_bool(false), td_text(td_string_literal(self, "key")), td_bool(false)};
    td_bind(self, "dictsort", arguments, names, 3, values);
    if (base.kind != TD_DICT)
        td_raise(self, "'%s' object has no attribute 'items'", td_type_name(base));
    bool by_value = td_string_is(td_as_string(self, "dictsort", values[1]), "value");
    if (!by_value && !td_string_is(values[1].string, "key"))
        td_raise(self, "You can only sort by either \"key\" or \"value\"");
    td_arguments none = {0};
    td_value pairs = filter_items(self, base, &none);
    return sorted(self, pairs.list, td_int(by_value), td_truth(values[0]), td_truth(values[2]));
}

static td_value filter_groupby(td_render *self, td_value base, const td_arguments *arguments) {
    static const char *const names[] = {"attribute", "default", "case_sensitive"};
    td_value values[3] = {{0}, td_none(), td_bool(false)};
    td_bind(self, "groupby", arguments, names, 3, values);
    const td_list *items = td_items(self, base);
    sortable *keyed = td_take(self, (items->count + 1) * sizeof *keyed);
    td_value out = td_list_make(self, TD_LIST, 0), group = {0}, last = {0};
    for (size_t i = 0; i < items->count; i++) {
        td_value key = dig(self, items->items[i], values[0]);
        key = key.kind == TD_UNDEFINED && values[1].kind != TD_NONE ? values[1] : key;
        keyed[i] =
            (sortable){folded(self, key, td_truth(values[2])), td_pair(self, key, items->items[i])};
    }
    keyed = sort(self, keyed, items->count, false);
    for (size_t i = 0; i < items->count; i++) {
        const td_list *pair = keyed[i].value.list;
        if (i == 0 || !td_equal(self, last, keyed[i].key)) {
            group = td_list_make(self, TD_LIST, 0);
            td_value entry = td_pair(self, pair->items[0], group);
            entry.list->name = "group";
            td_list_add(self, out.list, entry);
        }
        last = keyed[i].key;
        td_list_add(self, group.list, pair->items[1]);
    }
    return out;
}

static td_value filter_unique(td_render *self, td_value base, const td_arguments *arguments) {
    static const char *const names[] = {"case_sensitive", "attribute"};
    td_value values[2] = {td_bool(false), td_none()};
    td_bind(self, "unique", arguments, names, 2, values);
    const td_list *items = td_items(self, base);
    td_value out = td_list_make(self, TD_ITERATOR, 0), seen = td_dict_make(self, TD_DICT);
    for (size_t i = 0; i < items->count; i++) {
        td_value key = folded(self, dig(self, items->items[i], values[1]), td_truth(values[0]));
        if (td_dict_find(self, seen.dict, key))
            continue;
        td_dict_set(self, seen.dict, key, td_none());
        td_list_add(self, out.list, items->items[i]);
    }
    return out;
}

static td_value extreme(td_render *self, td_value base, const td_arguments *arguments, int sign) {
    static const char *const names[] = {"case_sensitive", "attribute"};
    td_value values[2] = {td_bool(false), td_none()}, best = {0}, best_key = {0};
    td_bind(self, sign < 0 ? "min" : "max", arguments, names, 2, values);
    const td_list *items = td_items(self, base);
    if (items->count == 0)
        return td_undefined(self, "No aggregated item, sequence was empty.");
    for (size_t i = 0; i < items->count; i++) {
        td_value key = folded(self, dig(self, items->items[i], values[1]), td_truth(values[0]));
        int order = i == 0 ? sign : td_order(self, key, best_key, sign < 0 ? "<" : ">");
        if ((order > 0) - (order < 0) == sign) {
            best = items->items[i];
            best_key = key;
        }
    }
    return best;
}

static td_value filter_min(td_render *self, td_value base, const td_arguments *arguments) {
    return extreme(self, base, arguments, -1);
}

static td_value filter_max(td_render *self, td_value base, const td_arguments *arguments) {
    return extreme(self, base, arguments, 1);
}

static td_value filter_sum(td_render *self, td_value base, const td_arguments *arguments) {
    static const char *const names[] = {"attribute", "start"};
    td_value values[2] = {td_none(), td_int(0)};
    td_bind(self, "sum", arguments, names, 2, values);
    const td_list *items = td_items(self, base);
    for (size_t i = 0; i < items->count; i++)
        values[1] = td_binary(self, TD_TOKEN_ADD, values[1], dig(self, items->items[i], values[0]));
    return values[1];
}

static td_value filter_batch(td_render *self, td_value base, const td_arguments *arguments) {
    static const char *const names[] = {"linecount", "fill_with"};
    td_value values[2] = {{0}, td_none()}, batch = {0};
    td_bind(self, "batch", arguments, names, 2, values);
    const td_list *items = td_items(self, base);
    int64_t size = td_as_int(self, "batch", values[0]);
    td_value out = td_list_make(self, TD_ITERATOR, 0);
    for (size_t i = 0; i < items->count; i++) {
        if (!batch.list || (int64_t)batch.list->count == size) {
            batch = td_list_make(self, TD_LIST, 0);
            td_list_add(self, out.list, batch);
        }
        td_list_add(self, batch.list, items->items[i]);
    }
    while (batch.list && values[1].kind != TD_NONE && (int64_t)batch.list->count < size) {
        td_steps(self, 1);
        td_list_add(self, batch.list, values[1]);
    }
    return out;
}

static td_value filter_slice(td_render *self, td_value base, const td_arguments *arguments) {
    static const char *const names[] = {"slices", "fill_with"};
    td_value values[2] = {{0}, td_none()};
    td_bind(self, "slice", arguments, names, 2, values);
    const td_list *items = td_items(self, base);
    int64_t slices = td_as_int(self, "slice", values[0]), count = (int64_t)items->count, at = 0;
    if (slices == 0)
        td_raise(self, "division by zero");
    td_value out = td_list_make(self, TD_ITERATOR, 0);
    for (int64_t i = 0; i < slices; i++) {
        td_steps(self, 1);
        td_value slice = td_list_make(self, TD_LIST, 0);
        int64_t end = at + count / slices + (i < count % slices);
        for (; at < end; at++)
            td_list_add(self, slice.list, items->items[at]);
        if (values[1].kind != TD_NONE && i >= count % slices)
            td_list_add(self, slice.list, values[1]);
        td_list_add(self, out.list, slice);
    }
    return out;
}

static td_value filter_attr(td_render *self, td_value base, const td_arguments *arguments) {
    static const char *const names[] = {"name"};
    td_value name = {0};
    td_bind(self, "attr", arguments, names, 1, &name);
    if (base.kind == TD_DICT)
        return td_undefined(self, "'dict object' has no attribute '%.*s'",
                            (int)td_as_string(self, "attr", name)->bytes, name.string->text);
    return td_attribute(self, base, td_as_string(self, "attr", name));
}

static td_arguments without_first(const td_arguments *arguments, size_t count) {
    td_arguments rest = *arguments;
    if (count > 0)
        rest.items += count;
    rest.count -= count;
    return rest;
}

static const td_value *keyword(const td_arguments *arguments, const char *name) {
    for (size_t i = 0; i < arguments->n_keywords; i++)
        if (td_string_is(arguments->keywords[i].key.string, name))
            return &arguments->keywords[i].value;
    return NULL;
}

static td_value filter_map(td_render *self, td_value base, const td_arguments *arguments) {
    const td_value *attribute = keyword(arguments, "attribute");
    const td_value *fallback = keyword(arguments, "default");
    td_value out = td_list_make(self, TD_ITERATOR, 0);
    if (arguments->count == 0 && !attribute)
        td_raise(self, "map requires a filter argument");
    const td_list *items = td_items(self, base);
    for (size_t i = 0; i < items->count; i++) {
        td_value value;
        if (arguments->count == 0) {
            value = dig(self, items->items[i], *attribute);
            value = value.kind == TD_UNDEFINED && fallback ? *fallback : value;
        } else {
            td_arguments rest = without_first(arguments, 1);
            value = td_call_filter(self, td_as_string(self, "map", arguments->items[0]),
                                   items->items[i], &rest);
        }
        td_list_add(self, out.list, value);
    }
    return out;
}

static td_value choose(td_render *self, td_value base, const td_arguments *arguments,
                       bool by_attribute, bool wanted) {
    td_value out = td_list_make(self, TD_ITERATOR, 0);
    if (by_attribute && arguments->count == 0)
        td_raise(self, "Missing parameter for attribute name");
    td_arguments rest = without_first(arguments, by_attribute);
    const td_list *items = td_items(self, base);
    for (size_t i = 0; i < items->count; i++) {
        td_value value = items->items[i];
        if (by_attribute)
            value = dig(self, value, arguments->items[0]);
        bool holds = td_truth(value);
        if (rest.count > 0) {
            td_arguments more = without_first(&rest, 1);
            holds = td_call_test(self, td_as_string(self, "select", rest.items[0]), value, &more);
        }
        if (holds == wanted)
            td_list_add(self, out.list, items->items[i]);
    }
    return out;
}

static td_value filter_select(td_render *self, td_value base, const td_arguments *arguments) {
    return choose(self, base, arguments, false, true);
}

static td_value filter_reject(td_render *self, td_value base, const td_arguments *arguments) {
    return choose(self, base, arguments, false, false);
}

static td_value filter_selectattr(td_render *self, td_value base, const td_arguments *arguments) {
    return choose(self, base, arguments, true, true);
}

static td_value filter_rejectattr(td_render *self, td_value base, const td_arguments *arguments) {
    return choose(self, base, arguments, true, false);
}

static const td_builtin_entry filters[] = {
    {"length", filter_length},
    {"count", filter_length},
    {"list", filter_list},
    {"first", filter_first},
    {"last", filter_last},
    {"join", filter_join},
    {"items", filter_items},
    {"map", filter_map},
    {"select", filter_select},
    {"reject", filter_reject},
    {"selectattr", filter_selectattr},
    {"rejectattr", filter_rejectattr},
    {"reverse", filter_reverse},
    {"sort", filter_sort},
    {"dictsort", filter_dictsort},
    {"groupby", filter_groupby},
    {"unique", filter_unique},
    {"min", filter_min},
    {"max", filter_max},
    {"sum", filter_sum},
    {"batch", filter_batch},
    {"slice", filter_slice},
    {"attr", filter_attr},
};

td_builtin td_find_list_filter(const td_string *name) {
    return td_find_builtin(filters, COUNT(filters), name);
}

static int64_t whole_of(td_render *self, td_value value) {
    if (value.kind == TD_UNDEFINED && value.missing)
        td_raise(self, "%s", value.missing->text);
    return td_as_int(self, "test", value);
}

static td_value argument(td_render *self, const td_arguments *arguments) {
    if (arguments->count != 1)
        td_raise(self, "the test takes one argument, %zu given", arguments->count);
    return arguments->items[0];
}

static td_value test_defined(td_render *self, td_value base, const td_arguments *arguments) {
    no_arguments(self, "defined", arguments);
    return td_bool(base.kind != TD_UNDEFINED);
}

static td_value test_undefined(td_render *self, td_value base, const td_arguments *arguments) {
    no_arguments(self, "undefined", arguments);
    return td_bool(base.kind == TD_UNDEFINED);
}

static td_value test_none(td_render *self, td_value base, const td_arguments *arguments) {
    no_arguments(self, "none", arguments);
    return td_bool(base.kind == TD_NONE);
}

static td_value test_boolean(td_render *self, td_value base, const td_arguments *arguments) {
    no_arguments(self, "boolean", arguments);
    return td_bool(base.kind == TD_BOOL);
}

static td_value test_true(td_render *self, td_value base, const td_arguments *arguments) {
    no_arguments(self, "true", arguments);
    return td_bool(base.kind == TD_BOOL && base.truth);
}

static td_value test_false(td_render *self, td_value base, const td_arguments *arguments) {
    no_arguments(self, "false", arguments);
    return td_bool(base.kind == TD_BOOL && !base.truth);
}

static td_value test_integer(td_render *self, td_value base, const td_arguments *arguments) {
    no_arguments(self, "integer", arguments);
    return td_bool(base.kind == TD_INT);
}

static td_value test_float(td_render *self, td_value base, const td_arguments *arguments) {
    no_arguments(self, "float", arguments);
    return td_bool(base.kind == TD_FLOAT);
}

static td_value test_number(td_render *self, td_value base, const td_arguments *arguments) {
    no_arguments(self, "number", arguments);
    return td_bool(td_is_number(base));
}

static td_value test_string(td_render *self, td_value base, const td_arguments *arguments) {
    no_arguments(self, "string", arguments);
    return td_bool(base.kind == TD_STRING);
}

static td_value test_mapping(td_render *self, td_value base, const td_arguments *arguments) {
    no_arguments(self, "mapping", arguments);
    return td_bool(base.kind == TD_DICT);
}

static td_value test_sequence(td_render *self, td_value base, const td_arguments *arguments) {
    no_arguments(self, "sequence", arguments);
    return td_bool(base.kind == TD_UNDEFINED
                       ? false
                       : td_has_length(base) && base.kind != TD_VIEW && base.kind != TD_LOOP);
}

static td_value test_iterable(td_render *self, td_value base, const td_arguments *arguments) {
    no_arguments(self, "iterable", arguments);
    return td_bool(td_is_iterable(base));
}

static td_value test_callable(td_render *self, td_value base, const td_arguments *arguments) {
    no_arguments(self, "callable", arguments);
    return td_bool(base.kind == TD_FUNCTION || base.kind == TD_MACRO || base.kind == TD_LOOP ||
                   base.kind == TD_UNDEFINED);
}

static td_value test_odd(td_render *self, td_value base, const td_arguments *arguments) {
    no_arguments(self, "odd", arguments);
    return td_bool(whole_of(self, base) % 2 != 0);
}

static td_value test_even(td_render *self, td_value base, const td_arguments *arguments) {
    no_arguments(self, "even", arguments);
    return td_bool(whole_of(self, base) % 2 == 0);
}

static td_value test_divisibleby(td_render *self, td_value base, const td_arguments *arguments) {
    td_value rest = td_binary(self, TD_TOKEN_MODULO, base, argument(self, arguments));
    return td_bool(!td_truth(rest));
}

static td_value test_lower(td_render *self, td_value base, const td_arguments *arguments) {
    bool is_unsafe;
    td_value text = td_text(td_str(self, base));
    return td_find_method(text, td_string_literal(self, "islower"), &is_unsafe)
        ->call(self, text, arguments);
}

static td_value test_upper(td_render *self, td_value base, const td_arguments *arguments) {
    bool is_unsafe;
    td_value text = td_text(td_str(self, base));
    return td_find_method(text, td_string_literal(self, "isupper"), &is_unsafe)
        ->call(self, text, arguments);
}

static td_value test_in(td_render *self, td_value base, const td_arguments *arguments) {
    return td_bool(td_contains(self, argument(self, arguments), base));
}

static td_value test_sameas(td_render *self, td_value base, const td_arguments *arguments) {
    td_value other = argument(self, arguments);
    if (base.kind != other.kind)
        return td_bool(false);
    if (base.kind == TD_LIST || base.kind == TD_TUPLE || base.kind == TD_DICT)
        return td_bool((const void *)base.list == (const void *)other.list);
    return td_bool(td_equal(self, base, other));
}

static td_value test_escaped(td_render *self, td_value base, const td_arguments *arguments) {
    (void)base;
    no_arguments(self, "escaped", arguments);
    return td_bool(false);
}

static td_value test_filter(td_render *self, td_value base, const td_arguments *arguments) {
    no_arguments(self, "filter", arguments);
    const td_string *name = td_as_string(self, "filter", base);
    return td_bool(td_find_filter(name) || td_find_list_filter(name));
}

static td_value test_test(td_render *self, td_value base, const td_arguments *arguments) {
    no_arguments(self, "test", arguments);
    return td_bool(td_find_test(td_as_string(self, "test", base)) != NULL);
}

static td_value test_equal(td_render *self, td_value base, const td_arguments *arguments) {
    return td_bool(td_equal(self, base, argument(self, arguments)));
}

static td_value test_unequal(td_render *self, td_value base, const td_arguments *arguments) {
    return td_bool(!td_equal(self, base, argument(self, arguments)));
}

static td_value test_greater(td_render *self, td_value base, const td_arguments *arguments) {
    return td_bool(td_order(self, base, argument(self, arguments), ">") > 0);
}

static td_value test_at_least(td_render *self, td_value base, const td_arguments *arguments) {
    return td_bool(td_order(self, base, argument(self, arguments), ">=") >= 0);
}

static td_value test_less(td_render *self, td_value base, const td_arguments *arguments) {
    return td_bool(td_order(self, base, argument(self, arguments), "<") < 0);
}

static td_value test_at_most(td_render *self, td_value base, const td_arguments *arguments) {
    return td_bool(td_order(self, base, argument(self, arguments), "<=") <= 0);
}

static const td_builtin_entry tests[] = {
    {"defined", test_defined},
    {"undefined", test_undefined},
    {"none", test_none},
    {"boolean", test_boolean},
    {"true", test_true},
    {"false", test_false},
    {"integer", test_integer},
    {"float", test_float},
    {"number", test_number},
    {"string", test_string},
    {"mapping", test_mapping},
    {"sequence", test_sequence},
    {"iterable", test_iterable},
    {"callable", test_callable},
    {"odd", test_odd},
    {"even", test_even},
    {"divisibleby", test_divisibleby},
    {"lower", test_lower},
    {"upper", test_upper},
    {"in", test_in},
    {"sameas", test_sameas},
    {"escaped", test_escaped},
    {"filter", test_filter},
    {"test", test_test},
    {"==", test_equal},
    {"eq", test_equal},
    {"equalto", test_equal},
    {"!=", test_unequal},
    {"ne", test_unequal},
    {">", test_greater},
    {"gt", test_greater},
    {"greaterthan", test_greater},
    {">=", test_at_least},
    {"ge", test_at_least},
    {"<", test_less},
    {"lt", test_less},
    {"lessthan", test_less},
    {"<=", test_at_most},
    {"le", test_at_most},
};

td_builtin td_find_test(const td_string *name) {
    return td_find_builtin(tests, COUNT(tests), name);
}
