// Streams, events, memory, limits and errors as CUDA documents them, whatever
// order work runs in.
#include <atomic>
#include <cstdint>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

#include "selftest.cuh"

namespace {

__global__ void append(int *list, int *n, int value) {
    list[(*n)++] = value;
}
__global__ void multiply_add(int *value, int factor, int addend) {
    *value = *value * factor + addend;
}
__global__ void nothing() {
}
__global__ void copy_int(int *to, const int *from) {
    *to = *from;
}

struct stream_pair {
    cudaStream_t a, b;
    stream_pair() {
        cudaStreamCreateWithFlags(&a, cudaStreamNonBlocking);
        cudaStreamCreateWithPriority(&b, cudaStreamNonBlocking, -1);
    }
    ~stream_pair() {
        cudaStreamDestroy(a);
        cudaStreamDestroy(b);
    }
};

void a_stream_runs_in_order() {
    stream_pair streams;
    device_array<int> list(100), n(std::vector<int>{0});
    for (int i = 0; i < 100; i++)
        CHECK_INT(launch_on(streams.a, append, 1, 1, 0, list.data, n.data, i), cudaSuccess);
    CHECK_INT(cudaStreamSynchronize(streams.a), cudaSuccess);
    std::vector<int> got = list.get();
    for (int i = 0; i < 100; i++)
        CHECK_INT(got[static_cast<size_t>(i)], i);
}

// One launch on each of two streams; returns the value that the order gives.
int race() {
    stream_pair streams;
    device_array<int> value(std::vector<int>{1});
    launch_on(streams.a, multiply_add, 1, 1, 0, value.data, 10, 0);
    launch_on(streams.b, multiply_add, 1, 1, 0, value.data, 1, 7);
    cudaDeviceSynchronize();
    return value.get()[0];
}

void streams_run_in_either_order() {
    int first = 0, second = 0;
    for (int i = 0; i < 64; i++) {
        int got = race();
        first += got == 17;
        second += got == 80;
    }
    CHECK_INT(first + second, 64);
    CHECK(first > 4 && second > 4);
}

void an_event_orders_two_streams() {
    for (int i = 0; i < 64; i++) {
        stream_pair streams;
        cudaEvent_t done;
        cudaEventCreateWithFlags(&done, cudaEventDisableTiming);
        device_array<int> value(std::vector<int>{1});
        launch_on(streams.a, multiply_add, 1, 1, 0, value.data, 10, 0);
        cudaEventRecord(done, streams.a);
        cudaStreamWaitEvent(streams.b, done, 0);
        cudaEventDestroy(done); // the wait stands
        launch_on(streams.b, multiply_add, 1, 1, 0, value.data, 1, 7);
        cudaStreamSynchronize(streams.b);
        CHECK_INT(value.get()[0], 17);
    }
}

// A wait is for the recording before it, not for a later one.
void recording_again_does_not_move_a_wait() {
    stream_pair streams;
    cudaEvent_t event;
    cudaEventCreate(&event);
    device_array<int> value(std::vector<int>{1});
    launch_on(streams.a, multiply_add, 1, 1, 0, value.data, 10, 0);
    cudaEventRecord(event, streams.a);
    cudaStreamWaitEvent(streams.b, event, 0);
    launch_on(streams.b, multiply_add, 1, 1, 0, value.data, 1, 7);
    cudaEventRecord(event, streams.b);
    cudaStreamWaitEvent(streams.a, event, 0);
    launch_on(streams.a, multiply_add, 1, 1, 0, value.data, 2, 0);
    CHECK_INT(cudaStreamSynchronize(streams.a), cudaSuccess);
    CHECK_INT(value.get()[0], 34);
    cudaEventDestroy(event);
}

void an_event_never_recorded_is_reached() {
    stream_pair streams;
    cudaEvent_t event;
    cudaEventCreate(&event);
    CHECK_INT(cudaEventQuery(event), cudaSuccess);
    CHECK_INT(cudaEventSynchronize(event), cudaSuccess);
    CHECK_INT(cudaStreamWaitEvent(streams.a, event, 0), cudaSuccess);
    CHECK_INT(cudaStreamSynchronize(streams.a), cudaSuccess);
    cudaEventDestroy(event);
}

void queries_get_there() {
    int not_ready = 0;
    for (int i = 0; i < 50; i++) {
        stream_pair streams;
        cudaEvent_t event;
        cudaEventCreate(&event);
        launch_on(streams.a, nothing, 1, 1, 0);
        launch_on(streams.b, nothing, 1, 1, 0);
        cudaEventRecord(event, streams.a);
        int asked = 0;
        for (; cudaEventQuery(event) == cudaErrorNotReady && asked < 1000; asked++)
            not_ready++;
        CHECK(asked < 1000);
        CHECK_INT(cudaEventQuery(event), cudaSuccess); // never takes it back
        for (asked = 0; cudaStreamQuery(streams.b) == cudaErrorNotReady; asked++)
            REQUIRE(asked < 1000);
        cudaEventDestroy(event);
    }
    CHECK(not_ready > 10);
    CHECK_INT(cudaPeekAtLastError(), cudaSuccess);
}

void what_was_waited_for_is_ready() {
    for (int i = 0; i < 50; i++) {
        stream_pair streams;
        cudaEvent_t event, other;
        cudaEventCreate(&event);
        cudaEventCreate(&other);
        launch_on(streams.a, nothing, 1, 1, 0);
        cudaEventRecord(event, streams.a);
        cudaStreamWaitEvent(streams.b, event, 0);
        cudaEventRecord(other, streams.b);
        CHECK_INT(cudaEventSynchronize(other), cudaSuccess);
        CHECK_INT(cudaEventQuery(event), cudaSuccess);
        float ms = -1;
        CHECK_INT(cudaEventElapsedTime(&ms, event, other), cudaSuccess);
        CHECK(ms >= 0);
        cudaEventDestroy(event);
        cudaEventDestroy(other);
    }
}

void copies_happen_when_the_stream_comes_to_them() {
    int late = 0;
    for (int i = 0; i < 64; i++) {
        stream_pair streams;
        int *pinned;
        cudaHostAlloc(&pinned, 2 * sizeof(int), cudaHostAllocPortable);
        pinned[0] = 5;
        pinned[1] = 0;
        device_array<int> value(1);
        cudaMemcpyAsync(value.data, pinned, sizeof(int), cudaMemcpyHostToDevice, streams.a);
        cudaMemcpyAsync(pinned + 1, value.data, sizeof(int), cudaMemcpyDeviceToHost, streams.a);
        late += pinned[1] == 0;
        cudaStreamSynchronize(streams.a);
        CHECK_INT(pinned[1], 5);
        cudaFreeHost(pinned);
    }
    CHECK(late > 10); // mostly: a stream sometimes works at once
}

void the_default_stream_waits_for_blocking_streams() {
    for (int i = 0; i < 32; i++) {
        cudaStream_t blocking;
        cudaStreamCreate(&blocking);
        device_array<int> value(std::vector<int>{1});
        launch_on(blocking, multiply_add, 1, 1, 0, value.data, 10, 0);
        launch_on(nullptr, multiply_add, 1, 1, 0, value.data, 1, 7);
        launch_on(blocking, multiply_add, 1, 1, 0, value.data, 2, 0);
        CHECK_INT(value.get()[0], 34);
        cudaStreamDestroy(blocking);
    }
}

struct countdown {
    int polls, *released;
};
int poll_countdown(void *state) {
    return --static_cast<countdown *>(state)->polls == 0;
}
void release_countdown(void *state) {
    ++*static_cast<countdown *>(state)->released;
}

void polled_operations_hold_their_stream_only() {
    stream_pair streams;
    device_array<int> value(std::vector<int>{1});
    int released = 0;
    countdown slow = {5, &released};
    cuda_host_enqueue(streams.a, "countdown", poll_countdown, &slow, release_countdown);
    launch_on(streams.a, multiply_add, 1, 1, 0, value.data, 1, 7);
    CHECK_INT(cudaStreamSynchronize(streams.b), cudaSuccess);
    CHECK_INT(cudaStreamSynchronize(streams.a), cudaSuccess);
    CHECK_INT(slow.polls, 0);
    CHECK_INT(released, 1);
    CHECK_INT(value.get()[0], 8);
}

void limits_of_a_launch() {
    dim3 one(1);
    CHECK_INT(launch_on(nullptr, nothing, one, 1025, 0), cudaErrorInvalidConfiguration);
    CHECK_INT(cudaGetLastError(), cudaErrorInvalidConfiguration);
    CHECK_INT(cudaGetLastError(), cudaSuccess);
    CHECK_INT(launch_on(nullptr, nothing, one, dim3(32, 33), 0), cudaErrorInvalidConfiguration);
    CHECK_INT(launch_on(nullptr, nothing, one, dim3(1, 1, 65), 0), cudaErrorInvalidConfiguration);
    CHECK_INT(launch_on(nullptr, nothing, dim3(1, 65536), 32, 0), cudaErrorInvalidConfiguration);
    CHECK_INT(launch_on(nullptr, nothing, dim3(1, 1, 65536), 32, 0), cudaErrorInvalidConfiguration);
    CHECK_INT(launch_on(nullptr, nothing, dim3(0), 32, 0), cudaErrorInvalidConfiguration);
    CHECK_INT(launch_on(nullptr, nothing, one, 32, 48 * 1024 + 1), cudaErrorInvalidValue);
    CHECK_INT(
        cudaFuncSetAttribute(nothing, cudaFuncAttributeMaxDynamicSharedMemorySize, 163 * 1024 + 1),
        cudaErrorInvalidValue);
    CHECK_INT(
        cudaFuncSetAttribute(nothing, cudaFuncAttributeMaxDynamicSharedMemorySize, 163 * 1024),
        cudaSuccess);
    CHECK_INT(launch_on(nullptr, nothing, one, 32, 163 * 1024), cudaSuccess);
    CHECK_INT(launch_on(nullptr, nothing, one, 1024, 0), cudaSuccess);
    CHECK_INT(cudaDeviceSynchronize(), cudaSuccess);
    cudaGetLastError();
}

void memory_is_counted_and_runs_out() {
    size_t before, after, total;
    void *some, *more;
    cudaMemGetInfo(&before, &total);
    CHECK_INT(total, 64 << 20);
    CHECK_INT(cudaMalloc(&some, 10 << 20), cudaSuccess);
    cudaMemGetInfo(&after, &total);
    CHECK_INT(before - after, 10 << 20);
    CHECK_INT(reinterpret_cast<uintptr_t>(some) % 256, 0);
    CHECK_INT(cudaMalloc(&more, 60 << 20), cudaErrorMemoryAllocation);
    CHECK(!more);
    CHECK_INT(cudaGetLastError(), cudaErrorMemoryAllocation);
    CHECK_INT(cudaFree(some), cudaSuccess);
    CHECK_INT(cudaFree(some), cudaErrorInvalidValue);
    for (int i = 0; i < 20; i++) { // what was freed can be had again
        CHECK_INT(cudaMalloc(&some, (60 << 20) - 1000 * static_cast<size_t>(i)), cudaSuccess);
        CHECK_INT(cudaFree(some), cudaSuccess);
    }
    cudaGetLastError();
}

// Runs the test in a child with settings of its own; the child's exit code is
// its failures.
template <typename Body> void with_environment(const char *settings[][2], int n, Body body) {
    fflush(nullptr);
    pid_t child = fork();
    if (child == 0) {
        for (int i = 0; i < n; i++)
            setenv(settings[i][0], settings[i][1], 1);
        body();
        fflush(nullptr);
        _exit(test_failures_ != 0);
    }
    int status;
    waitpid(child, &status, 0);
    CHECK_INT(status, 0);
}

void no_devices() {
    const char *none[][2] = {{"CUDA_HOST_GPUS", "0"}}, *old[][2] = {{"CUDA_HOST_GPUS", "-1"}};
    with_environment(none, 1, [] {
        int n = 7;
        void *memory;
        CHECK_INT(cudaGetDeviceCount(&n), cudaErrorNoDevice);
        CHECK_INT(n, 0);
        CHECK_INT(cudaMalloc(&memory, 4), cudaErrorNoDevice);
        CHECK_INT(launch_on(nullptr, nothing, 1, 1, 0), cudaErrorNoDevice);
    });
    with_environment(old, 1, [] {
        int n;
        CHECK_INT(cudaGetDeviceCount(&n), cudaErrorInsufficientDriver);
        CHECK_STRING(cudaGetErrorName(cudaGetLastError()), "cudaErrorInsufficientDriver");
    });
}

void planned_allocation_failure() {
    const char *third[][2] = {{"CUDA_HOST_FAIL_ALLOC", "3"}};
    with_environment(third, 1, [] {
        void *memory;
        for (int i = 1; i <= 4; i++)
            CHECK_INT(cudaMalloc(&memory, 100), i == 3 ? cudaErrorMemoryAllocation : cudaSuccess);
    });
}

void check_two_devices() {
    cudaDeviceProp first, second;
    CHECK_INT(cudaGetDeviceProperties(&first, 0), cudaSuccess);
    CHECK_INT(cudaGetDeviceProperties(&second, 1), cudaSuccess);
    CHECK_STRING(first.name, "NVIDIA H200");
    CHECK_STRING(second.name, "NVIDIA A100-SXM4-80GB");
    CHECK_INT(first.major * 10 + second.major, 98);
    CHECK(memcmp(&first.uuid, &second.uuid, sizeof first.uuid) != 0);
    CHECK_INT(cudaSetDevice(2), cudaErrorInvalidDevice);
    device_array<int> here(std::vector<int>{42});
    cudaStream_t stream;
    cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    cudaSetDevice(1);
    device_array<int> there(1);
    CHECK_INT(launch_on(stream, nothing, 1, 1, 0), cudaErrorInvalidResourceHandle);
    cudaMemcpy(there.data, here.data, sizeof(int), cudaMemcpyDefault);
    CHECK_INT(there.get()[0], 42);
}

void two_devices() {
    const char *two[][2] = {{"CUDA_HOST_GPUS", "2"}, {"CUDA_HOST_MODELS", "H200,A100"}};
    with_environment(two, 2, check_two_devices);
}

void wrong_directions_are_refused() {
    device_array<int> value(4);
    int host[4] = {};
    CHECK_INT(cudaMemcpy(value.data, host, 16, cudaMemcpyDeviceToHost),
              cudaErrorInvalidMemcpyDirection);
    CHECK_INT(cudaMemcpy(host, host + 2, 8, cudaMemcpyDeviceToDevice),
              cudaErrorInvalidMemcpyDirection);
    CHECK_INT(cudaMemcpy(nullptr, host, 8, cudaMemcpyDefault), cudaErrorInvalidValue);
    cudaGetLastError();
}

void two_host_threads() {
    std::atomic<int> wrong(0);
    auto work = [&wrong](int seed) {
        for (int i = 0; i < 50; i++) {
            std::vector<int> numbers(300);
            for (size_t k = 0; k < numbers.size(); k++)
                numbers[k] = seed + static_cast<int>(k) * i;
            device_array<int> there(numbers), copy(300);
            launch_on(nullptr, copy_int, 1, 1, 0, copy.data + 299, there.data + 299);
            wrong += copy.get()[299] != numbers[299] || there.get() != numbers;
        }
    };
    std::thread a(work, 1), b(work, 1000);
    a.join();
    b.join();
    CHECK_INT(wrong.load(), 0);
}

} // namespace

int main() {
    TEST(no_devices); // children first: nothing has read the environment yet
    TEST(planned_allocation_failure);
    TEST(two_devices);
    setenv("CUDA_HOST_MEMORY_MB", "64", 1);
    TEST(a_stream_runs_in_order);
    TEST(streams_run_in_either_order);
    TEST(an_event_orders_two_streams);
    TEST(recording_again_does_not_move_a_wait);
    TEST(an_event_never_recorded_is_reached);
    TEST(queries_get_there);
    TEST(what_was_waited_for_is_ready);
    TEST(copies_happen_when_the_stream_comes_to_them);
    TEST(the_default_stream_waits_for_blocking_streams);
    TEST(polled_operations_hold_their_stream_only);
    TEST(limits_of_a_launch);
    TEST(memory_is_counted_and_runs_out);
    TEST(wrong_directions_are_refused);
    TEST(two_host_threads);
    return test_report();
}
