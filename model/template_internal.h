// Inside the template interpreter: values, strings with sources, the syntax tree, one rendering.
//
// Memory comes from an arena that one compilation or one rendering owns and that is freed as a
// whole, so failures leave by longjmp to the two public functions: nothing in between holds
// anything else.
#ifndef TANDEM_MODEL_TEMPLATE_INTERNAL_H
#define TANDEM_MODEL_TEMPLATE_INTERNAL_H

#include <setjmp.h>
#include <stdbool.h>
#include <stddef.h>

#include "model/template.h"

// Chunks that are only ever freed together.
typedef struct td_pile_chunk {
    struct td_pile_chunk *next;
    size_t used, capacity;
    _Alignas(16) char bytes[];
} td_pile_chunk;

typedef struct td_pile {
    td_pile_chunk *chunks;
    size_t total_bytes, max_bytes;
} td_pile;
void td_pile_fini(td_pile *pile);

// Where a failure goes. `source` and `position` give line and column.
typedef struct td_trap {
    jmp_buf *exit;
    td_status status;
    const char *where;
    const char *source; // NULL: messages carry no line
    size_t source_bytes;
    uint32_t position;
} td_trap;

typedef enum td_value_kind {
    TD_UNDEFINED,
    TD_NONE,
    TD_BOOL,
    TD_INT,
    TD_FLOAT,
    TD_STRING,
    TD_LIST,
    TD_TUPLE,
    TD_DICT,
    TD_RANGE,
    TD_VIEW,      // keys(), values() or items() of a dict
    TD_ITERATOR,  // what filters such as select give: goes through its items once
    TD_NAMESPACE, // of the template: the one thing that can be assigned to
    TD_FUNCTION,
    TD_MACRO,
    TD_LOOP,
} td_value_kind;

typedef struct td_string td_string;
typedef struct td_list td_list;
typedef struct td_dict td_dict;
typedef struct td_function td_function;
typedef struct td_macro td_macro;
typedef struct td_loop td_loop;
typedef struct td_range td_range;
typedef struct td_missing td_missing;

typedef struct td_value {
    td_value_kind kind;
    union {
        bool truth;
        int64_t integer;
        double real;
        const td_string *string;
        td_list *list; // list, tuple, view, iterator
        td_dict *dict; // dict, namespace
        const td_range *range;
        const td_function *function;
        const td_macro *macro;
        td_loop *loop;
        const td_missing *missing; // or NULL
    };
} td_value;

// Source of text: 0 is the template's own or unknown.
enum { TD_TAG_GENERATED = 1u << 31 };
static inline uint32_t td_tag(int message, td_source_kind kind) {
    return ((uint32_t)message + 1) << 3 | (uint32_t)kind;
}

typedef struct td_run {
    uint32_t end, tag;
} td_run;

struct td_string {
    const char *text; // UTF-8, not terminated
    uint32_t bytes, chars;
    uint32_t tag;       // of all of it, unless there are runs
    uint32_t n_runs;    // 0 or at least 2
    const td_run *runs; // (n_runs)
};

struct td_list {
    td_value *items;              // (count)
    size_t count, capacity, next; // next: of an iterator
    const char *name;             // of a view: "dict_items"
};

typedef struct td_entry {
    td_value key, value;
} td_entry;

// In order of insertion.
struct td_dict {
    td_entry *entries; // (count)
    size_t count, capacity;
    int message; // index in `messages`, -1: it is not one
};

struct td_range {
    int64_t begin, end, step, count; // end: as it was given, for repr
};

// What an undefined value was looked for as.
struct td_missing {
    const char *text; // the message of using it
};

typedef enum td_node_kind {
    TD_NODE_CONST,
    TD_NODE_NAME,
    TD_NODE_LIST,
    TD_NODE_TUPLE,
    TD_NODE_DICT, // list: key, value, key, value ...
    TD_NODE_ATTRIBUTE,
    TD_NODE_ITEM,
    TD_NODE_SLICE, // only as b of an item
    TD_NODE_CALL,
    TD_NODE_FILTER, // a is NULL: of what a block holds
    TD_NODE_TEST,
    TD_NODE_NOT,
    TD_NODE_NEGATE,
    TD_NODE_PLUS,
    TD_NODE_BINARY,
    TD_NODE_COMPARE, // a, then list of operands
    TD_NODE_OPERAND,
    TD_NODE_AND,
    TD_NODE_OR,
    TD_NODE_CONCAT,
    TD_NODE_CONDITION, // b if a else c
    TD_NODE_NAMESPACE_REF,
    TD_NODE_KEYWORD,
    TD_NODE_TEXT,
    TD_NODE_PRINT,
    TD_NODE_IF,  // a, body, other
    TD_NODE_FOR, // target a in b if c, body, other
    TD_NODE_SET,
    TD_NODE_SET_BLOCK, // target a, filter b or NULL, body
    TD_NODE_MACRO,
    TD_NODE_CALL_BLOCK, // call a, body, parameters
    TD_NODE_FILTER_BLOCK,
    TD_NODE_WITH, // list: sets, body
    TD_NODE_BREAK,
    TD_NODE_CONTINUE,
    TD_NODE_GENERATION,
    TD_NODE_SCOPE,
} td_node_kind;

