#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/chat.h"
#include "runtime/cli/cli.h"
#include "runtime/core/log.h"
#include "runtime/train/batch_answers.h"
#include "runtime/train/inference.h"

typedef struct generate_options {
    const char *model, *adapter, *prompt, *chat, *system, *batch, *output;
    int64_t max_new_tokens, seed;
    double temperature, top_p;
    int interactive, resume;
} generate_options;

static td_status check_numbers(const generate_options *wanted) {
    if (wanted->max_new_tokens < 1 || wanted->max_new_tokens > 1 << 24 || wanted->temperature < 0 ||
        wanted->top_p <= 0 || wanted->top_p > 1)
        return td_fail(TD_ERR_USAGE, "--max-new-tokens is in [1, 2^24], --temperature at least 0, "
                                     "--top-p in (0, 1]");
    return TD_OK;
}

static td_status check_choice(const generate_options *wanted) {
    int n = !!wanted->chat + !!wanted->prompt + !!wanted->batch + wanted->interactive;
    if (n != 1)
        return td_fail(TD_ERR_USAGE, "give either --chat TEXT, --prompt TEXT, --interactive or "
                                     "--batch FILE");
    if (!wanted->batch != !wanted->output)
        return td_fail(TD_ERR_USAGE, "--batch FILE and --out FILE go together");
    if (wanted->resume && !wanted->batch)
        return td_fail(TD_ERR_USAGE, "--resume goes with --batch FILE");
    if (wanted->system && !wanted->chat && !wanted->interactive)
        return td_fail(TD_ERR_USAGE, "--system goes with --chat TEXT or --interactive");
    return TD_OK;
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
        {"--interactive", TD_OPTION_FLAG, &wanted->interactive, NULL,
         "a chat with what is typed, line by line"},
        {"--prompt", TD_OPTION_STRING, &wanted->prompt, "TEXT", "plain text to continue"},
        {"--batch", TD_OPTION_STRING, &wanted->batch, "FILE",
         "answer every row of a JSONL file; on any number of ranks"},
        {"--out", TD_OPTION_STRING, &wanted->output, "FILE", "batch: where to; must not exist yet"},
        {"--resume", TD_OPTION_FLAG, &wanted->resume, NULL,
         "batch: go on after the answers that --out holds"},
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
    TD_TRY(td_cli_set(config, "model_name_or_path", wanted->model));
    TD_TRY(td_cli_set(config, "adapter_name_or_path", wanted->adapter));
    TD_TRY(check_choice(wanted));
    return check_numbers(wanted);
}

typedef struct printer {
    td_token_stream *stream;
    td_status status; // of the first failure
    size_t bytes;     // written
} printer;

static void print_text(printer *self, const char *text, size_t bytes) {
    if (bytes == 0)
        return;
    fwrite(text, 1, bytes, stdout);
    fflush(stdout);
    self->bytes += bytes;
}

static void on_token(void *context, int32_t id) {
    printer *self = context;
    const char *text;
    size_t bytes;
    if (self->status == TD_OK)
        self->status = td_token_stream_push(self->stream, id, &text, &bytes);
    if (self->status == TD_OK)
        print_text(self, text, bytes);
}

static void print_rest(printer *self) {
    const char *text;
    size_t bytes;
    if (self->status == TD_OK)
        self->status = td_token_stream_finish(self->stream, &text, &bytes);
    if (self->status == TD_OK)
        print_text(self, text, bytes);
    if (self->bytes > 0 || self->status == TD_OK)
        printf("\n");
}

