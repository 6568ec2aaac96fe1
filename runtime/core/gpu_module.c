#define _GNU_SOURCE
#include "runtime/core/gpu_module.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/core/files.h"

enum { REASON_BYTES = 512 };

static const char file_name[] = "libtandem_cuda.so";
static const char entry_name[] = "td_gpu_module_get";

// What the first call found; written once.
static struct {
    pthread_once_t once;
    const td_gpu_module *module;
    char reason[REASON_BYTES];
} loaded = {.once = PTHREAD_ONCE_INIT};

// The folder of the running program, without the slash. 0 when the system does not say.
static int program_folder(char out[TD_PATH_MAX]) {
    ssize_t chars = readlink("/proc/self/exe", out, TD_PATH_MAX - 1);
    if (chars <= 0)
        return 0;
    out[chars] = '\0';
    char *slash = strrchr(out, '/');
    if (!slash)
        return 0;
    *slash = '\0';
    return 1;
}

static int find_beside_program(char out[TD_PATH_MAX]) {
    static const char *const places[] = {"", "/../lib/tandem"};
    char folder[TD_PATH_MAX];
    if (!program_folder(folder))
        return 0;
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        int chars = snprintf(out, TD_PATH_MAX, "%s%s/%s", folder, places[i], file_name);
        if (chars < TD_PATH_MAX && access(out, F_OK) == 0)
            return 1;
    }
    return 0;
}

// The module brings a hundred megabytes of libraries into memory; without a driver for nothing.
static int has_driver(char *reason) {
    void *driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
    if (driver)
        dlclose(driver);
    else
        snprintf(reason, REASON_BYTES, "no NVIDIA driver is installed");
    return driver != NULL;
}

// A module that somebody names must be there; that none was built is nobody's mistake.
static int find_file(char out[TD_PATH_MAX], char *reason) {
    const char *named = getenv("TANDEM_GPU_MODULE");
    if (!named || !named[0]) {
        if (find_beside_program(out))
            return has_driver(reason);
        snprintf(reason, REASON_BYTES, "no %s beside the program, which is built for CPUs only",
                 file_name);
        return 0;
    }
    // With a slash in it whatever was given: the linker looks for mere names elsewhere.
    int chars = snprintf(out, TD_PATH_MAX, "%s%s", named[0] == '/' ? "" : "./", named);
    if (chars < TD_PATH_MAX && access(out, F_OK) == 0)
        return 1;
    snprintf(reason, REASON_BYTES, "TANDEM_GPU_MODULE: there is no file %.300s", named);
    return 0;
}

// The linker names the file and the library or symbol that is missing.
static const td_gpu_module *open_file(const char *path, char *reason) {
    typedef const td_gpu_module *get_module(void);
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        snprintf(reason, REASON_BYTES, "the GPU module cannot be loaded: %.400s", dlerror());
        return NULL;
    }
    get_module *get;
    void *symbol = dlsym(library, entry_name);
    if (!symbol) {
        snprintf(reason, REASON_BYTES, "%.300s is no GPU module: it has no %s", path, entry_name);
        return NULL;
    }
    memcpy(&get, &symbol, sizeof get); // ISO C has no cast from void * to a function
    const td_gpu_module *module = get();
    if (module->version == TD_GPU_MODULE_VERSION)
        return module;
    snprintf(reason, REASON_BYTES,
             "%.300s has version %d, the program needs %d: take both from the same build", path,
             module->version, TD_GPU_MODULE_VERSION);
    return NULL;
}

// The library stays open: device objects and function tables of it live as long as the process.
static void load_once(void) {
    char path[TD_PATH_MAX];
    if (!find_file(path, loaded.reason))
        return;
    const td_gpu_module *module = open_file(path, loaded.reason);
    if (module && module->device_count(loaded.reason, REASON_BYTES) > 0)
        loaded.module = module;
}

void td_gpu_module_load(const td_gpu_module **out, char *reason, size_t reason_bytes) {
    pthread_once(&loaded.once, load_once);
    *out = loaded.module;
    if (!loaded.module && reason_bytes > 0)
        snprintf(reason, reason_bytes, "%s", loaded.reason);
}
