// Statements, scopes, macros and loops, and what a rendering is.
#include <stdlib.h>
#include <string.h>

#include "model/template_internal.h"
#include "model/unicode.h"

td_scope *td_scope_push(td_render *self, td_scope *parent) {
    td_scope *scope = td_take(self, sizeof *scope);
    *scope = (td_scope){.parent = parent};
    return scope;
}

static td_value *find_in(const td_scope *scope, const td_string *name) {
    for (size_t i = 0; i < scope->count; i++)
        if (td_string_equal(scope->variables[i].name, name))
            return &scope->variables[i].value;
    return NULL;
}

const td_value *td_scope_find(const td_scope *scope, const td_string *name) {
    for (; scope; scope = scope->parent) {
        const td_value *found = find_in(scope, name);
        if (found)
            return found;
    }
    return NULL;
}

void td_scope_set(td_render *self, td_scope *scope, const td_string *name, td_value value) {
    td_value *found = find_in(scope, name);
    if (found) {
        *found = value;
        return;
    }
    if (scope->count == scope->capacity) {
        scope->capacity = scope->capacity ? 2 * scope->capacity : 4;
        struct td_variable *variables = td_take(self, scope->capacity * sizeof *variables);
        if (scope->count > 0)
            memcpy(variables, scope->variables, scope->count * sizeof *variables);
        scope->variables = variables;
    }
    scope->variables[scope->count].name = name;
    scope->variables[scope->count++].value = value;
}

static uint32_t owned(const td_render *self, uint32_t tag) {
    return ((tag & ~TD_TAG_GENERATED) == 0 ? tag | self->turn : tag) |
           (self->is_generating ? TD_TAG_GENERATED : 0);
}

void td_emit(td_render *self, const td_string *text) {
    size_t run_end;
    for (size_t at = 0; at < text->bytes; at = run_end) {
        uint32_t tag = td_tag_at(text, at, &run_end);
        td_build(self, self->out, text->text + at, run_end - at, owned(self, tag));
    }
}

// A namespace gathers what is said of all messages, to be written behind the loop: text of the
// template between that of messages belongs to the message that it is put beside.
static const td_string *owned_string(td_render *self, const td_string *text) {
    td_builder out = {0};
    size_t run_end;
    for (size_t at = 0; at < text->bytes; at = run_end) {
        uint32_t tag = td_tag_at(text, at, &run_end);
        td_build(self, &out, text->text + at, run_end - at, tag == 0 ? self->turn : tag);
    }
    return td_built(self, &out);
}

// What the statements write, instead of into the output.
static const td_string *capture(td_render *self, const td_nodes *body) {
    td_builder *outer = self->out, held = {0};
    self->out = &held;
    td_execute(self, body);
    self->out = outer;
    return td_built(self, &held);
}

static void assign(td_render *self, td_scope *scope, const td_node *target, td_value value);

static void unpack(td_render *self, td_scope *scope, const td_node *target, td_value value) {
    const td_list *items = td_items(self, value);
    if (items->count != target->list.count)
        td_raise(self, "%s values to unpack (expected %zu, got %zu)",
                 items->count > target->list.count ? "too many" : "not enough", target->list.count,
                 items->count);
    for (size_t i = 0; i < items->count; i++)
        assign(self, scope, target->list.items[i], items->items[i]);
}

static void assign_attribute(td_render *self, const td_node *target, td_value value) {
    const td_value *found = td_scope_find(self->scope, target->name);
    if (!found || found->kind != TD_NAMESPACE)
        td_raise(self, "cannot assign attribute on non-namespace object");
    if (target->value.string->text[0] == '_')
        td_raise(self, "an attribute of a namespace cannot begin with an underscore");
    if (value.kind == TD_STRING && value.string->n_runs > 0 && self->turn != 0)
        value = td_text(owned_string(self, value.string));
    td_dict_set(self, found->dict, target->value, value);
}

