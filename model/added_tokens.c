// Added tokens: found in the text before (or, when marked normalized, after) normalization, the
// leftmost first and the longest among those that begin at the same place. The details are those of
// the tokenizers library.
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer_internal.h"
#include "model/unicode.h"

void td_added_set_init(td_added_set *set) {
    *set = (td_added_set){0};
    memset(set->first, 0xff, sizeof set->first);
}

void td_added_set_fini(td_added_set *set) {
    for (size_t i = 0; i < set->n_tokens; i++)
        free(set->tokens[i].content);
    free(set->tokens);
    free(set->nodes);
    td_added_set_init(set);
}

static td_status add_node(td_added_set *set, unsigned char byte, int32_t sibling, int32_t *out) {
    TD_TRY(td_grow(&set->nodes, &set->nodes_capacity, set->n_nodes + 1, sizeof *set->nodes));
    set->nodes[set->n_nodes] =
        (td_trie_node){.child = -1, .sibling = sibling, .token = -1, .byte = byte};
    *out = (int32_t)set->n_nodes++;
    return TD_OK;
}

static int32_t find_child(const td_added_set *set, int32_t node, unsigned char byte) {
    int32_t child = set->nodes[node].child;
    while (child >= 0 && set->nodes[child].byte != byte)
        child = set->nodes[child].sibling;
    return child;
}

static td_status child_of(td_added_set *set, int32_t node, unsigned char byte, int32_t *out) {
    int32_t child = find_child(set, node, byte);
    if (child < 0) {
        TD_TRY(add_node(set, byte, set->nodes[node].child, &child));
        set->nodes[node].child = child;
    }
    *out = child;
    return TD_OK;
}

static td_status insert_content(td_added_set *set, const td_added_token *token, int32_t index) {
    unsigned char first = (unsigned char)token->content[0];
    if (set->first[first] < 0)
        TD_TRY(add_node(set, first, -1, &set->first[first]));
    int32_t node = set->first[first];
    for (size_t i = 1; i < token->bytes; i++)
        TD_TRY(child_of(set, node, (unsigned char)token->content[i], &node));
    if (set->nodes[node].token < 0)
        set->nodes[node].token = index;
    return TD_OK;
}

td_status td_added_set_add(td_added_set *set, td_added_token token) {
    td_status status =
        td_grow(&set->tokens, &set->tokens_capacity, set->n_tokens + 1, sizeof *set->tokens);
    if (status != TD_OK) {
        free(token.content);
        return status;
    }
    set->tokens[set->n_tokens] = token;
    int32_t index = (int32_t)set->n_tokens++;
    return insert_content(set, &token, index);
}

// Index of the longest token that begins at `text`, -1: none.
static int32_t longest_at(const td_added_set *set, const char *text, size_t bytes) {
    int32_t node = set->first[(unsigned char)text[0]], found = -1;
    for (size_t i = 1; node >= 0; i++) {
        if (set->nodes[node].token >= 0)
            found = set->nodes[node].token;
        if (i == bytes)
            break;
        node = find_child(set, node, (unsigned char)text[i]);
    }
    return found;
}

// Not glued to a letter, digit or underscore on either side.
static int stands_alone(const char *text, size_t bytes, size_t begin, size_t end) {
    size_t length;
    if (begin > 0 && td_unicode_is_word(td_utf8_decode_before(text, begin, &length)))
        return 0;
    return end == bytes || !td_unicode_is_word(td_utf8_decode(text + end, &length));
}

static size_t strip_left(const char *text, size_t begin, size_t floor) {
    size_t length;
    while (begin > floor && td_unicode_is_space(td_utf8_decode_before(text, begin, &length)))
        begin -= length;
    return begin;
}

static size_t strip_right(const char *text, size_t bytes, size_t end) {
    size_t length;
    while (end < bytes && td_unicode_is_space(td_utf8_decode(text + end, &length)))
        end += length;
    return end;
}

int td_added_next(const td_added_set *set, const char *text, size_t bytes, size_t *position,
                  size_t done, td_added_match *out) {
    if (set->n_tokens == 0)
        return 0;
    for (size_t i = *position; i < bytes; i++) {
        int32_t index = longest_at(set, text + i, bytes - i);
        if (index < 0)
            continue;
        const td_added_token *token = &set->tokens[index];
        size_t begin = i, end = i + token->bytes;
        // A match that must not count still uses up its text.
        if (token->single_word && !stands_alone(text, bytes, begin, end)) {
            i = end - 1;
            continue;
        }
        *position = end;
        if (token->lstrip)
            begin = begin > done ? strip_left(text, begin, done) : done;
        if (token->rstrip)
            end = strip_right(text, bytes, end);
        *out = (td_added_match){.begin = begin < end ? begin : end, .end = end, .id = token->id};
        return 1;
    }
    *position = bytes;
    return 0;
}
