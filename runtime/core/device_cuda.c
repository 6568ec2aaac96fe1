// CUDA devices on the runtime API. Part of the GPU module, not of tandem_core.
#include "runtime/core/device_cuda.h"

#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_DEVICES = 64 };

struct td_stream {
    const td_device *device;
    cudaStream_t handle;
};

struct td_event {
    const td_device *device;
    cudaEvent_t handle;
};

static td_device devices[MAX_DEVICES];
static pthread_mutex_t devices_lock = PTHREAD_MUTEX_INITIALIZER;

static td_status check(cudaError_t error, const td_device *device, const char *call) {
    if (error == cudaSuccess)
        return TD_OK;
    // A full GPU refuses contexts and streams, too.
    td_status status = error == cudaErrorMemoryAllocation ? TD_ERR_MEMORY : TD_ERR_INTERNAL;
    return td_fail(status, "GPU %d: %s: %s (%s)", device->index, call, cudaGetErrorString(error),
                   cudaGetErrorName(error));
}

static td_status enter(const td_device *device) {
    return check(cudaSetDevice(device->index), device, "cudaSetDevice");
}

// Out of memory names what the memory was for; everything else is CUDA's word.
static td_status check_alloc(cudaError_t error, const td_device *device, size_t bytes,
                             const char *kind, const char *purpose) {
    if (error != cudaErrorMemoryAllocation)
        return check(error, device, "allocation");
    (void)cudaGetLastError(); // the failure is dealt with
    size_t free_bytes = 0, total_bytes = 0;
    (void)cudaMemGetInfo(&free_bytes, &total_bytes);
    return td_fail(TD_ERR_MEMORY,
                   "GPU %d: cannot allocate %.1f MiB of %s memory for %s (%.1f of %.1f MiB of the "
                   "GPU are free)",
                   device->index, (double)bytes / (1 << 20), kind, purpose,
                   (double)free_bytes / (1 << 20), (double)total_bytes / (1 << 20));
}

static td_status cuda_alloc(const td_device *device, size_t bytes, const char *purpose,
                            void **out) {
    void *memory = NULL;
    TD_TRY(enter(device));
    TD_TRY(check_alloc(cudaMalloc(&memory, bytes ? bytes : 1), device, bytes, "device", purpose));
    td_status status = check(cudaMemset(memory, 0, bytes), device, "cudaMemset");
    if (status == TD_OK) // the default stream, which ours do not wait for
        status = check(cudaDeviceSynchronize(), device, "cudaDeviceSynchronize");
    if (status != TD_OK) {
        cudaFree(memory);
        return status;
    }
    *out = memory;
    return TD_OK;
}

static void cuda_free(const td_device *device, void *memory) {
    if (memory && cudaSetDevice(device->index) == cudaSuccess)
        cudaFree(memory);
}

static td_status cuda_alloc_pinned(const td_device *device, size_t bytes, const char *purpose,
                                   void **out) {
    void *memory = NULL;
    TD_TRY(enter(device));
    TD_TRY(check_alloc(cudaHostAlloc(&memory, bytes ? bytes : 1, cudaHostAllocPortable), device,
                       bytes, "pinned host", purpose));
    memset(memory, 0, bytes);
    *out = memory;
    return TD_OK;
}

static void cuda_free_pinned(const td_device *device, void *memory) {
    if (memory && cudaSetDevice(device->index) == cudaSuccess)
        cudaFreeHost(memory);
}

static td_status cuda_copy(td_stream *stream, void *to, const void *from, size_t bytes) {
    if (bytes == 0)
        return TD_OK;
    TD_TRY(enter(stream->device));
    return check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream->handle),
                 stream->device, "cudaMemcpyAsync");
}

static td_status cuda_set(td_stream *stream, void *to, int byte, size_t bytes) {
    if (bytes == 0)
        return TD_OK;
    TD_TRY(enter(stream->device));
    return check(cudaMemsetAsync(to, byte, bytes, stream->handle), stream->device,
                 "cudaMemsetAsync");
}

