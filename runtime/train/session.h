// What every command that runs the model needs: device, model, tokenizer, adapter layout, base.
#ifndef TANDEM_TRAIN_SESSION_H
#define TANDEM_TRAIN_SESSION_H

#include "comm/comm.h"
#include "model/adapter.h"
#include "model/base.h"
#include "model/tokenizer.h"
#include "runtime/core/config.h"
#include "runtime/train/device_choice.h"

typedef struct td_session {
    const td_config *config; // not owned
    td_comm *comm;           // not owned
    td_device_choice choice;
    td_op_context context; // without workspace
    int n_threads;
    td_model_config model;
    td_tokenizer *tokenizer; // NULL when the folder has no tokenizer.json
    td_adapter_info adapter; // of adapter_name_or_path
    int has_adapter;
    td_lora_options lora_options; // points into adapter or config
    td_lora lora;
    int has_lora;
    int has_random_base; // the base is made, not read: benchmarks
    int host_embedding;  // the plan wants the table of embeddings in host memory
    td_base *base;
} td_session;

// Collective. Device (rank 0 says which), config.json, tokenizer, adapter_config.json. want_lora:
// lay out LoRA even without a given adapter (training). Zero-initialise the session;
// td_session_close() also after a failure.
td_status td_session_open(td_session *session, const td_config *config, td_comm *comm,
                          int want_lora);
// Collective. Only config.json and the tokenizer, without a device: for preparing data.
td_status td_session_open_model(td_session *session, const td_config *config, td_comm *comm);
// Local. Waits for what is queued.
void td_session_close(td_session *session);

td_base_options td_session_base_options(const td_session *session);
// Collective: one rank of each node reads and quantizes, the others receive.
td_status td_session_load_base(td_session *session);
// Collective. The given adapter's parameters, or a fresh initialization, into (n_parameters) fp32
// device memory.
td_status td_session_load_parameters(const td_session *session, float *values);

// How LoRA is laid out: as the adapter says, else (NULL) as the config. Points into either.
td_lora_options td_session_lora_options(const td_config *config, const td_adapter_info *adapter);

// Local. A warning when the adapter's config names a base model other than `model`, by the last
// part of the name and by where it lies. That can be the same model in another place: what does not
// fit is refused when the adapter is read.
td_status td_session_warn_other_base(const char *adapter, const char *model);

// Threads of this process: num_threads, else OMP_NUM_THREADS, else its share of the cores it may
// run on.
int td_session_threads(const td_config *config, int local_size);
// Ids that end a generated answer: config.json's, and the tokenizer's. Returns how many.
int td_session_stop_ids(const td_session *session, int32_t out[TD_MAX_EOS + 2]);
// The id appended to plain text rows: the tokenizer's, else the model's first, else -1.
int32_t td_session_eos_id(const td_session *session);

#endif
