// Expressions.
#include <math.h>
#include <string.h>

#include "model/template_internal.h"

enum { MAX_SPREAD_ARGUMENTS = 1000 };

static td_value evaluate_list(td_render *self, const td_node *node, td_value_kind kind) {
    td_value list = td_list_make(self, kind, node->list.count);
    for (size_t i = 0; i < node->list.count; i++)
        td_list_add(self, list.list, td_evaluate(self, node->list.items[i]));
    return list;
}

static td_value evaluate_dict(td_render *self, const td_node *node) {
    td_value dict = td_dict_make(self, TD_DICT);
    for (size_t i = 0; i + 1 < node->list.count; i += 2) {
        td_value key = td_evaluate(self, node->list.items[i]);
        td_dict_set(self, dict.dict, key, td_evaluate(self, node->list.items[i + 1]));
    }
    return dict;
}

static td_value evaluate_name(td_render *self, const td_node *node) {
    const td_value *found = td_scope_find(self->scope, node->name);
    if (found)
        return *found;
    td_builtin global = td_find_global(node->name);
    if (!global)
        return td_undefined(self, "'%.*s' is undefined", (int)node->name->bytes, node->name->text);
    td_function *function = td_take(self, sizeof *function);
    *function = (td_function){.name = "global", .call = global};
    return (td_value){.kind = TD_FUNCTION, .function = function};
}

static td_value evaluate_item(td_render *self, const td_node *node) {
    td_value base = td_evaluate(self, node->a);
    if (node->b->kind != TD_NODE_SLICE)
        return td_item(self, base, td_evaluate(self, node->b));
    const td_node *slice = node->b;
    td_value begin = slice->a ? td_evaluate(self, slice->a) : td_none();
    td_value end = slice->b ? td_evaluate(self, slice->b) : td_none();
    td_value step = slice->c ? td_evaluate(self, slice->c) : td_none();
    return td_slice(self, base, begin, end, step);
}

static void spread_list(td_render *self, td_value value, td_arguments *out) {
    const td_list *more = td_items(self, value);
    if (more->count > MAX_SPREAD_ARGUMENTS)
        td_raise(self, "a call with %zu arguments", more->count);
    td_value *items = td_take(self, (out->count + more->count + 1) * sizeof *items);
    if (out->count > 0)
        memcpy(items, out->items, out->count * sizeof *items);
    if (more->count > 0)
        memcpy(items + out->count, more->items, more->count * sizeof *items);
    out->items = items;
    out->count += more->count;
}

static void spread_dict(td_render *self, td_value value, td_arguments *out) {
    if (value.kind != TD_DICT)
        td_raise(self, "argument after ** must be a mapping, not %s", td_type_name(value));
    size_t more = value.dict->count;
    td_entry *entries = td_take(self, (out->n_keywords + more + 1) * sizeof *entries);
    if (out->n_keywords > 0)
        memcpy(entries, out->keywords, out->n_keywords * sizeof *entries);
    for (size_t i = 0; i < more; i++) {
        if (value.dict->entries[i].key.kind != TD_STRING)
            td_raise(self, "keywords must be strings");
        entries[out->n_keywords++] = value.dict->entries[i];
    }
    out->keywords = entries;
}

td_arguments td_evaluate_arguments(td_render *self, const td_node *node) {
    td_arguments arguments = {0};
    if (node->list.count > 0)
        arguments.items = td_take(self, node->list.count * sizeof *arguments.items);
    for (size_t i = 0; i < node->list.count; i++)
        arguments.items[arguments.count++] = td_evaluate(self, node->list.items[i]);
    if (node->keywords.count > 0)
        arguments.keywords = td_take(self, node->keywords.count * sizeof *arguments.keywords);
    for (size_t i = 0; i < node->keywords.count; i++) {
        const td_node *keyword = node->keywords.items[i];
        arguments.keywords[arguments.n_keywords++] =
            (td_entry){td_text(keyword->name), td_evaluate(self, keyword->a)};
    }
    if (node->c)
        spread_list(self, td_evaluate(self, node->c), &arguments);
    if (node->d)
        spread_dict(self, td_evaluate(self, node->d), &arguments);
    return arguments;
}

