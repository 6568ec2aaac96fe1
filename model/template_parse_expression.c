// Expressions, by precedence from loose to tight: if/else, or, and, not, comparisons, + -, ~,
// * / // %, **, signs, then calls, attributes, filters and tests behind a primary.
#include <string.h>

#include "model/template_internal.h"

static td_node *binary(td_parser *self, td_node_kind kind, td_node *a, td_node *b) {
    td_node *node = td_node_make(self, kind);
    node->position = a->position;
    node->a = a;
    node->b = b;
    return node;
}

static td_node *constant(td_parser *self, td_value value) {
    td_node *node = td_node_make(self, TD_NODE_CONST);
    node->value = value;
    return node;
}

static td_node *parse_list(td_parser *self) {
    td_node *node = td_node_make(self, TD_NODE_LIST);
    td_expect(self, TD_TOKEN_LEFT_BRACKET);
    while (!td_at(self, TD_TOKEN_RIGHT_BRACKET)) {
        td_nodes_add(self, &node->list, td_parse_expression(self, true));
        if (!td_skip(self, TD_TOKEN_COMMA))
            break;
    }
    td_expect(self, TD_TOKEN_RIGHT_BRACKET);
    return node;
}

static td_node *parse_dict(td_parser *self) {
    td_node *node = td_node_make(self, TD_NODE_DICT);
    td_expect(self, TD_TOKEN_LEFT_BRACE);
    while (!td_at(self, TD_TOKEN_RIGHT_BRACE)) {
        td_nodes_add(self, &node->list, td_parse_expression(self, true));
        td_expect(self, TD_TOKEN_COLON);
        td_nodes_add(self, &node->list, td_parse_expression(self, true));
        if (!td_skip(self, TD_TOKEN_COMMA))
            break;
    }
    td_expect(self, TD_TOKEN_RIGHT_BRACE);
    return node;
}

// Strings side by side are one.
static td_node *parse_strings(td_parser *self) {
    td_node *node = constant(self, self->current.value);
    td_nodes_add(self, &self->literals, node);
    td_next(self);
    if (!td_at(self, TD_TOKEN_STRING))
        return node;
    td_builder text = {0};
    td_build_string(&self->render, &text, node->value.string);
    for (; td_at(self, TD_TOKEN_STRING); td_next(self))
        td_build_string(&self->render, &text, self->current.value.string);
    node->value = td_text(td_built(&self->render, &text));
    return node;
}

static td_node *parse_name(td_parser *self, bool with_namespace) {
    static const struct {
        const char *name;
        td_value value;
    } words[] = {
        {"true", {.kind = TD_BOOL, .truth = true}},
        {"True", {.kind = TD_BOOL, .truth = true}},
        {"false", {.kind = TD_BOOL, .truth = false}},
        {"False", {.kind = TD_BOOL, .truth = false}},
        {"none", {.kind = TD_NONE}},
        {"None", {.kind = TD_NONE}},
    };
    td_node *node = td_node_make(self, TD_NODE_NAME);
    node->name = td_expect_name(self);
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (td_string_is(node->name, words[i].name)) {
            node->kind = TD_NODE_CONST;
            node->value = words[i].value;
            return node;
        }
    if (with_namespace && td_skip(self, TD_TOKEN_DOT)) {
        node->kind = TD_NODE_NAMESPACE_REF;
        node->value = td_text(td_expect_name(self));
    }
    return node;
}

static td_node *parse_primary(td_parser *self, bool with_namespace) {
    td_node *node;
    switch (self->current.kind) {
    case TD_TOKEN_NAME:
        return parse_name(self, with_namespace);
    case TD_TOKEN_STRING:
        return parse_strings(self);
    case TD_TOKEN_INTEGER:
    case TD_TOKEN_FLOAT:
        node = constant(self, self->current.value);
        td_next(self);
        return node;
    case TD_TOKEN_LEFT_PAREN:
        td_next(self);
        node = td_parse_tuple(self, true, NULL, true);
        td_expect(self, TD_TOKEN_RIGHT_PAREN);
        return node;
    case TD_TOKEN_LEFT_BRACKET:
        return parse_list(self);
    case TD_TOKEN_LEFT_BRACE:
        return parse_dict(self);
    default:
        td_raise(&self->render, "unexpected %s", td_describe(self, &self->current));
    }
}

