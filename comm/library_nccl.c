#include "comm/library_nccl.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Communicators that do not block, and ncclCommFinalize.
enum { OLDEST_VERSION = NCCL_VERSION(2, 14, 0) };

static const struct {
    const char *name;
    size_t offset; // of the pointer in td_nccl
} functions[] = {
    {"ncclGetVersion", offsetof(td_nccl, get_version)},
    {"ncclGetUniqueId", offsetof(td_nccl, get_unique_id)},
    {"ncclCommInitRankConfig", offsetof(td_nccl, init)},
    {"ncclCommGetAsyncError", offsetof(td_nccl, get_async_error)},
    {"ncclCommFinalize", offsetof(td_nccl, finalize)},
    {"ncclCommDestroy", offsetof(td_nccl, destroy)},
    {"ncclCommAbort", offsetof(td_nccl, abort)},
    {"ncclReduce", offsetof(td_nccl, reduce)},
    {"ncclBroadcast", offsetof(td_nccl, broadcast)},
    {"ncclGetErrorString", offsetof(td_nccl, get_error_string)},
    {"ncclGetLastError", offsetof(td_nccl, get_last_error)},
};

static pthread_once_t once = PTHREAD_ONCE_INIT;
static td_nccl loaded;
static int is_loaded;
static char failure[512];

static int find_functions(void *library, const char *path) {
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        void *function = dlsym(library, functions[i].name);
        if (!function) {
            snprintf(failure, sizeof failure, "%.300s has no %s: NCCL 2.14 or newer is needed",
                     path, functions[i].name);
            return 0;
        }
        memcpy((char *)&loaded + functions[i].offset, &function, sizeof function);
    }
    return 1;
}

// 2.9 and later are numbered 2xxyy, older ones 2xyy.
static int check_version(const char *path) {
    int version = 0;
    ncclResult_t result = loaded.get_version(&version);
    if (result == ncclSuccess && version >= OLDEST_VERSION && version < NCCL_VERSION(3, 0, 0))
        return 1;
    snprintf(failure, sizeof failure,
             "%.300s is NCCL version %d, but 2.14 or newer, below 3, is "
             "needed",
             path, version);
    return 0;
}

static void load(void) {
    const char *path = getenv("TANDEM_NCCL_LIBRARY");
    if (!path || *path == '\0')
        path = "libnccl.so.2";
    void *library = dlopen(path, RTLD_LAZY | RTLD_LOCAL);
    if (!library) {
        snprintf(failure, sizeof failure, "the NCCL library cannot be loaded: %.400s", dlerror());
        return;
    }
    is_loaded = find_functions(library, path) && check_version(path);
    if (!is_loaded)
        dlclose(library);
}

const td_nccl *td_nccl_load(char *reason, size_t reason_bytes) {
    pthread_once(&once, load);
    if (is_loaded)
        return &loaded;
    snprintf(reason, reason_bytes, "%s", failure);
    return NULL;
}
