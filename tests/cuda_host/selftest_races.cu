// The detection of races: planted ones are told whatever the order, and code without any passes.
// Compiled with -fsanitize=thread, linked with race/race.cc.
#include <sys/wait.h>
#include <unistd.h>

#include <string>

#include "selftest.cuh"

namespace {

constexpr int n_seeds = 8;

template <typename T> T *shared() {
    return static_cast<T *>(cuda_host_shared_memory());
}

// Every thread writes the same value: no result would show it.
__global__ void same_value(int *out, bool faulty) {
    if (faulty || threadIdx.x == 0)
        shared<int>()[0] = 7;
    __syncthreads();
    out[threadIdx.x] = shared<int>()[0];
}

__global__ void no_barrier(int *out, bool faulty) {
    shared<int>()[threadIdx.x] = 7;
    if (!faulty)
        __syncthreads();
    out[threadIdx.x] = shared<int>()[blockDim.x - 1 - threadIdx.x];
}

__global__ void no_barrier_before_reuse(int *out, bool faulty) {
    int sum = 0;
    for (int round = 0; round < 2; round++) {
        shared<int>()[threadIdx.x] = 7;
        __syncthreads();
        sum += shared<int>()[(threadIdx.x + 40) % blockDim.x];
        if (!faulty)
            __syncthreads();
    }
    out[threadIdx.x] = sum;
}

__global__ void no_syncwarp(int *out, bool faulty) {
    shared<int>()[threadIdx.x] = 7;
    if (!faulty)
        __syncwarp();
    out[threadIdx.x] = shared<int>()[threadIdx.x ^ 1];
}

__global__ void shuffle_is_no_barrier(int *out, bool faulty) {
    shared<int>()[threadIdx.x] = 7;
    int other = __shfl_xor_sync(0xffffffffu, static_cast<int>(threadIdx.x), 1);
    if (!faulty)
        __syncwarp();
    out[threadIdx.x] = shared<int>()[other];
}

__global__ void sum_without_atomics(int *out, bool faulty) {
    if (faulty)
        *out += 1;
    else
        atomicAdd(out, 1);
}

__global__ void blocks_read_each_other(int *out, bool faulty) {
    unsigned other = faulty ? (blockIdx.x + 1) % gridDim.x : blockIdx.x;
    int before = threadIdx.x == 0 ? out[other] : 0;
    if (threadIdx.x == 0)
        out[blockIdx.x] = before + 1;
}

__global__ void halves_of_a_word(int *out, bool faulty) {
    auto *halves = reinterpret_cast<short *>(out);
    halves[faulty ? threadIdx.x / 2 : threadIdx.x] = 1;
}

struct planted {
    const char *name;
    void (*kernel)(int *out, bool faulty);
    unsigned blocks, threads;
};
const planted races[] = {
    {"the same value written by all", same_value, 1, 64},
    {"__syncthreads() left out", no_barrier, 1, 64},
    {"__syncthreads() before reuse left out", no_barrier_before_reuse, 1, 64},
    {"__syncwarp() left out", no_syncwarp, 1, 64},
    {"shuffle taken for a barrier", shuffle_is_no_barrier, 1, 64},
    {"sum without atomics", sum_without_atomics, 3, 64},
    {"block reads what another writes", blocks_read_each_other, 3, 32},
    {"half a word written twice", halves_of_a_word, 1, 64},
};

[[noreturn]] void run_child(const planted &race, bool faulty, int seed, int to) {
    char text[16];
    snprintf(text, sizeof text, "%d", seed);
    setenv("CUDA_HOST_SEED", text, 1);
    dup2(to, STDERR_FILENO);
    test_failures_ = 0;
    alarm(30);
    device_array<int> out(std::vector<int>(64, 0));
    run(race.kernel, race.blocks, race.threads, 64 * sizeof(int), out.data, faulty);
    _exit(test_failures_ != 0);
}

std::string try_race(const planted &race, bool faulty, int seed, int *status) {
    int ends[2];
    std::string text;
    char part[512];
    ssize_t n;
    REQUIRE(pipe(ends) == 0);
    fflush(nullptr);
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0)
        run_child(race, faulty, seed, ends[1]);
    close(ends[1]);
    while ((n = read(ends[0], part, sizeof part)) > 0)
        text.append(part, static_cast<size_t>(n));
    close(ends[0]);
    REQUIRE(waitpid(child, status, 0) == child);
    return text;
}

void try_all_seeds(const planted &race) {
    for (int seed = 1; seed <= n_seeds; seed++) {
        int status;
        std::string text = try_race(race, false, seed, &status);
        if (!CHECK(status == 0))
            fprintf(stderr, "    %s, without the race: %s\n", race.name, text.c_str());
        text = try_race(race, true, seed, &status);
        bool told = WIFSIGNALED(status) && text.find("data race") != std::string::npos;
        if (!CHECK(told))
            fprintf(stderr, "    %s: status %d, %s\n", race.name, status, text.c_str());
        if (seed == 1)
            printf("%-40s %s", race.name, text.c_str());
    }
}

} // namespace

int main() {
    setenv("CUDA_HOST_MEMORY_MB", "64", 1);
    for (const planted &race : races)
        try_all_seeds(race);
    return test_report();
}
