#include "runtime/train/inference.h"

td_status td_inference_open(td_inference *inference, const td_config *config, td_comm *comm) {
    td_session *session = &inference->session;
    TD_TRY(td_session_open(session, config, comm, 0));
    TD_TRY(td_session_load_base(session));
    if (!session->has_lora)
        return TD_OK;
    size_t bytes = td_mul_bytes((size_t)session->lora.n_parameters, sizeof(float));
    td_status status = td_arena_init(&inference->arena, session->context.device,
                                     bytes + TD_ARENA_ALIGN, "LoRA parameters");
    TD_TRY(td_comm_agree(comm, status, "LoRA parameters"));
    inference->parameters =
        td_arena_take(&inference->arena, (size_t)session->lora.n_parameters, sizeof(float));
    return td_session_load_parameters(session, inference->parameters);
}

void td_inference_close(td_inference *inference) {
    td_transformer_destroy(inference->transformer);
    td_arena_fini(&inference->arena);
    td_session_close(&inference->session);
    *inference = (td_inference){0};
}

td_status td_inference_prepare(td_inference *inference, int64_t max_tokens, int64_t max_sequences,
                               int64_t max_positions) {
    td_session *session = &inference->session;
    int64_t chunk = session->config->logits_chunk_tokens;
    td_transformer_options options = {
        .max_tokens = max_tokens,
        .max_sequences = max_sequences,
        .max_positions = max_positions,
        .logits_chunk_tokens = chunk < max_tokens ? chunk : max_tokens,
        .recompute = TD_RECOMPUTE_BLOCK,
    };
    td_transformer_destroy(inference->transformer);
    inference->transformer = NULL;
    td_status status =
        td_transformer_create(session->base, session->has_lora ? &session->lora : NULL, &options,
                              &session->context, &inference->transformer);
    return td_comm_agree(session->comm, status, "inference buffers");
}
