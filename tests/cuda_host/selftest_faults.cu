// Faults of the kinds that backends have, planted on purpose: each must be
// caught, and the same program without the fault must pass. Every trial runs in
// a child with a seed of its own.
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <string>

#include "kernels/cuda/ptx.cuh"
#include "selftest.cuh"

#if defined(__SANITIZE_ADDRESS__)
constexpr bool sanitized = true;
#else
constexpr bool sanitized = false;
#endif

namespace {

constexpr unsigned full = 0xffffffffu;
constexpr int wrong_result = 3; // exit code of a child whose result is wrong
constexpr int n_seeds = sanitized ? 6 : 12;

template <typename T> T *shared() {
    return static_cast<T *>(cuda_host_shared_memory());
}

void expect(bool right) {
    if (!right)
        _exit(wrong_result);
}

__global__ void reverse(int *out, bool faulty) {
    int t = static_cast<int>(threadIdx.x), n = static_cast<int>(blockDim.x);
    shared<int>()[t] = t;
    if (!faulty)
        __syncthreads();
    out[t] = shared<int>()[n - 1 - t];
}

void no_barrier(bool faulty) {
    device_array<int> out(128);
    run(reverse, 1, 128, 128 * sizeof(int), out.data, faulty);
    std::vector<int> got = out.get();
    for (int i = 0; i < 128; i++)
        expect(got[static_cast<size_t>(i)] == 127 - i);
}

// The barrier before shared memory is used again is the one that is forgotten
// most.
__global__ void two_rounds(int *out, bool faulty) {
    int t = static_cast<int>(threadIdx.x), n = static_cast<int>(blockDim.x), sum = 0;
    for (int round = 0; round < 2; round++) {
        shared<int>()[t] = t + round * 1000;
        __syncthreads();
        sum += shared<int>()[(t + 33) % n];
        if (!faulty)
            __syncthreads();
    }
    out[t] = sum;
}

void no_barrier_before_reuse(bool faulty) {
    device_array<int> out(128);
    run(two_rounds, 1, 128, 128 * sizeof(int), out.data, faulty);
    std::vector<int> got = out.get();
    for (int i = 0; i < 128; i++)
        expect(got[static_cast<size_t>(i)] == 2 * ((i + 33) % 128) + 1000);
}

__global__ void swap_lanes(int *out, bool faulty) {
    int t = static_cast<int>(threadIdx.x);
    shared<int>()[t] = t;
    if (!faulty)
        __syncwarp();
    out[t] = shared<int>()[t ^ 1];
}

void no_syncwarp(bool faulty) {
    device_array<int> out(64);
    run(swap_lanes, 1, 64, 64 * sizeof(int), out.data, faulty);
    std::vector<int> got = out.get();
    for (int i = 0; i < 64; i++)
        expect(got[static_cast<size_t>(i)] == (i ^ 1));
}

__global__ void branches(bool faulty) {
    if (faulty && threadIdx.x < 32)
        __syncthreads();
    else if (faulty)
        __syncthreads();
}

void different_barriers(bool faulty) {
    run(branches, 1, 64, 0, faulty);
}

__global__ void barrier_or_shuffle(int *out, bool faulty) {
    if (faulty && threadIdx.x == 5)
        __syncthreads();
    out[threadIdx.x] = __shfl_xor_sync(full, 1, 1);
}

void barrier_in_one_lane(bool faulty) {
    device_array<int> out(64);
    run(barrier_or_shuffle, 1, 64, 0, out.data, faulty);
}

__global__ void early_return(int *out, bool faulty) {
    if (faulty && threadIdx.x == 40)
        return;
    out[threadIdx.x] = __any_sync(full, threadIdx.x == 3);
}

void lane_that_has_returned(bool faulty) {
    device_array<int> out(64);
    run(early_return, 1, 64, 0, out.data, faulty);
}

__global__ void own_masks(int *out, bool faulty) {
    unsigned mask = faulty && threadIdx.x >= 16 ? 0xffff0000u : full;
    out[threadIdx.x] = static_cast<int>(__ballot_sync(mask, 1));
}

void masks_that_differ(bool faulty) {
    device_array<int> out(32);
    run(own_masks, 1, 32, 0, out.data, faulty);
}

__global__ void float_sum(float *sum, bool faulty) {
    float mine = 1 / (1 + static_cast<float>(threadIdx.x));
    if (faulty) {
        atomicAdd(sum, mine);
        return;
    }
    for (int lane = 16; lane > 0; lane /= 2)
        mine += __shfl_xor_sync(full, mine, lane);
    if (threadIdx.x == 0)
        *sum = mine;
}

// In the fixed order of the shuffles.
float tree_sum() {
    float lanes[32], next[32];
    for (int i = 0; i < 32; i++)
        lanes[i] = 1 / (1 + static_cast<float>(i));
    for (int step = 16; step > 0; step /= 2) {
        for (int i = 0; i < 32; i++)
            next[i] = lanes[i] + lanes[i ^ step];
        memcpy(lanes, next, sizeof lanes);
    }
    return lanes[0];
}

void sum_by_float_atomics(bool faulty) {
    device_array<float> sum(std::vector<float>{0});
    run(float_sum, 1, 32, 0, sum.data, faulty);
    expect(sum.get()[0] == tree_sum());
}

__global__ void sum_of(const float *values, int n, float *out) {
    float sum = 0;
    for (int i = 0; i < n; i++)
        sum += values[i];
    *out = sum;
}

void read_past_the_end(bool faulty) {
    device_array<float> values(std::vector<float>(100, 1.0f)), out(1);
    run(sum_of, 1, 1, 0, values.data, faulty ? 101 : 100, out.data);
    expect(out.get()[0] == 100);
}

__global__ void fill(float *values, int n) {
    for (int i = static_cast<int>(threadIdx.x); i < n; i += static_cast<int>(blockDim.x))
        values[i] = 2;
}

void write_past_the_end(bool faulty) {
    device_array<float> values(100);
    run(fill, 1, 32, 0, values.data, faulty ? 101 : 100);
}

__global__ void shared_past_the_end(float *out, bool faulty) {
    shared<float>()[threadIdx.x] = 1;
    __syncthreads();
    out[threadIdx.x] = shared<float>()[threadIdx.x + faulty];
}

void read_past_shared(bool faulty) {
    device_array<float> out(32);
    run(shared_past_the_end, 1, 32, 32 * sizeof(float), out.data, faulty);
    expect(out.get()[31] == 1);
}

__global__ void shared_write(int n) {
    shared<float>()[n - 1 - static_cast<int>(threadIdx.x)] = 1;
}

void write_past_shared(bool faulty) {
    run(shared_write, 1, 32, 32 * sizeof(float), faulty ? 33 : 32);
}

void read_unwritten_memory(bool faulty) {
    device_array<float> values(100), out(1);
    if (!faulty)
        cudaMemset(values.data, 0, 100 * sizeof(float));
    run(sum_of, 1, 1, 0, values.data, 100, out.data);
    expect(out.get()[0] == 0);
}

__global__ void shared_sum(float *out, bool faulty) {
    if (!faulty)
        shared<float>()[threadIdx.x] = 0;
    __syncthreads();
    out[threadIdx.x] = shared<float>()[threadIdx.x ^ 1];
}

void read_unwritten_shared(bool faulty) {
    device_array<float> out(32);
    run(shared_sum, 1, 32, 32 * sizeof(float), out.data, faulty);
    expect(out.get()[0] == 0);
}

void launch_with_freed_memory(bool faulty) {
    device_array<float> out(1);
    float *values;
    cudaMalloc(&values, 400);
    cudaMemset(values, 0, 400);
    if (faulty)
        cudaFree(values);
    run(sum_of, 1, 1, 0, values, 100, out.data);
}

struct hidden_pointer {
    const float *values;
};
__global__ void sum_hidden(hidden_pointer hidden, float *out) {
    *out = hidden.values[0] + hidden.values[99];
}

void use_freed_memory(bool faulty) {
    device_array<float> out(1);
    float *values;
    cudaMalloc(&values, 400);
    cudaMemset(values, 0, 400);
    cudaDeviceSynchronize();
    if (faulty)
        cudaFree(values);
    run(sum_hidden, 1, 1, 0, hidden_pointer{values}, out.data);
    expect(out.get()[0] == 0);
}

void launch_with_host_memory(bool faulty) {
    device_array<float> out(1), values(std::vector<float>(100, 0.0f));
    std::vector<float> host(100);
    run(sum_of, 1, 1, 0, faulty ? host.data() : values.data, 100, out.data);
}

void touch_device_memory(bool faulty) {
    device_array<float> values(std::vector<float>(100, 1.0f));
    run(fill, 1, 32, 0, values.data, 100);
    expect(faulty ? *static_cast<volatile float *>(values.data) == 2 : values.get()[0] == 2);
}

void copy_past_the_end(bool faulty) {
    device_array<float> values(100);
    std::vector<float> host(200);
    cudaMemcpy(values.data, host.data(), faulty ? 404 : 400, cudaMemcpyHostToDevice);
}

__global__ void deep(volatile char *out, int depth) {
    volatile char here[4096];
    here[0] = static_cast<char>(depth);
    if (depth > 0)
        deep(out, depth - 1);
    *out = static_cast<char>(*out + here[0]);
}

void overflow_the_stack(bool faulty) {
    device_array<char> out(1);
    run(deep, 1, 1, 0, out.data, faulty ? 100 : 1);
}

struct two_streams {
    cudaStream_t a, b;
    cudaEvent_t event;
    two_streams() {
        cudaStreamCreateWithFlags(&a, cudaStreamNonBlocking);
        cudaStreamCreateWithFlags(&b, cudaStreamNonBlocking);
        cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
    }
};

void no_event_wait(bool faulty) {
    two_streams streams;
    device_array<float> values(std::vector<float>(100, 1.0f)), out(1);
    launch_on(streams.a, fill, 1, 32, 0, values.data, 100);
    cudaEventRecord(streams.event, streams.a);
    if (!faulty)
        cudaStreamWaitEvent(streams.b, streams.event, 0);
    launch_on(streams.b, sum_of, 1, 1, 0, values.data, 100, out.data);
    cudaDeviceSynchronize();
    expect(out.get()[0] == 200);
}

void wait_before_the_record(bool faulty) {
    two_streams streams;
    device_array<float> values(std::vector<float>(100, 1.0f)), out(1);
    if (faulty)
        cudaStreamWaitEvent(streams.b, streams.event, 0);
    launch_on(streams.a, fill, 1, 32, 0, values.data, 100);
    cudaEventRecord(streams.event, streams.a);
    if (!faulty)
        cudaStreamWaitEvent(streams.b, streams.event, 0);
    launch_on(streams.b, sum_of, 1, 1, 0, values.data, 100, out.data);
    cudaDeviceSynchronize();
    expect(out.get()[0] == 200);
}

void reuse_of_a_host_buffer(bool faulty) {
    two_streams streams;
    device_array<float> values(1);
    float *host;
    cudaHostAlloc(&host, sizeof(float), cudaHostAllocPortable);
    *host = 1;
    cudaMemcpyAsync(values.data, host, sizeof(float), cudaMemcpyHostToDevice, streams.a);
    if (!faulty)
        cudaStreamSynchronize(streams.a);
    *host = 2;
    cudaStreamSynchronize(streams.a);
    expect(values.get()[0] == 1);
}

void result_read_too_early(bool faulty) {
    two_streams streams;
    device_array<float> values(std::vector<float>{7});
    float *host;
    cudaHostAlloc(&host, sizeof(float), cudaHostAllocPortable);
    *host = 0;
    cudaMemcpyAsync(host, values.data, sizeof(float), cudaMemcpyDeviceToHost, streams.a);
    cudaEventRecord(streams.event, streams.a);
    if (!faulty)
        cudaEventSynchronize(streams.event);
    expect(*host == 7);
}

__global__ void copy_async(const float *from, float *out, bool faulty) {
    int t = static_cast<int>(threadIdx.x);
    td_ptx_cp_async_cg_16(shared<float>() + 4 * t, from + 4 * t);
    td_ptx_cp_async_commit();
    if (!faulty)
        td_ptx_cp_async_wait<0>();
    for (int i = 0; i < 4; i++)
        out[4 * t + i] = shared<float>()[4 * t + i];
    if (faulty)
        td_ptx_cp_async_wait<0>();
}

void no_wait_for_a_copy(bool faulty) {
    device_array<float> from(std::vector<float>(128, 3.0f)), out(128);
    run(copy_async, 1, 32, 128 * sizeof(float), from.data, out.data, faulty);
    expect(out.get() == std::vector<float>(128, 3.0f));
}

uint32_t pair_of(const float *row, int at) {
    return td_ptx_pack_bf16(row[at], row[at + 1]);
}

// d (16, 8) = a (16, 16) times b (8, 16) transposed.
__global__ void multiply(const float *a, const float *b, float *d, bool faulty) {
    int lane = static_cast<int>(threadIdx.x), row = lane / 4, pair = lane % 4 * 2;
    const float *low = a + 16 * row, *high = a + 16 * (row + 8);
    uint32_t fragment[4] = {pair_of(low, pair), pair_of(high, pair), pair_of(low, pair + 8),
                            pair_of(high, pair + 8)};
    if (faulty)
        std::swap(fragment[1], fragment[2]);
    float sums[4] = {};
    td_ptx_mma_m16n8k16(sums, fragment, pair_of(b + 16 * row, pair),
                        pair_of(b + 16 * row, pair + 8));
    for (int i = 0; i < 4; i++)
        d[8 * (row + i / 2 * 8) + pair + i % 2] = sums[i];
}

void wrong_fragment(bool faulty) {
    std::vector<float> a(256), b(128);
    for (size_t i = 0; i < a.size(); i++)
        a[i] = static_cast<float>(i * 7 % 23) - 11;
    for (size_t i = 0; i < b.size(); i++)
        b[i] = static_cast<float>(i * 5 % 17) - 8;
    device_array<float> on_a(a), on_b(b), d(128);
    run(multiply, 1, 32, 0, on_a.data, on_b.data, d.data, faulty);
    std::vector<float> got = d.get();
    for (size_t i = 0; i < 128; i++) {
        float sum = 0;
        for (size_t k = 0; k < 16; k++)
            sum += a[i / 8 * 16 + k] * b[i % 8 * 16 + k];
        expect(got[i] == sum);
    }
}

// How a fault shows: always by a wrong result, always by a message, or by a
// message only when the build has AddressSanitizer.
enum evidence { by_result, by_message, by_message_if_sanitized };

struct planted {
    const char *name;
    void (*program)(bool faulty);
    evidence expected;
    const char *message;   // in the child's output
    bool every_seed;       // not only in some orders
    const char *sanitizer; // the message of a build with AddressSanitizer, where another
};

const planted faults[] = {
    {"__syncthreads() left out", no_barrier, by_result, nullptr, true, nullptr},
    {"__syncthreads() before reuse left out", no_barrier_before_reuse, by_result, nullptr, false,
     nullptr},
    {"__syncwarp() left out", no_syncwarp, by_result, nullptr, true, nullptr},
    {"__syncthreads() in two branches", different_barriers, by_message,
     "threads of a block at different barriers", true, nullptr},
    {"__syncthreads() in one lane of a shuffle", barrier_in_one_lane, by_message,
     "lanes 0x00000020 never arrive", true, nullptr},
    {"a lane of the mask has returned", lane_that_has_returned, by_message,
     "lanes 0x00000100 never arrive (they have returned", true, nullptr},
    {"lanes with different masks", masks_that_differ, by_message, "__ballot_sync at", true,
     nullptr},
    {"sum by floating-point atomics", sum_by_float_atomics, by_result, nullptr, false, nullptr},
    {"read past an allocation", read_past_the_end, by_message_if_sanitized, nullptr, true,
     "use-after-poison"},
    {"write past an allocation", write_past_the_end, by_message,
     "wrote behind the 400 bytes allocated", true, "use-after-poison"},
    {"read past shared memory", read_past_shared, by_message_if_sanitized, nullptr, true,
     "use-after-poison"},
    {"write past shared memory", write_past_shared, by_message,
     "wrote outside its 128 bytes of shared memory", true, "use-after-poison"},
    {"read of unwritten device memory", read_unwritten_memory, by_result, nullptr, true, nullptr},
    {"read of unwritten shared memory", read_unwritten_shared, by_result, nullptr, true, nullptr},
    {"launch with freed memory", launch_with_freed_memory, by_message,
     "is device memory that is not allocated (any more)", true, nullptr},
    {"use of freed memory by way of a structure", use_freed_memory, by_message_if_sanitized,
     nullptr, true, "use-after-poison"},
    {"launch with pageable host memory", launch_with_host_memory, by_message,
     "is neither device nor pinned memory", true, nullptr},
    {"host dereferences device memory", touch_device_memory, by_message,
     "host access to device memory", true, nullptr},
    {"copy past an allocation", copy_past_the_end, by_message, "404 bytes at", true, nullptr},
    {"a thread's stack overflows", overflow_the_stack, by_message,
     "a kernel's thread overflowed its stack", true, "stack"},
    {"event wait left out", no_event_wait, by_result, nullptr, false, nullptr},
    {"event wait before the record", wait_before_the_record, by_result, nullptr, false, nullptr},
    {"host buffer reused before its copy", reuse_of_a_host_buffer, by_result, nullptr, false,
     nullptr},
    {"result read before its copy", result_read_too_early, by_result, nullptr, false, nullptr},
    {"cp.async data used before the wait", no_wait_for_a_copy, by_result, nullptr, true, nullptr},
    {"fragments of mma exchanged", wrong_fragment, by_result, nullptr, true, nullptr},
};

struct outcome {
    int status;
    std::string text;
};

[[noreturn]] void run_child(const planted &fault, bool faulty, int seed, int to) {
    char text[16];
    snprintf(text, sizeof text, "%d", seed);
    setenv("CUDA_HOST_SEED", text, 1);
    dup2(to, STDERR_FILENO);
    test_failures_ = 0;
    alarm(30);
    fault.program(faulty);
    _exit(test_failures_ != 0);
}

outcome try_fault(const planted &fault, bool faulty, int seed) {
    int ends[2];
    outcome out = {};
    char part[512];
    ssize_t n;
    REQUIRE(pipe(ends) == 0);
    fflush(nullptr);
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0)
        run_child(fault, faulty, seed, ends[1]);
    close(ends[1]);
    while ((n = read(ends[0], part, sizeof part)) > 0)
        out.text.append(part, static_cast<size_t>(n));
    close(ends[0]);
    REQUIRE(waitpid(child, &out.status, 0) == child);
    return out;
}

