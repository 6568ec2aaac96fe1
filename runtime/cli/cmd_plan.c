#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/adapter.h"
#include "runtime/cli/cli.h"
#include "runtime/train/planner.h"

typedef struct plan_options {
    const char *config_path, *model, *data;
    const char *tokens, *rows, *entropy, *gpu_memory;
    double epochs, tokens_per_second, price_per_hour; // NAN: not given
    int64_t ranks;
    int json;
    td_config config;
} plan_options;

// What the numbers need while the plan is made and printed.
typedef struct plan_inputs {
    char folder[TD_PATH_MAX];
    td_model_config model;
    td_adapter_info adapter;
    int has_adapter;
    td_lora_options lora;
    td_store *store;
} plan_inputs;

// "140.42M": a number with a unit out of `units`, each `step` times the one before.
static td_status parse_quantity(const char *option, const char *text, double step, double largest,
                                double *out) {
    static const char units[] = "KMGT";
    char *end;
    errno = 0;
    double value = strtod(text, &end);
    const char *unit = end != text && *end ? strchr(units, *end) : NULL;
    if (unit && step == 1000 && *end == 'G')
        unit = NULL;
    if (!unit && step == 1000 && *end == 'B') // billions
        unit = units + 2;
    if (unit) {
        value *= pow(step, (double)(unit - units + 1));
        end++;
    }
    if (end == text || *end || errno != 0 || !(value >= 1 && value <= largest))
        return td_fail(TD_ERR_USAGE,
                       "%s: %s is not a number from 1 to %g, with %s behind it or none", option,
                       text, largest, step == 1000 ? "K, M, B or T" : "K, M, G or T");
    *out = round(value);
    return TD_OK;
}

static td_status parse_count(const char *option, const char *text, int64_t *out) {
    double value = 0;
    if (!text)
        return TD_OK;
    TD_TRY(parse_quantity(option, text, 1000, 1e15, &value));
    *out = (int64_t)value;
    return TD_OK;
}

static td_status parse_gpu_memory(const char *text, size_t *out) {
    double value = 0;
    if (!text)
        return TD_OK;
    TD_TRY(parse_quantity("--gpu-memory", text, 1024, 0x1p50, &value));
    *out = (size_t)value;
    return TD_OK;
}

// Bits per token of what the data is, or a number of them.
static td_status parse_entropy(const char *text, double *out) {
    static const struct {
        const char *name;
        double bits;
    } kinds[] = {{"instruction", 4.5}, {"text", 6.5}, {"code", 2.5}};
    char *end;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strcmp(text, kinds[i].name) == 0) {
            *out = kinds[i].bits;
            return TD_OK;
        }
    *out = strtod(text, &end);
    if (end == text || *end || !(*out > 0 && *out <= 64))
        return td_fail(TD_ERR_USAGE,
                       "--entropy: %s is not instruction, text, code or a number of bits per token "
                       "above 0 and up to 64",
                       text);
    return TD_OK;
}

static td_status check_positive(const char *option, double value, double largest) {
    if (isnan(value) || (value > 0 && value <= largest))
        return TD_OK;
    return td_fail(TD_ERR_USAGE, "%s must be above 0 and at most %g, found %g", option, largest,
                   value);
}

static td_status check(const plan_options *wanted) {
    if (wanted->ranks < 1 || wanted->ranks > 4096)
        return td_fail(TD_ERR_USAGE, "--ranks is in [1, 4096], found %lld",
                       (long long)wanted->ranks);
    TD_TRY(check_positive("--epochs", wanted->epochs, 1e6));
    TD_TRY(check_positive("--tokens-per-second", wanted->tokens_per_second, 1e12));
    if (wanted->price_per_hour < 0 || wanted->price_per_hour > 1e9)
        return td_fail(TD_ERR_USAGE, "--price-per-hour is in [0, 1e9], found %g",
                       wanted->price_per_hour);
    if (wanted->data && (wanted->tokens || wanted->rows))
        return td_fail(TD_ERR_USAGE, "--data says how many tokens and rows there are: give either "
                                     "it or --tokens and --rows");
    if (!wanted->gpu_memory && wanted->config.device == TD_DEVICE_CUDA)
        return td_fail(TD_ERR_USAGE, "device \"cuda\": say how large the GPU's memory is, as in "
                                     "--gpu-memory 80G");
    return TD_OK;
}

