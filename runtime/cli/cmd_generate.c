#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/chat.h"
#include "runtime/cli/cli.h"
#include "runtime/core/log.h"
#include "runtime/train/inference.h"

typedef struct generate_options {
    const char *model, *adapter, *prompt, *chat, *system;
    int64_t max_new_tokens, seed;
    double temperature, top_p;
} generate_options;

// Prints the answer as it grows: text is decoded from the start of the answer and what is new is
// written, whole characters only.
typedef struct printer {
    const td_tokenizer *tokenizer;
    int32_t *ids;
    size_t count, written;
} printer;

static size_t whole_characters(const char *text, size_t bytes) {
    static const char replacement[] = "\xEF\xBF\xBD";
    while (bytes >= 3 && memcmp(text + bytes - 3, replacement, 3) == 0)
        bytes -= 3;
    return bytes;
}

static void print_new(printer *self, int is_last) {
    char *text;
    size_t bytes;
    if (td_tokenizer_decode(self->tokenizer, self->ids, self->count, 1, &text, &bytes) != TD_OK)
        return;
    size_t end = is_last ? bytes : whole_characters(text, bytes);
    if (end > self->written) {
        fwrite(text + self->written, 1, end - self->written, stdout);
        fflush(stdout);
        self->written = end;
    }
    free(text);
}

static void on_token(void *self, int32_t id) {
    printer *out = self;
    out->ids[out->count++] = id;
    print_new(out, 0);
}

static td_status parse(const td_command *command, int argc, char **argv, td_config *config,
                       generate_options *wanted, int *help) {
    const char *positional[1];
    td_option_list assignments = {0};
    const td_option options[] = {
        {"--model", TD_OPTION_STRING, &wanted->model, "FOLDER", "base model (else the config's)"},
        {"--adapter", TD_OPTION_STRING, &wanted->adapter, "FOLDER",
         "PEFT adapter; without: the base model"},
        {"--chat", TD_OPTION_STRING, &wanted->chat, "TEXT",
         "what the user says; answered as a chat"},
        {"--system", TD_OPTION_STRING, &wanted->system, "TEXT", "system message of the chat"},
        {"--prompt", TD_OPTION_STRING, &wanted->prompt, "TEXT", "plain text to continue"},
        {"--max-new-tokens", TD_OPTION_INT, &wanted->max_new_tokens, "N", "longest answer (256)"},
        {"--temperature", TD_OPTION_FLOAT, &wanted->temperature, "T", "0 (the default) is greedy"},
        {"--top-p", TD_OPTION_FLOAT, &wanted->top_p, "P",
         "nucleus: most likely tokens up to P (1)"},
        {"--seed", TD_OPTION_INT, &wanted->seed, "N", "of the sampling (0)"},
        {"--set", TD_OPTION_LIST, &assignments, "KEY=VALUE",
         "override a config key; may be repeated"},
    };
    TD_TRY(td_options_parse(command, options, sizeof options / sizeof *options, argc, argv,
                            positional, 1, help));
    if (*help)
        return TD_OK;
    TD_TRY(td_cli_config(config, positional[0], &assignments));
    if (wanted->model)
        TD_TRY(td_cli_set(config, "model_name_or_path", wanted->model));
    if (wanted->adapter)
        TD_TRY(td_cli_set(config, "adapter_name_or_path", wanted->adapter));
    if (!wanted->prompt == !wanted->chat)
        return td_fail(TD_ERR_USAGE, "give either --chat TEXT or --prompt TEXT");
    if (wanted->max_new_tokens < 1 || wanted->max_new_tokens > 1 << 24 || wanted->temperature < 0 ||
        wanted->top_p <= 0 || wanted->top_p > 1)
        return td_fail(TD_ERR_USAGE, "--max-new-tokens is in [1, 2^24], --temperature at least 0, "
                                     "--top-p in (0, 1]");
    return TD_OK;
}

