// A run of the train100 fixture, opened piece by piece, for tests that look inside. Every rank
// calls; one rank's temporary folder serves all.
#ifndef TANDEM_TESTS_TRAIN_SMALL_RUN_H
#define TANDEM_TESTS_TRAIN_SMALL_RUN_H

#include "runtime/core/files.h"
#include "runtime/core/log.h"
#include "runtime/train/evaluation.h"
#include "runtime/train/run.h"
#include "runtime/train/run_data.h"
#include "test.h"

typedef struct small_run {
    td_config config;
    td_session session;
    td_run_data data;
    td_evaluation evaluation;
    td_run run;
    char folder[64];
} small_run;

static td_comm *small_comm;

static void small_set(td_config *config, const char *assignment) {
    if (td_config_set(config, assignment) != TD_OK) {
        fprintf(stderr, "%s: %s\n", assignment, td_error_message());
        exit(1);
    }
}

static void small_require(td_status status, const char *what) {
    if (status == TD_OK)
        return;
    fprintf(stderr, "%s: %s\n", what, td_error_message());
    exit(1);
}

// Config, session and data; `settings` is a NULL-terminated list of assignments.
static void small_open(small_run *self, const char *const *settings) {
    memset(self, 0, sizeof *self);
    snprintf(self->folder, sizeof self->folder, "/tmp/tandem-small-XXXXXX");
    REQUIRE(td_comm_rank(small_comm) != 0 || mkdtemp(self->folder));
    REQUIRE(td_comm_broadcast(small_comm, self->folder, sizeof self->folder, 0, "folder") == TD_OK);
    REQUIRE(td_config_init(&self->config) == TD_OK);
    small_set(&self->config, "model_name_or_path=\"" TEST_FIXTURES "/train100\"");
    small_set(&self->config, "train_files=\"" TEST_FIXTURES "/train100/data.jsonl\"");
    small_set(&self->config, "max_length=64");
    small_set(&self->config, "gradient_accumulation_steps=5");
    small_set(&self->config, "lora_r=4");
    small_set(&self->config, "page_elements=1000");
    for (; *settings; settings++)
        small_set(&self->config, *settings);
    small_require(td_session_open(&self->session, &self->config, small_comm, 1), "session");
    small_require(td_run_data_open(&self->data, &self->session, self->folder), "data");
    if (self->data.eval)
        small_require(
            td_evaluation_init(&self->evaluation, &self->config, small_comm, self->data.eval),
            "evaluation");
}

static td_status small_plan(small_run *self) {
    return td_run_plan(&self->run, &self->session, self->data.train,
                       self->data.eval ? &self->evaluation : NULL, 0);
}

__attribute__((unused)) static void small_start(small_run *self, const char *const *settings) {
    small_open(self, settings);
    small_require(small_plan(self), "plan");
    small_require(td_session_load_base(&self->session), "base");
    small_require(td_run_allocate(&self->run, self->data.train, NULL), "allocate");
}

__attribute__((unused)) static void small_close(small_run *self) {
    td_run_destroy(&self->run);
    if (self->evaluation.sampler)
        td_evaluation_fini(&self->evaluation);
    td_run_data_close(&self->data);
    td_session_close(&self->session);
    td_config_fini(&self->config);
    CHECK_INT(td_comm_barrier(small_comm, "close"), TD_OK);
    if (td_comm_rank(small_comm) == 0)
        CHECK_INT(td_folder_remove_tree(self->folder), TD_OK);
}

// Every rank fails when one does.
static int small_finish(void) {
    int64_t failed = test_report();
    if (td_comm_allreduce_i64(small_comm, &failed, 1, "report") != TD_OK)
        return 1;
    return td_comm_finish(small_comm) != TD_OK || failed != 0;
}

static void small_begin(void) {
    REQUIRE(td_comm_bootstrap(&small_comm) == TD_OK);
    td_log_init(TD_LOG_WARN, td_comm_rank(small_comm), td_comm_size(small_comm));
}

#endif
