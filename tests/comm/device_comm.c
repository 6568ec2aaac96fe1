// Collectives on device memory of the CPU device: straight, and staged, which works on any device.
#include "device_comm_cases.h"

static void the_plan_is_what_staging_takes(void) {
    td_device_comm_options options = {comm, td_device_cpu(), 10000, 100};
    size_t host_bytes = 1, device_bytes = 1;
    td_device_transport_host.plan(&options, &host_bytes, &device_bytes);
    CHECK_INT(host_bytes, 0);
    CHECK_INT(device_bytes, 0);
    td_device_transport_staged.plan(&options, &host_bytes, &device_bytes);
    CHECK_INT(host_bytes, size == 1 ? 0 : 100 * 12288);
    CHECK_INT(device_bytes, 0);
    options.max_bytes = 48 << 20;
    td_device_transport_staged.plan(&options, &host_bytes, &device_bytes);
    CHECK_INT(host_bytes, size == 1 ? 0 : 96 << 20);
}

// A failure of one rank is every rank's.
static void memory_that_one_rank_lacks_ends_the_creation_on_all(void) {
    td_device_comm_options options = {comm, td_device_cpu(), rank == 0 ? SIZE_MAX / 2 : 8, 1};
    td_device_comm *device_comm = NULL;
    if (size > 1)
        CHECK_INT(td_device_transport_staged.create(&options, &device_comm), TD_ERR_MEMORY);
    CHECK(device_comm == NULL);
    td_comm_forget_failure(comm);
    td_error_clear();
}

int main(void) {
    REQUIRE(td_comm_bootstrap(&comm) == TD_OK);
    rank = td_comm_rank(comm);
    size = td_comm_size(comm);
    td_comm_set_deadline(comm, 20);
    device = td_device_cpu();
    transport = &td_device_transport_host;
    run_cases();
    transport = &td_device_transport_staged;
    run_cases();
    TEST(the_plan_is_what_staging_takes);
    TEST(memory_that_one_rank_lacks_ends_the_creation_on_all);
    REQUIRE(td_comm_finish(comm) == TD_OK);
    return test_report();
}