static bool at_subscript_end(const td_parser *self) {
    return td_at(self, TD_TOKEN_RIGHT_BRACKET) || td_at(self, TD_TOKEN_COMMA);
}

// An index, or begin:end:step with any of them left out.
static td_node *parse_subscript(td_parser *self) {
    td_node *begin = td_at(self, TD_TOKEN_COLON) ? NULL : td_parse_expression(self, true);
    if (begin && !td_at(self, TD_TOKEN_COLON))
        return begin;
    td_node *node = td_node_make(self, TD_NODE_SLICE);
    td_expect(self, TD_TOKEN_COLON);
    node->a = begin;
    if (!td_at(self, TD_TOKEN_COLON) && !at_subscript_end(self))
        node->b = td_parse_expression(self, true);
    if (td_skip(self, TD_TOKEN_COLON) && !at_subscript_end(self))
        node->c = td_parse_expression(self, true);
    return node;
}

static td_node *parse_brackets(td_parser *self, td_node *base) {
    td_node *node = td_node_make(self, TD_NODE_ITEM), *tuple = NULL;
    td_expect(self, TD_TOKEN_LEFT_BRACKET);
    node->a = base;
    node->b = parse_subscript(self);
    while (td_skip(self, TD_TOKEN_COMMA)) {
        if (!tuple) {
            tuple = td_node_make(self, TD_NODE_TUPLE);
            td_nodes_add(self, &tuple->list, node->b);
            node->b = tuple;
        }
        td_nodes_add(self, &tuple->list, parse_subscript(self));
    }
    td_expect(self, TD_TOKEN_RIGHT_BRACKET);
    return node;
}

static td_node *parse_dot(td_parser *self, td_node *base) {
    td_expect(self, TD_TOKEN_DOT);
    td_node *node = td_node_make(self, TD_NODE_ATTRIBUTE);
    node->a = base;
    if (td_at(self, TD_TOKEN_INTEGER)) {
        node->kind = TD_NODE_ITEM;
        node->b = constant(self, self->current.value);
        td_next(self);
        return node;
    }
    node->name = td_expect_name(self);
    return node;
}

static void parse_argument(td_parser *self, td_node *node) {
    if (td_at(self, TD_TOKEN_MULTIPLY) && !node->c && !node->d) {
        td_next(self);
        node->c = td_parse_expression(self, true);
    } else if (td_at(self, TD_TOKEN_POWER) && !node->d) {
        td_next(self);
        node->d = td_parse_expression(self, true);
    } else if (td_at(self, TD_TOKEN_NAME) && td_look(self)->kind == TD_TOKEN_ASSIGN && !node->d) {
        td_node *keyword = td_node_make(self, TD_NODE_KEYWORD);
        keyword->name = td_expect_name(self);
        td_next(self);
        keyword->a = td_parse_expression(self, true);
        td_nodes_add(self, &node->keywords, keyword);
    } else if (!node->c && !node->d && node->keywords.count == 0) {
        td_nodes_add(self, &node->list, td_parse_expression(self, true));
    } else {
        td_raise(&self->render, "an argument without a name follows one with a name");
    }
}

static void parse_arguments(td_parser *self, td_node *node) {
    td_expect(self, TD_TOKEN_LEFT_PAREN);
    while (!td_at(self, TD_TOKEN_RIGHT_PAREN)) {
        parse_argument(self, node);
        if (!td_skip(self, TD_TOKEN_COMMA))
            break;
    }
    td_expect(self, TD_TOKEN_RIGHT_PAREN);
}

