// What no single key can tell: relations between keys, and files.
#include <math.h>
#include <string.h>

#include "runtime/core/config.h"
#include "runtime/core/files.h"

static td_status check_model(const td_config *config) {
    const char *model = config->model_name_or_path;
    const char *adapter = config->adapter_name_or_path;
    if (!model || !model[0])
        return td_fail(TD_ERR_USAGE, "model_name_or_path is not set; give the folder of a model");
    if (!td_path_is_folder(model))
        return td_fail(TD_ERR_DATA, "model_name_or_path: there is no folder \"%s\"", model);
    if (adapter && !td_path_is_folder(adapter))
        return td_fail(TD_ERR_DATA, "adapter_name_or_path: there is no folder \"%s\"", adapter);
    return TD_OK;
}

static td_status check_pattern(const char *name, const cJSON *pattern, int whole_numbers) {
    const cJSON *item;
    cJSON_ArrayForEach(item, pattern) {
        double value = cJSON_IsNumber(item) ? item->valuedouble : -1;
        int is_right = value > 0 && value <= 1e6 && (!whole_numbers || value == floor(value));
        if (!is_right)
            return td_fail(TD_ERR_USAGE, "%s: the value of \"%.60s\" must be a positive %s", name,
                           item->string, whole_numbers ? "integer" : "number");
    }
    return TD_OK;
}

static td_status check_lora(const td_config *config) {
    if (config->target_modules.count == 0)
        return td_fail(TD_ERR_USAGE, "target_modules is empty; nothing would be trained");
    TD_TRY(check_pattern("rank_pattern", config->rank_pattern, 1));
    return check_pattern("alpha_pattern", config->alpha_pattern, 0);
}

// What a pattern names is found when the data is read.
static td_status check_files(const char *name, const td_string_list *files) {
    for (int i = 0; i < files->count; i++)
        if (!td_path_exists(files->items[i]) && !strpbrk(files->items[i], "*?["))
            return td_fail(TD_ERR_DATA, "%s: there is no file \"%s\"", name, files->items[i]);
    return TD_OK;
}

static td_status check_data(const td_config *config) {
    if (config->train_files.count == 0 && config->eval_files.count == 0)
        return td_fail(TD_ERR_USAGE, "train_files is empty; give at least one JSON Lines file");
    if (config->eval_split_ratio > 0 && config->train_files.count == 0)
        return td_fail(TD_ERR_USAGE, "eval_split_ratio is set but train_files is empty");
    if (config->test_split_ratio > 0 && config->train_files.count == 0)
        return td_fail(TD_ERR_USAGE, "test_split_ratio is set but train_files is empty");
    if (config->eval_split_ratio > 0 && config->eval_files.count > 0)
        return td_fail(TD_ERR_USAGE, "eval_split_ratio and eval_files are both set; choose one");
    if (config->eval_split_ratio + config->test_split_ratio > 0.95)
        return td_fail(TD_ERR_USAGE,
                       "eval_split_ratio and test_split_ratio together (%g) leave less than 0.05 "
                       "of the rows for training",
                       config->eval_split_ratio + config->test_split_ratio);
    TD_TRY(check_files("train_files", &config->train_files));
    return check_files("eval_files", &config->eval_files);
}

td_status td_config_check_steps(const td_config *config) {
    if (config->packing && config->micro_batch_tokens != 0 &&
        config->micro_batch_tokens < config->max_length)
        return td_fail(TD_ERR_USAGE,
                       "micro_batch_tokens (%lld) is less than max_length (%lld): the longest "
                       "sequences would fit nowhere",
                       (long long)config->micro_batch_tokens, (long long)config->max_length);
    if (config->max_steps == 0)
        return td_fail(TD_ERR_USAGE, "max_steps is 0; use -1 to train for num_train_epochs");
    if (config->optim == TD_OPTIM_ADAMW_8BIT && config->page_elements % 256 != 0)
        return td_fail(TD_ERR_USAGE,
                       "page_elements (%lld) must be a multiple of 256 with optim \"adamw_8bit\"",
                       (long long)config->page_elements);
    return TD_OK;
}

static td_status check_run(const td_config *config) {
    const char *resume = config->resume_from_checkpoint;
    int has_eval_data = config->eval_files.count > 0 || config->eval_split_ratio > 0;
    if (!config->output_dir || !config->output_dir[0])
        return td_fail(TD_ERR_USAGE, "output_dir is not set");
    if (td_path_exists(config->output_dir) && !td_path_is_folder(config->output_dir))
        return td_fail(TD_ERR_USAGE, "output_dir: \"%s\" is not a folder", config->output_dir);
    if (!resume || !resume[0])
        return td_fail(TD_ERR_USAGE,
                       "resume_from_checkpoint is not set; use \"auto\", \"never\" or "
                       "a checkpoint folder");
    if (strcmp(resume, "auto") != 0 && strcmp(resume, "never") != 0 && !td_path_is_folder(resume))
        return td_fail(TD_ERR_DATA, "resume_from_checkpoint: there is no folder \"%s\"", resume);
    if (config->load_best_model_at_end && !has_eval_data)
        return td_fail(TD_ERR_USAGE, "load_best_model_at_end needs eval_files or eval_split_ratio");
    return TD_OK;
}

td_status td_config_check(const td_config *config) {
    TD_TRY(check_model(config));
    TD_TRY(check_lora(config));
    TD_TRY(td_config_check_steps(config));
    TD_TRY(check_data(config));
    return check_run(config);
}
