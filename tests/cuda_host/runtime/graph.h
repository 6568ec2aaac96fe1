// Recordings of streams: what a stream does between cudaStreamBeginCapture() and
// cudaStreamEndCapture(), as operations and what each comes after.
#ifndef CUDA_HOST_RUNTIME_GRAPH_H
#define CUDA_HOST_RUNTIME_GRAPH_H

#include <memory>
#include <thread>
#include <vector>

#include "runtime.h"

struct recorder {
    struct node {
        const char *name;
        operation_work work;
        std::vector<int> after;
    };
    std::vector<node> nodes;
    cudaStream_t origin;
    cudaStreamCaptureMode mode;
    std::thread::id thread;
    bool invalid, ended;

    ~recorder();
    int add(const char *name, const operation_work &work, const std::vector<int> &after);
    // Of each node: one of `last`, or before one of them.
    std::vector<bool> reached_from(const std::vector<int> &last) const;
};
using recorder_ptr = std::shared_ptr<recorder>;

recorder_ptr begin_recorder(cudaStream_t origin, cudaStreamCaptureMode mode);
void end_recorder(recorder *ended);
cudaGraph_t make_graph(recorder_ptr recorded);

#endif
