// Loading of pre-tokenizers.
#include <string.h>

#include "model/tokenizer_internal.h"
#include "model/unicode.h"
#include "runtime/core/json.h"

// The split that GPT-2 made before byte-level BPE; "use_regex" of the ByteLevel pre-tokenizer.
static const char byte_level_regex[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+|"
                                       " ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

static td_status add_byte_level(td_stage *stage, const char *where, const cJSON *config) {
    int use_regex = 1;
    int add_prefix_space = 1;
    stage->behavior = TD_SPLIT_ISOLATED;
    TD_TRY(td_json_bool(where, config, "add_prefix_space", &add_prefix_space));
    TD_TRY(td_json_bool(where, config, "use_regex", &use_regex));
    stage->prepend = add_prefix_space ? TD_PREPEND_ALWAYS : TD_PREPEND_NEVER;
    strcpy(stage->prefix, " ");
    if (!use_regex)
        return TD_OK;
    stage->split = TD_STAGE_PATTERN;
    return td_pattern_compile(where, byte_level_regex, &stage->pattern);
}

static td_status read_behavior(const char *where, const cJSON *config, const char *otherwise,
                               td_split_behavior *out) {
    static const char *const names[] = {
        [TD_SPLIT_REMOVED] = "Removed",
        [TD_SPLIT_ISOLATED] = "Isolated",
        [TD_SPLIT_MERGED_WITH_PREVIOUS] = "MergedWithPrevious",
        [TD_SPLIT_MERGED_WITH_NEXT] = "MergedWithNext",
        [TD_SPLIT_CONTIGUOUS] = "Contiguous",
    };
    const char *name = otherwise;
    if (config)
        TD_TRY(td_json_string(where, config, "behavior", &name));
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(name, names[i]) == 0) {
            *out = (td_split_behavior)i;
            return TD_OK;
        }
    return td_fail(TD_ERR_DATA, "%s: pre_tokenizer has an unknown behavior \"%.40s\"", where, name);
}

static td_status add_split(td_stage *stage, const char *where, const cJSON *config) {
    const cJSON *pattern = cJSON_GetObjectItemCaseSensitive(config, "pattern");
    const char *regex = NULL, *literal = NULL;
    if (!cJSON_IsObject(pattern))
        return td_fail(TD_ERR_DATA, "%s: pre_tokenizer Split has no pattern object", where);
    TD_TRY(read_behavior(where, config, "", &stage->behavior));
    TD_TRY(td_json_bool(where, config, "invert", &stage->invert));
    TD_TRY(td_json_string(where, pattern, "Regex", &regex));
    TD_TRY(td_json_string(where, pattern, "String", &literal));
    if (!regex == !literal)
        return td_fail(TD_ERR_DATA, "%s: pre_tokenizer Split needs a Regex or a String pattern",
                       where);
    stage->split = TD_STAGE_PATTERN;
    return regex ? td_pattern_compile(where, regex, &stage->pattern)
                 : td_pattern_compile_literal(where, literal, &stage->pattern);
}

static td_status add_digits(td_stage *stage, const char *where, const cJSON *config) {
    int individual = 0;
    TD_TRY(td_json_bool(where, config, "individual_digits", &individual));
    stage->behavior = individual ? TD_SPLIT_ISOLATED : TD_SPLIT_CONTIGUOUS;
    stage->split = TD_STAGE_PATTERN;
    return td_pattern_compile_digits(where, &stage->pattern);
}

// Exactly one character, for example U+2581.
static td_status read_character(const char *where, const cJSON *config, const char *key,
                                char out[5]) {
    const char *text = "\xe2\x96\x81";
    size_t length = 0;
    TD_TRY(td_json_string(where, config, key, &text));
    if (text[0])
        td_utf8_decode(text, &length);
    if (length == 0 || length != strlen(text))
        return td_fail(TD_ERR_DATA, "%s: Metaspace %s must be one character", where, key);
    memcpy(out, text, length + 1);
    return TD_OK;
}

td_status td_read_metaspace(const char *where, const cJSON *config, char replacement[5],
                            td_prepend_scheme *out) {
    static const char *const names[] = {
        [TD_PREPEND_NEVER] = "never", [TD_PREPEND_FIRST] = "first", [TD_PREPEND_ALWAYS] = "always"};
    const char *name = NULL;
    int add_prefix_space = 1; // the older spelling
    TD_TRY(read_character(where, config, "replacement", replacement));
    TD_TRY(td_json_bool(where, config, "add_prefix_space", &add_prefix_space));
    TD_TRY(td_json_string(where, config, "prepend_scheme", &name));
    if (!add_prefix_space && name && strcmp(name, "never") != 0)
        return td_fail(TD_ERR_DATA,
                       "%s: Metaspace has add_prefix_space false but prepend_scheme \"%.40s\"",
                       where, name);
    if (!name)
        name = names[add_prefix_space ? TD_PREPEND_ALWAYS : TD_PREPEND_NEVER];
    for (int i = TD_PREPEND_NEVER; i <= TD_PREPEND_ALWAYS; i++)
        if (strcmp(name, names[i]) == 0) {
            *out = (td_prepend_scheme)i;
            return TD_OK;
        }
    return td_fail(TD_ERR_DATA, "%s: Metaspace has an unknown prepend_scheme \"%.40s\"", where,
                   name);
}

