// Collectives on the memory of a GPU: device_comm_gpu [TRANSPORT [SEED [POINT]]]
//
// TRANSPORT: staged, nccl, or both. Under the emulation of tests/cuda_host/ streams run when they
// like, as SEED has it. POINT plants a fault: waits for events are left out on a stream of the
// staged transport, 0: to the host, 1: back to the device, 2: the caller's, or, 3, on every stream
// but the caller's; then this program must fail.
#include "device_comm_cases.h"

#include "runtime/core/gpu_module.h"

static const td_gpu_module *module;
static const td_device *real_device;
static int fault_point;
static td_stream *streams[3]; // by point

// The caller's stream is the first one that is made; then come pairs.
static td_status create_noted(const td_device *on, td_stream **out) {
    static int n_streams;
    TD_TRY(real_device->table->stream_create(on, out));
    streams[n_streams == 0 ? 2 : (n_streams - 1) % 2] = *out;
    n_streams++;
    return TD_OK;
}

static td_status wait_or_not(td_event *event, td_stream *waiting) {
    if (fault_point == 3 ? waiting != streams[2] : waiting == streams[fault_point])
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

static int n_made, n_unbounded;
static size_t pinned_bytes;

static td_status alloc_counted(const td_device *on, size_t bytes, const char *what, void **out) {
    n_made++;
    return real_device->table->alloc(on, bytes, what, out);
}

static td_status alloc_pinned_counted(const td_device *on, size_t bytes, const char *what,
                                      void **out) {
    n_made++;
    pinned_bytes += bytes;
    return real_device->table->alloc_pinned(on, bytes, what, out);
}

static td_status create_event_counted(const td_device *on, td_event **out) {
    n_made++;
    return real_device->table->event_create(on, out);
}

static td_status create_stream_counted(const td_device *on, td_stream **out) {
    n_made++;
    return real_device->table->stream_create(on, out);
}

static td_status synchronize_counted(td_event *event) {
    n_unbounded++;
    return real_device->table->event_synchronize(event);
}

static td_status synchronize_stream_counted(td_stream *waiting) {
    n_unbounded++;
    return real_device->table->stream_synchronize(waiting);
}

// A device that counts what it is asked for.
static const td_device *counting_device(void) {
    static td_device_table table;
    static td_device counting;
    table = *real_device->table;
    table.alloc = alloc_counted;
    table.alloc_pinned = alloc_pinned_counted;
    table.event_create = create_event_counted;
    table.stream_create = create_stream_counted;
    table.event_synchronize = synchronize_counted;
    table.stream_synchronize = synchronize_stream_counted;
    counting = *real_device;
    counting.table = &table;
    n_made = n_unbounded = 0;
    pinned_bytes = 0;
    return &counting;
}

static void all_memory_is_planned_and_no_wait_is_without_bound(void) {
    enum { COUNT = 6 };
    device_trial trials[COUNT];
    td_device_comm_options options = {comm, counting_device(), LARGEST * sizeof(int64_t), COUNT};
    td_device_comm *device_comm;
    size_t host_bytes, device_bytes;
    transport->plan(&options, &host_bytes, &device_bytes);
    REQUIRE(transport->create(&options, &device_comm) == TD_OK);
    CHECK_INT(pinned_bytes, host_bytes);
    int n_made_at_start = n_made;
    REQUIRE(real_device->table->stream_create(real_device, &stream) == TD_OK);
    make_trials(trials, COUNT);
    for (int i = 0; i < COUNT; i++)
        start_trial(device_comm, &trials[i]);
    for (int i = 0; i < COUNT; i++)
        wait_trial(device_comm, &trials[i]);
    check_trials(trials, COUNT);
    free_trials(trials, COUNT);
    CHECK_INT(n_made, n_made_at_start);
    transport->destroy(device_comm);
    CHECK_INT(n_unbounded, 0);
    device->table->stream_destroy(stream);
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
    TEST(one_gpu_is_taken_twice_under_other_host_names); // first: NCCL may keep the name
    if (module->device_count(reason, sizeof reason) >= size) {
        run_cases();
        TEST(all_memory_is_planned_and_no_wait_is_without_bound);
    }
    TEST(one_gpu_for_two_ranks_is_refused);
}

static void run_staged(void) {
    transport = &td_device_transport_staged;
    run_cases();
    TEST(all_memory_is_planned_and_no_wait_is_without_bound);
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
    if (strcmp(name, "nccl") != 0)
        run_staged();
    if (strcmp(name, "staged") != 0)
        run_nccl();
    REQUIRE(td_comm_finish(comm) == TD_OK);
    return test_report();
}
