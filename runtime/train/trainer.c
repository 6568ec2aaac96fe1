#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/core/fault.h"
#include "runtime/core/log.h"
#include "runtime/core/progress.h"
#include "runtime/train/trainer_internal.h"

enum { MESSAGE_BYTES = 2048 };

// Data, model and layout are known; nothing large has been allocated.
static td_status open_inputs(td_trainer *trainer) {
    td_session *session = &trainer->session;
    const td_config *config = trainer->config;
    TD_TRY(td_session_open(session, config, trainer->comm, 1));
    if (session->has_adapter)
        td_info("starting from %s: its rank, alpha and target_modules are used",
                config->adapter_name_or_path);
    td_info("%s: %lld layers; %lld modules with LoRA, %lld trainable parameters",
            session->model.family->name, (long long)session->model.n_layers,
            (long long)session->lora.n_modules, (long long)session->lora.n_parameters);
    TD_TRY(TD_FAULT("data"));
    TD_TRY(td_run_data_open(&trainer->data, session, config->output_dir));
    if (!trainer->data.eval)
        return TD_OK;
    return td_evaluation_init(&trainer->evaluation, config, trainer->comm, trainer->data.eval);
}

static void fill_checkpoint_options(td_trainer *trainer) {
    const td_session *session = &trainer->session;
    const td_config *config = trainer->config;
    trainer->checkpoint_options = (td_checkpoint_options){
        .comm = trainer->comm,
        .device = session->context.device,
        .map = trainer->run.parameters.map,
        .state_bytes =
            td_optimizer_state_bytes(config->optim, trainer->run.parameters.map.page_elements),
        .run_folder = config->output_dir,
        .keep_last = config->save_total_limit,
        .identity = {.base_model = session->base->fingerprint,
                     .data = td_store_content_hash(trainer->data.train),
                     .config = td_config_fingerprint(config),
                     .layout = td_lora_fingerprint(&session->lora)},
        .config = trainer->config_json,
        .write_adapter = td_trainer_write_checkpoint_adapter,
        .write_adapter_context = trainer,
    };
}

static td_status plan_run(td_trainer *trainer) {
    const td_config *config = trainer->config;
    td_page_map map;
    td_session *session = &trainer->session;
    TD_TRY(td_run_page_map(session, &map));
    size_t state_bytes = td_optimizer_state_bytes(config->optim, map.page_elements);
    size_t snapshot = td_checkpoint_plan(&map, state_bytes, td_comm_rank(trainer->comm));
    return td_run_plan(&trainer->run, session, trainer->data.train,
                       trainer->data.eval ? &trainer->evaluation : NULL, snapshot);
}

// best_adapter may have been removed since; a checkpoint of its step has it too. Without either,
// what is best is found anew.
static td_status restore_best(td_trainer *trainer) {
    int32_t found = 0;
    td_status status = TD_OK;
    if (!trainer->meta.has_best || !trainer->data.eval)
        return TD_OK;
    if (td_trainer_is_root(trainer))
        status = td_trainer_restore_best(trainer, &found);
    TD_TRY(td_comm_agree(trainer->comm, status, "best adapter"));
    TD_TRY(td_comm_broadcast(trainer->comm, &found, sizeof found, 0, "best adapter"));
    if (!found) {
        td_info("best_adapter of step %lld is gone: the best evaluation is looked for anew",
                (long long)trainer->meta.best_step);
        trainer->meta.has_best = 0;
    }
    return TD_OK;
}

// Parameters, optimizer state and position of the newest checkpoint, when the config asks to go on.
static td_status resume(td_trainer *trainer) {
    const char *choice = trainer->config->resume_from_checkpoint;
    td_checkpoint *checkpoint = NULL;
    if (strcmp(choice, "never") == 0)
        return TD_OK;
    TD_TRY(td_checkpoint_find(&trainer->checkpoint_options, choice, &checkpoint));
    if (!checkpoint) {
        td_info("no checkpoint in %s: starting from the first step", trainer->config->output_dir);
        return TD_OK;
    }
    td_status status = td_checkpoint_load(checkpoint, &trainer->checkpoint_options,
                                          trainer->run.parameters.values, trainer->run.pager);
    trainer->meta = checkpoint->meta;
    if (status == TD_OK)
        td_info("resumed from %s: %lld steps are done", checkpoint->folder,
                (long long)trainer->meta.step);
    td_checkpoint_close(checkpoint);
    TD_TRY(status);
    return restore_best(trainer);
}

static int is_due(int64_t index, int64_t interval, int last) {
    return last || (interval > 0 && (index + 1) % interval == 0);
}

// A run that was asked to stop left without the evaluation that was due then.
static int evaluates_again(const td_trainer *trainer) {
    int64_t done = trainer->meta.step;
    return trainer->data.eval && done > 0 &&
           is_due(done - 1, trainer->config->eval_steps,
                  done == trainer->run.step.schedule.total_steps);
}