static td_status encode_prompt(const td_tokenizer *tokenizer, const generate_options *wanted,
                               td_tokens *out) {
    td_message messages[2];
    td_rendered rendered = {0};
    const td_chat *chat;
    size_t count = 0;
    if (wanted->prompt)
        return td_tokenizer_encode(tokenizer, wanted->prompt, strlen(wanted->prompt), 1, out);
    if (wanted->system)
        messages[count++] = (td_message){"system", wanted->system};
    messages[count++] = (td_message){"user", wanted->chat};
    TD_TRY(td_tokenizer_chat(tokenizer, &chat));
    td_status status = td_chat_render_prompt(chat, messages, count, &rendered);
    if (status == TD_OK)
        status = td_tokenizer_encode(tokenizer, rendered.text, rendered.bytes, 0, out);
    td_rendered_fini(&rendered);
    return status;
}

static td_status answer(td_inference *inference, const generate_options *wanted,
                        const td_tokens *prompt, int32_t *ids) {
    const td_session *session = &inference->session;
    td_kv_cache *cache = NULL;
    int32_t stop_ids[TD_MAX_EOS + 2];
    int64_t count, capacity = (int64_t)prompt->count + wanted->max_new_tokens;
    printer out = {.tokenizer = session->tokenizer, .ids = ids};
    td_generate_options options = {
        .max_new_tokens = wanted->max_new_tokens,
        .temperature = wanted->temperature,
        .top_p = wanted->top_p,
        .seed = (uint64_t)wanted->seed,
        .stop_ids = stop_ids,
        .n_stop_ids = td_session_stop_ids(session, stop_ids),
        .on_token = on_token,
        .self = &out,
    };
    TD_TRY(td_kv_cache_create(&session->model, capacity, &session->context, &cache));
    int32_t *scratch = calloc((size_t)wanted->max_new_tokens, sizeof *scratch);
    td_status status =
        scratch ? td_generate(inference->transformer, inference->parameters, cache, prompt->ids,
                              (int64_t)prompt->count, &options, scratch, &count)
                : td_fail(TD_ERR_MEMORY, "no memory for the answer");
    if (status == TD_OK)
        print_new(&out, 1);
    if (status == TD_OK || out.written > 0)
        printf("\n");
    free(scratch);
    td_kv_cache_destroy(cache);
    return status;
}

static td_status generate(const td_config *config, td_comm *comm, const generate_options *wanted) {
    td_inference inference = {0};
    td_tokens prompt = {0};
    td_status status = td_inference_open(&inference, config, comm);
    if (status == TD_OK)
        status = inference.session.tokenizer
                     ? encode_prompt(inference.session.tokenizer, wanted, &prompt)
                     : td_fail(TD_ERR_DATA, "%s: no tokenizer.json", config->model_name_or_path);
    int32_t *ids = calloc((size_t)wanted->max_new_tokens, sizeof *ids);
    if (status == TD_OK && !ids)
        status = td_fail(TD_ERR_MEMORY, "no memory for the answer");
    if (status == TD_OK)
        status = td_inference_prepare(&inference, 256, 1,
                                      (int64_t)prompt.count + wanted->max_new_tokens);
    if (status == TD_OK)
        status = answer(&inference, wanted, &prompt, ids);
    free(ids);
    td_tokens_fini(&prompt);
    td_inference_close(&inference);
    return status;
}

static td_status run(const td_command *command, td_comm *comm, int argc, char **argv) {
    td_config config = {0};
    generate_options wanted = {.max_new_tokens = 256, .top_p = 1};
    int help = 0;
    td_status status = parse(command, argc, argv, &config, &wanted, &help);
    if (!help) {
        if (status == TD_OK && td_comm_size(comm) > 1)
            status = td_fail(TD_ERR_USAGE, "generate runs on one rank: start it without mpirun");
        status = td_comm_agree(comm, status, "command line");
        if (status == TD_OK)
            status = generate(&config, comm, &wanted);
    }
    td_config_fini(&config);
    return status;
}

const td_command td_command_generate = {
    .name = "generate",
    .arguments = "[CONFIG.json] --model FOLDER [--adapter FOLDER] (--chat TEXT | --prompt TEXT)",
    .summary = "answer a chat message or continue a text, with a base model or an adapter",
    .details = "The answer is printed as it grows. Greedy by default; --temperature and --top-p "
               "sample.\n\n"
               "example: tandem generate --model base --adapter runs/a/adapter --chat \"What is "
               "the weather in Oslo?\"",
    .run = run,
};
