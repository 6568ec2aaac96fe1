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

// The first match from `offset` on; *out_found 0: none.
static td_status find_match(splitter *s, size_t offset, int *out_found, size_t *out_begin,
                            size_t *out_end) {
    const td_pattern *pattern = &s->stage->pattern;
    pcre2_match_data *data = s->w->scratch->matches[s->index];
    int rc =
        pcre2_match(s->w->full ? pattern->full : pattern->plain, (PCRE2_SPTR)s->text.bytes,
                    s->text.length, offset, PCRE2_NO_UTF_CHECK, data, s->w->scratch->match_context);
    *out_found = rc >= 0;
    if (rc < 0 && rc != PCRE2_ERROR_NOMATCH) {
        PCRE2_UCHAR message[128];
        pcre2_get_error_message(rc, message, sizeof message);
        return td_fail(TD_ERR_DATA, "the tokenizer's pattern fails on this text: %s",
                       (const char *)message);
    }
    if (rc >= 0) {
        const PCRE2_SIZE *bounds = pcre2_get_ovector_pointer(data);
        *out_begin = bounds[0];
        *out_end = bounds[1];
    }
    return TD_OK;
}

// An empty match right where the last one ended is passed over, as the tokenizers library's
// iterator does.
static td_status find_split(splitter *s, size_t last_end, int has_last, int *out_found,
                            size_t *out_begin, size_t *out_end) {
    size_t offset = last_end;
    for (;;) {
        *out_found = 0;
        if (offset > s->text.length)
            return TD_OK;
        TD_TRY(find_match(s, offset, out_found, out_begin, out_end));
        if (!*out_found || *out_end > *out_begin || !has_last || *out_end != last_end)
            return TD_OK;
        size_t length = 1;
        if (offset < s->text.length)
            td_utf8_decode(s->text.bytes + offset, &length);
        offset += length;
    }
}

static td_status split(walk *w, int index, td_text text) {
    splitter s = {.w = w, .index = index, .text = text, .stage = &w->pretokenizer->stages[index]};
    size_t done = 0, begin = 0, end = 0;
    for (int has_last = 0, found;; has_last = 1) {
        TD_TRY(find_split(&s, done, has_last, &found, &begin, &end));
        if (!found || end < begin || begin < done)
            break;
        if (done < begin)
            TD_TRY(add_piece(&s, done, begin, 0));
        TD_TRY(add_piece(&s, begin, end, 1));
        done = end;
    }
    if (done < text.length)
        TD_TRY(add_piece(&s, done, text.length, 0));
    return flush(&s);
}

// A copy with a space in front that counts as part of the first character.
static td_status prefix_space(td_scratch *scratch, td_text text, td_text *out) {
    size_t length = text.length + 1, first;
    td_utf8_decode(text.bytes, &first);
    scratch->prefixed.size = 0;
    TD_TRY(td_bytes_append(&scratch->prefixed, " ", 1));
    TD_TRY(td_bytes_append(&scratch->prefixed, text.bytes, text.length));
    TD_TRY(td_grow(&scratch->prefixed_begins, &scratch->prefixed_begins_capacity, length,
                   sizeof *scratch->prefixed_begins));
    TD_TRY(td_grow(&scratch->prefixed_ends, &scratch->prefixed_ends_capacity, length,
                   sizeof *scratch->prefixed_ends));
    scratch->prefixed_begins[0] = td_text_begin(text, 0);
    scratch->prefixed_ends[0] = td_text_end(text, first);
    for (size_t i = 0; i < text.length; i++) {
        scratch->prefixed_begins[i + 1] = td_text_begin(text, i);
        scratch->prefixed_ends[i + 1] = td_text_end(text, i + 1);
    }
    *out = (td_text){.bytes = scratch->prefixed.data,
                     .length = length,
                     .begins = scratch->prefixed_begins,
                     .ends = scratch->prefixed_ends};
    return TD_OK;
}

static td_status run_stages(walk *w, int index, td_text text) {
    if (text.length == 0)
        return TD_OK;
    if (index == w->pretokenizer->n_stages)
        return w->visit(w->context, text);
    const td_stage *stage = &w->pretokenizer->stages[index];
    // Only the last stage does this, so the one buffer is free again when the next piece comes.
    if (stage->add_prefix_space && text.bytes[0] != ' ')
        TD_TRY(prefix_space(w->scratch, text, &text));
    return stage->has_pattern ? split(w, index, text) : run_stages(w, index + 1, text);
}

td_status td_pretokenize(const td_pretokenizer *pretokenizer, td_scratch *scratch, td_text text,
                         td_word_visitor visit, void *context) {
    walk w = {.pretokenizer = pretokenizer,
              .scratch = scratch,
              .visit = visit,
              .context = context,
              .full = td_unicode_has_recent(text.bytes, text.length)};
    return run_stages(&w, 0, text);
}