typedef struct td_node td_node;
typedef struct td_nodes {
    td_node **items; // (count)
    size_t count, capacity;
} td_nodes;

struct td_node {
    td_node_kind kind;
    int operation; // token type of a binary operation or comparison
    uint32_t position;
    bool flag; // recursive loop; macro that uses varargs or kwargs
    const td_string *name;
    td_value value;
    td_node *a, *b, *c, *d; // d: **kwargs of a call, whose c is *args
    td_nodes list, keywords, body, other;
};

struct td_template {
    char *where, *source;
    size_t source_bytes;
    td_pile pile;
    td_nodes body;
    bool has_generation; // {% generation %} anywhere
    td_nodes literals;   // text outside of tags, and strings in them
};

// Variables of one scope; a name is compared by pointer first (the parser interns names).
typedef struct td_scope {
    struct td_scope *parent;
    struct td_variable {
        const td_string *name;
        td_value value;
    } * variables;
    size_t count, capacity;
} td_scope;

struct td_macro {
    const td_node *node; // macro, or call block for a caller
    td_scope *scope;
};

struct td_loop {
    td_list *items;
    size_t index, depth;
    const td_node *node; // of a recursive loop, or NULL
    td_scope *scope;
    td_value changed;
    bool has_changed;
};

// Text that grows, with its runs.
typedef struct td_builder {
    char *text;
    size_t bytes, capacity;
    td_run *runs;
    size_t n_runs, runs_capacity;
} td_builder;

typedef struct td_render {
    td_trap trap; // first: td_raise() takes either
    td_pile *pile;
    size_t steps, depth;
    td_scope *scope, *globals;
    td_builder *out;
    uint32_t turn;      // tag of template text that is written now
    bool is_generating; // inside {% generation %}
    bool is_in_loop;
    bool has_owner;     // the innermost loop goes through messages, or took one already
    const char *prefix; // begins messages of the template, or NULL
    enum { TD_FLOW_NEXT, TD_FLOW_BREAK, TD_FLOW_CONTINUE } flow;
} td_render;

typedef struct td_arguments {
    td_value *items; // (count)
    size_t count;
    td_entry *keywords; // (n_keywords), keys are strings
    size_t n_keywords;
} td_arguments;

typedef td_value (*td_builtin)(td_render *self, td_value base, const td_arguments *arguments);
typedef struct td_builtin_entry {
    const char *name;
    td_builtin call;
} td_builtin_entry;

struct td_function {
    const char *name;
    td_builtin call;
    td_value base;
};

