// Loading of decoders.
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer_internal.h"
#include "model/unicode.h"
#include "runtime/core/json.h"

static td_status load_replace(td_decoder_step *step, const char *where, const cJSON *config) {
    const cJSON *pattern = cJSON_GetObjectItemCaseSensitive(config, "pattern");
    const char *literal = NULL, *content = NULL;
    TD_TRY(td_json_string(where, config, "content", &content));
    if (cJSON_IsObject(pattern))
        TD_TRY(td_json_string(where, pattern, "String", &literal));
    if (!content || !literal || !literal[0])
        return td_fail(TD_ERR_DATA,
                       "%s: decoder Replace needs a content and a String pattern that is not empty",
                       where);
    step->pattern = strdup(literal);
    step->content = strdup(content);
    return step->pattern && step->content
               ? TD_OK
               : td_fail(TD_ERR_MEMORY, "%s: no memory for the decoder", where);
}

static td_status load_strip(td_decoder_step *step, const char *where, const cJSON *config) {
    const char *content = " ";
    int64_t start = 0, stop = 0;
    size_t length = 0;
    TD_TRY(td_json_string(where, config, "content", &content));
    TD_TRY(td_json_int(where, config, "start", 0, INT32_MAX, &start));
    TD_TRY(td_json_int(where, config, "stop", 0, INT32_MAX, &stop));
    if (content[0])
        step->code = td_utf8_decode(content, &length);
    if (length == 0 || content[length])
        return td_fail(TD_ERR_DATA, "%s: decoder Strip content must be one character", where);
    step->start = (size_t)start;
    step->stop = (size_t)stop;
    return TD_OK;
}

static td_status load_metaspace(td_decoder_step *step, const char *where, const cJSON *config) {
    char replacement[5];
    td_prepend_scheme scheme;
    size_t length;
    TD_TRY(td_read_metaspace(where, config, replacement, &scheme));
    step->code = td_utf8_decode(replacement, &length);
    step->drops_first = scheme != TD_PREPEND_NEVER;
    return TD_OK;
}

static td_status load_nothing(td_decoder_step *step, const char *where, const cJSON *config) {
    (void)step, (void)where, (void)config;
    return TD_OK;
}

static td_status add_step(td_decoder *decoder, const char *where, const char *type,
                          const cJSON *config) {
    static const struct {
        const char *type;
        td_decoder_kind kind;
        td_status (*load)(td_decoder_step *, const char *, const cJSON *);
    } kinds[] = {
        {"ByteLevel", TD_DECODER_BYTE_LEVEL, load_nothing},
        {"Replace", TD_DECODER_REPLACE, load_replace},
        {"ByteFallback", TD_DECODER_BYTE_FALLBACK, load_nothing},
        {"Fuse", TD_DECODER_FUSE, load_nothing},
        {"Strip", TD_DECODER_STRIP, load_strip},
        {"Metaspace", TD_DECODER_METASPACE, load_metaspace},
    };
    if (decoder->n_steps == TD_DECODER_MAX_STEPS)
        return td_fail(TD_ERR_DATA, "%s: more than %d decoders in sequence", where,
                       TD_DECODER_MAX_STEPS);
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strcmp(type, kinds[i].type) == 0) {
            td_decoder_step *step = &decoder->steps[decoder->n_steps++];
            step->kind = kinds[i].kind;
            return kinds[i].load(step, where, config);
        }
    return td_fail_component(where, "decoder", type,
                             "ByteFallback, ByteLevel, Fuse, Metaspace, Replace, Sequence, Strip");
}

static td_status add_steps(td_decoder *decoder, const char *where, const cJSON *config) {
    const char *type;
    TD_TRY(td_component_type(where, "decoder", config, &type));
    if (!type)
        return TD_OK;
    if (strcmp(type, "Sequence") != 0)
        return add_step(decoder, where, type, config);
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(config, "decoders");
    if (!cJSON_IsArray(list))
        return td_fail(TD_ERR_DATA, "%s: decoder Sequence has no list of decoders", where);
    for (const cJSON *item = list->child; item; item = item->next)
        TD_TRY(add_steps(decoder, where, item));
    return TD_OK;
}

td_status td_decoder_init(td_decoder *decoder, const char *where, const cJSON *config) {
    if (!config || cJSON_IsNull(config)) {
        decoder->steps[decoder->n_steps++].kind = TD_DECODER_JOIN;
        return TD_OK;
    }
    return add_steps(decoder, where, config);
}

void td_decoder_fini(td_decoder *decoder) {
    for (int i = 0; i < decoder->n_steps; i++) {
        free(decoder->steps[i].pattern);
        free(decoder->steps[i].content);
    }
    decoder->n_steps = 0;
}
