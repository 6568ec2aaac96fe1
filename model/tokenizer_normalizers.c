// Normalizers: a chain of steps, each reading what the one before it wrote.
#define _GNU_SOURCE // memmem
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer_internal.h"
#include "model/unicode.h"
#include "runtime/core/json.h"

// Appends bytes [*done, begin) unchanged and `content` for [begin, end), or nothing for NULL.
static td_status replace_span(td_mapped *out, td_text text, size_t *done, size_t begin, size_t end,
                              const char *content) {
    TD_TRY(td_mapped_copy(out, text, *done, begin));
    *done = end;
    if (!content)
        return TD_OK;
    uint32_t to = end > begin ? td_text_end(text, end)
                  : begin > 0 ? td_text_end(text, begin)
                              : td_text_begin(text, 0);
    uint32_t from = end > begin ? td_text_begin(text, begin) : to;
    return td_mapped_append(out, content, strlen(content), from, to);
}

// Each step writes to `out` and sets *out_text when the text changes.
static td_status finish(td_mapped *out, td_text text, size_t done, int changed, td_text *out_text) {
    if (!changed)
        return TD_OK;
    TD_TRY(td_mapped_copy(out, text, done, text.length));
    *out_text = td_mapped_text(out);
    return TD_OK;
}

static td_status lowercase(td_mapped *out, td_text text, td_text *out_text) {
    size_t done = 0;
    int changed = 0;
    for (size_t i = 0, length; i < text.length; i += length) {
        uint32_t code = td_utf8_decode(text.bytes + i, &length), lower[2];
        int n = td_unicode_lower(code, lower);
        if (n == 1 && lower[0] == code)
            continue;
        char written[9];
        size_t bytes = td_utf8_encode(lower[0], written);
        if (n == 2)
            bytes += td_utf8_encode(lower[1], written + bytes);
        written[bytes] = '\0';
        TD_TRY(replace_span(out, text, &done, i, i + length, written));
        changed = 1;
    }
    return finish(out, text, done, changed, out_text);
}

static td_status strip_accents(td_mapped *out, td_text text, td_text *out_text) {
    size_t done = 0;
    int changed = 0;
    for (size_t i = 0, length; i < text.length; i += length) {
        length = 1;
        if ((unsigned char)text.bytes[i] < 0xcc)
            continue;
        if (!td_unicode_is_accent(td_utf8_decode(text.bytes + i, &length)))
            continue;
        TD_TRY(replace_span(out, text, &done, i, i + length, NULL));
        changed = 1;
    }
    return finish(out, text, done, changed, out_text);
}

// Stripped text is a part of the text; nothing is written.
static void strip(const td_normalizer_step *step, td_text text, td_text *out_text) {
    size_t begin = 0, end = text.length, length;
    while (step->left && begin < end &&
           td_unicode_is_space(td_utf8_decode(text.bytes + begin, &length)))
        begin += length;
    while (step->right && end > begin &&
           td_unicode_is_space(td_utf8_decode_before(text.bytes, end, &length)))
        end -= length;
    *out_text = td_text_slice(text, begin, end);
}

static td_status replace_literal(const td_normalizer_step *step, td_mapped *out, td_text text,
                                 td_text *out_text) {
    size_t done = 0, bytes = strlen(step->literal);
    int changed = 0;
    for (const char *at;
         (at = memmem(text.bytes + done, text.length - done, step->literal, bytes));) {
        size_t begin = (size_t)(at - text.bytes);
        TD_TRY(replace_span(out, text, &done, begin, begin + bytes, step->content));
        changed = 1;
    }
    return finish(out, text, done, changed, out_text);
}

static td_status replace_pattern(const td_normalizer_step *step, td_scratch *scratch,
                                 td_mapped *out, td_text text, td_text *out_text) {
    int full = td_unicode_has_recent(text.bytes, text.length), found = 1, changed = 0;
    size_t done = 0;
    for (;; changed = 1) {
        td_match match;
        TD_TRY(td_pattern_next(full ? step->pattern.full : step->pattern.plain, text.bytes,
                               text.length, done, changed, scratch->replace_match,
                               scratch->match_context, &found, &match));
        if (!found || match.end < match.begin || match.begin < done)
            break;
        TD_TRY(replace_span(out, text, &done, match.begin, match.end, step->content));
    }
    return finish(out, text, done, changed, out_text);
}

// The prefix counts as part of the first character; nothing is put in front of no text.
static td_status prepend(const td_normalizer_step *step, td_mapped *out, td_text text,
                         td_text *out_text) {
    size_t first;
    if (text.length == 0 || !step->content[0])
        return TD_OK;
    td_utf8_decode(text.bytes, &first);
    TD_TRY(td_mapped_append(out, step->content, strlen(step->content), td_text_begin(text, 0),
                            td_text_end(text, first)));
    return finish(out, text, 0, 1, out_text);
}

static td_status run_step(const td_normalizer_step *step, td_scratch *scratch, td_mapped *out,
                          td_text text, td_text *out_text) {
    out->text.size = 0;
    *out_text = text;
    switch (step->kind) {
    case TD_NORMALIZER_FORM:
        return td_normalize_form(step->form, scratch, text, out, out_text);
    case TD_NORMALIZER_LOWERCASE:
        return lowercase(out, text, out_text);
    case TD_NORMALIZER_STRIP:
        strip(step, text, out_text);
        return TD_OK;
    case TD_NORMALIZER_STRIP_ACCENTS:
        return strip_accents(out, text, out_text);
    case TD_NORMALIZER_REPLACE:
        return step->literal ? replace_literal(step, out, text, out_text)
                             : replace_pattern(step, scratch, out, text, out_text);
    default:
        return prepend(step, out, text, out_text);
    }
}

