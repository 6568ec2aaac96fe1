#include "runtime/data/hdf5_lock.h"

#include <hdf5.h>
#include <pthread.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

// The thread-safe build of HDF5 keeps one error handler per thread.
static _Thread_local int is_silenced;

void td_hdf5_lock(void) {
    pthread_mutex_lock(&lock);
    if (!is_silenced)
        is_silenced = H5Eset_auto2(H5E_DEFAULT, NULL, NULL) >= 0;
}

void td_hdf5_unlock(void) {
    pthread_mutex_unlock(&lock);
}
