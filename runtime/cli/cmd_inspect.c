#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/adapter.h"
#include "model/safetensors.h"
#include "runtime/cli/cli.h"
#include "runtime/core/files.h"
#include "runtime/core/json.h"
#include "runtime/data/lines.h"
#include "runtime/data/prepare.h"
#include "runtime/data/sources.h"
#include "runtime/data/store.h"

enum { MAX_LINE_BYTES = 64 << 20 };

typedef struct inspect_options {
    const char *path, *model;
    int64_t sample;
    int tensors;
    td_config config;
} inspect_options;

static int has_file(const char *folder, const char *name) {
    char path[TD_PATH_MAX];
    int found = td_path_join(path, folder, name) == TD_OK && td_path_exists(path);
    td_error_clear();
    return found;
}

static void print_tensor(const char *name, const td_tensor *tensor) {
    printf("  %-64s %-5s (", name, td_dtype_name(tensor->dtype));
    for (int i = 0; i < tensor->n_dims; i++)
        printf("%s%lld", i ? ", " : "", (long long)tensor->shape[i]);
    printf(")\n");
}

static td_status print_tensors(const char *path, int each) {
    td_safetensors *files;
    int64_t total = 0;
    TD_TRY(td_safetensors_open(path, &files));
    for (int64_t i = 0; i < td_safetensors_count(files); i++) {
        td_tensor tensor = td_safetensors_view(files, i);
        int64_t elements;
        td_status status = td_tensor_elements(&tensor, &elements);
        if (status != TD_OK) {
            td_safetensors_close(files);
            return status;
        }
        total += elements;
        if (each)
            print_tensor(td_safetensors_name(files, i), &tensor);
    }
    printf("tensors:      %lld with %lld parameters\n", (long long)td_safetensors_count(files),
           (long long)total);
    td_safetensors_close(files);
    return TD_OK;
}

static td_status inspect_model(const inspect_options *wanted) {
    td_model_config model;
    TD_TRY(td_model_config_read(wanted->path, &model));
    printf("family:       %s\nlayers:       %lld\nhidden:       %lld (MLP %lld)\n",
           model.family->name, (long long)model.n_layers, (long long)model.hidden,
           (long long)model.intermediate);
    printf("heads:        %lld of %lld, %lld for keys and values\n", (long long)model.n_heads,
           (long long)model.head_dim, (long long)model.n_kv_heads);
    printf("vocabulary:   %lld%s\n", (long long)model.vocabulary,
           model.tie_word_embeddings ? ", head tied to the embedding" : "");
    printf("positions:    %lld, RoPE %s, theta %g\n", (long long)model.max_positions,
           td_rope_kind_name(model.rope.kind), model.rope.theta);
    for (int i = 0; i < TD_PROJ_COUNT; i++)
        if (td_projection_exists(&model, (td_projection)i))
            printf("  %-20s (%lld, %lld)\n", td_projection_name((td_projection)i),
                   (long long)td_projection_out(&model, (td_projection)i),
                   (long long)td_projection_in(&model, (td_projection)i));
    if (has_file(wanted->path, "model.safetensors") ||
        has_file(wanted->path, "model.safetensors.index.json"))
        TD_TRY(print_tensors(wanted->path, wanted->tensors));
    return TD_OK;
}

static td_status inspect_adapter(const inspect_options *wanted) {
    char path[TD_PATH_MAX];
    td_adapter_info info;
    td_status status = td_adapter_info_read(wanted->path, &info);
    if (status == TD_OK) {
        printf("adapter:      LoRA, r %lld, alpha %g, dropout %g%s\ntargets:     ",
               (long long)info.rank, info.alpha, info.dropout,
               info.use_rslora ? ", rank-stabilized" : "");
        for (int i = 0; i < info.target_modules.count; i++)
            printf(" %s", info.target_modules.items[i]);
        printf("\n");
    }
    td_adapter_info_fini(&info);
    TD_TRY(status);
    TD_TRY(td_path_join(path, wanted->path, "adapter_model.safetensors"));
    return print_tensors(path, wanted->tensors);
}

static td_status inspect_checkpoint(const inspect_options *wanted) {
    char path[TD_PATH_MAX];
    cJSON *tree;
    TD_TRY(td_path_join(path, wanted->path, "manifest.json"));
    TD_TRY(td_json_read(path, (size_t)64 << 20, &tree));
    char *text = td_json_print(tree, 1);
    printf("%s\n", text ? text : "");
    free(text);
    cJSON_Delete(tree);
    return TD_OK;
}