static td_status add_metaspace(td_stage *stage, const char *where, const cJSON *config) {
    int split = 1;
    size_t length;
    TD_TRY(td_read_metaspace(where, config, stage->replacement, &stage->prepend));
    TD_TRY(td_json_bool(where, config, "split", &split));
    memcpy(stage->prefix, stage->replacement, sizeof stage->prefix);
    stage->code = td_utf8_decode(stage->replacement, &length);
    stage->behavior = TD_SPLIT_MERGED_WITH_NEXT;
    stage->split = split ? TD_STAGE_CODE : TD_STAGE_WHOLE;
    return TD_OK;
}

static td_status add_punctuation(td_stage *stage, const char *where, const cJSON *config) {
    stage->split = TD_STAGE_PUNCTUATION;
    return read_behavior(where, config, "Isolated", &stage->behavior);
}

static td_status add_whitespace(td_stage *stage, const char *where, const cJSON *config) {
    (void)where, (void)config;
    stage->split = TD_STAGE_RUNS;
    stage->behavior = TD_SPLIT_REMOVED;
    stage->invert = 1;
    return TD_OK;
}

static td_status add_whitespace_split(td_stage *stage, const char *where, const cJSON *config) {
    (void)where, (void)config;
    stage->split = TD_STAGE_SPACES;
    stage->behavior = TD_SPLIT_REMOVED;
    return TD_OK;
}

static td_status add_stage(td_pretokenizer *pretokenizer, const char *where,
                           td_status (*add)(td_stage *, const char *, const cJSON *),
                           const cJSON *config) {
    if (pretokenizer->n_stages == TD_PRETOKENIZER_MAX_STAGES)
        return td_fail(TD_ERR_DATA, "%s: more than %d pre-tokenizers in sequence", where,
                       TD_PRETOKENIZER_MAX_STAGES);
    return add(&pretokenizer->stages[pretokenizer->n_stages++], where, config);
}

static td_status add_stages(td_pretokenizer *pretokenizer, const char *where, const cJSON *config);

static td_status add_sequence(td_pretokenizer *pretokenizer, const char *where,
                              const cJSON *config) {
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(config, "pretokenizers");
    if (!cJSON_IsArray(list))
        return td_fail(TD_ERR_DATA, "%s: pre_tokenizer Sequence has no list of pretokenizers",
                       where);
    for (const cJSON *item = list->child; item; item = item->next)
        TD_TRY(add_stages(pretokenizer, where, item));
    return TD_OK;
}

static td_status add_bert(td_pretokenizer *pretokenizer, const char *where) {
    TD_TRY(add_stage(pretokenizer, where, add_whitespace_split, NULL));
    return add_stage(pretokenizer, where, add_punctuation, NULL);
}

static td_status add_stages(td_pretokenizer *pretokenizer, const char *where, const cJSON *config) {
    static const struct {
        const char *type;
        td_status (*add)(td_stage *, const char *, const cJSON *);
    } kinds[] = {
        {"ByteLevel", add_byte_level},
        {"Split", add_split},
        {"Digits", add_digits},
        {"Metaspace", add_metaspace},
        {"Punctuation", add_punctuation},
        {"Whitespace", add_whitespace},
        {"WhitespaceSplit", add_whitespace_split},
    };
    const char *type;
    TD_TRY(td_component_type(where, "pre_tokenizer", config, &type));
    if (!type)
        return TD_OK;
    if (pretokenizer->byte_level)
        return td_fail(TD_ERR_DATA, "%s: pre_tokenizer %.40s after ByteLevel is not supported",
                       where, type);
    if (strcmp(type, "Sequence") == 0)
        return add_sequence(pretokenizer, where, config);
    if (strcmp(type, "BertPreTokenizer") == 0)
        return add_bert(pretokenizer, where);
    pretokenizer->byte_level = strcmp(type, "ByteLevel") == 0;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strcmp(type, kinds[i].type) == 0)
            return add_stage(pretokenizer, where, kinds[i].add, config);
    return td_fail_component(where, "pre_tokenizer", type,
                             "BertPreTokenizer, ByteLevel, Digits, Metaspace, Punctuation, "
                             "Sequence, Split, Whitespace, WhitespaceSplit");
}

td_status td_pretokenizer_init(td_pretokenizer *pretokenizer, const char *where,
                               const cJSON *config) {
    return add_stages(pretokenizer, where, config);
}

void td_pretokenizer_fini(td_pretokenizer *pretokenizer) {
    for (int i = 0; i < pretokenizer->n_stages; i++)
        td_pattern_fini(&pretokenizer->stages[i].pattern);
    pretokenizer->n_stages = 0;
}