static td_status cuda_stream_create(const td_device *device, td_stream **out) {
    td_stream *stream = calloc(1, sizeof *stream);
    if (!stream)
        return td_fail(TD_ERR_MEMORY, "no memory for a stream");
    stream->device = device;
    td_status status = enter(device);
    if (status == TD_OK)
        status = check(cudaStreamCreateWithFlags(&stream->handle, cudaStreamNonBlocking), device,
                       "cudaStreamCreate");
    if (status != TD_OK) {
        free(stream);
        return status;
    }
    *out = stream;
    return TD_OK;
}

static void cuda_stream_destroy(td_stream *stream) {
    if (!stream)
        return;
    if (cudaSetDevice(stream->device->index) == cudaSuccess)
        cudaStreamDestroy(stream->handle);
    free(stream);
}

static td_status cuda_stream_synchronize(td_stream *stream) {
    TD_TRY(enter(stream->device));
    return check(cudaStreamSynchronize(stream->handle), stream->device, "cudaStreamSynchronize");
}

static td_status create_event(const td_device *device, unsigned flags, td_event **out) {
    td_event *event = calloc(1, sizeof *event);
    if (!event)
        return td_fail(TD_ERR_MEMORY, "no memory for an event");
    event->device = device;
    td_status status = enter(device);
    if (status == TD_OK)
        status = check(cudaEventCreateWithFlags(&event->handle, flags), device, "cudaEventCreate");
    if (status != TD_OK) {
        free(event);
        return status;
    }
    *out = event;
    return TD_OK;
}

static td_status cuda_event_create(const td_device *device, td_event **out) {
    return create_event(device, cudaEventDisableTiming, out);
}

static td_status cuda_event_create_timed(const td_device *device, td_event **out) {
    return create_event(device, cudaEventDefault, out);
}

static void cuda_event_destroy(td_event *event) {
    if (!event)
        return;
    if (cudaSetDevice(event->device->index) == cudaSuccess)
        cudaEventDestroy(event->handle);
    free(event);
}

static td_status cuda_event_record(td_event *event, td_stream *stream) {
    TD_TRY(enter(stream->device));
    return check(cudaEventRecord(event->handle, stream->handle), stream->device, "cudaEventRecord");
}

static td_status cuda_event_wait(td_event *event, td_stream *stream) {
    TD_TRY(enter(stream->device));
    return check(cudaStreamWaitEvent(stream->handle, event->handle, 0), stream->device,
                 "cudaStreamWaitEvent");
}

static td_status cuda_event_synchronize(td_event *event) {
    TD_TRY(enter(event->device));
    return check(cudaEventSynchronize(event->handle), event->device, "cudaEventSynchronize");
}

static td_status cuda_event_query(td_event *event, int *out_reached) {
    TD_TRY(enter(event->device));
    cudaError_t error = cudaEventQuery(event->handle);
    if (error != cudaErrorNotReady)
        TD_TRY(check(error, event->device, "cudaEventQuery"));
    *out_reached = error == cudaSuccess;
    return TD_OK;
}

static td_status cuda_event_elapsed(td_event *begin, td_event *end, double *out_seconds) {
    float milliseconds = 0;
    TD_TRY(enter(begin->device));
    TD_TRY(check(cudaEventElapsedTime(&milliseconds, begin->handle, end->handle), begin->device,
                 "cudaEventElapsedTime"));
    *out_seconds = 1e-3 * (double)milliseconds;
    return TD_OK;
}

static td_status cuda_memory_info(const td_device *device, size_t *free_bytes,
                                  size_t *total_bytes) {
    TD_TRY(enter(device));
    return check(cudaMemGetInfo(free_bytes, total_bytes), device, "cudaMemGetInfo");
}

