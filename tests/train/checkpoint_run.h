// A toy run for the tests of checkpoints: parameters and optimizer state are known functions of
// (step, element), so that what a checkpoint gives back can be checked on any number of ranks.
#ifndef TANDEM_TESTS_TRAIN_CHECKPOINT_RUN_H
#define TANDEM_TESTS_TRAIN_CHECKPOINT_RUN_H

#include <sys/stat.h>
#include <unistd.h>

#include "runtime/core/log.h"
#include "runtime/train/checkpoint.h"
#include "runtime/train/checkpoint_internal.h"
#include "test.h"

enum { RUN_ELEMENTS = 1000, RUN_PAGE = 128, RUN_STATE_BYTES = RUN_PAGE * 8 + 4 };

typedef struct toy_run {
    td_checkpoint_options options;
    td_pager *pager;
    float *params;
    char folder[512];
} toy_run;

static float run_param(int64_t step, int64_t element) {
    return (float)(step * 1000 + element) * 0.37f + 0.01f;
}

static unsigned char run_state(int64_t step, int64_t page, int64_t byte) {
    return (unsigned char)(step * 7 + page * 31 + byte * 13 + (byte >> 5));
}

static void run_fill(toy_run *run, int64_t step) {
    const td_page_map *map = &run->options.map;
    int rank = td_comm_rank(run->options.comm);
    for (int64_t i = 0; i < map->n_elements; i++)
        run->params[i] = run_param(step, i);
    for (int64_t page = rank; page < map->n_pages; page += map->size) {
        unsigned char *state = td_pager_host_state(run->pager, page);
        for (int64_t i = 0; i < RUN_STATE_BYTES; i++)
            state[i] = run_state(step, page, i);
    }
}

__attribute__((unused)) static int run_holds(const toy_run *run, int64_t step) {
    const td_page_map *map = &run->options.map;
    int rank = td_comm_rank(run->options.comm);
    for (int64_t i = 0; i < map->n_elements; i++)
        if (run->params[i] != run_param(step, i))
            return 0;
    for (int64_t page = rank; page < map->n_pages; page += map->size) {
        const unsigned char *state = td_pager_host_state(run->pager, page);
        for (int64_t i = 0; i < RUN_STATE_BYTES; i++)
            if (state[i] != run_state(step, page, i))
                return 0;
    }
    return 1;
}

static td_hash run_hash(const char *text) {
    return td_hash_bytes(text, strlen(text));
}

static void run_open_sized(toy_run *run, td_comm *comm, const char *folder, int64_t n_elements) {
    memset(run, 0, sizeof *run);
    snprintf(run->folder, sizeof run->folder, "%s", folder);
    td_checkpoint_options *options = &run->options;
    *options = (td_checkpoint_options){.comm = comm,
                                       .device = td_device_cpu(),
                                       .state_bytes = RUN_STATE_BYTES,
                                       .run_folder = run->folder,
                                       .identity = {.base_model = run_hash("base"),
                                                    .data = run_hash("data"),
                                                    .config = run_hash("config"),
                                                    .layout = run_hash("layout")}};
    REQUIRE(td_page_map_init(&options->map, n_elements, RUN_PAGE, td_comm_size(comm)) == TD_OK);
    td_pager_options pager = {.device = td_device_cpu(),
                              .map = options->map,
                              .rank = td_comm_rank(comm),
                              .state_bytes = RUN_STATE_BYTES};
    REQUIRE(td_pager_create(&pager, &run->pager) == TD_OK);
    run->params = calloc((size_t)n_elements, sizeof(float));
    REQUIRE(run->params != NULL);
    REQUIRE(td_folder_make(folder) == TD_OK);
}

__attribute__((unused)) static void run_open(toy_run *run, td_comm *comm, const char *folder) {
    run_open_sized(run, comm, folder, RUN_ELEMENTS);
}

