// Collectives on device memory: what gradients and parameters travel by.
//
// Three ways, one table each:
// - "host": device memory is host memory (a unified device whose streams run at once); goes
//   straight to the communicator.
// - "staged": a GPU without NCCL, or one that several ranks share: by way of pinned host memory on
//   copy streams, then the communicator (MPI), then back.
// - "nccl" (in the GPU module): device memory to device memory on a communication stream.
// int64 sums are exact, so all three give the same bits.
//
// Operations are started in the same order on every rank and run in that order, after the work that
// `stream` had at the time of the call, while the caller goes on queueing. They are waited for in
// the same order on every rank, too, and between the first start and the last wait nobody calls
// other collectives of `comm`: staged operations use it at moments that differ between ranks. A
// buffer belongs to the operation from start until the matching wait. start never blocks. Waits
// are bounded: past the communicator's deadline, or when NCCL reports an error of its own, the job
// ends on all ranks by td_comm_abort() with one line that names the rank, the operation and its
// number. One thread at a time, the one that bootstrapped `comm`.
#ifndef TANDEM_COMM_DEVICE_COMM_H
#define TANDEM_COMM_DEVICE_COMM_H

#include "comm/comm.h"
#include "runtime/core/device.h"

TD_C_BEGIN

typedef struct td_device_comm td_device_comm;

typedef struct td_device_comm_options {
    td_comm *comm;
    const td_device *device;
    size_t max_bytes; // of one operation
    size_t in_flight; // operations started since the oldest one not yet waited for, at most
} td_device_comm_options;

typedef enum td_collective_type {
    TD_COLLECTIVE_I64, // sums are exact
    TD_COLLECTIVE_F32, // in the library's order: for comparison
} td_collective_type;

typedef struct td_device_transport {
    const char *name; // "host", "staged", "nccl"
    // Local. 1 when it can be used in this process; 0 with the cause in `reason` (library missing).
    int (*probe)(char *reason, size_t reason_bytes);
    // Device and pinned host bytes that an instance with these options allocates; nothing is
    // allocated after create. What NCCL takes for itself is not known before and not counted.
    void (*plan)(const td_device_comm_options *options, size_t *host_bytes, size_t *device_bytes);
    // Collective; a rank's failure is every rank's (td_comm_agree). Bounded by the deadline.
    td_status (*create)(const td_device_comm_options *options, td_device_comm **out);
    // Local but for "nccl", where it is collective and bounded by the deadline. Every operation
    // has been waited for. NULL is fine.
    void (*destroy)(td_device_comm *self);
    // Sum over the ranks into `root`'s values; elsewhere they are undefined afterwards.
    td_status (*reduce_start)(td_device_comm *self, void *values, size_t count,
                              td_collective_type type, int root, td_stream *stream,
                              const char *what, td_request *out);
    td_status (*broadcast_start)(td_device_comm *self, void *buffer, size_t bytes, int root,
                                 td_stream *stream, const char *what, td_request *out);
    // Pushes started operations along without blocking; called between layers.
    td_status (*progress)(td_device_comm *self);
    // Blocks the caller, within the deadline, until the operation is done; what is queued on
    // `stream` afterwards sees its result.
    td_status (*wait)(td_device_comm *self, td_request request, td_stream *stream);
} td_device_transport;

// A transport puts this first into its own structure.
struct td_device_comm {
    const td_device_transport *transport;
    td_comm *comm;
    const td_device *device;
};

extern const td_device_transport td_device_transport_host;
extern const td_device_transport td_device_transport_staged;

static inline size_t td_collective_type_bytes(td_collective_type type) {
    return type == TD_COLLECTIVE_I64 ? sizeof(int64_t) : sizeof(float);
}

TD_C_END

#endif