// A folder, or the config.json in it.
static td_status find_folder(const plan_options *wanted, char out[TD_PATH_MAX]) {
    static const char name[] = "config.json";
    const char *path = wanted->model ? wanted->model : wanted->config.model_name_or_path;
    if (!path || !path[0])
        return td_fail(TD_ERR_USAGE, "name a config, or a model with --model (tandem plan --help)");
    if (!td_path_exists(path))
        return td_fail(TD_ERR_DATA, "%s: no such file or folder", path);
    size_t chars = strlen(path);
    if (chars >= TD_PATH_MAX)
        return td_fail(TD_ERR_USAGE, "the path of the model is too long");
    memcpy(out, path, chars + 1);
    if (td_path_is_folder(path))
        return TD_OK;
    char *slash = strrchr(out, '/');
    if (strcmp(slash ? slash + 1 : out, name) != 0)
        return td_fail(TD_ERR_DATA, "%s: expected the folder of a model or its config.json", path);
    if (slash)
        slash[slash == out] = '\0';
    else
        memcpy(out, ".", 2);
    return TD_OK;
}

static int has_file(const char *folder, const char *name) {
    char path[TD_PATH_MAX];
    int found = td_path_join(path, folder, name) == TD_OK && td_path_exists(path);
    td_error_clear();
    return found;
}

// Of the weights, where they are; models come in BF16 otherwise.
static td_status find_dtype(const char *folder, td_dtype *out) {
    *out = TD_BF16;
    if (!has_file(folder, "model.safetensors") && !has_file(folder, "model.safetensors.index.json"))
        return TD_OK;
    return td_base_peek_dtype(folder, out);
}

static td_status find_adapter(const td_config *config, plan_inputs *inputs) {
    if (config->adapter_name_or_path) {
        inputs->has_adapter = 1;
        TD_TRY(td_adapter_info_read(config->adapter_name_or_path, &inputs->adapter));
        inputs->lora = td_adapter_lora_options(&inputs->adapter);
        return TD_OK;
    }
    inputs->lora = (td_lora_options){
        .rank = config->lora_r,
        .alpha = config->lora_alpha,
        .dropout = config->lora_dropout,
        .use_rslora = config->use_rslora,
        .target_modules = &config->target_modules,
        .target_modules_is_pattern = config->target_modules_is_pattern,
        .rank_pattern = config->rank_pattern,
        .alpha_pattern = config->alpha_pattern,
    };
    return TD_OK;
}

static td_status print(const plan_options *wanted, const plan_inputs *inputs,
                       const td_planner *planner) {
    if (wanted->json)
        TD_TRY(td_planner_print_json(planner, inputs->folder, stdout));
    else
        td_planner_print(planner, inputs->folder, stdout);
    if (planner->memory.chosen >= 0)
        return TD_OK;
    return td_fail(TD_ERR_MEMORY, "%s", planner->memory.refusal);
}

static td_status plan_with(plan_options *wanted, plan_inputs *inputs) {
    td_config *config = &wanted->config;
    td_planner planner = {0};
    td_planner_options options = {
        .config = config,
        .model = &inputs->model,
        .lora = &inputs->lora,
        .n_ranks = (int)wanted->ranks,
        .tokens_per_second = isnan(wanted->tokens_per_second) ? 0 : wanted->tokens_per_second,
        .price_per_hour = isnan(wanted->price_per_hour) ? -1 : wanted->price_per_hour,
    };
    TD_TRY(parse_count("--tokens", wanted->tokens, &options.tokens));
    TD_TRY(parse_count("--rows", wanted->rows, &options.rows));
    TD_TRY(parse_gpu_memory(wanted->gpu_memory, &options.gpu_bytes));
    TD_TRY(parse_entropy(wanted->entropy, &options.bits_per_token));
    if (!isnan(wanted->epochs)) {
        config->num_train_epochs = wanted->epochs;
        config->max_steps = -1;
    }
    TD_TRY(find_folder(wanted, inputs->folder));
    TD_TRY(td_model_config_read(inputs->folder, &inputs->model));
    TD_TRY(find_dtype(inputs->folder, &options.embedding_dtype));
    TD_TRY(find_adapter(config, inputs));
    if (wanted->data)
        TD_TRY(td_store_open(wanted->data, &inputs->store));
    options.store = inputs->store;
    td_status status = td_planner_make(&options, &planner);
    if (status == TD_OK)
        status = print(wanted, inputs, &planner);
    td_planner_fini(&planner);
    return status;
}