__attribute__((unused)) static void run_close(toy_run *run) {
    td_pager_destroy(run->pager);
    free(run->params);
}

__attribute__((unused)) static td_checkpoint_writer *run_writer(toy_run *run) {
    td_checkpoint_writer *writer = NULL;
    REQUIRE(td_checkpoint_create(&run->options, &writer) == TD_OK);
    return writer;
}

static td_checkpoint_meta run_meta(int64_t step) {
    return (td_checkpoint_meta){
        .step = step, .epoch = step / 7, .tokens_seen = step * 321, .seed = 42};
}

// Fills in the step's values and starts to save them.
__attribute__((unused)) static td_status run_save(toy_run *run, td_checkpoint_writer *writer,
                                                  int64_t step) {
    td_checkpoint_meta meta = run_meta(step);
    run_fill(run, step);
    return td_checkpoint_save(writer, &meta, run->params, run->pager);
}

// Saves and commits.
__attribute__((unused)) static td_status run_write(toy_run *run, td_checkpoint_writer *writer,
                                                   int64_t step) {
    td_status status = run_save(run, writer, step);
    return status == TD_OK ? td_checkpoint_finish(writer, NULL) : status;
}

// Step of the checkpoint that `choice` finds, loaded into the run and compared; -1: none, -2:
// error, -3: loaded wrong.
__attribute__((unused)) static int64_t run_resume(toy_run *run, const char *choice) {
    td_checkpoint *checkpoint = NULL;
    if (td_checkpoint_find(&run->options, choice, &checkpoint) != TD_OK)
        return -2;
    if (!checkpoint)
        return -1;
    run_fill(run, 999999);
    int64_t step = checkpoint->meta.step;
    td_status status = td_checkpoint_load(checkpoint, &run->options, run->params, run->pager);
    td_checkpoint_close(checkpoint);
    return status != TD_OK ? -2 : run_holds(run, step) ? step : -3;
}

__attribute__((unused)) static void run_path(const toy_run *run, int64_t step, const char *name,
                                             char out[TD_PATH_MAX]) {
    char folder[TD_PATH_MAX];
    REQUIRE(td_checkpoint_step_folder(folder, run->folder, step) == TD_OK);
    REQUIRE(td_path_join(out, folder, name) == TD_OK);
}

__attribute__((unused)) static int run_has_step(const toy_run *run, int64_t step) {
    char path[TD_PATH_MAX];
    REQUIRE(td_checkpoint_step_folder(path, run->folder, step) == TD_OK);
    return td_path_is_folder(path);
}

// Entries of RUN/checkpoints that start with `prefix`.
__attribute__((unused)) static int run_count(const toy_run *run, const char *prefix) {
    char path[TD_PATH_MAX];
    char **names = NULL;
    size_t count = 0;
    int found = 0;
    REQUIRE(td_path_join(path, run->folder, "checkpoints") == TD_OK);
    REQUIRE(td_folder_list(path, &names, &count) == TD_OK);
    for (size_t i = 0; i < count; i++)
        found += strncmp(names[i], prefix, strlen(prefix)) == 0;
    td_names_free(names, count);
    return found;
}

#define CHECK_MESSAGE(part)                                                                        \
    do {                                                                                           \
        if (!CHECK(strstr(td_error_message(), part) != NULL))                                      \
            fprintf(stderr, "    message is \"%s\"\n", td_error_message());                        \
        td_error_clear();                                                                          \
    } while (0)

// A folder that all ranks know, empty. Collective.
__attribute__((unused)) static void shared_scratch(td_comm *comm, char out[256]) {
    const char *base = getenv("TMPDIR");
    snprintf(out, 256, "%s/tandem-checkpoint-XXXXXX", base ? base : "/tmp");
    if (td_comm_rank(comm) == 0)
        REQUIRE(mkdtemp(out) != NULL);
    REQUIRE(td_comm_broadcast(comm, out, 256, 0, "test folder") == TD_OK);
}

#endif
