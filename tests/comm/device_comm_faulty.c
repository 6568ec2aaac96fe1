// A small job with device collectives that goes wrong in the way its second argument says;
// device_comm_faults.sh starts it and looks at what comes out.
//
// device_comm_faulty TRANSPORT SCENARIO RANK FOLDER [DEADLINE]
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "comm/device_comm.h"
#include "runtime/core/gpu_module.h"
#include "runtime/core/log.h"
#include "runtime/core/progress.h"

enum { N_STEPS = 6, FAULTY_STEP = 3, COUNT = 3000 };

static td_comm *comm;
static td_device_comm *device_comm;
static const td_device *device;
static const td_device_transport *transport;
static td_stream *stream;
static int64_t *values;
static int rank, size, faulty_rank;
static const char *scenario, *folder;

static void sleep_ms(long ms) {
    nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000}, NULL);
}

static void write_note(const char *name) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s.%d", folder, name, (int)getpid());
    FILE *file = fopen(path, "w");
    if (file)
        fclose(file);
}

// What a program does with a failure.
static void expect(td_status status) {
    if (status == TD_OK)
        return;
    if (!td_comm_is_agreed(comm))
        td_comm_abort(comm, status, NULL);
    if (rank == 0)
        td_error("%s", td_error_message());
    td_error_clear();
    td_comm_finish(comm);
    exit(status);
}

static int is_mine(const char *name) {
    return rank == faulty_rank && strcmp(scenario, name) == 0;
}

static void stand_still_if(const char *name) {
    if (!is_mine(name))
        return;
    write_note("fault");
    sleep_ms(60000);
}

static void reduce(size_t count, const char *what) {
    td_request request;
    expect(transport->reduce_start(device_comm, values, count, TD_COLLECTIVE_I64, 0, stream, what,
                                   &request));
    expect(transport->wait(device_comm, request, stream));
}

static void break_step(void) {
    stand_still_if("still");
    if (is_mine("disagree")) {
        write_note("fault");
        reduce(COUNT / 2, "another page");
    }
    if (is_mine("kill")) {
        write_note("fault");
        raise(SIGKILL);
    }
    if (is_mine("stop")) {
        write_note("fault");
        raise(SIGSTOP);
    }
    for (int i = 0; is_mine("slow") && i < 50; i++) {
        td_progress_tick();
        sleep_ms(100);
    }
}

static void run_steps(void) {
    for (uint32_t step = 1; step <= N_STEPS; step++) {
        td_progress_step(step);
        td_progress_phase(TD_PHASE_REDUCE);
        if (step == FAULTY_STEP)
            break_step();
        reduce(COUNT, "gradient page");
        td_progress_phase(TD_PHASE_GATHER);
        expect(td_comm_barrier(comm, "norm"));
    }
}

// A device that never gets to any event.
static td_status never_reached(td_event *event, int *out_reached) {
    (void)event;
    *out_reached = 0;
    return TD_OK;
}

static void stop_device(void) {
    static td_device_table table;
    static td_device stopped;
    table = *device->table;
    table.event_query = never_reached;
    stopped = *device;
    stopped.table = &table;
    device = &stopped;
    write_note("fault");
}

static void choose_transport(const char *name) {
    const td_gpu_module *module;
    char reason[512], gpus[16];
    snprintf(gpus, sizeof gpus, "%d", size);
    setenv("CUDA_HOST_GPUS", gpus, 0);
    td_gpu_module_load(&module, reason, sizeof reason);
    if (!module)
        td_comm_abort(comm, TD_ERR_USAGE, reason);
    expect(module->device_open(rank, &device));
    transport = strcmp(name, "nccl") == 0 ? module->nccl : &td_device_transport_staged;
    if (!transport->probe(reason, sizeof reason) && rank == 0)
        printf("probe: %s\n", reason);
    if (is_mine("device"))
        stop_device();
}

static void create(void) {
    void *memory;
    td_device_comm_options options = {comm, device, COUNT * sizeof *values, 4};
    expect(device->table->stream_create(device, &stream));
    expect(device->table->alloc(device, COUNT * sizeof *values, "values", &memory));
    values = memory;
    stand_still_if("create");
    if (strcmp(scenario, "library") == 0)
        write_note("fault");
    expect(transport->create(&options, &device_comm));
}

int main(int argc, char **argv) {
    if (argc < 5)
        return TD_ERR_USAGE;
    scenario = argv[2];
    faulty_rank = atoi(argv[3]);
    folder = argv[4];
    write_note("pid");
    if (td_comm_bootstrap(&comm) != TD_OK)
        td_comm_abort(NULL, TD_ERR_PEER, NULL);
    rank = td_comm_rank(comm);
    size = td_comm_size(comm);
    td_log_init(TD_LOG_INFO, rank, size);
    td_comm_set_deadline(comm, argc > 5 ? atof(argv[5]) : 2);
    choose_transport(argv[1]);
    create();
    run_steps();
    stand_still_if("destroy");
    transport->destroy(device_comm);
    td_status status = td_comm_finish(comm);
    if (status == TD_OK && rank == 0)
        printf("all steps done\n");
    return status;
}
