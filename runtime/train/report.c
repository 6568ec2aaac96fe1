#include "runtime/train/report.h"

#include <stdlib.h>

#include "runtime/core/files.h"
#include "runtime/core/log.h"
#include "runtime/data/sources.h"
#include "runtime/train/metrics.h"
#include "runtime/train/report_text.h"

static const char *const headings[TD_MAX_CONTENDERS] = {"base", "tuned", "base with examples"};

static double share_of(int64_t part, int64_t whole) {
    return whole > 0 ? (double)part / (double)whole : 0;
}

typedef void (*print_cell)(td_report_text *out, const td_comparison *it, int column);

static void print_loss(td_report_text *out, const td_comparison *it, int column) {
    td_report_print(out, "%.4f", it->losses[column]);
}

static void print_perplexity(td_report_text *out, const td_comparison *it, int column) {
    td_report_print(out, "%.3f", td_perplexity(it->losses[column]));
}

static void print_matches(td_report_text *out, const td_comparison *it, int column) {
    int64_t matches = it->answers.scores[column].n_matches;
    td_report_print(out, "%.1f %% (%lld of %lld)", 100 * share_of(matches, it->answers.n_rows),
                    (long long)matches, (long long)it->answers.n_rows);
}

static void print_interval(td_report_text *out, const td_comparison *it, int column) {
    double low, high;
    td_wilson_interval(it->answers.scores[column].n_matches, it->answers.n_rows, &low, &high);
    td_report_print(out, "%.1f to %.1f %%", 100 * low, 100 * high);
}

static void print_length(td_report_text *out, const td_comparison *it, int column) {
    td_report_print(out, "%.1f", share_of(it->answers.scores[column].n_tokens, it->answers.n_rows));
}

static void print_unfinished(td_report_text *out, const td_comparison *it, int column) {
    td_report_print(out, "%lld", (long long)it->answers.scores[column].n_unfinished);
}

static void print_loss_seconds(td_report_text *out, const td_comparison *it, int column) {
    td_report_print(out, "%.1f s", it->loss_seconds[column]);
}

static void print_answer_seconds(td_report_text *out, const td_comparison *it, int column) {
    td_report_print(out, "%.1f s", it->answers.scores[column].seconds);
}

static const struct {
    const char *name;
    print_cell print;
    int is_of_answers; // left out where no row asks anything
} rows[] = {
    {"loss per token", print_loss, 0},
    {"perplexity", print_perplexity, 0},
    {"exact match", print_matches, 1},
    {"its 95 % interval (Wilson)", print_interval, 1},
    {"mean length of answers, tokens", print_length, 1},
    {"answers cut off", print_unfinished, 1},
    {"time for the loss", print_loss_seconds, 0},
    {"time for the answers", print_answer_seconds, 1},
};

static void print_examples(td_report_text *out, const td_comparison *it) {
    const td_score *score = &it->answers.scores[TD_COLUMN_FEW_SHOT];
    td_report_print(out,
                    "Examples are training rows as earlier turns, the same %lld for every row. ",
                    (long long)it->n_examples);
    if (score->n_shortened > 0 || it->n_loss_shortened > 0)
        td_report_print(out,
                        "Not all fit before %lld questions and %lld rows of the loss (limit: %lld "
                        "tokens), which had fewer: %.2f on average before a question.\n",
                        (long long)score->n_shortened, (long long)it->n_loss_shortened,
                        (long long)it->max_with_examples,
                        share_of(score->n_examples, it->answers.n_rows));
    else
        td_report_print(out, "All fit before every row.\n");
}

static void print_counts(td_report_text *out, const td_comparison *it) {
    td_report_print(out, "\n\nThe loss is the mean over %lld trained tokens of %lld rows. ",
                    (long long)it->n_loss_tokens, (long long)it->n_loss_rows);
    if (it->answers.n_rows == 0)
        td_report_print(out, "No row asks a question, so that there are no answers.\n");
    else
        td_report_print(out,
                        "%lld questions were answered greedily, %lld rows skipped. Tuned right and "
                        "base wrong: %lld; base right and tuned wrong: %lld.\n",
                        (long long)it->answers.n_rows, (long long)it->answers.n_skipped,
                        (long long)it->answers.n_gained, (long long)it->answers.n_lost);
}

static void print_results(td_report_text *out, const td_comparison *it) {
    td_report_print(out, "|  |");
    for (int i = 0; i < it->n_columns; i++)
        td_report_print(out, " %s |", headings[i]);
    td_report_print(out, "\n|:--|");
    for (int i = 0; i < it->n_columns; i++)
        td_report_print(out, "--:|");
    for (size_t row = 0; row < sizeof rows / sizeof *rows; row++) {
        if (rows[row].is_of_answers && it->answers.n_rows == 0)
            continue;
        td_report_print(out, "\n| %s |", rows[row].name);
        for (int i = 0; i < it->n_columns; i++) {
            td_report_print(out, " ");
            rows[row].print(out, it, i);
            td_report_print(out, " |");
        }
    }
    print_counts(out, it);
    if (it->n_columns > TD_COLUMN_FEW_SHOT)
        print_examples(out, it);
}

