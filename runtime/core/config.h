// The run config: one JSON object, one row of td_config_table per key, one field of td_config per
// row.
//
// Keys carry the names that users of PEFT, TRL, transformers and bitsandbytes know. An unknown key
// is an error that names the nearest known one. `--set key=value` overrides; the value is read as
// JSON, or as a string when it is no JSON.
#ifndef TANDEM_CORE_CONFIG_H
#define TANDEM_CORE_CONFIG_H

#include <cjson/cJSON.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/core/hash.h"
#include "runtime/core/status.h"

typedef enum td_optimizer_kind {
    TD_OPTIM_ADAMW,
    TD_OPTIM_ADAMW_8BIT,
} td_optimizer_kind;

typedef enum td_schedule_kind {
    TD_SCHEDULE_COSINE,
    TD_SCHEDULE_LINEAR,
    TD_SCHEDULE_CONSTANT,
} td_schedule_kind;

typedef enum td_recompute {
    TD_RECOMPUTE_AUTO,
    TD_RECOMPUTE_NONE,
    TD_RECOMPUTE_NORMS_MLP,
    TD_RECOMPUTE_BLOCK,
} td_recompute;

typedef enum td_graphs_use {
    TD_GRAPHS_OFF,
    TD_GRAPHS_AUTO,
    TD_GRAPHS_ON,
} td_graphs_use;

typedef enum td_ahead_use {
    TD_AHEAD_OFF,
    TD_AHEAD_AUTO,
    TD_AHEAD_ON,
} td_ahead_use;

typedef enum td_bad_rows {
    TD_BAD_ROWS_ERROR,
    TD_BAD_ROWS_SKIP,
} td_bad_rows;

typedef enum td_too_long {
    TD_TOO_LONG_DROP,
    TD_TOO_LONG_TRUNCATE,
    TD_TOO_LONG_ERROR,
} td_too_long;

typedef enum td_deduplicate {
    TD_DEDUPLICATE_NONE,
    TD_DEDUPLICATE_EXACT,
    TD_DEDUPLICATE_NEAR, // and exact
} td_deduplicate;

typedef enum td_reduce_kind {
    TD_REDUCE_EXACT,
    TD_REDUCE_FP32,
} td_reduce_kind;

typedef enum td_device_kind {
    TD_DEVICE_AUTO,
    TD_DEVICE_CPU,
    TD_DEVICE_CUDA,
} td_device_kind;

// PyTorch's names: torch.set_float32_matmul_precision().
typedef enum td_matmul_precision {
    TD_MATMUL_HIGHEST, // fp32
    TD_MATMUL_MEDIUM,  // operands in bf16, sums in fp32
} td_matmul_precision;

typedef enum td_transport_kind {
    TD_TRANSPORT_AUTO,
    TD_TRANSPORT_MPI,
    TD_TRANSPORT_NCCL,
} td_transport_kind;

// A list of strings; owned by the config.
typedef struct td_string_list {
    char **items;
    int count;
} td_string_list;

