// What this build is made of and what it finds on this machine: the first lines of a bug report.
// Needs no other rank.
#include <hdf5.h>
#include <mpi.h>
#include <stdio.h>
#include <string.h>

#include "comm/device_comm.h"
#include "kernels/cpu/cpu_internal.h"
#include "runtime/cli/cli.h"
#include "runtime/core/gpu_module.h"

#if __has_include("commit.h")
#include "commit.h"
#else
#define TD_COMMIT "unknown"
#endif
#ifndef TANDEM_VERSION
#define TANDEM_VERSION "unknown"
#endif

static void print_mpi(FILE *out) {
    char text[MPI_MAX_LIBRARY_VERSION_STRING] = "unknown";
    int length = 0;
    MPI_Get_library_version(text, &length); // permitted before MPI_Init()
    text[strcspn(text, ",\n")] = '\0';
    fprintf(out, "MPI:    %s\n", text);
}

static void print_hdf5(FILE *out) {
    unsigned major = 0, minor = 0, release = 0;
    H5get_libversion(&major, &minor, &release);
    fprintf(out, "HDF5:   %u.%u.%u\n", major, minor, release);
}

static void print_cpu(FILE *out) {
    static const char *const names[] = {
        [TD_CPU_SCALAR] = "scalar", [TD_CPU_AVX2] = "AVX2", [TD_CPU_AVX512] = "AVX-512"};
    fprintf(out, "CPU:    %s, %d threads\n", names[td_cpu_simd()], td_cpu_threads());
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
    print_mpi(out);
    print_hdf5(out);
    print_cpu(out);
    td_gpu_module_load(&module, reason, sizeof reason);
    if (module)
        print_gpus(out, module);
    else
        fprintf(out, "GPU:    none: %s\n", reason);
}
