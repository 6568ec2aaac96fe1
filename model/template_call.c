// Attributes, items, slices and calls, as the sandbox of transformers allows them.
#include <stdio.h>
#include <string.h>

#include "model/template_internal.h"

void td_bind(td_render *self, const char *function, const td_arguments *arguments,
             const char *const *names, size_t count, td_value *out) {
    if (arguments->count > count)
        td_raise(self, "%s() takes at most %zu arguments, %zu given", function, count,
                 arguments->count);
    for (size_t i = 0; i < arguments->count; i++)
        out[i] = arguments->items[i];
    for (size_t i = 0; i < arguments->n_keywords; i++) {
        const td_string *key = arguments->keywords[i].key.string;
        size_t at = 0;
        while (at < count && !td_string_is(key, names[at]))
            at++;
        if (at == count)
            td_raise(self, "%s() got an unexpected keyword argument '%.*s'", function,
                     (int)key->bytes, key->text);
        if (at < arguments->count)
            td_raise(self, "%s() got multiple values for argument '%s'", function, names[at]);
        out[at] = arguments->keywords[i].value;
    }
}

int64_t td_as_int(td_render *self, const char *function, td_value value) {
    if (value.kind == TD_BOOL)
        return value.truth;
    if (value.kind != TD_INT)
        td_raise(self, "%s(): '%s' object cannot be interpreted as an integer", function,
                 td_type_name(value));
    return value.integer;
}

const td_string *td_as_string(td_render *self, const char *function, td_value value) {
    if (value.kind == TD_UNDEFINED && value.missing)
        td_raise(self, "%s(): %s", function, value.missing->text);
    if (value.kind != TD_STRING)
        td_raise(self, "%s(): a string is required, not '%s'", function, td_type_name(value));
    return value.string;
}

static _Noreturn void refuse_undefined(td_render *self, td_value value) {
    td_raise(self, "%s", value.missing ? value.missing->text : "a value is undefined");
}

static td_value bound_method(td_render *self, td_value base, const td_builtin_entry *method) {
    td_function *function = td_take(self, sizeof *function);
    *function = (td_function){.name = method->name, .call = method->call, .base = base};
    return (td_value){.kind = TD_FUNCTION, .function = function};
}

static td_value loop_attribute(td_render *self, const td_loop *loop, const td_string *name) {
    int64_t index = (int64_t)loop->index, count = (int64_t)loop->items->count;
    const struct {
        const char *name;
        td_value value;
    } attributes[] = {
        {"index", td_int(index + 1)},
        {"index0", td_int(index)},
        {"revindex", td_int(count - index)},
        {"revindex0", td_int(count - index - 1)},
        {"first", td_bool(index == 0)},
        {"last", td_bool(index == count - 1)},
        {"length", td_int(count)},
        {"depth", td_int((int64_t)loop->depth + 1)},
        {"depth0", td_int((int64_t)loop->depth)},
    };
    for (size_t i = 0; i < sizeof attributes / sizeof *attributes; i++)
        if (td_string_is(name, attributes[i].name))
            return attributes[i].value;
    if (td_string_is(name, "previtem"))
        return index > 0 ? loop->items->items[index - 1]
                         : td_undefined(self, "there is no previous item");
    if (td_string_is(name, "nextitem"))
        return index + 1 < count ? loop->items->items[index + 1]
                                 : td_undefined(self, "there is no next item");
    return (td_value){.kind = TD_UNDEFINED};
}

static td_value no_attribute(td_render *self, td_value base, td_value name) {
    if (name.kind != TD_STRING)
        return td_undefined(self, "the %s has no such item", td_type_name(base));
    return td_undefined(self, "'%s object' has no attribute '%.*s'", td_type_name(base),
                        (int)name.string->bytes, name.string->text);
}