static td_status ask(td_inference *inference, const generate_options *wanted, printer *out,
                     const td_tokens *prompt, uint32_t turn, td_answer *answer) {
    td_answerer answerer = {0};
    const td_generate_options sampling = {
        .temperature = wanted->temperature,
        .top_p = wanted->top_p,
        .seed = (uint64_t)wanted->seed,
        .sequence = turn,
        .on_token = on_token,
        .self = out,
    };
    TD_TRY(
        td_inference_prepare(inference, 256, 1, (int64_t)prompt->count + wanted->max_new_tokens));
    td_status status = td_answerer_init(&answerer, &inference->session, inference->transformer,
                                        (int64_t)prompt->count, wanted->max_new_tokens);
    if (status == TD_OK)
        status = td_answerer_ask(&answerer, inference->parameters, prompt, &sampling, 1, answer);
    if (status == TD_OK || out->bytes > 0)
        print_rest(out);
    td_answerer_fini(&answerer);
    return status == TD_OK ? out->status : status;
}

// The caller frees *out_text.
static td_status answer(td_inference *inference, const generate_options *wanted,
                        const td_tokens *prompt, uint32_t turn, char **out_text) {
    printer out = {0};
    td_answer answer = {0};
    TD_TRY(td_token_stream_create(inference->session.tokenizer, 1, &out.stream));
    td_status status = ask(inference, wanted, &out, prompt, turn, &answer);
    td_token_stream_destroy(out.stream);
    if (status == TD_OK)
        *out_text = answer.text;
    else
        free(answer.text);
    return status;
}

static td_status encode_chat(const td_tokenizer *tokenizer, const td_message *messages,
                             size_t count, td_tokens *out) {
    td_rendered rendered = {0};
    const td_chat *chat;
    TD_TRY(td_tokenizer_chat(tokenizer, &chat));
    td_status status = td_chat_render_prompt(chat, messages, count, &rendered);
    if (status == TD_OK)
        status = td_tokenizer_encode(tokenizer, rendered.text, rendered.bytes, 0, out);
    td_rendered_fini(&rendered);
    return status;
}

static td_status encode_prompt(const td_tokenizer *tokenizer, const generate_options *wanted,
                               td_tokens *out) {
    td_message messages[2];
    size_t count = 0;
    if (wanted->prompt)
        return td_tokenizer_encode(tokenizer, wanted->prompt, strlen(wanted->prompt), 1, out);
    if (wanted->system)
        messages[count++] = (td_message){"system", wanted->system};
    messages[count++] = (td_message){"user", wanted->chat};
    return encode_chat(tokenizer, messages, count, out);
}

static td_status answer_once(td_inference *inference, const generate_options *wanted) {
    td_tokens prompt = {0};
    char *text = NULL;
    td_status status = encode_prompt(inference->session.tokenizer, wanted, &prompt);
    if (status == TD_OK)
        status = answer(inference, wanted, &prompt, 0, &text);
    free(text);
    td_tokens_fini(&prompt);
    return status;
}

enum { MAX_TURNS = 512 };

typedef struct talk {
    td_message messages[2 * MAX_TURNS + 1]; // contents are owned, from `first` on
    size_t first, count;
} talk;

static td_status take_turn(td_inference *inference, const generate_options *wanted, talk *self,
                           char *line) {
    td_tokens prompt = {0};
    char *text = NULL;
    uint32_t turn = (uint32_t)self->count;
    self->messages[self->count++] = (td_message){"user", line};
    td_status status =
        encode_chat(inference->session.tokenizer, self->messages, self->count, &prompt);
    if (status == TD_OK)
        status = answer(inference, wanted, &prompt, turn, &text);
    td_tokens_fini(&prompt);
    if (status == TD_OK)
        self->messages[self->count++] = (td_message){"assistant", text};
    return status;
}

static td_status read_turns(td_inference *inference, const generate_options *wanted, talk *self) {
    td_status status = TD_OK;
    size_t room;
    while (status == TD_OK && self->count + 2 <= sizeof self->messages / sizeof *self->messages) {
        char *line = NULL;
        room = 0;
        fprintf(stderr, "> ");
        ssize_t bytes = getline(&line, &room, stdin);
        if (bytes >= 0 && strspn(line, " \t\r\n") < (size_t)bytes) {
            line[strcspn(line, "\r\n")] = '\0';
            status = take_turn(inference, wanted, self, line);
            continue;
        }
        free(line);
        if (bytes < 0)
            return TD_OK;
    }
    return status;
}

