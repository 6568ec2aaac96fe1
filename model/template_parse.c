#define _GNU_SOURCE // memmem
// Statements, and what a compilation is: source in, a tree in one arena out.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/template_internal.h"
#include "model/unicode.h"

void td_next(td_parser *self) {
    if (self->has_ahead) {
        self->current = self->ahead;
        self->has_ahead = false;
    } else {
        self->current = td_lex(self);
    }
    self->render.trap.position = self->current.position;
}

const td_token *td_look(td_parser *self) {
    if (!self->has_ahead) {
        self->ahead = td_lex(self);
        self->has_ahead = true;
    }
    return &self->ahead;
}

bool td_at(const td_parser *self, td_token_kind kind) {
    return self->current.kind == kind;
}

bool td_at_name(const td_parser *self, const char *name) {
    return self->current.kind == TD_TOKEN_NAME && self->current.bytes == strlen(name) &&
           memcmp(self->current.text, name, self->current.bytes) == 0;
}

bool td_skip(td_parser *self, td_token_kind kind) {
    bool found = td_at(self, kind);
    if (found)
        td_next(self);
    return found;
}

bool td_skip_name(td_parser *self, const char *name) {
    bool found = td_at_name(self, name);
    if (found)
        td_next(self);
    return found;
}

static const char *kind_name(td_token_kind kind) {
    static const char *const names[] = {
        [TD_TOKEN_END] = "the end of the template",
        [TD_TOKEN_DATA] = "text",
        [TD_TOKEN_PRINT_BEGIN] = "{{",
        [TD_TOKEN_PRINT_END] = "}}",
        [TD_TOKEN_BLOCK_BEGIN] = "{%",
        [TD_TOKEN_BLOCK_END] = "%}",
        [TD_TOKEN_NAME] = "a name",
        [TD_TOKEN_STRING] = "a string",
        [TD_TOKEN_INTEGER] = "a number",
        [TD_TOKEN_FLOAT] = "a number",
        [TD_TOKEN_LEFT_BRACKET] = "[",
        [TD_TOKEN_RIGHT_BRACKET] = "]",
        [TD_TOKEN_LEFT_PAREN] = "(",
        [TD_TOKEN_RIGHT_PAREN] = ")",
        [TD_TOKEN_LEFT_BRACE] = "{",
        [TD_TOKEN_RIGHT_BRACE] = "}",
        [TD_TOKEN_ASSIGN] = "=",
        [TD_TOKEN_DOT] = ".",
        [TD_TOKEN_COLON] = ":",
        [TD_TOKEN_COMMA] = ",",
    };
    const char *name = kind < sizeof names / sizeof *names ? names[kind] : NULL;
    return name ? name : "an operator";
}

const char *td_describe(td_parser *self, const td_token *token) {
    if (token->kind != TD_TOKEN_NAME && token->kind < TD_TOKEN_ADD)
        return kind_name(token->kind);
    char *text = td_take(&self->render, token->bytes + 3);
    snprintf(text, token->bytes + 3, "'%.*s'", (int)token->bytes, token->text);
    return text;
}

void td_expect(td_parser *self, td_token_kind kind) {
    if (!td_at(self, kind))
        td_raise(&self->render, "expected %s, got %s", kind_name(kind),
                 td_describe(self, &self->current));
    td_next(self);
}

const td_string *td_expect_name(td_parser *self) {
    if (!td_at(self, TD_TOKEN_NAME))
        td_raise(&self->render, "expected a name, got %s", td_describe(self, &self->current));
    const td_string *name = td_intern(self, self->current.text, self->current.bytes);
    td_next(self);
    return name;
}

const td_string *td_intern(td_parser *self, const char *text, size_t bytes) {
    for (size_t i = 0; i < self->n_names; i++)
        if (self->names[i]->bytes == bytes && memcmp(self->names[i]->text, text, bytes) == 0)
            return self->names[i];
    if (self->n_names == self->names_capacity) {
        self->names_capacity = self->names_capacity ? 2 * self->names_capacity : 64;
        const td_string **names =
            td_take(&self->render, self->names_capacity * sizeof *self->names);
        if (self->n_names > 0)
            memcpy(names, self->names, self->n_names * sizeof *names);
        self->names = names;
    }
    if (self->n_names == 4096)
        td_raise(&self->render, "more than 4096 different names");
    return self->names[self->n_names++] = td_string_make(&self->render, text, bytes, 0);
}

td_node *td_node_make(td_parser *self, td_node_kind kind) {
    td_node *node = td_take(&self->render, sizeof *node);
    *node = (td_node){.kind = kind, .position = self->current.position};
    return node;
}

