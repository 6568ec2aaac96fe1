// NCCL between the ranks of one host, on the emulated CUDA runtime: libnccl_host.so.
//
// The ranks share a memory file of rank 0, which the unique id names; it goes with the last process
// that has it open. Every rank has a mailbox for one chunk. An operation is an entry on its stream
// that is polled: a sender fills its mailbox when it is empty, receivers take what is in the
// others'. A chunk carries what operation it belongs to, so ranks that call different ones are
// told, where the real library would hang or mix them up. Order of sums of floats: random, new for
// each chunk.
//
// CUDA_HOST_NCCL_FAULT=NAME[:RANK] plants a fault, on one rank or on all:
//   init_fails     the communicator ends up in an error instead of being made
//   init_blocks    the call that makes it does not return
//   never_arrives  the rank is never there for the others
//   async_error    from the third operation on, the state is an error and nothing gets done
//   hang           from the third operation on, nothing gets done, and no word of it
//   call_fails     the third operation is refused
//   disagree       ranks that call different operations hang, as with the real library
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/cuda_host/include/cuda_host.h"
#include "tests/cuda_host/include/nccl.h"

namespace {

constexpr int most_ranks = 16;
constexpr size_t chunk_bytes = 8192;
constexpr uint64_t first_bad_operation = 2;

// What a chunk belongs to; the same on every rank.
struct header {
    uint64_t operation, count;
    int32_t type, root, is_reduction, unused;
};

struct mailbox {
    std::atomic<uint64_t> posted;  // chunks so far
    std::atomic<uint32_t> missing; // receivers that have not taken the newest one
    header about;
    alignas(16) unsigned char data[chunk_bytes];
};

struct identity {
    char uuid[16];
    char host[112];
};

struct shared_state {
    std::atomic<int> joined[most_ranks];
    identity who[most_ranks];
    mailbox boxes[most_ranks];
};

struct fault {
    char name[32] = "";
    int rank = -1;
};

fault read_fault() {
    fault out;
    const char *text = getenv("CUDA_HOST_NCCL_FAULT");
    if (text)
        sscanf(text, "%31[^:]:%d", out.name, &out.rank);
    return out;
}

// A module that was loaded for itself only keeps the runtime's names from this library.
__attribute__((constructor)) void see_the_module() {
    const char *module = getenv("TANDEM_GPU_MODULE");
    if (module)
        dlopen(module, RTLD_NOW | RTLD_NOLOAD | RTLD_GLOBAL);
}

int identifier_file = -1; // rank 0's, until its communicator is made

} // namespace

struct ncclComm {
    shared_state *shared;
    int rank, size, device, file;
    char last_error[160];
    std::atomic<int> state{ncclInProgress};
    std::atomic<int> pending{0}; // operations on streams
    std::atomic<bool> aborted{false}, dropped{false};
    bool is_made, is_finalizing;
    uint64_t n_called, n_done;
    void *late; // operation: called, and not on its stream yet
    cudaStream_t late_stream;
    int late_polls;
    uint64_t expected[most_ranks]; // chunks of each rank that belong to operations done
};