static td_status inspect_store(const inspect_options *wanted) {
    td_store *store;
    char hash[TD_HASH_HEX_CHARS];
    TD_TRY(td_store_open(wanted->path, &store));
    td_status status = td_store_verify(store);
    if (status == TD_OK) {
        td_hash_to_hex(td_store_content_hash(store), hash);
        printf("rows:         %lld\ntokens:       %lld\nlargest id:   %d\ncontent hash: "
               "%s\naccount:      %s\n",
               (long long)td_store_rows(store), (long long)td_store_tokens(store),
               td_store_max_token(store), hash, td_store_account(store));
    }
    td_store_close(store);
    return status;
}

// Trained tokens in green on a terminal, in [[...]] elsewhere.
static td_status print_tokens(const td_tokenizer *tokenizer, const int32_t *tokens,
                              const uint8_t *trained, int64_t count) {
    int color = isatty(STDOUT_FILENO);
    for (int64_t begin = 0, end; begin < count; begin = end) {
        char *text;
        size_t bytes;
        for (end = begin + 1; end < count && trained[end] == trained[begin];)
            end++;
        TD_TRY(td_tokenizer_decode(tokenizer, tokens + begin, (size_t)(end - begin), 0, &text,
                                   &bytes));
        const char *before = !trained[begin] ? "" : color ? "\033[32m" : "[[";
        const char *after = !trained[begin] ? "" : color ? "\033[0m" : "]]";
        printf("%s%s%s", before, text, after);
        free(text);
    }
    printf("\n");
    return TD_OK;
}

// Ids that the model has rows for; without its config.json, those of the tokenizer.
static td_status find_vocabulary(const inspect_options *wanted, const td_tokenizer *tokenizer,
                                 int64_t *out) {
    td_model_config model;
    *out = td_tokenizer_size(tokenizer);
    if (!has_file(wanted->model, "config.json"))
        return TD_OK;
    TD_TRY(td_model_config_read(wanted->model, &model));
    *out = model.vocabulary;
    return TD_OK;
}

static td_status print_row(const inspect_options *wanted, const td_tokenizer *tokenizer,
                           const char *where, const td_line *line) {
    int32_t *tokens;
    uint8_t *trained;
    int64_t count, n_trained = 0;
    td_prepare_options options = {
        .tokenizer = tokenizer,
        .eos_id = td_tokenizer_eos_id(tokenizer),
        .max_length = wanted->config.max_length,
        .assistant_only_loss = wanted->config.assistant_only_loss,
        .completion_only_loss = wanted->config.completion_only_loss,
    };
    TD_TRY(find_vocabulary(wanted, tokenizer, &options.vocabulary));
    TD_TRY(td_prepare_row(&options, where, line->text, line->bytes, &tokens, &trained, &count));
    for (int64_t i = 0; i < count; i++)
        n_trained += trained[i];
    td_status status = print_tokens(tokenizer, tokens, trained, count);
    printf("%lld tokens, %lld trained\n", (long long)count, (long long)n_trained);
    free(trained);
    free(tokens);
    return status;
}

static td_status print_line(const inspect_options *wanted, const char *where, const td_line *line) {
    td_tokenizer *tokenizer;
    if (line->is_too_long)
        return td_fail(TD_ERR_DATA, "%s: longer than %d MiB", where, MAX_LINE_BYTES >> 20);
    TD_TRY(td_tokenizer_open(wanted->model, &tokenizer));
    td_status status = print_row(wanted, tokenizer, where, line);
    td_tokenizer_close(tokenizer);
    return status;
}

// Takes the lines of the file off *left, and shows the one at which none is left.
static td_status pass_lines(const inspect_options *wanted, td_line_reader *reader, int64_t *left) {
    char where[TD_PATH_MAX + 32];
    td_line line;
    int found;
    for (int64_t before = 0;; *left -= reader->number - before, before = reader->number) {
        TD_TRY(td_line_reader_next(reader, &line, &found));
        if (!found)
            return TD_OK;
        if (reader->number - before < *left)
            continue;
        *left = 0;
        td_line_where(reader->path, reader->is_list, reader->number, where, sizeof where);
        return print_line(wanted, where, &line);
    }
}