static void print_setting(td_report_text *out, const char *name, const char *value) {
    td_report_print(out, "| %s | ", name);
    td_report_add_cell(out, value);
    td_report_print(out, " |\n");
}

static void print_number(td_report_text *out, const char *name, int64_t value) {
    td_report_print(out, "| %s | %lld |\n", name, (long long)value);
}

static void print_settings(td_report_text *out, const td_report_subject *subject) {
    const td_config *config = subject->session->config;
    td_report_print(out, "\n## Settings\n\n| | |\n|:--|:--|\n");
    print_setting(out, "base model", config->model_name_or_path);
    print_setting(out, "adapter", config->adapter_name_or_path);
    for (int i = 0; i < config->eval_files.count; i++)
        print_setting(out, "evaluated on", config->eval_files.items[i]);
    for (int i = 0; i < subject->options->example_files->count; i++)
        if (subject->options->n_examples > 0)
            print_setting(out, "examples from", subject->options->example_files->items[i]);
    print_setting(out, "base weights", config->load_in_4bit ? "NF4" : "as stored");
    print_setting(out, "computed on", subject->session->context.device->table->name);
    print_number(out, "ranks", td_comm_size(subject->session->comm));
    print_number(out, "examples", subject->options->n_examples);
    print_number(out, "seed", config->seed);
    print_number(out, "max&#95;length", config->max_length);
    print_number(out, "longest answer, tokens", subject->options->answers.max_new_tokens);
    print_number(out, "first rows only (0: all)", subject->options->answers.limit);
}

// What is compared must be known, not guessed: a file that cannot be read any more ends the report.
typedef struct fingerprints {
    td_hash adapter;
    td_string_list files; // that eval_files mean
    td_hash *hashes;      // (files.count)
} fingerprints;

static void free_fingerprints(fingerprints *prints) {
    td_sources_fini(&prints->files);
    free(prints->hashes);
}

static td_status hash_files(const td_config *config, fingerprints *out) {
    char path[TD_PATH_MAX];
    TD_TRY(td_path_join(path, config->adapter_name_or_path, "adapter_model.safetensors"));
    TD_TRY(td_hash_file(path, &out->adapter));
    for (int i = 0; i < out->files.count; i++)
        TD_TRY(td_hash_file(out->files.items[i], &out->hashes[i]));
    return TD_OK;
}

static td_status read_fingerprints(const td_config *config, fingerprints *out) {
    TD_TRY(td_sources_expand(&config->eval_files, &out->files));
    out->hashes = calloc((size_t)out->files.count + 1, sizeof *out->hashes);
    td_status status =
        out->hashes ? hash_files(config, out) : td_fail(TD_ERR_MEMORY, "no memory for the report");
    if (status != TD_OK)
        free_fingerprints(out);
    return status;
}

static void print_fingerprint(td_report_text *out, const char *name, td_hash hash) {
    char hex[TD_HASH_HEX_CHARS];
    td_hash_to_hex(hash, hex);
    td_report_print(out, "| ");
    td_report_add_cell(out, name);
    td_report_print(out, " | `%s` |\n", hex);
}

static void print_fingerprints(td_report_text *out, const td_report_subject *subject,
                               const fingerprints *prints) {
    const td_string_list *files = &prints->files;
    td_report_print(out, "\n## Fingerprints (XXH3-128)\n\n| | |\n|:--|:--|\n");
    print_fingerprint(out, "base model: config and tensors", subject->session->base->fingerprint);
    print_fingerprint(out, "tokenizer", td_tokenizer_fingerprint(subject->session->tokenizer));
    print_fingerprint(out, "adapter_model.safetensors", prints->adapter);
    for (int i = 0; i < files->count; i++)
        print_fingerprint(out, files->items[i], prints->hashes[i]);
}

static void print_sample(td_report_text *out, const td_answer_sample *sample, int n_columns) {
    td_report_print(out, "| ");
    td_report_add_cell(out, sample->where);
    td_report_print(out, " | ");
    td_report_add_cell(out, sample->question);
    td_report_print(out, " | ");
    td_report_add_cell(out, sample->expected);
    for (int i = 0; i < n_columns; i++) {
        td_report_print(out, " | %s: ", sample->matches[i] ? "right" : "**wrong**");
        td_report_add_cell(out, sample->answers[i]);
    }
    td_report_print(out, " |\n");
}

