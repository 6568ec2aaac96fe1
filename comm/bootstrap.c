// Which transport this process uses. The launcher's environment decides, before MPI is touched: a
// process that was started alone must start in milliseconds.
#include "comm/comm_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const char *const size_variables[] = {
    "OMPI_COMM_WORLD_SIZE", // Open MPI's mpirun
    "PMI_SIZE",             // MPICH's mpiexec, srun --mpi=pmi2
};

static int positive_integer(const char *text) {
    char *end;
    if (!text || *text == '\0')
        return 0;
    errno = 0;
    long value = strtol(text, &end, 10);
    return errno == 0 && *end == '\0' && value > 0 && value < 1 << 24 ? (int)value : 0;
}

// *out: ranks of the launch; 0: there was none; -1: there was one of unknown size.
static td_status find_launch(int *out) {
    for (size_t i = 0; i < sizeof size_variables / sizeof *size_variables; i++) {
        int size = positive_integer(getenv(size_variables[i]));
        if (size > 0) {
            *out = size;
            return TD_OK;
        }
    }
    // Set for the tasks of srun, not for the batch script itself.
    int step_size = positive_integer(getenv("SLURM_STEP_NUM_TASKS"));
    if (getenv("PMIX_RANK")) {
        *out = step_size > 0 ? step_size : -1;
        return TD_OK;
    }
    // Each task would train alone and write over the others' output.
    if (step_size > 1)
        return td_fail(TD_ERR_USAGE, "srun started %d tasks without MPI: use srun --mpi=pmix",
                       step_size);
    *out = 0;
    return TD_OK;
}

// The deadline until the config is read, so that a rank missing at the start is noticed.
static td_status start_deadline(double *out) {
    const char *text = getenv("TANDEM_START_DEADLINE_SECONDS");
    *out = TD_COMM_DEFAULT_DEADLINE_SECONDS;
    if (!text)
        return TD_OK;
    char *end;
    double seconds = strtod(text, &end);
    if (end == text || *end != '\0' || !(seconds > 0 && seconds < 1e6))
        return td_fail(TD_ERR_USAGE,
                       "TANDEM_START_DEADLINE_SECONDS is \"%s\"; expected seconds, e.g. 300", text);
    *out = seconds;
    return TD_OK;
}

td_status td_comm_bootstrap(td_comm **out) {
    int launched_size = 0;
    double deadline = 0;
    TD_TRY(find_launch(&launched_size));
    TD_TRY(start_deadline(&deadline));
    if (launched_size == 0 || launched_size == 1)
        TD_TRY(td_transport_self_create(out));
    else
        TD_TRY(td_transport_mpi_create(launched_size, deadline, out));
    (*out)->deadline = deadline;
    return TD_OK;
}