namespace {

bool is_faulty(const ncclComm *comm, const char *name) {
    static const fault wanted = read_fault();
    return strcmp(wanted.name, name) == 0 && (wanted.rank < 0 || wanted.rank == comm->rank);
}

ncclResult_t fail(ncclComm *comm, ncclResult_t result, const char *text) {
    snprintf(comm->last_error, sizeof comm->last_error, "%s", text);
    comm->state = result;
    return result;
}

void *map_file(int file) {
    void *memory = mmap(nullptr, sizeof(shared_state), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    return memory == MAP_FAILED ? nullptr : memory;
}

void drop(ncclComm *comm) {
    if (comm->shared)
        munmap(comm->shared, sizeof(shared_state));
    if (comm->file >= 0)
        close(comm->file);
    delete comm;
}

void join(ncclComm *comm) {
    identity *who = &comm->shared->who[comm->rank];
    cudaDeviceProp properties;
    const char *host = getenv("NCCL_HOSTID");
    cudaGetDeviceProperties(&properties, comm->device);
    memcpy(who->uuid, properties.uuid.bytes, sizeof who->uuid);
    snprintf(who->host, sizeof who->host, "%s", host ? host : "");
    if (!is_faulty(comm, "never_arrives"))
        comm->shared->joined[comm->rank].store(1, std::memory_order_release);
}

bool find_duplicate(ncclComm *comm) {
    for (int a = 0; a < comm->size; a++)
        for (int b = a + 1; b < comm->size; b++)
            if (memcmp(&comm->shared->who[a], &comm->shared->who[b], sizeof(identity)) == 0) {
                char text[120];
                snprintf(text, sizeof text, "Duplicate GPU detected : rank %d and rank %d", a, b);
                fail(comm, ncclInvalidUsage, text);
                return true;
            }
    return false;
}

// Looks whether all have come.
void go_on_making(ncclComm *comm) {
    for (int rank = 0; rank < comm->size; rank++)
        if (!comm->shared->joined[rank].load(std::memory_order_acquire))
            return;
    if (find_duplicate(comm))
        return;
    if (is_faulty(comm, "init_fails")) {
        fail(comm, ncclSystemError, "the network is unreachable");
        return;
    }
    comm->is_made = true;
    comm->state = ncclSuccess;
}

size_t bytes_of(ncclDataType_t type) {
    return type == ncclUint8 ? 1 : type == ncclFloat32 ? 4 : 8;
}

struct operation {
    ncclComm *comm;
    header about;
    const unsigned char *from;
    unsigned char *to;
    size_t bytes, at; // `at`: where the chunk that comes next begins

    size_t chunk() const {
        return bytes - at < chunk_bytes ? bytes - at : chunk_bytes;
    }
    uint64_t chunk_number(int rank) const {
        return comm->expected[rank] + at / chunk_bytes;
    }
};

// Whether a chunk belongs to this rank's operation.
bool is_same(const operation &mine, int rank, const header &theirs) {
    if (memcmp(&mine.about, &theirs, sizeof theirs) == 0)
        return true;
    if (is_faulty(mine.comm, "disagree"))
        return false;
    cuda_host_fail("NCCL: rank %d is in operation %llu (%s of %llu, root %d) while rank %d is in "
                   "%llu (%s of %llu, root %d)",
                   rank, static_cast<unsigned long long>(theirs.operation),
                   theirs.is_reduction ? "reduce" : "broadcast",
                   static_cast<unsigned long long>(theirs.count), theirs.root, mine.comm->rank,
                   static_cast<unsigned long long>(mine.about.operation),
                   mine.about.is_reduction ? "reduce" : "broadcast",
                   static_cast<unsigned long long>(mine.about.count), mine.about.root);
}

// 1: the chunk is in this rank's mailbox.
int post(operation &op, uint32_t receivers) {
    mailbox &box = op.comm->shared->boxes[op.comm->rank];
    if (box.missing.load(std::memory_order_acquire) != 0)
        return 0;
    memcpy(box.data, op.from + op.at, op.chunk());
    box.about = op.about;
    box.missing.store(receivers, std::memory_order_relaxed);
    box.posted.fetch_add(1, std::memory_order_release);
    return 1;
}

// The mailbox of a rank when the chunk that this operation wants is in it.
mailbox *arrived(const operation &op, int rank) {
    mailbox &box = op.comm->shared->boxes[rank];
    if (box.posted.load(std::memory_order_acquire) <= op.chunk_number(rank))
        return nullptr;
    return is_same(op, rank, box.about) ? &box : nullptr;
}

template <typename T> void add(unsigned char *sum, const unsigned char *values, size_t bytes) {
    for (size_t i = 0; i < bytes; i += sizeof(T)) {
        T a, b;
        memcpy(&a, sum + i, sizeof a);
        memcpy(&b, values + i, sizeof b);
        a += b;
        memcpy(sum + i, &a, sizeof a);
    }
}

int all_arrived(const operation &op) {
    for (int rank = 0; rank < op.comm->size; rank++)
        if (rank != op.comm->rank && !arrived(op, rank))
            return 0;
    return 1;
}

// The ranks in random order; this rank's part is in its own buffer.
void sum_chunk(operation &op) {
    static unsigned char sum[chunk_bytes], mine[chunk_bytes];
    int order[most_ranks], size = op.comm->size;
    size_t bytes = op.chunk();
    memcpy(mine, op.from + op.at, bytes);
    memset(sum, 0, bytes);
    for (int i = 0; i < size; i++)
        order[i] = i;
    for (int left = size; left > 0; left--) {
        int pick = static_cast<int>(cuda_host_random(static_cast<uint32_t>(left)));
        int rank = order[pick];
        order[pick] = order[left - 1];
        mailbox &box = op.comm->shared->boxes[rank];
        const unsigned char *part = rank == op.comm->rank ? mine : box.data;
        if (op.about.type == ncclFloat32)
            add<float>(sum, part, bytes);
        else
            add<uint64_t>(sum, part, bytes);
        if (rank != op.comm->rank)
            box.missing.store(0, std::memory_order_release);
    }
    memcpy(op.to + op.at, sum, bytes);
}

// 1: the next chunk is done on this rank.
int move_reduction(operation &op) {
    if (op.comm->rank != op.about.root)
        return post(op, 1);
    if (!all_arrived(op))
        return 0;
    sum_chunk(op);
    return 1;
}

int move_broadcast(operation &op) {
    if (op.comm->rank == op.about.root)
        return op.comm->size == 1 || post(op, static_cast<uint32_t>(op.comm->size - 1));
    mailbox *box = arrived(op, op.about.root);
    if (!box)
        return 0;
    memcpy(op.to + op.at, box->data, op.chunk());
    box->missing.fetch_sub(1, std::memory_order_release);
    return 1;
}

void finish(operation &op) {
    ncclComm *comm = op.comm;
    uint64_t chunks = (op.bytes + chunk_bytes - 1) / chunk_bytes;
    for (int rank = 0; rank < comm->size; rank++)
        if ((rank == op.about.root) != (op.about.is_reduction != 0))
            comm->expected[rank] += chunks;
    comm->n_done++;
}

bool is_stuck(const operation &op) {
    return op.about.operation >= first_bad_operation &&
           (is_faulty(op.comm, "hang") || is_faulty(op.comm, "async_error"));
}

int poll_operation(void *state) {
    operation &op = *static_cast<operation *>(state);
    if (op.comm->aborted)
        return 1;
    if (is_stuck(op)) {
        if (is_faulty(op.comm, "async_error"))
            fail(op.comm, ncclRemoteError, "the connection was closed by the remote peer");
        return 0;
    }
    if (op.comm->n_done != op.about.operation) // of another stream
        return 0;
    while (op.at < op.bytes) {
        if (cuda_host_random(4) == 0 ||
            !(op.about.is_reduction ? move_reduction(op) : move_broadcast(op)))
            return 0;
        op.at += op.chunk();
    }
    finish(op);
    return 1;
}

void release_operation(void *state) {
    operation *op = static_cast<operation *>(state);
    ncclComm *comm = op->comm;
    delete op;
    if (comm->pending.fetch_sub(1) == 1 && comm->dropped)
        drop(comm);
}

ncclResult_t queue(ncclComm *comm, operation *op, cudaStream_t stream) {
    if (cuda_host_enqueue(stream, op->about.is_reduction ? "ncclReduce" : "ncclBroadcast",
                          poll_operation, op, release_operation) != cudaSuccess)
        return fail(comm, ncclUnhandledCudaError, "the operation cannot be queued");
    return ncclSuccess;
}

// Who records an event behind a call that is in progress records it before the operation.
void go_on_queueing(ncclComm *comm) {
    if (--comm->late_polls > 0)
        return;
    auto *late = static_cast<operation *>(comm->late);
    comm->late = nullptr;
    comm->state = queue(comm, late, comm->late_stream);
}

// As where ranks talk to each other for the first time, some calls are in progress for a while.
ncclResult_t enqueue(const char *name, operation op, cudaStream_t stream) {
    ncclComm *comm = op.comm;
    if (!comm->is_made || comm->state != ncclSuccess)
        return comm->state == ncclInProgress ? ncclInvalidUsage
                                             : static_cast<ncclResult_t>(comm->state.load());
    if (op.about.root < 0 || op.about.root >= comm->size ||
        cuda_host_stream_device(stream) != comm->device)
        return fail(comm, ncclInvalidArgument, "wrong root, or a stream of another device");
    cuda_host_check_range(op.from, op.bytes, name);
    cuda_host_check_range(op.to, op.bytes, name);
    op.about.operation = comm->n_called++;
    if (op.about.operation == first_bad_operation && is_faulty(comm, "call_fails"))
        return fail(comm, ncclUnhandledCudaError, "the launch was refused");
    comm->pending++;
    operation *queued = new operation(op);
    if (op.about.operation % 3 != 0)
        return queue(comm, queued, stream);
    comm->late = queued;
    comm->late_stream = stream;
    comm->late_polls = 2;
    comm->state = ncclInProgress;
    return ncclInProgress;
}

} // namespace

ncclResult_t ncclGetVersion(int *version) {
    *version = NCCL_VERSION_CODE;
    return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    identifier_file = memfd_create("nccl_host", MFD_CLOEXEC);
    if (identifier_file < 0 || ftruncate(identifier_file, sizeof(shared_state)) != 0)
        return ncclSystemError;
    memset(id, 0, sizeof *id);
    snprintf(id->internal, sizeof id->internal, "/proc/%d/fd/%d", static_cast<int>(getpid()),
             identifier_file);
    return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *out, int size, ncclUniqueId id, int rank,
                                    ncclConfig_t *config) {
    if (size < 1 || size > most_ranks || rank < 0 || rank >= size || config->blocking != 0)
        return ncclInvalidArgument;
    ncclComm *comm = new ncclComm();
    comm->rank = rank;
    comm->size = size;
    comm->file = rank == 0 ? identifier_file : open(id.internal, O_RDWR | O_CLOEXEC);
    cudaGetDevice(&comm->device);
    *out = comm;
    comm->shared = comm->file >= 0 ? static_cast<shared_state *>(map_file(comm->file)) : nullptr;
    if (!comm->shared)
        return fail(comm, ncclSystemError, "the shared memory of rank 0 cannot be opened");
    while (is_faulty(comm, "init_blocks"))
        usleep(10000);
    join(comm);
    return ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *state) {
    if (!comm->is_made && comm->state == ncclInProgress)
        go_on_making(comm);
    else if (comm->late && comm->state == ncclInProgress)
        go_on_queueing(comm);
    if (comm->is_finalizing && comm->state == ncclInProgress && comm->pending == 0)
        comm->state = ncclSuccess;
    *state = static_cast<ncclResult_t>(comm->state.load());
    return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t comm) {
    if (comm->is_finalizing || comm->state != ncclSuccess)
        return ncclInvalidUsage;
    comm->is_finalizing = true;
    comm->state = ncclInProgress;
    return ncclInProgress;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
    if (comm->pending > 0 || !comm->is_finalizing)
        return ncclInvalidUsage;
    drop(comm);
    return ncclSuccess;
}

// Operations that are still queued end at their next turn, and the communicator with the last one.
ncclResult_t ncclCommAbort(ncclComm_t comm) {
    comm->aborted = true;
    comm->dropped = true;
    if (comm->pending == 0)
        drop(comm);
    else if (comm->late)
        release_operation(comm->late);
    return ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t result) {
    static const char *const texts[] = {"no error",
                                        "unhandled cuda error",
                                        "unhandled system error",
                                        "internal error",
                                        "invalid argument",
                                        "invalid usage",
                                        "remote process exited or network error",
                                        "NCCL operation in progress"};
    return texts[result];
}

const char *ncclGetLastError(ncclComm_t comm) {
    return comm ? comm->last_error : "";
}

ncclResult_t ncclReduce(const void *from, void *to, size_t count, ncclDataType_t type, ncclRedOp_t,
                        int root, ncclComm_t comm, cudaStream_t stream) {
    operation op = {};
    op.comm = comm;
    op.about = {0, count, type, root, 1, 0};
    op.from = static_cast<const unsigned char *>(from);
    op.to = static_cast<unsigned char *>(to);
    op.bytes = count * bytes_of(type);
    return enqueue("ncclReduce", op, stream);
}

ncclResult_t ncclBroadcast(const void *from, void *to, size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t stream) {
    operation op = {};
    op.comm = comm;
    op.about = {0, count, type, root, 0, 0};
    op.from = static_cast<const unsigned char *>(from);
    op.to = static_cast<unsigned char *>(to);
    op.bytes = count * bytes_of(type);
    return enqueue("ncclBroadcast", op, stream);
}
