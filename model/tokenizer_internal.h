// What the parts of the tokenizer share; not for other folders.
//
// The pipeline of one encode call, each part in its own file:
//   added tokens (added_tokens.c) -> normalizers (tokenizer_normalizers.c, normalize.c) ->
//   added tokens, normalized -> pre-tokenizers (pretokenize.c, pattern.c) -> byte-pair encoding of
//   each word (bpe.c) -> post-processor.
// The way back: tokens -> decoders (tokenizer_decode.c), which work on a stream.
// Everything reachable from td_tokenizer is constant after loading except the pool of scratch
// memory, which has a lock.
#ifndef TANDEM_MODEL_TOKENIZER_INTERNAL_H
#define TANDEM_MODEL_TOKENIZER_INTERNAL_H

#define PCRE2_CODE_UNIT_WIDTH 8
#include <cjson/cJSON.h>
#include <pcre2.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#include "model/tokenizer.h"

enum {
    TD_TOKENIZER_MAX_ID = 1 << 24,
    TD_PRETOKENIZER_MAX_STAGES = 8,
    TD_NORMALIZER_MAX_STEPS = 16,
    TD_DECODER_MAX_STEPS = 8,
    TD_POST_MAX_SPECIALS = 16,
    TD_WORD_CACHE_KEY_BYTES = 30,
    TD_WORD_CACHE_IDS = 8,
};

// A growing string of bytes.
typedef struct td_bytes {
    char *data;
    size_t size, capacity;
} td_bytes;
td_status td_bytes_reserve(td_bytes *bytes, size_t more);
td_status td_bytes_append(td_bytes *bytes, const char *data, size_t size);
td_status td_bytes_append_string(td_bytes *bytes, const char *text);
void td_bytes_fini(td_bytes *bytes);

// Makes room for `needed` items of item_bytes in *items, at least doubling. Contents are kept.
td_status td_grow(void *items, size_t *capacity, size_t needed, size_t item_bytes);

// A stretch of text on its way through the pipeline, and where its bytes came from.
typedef struct td_text {
    const char *bytes;
    size_t length;
    const uint32_t *begins,
        *ends; // per byte, in the original text; NULL: byte i came from origin + i
    uint32_t origin;
} td_text;

static inline td_text td_text_slice(td_text text, size_t begin, size_t end) {
    text.bytes += begin;
    text.length = end - begin;
    if (text.begins) {
        text.begins += begin;
        text.ends += begin;
    }
    text.origin += (uint32_t)begin;
    return text;
}

// Original span of bytes [begin, end), begin < end.
static inline uint32_t td_text_begin(td_text text, size_t begin) {
    return text.begins ? text.begins[begin] : text.origin + (uint32_t)begin;
}
static inline uint32_t td_text_end(td_text text, size_t end) {
    return text.begins ? text.ends[end - 1] : text.origin + (uint32_t)end;
}

// Text that a step of the pipeline wrote, with the original span of each byte.
typedef struct td_mapped {
    td_bytes text;
    uint32_t *begins, *ends;
    size_t begins_capacity, ends_capacity;
} td_mapped;
void td_mapped_fini(td_mapped *mapped);
// Appends bytes [begin, end) of `from` with their spans.
td_status td_mapped_copy(td_mapped *mapped, td_text from, size_t begin, size_t end);
// Appends bytes that all came from [span_begin, span_end).
td_status td_mapped_append(td_mapped *mapped, const char *data, size_t size, uint32_t span_begin,
                           uint32_t span_end);
td_text td_mapped_text(const td_mapped *mapped);

td_status td_tokens_push(td_tokens *tokens, int32_t id, uint32_t begin, uint32_t end);

// Byte-level alphabet: every byte stands as one printable character in tokenizer.json.
uint32_t td_byte_symbol(unsigned char byte);
int td_symbol_byte(uint32_t code); // -1: no symbol of a byte
// Bytes that the symbols stand for; 0 when some character is no symbol. `out` has room for `bytes`.
int td_bytes_from_symbols(const char *text, size_t bytes, char *out, size_t *out_bytes);
// `out` has room for twice `bytes`.
size_t td_symbols_from_bytes(const char *bytes, size_t size, char *out);

