#include "runtime/train/answer.h"

#include <stdlib.h>

#include "runtime/train/metrics.h"

td_status td_answerer_init(td_answerer *self, const td_session *session,
                           td_transformer *transformer, int64_t max_prompt,
                           int64_t max_new_tokens) {
    *self = (td_answerer){
        .session = session, .transformer = transformer, .max_new_tokens = max_new_tokens};
    if (!session->tokenizer)
        return td_fail(TD_ERR_DATA, "%s: no tokenizer.json; answers need one",
                       session->config->model_name_or_path);
    self->n_stop_ids = td_session_stop_ids(session, self->stop_ids);
    self->ids = calloc((size_t)max_new_tokens, sizeof *self->ids);
    if (!self->ids)
        return td_fail(TD_ERR_MEMORY, "no memory for answers of %lld tokens",
                       (long long)max_new_tokens);
    return td_kv_cache_create(&session->model, max_prompt + max_new_tokens, &session->context,
                              &self->cache);
}

void td_answerer_fini(td_answerer *self) {
    td_kv_cache_destroy(self->cache);
    free(self->ids);
    *self = (td_answerer){0};
}

td_status td_answerer_ask(td_answerer *self, const float *parameters, const td_tokens *prompt,
                          const td_generate_options *sampling, int skip_special, td_answer *out) {
    td_generate_options options = sampling ? *sampling : (td_generate_options){.top_p = 1};
    double start = td_seconds_now();
    int64_t count = 0;
    options.max_new_tokens = self->max_new_tokens;
    options.stop_ids = self->stop_ids;
    options.n_stop_ids = self->n_stop_ids;
    TD_TRY(td_generate(self->transformer, parameters, self->cache, prompt->ids,
                       (int64_t)prompt->count, &options, self->ids, &count));
    *out = (td_answer){.n_tokens = count, .is_finished = count < self->max_new_tokens};
    out->seconds = td_seconds_now() - start;
    return td_tokenizer_decode(self->session->tokenizer, self->ids, (size_t)count, skip_special,
                               &out->text, &out->bytes);
}