// What Python finds as an attribute; undefined without a message when there is none.
static td_value own_attribute(td_render *self, td_value base, const td_string *name) {
    bool is_unsafe = false;
    const td_builtin_entry *method = td_find_method(base, name, &is_unsafe);
    if (is_unsafe)
        return td_undefined(self, "access to attribute '%.*s' of '%s' object is unsafe.",
                            (int)name->bytes, name->text, td_type_name(base));
    if (method)
        return bound_method(self, base, method);
    if (base.kind == TD_LOOP)
        return loop_attribute(self, base.loop, name);
    if (base.kind == TD_NAMESPACE) {
        const td_value *found = td_dict_find(self, base.dict, td_text(name));
        if (found)
            return *found;
    }
    if (base.kind == TD_MACRO && td_string_is(name, "name"))
        return td_text(base.macro->node->name);
    if (base.kind == TD_TUPLE && base.list->name && base.list->count == 2) {
        if (td_string_is(name, "grouper"))
            return base.list->items[0];
        if (td_string_is(name, "list"))
            return base.list->items[1];
    }
    return (td_value){.kind = TD_UNDEFINED};
}

td_value td_attribute(td_render *self, td_value base, const td_string *name) {
    if (base.kind == TD_UNDEFINED)
        refuse_undefined(self, base);
    td_value value = own_attribute(self, base, name);
    if (value.kind != TD_UNDEFINED || value.missing)
        return value;
    if (base.kind == TD_DICT) {
        const td_value *found = td_dict_find(self, base.dict, td_text(name));
        if (found)
            return *found;
    }
    return no_attribute(self, base, td_text(name));
}

static bool item_at(td_render *self, td_value base, int64_t index, td_value *out) {
    int64_t length = td_length(self, base);
    if (base.kind == TD_STRING)
        td_steps(self, base.string->bytes / 256);
    index += index < 0 ? length : 0;
    if (index < 0 || index >= length)
        return false;
    if (base.kind == TD_STRING) {
        size_t begin = td_string_offset(base.string, (size_t)index), end = begin + 1;
        while (end < base.string->bytes && ((unsigned char)base.string->text[end] & 0xC0) == 0x80)
            end++;
        *out = td_text(td_string_cut(self, base.string, begin, end));
    } else if (base.kind == TD_RANGE) {
        *out = td_int(base.range->begin + index * base.range->step);
    } else {
        *out = base.list->items[index];
    }
    return true;
}

td_value td_item(td_render *self, td_value base, td_value key) {
    td_value item;
    if (base.kind == TD_UNDEFINED)
        refuse_undefined(self, base);
    if (base.kind == TD_DICT) {
        bool is_hashable = key.kind != TD_LIST && key.kind != TD_DICT;
        const td_value *found = is_hashable ? td_dict_find(self, base.dict, key) : NULL;
        if (found)
            return *found;
    } else if ((key.kind == TD_INT || key.kind == TD_BOOL) &&
               (base.kind == TD_STRING || base.kind == TD_LIST || base.kind == TD_TUPLE ||
                base.kind == TD_RANGE)) {
        if (item_at(self, base, key.kind == TD_INT ? key.integer : key.truth, &item))
            return item;
    }
    if (key.kind == TD_STRING) {
        td_value value = own_attribute(self, base, key.string);
        if (value.kind != TD_UNDEFINED || value.missing)
            return value;
    }
    return no_attribute(self, base, key);
}

// As Python's slice.indices(): where to begin, where to stop, how far to go.
static void slice_bounds(td_render *self, int64_t length, td_value begin, td_value end,
                         int64_t step, int64_t *out_begin, int64_t *out_end) {
    int64_t low = step < 0 ? -1 : 0, high = step < 0 ? length - 1 : length;
    int64_t bounds[2] = {step < 0 ? high : low, step < 0 ? low : high};
    td_value given[2] = {begin, end};
    for (int i = 0; i < 2; i++) {
        if (given[i].kind == TD_NONE)
            continue;
        int64_t at = td_as_int(self, "slice", given[i]);
        at = at < -length ? low : at < 0 ? at + length : at;
        bounds[i] = at < low ? low : at > high ? high : at;
    }
    *out_begin = bounds[0];
    *out_end = bounds[1];
}

