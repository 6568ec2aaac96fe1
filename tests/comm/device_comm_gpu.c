// Collectives on the memory of a GPU: device_comm_gpu [TRANSPORT [SEED [POINT]]]
//
// TRANSPORT: staged, nccl, or both. Under the emulation of tests/cuda_host/ streams run when they
// like, as SEED has it. POINT plants a fault in the staged transport: waits for events are left out
// on one of its streams, 0: to the host, 1: back to the device, 2: the caller's; then this program
// must fail.
#include "device_comm_cases.h"

#include "runtime/core/gpu_module.h"

static const td_gpu_module *module;
static const td_device *real_device;
static int fault_point;
static td_stream *streams[3]; // by point

// The caller's stream is the first one that is made; then come pairs.
static td_status create_noted(const td_device *on, td_stream **out) {
    static int n_made;
    TD_TRY(real_device->table->stream_create(on, out));
    streams[n_made == 0 ? 2 : (n_made - 1) % 2] = *out;
    n_made++;
    return TD_OK;
}

static td_status wait_or_not(td_event *event, td_stream *waiting) {
    if (waiting == streams[fault_point])
        return TD_OK;
    return real_device->table->event_wait(event, waiting);
}

static void plant_fault(int point) {
    static td_device_table table;
    static td_device faulty;
    fault_point = point;
    table = *real_device->table;
    table.stream_create = create_noted;
    table.event_wait = wait_or_not;
    faulty = *real_device;
    faulty.table = &table;
    device = &faulty;
}

static void one_gpu_for_two_ranks_is_refused(void) {
    const td_device *first, *mine = device;
    td_device_comm *out = NULL;
    td_device_comm_options options = {.comm = comm, .max_bytes = 64, .in_flight = 1};
    if (size == 1)
        return;
    REQUIRE(module->device_open(0, &first) == TD_OK);
    options.device = rank < 2 ? first : mine;
    CHECK_INT(module->nccl->create(&options, &out), TD_ERR_USAGE);
    CHECK(out == NULL);
    CHECK(strstr(td_error_message(), "ranks 0 and 1 share GPU") != NULL);
    CHECK(td_comm_is_agreed(comm));
    td_comm_forget_failure(comm);
    td_error_clear();
}

// With another host's name NCCL takes two ranks on one GPU for ranks on two.
static void one_gpu_is_taken_twice_under_other_host_names(void) {
    const td_device *mine = device;
    char name[16];
    snprintf(name, sizeof name, "host%d", rank);
    setenv("NCCL_HOSTID", name, 1);
    REQUIRE(module->device_open(0, &device) == TD_OK);
    run_cases();
    device = mine;
    unsetenv("NCCL_HOSTID");
}

static void run_nccl(void) {
    char reason[256];
    REQUIRE(module->nccl->probe(reason, sizeof reason));
    transport = module->nccl;
    if (module->device_count(reason, sizeof reason) >= size)
        run_cases();
    TEST(one_gpu_for_two_ranks_is_refused);
    TEST(one_gpu_is_taken_twice_under_other_host_names);
}

// Before the module is loaded. Every rank's streams run in their own way.
static void configure_emulation(const char *seed) {
    char text[32];
    snprintf(text, sizeof text, "%d", atoi(seed) * 100 + rank);
    setenv("CUDA_HOST_SEED", text, 1);
    snprintf(text, sizeof text, "%d", size);
    setenv("CUDA_HOST_GPUS", text, 1);
}

int main(int argc, char **argv) {
    const char *name = argc > 1 ? argv[1] : "both";
    char reason[512];
    REQUIRE(td_comm_bootstrap(&comm) == TD_OK);
    rank = td_comm_rank(comm);
    size = td_comm_size(comm);
    td_comm_set_deadline(comm, 20);
    configure_emulation(argc > 2 ? argv[2] : "1");
    td_gpu_module_load(&module, reason, sizeof reason);
    if (!module)
        printf("%s\n", reason);
    REQUIRE(module != NULL);
    int n_devices = module->device_count(reason, sizeof reason);
    REQUIRE(module->device_open(td_comm_local_rank(comm) % n_devices, &real_device) == TD_OK);
    device = real_device;
    if (argc > 3)
        plant_fault(atoi(argv[3]));
    transport = &td_device_transport_staged;
    if (strcmp(name, "nccl") != 0)
        run_cases();
    if (strcmp(name, "staged") != 0)
        run_nccl();
    REQUIRE(td_comm_finish(comm) == TD_OK);
    return test_report();
}
