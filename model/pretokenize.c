// Pre-tokenizers: the text is split into words by a chain of stages, each splitting what the one
// before it left whole.
#include <string.h>

#include "model/tokenizer_internal.h"
#include "model/unicode.h"

typedef struct walk {
    const td_pretokenizer *pretokenizer;
    td_scratch *scratch;
    td_word_visitor visit;
    void *context;
    int full; // the text has characters that the plain patterns may not know
} walk;

static td_status run_stages(walk *w, int index, td_text text);

// Splits that a stage has found but not passed on, because the next one may be merged with it.
typedef struct splitter {
    walk *w;
    int index;
    td_text text;
    const td_stage *stage;
    size_t begin, end; // pending piece
    int is_pending, pending_is_match;
} splitter;

static td_status pass_on(splitter *s, size_t begin, size_t end) {
    return run_stages(s->w, s->index + 1, td_text_slice(s->text, begin, end));
}

static td_status flush(splitter *s) {
    if (!s->is_pending)
        return TD_OK;
    s->is_pending = 0;
    return pass_on(s, s->begin, s->end);
}

static int merges_with_pending(const splitter *s, int is_match) {
    switch (s->stage->behavior) {
    case TD_SPLIT_CONTIGUOUS:
        return is_match == s->pending_is_match;
    case TD_SPLIT_MERGED_WITH_PREVIOUS:
        return is_match && !s->pending_is_match;
    case TD_SPLIT_MERGED_WITH_NEXT:
        return !is_match && s->pending_is_match;
    default:
        return 0;
    }
}

// Pieces come in order and cover the text.
static td_status add_piece(splitter *s, size_t begin, size_t end, int is_match) {
    is_match ^= s->stage->invert;
    if (s->stage->behavior == TD_SPLIT_ISOLATED)
        return pass_on(s, begin, end);
    if (s->stage->behavior == TD_SPLIT_REMOVED)
        return is_match ? TD_OK : pass_on(s, begin, end);
    if (s->is_pending && merges_with_pending(s, is_match)) {
        s->end = end;
    } else {
        TD_TRY(flush(s));
        s->begin = begin;
        s->end = end;
        s->is_pending = 1;
    }
    s->pending_is_match = is_match;
    return TD_OK;
}

// The class of a character for TD_STAGE_RUNS; runs of 0 are no match.
static int run_class(uint32_t code) {
    if (td_unicode_is_space(code))
        return 0;
    return td_unicode_is_word(code) ? 1 : 2;
}

static int is_delimiter(const td_stage *stage, uint32_t code) {
    switch (stage->split) {
    case TD_STAGE_CODE:
        return code == stage->code;
    case TD_STAGE_SPACES:
        return td_unicode_is_space(code);
    case TD_STAGE_PUNCTUATION:
        return td_unicode_is_punctuation(code);
    default:
        return run_class(code) != 0;
    }
}

// The first matching character from `offset` on; TD_STAGE_RUNS takes all of its class with it.
static int find_characters(const td_stage *stage, td_text text, size_t offset, td_match *out) {
    size_t length;
    uint32_t code = 0;
    for (;; offset += length) {
        if (offset == text.length)
            return 0;
        code = td_utf8_decode(text.bytes + offset, &length);
        if (is_delimiter(stage, code))
            break;
    }
    *out = (td_match){offset, offset + length};
    if (stage->split != TD_STAGE_RUNS)
        return 1;
    for (int class = run_class(code); out->end < text.length; out->end += length)
        if (run_class(td_utf8_decode(text.bytes + out->end, &length)) != class)
            break;
    return 1;
}

static td_status find_split(splitter *s, size_t last_end, int has_last, int *out_found,
                            td_match *out) {
    td_scratch *scratch = s->w->scratch;
    if (s->stage->split != TD_STAGE_PATTERN) {
        *out_found = find_characters(s->stage, s->text, last_end, out);
        return TD_OK;
    }
    const td_pattern *pattern = &s->stage->pattern;
    return td_pattern_next(s->w->full ? pattern->full : pattern->plain, s->text.bytes,
                           s->text.length, last_end, has_last, scratch->matches[s->index],
                           scratch->match_context, out_found, out);
}