static td_value evaluate_call(td_render *self, const td_node *node) {
    td_value callable = td_evaluate(self, node->a);
    td_arguments arguments = td_evaluate_arguments(self, node);
    self->trap.position = node->position;
    return td_call(self, callable, &arguments);
}

static td_value evaluate_filter(td_render *self, const td_node *node, const td_value *held) {
    td_value base = !node->a                                  ? *held
                    : held && node->a->kind == TD_NODE_FILTER ? evaluate_filter(self, node->a, held)
                                                              : td_evaluate(self, node->a);
    td_arguments arguments = td_evaluate_arguments(self, node);
    self->trap.position = node->position;
    return td_call_filter(self, node->name, base, &arguments);
}

td_value td_apply_filters(td_render *self, const td_node *filter, td_value base) {
    return evaluate_filter(self, filter, &base);
}

static td_value evaluate_test(td_render *self, const td_node *node) {
    td_value base = td_evaluate(self, node->a);
    td_arguments arguments = td_evaluate_arguments(self, node);
    self->trap.position = node->position;
    return td_bool(td_call_test(self, node->name, base, &arguments));
}

static bool compare(td_render *self, int operation, td_value a, td_value b) {
    bool is_nan = (a.kind == TD_FLOAT && isnan(a.real)) || (b.kind == TD_FLOAT && isnan(b.real));
    switch (operation) {
    case TD_TOKEN_EQUAL:
        return td_equal(self, a, b);
    case TD_TOKEN_NOT_EQUAL:
        return !td_equal(self, a, b);
    case TD_TOKEN_GREATER:
        return td_order(self, a, b, ">") > 0 && !is_nan;
    case TD_TOKEN_GREATER_EQUAL:
        return td_order(self, a, b, ">=") >= 0 && !is_nan;
    case TD_TOKEN_LESS:
        return td_order(self, a, b, "<") < 0 && !is_nan;
    case TD_TOKEN_LESS_EQUAL:
        return td_order(self, a, b, "<=") <= 0 && !is_nan;
    case TD_TOKEN_IN:
        return td_contains(self, b, a);
    default:
        return !td_contains(self, b, a);
    }
}

static td_value evaluate_compare(td_render *self, const td_node *node) {
    td_value left = td_evaluate(self, node->a);
    for (size_t i = 0; i < node->list.count; i++) {
        const td_node *operand = node->list.items[i];
        td_value right = td_evaluate(self, operand->a);
        self->trap.position = operand->position;
        if (!compare(self, operand->operation, left, right))
            return td_bool(false);
        left = right;
    }
    return td_bool(true);
}

static td_value evaluate_concat(td_render *self, const td_node *node) {
    td_builder out = {0};
    for (size_t i = 0; i < node->list.count; i++)
        td_build_str(self, &out, td_evaluate(self, node->list.items[i]));
    return td_text(td_built(self, &out));
}

static td_value evaluate_condition(td_render *self, const td_node *node) {
    if (td_truth(td_evaluate(self, node->a)))
        return td_evaluate(self, node->b);
    if (node->c)
        return td_evaluate(self, node->c);
    return td_undefined(self, "the condition is false and the expression has no else");
}

static _Noreturn void refuse_operands(td_render *self, const char *sign, td_value a, td_value b) {
    if (a.kind == TD_UNDEFINED)
        td_raise(self, "%s", a.missing->text);
    if (b.kind == TD_UNDEFINED)
        td_raise(self, "%s", b.missing->text);
    if (a.kind == TD_STRING && strcmp(sign, "+") == 0)
        td_raise(self, "can only concatenate str (not \"%s\") to str", td_type_name(b));
    td_raise(self, "unsupported operand type(s) for %s: '%s' and '%s'", sign, td_type_name(a),
             td_type_name(b));
}

static td_value repeated(td_render *self, td_value what, int64_t count) {
    td_builder text = {0};
    if (what.kind == TD_STRING) {
        td_build_repeated(self, &text, what.string, count);
        return td_text(td_built(self, &text));
    }
    td_value list = td_list_make(self, what.kind, 0);
    for (; count > 0 && what.list->count > 0; count--)
        for (size_t i = 0; i < what.list->count; i++) {
            td_steps(self, 1);
            td_list_add(self, list.list, what.list->items[i]);
        }
    return list;
}

