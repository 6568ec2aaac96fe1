// BPE from tokenizer.json (the Hugging Face tokenizers format): byte-level (GPT-2, Llama-3,
// Qwen2/3, SmolLM, Phi) and SentencePiece-style (Llama-2, TinyLlama, Mistral, Gemma, Phi-3).
//
// Ids and decoded text are those of the tokenizers library for the file, exactly. The file alone
// decides: whether text begins with U+2581, and whether it does so again after an added token
// (Prepend or the Metaspace scheme), and which special tokens are added (post-processor).
// "add_bos_token", "add_eos_token", "add_prefix_space" and "legacy" of tokenizer_config.json are
// not read; transformers 5 does not apply them either where it loads a tokenizer.json as it is
// (PreTrainedTokenizerFast). Unlike the library, text that is not UTF-8 is refused.
//
// Read-only after loading: any number of threads may encode and decode at once.
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
    int32_t *ids;            // (count)
    uint32_t *begins, *ends; // (count) byte offsets in the encoded text
    size_t count, capacity;
} td_tokens;
void td_tokens_fini(td_tokens *tokens);

// Reads FOLDER/tokenizer.json (and tokenizer_config.json for eos/bos/pad names). TD_ERR_DATA:
// malformed, or a model type, normalizer, pre-tokenizer or decoder that is not supported, by name.
td_status td_tokenizer_open(const char *folder, td_tokenizer **out);
void td_tokenizer_close(td_tokenizer *tokenizer);

// Ids are 0 .. size-1 (with holes possible).
int32_t td_tokenizer_size(const td_tokenizer *tokenizer);
// Without the added tokens at the end, which only a text that names them has. A model may have no
// rows for those: Gemma 3 of text alone has none for <image_soft_token>.
int32_t td_tokenizer_text_size(const td_tokenizer *tokenizer);
// -1 when there is no such token.
int32_t td_tokenizer_token_id(const td_tokenizer *tokenizer, const char *content);
int32_t
td_tokenizer_eos_id(const td_tokenizer *tokenizer); // from tokenizer_config.json, -1 when not given
int32_t td_tokenizer_bos_id(const td_tokenizer *tokenizer);
const char *td_tokenizer_chat_template(const td_tokenizer *tokenizer); // or NULL
// "default", or "tool_use" for chats with tools; NULL: there is none of that name.
const char *td_tokenizer_named_template(const td_tokenizer *tokenizer, const char *name);
td_hash td_tokenizer_fingerprint(const td_tokenizer *tokenizer);

// Appends to *out. add_special: apply the post-processor (bos, eos). Invalid UTF-8: TD_ERR_DATA
// with the byte offset.
td_status td_tokenizer_encode(const td_tokenizer *tokenizer, const char *text, size_t bytes,
                              int add_special, td_tokens *out);
// Text of the ids, NUL-terminated; the caller frees. skip_special leaves special tokens out. Bytes
// that are no UTF-8 become U+FFFD.
td_status td_tokenizer_decode(const td_tokenizer *tokenizer, const int32_t *ids, size_t count,
                              int skip_special, char **out_text, size_t *out_bytes);

// Decoding token by token: text comes out as soon as no later token can change it, and all of it
// together is what td_tokenizer_decode gives. (Text of a run of byte tokens as "<0xE2>" is only
// known when the run ends.) One thread at a time. The tokenizer must outlive the stream.
typedef struct td_token_stream td_token_stream;
td_status td_token_stream_create(const td_tokenizer *tokenizer, int skip_special,
                                 td_token_stream **out);
void td_token_stream_destroy(td_token_stream *stream);
// *out_text is whole characters, NUL-terminated, perhaps none; it holds until the next call.
td_status td_token_stream_push(td_token_stream *stream, int32_t id, const char **out_text,
                               size_t *out_bytes);
// What is left; the stream can then be used for another text.
td_status td_token_stream_finish(td_token_stream *stream, const char **out_text, size_t *out_bytes);

#endif
