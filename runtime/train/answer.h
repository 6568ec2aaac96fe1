// Answering prompts one after the other, each with a key-value cache of its own contents. Local.
#ifndef TANDEM_TRAIN_ANSWER_H
#define TANDEM_TRAIN_ANSWER_H

#include "model/generate.h"
#include "runtime/train/session.h"

typedef struct td_answerer {
    const td_session *session;   // with a tokenizer; not owned
    td_transformer *transformer; // not owned
    td_kv_cache *cache;
    int64_t max_new_tokens;
    int32_t stop_ids[TD_MAX_EOS + 2];
    int n_stop_ids;
    int32_t *ids; // (max_new_tokens)
} td_answerer;

typedef struct td_answer {
    char *text; // UTF-8, owned
    size_t bytes;
    int64_t n_tokens;
    int is_finished; // the model ended its turn; 0: max_new_tokens were not enough
    double seconds;
} td_answer;

// For prompts of up to max_prompt tokens. The transformer has room for their sum. Zero-initialise;
// fini also after failure.
td_status td_answerer_init(td_answerer *self, const td_session *session,
                           td_transformer *transformer, int64_t max_prompt, int64_t max_new_tokens);
void td_answerer_fini(td_answerer *self);

// parameters NULL: the base model. `sampling`: temperature, top_p, seed, sequence and on_token
// count; NULL: greedy. The caller frees out->text. skip_special leaves special tokens out of it.
td_status td_answerer_ask(td_answerer *self, const float *parameters, const td_tokens *prompt,
                          const td_generate_options *sampling, int skip_special, td_answer *out);

#endif
