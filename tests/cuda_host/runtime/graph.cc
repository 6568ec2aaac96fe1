// Graphs: recorded operations that are repeated in a random order, of which only what was recorded
// is certain.
#include "graph.h"

#include <algorithm>

struct CUgraph_st {
    recorder_ptr recorded;
};

struct CUgraphExec_st {
    recorder_ptr recorded;
    int device;
    int under_way;
    cudaStream_t stream; // of what is under way
};

namespace {

auto &active = *new std::vector<recorder *>();

// One launch.
struct repetition {
    cudaGraphExec_t exec;
    std::vector<int> waits_for;           // of each node: how many nodes before it are left
    std::vector<std::vector<int>> before; // of each node: those that come after it
    std::vector<int> ready;
};

repetition *begin_repetition(cudaGraphExec_t exec) {
    auto *made = new repetition();
    const auto &nodes = exec->recorded->nodes;
    made->exec = exec;
    made->before.resize(nodes.size());
    for (size_t i = 0; i < nodes.size(); i++) {
        made->waits_for.push_back(static_cast<int>(nodes[i].after.size()));
        for (int before : nodes[i].after)
            made->before[static_cast<size_t>(before)].push_back(static_cast<int>(i));
        if (nodes[i].after.empty())
            made->ready.push_back(static_cast<int>(i));
    }
    return made;
}

void run_any(repetition *self) {
    size_t chosen = cuda_host_random(static_cast<uint32_t>(self->ready.size()));
    int node = self->ready[chosen];
    self->ready[chosen] = self->ready.back();
    self->ready.pop_back();
    const operation_work &work = self->exec->recorded->nodes[static_cast<size_t>(node)].work;
    while (!work.poll(work.state))
        ;
    for (int each : self->before[static_cast<size_t>(node)])
        if (--self->waits_for[static_cast<size_t>(each)] == 0)
            self->ready.push_back(each);
}

// Some of it, or the rest: other streams come in between.
int run_some(void *state) {
    auto *self = static_cast<repetition *>(state);
    uint32_t most = cuda_host_random(2) ? 1 + cuda_host_random(64) : 0xffffffffu;
    while (most-- > 0 && !self->ready.empty())
        run_any(self);
    return self->ready.empty();
}

void release_repetition(void *state) {
    auto *self = static_cast<repetition *>(state);
    self->exec->under_way--;
    delete self;
}

} // namespace

recorder::~recorder() {
    for (node &each : nodes)
        if (each.work.release)
            each.work.release(each.work.state);
}

int recorder::add(const char *name, const operation_work &work, const std::vector<int> &after) {
    std::vector<int> once = after;
    std::sort(once.begin(), once.end());
    once.erase(std::unique(once.begin(), once.end()), once.end());
    nodes.push_back({name, work, std::move(once)});
    return static_cast<int>(nodes.size()) - 1;
}

std::vector<bool> recorder::reached_from(const std::vector<int> &last) const {
    std::vector<bool> reached(nodes.size());
    for (int each : last)
        reached[static_cast<size_t>(each)] = true;
    for (size_t i = nodes.size(); i-- > 0;) // a node comes after nodes with lower numbers only
        for (int each : nodes[i].after)
            if (reached[i])
                reached[static_cast<size_t>(each)] = true;
    return reached;
}

recorder_ptr begin_recorder(cudaStream_t origin, cudaStreamCaptureMode mode) {
    auto made = std::make_shared<recorder>();
    made->origin = origin;
    made->mode = mode;
    made->thread = std::this_thread::get_id();
    made->invalid = made->ended = false;
    active.push_back(made.get());
    return made;
}

void end_recorder(recorder *ended) {
    ended->ended = true;
    active.erase(std::find(active.begin(), active.end(), ended));
}

cudaError_t check_unsafe_call() {
    bool any = false;
    for (recorder *each : active) {
        bool forbids = each->mode == cudaStreamCaptureModeGlobal ||
                       (each->mode == cudaStreamCaptureModeThreadLocal &&
                        each->thread == std::this_thread::get_id());
        each->invalid |= forbids;
        any |= forbids;
    }
    return any ? note(cudaErrorStreamCaptureUnsupported) : cudaSuccess;
}

cudaGraph_t make_graph(recorder_ptr recorded) {
    return new CUgraph_st{std::move(recorded)};
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *out, cudaGraph_t graph,
                                          unsigned long long flags) {
    locked hold(emulation_lock);
    if (!out || !graph || flags != 0)
        return note(cudaErrorInvalidValue);
    *out = new CUgraphExec_st{graph->recorded, current_device(), 0, nullptr};
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    locked hold(emulation_lock);
    if (!graph)
        return note(cudaErrorInvalidValue);
    delete graph;
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    locked hold(emulation_lock);
    if (!exec)
        return note(cudaErrorInvalidValue);
    if (is_recording(stream))
        return spoil_recording(stream, cudaErrorStreamCaptureUnsupported); // not emulated
    if (exec->under_way > 0 && exec->stream != stream)
        cuda_host_fail("a graph is launched on a second stream: not emulated");
    exec->under_way++;
    exec->stream = stream;
    return enqueue(stream, "cudaGraphLaunch",
                   {run_some, begin_repetition(exec), release_repetition});
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    locked hold(emulation_lock);
    if (!exec)
        return note(cudaErrorInvalidValue);
    if (exec->under_way > 0)
        cuda_host_fail("a graph is destroyed while it may run");
    delete exec;
    return cudaSuccess;
}