void td_nodes_add(td_parser *self, td_nodes *nodes, td_node *node) {
    if (nodes->count == nodes->capacity) {
        nodes->capacity = nodes->capacity ? 2 * nodes->capacity : 4;
        td_node **items = td_take(&self->render, nodes->capacity * sizeof *items);
        if (nodes->count > 0)
            memcpy(items, nodes->items, nodes->count * sizeof *items);
        nodes->items = items;
    }
    nodes->items[nodes->count++] = node;
}

// After the %} of a statement: its body, up to and with the tag `end` or `other`. Tells whether it
// was `other`; what is in that tag behind its name is not read yet.
static bool parse_until(td_parser *self, td_nodes *body, const char *end, const char *other) {
    const char *outer = self->tag;
    td_skip(self, TD_TOKEN_COLON);
    td_expect(self, TD_TOKEN_BLOCK_END);
    self->tag = end;
    td_deeper(&self->render);
    td_parse_body(self, body);
    td_shallower(&self->render);
    self->tag = outer;
    if (td_at(self, TD_TOKEN_END))
        td_raise(&self->render, "the template ends where '%s' was expected", end);
    if (other && td_skip_name(self, other))
        return true;
    if (!td_skip_name(self, end))
        td_raise(&self->render, "found %s where '%s' was expected",
                 td_describe(self, &self->current), end);
    return false;
}

static td_node *parse_if(td_parser *self) {
    td_node *first = td_node_make(self, TD_NODE_IF), *node = first;
    for (;;) {
        node->a = td_parse_tuple(self, false, NULL, false);
        const char *outer = self->tag;
        td_skip(self, TD_TOKEN_COLON);
        td_expect(self, TD_TOKEN_BLOCK_END);
        self->tag = "endif";
        td_deeper(&self->render);
        td_parse_body(self, &node->body);
        td_shallower(&self->render);
        self->tag = outer;
        if (!td_skip_name(self, "elif"))
            break;
        td_node *next = td_node_make(self, TD_NODE_IF);
        td_nodes_add(self, &first->list, next);
        node = next;
    }
    if (td_skip_name(self, "else"))
        parse_until(self, &first->other, "endif", NULL);
    else if (!td_skip_name(self, "endif"))
        td_raise(&self->render, "found %s where 'elif', 'else' or 'endif' was expected",
                 td_describe(self, &self->current));
    return first;
}

static td_node *parse_for(td_parser *self) {
    td_node *node = td_node_make(self, TD_NODE_FOR);
    node->a = td_parse_target(self, false, "in");
    if (!td_skip_name(self, "in"))
        td_raise(&self->render, "expected 'in', got %s", td_describe(self, &self->current));
    node->b = td_parse_tuple(self, false, "recursive", false);
    if (td_skip_name(self, "if"))
        node->c = td_parse_expression(self, true);
    node->flag = td_skip_name(self, "recursive");
    if (parse_until(self, &node->body, "endfor", "else"))
        parse_until(self, &node->other, "endfor", NULL);
    return node;
}

static td_node *parse_set(td_parser *self) {
    td_node *node = td_node_make(self, TD_NODE_SET);
    node->a = td_parse_target(self, true, NULL);
    if (td_skip(self, TD_TOKEN_ASSIGN)) {
        node->b = td_parse_tuple(self, true, NULL, false);
        return node;
    }
    node->kind = TD_NODE_SET_BLOCK;
    node->b = td_parse_filter(self, NULL, false);
    parse_until(self, &node->body, "endset", NULL);
    return node;
}

// (a, b=1): keywords with or without a default in `a`.
static void parse_parameters(td_parser *self, td_node *node) {
    bool had_default = false;
    td_expect(self, TD_TOKEN_LEFT_PAREN);
    while (!td_at(self, TD_TOKEN_RIGHT_PAREN)) {
        td_node *parameter = td_node_make(self, TD_NODE_KEYWORD);
        parameter->name = td_expect_name(self);
        if (td_skip(self, TD_TOKEN_ASSIGN))
            parameter->a = td_parse_expression(self, true);
        else if (had_default)
            td_raise(&self->render, "a parameter without a default follows one with a default");
        had_default = parameter->a != NULL;
        td_nodes_add(self, &node->keywords, parameter);
        if (!td_skip(self, TD_TOKEN_COMMA))
            break;
    }
    td_expect(self, TD_TOKEN_RIGHT_PAREN);
}

// Does the source of a macro's body name this variable? Only then may calls pass more than its
// parameters.
static bool names_variable(const td_parser *self, size_t begin, size_t end, const char *name) {
    return memmem(self->source + begin, end - begin, name, strlen(name)) != NULL;
}