static void assign(td_render *self, td_scope *scope, const td_node *target, td_value value) {
    if (target->kind == TD_NODE_TUPLE)
        unpack(self, scope, target, value);
    else if (target->kind == TD_NODE_NAMESPACE_REF)
        assign_attribute(self, target, value);
    else
        td_scope_set(self, scope, target->name, value);
}

// A loop over numbers goes through a message from where it takes it out of the list.
static void own_message(td_render *self, td_value value) {
    if (!self->is_in_loop || self->has_owner || value.kind != TD_DICT || value.dict->message < 0)
        return;
    self->turn = td_tag(value.dict->message, TD_SOURCE_TURN);
    self->has_owner = true;
}

static void execute_set(td_render *self, const td_node *node) {
    td_value value = td_evaluate(self, node->b);
    self->trap.position = node->position;
    own_message(self, value);
    assign(self, self->scope, node->a, value);
}

static void in_new_scope(td_render *self, const td_nodes *body) {
    td_scope *outer = self->scope;
    self->scope = td_scope_push(self, outer);
    td_execute(self, body);
    self->scope = outer;
}

static const td_string *capture_in_scope(td_render *self, const td_nodes *body) {
    td_scope *outer = self->scope;
    self->scope = td_scope_push(self, outer);
    const td_string *text = capture(self, body);
    self->scope = outer;
    return text;
}

static void execute_set_block(td_render *self, const td_node *node) {
    td_value value = td_text(capture_in_scope(self, &node->body));
    if (node->b)
        value = td_apply_filters(self, node->b, value);
    assign(self, self->scope, node->a, value);
}

static void execute_filter_block(td_render *self, const td_node *node) {
    td_value value = td_text(capture_in_scope(self, &node->body));
    td_emit(self, td_str(self, td_apply_filters(self, node->b, value)));
}

static void execute_if(td_render *self, const td_node *node) {
    if (td_truth(td_evaluate(self, node->a))) {
        td_execute(self, &node->body);
        return;
    }
    for (size_t i = 0; i < node->list.count; i++)
        if (td_truth(td_evaluate(self, node->list.items[i]->a))) {
            td_execute(self, &node->list.items[i]->body);
            return;
        }
    td_execute(self, &node->other);
}

// The items for which the loop's condition holds.
static td_list *chosen(td_render *self, const td_node *node, td_list *items) {
    td_list *out = td_list_make(self, TD_LIST, items->count).list;
    td_scope *outer = self->scope;
    for (size_t i = 0; i < items->count; i++) {
        self->scope = td_scope_push(self, outer);
        assign(self, self->scope, node->a, items->items[i]);
        if (td_truth(td_evaluate(self, node->c)))
            td_list_add(self, out, items->items[i]);
    }
    self->scope = outer;
    return out;
}

static void run_iteration(td_render *self, const td_node *node, td_loop *loop, td_scope *outer,
                          const td_string *loop_name) {
    td_value item = loop->items->items[loop->index];
    self->scope = td_scope_push(self, outer);
    td_scope_set(self, self->scope, loop_name, (td_value){.kind = TD_LOOP, .loop = loop});
    assign(self, self->scope, node->a, item);
    self->has_owner = item.kind == TD_DICT && item.dict->message >= 0;
    if (self->has_owner)
        self->turn = td_tag(item.dict->message, TD_SOURCE_TURN);
    td_execute(self, &node->body);
}

static void run_loop(td_render *self, const td_node *node, td_list *items, size_t depth) {
    static const td_string loop_name = {.text = "loop", .bytes = 4, .chars = 4};
    td_scope *outer = self->scope;
    uint32_t turn = self->turn;
    bool was_in_loop = self->is_in_loop, had_owner = self->has_owner;
    if (node->c)
        items = chosen(self, node, items);
    td_loop *loop = td_take(self, sizeof *loop);
    *loop =
        (td_loop){.items = items, .depth = depth, .node = node->flag ? node : NULL, .scope = outer};
    for (; loop->index < items->count; loop->index++) {
        self->is_in_loop = true;
        run_iteration(self, node, loop, outer, &loop_name);
        self->turn = turn;
        bool is_over = self->flow == TD_FLOW_BREAK;
        self->flow = TD_FLOW_NEXT;
        if (is_over)
            break;
    }
    self->is_in_loop = was_in_loop;
    self->has_owner = had_owner;
    self->scope = outer;
    if (items->count == 0)
        in_new_scope(self, &node->other);
}