// Token strings as written in the file, by id and by string.
typedef struct td_vocabulary {
    td_bytes text;     // the strings, NUL-terminated, one after the other
    uint64_t *begins;  // (size) offsets in text; UINT64_MAX: no such id
    uint32_t *lengths; // (size)
    size_t begins_capacity, lengths_capacity;
    int32_t size;   // largest id + 1
    int32_t count;  // strings held
    int32_t *slots; // open addressing: id or -1
    size_t n_slots; // power of two, at least twice count
} td_vocabulary;
// -1: no such string.
int32_t td_vocabulary_find(const td_vocabulary *vocabulary, const char *text, size_t bytes);
// TD_ERR_DATA when the id or the string is taken or the id is out of range.
td_status td_vocabulary_add(td_vocabulary *vocabulary, const char *where, const char *text,
                            size_t bytes, int32_t id);
const char *td_vocabulary_text(const td_vocabulary *vocabulary, int32_t id,
                               size_t *out_bytes); // or NULL
void td_vocabulary_fini(td_vocabulary *vocabulary);

typedef struct td_merge {
    uint64_t pair; // left id in the high half
    uint32_t rank;
    int32_t id; // UINT64_MAX pair: empty slot
} td_merge;

typedef struct td_bpe {
    const td_vocabulary *vocabulary;
    td_merge *merges;      // open addressing
    size_t n_slots;        // power of two
    unsigned shift;        // 64 - log2(n_slots)
    int byte_level;        // units are bytes of the word; else its characters
    int32_t byte_ids[256]; // tokens of single bytes: symbols of the byte-level alphabet, or
                           // "<0x41>" for characters without a token; -1: none
    int byte_fallback;     // characters without a token become the tokens of their bytes
    int fuse_unknown;      // neighbouring unknown characters become one token
    int32_t unknown_id;    // -1: what has no token is left out
    int ignore_merges;     // a word that is a token is that token
    int splits_at_spaces;  // no merge joins anything to a following U+2581
    int32_t *char_ids;     // (0x10000) tokens of single characters; NULL when byte_level
    int32_t n_model_ids;   // later ids are those of added tokens
    uint32_t
        *token_bytes; // (n_model_ids) bytes of text that a token stands for, 0: not the model's
    uint32_t longest_token_bytes;
} td_bpe;
// `model` is the "model" object of tokenizer.json; the vocabulary must hold its tokens and no more.
// On failure td_bpe_fini is still due.
td_status td_bpe_init(td_bpe *bpe, const char *where, const cJSON *model,
                      const td_vocabulary *vocabulary, int byte_level);
void td_bpe_fini(td_bpe *bpe);
// The merge of a pair, or NULL.
const td_merge *td_bpe_find_merge(const td_bpe *bpe, int32_t left, int32_t right);
// The token of the model, -1: none.
int32_t td_bpe_find(const td_bpe *bpe, const char *text, size_t bytes);

typedef struct td_cached_word {
    uint8_t key_bytes, n_ids; // key_bytes 0: empty
    char key[TD_WORD_CACHE_KEY_BYTES];
    int32_t ids[TD_WORD_CACHE_IDS];
} td_cached_word;

typedef struct td_symbol {
    int32_t id;          // -1: merged into its left neighbour
    uint32_t begin, end; // in the word
    int32_t previous, next;
} td_symbol;

typedef struct td_candidate {
    uint64_t order; // rank in the high half, position in the low: smallest first
    int32_t id;
} td_candidate;

// Memory that one encode call needs; kept for the next.
typedef struct td_scratch {
    struct td_scratch *next;
    pcre2_match_data *matches[TD_PRETOKENIZER_MAX_STAGES];
    pcre2_match_context *match_context;
    pcre2_jit_stack *jit_stack;
    td_cached_word *words; // hash-indexed
    td_symbol *symbols;
    td_candidate *heap;
    size_t symbols_capacity, heap_capacity;
    td_bytes symbol_text;    // a word in the byte-level alphabet
    td_mapped normalized[2]; // the steps of the normalizer write to one and the other in turn
    td_mapped staged[TD_PRETOKENIZER_MAX_STAGES];
    pcre2_match_data *replace_match;
    uint64_t *marks; // decomposed characters of one segment
    int32_t *codes;
    size_t marks_capacity, codes_capacity;
} td_scratch;

td_status td_bpe_encode_word(const td_bpe *bpe, td_scratch *scratch, td_text word, td_tokens *out);

typedef enum td_unicode_form {
    TD_NFC,
    TD_NFD,
    TD_NFKC,
    TD_NFKD,
} td_unicode_form;
// As the tokenizers library does it. *out is the input itself when nothing changes, else the text
// of `buffer`, which must not hold the input.
td_status td_normalize_form(td_unicode_form form, td_scratch *scratch, td_text text,
                            td_mapped *buffer, td_text *out);

typedef struct td_added_token {
    char *content; // NUL-terminated; for normalized ones the normalized content
    uint32_t bytes;
    int32_t id;
    int single_word, lstrip, rstrip, special;
} td_added_token;