static td_node *parse_macro(td_parser *self) {
    td_node *node = td_node_make(self, TD_NODE_MACRO);
    node->name = td_expect_name(self);
    parse_parameters(self, node);
    size_t begin = self->at;
    parse_until(self, &node->body, "endmacro", NULL);
    node->flag = names_variable(self, begin, self->at, "varargs");
    node->operation = names_variable(self, begin, self->at, "kwargs");
    node->value = td_bool(names_variable(self, begin, self->at, "caller"));
    return node;
}

static td_node *parse_call_block(td_parser *self) {
    td_node *node = td_node_make(self, TD_NODE_CALL_BLOCK);
    node->name = td_intern(self, "caller", 6);
    if (td_at(self, TD_TOKEN_LEFT_PAREN))
        parse_parameters(self, node);
    node->a = td_parse_expression(self, true);
    if (node->a->kind != TD_NODE_CALL)
        td_raise(&self->render, "a call block needs a call");
    parse_until(self, &node->body, "endcall", NULL);
    return node;
}

static td_node *parse_filter_block(td_parser *self) {
    td_node *node = td_node_make(self, TD_NODE_FILTER_BLOCK);
    node->b = td_parse_filter(self, NULL, true);
    parse_until(self, &node->body, "endfilter", NULL);
    return node;
}

static td_node *parse_with(td_parser *self) {
    td_node *node = td_node_make(self, TD_NODE_WITH);
    while (!td_at(self, TD_TOKEN_BLOCK_END)) {
        td_node *set = td_node_make(self, TD_NODE_SET);
        set->a = td_parse_target(self, false, NULL);
        td_expect(self, TD_TOKEN_ASSIGN);
        set->b = td_parse_expression(self, true);
        td_nodes_add(self, &node->list, set);
        if (!td_skip(self, TD_TOKEN_COMMA))
            break;
    }
    parse_until(self, &node->body, "endwith", NULL);
    return node;
}

static td_node *parse_print(td_parser *self) {
    td_node *node = td_node_make(self, TD_NODE_PRINT);
    td_node *items = td_node_make(self, TD_NODE_CONCAT);
    do
        td_nodes_add(self, &items->list, td_parse_expression(self, true));
    while (td_skip(self, TD_TOKEN_COMMA));
    node->a = items;
    return node;
}

static td_node *parse_block(td_parser *self) {
    td_node *node = td_node_make(self, TD_NODE_SCOPE);
    td_expect_name(self);
    td_skip_name(self, "scoped");
    parse_until(self, &node->body, "endblock", NULL);
    if (td_at(self, TD_TOKEN_NAME))
        td_next(self);
    return node;
}

static td_node *parse_generation(td_parser *self) {
    td_node *node = td_node_make(self, TD_NODE_GENERATION);
    self->has_generation = true;
    parse_until(self, &node->body, "endgeneration", NULL);
    return node;
}

static td_node *parse_break(td_parser *self) {
    return td_node_make(self, TD_NODE_BREAK);
}

static td_node *parse_continue(td_parser *self) {
    return td_node_make(self, TD_NODE_CONTINUE);
}

static td_node *refuse_statement(td_parser *self) {
    td_raise(&self->render, "the statement is not allowed in a chat template: it reads another "
                            "template or changes escaping");
}

static const struct {
    const char *name;
    td_node *(*parse)(td_parser *self);
} statements[] = {
    {"if", parse_if},
    {"for", parse_for},
    {"set", parse_set},
    {"macro", parse_macro},
    {"call", parse_call_block},
    {"filter", parse_filter_block},
    {"with", parse_with},
    {"print", parse_print},
    {"block", parse_block},
    {"generation", parse_generation},
    {"break", parse_break},
    {"continue", parse_continue},
    {"include", refuse_statement},
    {"import", refuse_statement},
    {"from", refuse_statement},
    {"extends", refuse_statement},
    {"autoescape", refuse_statement},
};

static td_node *parse_statement(td_parser *self) {
    for (size_t i = 0; i < sizeof statements / sizeof *statements; i++) {
        if (!td_at_name(self, statements[i].name))
            continue;
        uint32_t position = self->current.position;
        if (statements[i].parse != refuse_statement)
            td_next(self);
        td_node *node = statements[i].parse(self);
        node->position = position;
        return node;
    }
    if (self->tag)
        td_raise(&self->render, "unknown statement %s; '%s' is still to come",
                 td_describe(self, &self->current), self->tag);
    td_raise(&self->render, "unknown statement %s", td_describe(self, &self->current));
}