typedef struct td_config {
    // Model and adapter
    char *model_name_or_path;   // folder
    char *adapter_name_or_path; // PEFT folder to start from, or NULL
    int load_in_4bit;
    int bnb_4bit_use_double_quant;
    // LoRA
    int64_t lora_r;
    double lora_alpha;
    double lora_dropout;
    td_string_list target_modules; // one item and target_modules_is_pattern: a regular expression
                                   // or "all-linear"
    int target_modules_is_pattern;
    cJSON *rank_pattern;  // object key -> integer, or NULL
    cJSON *alpha_pattern; // object key -> number, or NULL
    int use_rslora;
    // Data
    td_string_list train_files;
    td_string_list eval_files;
    double eval_split_ratio, test_split_ratio;
    int64_t max_length;
    int packing;
    int64_t micro_batch_tokens;          // 0: max_length
    int64_t per_device_train_batch_size; // sequences per micro-batch when not packing
    int64_t gradient_accumulation_steps; // micro-batches per step, all ranks together
    int shuffle;
    int assistant_only_loss;
    int completion_only_loss;
    td_bad_rows bad_rows;
    td_too_long too_long;
    // Data: which rows of train_files are used
    td_deduplicate deduplicate;
    double near_duplicate_threshold;
    int64_t min_prompt_words, max_prompt_words;     // a maximum of 0: none
    int64_t min_response_words, max_response_words; // a maximum of 0: none
    int64_t min_tokens;
    double max_prompt_response_jaccard; // 1: off
    td_string_list drop_matching, keep_matching;
    // Optimization
    double learning_rate;
    td_schedule_kind lr_scheduler_type;
    int64_t warmup_steps;
    double warmup_ratio;
    double num_train_epochs;
    int64_t max_steps; // -1: from num_train_epochs
    double weight_decay;
    double adam_beta1, adam_beta2, adam_epsilon;
    double max_grad_norm; // 0: no clipping
    td_optimizer_kind optim;
    int64_t seed;
    // Run
    char *output_dir;
    char *resume_from_checkpoint; // "auto", "never" or a checkpoint folder
    int64_t logging_steps;
    int64_t eval_steps;       // 0: at the end only
    int64_t save_steps;       // 0: at the end only
    int64_t save_total_limit; // 0: keep all
    int load_best_model_at_end;
    int64_t stop_after_steps; // leave with TD_STOPPED after this many steps of this process; 0: run
                              // to the end
    // Machine
    td_device_kind device;
    int bf16;                                     // activations on a GPU; those on the CPU are fp32
    td_matmul_precision float32_matmul_precision; // of fp32 activations, which are the CPU's
    td_transport_kind transport;
    int share_gpus;
    td_recompute gradient_checkpointing;
    td_graphs_use cuda_graphs;
    int64_t logits_chunk_tokens;
    int64_t page_elements;
    int64_t optimizer_cache_bytes;
    int64_t dequantized_cache_bytes; // -1: none
    td_ahead_use dequantize_ahead;
    int64_t memory_limit_bytes;      // 0: what the device has
    td_reduce_kind reduce;
    int64_t gradient_quantum_log2;
    double collective_deadline_seconds;
    char *base_cache;    // folder for images of quantized base models, or NULL
    int64_t num_threads; // 0: OMP_NUM_THREADS, else cores / local ranks
} td_config;

typedef enum td_key_type {
    TD_KEY_STRING,
    TD_KEY_INT,
    TD_KEY_FLOAT,
    TD_KEY_BOOL,
    TD_KEY_ENUM,
    TD_KEY_STRINGS, // string or list of strings
    TD_KEY_OBJECT,
} td_key_type;

typedef struct td_key {
    const char *name;
    const char *section;
    td_key_type type;
    size_t offset;              // of the field in td_config
    double minimum, maximum;    // TD_KEY_INT and TD_KEY_FLOAT, inclusive
    const char *const *choices; // TD_KEY_ENUM, NULL-terminated; index = value
    const char *fallback;       // default as JSON text
    int affects_result;         // 1: part of the fingerprint that a resumed run must match
    const char *help;           // one line
} td_key;

extern const td_key td_config_table[];
extern const size_t td_config_table_count;

// Fills in the defaults. Pair with td_config_fini(), also after a failure of the functions below.
td_status td_config_init(td_config *config);
void td_config_fini(td_config *config);

// Reads a JSON file over the current values. Relative paths in model_name_or_path,
// adapter_name_or_path, train_files, eval_files and output_dir are relative to the working
// directory. TD_ERR_USAGE names file, key and what is allowed.
td_status td_config_read(td_config *config, const char *path);
// One "key=value".
td_status td_config_set(td_config *config, const char *assignment);
// What no single key can check of the size and number of steps; part of td_config_check().
td_status td_config_check_steps(const td_config *config);
// Checks what no single key can: e.g. micro_batch_tokens >= max_length, eval split without data,
// files missing.
td_status td_config_check(const td_config *config);

// All keys with their current values, as a JSON object the caller frees with cJSON_Delete().
cJSON *td_config_to_json(const td_config *config);
// Over the keys with affects_result, canonical form. max_steps and num_train_epochs are part of it:
// the schedule depends on them.
td_hash td_config_fingerprint(const td_config *config);
// First key with affects_result whose value differs between two td_config_to_json() objects, or
// NULL.
const char *td_config_first_difference(const cJSON *a, const cJSON *b);

// Prints the table for people: key, type, range, default, help, by section. To standard output.
void td_config_print_table(void);

// The candidate nearest to `word` by edit distance, or NULL when none is near.
const char *td_nearest_name(const char *word, const char *const *candidates, size_t count);

#endif
