#include "runtime/data/hdf5_lock.h"

#include <hdf5.h>
#include <pthread.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

// In a thread-safe build of HDF5 every thread has an error stack, and a printer, of its own.
static _Thread_local int is_quiet;

void td_hdf5_lock(void) {
    pthread_mutex_lock(&lock);
    if (!is_quiet)
        H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    is_quiet = 1;
}

void td_hdf5_unlock(void) {
    pthread_mutex_unlock(&lock);
}
