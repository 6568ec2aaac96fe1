// What this build is made of and what it finds on this machine: the first lines of a bug report.
// Needs no other rank.
#include <stdio.h>

#include "comm/comm.h"
#include "comm/device_comm.h"
#include "kernels/ops.h"
#include "runtime/cli/cli.h"
#include "runtime/core/gpu_module.h"
#include "runtime/data/hdf5_lock.h"

#if __has_include("commit.h")
#include "commit.h"
#else
#define TD_COMMIT "unknown"
#endif
#ifndef TANDEM_VERSION
#define TANDEM_VERSION "unknown"
#endif

static void print_libraries(FILE *out) {
    char mpi[256];
    unsigned hdf5[3];
    td_comm_library(mpi, sizeof mpi);
    td_hdf5_version(hdf5);
    fprintf(out, "MPI:    %s\n", mpi);
    fprintf(out, "HDF5:   %u.%u.%u\n", hdf5[0], hdf5[1], hdf5[2]);
}

// As CUDA numbers its versions: 13000 is 13.0.
static void print_gpus(FILE *out, const td_gpu_module *module) {
    char reason[512] = "";
    int count = module->device_count(reason, sizeof reason);
    if (count <= 0)
        fprintf(out, "GPU:    none: %s\n", reason);
    for (int i = 0; i < count; i++) {
        td_gpu_info info;
        if (module->device_describe(i, &info) != TD_OK) {
            fprintf(out, "GPU %d:  %s\n", i, td_error_message());
            td_error_clear();
            continue;
        }
        fprintf(out, "GPU %d:  %s, compute capability %d.%d, CUDA %d.%d (driver %d.%d)\n", i,
                info.name, info.major, info.minor, info.runtime / 1000, info.runtime % 1000 / 10,
                info.driver / 1000, info.driver % 1000 / 10);
    }
    int found = module->nccl->probe(reason, sizeof reason);
    fprintf(out, "NCCL:   %s\n", found ? "found" : reason);
}

void td_print_version(FILE *out) {
    const td_gpu_module *module = NULL;
    char reason[512] = "";
    fprintf(out, "tandem %s (commit %s), compiler %s\n", TANDEM_VERSION, TD_COMMIT, __VERSION__);
    print_libraries(out);
    fprintf(out, "CPU:    vectors %s%s, %d threads\n", td_ops_cpu_vectors(),
            td_ops_cpu_has_bf16() ? " with bf16 products" : "", td_ops_cpu_threads());
    td_gpu_module_load(&module, reason, sizeof reason);
    if (module)
        print_gpus(out, module);
    else
        fprintf(out, "GPU:    none: %s\n", reason);
}