static td_value slice_string(td_render *self, const td_string *text, int64_t begin, int64_t end,
                             int64_t step) {
    td_builder out = {0};
    if (step == 1)
        return td_text(begin >= end
                           ? td_string_cut(self, text, 0, 0)
                           : td_string_cut(self, text, td_string_offset(text, (size_t)begin),
                                           td_string_offset(text, (size_t)end)));
    const td_list *all = td_items(self, td_text(text));
    for (int64_t i = begin; step > 0 ? i < end : i > end; i += step)
        td_build_string(self, &out, all->items[i].string);
    return td_text(td_built(self, &out));
}

static td_value slice_list(td_render *self, td_value_kind kind, const td_list *list, int64_t begin,
                           int64_t end, int64_t step) {
    td_value out = td_list_make(self, kind, 0);
    for (int64_t i = begin; step > 0 ? i < end : i > end; i += step) {
        td_steps(self, 1);
        td_list_add(self, out.list, list->items[i]);
    }
    return out;
}

static td_value slice_range(td_render *self, const td_range *range, int64_t begin, int64_t end,
                            int64_t step) {
    td_range *out = td_take(self, sizeof *out);
    int64_t span = step > 0 ? end - begin : begin - end, size = step > 0 ? step : -step;
    *out = (td_range){.begin = range->begin + begin * range->step,
                      .end = range->begin + end * range->step,
                      .step = range->step * step,
                      .count = span > 0 ? (span - 1) / size + 1 : 0};
    return (td_value){.kind = TD_RANGE, .range = out};
}

td_value td_slice(td_render *self, td_value base, td_value begin, td_value end, td_value step) {
    int64_t first, last;
    if (base.kind == TD_UNDEFINED)
        refuse_undefined(self, base);
    if (base.kind != TD_STRING && base.kind != TD_LIST && base.kind != TD_TUPLE &&
        base.kind != TD_RANGE)
        return td_undefined(self, "a '%s' object has no slices", td_type_name(base));
    int64_t by = step.kind == TD_NONE ? 1 : td_as_int(self, "slice", step);
    if (by == 0)
        td_raise(self, "slice step cannot be zero");
    int64_t length = td_length(self, base);
    if (base.kind == TD_STRING)
        td_steps(self, base.string->bytes / 256);
    by = by > length + 1 ? length + 1 : by < -length - 1 ? -length - 1 : by;
    slice_bounds(self, length, begin, end, by, &first, &last);
    if (base.kind == TD_STRING)
        return slice_string(self, base.string, first, last, by);
    if (base.kind == TD_RANGE)
        return slice_range(self, base.range, first, last, by);
    return slice_list(self, base.kind, base.list, first, last, by);
}

td_value td_call(td_render *self, td_value callable, const td_arguments *arguments) {
    switch (callable.kind) {
    case TD_UNDEFINED:
        refuse_undefined(self, callable);
    case TD_FUNCTION:
        return callable.function->call(self, callable.function->base, arguments);
    case TD_MACRO:
        return td_call_macro(self, callable.macro, arguments);
    case TD_LOOP:
        return td_call_loop(self, callable.loop, arguments);
    default:
        td_raise(self, "'%s' object is not callable", td_type_name(callable));
    }
}

td_builtin td_find_builtin(const td_builtin_entry *table, size_t count, const td_string *name) {
    for (size_t i = 0; i < count; i++)
        if (td_string_is(name, table[i].name))
            return table[i].call;
    return NULL;
}

td_value td_call_filter(td_render *self, const td_string *name, td_value base,
                        const td_arguments *arguments) {
    td_builtin filter = td_find_filter(name);
    filter = filter ? filter : td_find_list_filter(name);
    if (!filter)
        td_raise(self, "No filter named '%.*s'.", (int)name->bytes, name->text);
    td_steps(self, 1);
    td_deeper(self);
    td_value value = filter(self, base, arguments);
    td_shallower(self);
    return value;
}

bool td_call_test(td_render *self, const td_string *name, td_value base,
                  const td_arguments *arguments) {
    td_builtin test = td_find_test(name);
    if (!test)
        td_raise(self, "No test named '%.*s'.", (int)name->bytes, name->text);
    td_steps(self, 1);
    return td_truth(test(self, base, arguments));
}