static td_node *parse_call(td_parser *self, td_node *callable) {
    td_node *node = td_node_make(self, TD_NODE_CALL);
    node->a = callable;
    parse_arguments(self, node);
    return node;
}

static td_node *parse_postfix(td_parser *self, td_node *node) {
    for (size_t count = 0;; count++) {
        if (count > TD_TEMPLATE_MAX_DEPTH)
            td_raise(&self->render, "too long a chain of attributes and calls");
        if (td_at(self, TD_TOKEN_DOT))
            node = parse_dot(self, node);
        else if (td_at(self, TD_TOKEN_LEFT_BRACKET))
            node = parse_brackets(self, node);
        else if (td_at(self, TD_TOKEN_LEFT_PAREN))
            node = parse_call(self, node);
        else
            return node;
    }
}

static const td_string *dotted_name(td_parser *self) {
    const td_string *name = td_expect_name(self);
    while (td_skip(self, TD_TOKEN_DOT)) {
        td_builder text = {0};
        td_build_string(&self->render, &text, name);
        td_build_literal(&self->render, &text, ".");
        td_build_string(&self->render, &text, td_expect_name(self));
        name = td_built(&self->render, &text);
    }
    return name;
}

td_node *td_parse_filter(td_parser *self, td_node *base, bool is_inline) {
    for (size_t count = 0; is_inline || td_at(self, TD_TOKEN_PIPE); is_inline = false, count++) {
        if (count > TD_TEMPLATE_MAX_DEPTH)
            td_raise(&self->render, "too long a chain of filters");
        if (!is_inline)
            td_next(self);
        td_node *node = td_node_make(self, TD_NODE_FILTER);
        node->a = base;
        node->name = dotted_name(self);
        if (td_at(self, TD_TOKEN_LEFT_PAREN))
            parse_arguments(self, node);
        base = node;
    }
    return base;
}

// `is divisibleby 3` needs no parentheses.
static bool at_bare_argument(const td_parser *self) {
    switch (self->current.kind) {
    case TD_TOKEN_NAME:
        return !td_at_name(self, "else") && !td_at_name(self, "or") && !td_at_name(self, "and");
    case TD_TOKEN_STRING:
    case TD_TOKEN_INTEGER:
    case TD_TOKEN_FLOAT:
    case TD_TOKEN_LEFT_BRACKET:
    case TD_TOKEN_LEFT_BRACE:
        return true;
    default:
        return false;
    }
}

static td_node *parse_test(td_parser *self, td_node *base) {
    td_next(self);
    bool is_negated = td_skip_name(self, "not");
    td_node *node = td_node_make(self, TD_NODE_TEST);
    node->a = base;
    node->name = dotted_name(self);
    if (td_at(self, TD_TOKEN_LEFT_PAREN)) {
        parse_arguments(self, node);
    } else if (at_bare_argument(self)) {
        if (td_at_name(self, "is"))
            td_raise(&self->render, "tests cannot be chained with is");
        td_nodes_add(self, &node->list, parse_postfix(self, parse_primary(self, false)));
    }
    return is_negated ? binary(self, TD_NODE_NOT, node, NULL) : node;
}

static td_node *parse_filters_and_tests(td_parser *self, td_node *node) {
    for (size_t count = 0;; count++) {
        if (count > TD_TEMPLATE_MAX_DEPTH)
            td_raise(&self->render, "too long a chain of filters and tests");
        if (td_at(self, TD_TOKEN_PIPE))
            node = td_parse_filter(self, node, false);
        else if (td_at_name(self, "is"))
            node = parse_test(self, node);
        else if (td_at(self, TD_TOKEN_LEFT_PAREN))
            node = parse_call(self, node);
        else
            return node;
    }
}

