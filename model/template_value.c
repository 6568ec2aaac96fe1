// Values as Python has them: lists, dicts, iteration, truth, equality, order.
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "model/template_internal.h"

td_value td_undefined(td_render *self, const char *format, ...) {
    char text[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    td_missing *missing = td_take(self, sizeof *missing);
    char *copy = td_take(self, strlen(text) + 1);
    strcpy(copy, text);
    missing->text = copy;
    return (td_value){.kind = TD_UNDEFINED, .missing = missing};
}

td_value td_list_make(td_render *self, td_value_kind kind, size_t capacity) {
    td_list *list = td_take(self, sizeof *list);
    *list = (td_list){.capacity = capacity};
    if (capacity > 0)
        list->items = td_take(self, capacity * sizeof *list->items);
    return (td_value){.kind = kind, .list = list};
}

void td_list_add(td_render *self, td_list *list, td_value value) {
    if (list->count == list->capacity) {
        list->capacity = list->capacity ? 2 * list->capacity : 8;
        td_value *items = td_take(self, list->capacity * sizeof *items);
        if (list->count > 0)
            memcpy(items, list->items, list->count * sizeof *items);
        list->items = items;
    }
    list->items[list->count++] = value;
}

td_value td_pair(td_render *self, td_value first, td_value second) {
    td_value pair = td_list_make(self, TD_TUPLE, 2);
    td_list_add(self, pair.list, first);
    td_list_add(self, pair.list, second);
    return pair;
}

td_value td_dict_make(td_render *self, td_value_kind kind) {
    td_dict *dict = td_take(self, sizeof *dict);
    *dict = (td_dict){.message = -1};
    return (td_value){.kind = kind, .dict = dict};
}

void td_check_hashable(td_render *self, td_value key) {
    if (key.kind == TD_LIST || key.kind == TD_DICT)
        td_raise(self, "unhashable type: '%s'", td_type_name(key));
    for (size_t i = 0; key.kind == TD_TUPLE && i < key.list->count; i++) {
        td_deeper(self);
        td_check_hashable(self, key.list->items[i]);
        td_shallower(self);
    }
}

const td_value *td_dict_find(td_render *self, const td_dict *dict, td_value key) {
    td_check_hashable(self, key);
    td_steps(self, dict->count / 8);
    for (size_t i = 0; i < dict->count; i++) {
        td_value other = dict->entries[i].key;
        bool is_short = key.kind == TD_STRING && key.string->bytes < 256;
        bool is_same = is_short && other.kind == TD_STRING
                           ? td_string_equal(key.string, other.string)
                           : td_equal(self, key, other);
        if (is_same)
            return &dict->entries[i].value;
    }
    return NULL;
}

const td_value *td_dict_get(const td_dict *dict, const char *key) {
    for (size_t i = 0; i < dict->count; i++)
        if (dict->entries[i].key.kind == TD_STRING &&
            td_string_is(dict->entries[i].key.string, key))
            return &dict->entries[i].value;
    return NULL;
}

void td_dict_set(td_render *self, td_dict *dict, td_value key, td_value value) {
    const td_value *found = td_dict_find(self, dict, key);
    if (found) {
        dict->entries[(const td_entry *)((const char *)found - offsetof(td_entry, value)) -
                      dict->entries]
            .value = value;
        return;
    }
    if (dict->count == dict->capacity) {
        dict->capacity = dict->capacity ? 2 * dict->capacity : 8;
        td_entry *entries = td_take(self, dict->capacity * sizeof *entries);
        if (dict->count > 0)
            memcpy(entries, dict->entries, dict->count * sizeof *entries);
        dict->entries = entries;
    }
    dict->entries[dict->count++] = (td_entry){key, value};
}

const char *td_type_name(td_value value) {
    static const char *const names[] = {
        [TD_UNDEFINED] = "Undefined", [TD_NONE] = "NoneType",
        [TD_BOOL] = "bool",           [TD_INT] = "int",
        [TD_FLOAT] = "float",         [TD_STRING] = "str",
        [TD_LIST] = "list",           [TD_TUPLE] = "tuple",
        [TD_DICT] = "dict",           [TD_RANGE] = "range",
        [TD_VIEW] = "dict_items",     [TD_ITERATOR] = "generator",
        [TD_NAMESPACE] = "Namespace", [TD_FUNCTION] = "builtin_function_or_method",
        [TD_MACRO] = "Macro",         [TD_LOOP] = "LoopContext",
    };
    return value.kind == TD_VIEW ? value.list->name : names[value.kind];
}

bool td_truth(td_value value) {
    switch (value.kind) {
    case TD_UNDEFINED:
    case TD_NONE:
        return false;
    case TD_BOOL:
        return value.truth;
    case TD_INT:
        return value.integer != 0;
    case TD_FLOAT:
        return value.real != 0;
    case TD_STRING:
        return value.string->bytes > 0;
    case TD_LIST:
    case TD_TUPLE:
    case TD_VIEW:
        return value.list->count > 0;
    case TD_DICT:
        return value.dict->count > 0;
    case TD_RANGE:
        return value.range->count > 0;
    default:
        return true;
    }
}

bool td_is_number(td_value value) {
    return value.kind == TD_INT || value.kind == TD_FLOAT || value.kind == TD_BOOL;
}

double td_real(td_value value) {
    return value.kind == TD_FLOAT ? value.real
           : value.kind == TD_INT ? (double)value.integer
                                  : (double)value.truth;
}

static int64_t whole(td_value value) {
    return value.kind == TD_BOOL ? value.truth : value.integer;
}

static td_value range_item(const td_range *range, int64_t index) {
    return td_int(range->begin + index * range->step);
}

static td_list *characters(td_render *self, const td_string *text) {
    td_list *list = td_list_make(self, TD_LIST, text->chars).list;
    for (size_t begin = 0, end; begin < text->bytes; begin = end) {
        for (end = begin + 1; end < text->bytes && ((unsigned char)text->text[end] & 0xC0) == 0x80;)
            end++;
        td_list_add(self, list, td_text(td_string_cut(self, text, begin, end)));
    }
    return list;
}

// What is left of an iterator; it has none after this.
static td_list *rest_of(td_render *self, td_list *iterator) {
    td_list *list = td_list_make(self, TD_LIST, 0).list;
    if (iterator->count > 0)
        list->items = iterator->items + iterator->next;
    list->count = list->capacity = iterator->count - iterator->next;
    iterator->next = iterator->count;
    return list;
}

static td_list *keys(td_render *self, const td_dict *dict) {
    td_list *list = td_list_make(self, TD_LIST, dict->count).list;
    for (size_t i = 0; i < dict->count; i++)
        td_list_add(self, list, dict->entries[i].key);
    return list;
}

static td_list *numbers(td_render *self, const td_range *range) {
    td_list *list = td_list_make(self, TD_LIST, (size_t)range->count).list;
    for (int64_t i = 0; i < range->count; i++)
        td_list_add(self, list, range_item(range, i));
    return list;
}

bool td_is_iterable(td_value value) {
    switch (value.kind) {
    case TD_UNDEFINED:
    case TD_STRING:
    case TD_LIST:
    case TD_TUPLE:
    case TD_DICT:
    case TD_RANGE:
    case TD_VIEW:
    case TD_ITERATOR:
    case TD_LOOP:
        return true;
    default:
        return false;
    }
}

td_list *td_items(td_render *self, td_value value) {
    switch (value.kind) {
    case TD_UNDEFINED:
        return td_list_make(self, TD_LIST, 0).list;
    case TD_STRING:
        return characters(self, value.string);
    case TD_LIST:
    case TD_TUPLE:
    case TD_VIEW:
        return value.list;
    case TD_ITERATOR:
        return rest_of(self, value.list);
    case TD_DICT:
        return keys(self, value.dict);
    case TD_RANGE:
        return numbers(self, value.range);
    default:
        td_raise(self, "'%s' object is not iterable", td_type_name(value));
    }
}

bool td_has_length(td_value value) {
    return td_is_iterable(value) && value.kind != TD_ITERATOR;
}

int64_t td_length(td_render *self, td_value value) {
    switch (value.kind) {
    case TD_UNDEFINED:
        return 0;
    case TD_STRING:
        return value.string->chars;
    case TD_LIST:
    case TD_TUPLE:
    case TD_VIEW:
        return (int64_t)value.list->count;
    case TD_DICT:
        return (int64_t)value.dict->count;
    case TD_RANGE:
        return value.range->count;
    case TD_LOOP:
        return (int64_t)value.loop->items->count;
    default:
        td_raise(self, "object of type '%s' has no len()", td_type_name(value));
    }
}

static bool equal_lists(td_render *self, const td_list *a, const td_list *b) {
    if (a->count != b->count)
        return false;
    for (size_t i = 0; i < a->count; i++)
        if (!td_equal(self, a->items[i], b->items[i]))
            return false;
    return true;
}

static bool equal_dicts(td_render *self, const td_dict *a, const td_dict *b) {
    if (a->count != b->count)
        return false;
    for (size_t i = 0; i < a->count; i++) {
        const td_value *other = td_dict_find(self, b, a->entries[i].key);
        if (!other || !td_equal(self, a->entries[i].value, *other))
            return false;
    }
    return true;
}

static bool equal_ranges(const td_range *a, const td_range *b) {
    return a->count == b->count && (a->count == 0 || a->begin == b->begin) &&
           (a->count <= 1 || a->step == b->step);
}

static bool equal_numbers(td_value a, td_value b) {
    if (a.kind != TD_FLOAT && b.kind != TD_FLOAT)
        return whole(a) == whole(b);
    return td_real(a) == td_real(b);
}

static bool equal_of_kind(td_render *self, td_value a, td_value b) {
    switch (a.kind) {
    case TD_UNDEFINED:
    case TD_NONE:
        return true;
    case TD_STRING:
        return td_string_equal(a.string, b.string);
    case TD_LIST:
    case TD_TUPLE:
        return equal_lists(self, a.list, b.list);
    case TD_DICT:
        return equal_dicts(self, a.dict, b.dict);
    case TD_RANGE:
        return equal_ranges(a.range, b.range);
    default:
        return (const void *)a.list == (const void *)b.list;
    }
}

bool td_equal(td_render *self, td_value a, td_value b) {
    if (td_is_number(a) && td_is_number(b))
        return equal_numbers(a, b);
    if (a.kind != b.kind)
        return false;
    td_steps(self, a.kind == TD_STRING ? 1 + a.string->bytes / 256 : 1);
    td_deeper(self);
    bool equal = equal_of_kind(self, a, b);
    td_shallower(self);
    return equal;
}

static int order_lists(td_render *self, const td_list *a, const td_list *b, const char *operation) {
    size_t count = a->count < b->count ? a->count : b->count;
    for (size_t i = 0; i < count; i++)
        if (!td_equal(self, a->items[i], b->items[i]))
            return td_order(self, a->items[i], b->items[i], operation);
    return (a->count > b->count) - (a->count < b->count);
}

int td_order(td_render *self, td_value a, td_value b, const char *operation) {
    td_steps(self, 1);
    if (td_is_number(a) && td_is_number(b)) {
        if (a.kind != TD_FLOAT && b.kind != TD_FLOAT)
            return (whole(a) > whole(b)) - (whole(a) < whole(b));
        return (td_real(a) > td_real(b)) - (td_real(a) < td_real(b));
    }
    if (a.kind == TD_STRING && b.kind == TD_STRING) {
        td_steps(self, a.string->bytes / 256);
        return td_string_compare(a.string, b.string);
    }
    if (a.kind == b.kind && (a.kind == TD_LIST || a.kind == TD_TUPLE)) {
        td_deeper(self);
        int order = order_lists(self, a.list, b.list, operation);
        td_shallower(self);
        return order;
    }
    if (a.kind == TD_UNDEFINED || b.kind == TD_UNDEFINED)
        td_raise(self, "%s", (a.kind == TD_UNDEFINED ? a : b).missing->text);
    td_raise(self, "'%s' not supported between instances of '%s' and '%s'", operation,
             td_type_name(a), td_type_name(b));
}

bool td_contains(td_render *self, td_value container, td_value item) {
    if (container.kind == TD_STRING) {
        if (item.kind != TD_STRING)
            td_raise(self, "'in <string>' requires string as left operand, not %s",
                     td_type_name(item));
        return td_string_find(self, container.string, item.string, 0) != SIZE_MAX;
    }
    if (container.kind == TD_DICT)
        return td_dict_find(self, container.dict, item) != NULL;
    if (!td_is_iterable(container))
        td_raise(self, "argument of type '%s' is not iterable", td_type_name(container));
    const td_list *items = td_items(self, container);
    for (size_t i = 0; i < items->count; i++)
        if (td_equal(self, items->items[i], item))
            return true;
    return false;
}