static void execute_for(td_render *self, const td_node *node) {
    td_value iterable = td_evaluate(self, node->b);
    self->trap.position = node->position;
    // The list may grow while it is gone through only if it is ours; nothing grows here.
    run_loop(self, node, td_items(self, iterable), 0);
}

td_value td_call_loop(td_render *self, const td_loop *loop, const td_arguments *arguments) {
    static const char *const names[] = {"iterable"};
    td_value iterable = {0};
    td_bind(self, "loop", arguments, names, 1, &iterable);
    if (!loop->node)
        td_raise(self, "The loop must have the 'recursive' marker to be called recursively.");
    td_builder *outer = self->out, held = {0};
    td_scope *scope = self->scope;
    td_deeper(self);
    self->out = &held;
    self->scope = loop->scope;
    run_loop(self, loop->node, td_items(self, iterable), loop->depth + 1);
    self->scope = scope;
    self->out = outer;
    td_shallower(self);
    return td_text(td_built(self, &held));
}

static void execute_with(td_render *self, const td_node *node) {
    td_scope *outer = self->scope, *inner = td_scope_push(self, outer);
    for (size_t i = 0; i < node->list.count; i++)
        assign(self, inner, node->list.items[i]->a, td_evaluate(self, node->list.items[i]->b));
    self->scope = inner;
    td_execute(self, &node->body);
    self->scope = outer;
}

static td_value macro_value(td_render *self, const td_node *node) {
    td_macro *macro = td_take(self, sizeof *macro);
    *macro = (td_macro){.node = node, .scope = self->scope};
    return (td_value){.kind = TD_MACRO, .macro = macro};
}

static void execute_call_block(td_render *self, const td_node *node) {
    td_value callable = td_evaluate(self, node->a->a);
    td_arguments arguments = td_evaluate_arguments(self, node->a);
    td_entry *keywords = td_take(self, (arguments.n_keywords + 1) * sizeof *keywords);
    if (arguments.n_keywords > 0)
        memcpy(keywords, arguments.keywords, arguments.n_keywords * sizeof *keywords);
    keywords[arguments.n_keywords++] = (td_entry){td_text(node->name), macro_value(self, node)};
    arguments.keywords = keywords;
    self->trap.position = node->position;
    td_emit(self, td_str(self, td_call(self, callable, &arguments)));
}

static void execute_generation(td_render *self, const td_node *node) {
    bool was_generating = self->is_generating;
    self->is_generating = true;
    in_new_scope(self, &node->body);
    self->is_generating = was_generating;
}

static bool take_keyword(td_arguments *arguments, const td_string *name, td_value *out) {
    for (size_t i = 0; i < arguments->n_keywords; i++) {
        if (!td_string_equal(arguments->keywords[i].key.string, name))
            continue;
        *out = arguments->keywords[i].value;
        arguments->keywords[i] = arguments->keywords[--arguments->n_keywords];
        return true;
    }
    return false;
}

static void set_named(td_render *self, const char *name, td_value value) {
    td_scope_set(self, self->scope, td_string_literal(self, name), value);
}

static void bind_parameters(td_render *self, const td_node *node, td_arguments *rest) {
    size_t n_given = 0;
    for (size_t i = 0; i < node->keywords.count; i++) {
        const td_node *parameter = node->keywords.items[i];
        td_value value;
        if (i < rest->count)
            value = rest->items[n_given++];
        else if (!take_keyword(rest, parameter->name, &value))
            value = parameter->a ? td_evaluate(self, parameter->a)
                                 : td_undefined(self, "parameter '%.*s' was not provided",
                                                (int)parameter->name->bytes, parameter->name->text);
        td_scope_set(self, self->scope, parameter->name, value);
    }
    if (n_given > 0)
        rest->items += n_given;
    rest->count -= n_given;
}