// Names of tags that close or divide a statement: they end a body.
static bool at_body_end(const td_parser *self) {
    static const char *const names[] = {
        "elif",    "else",      "endif",   "endfor",   "endset",        "endmacro",
        "endcall", "endfilter", "endwith", "endblock", "endgeneration",
    };
    for (size_t i = 0; self->tag && i < sizeof names / sizeof *names; i++)
        if (td_at_name(self, names[i]))
            return true;
    return false;
}

static td_node *text_node(td_parser *self) {
    td_node *node = td_node_make(self, TD_NODE_TEXT);
    node->value =
        td_text(td_string_make(&self->render, self->current.text, self->current.bytes, 0));
    td_nodes_add(self, &self->literals, node);
    td_next(self);
    return node;
}

static td_node *print_node(td_parser *self) {
    td_node *node = td_node_make(self, TD_NODE_PRINT);
    td_next(self);
    node->a = td_parse_tuple(self, true, NULL, false);
    td_expect(self, TD_TOKEN_PRINT_END);
    return node;
}

// Ends at the end of the source, or at the name in a tag that closes the statement around.
void td_parse_body(td_parser *self, td_nodes *out) {
    for (;;) {
        switch (self->current.kind) {
        case TD_TOKEN_END:
            return;
        case TD_TOKEN_DATA:
            td_nodes_add(self, out, text_node(self));
            break;
        case TD_TOKEN_PRINT_BEGIN:
            td_nodes_add(self, out, print_node(self));
            break;
        default:
            td_expect(self, TD_TOKEN_BLOCK_BEGIN);
            if (at_body_end(self))
                return;
            td_nodes_add(self, out, parse_statement(self));
            td_expect(self, TD_TOKEN_BLOCK_END);
        }
    }
}

// One kind of line end, and none at the very end of the template.
static void normalize_line_ends(td_template *self) {
    size_t count = 0;
    for (size_t i = 0; i < self->source_bytes; i++) {
        char byte = self->source[i];
        if (byte == '\r' && i + 1 < self->source_bytes && self->source[i + 1] == '\n')
            continue;
        self->source[count++] = byte == '\r' ? '\n' : byte;
    }
    if (count > 0 && self->source[count - 1] == '\n')
        count--;
    self->source[count] = '\0';
    self->source_bytes = count;
}

static td_status check_source(const char *where, const char *source, size_t bytes) {
    if (bytes > TD_TEMPLATE_MAX_BYTES)
        return td_fail(TD_ERR_DATA, "%s: a chat template of %zu bytes (at most %d MiB)", where,
                       bytes, TD_TEMPLATE_MAX_BYTES >> 20);
    size_t valid = td_utf8_check(source, bytes);
    if (valid < bytes)
        return td_fail(TD_ERR_DATA, "%s: invalid UTF-8 at byte %zu", where, valid);
    return TD_OK;
}

static td_status create(const char *where, const char *source, size_t bytes, td_template **out) {
    td_template *self = calloc(1, sizeof *self);
    if (self) {
        self->where = strdup(where);
        self->source = malloc(bytes + 1);
    }
    if (!self || !self->where || !self->source) {
        td_template_destroy(self);
        return td_fail(TD_ERR_MEMORY, "%s: no memory for a chat template", where);
    }
    if (bytes > 0)
        memcpy(self->source, source, bytes);
    self->source_bytes = bytes;
    self->pile.max_bytes = TD_TEMPLATE_MAX_MEMORY_BYTES;
    normalize_line_ends(self);
    *out = self;
    return TD_OK;
}

static td_status parse_or_fail(td_parser *parser, td_nodes *out) {
    jmp_buf exit;
    parser->render.trap.exit = &exit;
    if (setjmp(exit) != 0)
        return parser->render.trap.status;
    td_next(parser);
    td_parse_body(parser, out);
    return TD_OK;
}

static td_status parse(td_template *self) {
    td_parser parser = {
        .render = {.trap = {.where = self->where,
                            .source = self->source,
                            .source_bytes = self->source_bytes},
                   .pile = &self->pile},
        .source = self->source,
        .bytes = self->source_bytes,
    };
    TD_TRY(parse_or_fail(&parser, &self->body));
    self->has_generation = parser.has_generation;
    self->literals = parser.literals;
    return TD_OK;
}

td_status td_template_compile(const char *where, const char *source, size_t bytes,
                              td_template **out) {
    td_template *self;
    TD_TRY(check_source(where, source, bytes));
    TD_TRY(create(where, source, bytes, &self));
    td_status status = parse(self);
    if (status != TD_OK) {
        td_template_destroy(self);
        return status;
    }
    *out = self;
    return TD_OK;
}

void td_template_destroy(td_template *self) {
    if (!self)
        return;
    td_pile_fini(&self->pile);
    free(self->source);
    free(self->where);
    free(self);
}
