// Inside comm, part of the GPU module: the NCCL library, loaded at run time so that a machine
// without it still trains. The toolkit's nccl.h gives the types only.
#ifndef TANDEM_COMM_LIBRARY_NCCL_H
#define TANDEM_COMM_LIBRARY_NCCL_H

#include <nccl.h>
#include <stddef.h>

typedef struct td_nccl {
    ncclResult_t (*get_version)(int *version);
    ncclResult_t (*get_unique_id)(ncclUniqueId *id);
    ncclResult_t (*init)(ncclComm_t *comm, int size, ncclUniqueId id, int rank,
                         ncclConfig_t *config);
    ncclResult_t (*get_async_error)(ncclComm_t comm, ncclResult_t *state);
    ncclResult_t (*finalize)(ncclComm_t comm);
    ncclResult_t (*destroy)(ncclComm_t comm);
    ncclResult_t (*abort)(ncclComm_t comm);
    ncclResult_t (*reduce)(const void *from, void *to, size_t count, ncclDataType_t type,
                           ncclRedOp_t operation, int root, ncclComm_t comm, cudaStream_t stream);
    ncclResult_t (*broadcast)(const void *from, void *to, size_t count, ncclDataType_t type,
                              int root, ncclComm_t comm, cudaStream_t stream);
    const char *(*get_error_string)(ncclResult_t result);
    const char *(*get_last_error)(ncclComm_t comm);
} td_nccl;

// Loads $TANDEM_NCCL_LIBRARY if that is set, else libnccl.so.2, once; later calls give the same
// answer. NULL with the cause in `reason` when it is not there or too old.
const td_nccl *td_nccl_load(char *reason, size_t reason_bytes);

#endif