static td_status split(walk *w, int index, td_text text) {
    splitter s = {.w = w, .index = index, .text = text, .stage = &w->pretokenizer->stages[index]};
    size_t done = 0;
    td_match match = {0};
    for (int has_last = 0, found;; has_last = 1) {
        TD_TRY(find_split(&s, done, has_last, &found, &match));
        if (!found || match.end < match.begin || match.begin < done)
            break;
        if (done < match.begin)
            TD_TRY(add_piece(&s, done, match.begin, 0));
        TD_TRY(add_piece(&s, match.begin, match.end, 1));
        done = match.end;
    }
    if (done < text.length)
        TD_TRY(add_piece(&s, done, text.length, 0));
    return flush(&s);
}

static int begins_with(td_text text, const char *prefix) {
    size_t bytes = strlen(prefix);
    return text.length >= bytes && memcmp(text.bytes, prefix, bytes) == 0;
}

// Whether the stage prepends its prefix to the text as it is after replacing spaces.
static int wants_prefix(const td_stage *stage, td_text text) {
    if (stage->prepend == TD_PREPEND_NEVER || begins_with(text, stage->prefix))
        return 0;
    if (stage->replacement[0] && text.bytes[0] == ' ' &&
        strcmp(stage->replacement, stage->prefix) == 0)
        return 0;
    return stage->prepend == TD_PREPEND_ALWAYS || td_text_begin(text, 0) == 0;
}

// The prefix counts as part of the first character.
static td_status prepend(const td_stage *stage, td_mapped *buffer, td_text text) {
    size_t first;
    td_utf8_decode(text.bytes, &first);
    return td_mapped_append(buffer, stage->prefix, strlen(stage->prefix), td_text_begin(text, 0),
                            td_text_end(text, first));
}

static td_status replace_spaces(const td_stage *stage, td_mapped *buffer, td_text text) {
    size_t done = 0, bytes = strlen(stage->replacement);
    for (const char *space; (space = memchr(text.bytes + done, ' ', text.length - done));) {
        size_t at = (size_t)(space - text.bytes);
        TD_TRY(td_mapped_copy(buffer, text, done, at));
        TD_TRY(td_mapped_append(buffer, stage->replacement, bytes, td_text_begin(text, at),
                                td_text_end(text, at + 1)));
        done = at + 1;
    }
    return td_mapped_copy(buffer, text, done, text.length);
}

// What the stage writes before it splits. Every stage has a buffer of its own: pieces of it are in
// use further down until the next text comes.
static td_status rewrite(const td_stage *stage, td_mapped *buffer, td_text *text) {
    int prefixes = wants_prefix(stage, *text);
    int replaces = stage->replacement[0] && memchr(text->bytes, ' ', text->length);
    if (!prefixes && !replaces)
        return TD_OK;
    buffer->text.size = 0;
    if (prefixes)
        TD_TRY(prepend(stage, buffer, *text));
    TD_TRY(replaces ? replace_spaces(stage, buffer, *text)
                    : td_mapped_copy(buffer, *text, 0, text->length));
    *text = td_mapped_text(buffer);
    return TD_OK;
}

static td_status run_stages(walk *w, int index, td_text text) {
    if (text.length == 0)
        return TD_OK;
    if (index == w->pretokenizer->n_stages)
        return w->visit(w->context, text);
    const td_stage *stage = &w->pretokenizer->stages[index];
    TD_TRY(rewrite(stage, &w->scratch->staged[index], &text));
    return stage->split != TD_STAGE_WHOLE ? split(w, index, text) : run_stages(w, index + 1, text);
}

static int has_pattern(const td_pretokenizer *pretokenizer) {
    for (int i = 0; i < pretokenizer->n_stages; i++)
        if (pretokenizer->stages[i].split == TD_STAGE_PATTERN)
            return 1;
    return 0;
}

td_status td_pretokenize(const td_pretokenizer *pretokenizer, td_scratch *scratch, td_text text,
                         td_word_visitor visit, void *context) {
    walk w = {.pretokenizer = pretokenizer,
              .scratch = scratch,
              .visit = visit,
              .context = context,
              .full = has_pattern(pretokenizer) && td_unicode_has_recent(text.bytes, text.length)};
    return run_stages(&w, 0, text);
}
