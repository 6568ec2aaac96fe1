// Recording of streams and graphs as CUDA documents them.
#include <thread>

#include "selftest.cuh"

namespace {

__global__ void multiply_add(int *value, int factor, int addend) {
    *value = *value * factor + addend;
}
__global__ void add_from(int *value, const int *addend) {
    *value += *addend;
}

struct streams_and_events {
    cudaStream_t a, b;
    cudaEvent_t forked, joined;
    streams_and_events() {
        cudaStreamCreateWithFlags(&a, cudaStreamNonBlocking);
        cudaStreamCreateWithFlags(&b, cudaStreamNonBlocking);
        cudaEventCreateWithFlags(&forked, cudaEventDisableTiming);
        cudaEventCreateWithFlags(&joined, cudaEventDisableTiming);
    }
    ~streams_and_events() {
        cudaEventDestroy(forked);
        cudaEventDestroy(joined);
        cudaStreamDestroy(a);
        cudaStreamDestroy(b);
    }
    void begin(cudaStreamCaptureMode mode = cudaStreamCaptureModeThreadLocal) {
        CHECK_INT(cudaStreamBeginCapture(a, mode), cudaSuccess);
    }
    // Ends with an error, and nothing is left of the recording.
    void ends_with(cudaError_t expected) {
        cudaGraph_t graph = nullptr;
        cudaStreamCaptureStatus status = cudaStreamCaptureStatusActive;
        CHECK_INT(cudaStreamEndCapture(a, &graph), expected);
        CHECK(!graph);
        CHECK_INT(cudaStreamIsCapturing(a, &status), cudaSuccess);
        CHECK_INT(status, cudaStreamCaptureStatusNone);
        CHECK_INT(cudaStreamSynchronize(a), cudaSuccess);
        CHECK_INT(cudaStreamSynchronize(b), cudaSuccess);
    }
    cudaGraphExec_t end() {
        cudaGraph_t graph = nullptr;
        cudaGraphExec_t exec = nullptr;
        CHECK_INT(cudaStreamEndCapture(a, &graph), cudaSuccess);
        CHECK_INT(cudaGraphInstantiateWithFlags(&exec, graph, 0), cudaSuccess);
        CHECK_INT(cudaGraphDestroy(graph), cudaSuccess);
        return exec;
    }
};

void recorded_work_runs_at_launches_only() {
    streams_and_events at;
    device_array<int> value(std::vector<int>{1});
    at.begin();
    launch_on(at.a, multiply_add, 1, 1, 0, value.data, 10, 0);
    launch_on(at.a, multiply_add, 1, 1, 0, value.data, 1, 7);
    cudaGraphExec_t exec = at.end();
    cudaDeviceSynchronize();
    CHECK_INT(value.get()[0], 1);
    for (int i = 0; i < 3; i++)
        CHECK_INT(cudaGraphLaunch(exec, at.a), cudaSuccess);
    launch_on(at.a, multiply_add, 1, 1, 0, value.data, 10, 0); // behind the launches
    cudaStreamSynchronize(at.a);
    CHECK_INT(value.get()[0], ((17 * 10 + 7) * 10 + 7) * 10);
    CHECK_INT(cudaGraphExecDestroy(exec), cudaSuccess);
}

void arguments_stay_and_memory_does_not() {
    streams_and_events at;
    device_array<int> value(std::vector<int>{0}), addend(std::vector<int>{1});
    at.begin();
    launch_on(at.a, add_from, 1, 1, 0, value.data, addend.data);
    cudaGraphExec_t exec = at.end();
    for (int i = 1; i <= 3; i++) {
        cudaMemcpy(addend.data, &i, sizeof i, cudaMemcpyHostToDevice);
        cudaGraphLaunch(exec, at.a);
        cudaStreamSynchronize(at.a);
    }
    CHECK_INT(value.get()[0], 6);
    cudaGraphExecDestroy(exec);
}

// Two branches of a fork in both orders, and both before what comes behind the join.
void a_fork_runs_in_any_order_up_to_its_join() {
    streams_and_events at;
    device_array<int> value(1);
    int first = 0, second = 0;
    at.begin();
    cudaEventRecord(at.forked, at.a);
    cudaStreamWaitEvent(at.b, at.forked, 0);
    launch_on(at.a, multiply_add, 1, 1, 0, value.data, 10, 0);
    launch_on(at.b, multiply_add, 1, 1, 0, value.data, 1, 7);
    cudaEventRecord(at.joined, at.b);
    cudaStreamWaitEvent(at.a, at.joined, 0);
    launch_on(at.a, multiply_add, 1, 1, 0, value.data, 100, 0);
    cudaGraphExec_t exec = at.end();
    for (int i = 0; i < 64; i++) {
        int one = 1;
        cudaMemcpy(value.data, &one, sizeof one, cudaMemcpyHostToDevice);
        cudaGraphLaunch(exec, at.a);
        cudaStreamSynchronize(at.a);
        int got = value.get()[0];
        first += got == 1700;
        second += got == 8000;
    }
    CHECK_INT(first + second, 64);
    CHECK(first > 0 && second > 0);
    cudaGraphExecDestroy(exec);
}

void a_branch_without_a_join_is_refused() {
    streams_and_events at;
    device_array<int> value(std::vector<int>{1});
    at.begin();
    cudaEventRecord(at.forked, at.a);
    cudaStreamWaitEvent(at.b, at.forked, 0);
    launch_on(at.b, multiply_add, 1, 1, 0, value.data, 1, 7);
    at.ends_with(cudaErrorStreamCaptureUnjoined);
    CHECK_INT(value.get()[0], 1);
}

// Each in a recording of its own, which it makes invalid.
template <typename Call> void forbids(cudaError_t expected, Call call) {
    streams_and_events at;
    device_array<int> value(std::vector<int>{1});
    at.begin();
    launch_on(at.a, multiply_add, 1, 1, 0, value.data, 1, 7);
    CHECK_INT(call(at, value.data), expected);
    CHECK_INT(launch_on(at.a, multiply_add, 1, 1, 0, value.data, 1, 7),
              cudaErrorStreamCaptureInvalidated);
    at.ends_with(cudaErrorStreamCaptureInvalidated);
    CHECK_INT(value.get()[0], 1);
}

void what_waits_or_allocates_is_refused() {
    using at_type = streams_and_events;
    const cudaError_t unsupported = cudaErrorStreamCaptureUnsupported;
    forbids(unsupported, [](at_type &at, int *) { return cudaStreamSynchronize(at.a); });
    forbids(unsupported, [](at_type &at, int *) { return cudaStreamQuery(at.a); });
    forbids(unsupported, [](at_type &, int *) { return cudaDeviceSynchronize(); });
    forbids(unsupported, [](at_type &, int *) {
        void *memory;
        return cudaMalloc(&memory, 4);
    });
    forbids(unsupported, [](at_type &, int *) {
        void *memory;
        return cudaHostAlloc(&memory, 4, cudaHostAllocPortable);
    });
    forbids(unsupported, [](at_type &at, int *device) {
        int pageable = 0;
        return cudaMemcpyAsync(device, &pageable, sizeof pageable, cudaMemcpyDefault, at.a);
    });
    forbids(unsupported, [](at_type &, int *device) {
        int pageable = 0;
        return cudaMemcpy(device, &pageable, sizeof pageable, cudaMemcpyDefault);
    });
    forbids(cudaErrorStreamCaptureImplicit,
            [](at_type &, int *device) { return cudaMemsetAsync(device, 0, 4, nullptr); });
    forbids(cudaErrorCapturedEvent, [](at_type &at, int *) {
        cudaEventRecord(at.forked, at.a);
        return cudaEventQuery(at.forked);
    });
    forbids(cudaErrorStreamCaptureIsolation, [](at_type &at, int *) {
        cudaEventRecord(at.joined, at.b); // outside
        return cudaStreamWaitEvent(at.a, at.joined, 0);
    });
}

void other_threads_go_on() {
    streams_and_events at;
    device_array<int> value(std::vector<int>{1});
    at.begin();
    launch_on(at.a, multiply_add, 1, 1, 0, value.data, 10, 0);
    std::thread other([&at] {
        device_array<int> own(std::vector<int>{5});
        launch_on(at.b, multiply_add, 1, 1, 0, own.data, 2, 1);
        CHECK_INT(cudaStreamSynchronize(at.b), cudaSuccess);
        CHECK_INT(own.get()[0], 11);
        cudaGraph_t graph;
        CHECK_INT(cudaStreamEndCapture(at.a, &graph), cudaErrorStreamCaptureWrongThread);
    });
    other.join();
    cudaGraphExec_t exec = at.end();
    cudaGraphLaunch(exec, at.a);
    cudaStreamSynchronize(at.a);
    CHECK_INT(value.get()[0], 10);
    cudaGraphExecDestroy(exec);
    at.begin(cudaStreamCaptureModeGlobal);
    std::thread spoiler([] {
        void *memory;
        CHECK_INT(cudaMalloc(&memory, 4), cudaErrorStreamCaptureUnsupported);
    });
    spoiler.join();
    at.ends_with(cudaErrorStreamCaptureInvalidated);
}

void a_recording_takes_one_begin_and_one_end() {
    streams_and_events at;
    cudaGraph_t graph;
    CHECK_INT(cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeThreadLocal),
              cudaErrorStreamCaptureUnsupported);
    CHECK_INT(cudaStreamEndCapture(at.a, &graph), cudaErrorIllegalState);
    at.begin();
    CHECK_INT(cudaStreamBeginCapture(at.a, cudaStreamCaptureModeThreadLocal),
              cudaErrorIllegalState);
    CHECK_INT(cudaGraphExecDestroy(at.end()), cudaSuccess);
}

} // namespace

int main() {
    setenv("CUDA_HOST_MEMORY_MB", "64", 1);
    TEST(recorded_work_runs_at_launches_only);
    TEST(arguments_stay_and_memory_does_not);
    TEST(a_fork_runs_in_any_order_up_to_its_join);
    TEST(a_branch_without_a_join_is_refused);
    TEST(what_waits_or_allocates_is_refused);
    TEST(other_threads_go_on);
    TEST(a_recording_takes_one_begin_and_one_end);
    return test_report();
}