static td_status talk_on(td_inference *inference, const generate_options *wanted) {
    talk *self = calloc(1, sizeof *self);
    if (!self)
        return td_fail(TD_ERR_MEMORY, "no memory for a chat");
    if (wanted->system)
        self->messages[self->count++] = (td_message){"system", wanted->system};
    self->first = self->count;
    td_status status = read_turns(inference, wanted, self);
    for (size_t i = self->first; i < self->count; i++)
        free((char *)(uintptr_t)self->messages[i].content);
    free(self);
    return status;
}

static td_status answer_file(td_inference *inference, const generate_options *wanted) {
    td_batch_answers_account account;
    const td_batch_answers_options options = {
        .rows = wanted->batch,
        .output = wanted->output,
        .resume = wanted->resume,
        .max_new_tokens = wanted->max_new_tokens,
        .temperature = wanted->temperature,
        .top_p = wanted->top_p,
        .seed = (uint64_t)wanted->seed,
    };
    TD_TRY(td_batch_answers_run(inference, &options, &account));
    if (account.n_bad > 0 && td_comm_rank(inference->session.comm) == 0)
        td_warn("%lld malformed rows: in their place stands what is wrong with them",
                (long long)account.n_bad);
    td_info("%s: %lld answers, %lld of them from before; %lld tokens in %.1f s (%.1f tokens/s)",
            wanted->output, (long long)account.n_rows, (long long)account.n_kept,
            (long long)account.n_tokens, account.seconds,
            account.seconds > 0 ? (double)account.n_tokens / account.seconds : 0);
    return TD_OK;
}

static td_status generate(const td_config *config, td_comm *comm, const generate_options *wanted) {
    td_inference inference = {0};
    td_status status = td_inference_open(&inference, config, comm);
    if (status == TD_OK && !inference.session.tokenizer)
        status = td_comm_agree(
            comm, td_fail(TD_ERR_DATA, "%s: no tokenizer.json", config->model_name_or_path),
            "tokenizer");
    if (status == TD_OK)
        status = wanted->batch         ? answer_file(&inference, wanted)
                 : wanted->interactive ? talk_on(&inference, wanted)
                                       : answer_once(&inference, wanted);
    td_inference_close(&inference);
    return status;
}

static td_status run(const td_command *command, td_comm *comm, int argc, char **argv) {
    td_config config = {0};
    generate_options wanted = {.max_new_tokens = 256, .top_p = 1};
    int help = 0;
    td_status status = parse(command, argc, argv, &config, &wanted, &help);
    if (!help) {
        if (status == TD_OK && td_comm_size(comm) > 1 && !wanted.batch)
            status = td_fail(TD_ERR_USAGE, "generate runs on one rank unless it answers a file "
                                           "(--batch): start it without mpirun");
        status = td_comm_agree(comm, status, "command line");
        if (status == TD_OK)
            status = generate(&config, comm, &wanted);
    }
    td_config_fini(&config);
    return status;
}

const td_command td_command_generate = {
    .name = "generate",
    .arguments = "[CONFIG.json] --model FOLDER [--adapter FOLDER] (--chat TEXT | --prompt TEXT | "
                 "--interactive | --batch FILE --out FILE)",
    .summary = "answer a chat message, a file of them, or continue a text, with a base model or an "
               "adapter",
    .details =
        "The answer is printed as it grows. Greedy by default; --temperature and --top-p sample.\n"
        "--batch takes the rows that training takes, with or without their answers, and writes "
        "every row with\n"
        "\"completion\", \"completion_tokens\" and \"finish_reason\" (stop or length) added: the "
        "same bytes on any number of\n"
        "ranks.\n\n"
        "example: tandem generate --model base --adapter runs/a/adapter --chat \"What is "
        "the weather in Oslo?\"\n"
        "         mpirun -n 2 tandem generate --model base --batch asks.jsonl --out answers.jsonl",
    .run = run,
};
