// Without a launcher: the self transport, at once; half a launch is refused.
#include "test.h"

#include <time.h>

#include "comm/comm.h"

static const char *const launcher_variables[] = {
    "OMPI_COMM_WORLD_SIZE",          "PMI_SIZE", "PMIX_RANK", "SLURM_STEP_NUM_TASKS",
    "TANDEM_START_DEADLINE_SECONDS",
};

static void clear_environment(void) {
    for (size_t i = 0; i < sizeof launcher_variables / sizeof *launcher_variables; i++)
        unsetenv(launcher_variables[i]);
}

static void expect_self(void) {
    td_comm *comm;
    REQUIRE(td_comm_bootstrap(&comm) == TD_OK);
    CHECK_STRING(td_comm_transport_name(comm), "self");
    CHECK_INT(td_comm_size(comm), 1);
    CHECK_INT(td_comm_rank(comm), 0);
    CHECK_INT(td_comm_local_size(comm), 1);
    CHECK_INT(td_comm_finish(comm), TD_OK);
}

static void expect_refusal(const char *part) {
    td_comm *comm = NULL;
    CHECK_INT(td_comm_bootstrap(&comm), TD_ERR_USAGE);
    CHECK(strstr(td_error_message(), part));
    CHECK(comm == NULL);
    td_error_clear();
}

static void alone_starts_without_mpi(void) {
    struct timespec begin, end;
    clear_environment();
    clock_gettime(CLOCK_MONOTONIC, &begin);
    expect_self();
    clock_gettime(CLOCK_MONOTONIC, &end);
    // MPI_Init takes some 200 ms.
    CHECK((double)(end.tv_sec - begin.tv_sec) + 1e-9 * (double)(end.tv_nsec - begin.tv_nsec) <
          0.05);
}

static void one_rank_by_a_launcher_is_self(void) {
    clear_environment();
    setenv("OMPI_COMM_WORLD_SIZE", "1", 1);
    expect_self();
    clear_environment();
    setenv("SLURM_STEP_NUM_TASKS", "1", 1);
    setenv("PMIX_RANK", "0", 1);
    expect_self();
}

static void srun_without_pmix_is_refused(void) {
    clear_environment();
    setenv("SLURM_STEP_NUM_TASKS", "4", 1);
    expect_refusal("srun started 4 tasks without MPI: use srun --mpi=pmix");
}

static void a_bad_start_deadline_is_refused(void) {
    static const char *const bad[] = {"", "soon", "-1", "0", "nan", "3 s"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        clear_environment();
        setenv("TANDEM_START_DEADLINE_SECONDS", bad[i], 1);
        expect_refusal("TANDEM_START_DEADLINE_SECONDS");
    }
    clear_environment();
    setenv("TANDEM_START_DEADLINE_SECONDS", "2.5", 1);
    expect_self();
}

int main(void) {
    TEST(alone_starts_without_mpi);
    TEST(one_rank_by_a_launcher_is_self);
    TEST(srun_without_pmix_is_refused);
    TEST(a_bad_start_deadline_is_refused);
    return test_report();
}