static void bind_rest(td_render *self, const td_node *node, td_arguments *rest) {
    static const td_string caller_name = {.text = "caller", .bytes = 6, .chars = 6};
    td_value caller = td_undefined(self, "No caller defined");
    if (node->kind == TD_NODE_MACRO && node->value.truth) {
        take_keyword(rest, &caller_name, &caller);
        td_scope_set(self, self->scope, &caller_name, caller);
    }
    if (node->operation && node->kind == TD_NODE_MACRO) {
        td_value dict = td_dict_make(self, TD_DICT);
        for (size_t i = 0; i < rest->n_keywords; i++)
            td_dict_set(self, dict.dict, rest->keywords[i].key, rest->keywords[i].value);
        set_named(self, "kwargs", dict);
    } else if (rest->n_keywords > 0) {
        const td_string *name = rest->keywords[0].key.string;
        td_raise(self, "macro '%.*s' takes no keyword argument '%.*s'", (int)node->name->bytes,
                 node->name->text, (int)name->bytes, name->text);
    }
    if (node->flag) {
        td_value list = td_list_make(self, TD_TUPLE, rest->count);
        for (size_t i = 0; i < rest->count; i++)
            td_list_add(self, list.list, rest->items[i]);
        set_named(self, "varargs", list);
    } else if (rest->count > 0) {
        td_raise(self, "macro '%.*s' takes not more than %zu argument(s)", (int)node->name->bytes,
                 node->name->text, node->keywords.count);
    }
}

td_value td_call_macro(td_render *self, const td_macro *macro, const td_arguments *arguments) {
    const td_node *node = macro->node;
    td_scope *outer = self->scope;
    bool was_in_loop = self->is_in_loop;
    td_arguments rest = *arguments;
    if (rest.n_keywords > 0) {
        rest.keywords = td_take(self, rest.n_keywords * sizeof *rest.keywords);
        memcpy(rest.keywords, arguments->keywords, rest.n_keywords * sizeof *rest.keywords);
    }
    td_deeper(self);
    self->scope = td_scope_push(self, macro->scope);
    self->is_in_loop = false;
    bind_parameters(self, node, &rest);
    bind_rest(self, node, &rest);
    const td_string *text = capture(self, &node->body);
    self->is_in_loop = was_in_loop;
    self->scope = outer;
    td_shallower(self);
    return td_text(text);
}

static void leave_loop(td_render *self, bool is_break) {
    if (!self->is_in_loop)
        td_raise(self, "'%s' outside of a loop", is_break ? "break" : "continue");
    self->flow = is_break ? TD_FLOW_BREAK : TD_FLOW_CONTINUE;
}

static void execute_node(td_render *self, const td_node *node) {
    switch (node->kind) {
    case TD_NODE_TEXT:
        td_emit(self, node->value.string);
        break;
    case TD_NODE_PRINT:
        td_emit(self, td_str(self, td_evaluate(self, node->a)));
        break;
    case TD_NODE_IF:
        execute_if(self, node);
        break;
    case TD_NODE_FOR:
        execute_for(self, node);
        break;
    case TD_NODE_SET:
        execute_set(self, node);
        break;
    case TD_NODE_SET_BLOCK:
        execute_set_block(self, node);
        break;
    case TD_NODE_MACRO:
        td_scope_set(self, self->scope, node->name, macro_value(self, node));
        break;
    case TD_NODE_CALL_BLOCK:
        execute_call_block(self, node);
        break;
    case TD_NODE_FILTER_BLOCK:
        execute_filter_block(self, node);
        break;
    case TD_NODE_WITH:
        execute_with(self, node);
        break;
    case TD_NODE_GENERATION:
        execute_generation(self, node);
        break;
    case TD_NODE_SCOPE:
        in_new_scope(self, &node->body);
        break;
    default:
        leave_loop(self, node->kind == TD_NODE_BREAK);
    }
}

void td_execute(td_render *self, const td_nodes *body) {
    td_deeper(self);
    for (size_t i = 0; i < body->count && self->flow == TD_FLOW_NEXT; i++) {
        td_steps(self, 1);
        self->trap.position = body->items[i]->position;
        execute_node(self, body->items[i]);
    }
    td_shallower(self);
}