const char *expected_message(const planted &fault) {
    if (sanitized && fault.sanitizer)
        return fault.sanitizer;
    return fault.expected == by_message ? fault.message : nullptr;
}

bool is_caught(const planted &fault, const outcome &out) {
    const char *message = expected_message(fault);
    if (!message)
        return WIFEXITED(out.status) && WEXITSTATUS(out.status) == wrong_result;
    bool ended = WIFSIGNALED(out.status) || WEXITSTATUS(out.status) != 0;
    bool alarmed = WIFSIGNALED(out.status) && WTERMSIG(out.status) == SIGALRM;
    return ended && !alarmed && out.text.find(message) != std::string::npos;
}

void report(const planted &fault, int caught) {
    const char *message = expected_message(fault);
    printf("%-44s %2d of %d  %s%s%s\n", fault.name, caught, n_seeds,
           message ? "message: \"" : "wrong result", message ? message : "", message ? "\"" : "");
}

void try_all_seeds(const planted &fault) {
    int caught = 0;
    for (int seed = 1; seed <= n_seeds; seed++) {
        outcome right = try_fault(fault, false, seed), wrong = try_fault(fault, true, seed);
        if (!CHECK(right.status == 0))
            fprintf(stderr, "    without the fault, seed %d: %s: %s\n", seed, fault.name,
                    right.text.c_str());
        bool seen = is_caught(fault, wrong);
        caught += seen;
        if (fault.every_seed && !CHECK(seen))
            fprintf(stderr, "    seed %d: %s: status %d, %s\n", seed, fault.name, wrong.status,
                    wrong.text.c_str());
    }
    CHECK(caught > 0);
    report(fault, caught);
}

} // namespace

int main() {
    setenv("CUDA_HOST_MEMORY_MB", "64", 1);
    printf("%-44s %-8s  %s\n", "planted fault", "seeds", "caught by");
    for (const planted &fault : faults)
        try_all_seeds(fault);
    return test_report();
}