static td_status pass_file(const inspect_options *wanted, const char *path, int64_t *left) {
    td_line_reader reader;
    TD_TRY(td_line_reader_open(&reader, path, MAX_LINE_BYTES));
    td_status status = pass_lines(wanted, &reader, left);
    td_line_reader_close(&reader);
    return status;
}

// Line number `sample` of a file of rows as the model sees it, or of several one after another.
static td_status inspect_rows(const inspect_options *wanted) {
    char *name = (char *)wanted->path;
    td_string_list files;
    int64_t left = wanted->sample;
    if (!wanted->model)
        return td_fail(TD_ERR_USAGE, "rows need --model FOLDER for its tokenizer");
    TD_TRY(td_sources_expand(&(td_string_list){.items = &name, .count = 1}, &files));
    td_status status = TD_OK;
    for (int i = 0; i < files.count && left > 0 && status == TD_OK; i++)
        status = pass_file(wanted, files.items[i], &left);
    td_sources_fini(&files);
    if (status == TD_OK && left > 0)
        status = td_fail(TD_ERR_DATA, "%s: no row %lld, there are %lld", wanted->path,
                         (long long)wanted->sample, (long long)(wanted->sample - left));
    return status;
}

static int ends_with(const char *text, const char *ending) {
    size_t n = strlen(text), m = strlen(ending);
    return n >= m && strcmp(text + n - m, ending) == 0;
}

static td_status inspect(const inspect_options *wanted) {
    if (!td_path_exists(wanted->path)) {
        if (strpbrk(wanted->path, "*?["))
            return inspect_rows(wanted);
        return td_fail(TD_ERR_DATA, "%s: no such file or folder", wanted->path);
    }
    if (!td_path_is_folder(wanted->path)) {
        if (ends_with(wanted->path, ".safetensors"))
            return print_tensors(wanted->path, 1);
        return ends_with(wanted->path, ".h5") ? inspect_store(wanted) : inspect_rows(wanted);
    }
    if (has_file(wanted->path, "manifest.json"))
        return inspect_checkpoint(wanted);
    if (has_file(wanted->path, "adapter_config.json"))
        return inspect_adapter(wanted);
    return inspect_model(wanted);
}

static td_status parse(const td_command *command, int argc, char **argv, inspect_options *wanted,
                       int *help) {
    td_option_list assignments = {0};
    const td_option options[] = {
        {"--model", TD_OPTION_STRING, &wanted->model, "FOLDER", "rows: whose tokenizer to use"},
        {"--sample", TD_OPTION_INT, &wanted->sample, "N",
         "rows: which line to show, or element of a JSON list (1)"},
        {"--tensors", TD_OPTION_FLAG, &wanted->tensors, NULL, "model, adapter: list every tensor"},
        {"--set", TD_OPTION_LIST, &assignments, "KEY=VALUE", "rows: override a config key"},
    };
    TD_TRY(td_options_parse(command, options, sizeof options / sizeof *options, argc, argv,
                            &wanted->path, 1, help));
    if (*help)
        return TD_OK;
    if (!wanted->path)
        return td_fail(TD_ERR_USAGE, "name a file or folder (tandem inspect --help)");
    if (wanted->sample < 1)
        return td_fail(TD_ERR_USAGE, "--sample counts lines from 1");
    return td_cli_config(&wanted->config, NULL, &assignments);
}

static td_status run(const td_command *command, td_comm *comm, int argc, char **argv) {
    inspect_options wanted = {.sample = 1};
    int help = 0;
    td_status status = parse(command, argc, argv, &wanted, &help);
    if (!help && status == TD_OK && td_comm_rank(comm) == 0)
        status = inspect(&wanted);
    td_config_fini(&wanted.config);
    return help ? status : td_comm_agree(comm, status, "inspect");
}

const td_command td_command_inspect = {
    .name = "inspect",
    .arguments = "PATH [--model FOLDER] [--sample N] [--tensors]",
    .summary =
        "show what is in a model, adapter, checkpoint, token store, .safetensors file or JSONL row",
    .details = "A row is shown as the model sees it, with the tokens it is trained on marked. "
               "Files of rows may\n"
               "be compressed, JSON lists, or several by a pattern as in train_files.\n\n"
               "example: tandem inspect chats.jsonl --model base --sample 3",
    .run = run,
};