static td_node *parse_unary(td_parser *self, bool with_filter) {
    td_node *node;
    td_deeper(&self->render);
    if (td_at(self, TD_TOKEN_SUBTRACT) || td_at(self, TD_TOKEN_ADD)) {
        node = td_node_make(self, td_at(self, TD_TOKEN_ADD) ? TD_NODE_PLUS : TD_NODE_NEGATE);
        td_next(self);
        node->a = parse_unary(self, false);
    } else {
        node = parse_primary(self, false);
    }
    node = parse_postfix(self, node);
    if (with_filter)
        node = parse_filters_and_tests(self, node);
    td_shallower(&self->render);
    return node;
}

// Left-associative levels nest the tree to the left; the bound keeps their evaluation shallow.
static void count_operand(td_parser *self, size_t *count) {
    if (++*count > TD_TEMPLATE_MAX_DEPTH / 2)
        td_raise(&self->render, "too many operands: use brackets or ~");
}

static td_node *operation(td_parser *self, td_node *left, td_node *(*parse)(td_parser *)) {
    int kind = self->current.kind;
    td_next(self);
    td_node *node = binary(self, TD_NODE_BINARY, left, parse(self));
    node->operation = kind;
    return node;
}

static td_node *parse_signed(td_parser *self) {
    return parse_unary(self, true);
}

static td_node *parse_power(td_parser *self) {
    td_node *node = parse_signed(self);
    for (size_t count = 0; td_at(self, TD_TOKEN_POWER); count_operand(self, &count))
        node = operation(self, node, parse_signed);
    return node;
}

static td_node *parse_product(td_parser *self) {
    td_node *node = parse_power(self);
    for (size_t count = 0; td_at(self, TD_TOKEN_MULTIPLY) || td_at(self, TD_TOKEN_DIVIDE) ||
                           td_at(self, TD_TOKEN_FLOOR_DIVIDE) || td_at(self, TD_TOKEN_MODULO);
         count_operand(self, &count))
        node = operation(self, node, parse_power);
    return node;
}

static td_node *parse_concat(td_parser *self) {
    td_node *node = parse_product(self);
    if (!td_at(self, TD_TOKEN_TILDE))
        return node;
    td_node *concat = td_node_make(self, TD_NODE_CONCAT);
    td_nodes_add(self, &concat->list, node);
    while (td_skip(self, TD_TOKEN_TILDE))
        td_nodes_add(self, &concat->list, parse_product(self));
    return concat;
}

static td_node *parse_sum(td_parser *self) {
    td_node *node = parse_concat(self);
    for (size_t count = 0; td_at(self, TD_TOKEN_ADD) || td_at(self, TD_TOKEN_SUBTRACT);
         count_operand(self, &count))
        node = operation(self, node, parse_concat);
    return node;
}

// TD_TOKEN_END when no comparison follows; else its tokens are read.
static td_token_kind comparison(td_parser *self) {
    td_token_kind kind = self->current.kind;
    if (kind >= TD_TOKEN_EQUAL && kind <= TD_TOKEN_LESS_EQUAL) {
        td_next(self);
        return kind;
    }
    if (td_skip_name(self, "in"))
        return TD_TOKEN_IN;
    const td_token *ahead = td_at_name(self, "not") ? td_look(self) : NULL;
    if (!ahead || ahead->kind != TD_TOKEN_NAME || ahead->bytes != 2 ||
        memcmp(ahead->text, "in", 2) != 0)
        return TD_TOKEN_END;
    td_next(self);
    td_next(self);
    return TD_TOKEN_NOT_IN;
}

static td_node *parse_compare(td_parser *self) {
    td_node *node = parse_sum(self), *compare = NULL;
    for (td_token_kind kind; (kind = comparison(self)) != TD_TOKEN_END;) {
        if (!compare) {
            compare = binary(self, TD_NODE_COMPARE, node, NULL);
            node = compare;
        }
        td_node *operand = td_node_make(self, TD_NODE_OPERAND);
        operand->operation = kind;
        operand->a = parse_sum(self);
        td_nodes_add(self, &compare->list, operand);
    }
    return node;
}