td_status td_normalize(const td_normalizer *normalizer, td_scratch *scratch, td_text text,
                       td_text *out) {
    int next = 0; // the buffer that does not hold the text
    for (int i = 0; i < normalizer->n_steps; i++) {
        td_mapped *buffer = &scratch->normalized[next];
        td_text written;
        TD_TRY(run_step(&normalizer->steps[i], scratch, buffer, text, &written));
        if (buffer->text.data && written.bytes == buffer->text.data)
            next = !next;
        text = written;
    }
    *out = text;
    return TD_OK;
}

static td_status copy_string(const char *where, const char *text, char **out) {
    *out = strdup(text);
    return *out ? TD_OK : td_fail(TD_ERR_MEMORY, "%s: no memory for the normalizer", where);
}

static td_status load_replace(td_normalizer_step *step, const char *where, const cJSON *config) {
    const cJSON *pattern = cJSON_GetObjectItemCaseSensitive(config, "pattern");
    const char *regex = NULL, *literal = NULL, *content = NULL;
    TD_TRY(td_json_string(where, config, "content", &content));
    if (cJSON_IsObject(pattern)) {
        TD_TRY(td_json_string(where, pattern, "Regex", &regex));
        TD_TRY(td_json_string(where, pattern, "String", &literal));
    }
    if (!content || !regex == !literal || (literal && !literal[0]))
        return td_fail(TD_ERR_DATA,
                       "%s: normalizer Replace needs a content and a Regex or a String pattern",
                       where);
    TD_TRY(copy_string(where, content, &step->content));
    return regex ? td_pattern_compile(where, regex, &step->pattern)
                 : copy_string(where, literal, &step->literal);
}

static td_status load_prepend(td_normalizer_step *step, const char *where, const cJSON *config) {
    const char *text = NULL;
    TD_TRY(td_json_string(where, config, "prepend", &text));
    if (!text)
        return td_fail(TD_ERR_DATA, "%s: normalizer Prepend has no \"prepend\"", where);
    return copy_string(where, text, &step->content);
}

static td_status load_strip(td_normalizer_step *step, const char *where, const cJSON *config) {
    TD_TRY(td_json_bool(where, config, "strip_left", &step->left));
    return td_json_bool(where, config, "strip_right", &step->right);
}

static td_status load_nothing(td_normalizer_step *step, const char *where, const cJSON *config) {
    (void)step, (void)where, (void)config;
    return TD_OK;
}

static const struct {
    const char *type;
    td_normalizer_step step;
    td_status (*load)(td_normalizer_step *, const char *, const cJSON *);
} kinds[] = {
    {"NFC", {.kind = TD_NORMALIZER_FORM, .form = TD_NFC}, load_nothing},
    {"NFD", {.kind = TD_NORMALIZER_FORM, .form = TD_NFD}, load_nothing},
    {"NFKC", {.kind = TD_NORMALIZER_FORM, .form = TD_NFKC}, load_nothing},
    {"NFKD", {.kind = TD_NORMALIZER_FORM, .form = TD_NFKD}, load_nothing},
    {"Lowercase", {.kind = TD_NORMALIZER_LOWERCASE}, load_nothing},
    {"Strip", {.kind = TD_NORMALIZER_STRIP, .left = 1, .right = 1}, load_strip},
    {"StripAccents", {.kind = TD_NORMALIZER_STRIP_ACCENTS}, load_nothing},
    {"Replace", {.kind = TD_NORMALIZER_REPLACE}, load_replace},
    {"Prepend", {.kind = TD_NORMALIZER_PREPEND}, load_prepend},
};

static td_status add_step(td_normalizer *normalizer, const char *where, const char *type,
                          const cJSON *config) {
    if (normalizer->n_steps == TD_NORMALIZER_MAX_STEPS)
        return td_fail(TD_ERR_DATA, "%s: more than %d normalizers in sequence", where,
                       TD_NORMALIZER_MAX_STEPS);
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strcmp(type, kinds[i].type) == 0) {
            td_normalizer_step *step = &normalizer->steps[normalizer->n_steps++];
            *step = kinds[i].step;
            return kinds[i].load(step, where, config);
        }
    if (strcmp(type, "Precompiled") == 0)
        return td_fail(TD_ERR_DATA,
                       "%s: normalizer Precompiled (SentencePiece's own character table) is not "
                       "supported; it belongs to Unigram tokenizers, which are out of scope",
                       where);
    return td_fail_component(where, "normalizer", type,
                             "Lowercase, NFC, NFD, NFKC, NFKD, Prepend, Replace, Sequence, Strip, "
                             "StripAccents");
}

td_status td_normalizer_init(td_normalizer *normalizer, const char *where, const cJSON *config) {
    const char *type;
    TD_TRY(td_component_type(where, "normalizer", config, &type));
    if (!type)
        return TD_OK;
    if (strcmp(type, "Sequence") != 0)
        return add_step(normalizer, where, type, config);
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(config, "normalizers");
    if (!cJSON_IsArray(list))
        return td_fail(TD_ERR_DATA, "%s: normalizer Sequence has no list of normalizers", where);
    for (const cJSON *item = list->child; item; item = item->next)
        TD_TRY(td_normalizer_init(normalizer, where, item));
    return TD_OK;
}

void td_normalizer_fini(td_normalizer *normalizer) {
    for (int i = 0; i < normalizer->n_steps; i++) {
        td_pattern_fini(&normalizer->steps[i].pattern);
        free(normalizer->steps[i].literal);
        free(normalizer->steps[i].content);
    }
    normalizer->n_steps = 0;
}