static const td_device_table cuda_table = {
    .name = "cuda",
    .alloc = cuda_alloc,
    .free = cuda_free,
    .alloc_pinned = cuda_alloc_pinned,
    .free_pinned = cuda_free_pinned,
    .copy = cuda_copy,
    .set = cuda_set,
    .stream_create = cuda_stream_create,
    .stream_destroy = cuda_stream_destroy,
    .stream_synchronize = cuda_stream_synchronize,
    .event_create = cuda_event_create,
    .event_destroy = cuda_event_destroy,
    .event_record = cuda_event_record,
    .event_wait = cuda_event_wait,
    .event_synchronize = cuda_event_synchronize,
    .event_query = cuda_event_query,
    .event_create_timed = cuda_event_create_timed,
    .event_elapsed = cuda_event_elapsed,
    .range_push = td_cuda_range_push,
    .range_pop = td_cuda_range_pop,
    .capture_begin = td_cuda_capture_begin,
    .capture_end = td_cuda_capture_end,
    .graph_launch = td_cuda_graph_launch,
    .graph_destroy = td_cuda_graph_destroy,
    .memory_info = cuda_memory_info,
};

static void say_version(int version, char out[24]) {
    snprintf(out, 24, "%d.%d", version / 1000, version % 1000 / 10);
}

// CUDA calls a driver that is too old and one that is not there the same; the version tells.
static void describe_driver(char *reason, size_t reason_bytes) {
    int driver = 0, runtime = 0;
    char has[24], needs[24];
    (void)cudaDriverGetVersion(&driver);
    (void)cudaRuntimeGetVersion(&runtime);
    say_version(driver, has);
    say_version(runtime, needs);
    if (driver == 0)
        snprintf(reason, reason_bytes, "no NVIDIA driver is installed");
    else
        snprintf(reason, reason_bytes,
                 "the NVIDIA driver is too old: it is for CUDA %s, this build needs %s", has,
                 needs);
}

int td_cuda_device_count(char *reason, size_t reason_bytes) {
    int count = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error == cudaSuccess && count > 0)
        return count < MAX_DEVICES ? count : MAX_DEVICES;
    (void)cudaGetLastError();
    if (error == cudaErrorInsufficientDriver)
        describe_driver(reason, reason_bytes);
    else if (error == cudaSuccess || error == cudaErrorNoDevice)
        snprintf(reason, reason_bytes, "the driver sees no GPU (CUDA_VISIBLE_DEVICES may hide it)");
    else
        snprintf(reason, reason_bytes, "%s", cudaGetErrorString(error));
    return 0;
}

static void format_uuid(const cudaUUID_t *uuid, char out[40]) {
    int at = snprintf(out, 40, "GPU-");
    for (int i = 0; i < 16; i++)
        at += snprintf(out + at, (size_t)(40 - at), "%02x", (unsigned char)uuid->bytes[i]);
}

td_status td_cuda_device_describe(int index, td_gpu_info *out) {
    struct cudaDeviceProp properties;
    td_device device = {.index = index};
    td_gpu_info info = {0};
    TD_TRY(check(cudaGetDeviceProperties(&properties, index), &device, "cudaGetDeviceProperties"));
    snprintf(info.name, sizeof info.name, "%.63s", properties.name);
    format_uuid(&properties.uuid, info.uuid);
    info.major = properties.major;
    info.minor = properties.minor;
    info.processors = properties.multiProcessorCount;
    info.total_bytes = properties.totalGlobalMem;
    TD_TRY(check(cudaDriverGetVersion(&info.driver), &device, "cudaDriverGetVersion"));
    TD_TRY(check(cudaRuntimeGetVersion(&info.runtime), &device, "cudaRuntimeGetVersion"));
    *out = info;
    return TD_OK;
}

td_status td_cuda_device_open(int index, const td_device **out) {
    if (index < 0 || index >= MAX_DEVICES)
        return td_fail(TD_ERR_INTERNAL, "GPU %d: there are at most %d", index, MAX_DEVICES);
    pthread_mutex_lock(&devices_lock);
    devices[index] = (td_device){.table = &cuda_table, .index = index, .unified = 0};
    pthread_mutex_unlock(&devices_lock);
    TD_TRY(enter(&devices[index]));
    *out = &devices[index];
    return TD_OK;
}

void *td_cuda_stream_handle(td_stream *stream) {
    return stream->handle;
}

const td_device *td_cuda_stream_device(td_stream *stream) {
    return stream->device;
}

void *td_cuda_event_handle(td_event *event) {
    return event->handle;
}