static td_node *parse_not(td_parser *self) {
    if (!td_at_name(self, "not"))
        return parse_compare(self);
    td_deeper(&self->render);
    td_node *node = td_node_make(self, TD_NODE_NOT);
    td_next(self);
    node->a = parse_not(self);
    td_shallower(&self->render);
    return node;
}

static td_node *parse_and(td_parser *self) {
    td_node *node = parse_not(self);
    for (size_t count = 0; td_skip_name(self, "and"); count_operand(self, &count))
        node = binary(self, TD_NODE_AND, node, parse_not(self));
    return node;
}

static td_node *parse_or(td_parser *self) {
    td_node *node = parse_and(self);
    for (size_t count = 0; td_skip_name(self, "or"); count_operand(self, &count))
        node = binary(self, TD_NODE_OR, node, parse_and(self));
    return node;
}

td_node *td_parse_expression(td_parser *self, bool with_condition) {
    td_deeper(&self->render);
    td_node *node = parse_or(self);
    for (size_t count = 0; with_condition && td_skip_name(self, "if");
         count_operand(self, &count)) {
        td_node *condition = td_node_make(self, TD_NODE_CONDITION);
        condition->b = node;
        condition->a = parse_or(self);
        if (td_skip_name(self, "else"))
            condition->c = td_parse_expression(self, true);
        node = condition;
    }
    td_shallower(&self->render);
    return node;
}

static bool at_tuple_end(const td_parser *self, const char *end) {
    return td_at(self, TD_TOKEN_PRINT_END) || td_at(self, TD_TOKEN_BLOCK_END) ||
           td_at(self, TD_TOKEN_RIGHT_PAREN) || (end && td_at_name(self, end));
}

static td_node *take_tuple(td_parser *self, const td_nodes *items, bool is_tuple, bool in_parens) {
    if (!is_tuple && items->count == 1)
        return items->items[0];
    if (!is_tuple && !in_parens)
        td_raise(&self->render, "expected an expression, got %s",
                 td_describe(self, &self->current));
    td_node *node = td_node_make(self, TD_NODE_TUPLE);
    node->list = *items;
    return node;
}

td_node *td_parse_tuple(td_parser *self, bool with_condition, const char *end, bool in_parens) {
    td_nodes items = {0};
    bool is_tuple = false;
    while (!at_tuple_end(self, end)) {
        td_nodes_add(self, &items, td_parse_expression(self, with_condition));
        if (!td_skip(self, TD_TOKEN_COMMA))
            break;
        is_tuple = true;
    }
    return take_tuple(self, &items, is_tuple, in_parens);
}

static td_node *target_item(td_parser *self, bool with_namespace);

// Names to assign to: one, or several with commas, with or without parentheses.
td_node *td_parse_target(td_parser *self, bool with_namespace, const char *end) {
    td_nodes items = {0};
    bool is_tuple = false;
    while (!at_tuple_end(self, end)) {
        td_nodes_add(self, &items, target_item(self, with_namespace));
        if (!td_skip(self, TD_TOKEN_COMMA))
            break;
        is_tuple = true;
    }
    return take_tuple(self, &items, is_tuple, false);
}

static td_node *target_item(td_parser *self, bool with_namespace) {
    if (td_skip(self, TD_TOKEN_LEFT_PAREN)) {
        td_deeper(&self->render);
        td_node *node = td_parse_target(self, with_namespace, NULL);
        td_shallower(&self->render);
        td_expect(self, TD_TOKEN_RIGHT_PAREN);
        return node;
    }
    if (!td_at(self, TD_TOKEN_NAME))
        td_raise(&self->render, "cannot assign to %s", td_describe(self, &self->current));
    td_node *node = parse_name(self, with_namespace);
    if (node->kind == TD_NODE_CONST)
        td_raise(&self->render, "cannot assign to a constant");
    return node;
}