typedef struct td_trie_node {
    int32_t child, sibling; // -1: none
    int32_t token;          // -1: no token ends here
    unsigned char byte;
} td_trie_node;

// Tokens that are cut out of the text before the model sees it.
typedef struct td_added_set {
    td_added_token *tokens;
    size_t n_tokens, tokens_capacity;
    td_trie_node *nodes;
    size_t n_nodes, nodes_capacity;
    int32_t first[256]; // node of a first byte, -1: none
} td_added_set;
void td_added_set_init(td_added_set *set);
void td_added_set_fini(td_added_set *set);
// Takes ownership of token.content, also on failure.
td_status td_added_set_add(td_added_set *set, td_added_token token);

typedef struct td_added_match {
    size_t begin, end;
    int32_t id;
} td_added_match;
// Leftmost-longest match from *position on; text before `done` belongs to an earlier match. 0: none
// left.
int td_added_next(const td_added_set *set, const char *text, size_t bytes, size_t *position,
                  size_t done, td_added_match *out);

typedef enum td_split_behavior {
    TD_SPLIT_REMOVED,
    TD_SPLIT_ISOLATED,
    TD_SPLIT_MERGED_WITH_PREVIOUS,
    TD_SPLIT_MERGED_WITH_NEXT,
    TD_SPLIT_CONTIGUOUS,
} td_split_behavior;

// A regular expression of tokenizer.json, compiled twice: as it is, and with explicit ranges for
// the characters that PCRE2 may not know. The second is slower and used for texts with such
// characters.
typedef struct td_pattern {
    pcre2_code *plain, *full;
} td_pattern;
td_status td_pattern_compile(const char *where, const char *regex, td_pattern *out);
td_status td_pattern_compile_literal(const char *where, const char *text, td_pattern *out);
td_status td_pattern_compile_digits(const char *where, td_pattern *out);
void td_pattern_fini(td_pattern *pattern);

// PCRE2 spellings of an Oniguruma (Ruby syntax) expression. TD_ERR_DATA names a construct whose
// meaning is not known to be the same.
td_status td_pattern_translate(const char *where, const char *regex, td_bytes *plain,
                               td_bytes *full);

// Finds the first match from *position on that is no empty match where the last one ended; 0 in
// *out_found: none. `data` and `context` are PCRE2's working memory.
typedef struct td_match {
    size_t begin, end;
} td_match;
td_status td_pattern_next(const pcre2_code *code, const char *text, size_t bytes, size_t last_end,
                          int has_last, pcre2_match_data *data, pcre2_match_context *context,
                          int *out_found, td_match *out);

typedef enum td_normalizer_kind {
    TD_NORMALIZER_FORM,
    TD_NORMALIZER_LOWERCASE,
    TD_NORMALIZER_STRIP,
    TD_NORMALIZER_STRIP_ACCENTS,
    TD_NORMALIZER_REPLACE,
    TD_NORMALIZER_PREPEND,
} td_normalizer_kind;

typedef struct td_normalizer_step {
    td_normalizer_kind kind;
    td_unicode_form form;
    int left, right;    // what STRIP strips
    td_pattern pattern; // of REPLACE, when `literal` is NULL
    char *literal;      // what REPLACE looks for
    char *content;      // what REPLACE and PREPEND write
} td_normalizer_step;

typedef struct td_normalizer {
    td_normalizer_step steps[TD_NORMALIZER_MAX_STEPS];
    int n_steps;
} td_normalizer;
// On failure td_normalizer_fini is still due.
td_status td_normalizer_init(td_normalizer *normalizer, const char *where, const cJSON *config);
void td_normalizer_fini(td_normalizer *normalizer);
// *out is the input itself when nothing changes, else it lives in scratch until the next call.
td_status td_normalize(const td_normalizer *normalizer, td_scratch *scratch, td_text text,
                       td_text *out);

typedef enum td_stage_split {
    TD_STAGE_WHOLE,       // leaves the text as it is
    TD_STAGE_PATTERN,     // matches of `pattern`
    TD_STAGE_CODE,        // every character `code`
    TD_STAGE_SPACES,      // every white space character
    TD_STAGE_PUNCTUATION, // every punctuation character
    TD_STAGE_RUNS,        // runs of word characters and of others that are no white space
} td_stage_split;

typedef enum td_prepend_scheme {
    TD_PREPEND_NEVER,
    TD_PREPEND_FIRST, // only where the text begins
    TD_PREPEND_ALWAYS,
} td_prepend_scheme;