static td_value joined(td_render *self, td_value a, td_value b) {
    if (a.kind == TD_STRING) {
        td_builder text = {0};
        td_build_string(self, &text, a.string);
        td_build_string(self, &text, b.string);
        return td_text(td_built(self, &text));
    }
    td_value list = td_list_make(self, a.kind, a.list->count + b.list->count);
    for (size_t i = 0; i < a.list->count; i++)
        td_list_add(self, list.list, a.list->items[i]);
    for (size_t i = 0; i < b.list->count; i++)
        td_list_add(self, list.list, b.list->items[i]);
    return list;
}

static bool is_sequence(td_value value) {
    return value.kind == TD_STRING || value.kind == TD_LIST || value.kind == TD_TUPLE;
}

static int64_t whole(td_value value) {
    return value.kind == TD_BOOL ? value.truth : value.integer;
}

static double floor_modulo(double a, double b) {
    double rest = fmod(a, b);
    return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}

static td_value real_operation(td_render *self, int operation, double a, double b) {
    if (b == 0 && (operation == TD_TOKEN_DIVIDE || operation == TD_TOKEN_FLOOR_DIVIDE ||
                   operation == TD_TOKEN_MODULO))
        td_raise(self, "division by zero");
    switch (operation) {
    case TD_TOKEN_ADD:
        return td_float(a + b);
    case TD_TOKEN_SUBTRACT:
        return td_float(a - b);
    case TD_TOKEN_MULTIPLY:
        return td_float(a * b);
    case TD_TOKEN_DIVIDE:
        return td_float(a / b);
    case TD_TOKEN_FLOOR_DIVIDE:
        return td_float(floor(a / b));
    case TD_TOKEN_MODULO:
        return td_float(floor_modulo(a, b));
    default:
        if (a < 0 && b != floor(b))
            td_raise(self, "a fractional power of a negative number");
        return td_float(pow(a, b));
    }
}

static td_value whole_power(td_render *self, int64_t base, int64_t exponent) {
    int64_t result = 1;
    if (exponent < 0)
        return real_operation(self, TD_TOKEN_POWER, (double)base, (double)exponent);
    while (exponent > 0) {
        if (exponent & 1 && __builtin_mul_overflow(result, base, &result))
            td_raise(self, "an integer beyond 64 bits");
        exponent >>= 1;
        if (exponent > 0 && __builtin_mul_overflow(base, base, &base))
            td_raise(self, "an integer beyond 64 bits");
    }
    return td_int(result);
}

static td_value whole_division(td_render *self, int operation, int64_t a, int64_t b) {
    if (b == 0)
        td_raise(self, "division by zero");
    if (b == -1)
        return operation == TD_TOKEN_MODULO
                   ? td_int(0)
                   : td_binary(self, TD_TOKEN_SUBTRACT, td_int(0), td_int(a));
    int64_t quotient = a / b, rest = a % b;
    bool is_rounded = rest != 0 && (rest < 0) != (b < 0);
    return td_int(operation == TD_TOKEN_MODULO ? rest + (is_rounded ? b : 0)
                                               : quotient - is_rounded);
}

static td_value whole_operation(td_render *self, int operation, int64_t a, int64_t b) {
    int64_t result;
    bool is_beyond;
    switch (operation) {
    case TD_TOKEN_ADD:
        is_beyond = __builtin_add_overflow(a, b, &result);
        break;
    case TD_TOKEN_SUBTRACT:
        is_beyond = __builtin_sub_overflow(a, b, &result);
        break;
    case TD_TOKEN_MULTIPLY:
        is_beyond = __builtin_mul_overflow(a, b, &result);
        break;
    case TD_TOKEN_DIVIDE:
        return real_operation(self, operation, (double)a, (double)b);
    case TD_TOKEN_POWER:
        return whole_power(self, a, b);
    default:
        return whole_division(self, operation, a, b);
    }
    if (is_beyond)
        td_raise(self, "an integer beyond 64 bits");
    return td_int(result);
}

static const char *sign_of(int operation) {
    switch (operation) {
    case TD_TOKEN_ADD:
        return "+";
    case TD_TOKEN_SUBTRACT:
        return "-";
    case TD_TOKEN_MULTIPLY:
        return "*";
    case TD_TOKEN_DIVIDE:
        return "/";
    case TD_TOKEN_FLOOR_DIVIDE:
        return "//";
    case TD_TOKEN_MODULO:
        return "%";
    default:
        return "** or pow()";
    }
}

