// Byte-level BPE from tokenizer.json (the Hugging Face tokenizers format): GPT-2, Llama-3, Qwen2/3,
// SmolLM.
//
// Read-only after loading: any number of threads may encode and decode at once. Text is UTF-8; ids
// are those of the tokenizers library, exactly.
#ifndef TANDEM_MODEL_TOKENIZER_H
#define TANDEM_MODEL_TOKENIZER_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/core/hash.h"
#include "runtime/core/status.h"

typedef struct td_tokenizer td_tokenizer;

// A growing list of ids with, for each, the byte span of the text it came from. Owned by the
// caller; zero-initialise.
typedef struct td_tokens {
    int32_t *ids;
    uint32_t *begins, *ends; // byte offsets in the encoded text
    size_t count, capacity;
} td_tokens;
void td_tokens_fini(td_tokens *tokens);

// Reads FOLDER/tokenizer.json (and tokenizer_config.json for eos/bos/pad names). TD_ERR_DATA:
// malformed, or a model type, normalizer, pre-tokenizer or decoder that is not supported, by name.
td_status td_tokenizer_open(const char *folder, td_tokenizer **out);
void td_tokenizer_close(td_tokenizer *tokenizer);

// Ids are 0 .. size-1 (with holes possible).
int32_t td_tokenizer_size(const td_tokenizer *tokenizer);
// -1 when there is no such token.
int32_t td_tokenizer_token_id(const td_tokenizer *tokenizer, const char *content);
int32_t
td_tokenizer_eos_id(const td_tokenizer *tokenizer); // from tokenizer_config.json, -1 when not given
int32_t td_tokenizer_bos_id(const td_tokenizer *tokenizer);
const char *td_tokenizer_chat_template(const td_tokenizer *tokenizer); // or NULL
td_hash td_tokenizer_fingerprint(const td_tokenizer *tokenizer);

// Appends to *out. add_special: apply the post-processor (bos, eos). Invalid UTF-8: TD_ERR_DATA
// with the byte offset.
td_status td_tokenizer_encode(const td_tokenizer *tokenizer, const char *text, size_t bytes,
                              int add_special, td_tokens *out);
// Bytes of the ids, NUL-terminated; the caller frees. skip_special leaves special tokens out.
// Incomplete UTF-8 becomes U+FFFD.
td_status td_tokenizer_decode(const td_tokenizer *tokenizer, const int32_t *ids, size_t count,
                              int skip_special, char **out_text, size_t *out_bytes);

#endif