// Local. What a stale process wrote over would be the newer one's.
static td_status require_newest(const td_trainer *trainer) {
    return td_trainer_is_root(trainer) ? td_checkpoint_require_newest(trainer->checkpoints) : TD_OK;
}

static td_status open_machinery(td_trainer *trainer) {
    TD_TRY(plan_run(trainer));
    TD_TRY(TD_FAULT("base"));
    TD_TRY(td_session_load_base(&trainer->session));
    TD_TRY(td_run_allocate(&trainer->run, trainer->data.train, &td_stop_requested));
    fill_checkpoint_options(trainer);
    trainer->meta.seed = trainer->config->seed;
    TD_TRY(td_checkpoint_create(&trainer->checkpoint_options, &trainer->checkpoints));
    TD_TRY(resume(trainer));
    td_status status = require_newest(trainer);
    if (status == TD_OK)
        status = td_metrics_open(&trainer->metrics, trainer->config->output_dir, trainer->meta.step,
                                 evaluates_again(trainer), trainer->run.step.schedule.total_steps,
                                 td_trainer_is_root(trainer));
    if (status == TD_OK && td_trainer_is_root(trainer))
        status = td_trainer_write_config(trainer);
    return td_comm_agree(trainer->comm, status, "metrics");
}

static td_status evaluate(td_trainer *trainer, int64_t index, td_train_summary *out) {
    double loss;
    TD_TRY(TD_FAULT("evaluate"));
    TD_TRY(td_evaluation_loss(&trainer->evaluation, trainer->run.transformer,
                              trainer->run.parameters.values, &loss));
    td_checkpoint_meta *meta = &trainer->meta;
    int is_best = !meta->has_best || loss < meta->best_loss ||
                  (loss == meta->best_loss && index + 1 == meta->best_step);
    td_status status = TD_OK;
    if (is_best) {
        meta->has_best = 1;
        meta->best_loss = loss;
        meta->best_step = index + 1;
        status = require_newest(trainer);
        if (status == TD_OK && td_trainer_is_root(trainer))
            status = td_trainer_write_adapter(trainer, "best_adapter");
    }
    out->eval_loss = loss;
    out->best_eval_loss = meta->best_loss;
    if (td_trainer_is_root(trainer))
        td_metrics_evaluation(&trainer->metrics, index, loss, is_best);
    return td_comm_agree(trainer->comm, status, "best adapter");
}

// A checkpoint that cannot be written is no reason to lose the run: the older ones are untouched,
// and the next may succeed. A process of an older incarnation can only end. The failure is known to
// all ranks.
static td_status forgive(td_trainer *trainer, td_status status) {
    if (status != TD_ERR_IO || td_checkpoint_is_fenced(trainer->checkpoints))
        return status;
    if (td_trainer_is_root(trainer))
        td_warn("%s; training goes on without this checkpoint", td_error_message());
    td_error_clear();
    td_comm_forget_failure(trainer->comm);
    return TD_OK;
}

static td_status save(td_trainer *trainer) {
    const td_op_context *context = &trainer->session.context;
    td_progress_phase(TD_PHASE_CHECKPOINT);
    TD_TRY(TD_FAULT("snapshot"));
    // The checkpoint copies on a stream of its own, which does not wait for the step's.
    TD_TRY(context->device->table->stream_synchronize(context->stream));
    return td_checkpoint_save(trainer->checkpoints, &trainer->meta, trainer->run.parameters.values,
                              trainer->run.pager);
}

static td_status after_step(td_trainer *trainer, int64_t index, const td_step_result *result,
                            td_train_summary *out) {
    const td_config *config = trainer->config;
    int last = index + 1 == trainer->run.step.schedule.total_steps;
    int64_t per_epoch = td_sampler_steps_per_epoch(trainer->run.sampler);
    trainer->meta.step = index + 1;
    trainer->meta.epoch = result->epoch;
    trainer->meta.tokens_seen += result->tokens;
    out->steps = index + 1;
    out->last_loss = result->loss;
    if (td_trainer_is_root(trainer))
        td_metrics_step(&trainer->metrics, index, result, (double)(index + 1) / (double)per_epoch,
                        is_due(index, config->logging_steps, last));
    if (trainer->data.eval && !result->stop && is_due(index, config->eval_steps, last))
        TD_TRY(evaluate(trainer, index, out));
    if (result->stop && !last)
        return save(trainer); // who asks to stop must know when there is nothing to go on from
    if (is_due(index, config->save_steps, last))
        return forgive(trainer, save(trainer));
    return forgive(trainer, td_checkpoint_poll(trainer->checkpoints, NULL));
}