typedef struct td_stage {
    td_stage_split split;
    td_pattern pattern;
    uint32_t code;
    td_split_behavior behavior;
    int invert;
    char replacement[5]; // what Metaspace writes for a space, "": no Metaspace
    td_prepend_scheme prepend;
    char prefix[5]; // what is prepended when the text does not begin with it, by `prepend`
} td_stage;

typedef struct td_pretokenizer {
    td_stage stages[TD_PRETOKENIZER_MAX_STAGES];
    int n_stages;
    int byte_level; // the last stage hands over bytes
} td_pretokenizer;
// On failure td_pretokenizer_fini is still due.
td_status td_pretokenizer_init(td_pretokenizer *pretokenizer, const char *where,
                               const cJSON *config);
void td_pretokenizer_fini(td_pretokenizer *pretokenizer);
// "replacement" and the scheme of a Metaspace pre-tokenizer or decoder.
td_status td_read_metaspace(const char *where, const cJSON *config, char replacement[5],
                            td_prepend_scheme *out);

typedef td_status (*td_word_visitor)(void *context, td_text word);
td_status td_pretokenize(const td_pretokenizer *pretokenizer, td_scratch *scratch, td_text text,
                         td_word_visitor visit, void *context);

typedef enum td_decoder_kind {
    TD_DECODER_BYTE_LEVEL,
    TD_DECODER_REPLACE,
    TD_DECODER_BYTE_FALLBACK,
    TD_DECODER_FUSE,
    TD_DECODER_STRIP,
    TD_DECODER_METASPACE,
    TD_DECODER_JOIN, // no decoder in the file: tokens with a space between
} td_decoder_kind;

typedef struct td_decoder_step {
    td_decoder_kind kind;
    char *pattern, *content; // of REPLACE
    uint32_t code;           // what STRIP strips and METASPACE replaces
    size_t start, stop;      // how many STRIP strips on either side
    int drops_first;         // METASPACE writes nothing for it in the first token
} td_decoder_step;

typedef struct td_decoder {
    td_decoder_step steps[TD_DECODER_MAX_STEPS];
    int n_steps;
} td_decoder;
// On failure td_decoder_fini is still due.
td_status td_decoder_init(td_decoder *decoder, const char *where, const cJSON *config);
void td_decoder_fini(td_decoder *decoder);

typedef struct td_tokenizer_pool {
    pthread_mutex_t lock;
    td_scratch *free;
    struct td_chat *chat; // compiled template; NULL before its first use
} td_tokenizer_pool;

struct td_tokenizer {
    td_vocabulary vocabulary;
    td_bpe bpe;
    td_normalizer normalizer;
    td_added_set added, added_normalized;
    td_pretokenizer pretokenizer;
    int32_t prefix[TD_POST_MAX_SPECIALS], suffix[TD_POST_MAX_SPECIALS];
    int n_prefix, n_suffix;
    td_decoder decoder;
    const char **shown; // (vocabulary size) what added tokens decode as, NULL: as in the vocabulary
    uint8_t *is_special; // (vocabulary size)
    int32_t eos_id, bos_id;
    char *chat_template;  // or NULL
    char *template_path;  // the file that holds it
    char *tool_template;  // for chats with tools, or NULL
    char *special_tokens; // JSON object of the tokens that tokenizer_config.json names
    td_hash fingerprint;
    td_tokenizer_pool *pool; // the only part that changes
};

td_status td_scratch_acquire(const td_tokenizer *tokenizer, td_scratch **out);
void td_scratch_release(const td_tokenizer *tokenizer, td_scratch *scratch);
void td_scratch_destroy(td_scratch *scratch);
td_cached_word *td_scratch_word_slot(td_scratch *scratch, uint64_t hash);

// Parts of loading (tokenizer_load.c calls them in this order).
td_status td_load_vocabulary(td_tokenizer *tokenizer, const char *where, const cJSON *model);
td_status td_load_added_tokens(td_tokenizer *tokenizer, const char *where, const cJSON *list);
td_status td_load_post_processor(td_tokenizer *tokenizer, const char *where, const cJSON *config);

// Templates of chats and the special tokens that they name (tokenizer_templates.c).
td_status td_load_templates(td_tokenizer *tokenizer, const char *folder, const cJSON *config);
void td_free_templates(td_tokenizer *tokenizer);

// "type" of a component; NULL and TD_OK for null or missing.
td_status td_component_type(const char *where, const char *section, const cJSON *config,
                            const char **out);
td_status td_fail_component(const char *where, const char *section, const char *type,
                            const char *supported);

#endif
