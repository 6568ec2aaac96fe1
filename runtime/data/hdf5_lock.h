// HDF5's serial library is entered by one thread at a time: whoever calls H5* from a thread that
// may run beside another (training and the background checkpoint writer) holds this lock meanwhile.
#ifndef TANDEM_DATA_HDF5_LOCK_H
#define TANDEM_DATA_HDF5_LOCK_H

void td_hdf5_lock(void); // also switches off HDF5's own error printing, once
void td_hdf5_unlock(void);

// Of the library that is loaded: major, minor, release. Any thread.
void td_hdf5_version(unsigned out[3]);

#endif
