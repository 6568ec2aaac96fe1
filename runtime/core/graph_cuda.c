// Recordings of a stream's work as CUDA graphs.
#include <cuda_runtime_api.h>
#include <stdlib.h>

#include "runtime/core/device_cuda.h"

struct td_graph {
    const td_device *device;
    cudaGraphExec_t handle;
};

static cudaStream_t handle_of(td_stream *stream) {
    return td_cuda_stream_handle(stream);
}

// A failure leaves nothing behind that a later call would stumble over: there is a way without
// graphs.
static td_status check(cudaError_t error, const td_device *device, const char *call) {
    if (error == cudaSuccess)
        return TD_OK;
    (void)cudaGetLastError();
    td_status status = error == cudaErrorMemoryAllocation ? TD_ERR_MEMORY : TD_ERR_INTERNAL;
    return td_fail(status, "GPU %d: %s: %s (%s)", device->index, call, cudaGetErrorString(error),
                   cudaGetErrorName(error));
}

static td_status enter(const td_device *device) {
    return check(cudaSetDevice(device->index), device, "cudaSetDevice");
}

// Of the thread only: others allocate, query and wait meanwhile.
td_status td_cuda_capture_begin(td_stream *stream) {
    const td_device *device = td_cuda_stream_device(stream);
    TD_TRY(enter(device));
    return check(cudaStreamBeginCapture(handle_of(stream), cudaStreamCaptureModeThreadLocal),
                 device, "cudaStreamBeginCapture");
}

static td_status instantiate(const td_device *device, cudaGraph_t recorded, td_graph **out) {
    td_graph *graph = calloc(1, sizeof *graph);
    if (!graph)
        return td_fail(TD_ERR_MEMORY, "no memory for a graph");
    graph->device = device;
    td_status status = check(cudaGraphInstantiateWithFlags(&graph->handle, recorded, 0), device,
                             "cudaGraphInstantiate");
    if (status != TD_OK)
        free(graph);
    else
        *out = graph;
    return status;
}

td_status td_cuda_capture_end(td_stream *stream, td_graph **out) {
    const td_device *device = td_cuda_stream_device(stream);
    cudaGraph_t recorded = NULL;
    TD_TRY(enter(device));
    td_status status =
        check(cudaStreamEndCapture(handle_of(stream), &recorded), device, "cudaStreamEndCapture");
    if (status == TD_OK && out)
        status = instantiate(device, recorded, out);
    if (recorded)
        cudaGraphDestroy(recorded);
    return status;
}

td_status td_cuda_graph_launch(td_graph *graph, td_stream *stream) {
    TD_TRY(enter(graph->device));
    return check(cudaGraphLaunch(graph->handle, handle_of(stream)), graph->device,
                 "cudaGraphLaunch");
}

void td_cuda_graph_destroy(td_graph *graph) {
    if (!graph)
        return;
    if (cudaSetDevice(graph->device->index) == cudaSuccess)
        cudaGraphExecDestroy(graph->handle);
    free(graph);
}