td_value td_binary(td_render *self, int operation, td_value a, td_value b) {
    if (td_is_number(a) && td_is_number(b)) {
        if (a.kind == TD_FLOAT || b.kind == TD_FLOAT)
            return real_operation(self, operation, td_real(a), td_real(b));
        return whole_operation(self, operation, whole(a), whole(b));
    }
    if (operation == TD_TOKEN_ADD && is_sequence(a) && a.kind == b.kind)
        return joined(self, a, b);
    if (operation == TD_TOKEN_MODULO && a.kind == TD_STRING)
        return td_percent_format(self, a.string, b, NULL);
    if (operation == TD_TOKEN_MULTIPLY && is_sequence(a) && (b.kind == TD_INT || b.kind == TD_BOOL))
        return repeated(self, a, whole(b));
    if (operation == TD_TOKEN_MULTIPLY && is_sequence(b) && (a.kind == TD_INT || a.kind == TD_BOOL))
        return repeated(self, b, whole(a));
    refuse_operands(self, sign_of(operation), a, b);
}

static td_value evaluate_sign(td_render *self, const td_node *node) {
    td_value value = td_evaluate(self, node->a);
    self->trap.position = node->position;
    if (value.kind == TD_UNDEFINED)
        td_raise(self, "%s", value.missing->text);
    if (!td_is_number(value))
        td_raise(self, "bad operand type for unary %c: '%s'",
                 node->kind == TD_NODE_PLUS ? '+' : '-', td_type_name(value));
    if (value.kind == TD_FLOAT)
        return td_float(node->kind == TD_NODE_PLUS ? value.real : -value.real);
    return td_binary(self, node->kind == TD_NODE_PLUS ? TD_TOKEN_ADD : TD_TOKEN_SUBTRACT, td_int(0),
                     value);
}

static td_value evaluate_binary(td_render *self, const td_node *node) {
    td_value a = td_evaluate(self, node->a);
    td_value b = td_evaluate(self, node->b);
    self->trap.position = node->position;
    return td_binary(self, node->operation, a, b);
}

static td_value evaluate_node(td_render *self, const td_node *node) {
    td_value left;
    switch (node->kind) {
    case TD_NODE_CONST:
        return node->value;
    case TD_NODE_NAME:
        return evaluate_name(self, node);
    case TD_NODE_LIST:
        return evaluate_list(self, node, TD_LIST);
    case TD_NODE_TUPLE:
        return evaluate_list(self, node, TD_TUPLE);
    case TD_NODE_DICT:
        return evaluate_dict(self, node);
    case TD_NODE_ATTRIBUTE:
        left = td_evaluate(self, node->a);
        self->trap.position = node->position;
        return td_attribute(self, left, node->name);
    case TD_NODE_ITEM:
        return evaluate_item(self, node);
    case TD_NODE_CALL:
        return evaluate_call(self, node);
    case TD_NODE_FILTER:
        return evaluate_filter(self, node, NULL);
    case TD_NODE_TEST:
        return evaluate_test(self, node);
    case TD_NODE_NOT:
        return td_bool(!td_truth(td_evaluate(self, node->a)));
    case TD_NODE_NEGATE:
    case TD_NODE_PLUS:
        return evaluate_sign(self, node);
    case TD_NODE_BINARY:
        return evaluate_binary(self, node);
    case TD_NODE_COMPARE:
        return evaluate_compare(self, node);
    case TD_NODE_AND:
        left = td_evaluate(self, node->a);
        return td_truth(left) ? td_evaluate(self, node->b) : left;
    case TD_NODE_OR:
        left = td_evaluate(self, node->a);
        return td_truth(left) ? left : td_evaluate(self, node->b);
    case TD_NODE_CONCAT:
        return evaluate_concat(self, node);
    case TD_NODE_CONDITION:
        return evaluate_condition(self, node);
    default:
        td_raise(self, "not an expression");
    }
}

td_value td_evaluate(td_render *self, const td_node *node) {
    td_steps(self, 1);
    td_deeper(self);
    self->trap.position = node->position;
    td_value value = evaluate_node(self, node);
    td_shallower(self);
    return value;
}