static void print_samples(td_report_text *out, const td_comparison *it) {
    const td_exact_match *answers = &it->answers;
    if (answers->n_samples == 0)
        return;
    td_report_print(out, "\n## Rows\n\nChosen by the seed, not by how they came out.\n\n"
                         "| row | question, its end | expected |");
    for (int i = 0; i < it->n_columns; i++)
        td_report_print(out, " %s |", headings[i]);
    td_report_print(out, "\n|:--|:--|:--|");
    for (int i = 0; i < it->n_columns; i++)
        td_report_print(out, ":--|");
    td_report_print(out, "\n");
    for (int i = 0; i < answers->n_samples; i++)
        print_sample(out, &answers->samples[i], it->n_columns);
}

static td_status finish(td_report_text *text, char **out) {
    if (text->is_out_of_memory) {
        free(text->text);
        return td_fail(TD_ERR_MEMORY, "no memory for the report");
    }
    *out = text->text;
    return TD_OK;
}

td_status td_report_markdown(const td_report_subject *subject, int with_details, char **out) {
    td_report_text text = {0};
    fingerprints prints = {0};
    if (!with_details) {
        print_results(&text, subject->comparison);
        return finish(&text, out);
    }
    TD_TRY(read_fingerprints(subject->session->config, &prints));
    td_report_print(&text, "# Evaluation\n\n");
    print_results(&text, subject->comparison);
    print_samples(&text, subject->comparison);
    print_settings(&text, subject);
    print_fingerprints(&text, subject, &prints);
    free_fingerprints(&prints);
    return finish(&text, out);
}

static void print_json_column(td_report_text *out, const td_comparison *it, int column) {
    const td_score *score = &it->answers.scores[column];
    double low, high;
    td_wilson_interval(score->n_matches, it->answers.n_rows, &low, &high);
    td_report_print(out,
                    ", \"%s\": {\"loss\": %.17g, \"perplexity\": %.9g, \"matches\": %lld, "
                    "\"exact_match\": %.9g, \"exact_match_low\": %.9g, \"exact_match_high\": %.9g, "
                    "\"answer_tokens\": %lld, \"mean_answer_tokens\": %.9g, \"cut_off\": %lld",
                    td_column_names[column], it->losses[column], td_perplexity(it->losses[column]),
                    (long long)score->n_matches, share_of(score->n_matches, it->answers.n_rows),
                    low, high, (long long)score->n_tokens,
                    share_of(score->n_tokens, it->answers.n_rows), (long long)score->n_unfinished);
    if (column == TD_COLUMN_FEW_SHOT)
        td_report_print(out,
                        ", \"examples\": %lld, \"mean_examples\": %.9g, \"shortened\": %lld, "
                        "\"shortened_for_loss\": %lld",
                        (long long)it->n_examples, share_of(score->n_examples, it->answers.n_rows),
                        (long long)score->n_shortened, (long long)it->n_loss_shortened);
    td_report_print(out, "}");
}

static void print_json_seconds(td_report_text *out, const td_comparison *it) {
    td_report_print(out, ", \"seconds\": {");
    for (int i = 0; i < it->n_columns; i++)
        td_report_print(out, "%s\"%s\": {\"loss\": %.3f, \"answers\": %.3f}", i ? ", " : "",
                        td_column_names[i], it->loss_seconds[i], it->answers.scores[i].seconds);
    td_report_print(out, "}");
}

static void print_json_hash(td_report_text *out, const char *name, td_hash hash) {
    char hex[TD_HASH_HEX_CHARS];
    td_hash_to_hex(hash, hex);
    td_report_print(out, ", \"%s\": \"%s\"", name, hex);
}

td_status td_report_json(const td_report_subject *subject, char **out) {
    const td_comparison *it = subject->comparison;
    td_report_text text = {0};
    fingerprints prints = {0};
    TD_TRY(read_fingerprints(subject->session->config, &prints));
    td_report_print(&text,
                    "{\"tokens\": %lld, \"loss_rows\": %lld, \"rows\": %lld, \"skipped\": %lld, "
                    "\"gained\": %lld, \"lost\": %lld",
                    (long long)it->n_loss_tokens, (long long)it->n_loss_rows,
                    (long long)it->answers.n_rows, (long long)it->answers.n_skipped,
                    (long long)it->answers.n_gained, (long long)it->answers.n_lost);
    for (int i = 0; i < it->n_columns; i++)
        print_json_column(&text, it, i);
    print_json_hash(&text, "base_fingerprint", subject->session->base->fingerprint);
    print_json_hash(&text, "adapter_fingerprint", prints.adapter);
    size_t n_files = (size_t)prints.files.count;
    print_json_hash(&text, "data_fingerprint",
                    n_files == 1 ? prints.hashes[0]
                                 : td_hash_bytes(prints.hashes, n_files * sizeof *prints.hashes));
    free_fingerprints(&prints);
    print_json_seconds(&text, it);
    td_report_print(&text, "}\n");
    return finish(&text, out);
}