void td_template_text_fini(td_template_text *text) {
    free(text->text);
    free(text->runs);
    *text = (td_template_text){0};
}

static td_text_run public_run(td_run run) {
    uint32_t tag = run.tag & ~TD_TAG_GENERATED;
    return (td_text_run){.end = run.end,
                         .message = (int)(tag >> 3) - 1,
                         .kind = (td_source_kind)(tag & 7),
                         .is_generated = (run.tag & TD_TAG_GENERATED) != 0};
}

td_status td_take_text(const td_string *string, td_template_text *out) {
    const td_run whole = {string->bytes, string->tag};
    const td_run *runs = string->n_runs ? string->runs : &whole;
    size_t n_runs = string->n_runs ? string->n_runs : string->bytes > 0;
    td_template_text text = {.bytes = string->bytes};
    text.text = malloc(string->bytes + 1);
    text.runs = malloc((n_runs + 1) * sizeof *text.runs);
    if (!text.text || !text.runs) {
        td_template_text_fini(&text);
        return td_fail(TD_ERR_MEMORY, "no memory for the text of a chat");
    }
    memcpy(text.text, string->text, string->bytes);
    text.text[string->bytes] = '\0';
    for (size_t i = 0; i < n_runs; i++)
        text.runs[text.n_runs++] = public_run(runs[i]);
    *out = text;
    return TD_OK;
}

void td_render_init(td_render *self, td_pile *pile, const char *where) {
    *pile = (td_pile){.max_bytes = TD_TEMPLATE_MAX_MEMORY_BYTES};
    *self = (td_render){.trap = {.where = where}, .pile = pile};
}

static const char *joined_where(td_render *self, const char *where) {
    td_builder text = {0};
    if (!self->prefix)
        return where;
    td_build_literal(self, &text, self->prefix);
    td_build_literal(self, &text, ": ");
    td_build(self, &text, where, strlen(where) + 1, 0);
    return text.text;
}

const td_string *td_run_template(td_render *self, const td_template *program,
                                 const td_dict *variables) {
    td_builder out = {0};
    self->trap.where = joined_where(self, program->where);
    self->trap.source = program->source;
    self->trap.source_bytes = program->source_bytes;
    self->steps = self->depth = 0;
    self->turn = 0;
    self->is_generating = self->is_in_loop = false;
    self->flow = TD_FLOW_NEXT;
    self->globals = self->scope = td_scope_push(self, NULL);
    for (size_t i = 0; i < variables->count; i++)
        td_scope_set(self, self->globals, variables->entries[i].key.string,
                     variables->entries[i].value);
    self->scope = td_scope_push(self, self->globals);
    self->out = &out;
    td_execute(self, &program->body);
    return td_built(self, &out);
}

static td_dict *read_variables(td_render *self, const char *text, size_t bytes) {
    td_value variables = td_parse_json(self, text, bytes);
    if (variables.kind != TD_DICT)
        td_raise(self, "the variables of a template must be a JSON object");
    td_dict *dict = variables.dict;
    for (size_t i = 0; i < dict->count; i++)
        if (td_string_is(dict->entries[i].key.string, "messages"))
            dict->entries[i].value = td_tag_messages(self, dict->entries[i].value);
    return dict;
}

static td_status render_or_fail(td_render *self, const td_template *program, const char *variables,
                                size_t bytes, td_template_text *out) {
    jmp_buf exit;
    self->trap.exit = &exit;
    if (setjmp(exit) != 0)
        return self->trap.status;
    const td_dict *dict = read_variables(self, variables, bytes);
    return td_take_text(td_run_template(self, program, dict), out);
}

td_status td_template_render(const td_template *program, const char *variables, size_t bytes,
                             td_template_text *out) {
    td_pile pile;
    td_render render;
    td_render_init(&render, &pile, "variables");
    td_status status = render_or_fail(&render, program, variables, bytes, out);
    td_pile_fini(&pile);
    return status;
}