_Noreturn void td_raise_status(td_trap *trap, td_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
#define td_raise(self, ...) td_raise_status(&(self)->trap, TD_ERR_DATA, __VA_ARGS__)
void *td_pile_take(td_pile *pile, td_trap *trap, size_t bytes);
void *td_take(td_render *self, size_t bytes);
void td_steps(td_render *self, size_t count);
void td_deeper(td_render *self);
static inline void td_shallower(td_render *self) {
    self->depth--;
}

uint32_t td_count_chars(const char *text, size_t bytes);
const td_string *td_string_make(td_render *self, const char *text, size_t bytes, uint32_t tag);
const td_string *td_string_literal(td_render *self, const char *text);
// Bytes [begin, end), with the sources.
const td_string *td_string_cut(td_render *self, const td_string *string, size_t begin, size_t end);
size_t td_string_offset(const td_string *string, size_t character);
bool td_string_equal(const td_string *a, const td_string *b);
bool td_string_is(const td_string *a, const char *text);
int td_string_compare(const td_string *a, const td_string *b);
// Offset from `from` on; SIZE_MAX: not there.
size_t td_string_find(td_render *self, const td_string *text, const td_string *part, size_t from);
size_t td_string_find_last(td_render *self, const td_string *text, const td_string *part);
uint32_t td_tag_at(const td_string *string, size_t offset, size_t *out_end);

void td_build(td_render *self, td_builder *out, const char *text, size_t bytes, uint32_t tag);
void td_build_literal(td_render *self, td_builder *out, const char *text);
void td_build_string(td_render *self, td_builder *out, const td_string *string);
void td_build_cut(td_render *self, td_builder *out, const td_string *string, size_t begin,
                  size_t end);
void td_build_code(td_render *self, td_builder *out, uint32_t code, uint32_t tag);
void td_build_repeated(td_render *self, td_builder *out, const td_string *text, int64_t count);
const td_string *td_built(td_render *self, const td_builder *builder);

static inline td_value td_none(void) {
    return (td_value){.kind = TD_NONE};
}
static inline td_value td_bool(bool truth) {
    return (td_value){.kind = TD_BOOL, .truth = truth};
}
static inline td_value td_int(int64_t integer) {
    return (td_value){.kind = TD_INT, .integer = integer};
}
static inline td_value td_float(double real) {
    return (td_value){.kind = TD_FLOAT, .real = real};
}
static inline td_value td_text(const td_string *string) {
    return (td_value){.kind = TD_STRING, .string = string};
}
td_value td_undefined(td_render *self, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
td_value td_list_make(td_render *self, td_value_kind kind, size_t capacity);
void td_list_add(td_render *self, td_list *list, td_value value);
td_value td_pair(td_render *self, td_value first, td_value second);
td_value td_dict_make(td_render *self, td_value_kind kind);
void td_dict_set(td_render *self, td_dict *dict, td_value key, td_value value);
const td_value *td_dict_find(td_render *self, const td_dict *dict, td_value key);
const td_value *td_dict_get(const td_dict *dict, const char *key);
// A list of what iterating gives: of a list or tuple itself. Raises for what cannot be iterated.
td_list *td_items(td_render *self, td_value value);
bool td_is_iterable(td_value value);
bool td_has_length(td_value value);
int64_t td_length(td_render *self, td_value value);
const char *td_type_name(td_value value);
bool td_truth(td_value value);
bool td_is_number(td_value value); // int, float or bool
double td_real(td_value value);
bool td_equal(td_render *self, td_value a, td_value b);
// Below 0, 0 or above; raises for values without an order. `operation` names it in the message.
int td_order(td_render *self, td_value a, td_value b, const char *operation);
bool td_contains(td_render *self, td_value container, td_value item);
void td_check_hashable(td_render *self, td_value key);

// Python's str() and repr().
const td_string *td_str(td_render *self, td_value value);
void td_build_str(td_render *self, td_builder *out, td_value value);
void td_build_repr(td_render *self, td_builder *out, td_value value);
size_t td_format_float(double real, char out[40]);
// "format" % value, and "format".format(...)
td_value td_percent_format(td_render *self, const td_string *format, td_value values,
                           const td_arguments *keywords);
td_value td_brace_format(td_render *self, td_value base, const td_arguments *arguments);

bool td_is_space(uint32_t code); // as str.isspace()
const td_string *td_strip(td_render *self, const td_string *text, const td_string *set, bool left,
                          bool right);
const td_string *td_case(td_render *self, const td_string *text, bool upper);
const td_string *td_capitalize(td_render *self, const td_string *text);
const td_string *td_replace(td_render *self, const td_string *text, const td_string *from,
                            const td_string *to, int64_t limit);
td_list *td_split_lines(td_render *self, const td_string *text, bool keep_ends);
bool td_parse_int(const td_string *text, int base, int64_t *out);
bool td_parse_float(const td_string *text, double *out);

td_value td_evaluate(td_render *self, const td_node *node);
td_value td_attribute(td_render *self, td_value base, const td_string *name);
td_value td_item(td_render *self, td_value base, td_value key);
td_value td_slice(td_render *self, td_value base, td_value begin, td_value end, td_value step);
td_value td_call(td_render *self, td_value callable, const td_arguments *arguments);
td_value td_call_filter(td_render *self, const td_string *name, td_value base,
                        const td_arguments *arguments);
bool td_call_test(td_render *self, const td_string *name, td_value base,
                  const td_arguments *arguments);
td_value td_apply_filters(td_render *self, const td_node *filter, td_value base);
td_arguments td_evaluate_arguments(td_render *self, const td_node *node);
td_value td_binary(td_render *self, int operation, td_value a, td_value b);

// Python's binding of arguments to parameters; a value that is not given keeps what *out holds.
void td_bind(td_render *self, const char *function, const td_arguments *arguments,
             const char *const *names, size_t count, td_value *out);
int64_t td_as_int(td_render *self, const char *function, td_value value);
const td_string *td_as_string(td_render *self, const char *function, td_value value);

void td_execute(td_render *self, const td_nodes *body);
void td_emit(td_render *self, const td_string *text);
td_value td_call_macro(td_render *self, const td_macro *macro, const td_arguments *arguments);
td_value td_call_loop(td_render *self, const td_loop *loop, const td_arguments *arguments);
td_scope *td_scope_push(td_render *self, td_scope *parent);
void td_scope_set(td_render *self, td_scope *scope, const td_string *name, td_value value);
const td_value *td_scope_find(const td_scope *scope, const td_string *name);

// `where` begins the messages of reading data; those of the template name its own.
void td_render_init(td_render *self, td_pile *pile, const char *where);
const td_string *td_run_template(td_render *self, const td_template *program,
                                 const td_dict *variables);
td_status td_take_text(const td_string *string, td_template_text *out);

// Tables of builtins; NULL: there is none of that name.
td_builtin td_find_builtin(const td_builtin_entry *table, size_t count, const td_string *name);
td_builtin td_find_filter(const td_string *name);
td_builtin td_find_list_filter(const td_string *name);
td_builtin td_find_test(const td_string *name);
td_builtin td_find_global(const td_string *name);
// Methods of a value's type. *out_is_unsafe: there is one, and the sandbox forbids it.
const td_builtin_entry *td_find_method(td_value base, const td_string *name, bool *out_is_unsafe);
td_value td_tojson(td_render *self, td_value base, const td_arguments *arguments);

typedef enum td_token_kind {
    TD_TOKEN_END,
    TD_TOKEN_DATA,
    TD_TOKEN_PRINT_BEGIN,
    TD_TOKEN_PRINT_END,
    TD_TOKEN_BLOCK_BEGIN,
    TD_TOKEN_BLOCK_END,
    TD_TOKEN_NAME,
    TD_TOKEN_STRING,
    TD_TOKEN_INTEGER,
    TD_TOKEN_FLOAT,
    TD_TOKEN_ADD,
    TD_TOKEN_SUBTRACT,
    TD_TOKEN_DIVIDE,
    TD_TOKEN_FLOOR_DIVIDE,
    TD_TOKEN_MULTIPLY,
    TD_TOKEN_MODULO,
    TD_TOKEN_POWER,
    TD_TOKEN_TILDE,
    TD_TOKEN_LEFT_BRACKET,
    TD_TOKEN_RIGHT_BRACKET,
    TD_TOKEN_LEFT_PAREN,
    TD_TOKEN_RIGHT_PAREN,
    TD_TOKEN_LEFT_BRACE,
    TD_TOKEN_RIGHT_BRACE,
    TD_TOKEN_EQUAL,
    TD_TOKEN_NOT_EQUAL,
    TD_TOKEN_GREATER,
    TD_TOKEN_GREATER_EQUAL,
    TD_TOKEN_LESS,
    TD_TOKEN_LESS_EQUAL,
    TD_TOKEN_ASSIGN,
    TD_TOKEN_DOT,
    TD_TOKEN_COLON,
    TD_TOKEN_PIPE,
    TD_TOKEN_COMMA,
    TD_TOKEN_SEMICOLON,
    TD_TOKEN_IN, // of comparisons
    TD_TOKEN_NOT_IN,
} td_token_kind;

typedef struct td_token {
    td_token_kind kind;
    uint32_t position;
    const char *text; // of a name or of data
    uint32_t bytes;
    td_value value; // of a constant
} td_token;

// A compilation reads tokens through a window of two.
typedef struct td_parser {
    td_render render; // for memory, failures and strings
    const char *source;
    size_t bytes, at;
    enum { TD_LEX_TEXT, TD_LEX_BLOCK, TD_LEX_PRINT } state;
    bool is_raw;
    char open[TD_TEMPLATE_MAX_DEPTH];
    size_t n_open;
    td_token current, ahead;
    bool has_ahead;
    const td_string **names; // interned
    size_t n_names, names_capacity;
    const char *tag; // name of the innermost statement, for messages
    bool has_generation;
    td_nodes literals;
} td_parser;

td_token td_lex(td_parser *self);
void td_next(td_parser *self);
const td_token *td_look(td_parser *self);
bool td_at(const td_parser *self, td_token_kind kind);
bool td_at_name(const td_parser *self, const char *name);
bool td_skip(td_parser *self, td_token_kind kind);
bool td_skip_name(td_parser *self, const char *name);
void td_expect(td_parser *self, td_token_kind kind);
const td_string *td_expect_name(td_parser *self);
const char *td_describe(td_parser *self, const td_token *token);
const td_string *td_intern(td_parser *self, const char *text, size_t bytes);
td_node *td_node_make(td_parser *self, td_node_kind kind);
void td_nodes_add(td_parser *self, td_nodes *nodes, td_node *node);

td_node *td_parse_expression(td_parser *self, bool with_condition);
// end: a name that ends a tuple, or NULL
td_node *td_parse_tuple(td_parser *self, bool with_condition, const char *end, bool in_parens);
td_node *td_parse_target(td_parser *self, bool with_namespace, const char *end);
td_node *td_parse_filter(td_parser *self, td_node *base, bool is_inline);
void td_parse_body(td_parser *self, td_nodes *out);

// JSON text as values in the rendering's memory; messages begin with trap.where.
td_value td_parse_json(td_render *self, const char *text, size_t bytes);
// Marks the messages of a list, and the strings in them, as sources.
td_value td_tag_messages(td_render *self, td_value messages);

#endif
