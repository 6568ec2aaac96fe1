#include "runtime/data/hdf5_lock.h"

#include <hdf5.h>
#include <pthread.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int is_prepared;

// In a thread-safe build of HDF5 every thread has an error stack, and a printer, of its own.
static _Thread_local int is_quiet;

void td_hdf5_lock(void) {
    pthread_mutex_lock(&lock);
    // A file that could not be closed (full disk) stays in the library's tables, and its handler at
    // exit would crash on it. Whoever writes closes and checks, so the handler has nothing to do.
    if (!is_prepared)
        H5dont_atexit();
    is_prepared = 1;
    if (!is_quiet)
        H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    is_quiet = 1;
}

void td_hdf5_unlock(void) {
    pthread_mutex_unlock(&lock);
}

void td_hdf5_version(unsigned out[3]) {
    H5get_libversion(&out[0], &out[1], &out[2]);
}