static td_status finish(td_trainer *trainer, int stopped) {
    const td_config *config = trainer->config;
    td_progress_phase(TD_PHASE_FINISH);
    TD_TRY(TD_FAULT("finish"));
    td_status saved = td_checkpoint_finish(trainer->checkpoints, NULL);
    if (stopped) {
        TD_TRY(saved);
        return td_fail(TD_STOPPED, "stopped on request after step %lld",
                       (long long)trainer->meta.step);
    }
    // The adapter is the result: it is written even where the last checkpoint could not be.
    if (td_checkpoint_is_fenced(trainer->checkpoints))
        return saved;
    td_status status = require_newest(trainer);
    if (status == TD_OK && td_trainer_is_root(trainer))
        status = config->load_best_model_at_end && trainer->meta.has_best
                     ? td_trainer_copy_adapter(trainer, "best_adapter", "adapter")
                     : td_trainer_write_adapter(trainer, "adapter");
    status = td_comm_agree(trainer->comm, status, "write adapter");
    return saved != TD_OK ? saved : status;
}

static td_status train(td_trainer *trainer, td_train_summary *out) {
    int64_t total = trainer->run.step.schedule.total_steps, first = trainer->meta.step;
    int64_t limit = trainer->config->stop_after_steps;
    int stopped = 0;
    if (trainer->meta.has_best)
        out->best_eval_loss = trainer->meta.best_loss;
    out->steps = trainer->meta.step;
    if (evaluates_again(trainer))
        TD_TRY(evaluate(trainer, first - 1, out));
    for (int64_t index = first; index < total && !stopped; index++) {
        td_step_result result;
        td_comm_forget_failure(trainer->comm);
        td_status status = td_step_run(&trainer->run.step, index, &result);
        // Every rank has found the same from the same sums; if not, they are in different
        // collectives, and that is what is told.
        if (status == TD_ERR_NUMERIC)
            status = td_comm_agree(trainer->comm, status, "failed step");
        TD_TRY(status);
        result.stop |= limit > 0 && index + 1 - first == limit;
        TD_TRY(after_step(trainer, index, &result, out));
        stopped = result.stop && index + 1 < total;
    }
    return finish(trainer, stopped);
}

// Of a step that was right. One whose parameters then differed between ranks was perhaps not.
static int is_save_good(const td_trainer *trainer, td_status failure) {
    return td_checkpoint_stage(trainer->checkpoints) > 0 &&
           (failure != TD_ERR_NUMERIC || td_step_replicas_agree(&trainer->run.step));
}

// The save under way is committed, so that the run can go on from there. Collective: the failure is
// known to all ranks.
static td_status keep_save(td_trainer *trainer, td_status failure) {
    char message[MESSAGE_BYTES];
    snprintf(message, sizeof message, "%s", td_error_message());
    td_error_clear();
    td_comm_forget_failure(trainer->comm);
    td_status saved = td_checkpoint_finish(trainer->checkpoints, NULL);
    if (saved != TD_OK && td_trainer_is_root(trainer))
        td_warn("%s; that checkpoint is lost", td_error_message());
    td_error_clear();
    td_comm_set_agreed(trainer->comm);
    return td_fail(failure, "%s", message);
}

static td_status train_and_keep(td_trainer *trainer, td_train_summary *out) {
    td_status status = train(trainer, out);
    if (status == TD_OK || !td_comm_is_agreed(trainer->comm) || !is_save_good(trainer, status))
        return status;
    return keep_save(trainer, status);
}

static void close_trainer(td_trainer *trainer) {
    td_metrics_close(&trainer->metrics);
    if (trainer->checkpoints)
        td_checkpoint_destroy(trainer->checkpoints);
    td_run_destroy(&trainer->run);
    if (trainer->evaluation.sampler)
        td_evaluation_fini(&trainer->evaluation);
    td_run_data_close(&trainer->data);
    td_session_close(&trainer->session);
    free(trainer->host_parameters);
    cJSON_Delete(trainer->config_json);
}

static td_status run(td_trainer *trainer, td_train_summary *out) {
    TD_TRY(
        td_comm_require_same(trainer->comm, td_config_fingerprint(trainer->config), "run config"));
    TD_TRY(td_trainer_open_output(trainer));
    TD_TRY(open_inputs(trainer));
    TD_TRY(open_machinery(trainer));
    return train_and_keep(trainer, out);
}

td_status td_train(const td_config *config, td_comm *comm, td_train_summary *out) {
    td_trainer trainer = {.config = config, .comm = comm};
    td_train_summary summary = {.last_loss = NAN, .eval_loss = NAN, .best_eval_loss = NAN};
    td_comm_set_deadline(comm, config->collective_deadline_seconds);
    td_trainer_catch_signals();
    td_status status = run(&trainer, &summary);
    if (status != TD_OK && status != TD_STOPPED)
        td_trainer_remove_empty(&trainer);
    td_run_end_if_alone(comm, status);
    close_trainer(&trainer);
    snprintf(summary.adapter_folder, sizeof summary.adapter_folder, "%s/adapter",
             config->output_dir);
    snprintf(summary.checkpoint_folder, sizeof summary.checkpoint_folder, "%s/checkpoints",
             config->output_dir);
    *out = summary;
    return status;
}