static td_status plan(plan_options *wanted) {
    plan_inputs inputs = {0};
    td_status status = plan_with(wanted, &inputs);
    td_store_close(inputs.store);
    if (inputs.has_adapter)
        td_adapter_info_fini(&inputs.adapter);
    return status;
}

static td_status parse(const td_command *command, int argc, char **argv, plan_options *wanted,
                       int *help) {
    td_option_list assignments = {0};
    const td_option options[] = {
        {"--model", TD_OPTION_STRING, &wanted->model, "FOLDER",
         "model folder or its config.json, in place of the config's"},
        {"--tokens", TD_OPTION_STRING, &wanted->tokens, "N",
         "tokens of the data, one epoch: 140420000 or 140.42M"},
        {"--rows", TD_OPTION_STRING, &wanted->rows, "N", "rows of the data"},
        {"--data", TD_OPTION_STRING, &wanted->data, "STORE",
         "count them in a token store (OUTPUT_DIR/data/train.h5 of a run)"},
        {"--epochs", TD_OPTION_FLOAT, &wanted->epochs, "E", "in place of the config's"},
        {"--entropy", TD_OPTION_STRING, &wanted->entropy, "KIND",
         "of the data: instruction (4.5 bits per token), text (6.5), code (2.5) or BITS"},
        {"--ranks", TD_OPTION_INT, &wanted->ranks, "N", "of the job (1)"},
        {"--gpu-memory", TD_OPTION_STRING, &wanted->gpu_memory, "SIZE",
         "plan for GPUs with this memory, as 80G (GiB); without: for the CPU"},
        {"--tokens-per-second", TD_OPTION_FLOAT, &wanted->tokens_per_second, "X",
         "of all ranks together, as tandem bench step measures it"},
        {"--price-per-hour", TD_OPTION_FLOAT, &wanted->price_per_hour, "Y", "of one rank"},
        {"--json", TD_OPTION_FLAG, &wanted->json, NULL, "print one JSON object"},
        {"--set", TD_OPTION_LIST, &assignments, "KEY=VALUE",
         "override a config key; may be repeated"},
    };
    TD_TRY(td_options_parse(command, options, sizeof options / sizeof *options, argc, argv,
                            &wanted->config_path, 1, help));
    if (*help)
        return TD_OK;
    TD_TRY(td_cli_config(&wanted->config, wanted->config_path, &assignments));
    return check(wanted);
}

static td_status run(const td_command *command, td_comm *comm, int argc, char **argv) {
    plan_options wanted = {.entropy = "instruction",
                           .epochs = NAN,
                           .tokens_per_second = NAN,
                           .price_per_hour = NAN,
                           .ranks = 1};
    int help = 0;
    td_status status = parse(command, argc, argv, &wanted, &help);
    if (!help && status == TD_OK && td_comm_rank(comm) == 0)
        status = plan(&wanted);
    td_config_fini(&wanted.config);
    return help ? status : td_comm_agree(comm, status, "plan");
}

const td_command td_command_plan = {
    .name = "plan",
    .arguments = "[CONFIG] [--model FOLDER] [--tokens N] [--ranks N] [--gpu-memory SIZE]",
    .summary = "parameters, adapter capacity by rank, memory, steps, time and cost of a run",
    .details =
        "From the model's config.json alone; no weights are needed. The rank is recommended by "
        "how much\n"
        "information the data holds and the adapter can store. Code 4 when the run does not fit "
        "into the memory\n"
        "given.\n\n"
        "example: tandem plan --model configs/shapes/qwen3-1.7b --tokens 140.42M --epochs 2 "
        "--entropy 6.4",
    .run = run,
};
