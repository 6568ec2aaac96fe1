#include "runtime/train/comparison.h"

#include "runtime/core/files.h"
#include "runtime/core/log.h"
#include "runtime/train/few_shot.h"
#include "runtime/train/metrics.h"

const char *const td_column_names[TD_MAX_CONTENDERS] = {"base", "tuned", "few_shot_base"};

typedef struct comparer {
    td_inference *inference;
    const td_comparison_options *options;
    td_examples examples;
    td_comparison *out;
} comparer;

static td_status measure(comparer *self, td_evaluation *evaluation, int column,
                         const float *parameters) {
    double start = td_seconds_now();
    TD_TRY(td_evaluation_loss(evaluation, self->inference->transformer, parameters,
                              &self->out->losses[column]));
    self->out->loss_seconds[column] = td_seconds_now() - start;
    return TD_OK;
}

static td_status measure_store(comparer *self, td_store *store, const int *columns, int count) {
    td_inference *inference = self->inference;
    const td_config *config = inference->session.config;
    td_evaluation evaluation = {0};
    td_status status = td_evaluation_init(&evaluation, config, inference->session.comm, store);
    if (status == TD_OK)
        status = td_inference_prepare(inference, td_evaluation_max_tokens(&evaluation),
                                      td_evaluation_max_rows(&evaluation),
                                      td_evaluation_max_tokens(&evaluation));
    for (int i = 0; i < count && status == TD_OK; i++)
        status = measure(self, &evaluation, columns[i],
                         columns[i] == TD_COLUMN_TUNED ? inference->parameters : NULL);
    if (status == TD_OK && self->out->n_loss_tokens != 0 &&
        self->out->n_loss_tokens != evaluation.batch.n_trained)
        status =
            td_fail(TD_ERR_INTERNAL, "%lld targets without and %lld with examples",
                    (long long)self->out->n_loss_tokens, (long long)evaluation.batch.n_trained);
    if (status == TD_OK)
        self->out->n_loss_tokens = evaluation.batch.n_trained;
    td_evaluation_fini(&evaluation);
    return status;
}

static td_status open_few_shot(comparer *self, td_store *plain, td_store **out) {
    const td_session *session = &self->inference->session;
    char path[TD_PATH_MAX];
    td_status status = td_path_join(path, self->options->scratch, "few_shot.h5");
    if (status == TD_OK && td_comm_rank(session->comm) == 0)
        status =
            td_few_shot_store(session, plain, &session->config->eval_files, &self->examples,
                              self->out->max_with_examples, path, &self->out->n_loss_shortened);
    TD_TRY(td_comm_agree(session->comm, status, "rows with examples"));
    TD_TRY(td_comm_broadcast(session->comm, &self->out->n_loss_shortened,
                             sizeof self->out->n_loss_shortened, 0, "rows with examples"));
    return td_comm_agree(session->comm, td_store_open(path, out), "rows with examples");
}

static td_status measure_with_examples(comparer *self, td_store *plain) {
    static const int column = TD_COLUMN_FEW_SHOT;
    td_store *store = NULL;
    td_status status = open_few_shot(self, plain, &store);
    if (status == TD_OK)
        status = measure_store(self, store, &column, 1);
    td_store_close(store);
    return status;
}

static td_status compare_losses(comparer *self) {
    static const int columns[] = {TD_COLUMN_BASE, TD_COLUMN_TUNED};
    const td_session *session = &self->inference->session;
    td_store *plain = NULL;
    TD_TRY(td_run_data_open_files(session, &session->config->eval_files, self->options->scratch,
                                  "evaluate.h5", &plain));
    self->out->n_loss_rows = td_store_rows(plain);
    td_status status = measure_store(self, plain, columns, 2);
    if (status == TD_OK && self->out->n_columns > 2)
        status = measure_with_examples(self, plain);
    td_store_close(plain);
    return status;
}

static td_status compare_answers(comparer *self) {
    td_inference *inference = self->inference;
    td_exact_match_options options = self->options->answers;
    const td_contender contenders[TD_MAX_CONTENDERS] = {
        [TD_COLUMN_TUNED] = {.parameters = inference->parameters},
        [TD_COLUMN_FEW_SHOT] = {.examples = &self->examples},
    };
    int64_t longest = options.max_length;
    if (self->out->n_columns > 2) {
        options.max_with_examples = self->out->max_with_examples;
        longest = options.max_with_examples;
    }
    TD_TRY(td_inference_prepare(inference, longest, 1, longest + options.max_new_tokens));
    return td_exact_match_run(&inference->session, inference->transformer, contenders,
                              self->out->n_columns, &inference->session.config->eval_files,
                              &options, &self->out->answers);
}

static td_status choose_examples(comparer *self) {
    const td_session *session = &self->inference->session;
    int64_t wanted = self->options->n_examples;
    if (wanted == 0)
        return TD_OK;
    TD_TRY(td_examples_choose(session, self->options->example_files, wanted, &self->examples));
    self->out->n_examples = self->examples.count;
    if (self->examples.count < wanted)
        td_warn("%lld examples were asked for, %lld rows of the training files can be one",
                (long long)wanted, (long long)self->examples.count);
    self->out->n_columns += self->examples.count > 0;
    self->out->max_with_examples =
        td_few_shot_max_tokens(session, &self->examples, self->options->answers.max_new_tokens);
    return TD_OK;
}

td_status td_comparison_run(td_inference *inference, const td_comparison_options *options,
                            td_comparison *out) {
    comparer self = {.inference = inference, .options = options, .out = out};
    *out = (td_comparison){.n_columns = 2};
    td_status status = td_comm_agree(inference->session.comm, choose_examples(&self), "examples");
    if (status == TD_OK)
        status = compare_losses(&self);
    if (status == TD_OK)
        status = compare_answers(&self);
    td_examples_fini(&self.examples);
    return status;
}
