// Settings from the environment, random numbers, and the way out on a failure.
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <unistd.h>

#include "internal.h"

static uint64_t seed_from_environment() {
    const char *text = getenv("CUDA_HOST_SEED");
    if (text && *text)
        return strtoull(text, nullptr, 0);
    timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (static_cast<uint64_t>(now.tv_nsec) ^ static_cast<uint64_t>(now.tv_sec) << 20 ^
            static_cast<uint64_t>(getpid()) << 40) %
           1000000007;
}

uint64_t configured_seed() {
    static const uint64_t seed = seed_from_environment();
    return seed;
}

static uint64_t random_state;

uint32_t cuda_host_random(uint32_t n) {
    if (!random_state)
        random_state = configured_seed() * 0x9e3779b97f4a7c15u + 0x2545f4914f6cdd1du;
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    uint64_t bits = (random_state ^ random_state >> 29) * 0xbf58476d1ce4e5b9u >> 32;
    return static_cast<uint32_t>(bits * n >> 32);
}

void cuda_host_fail(const char *format, ...) {
    char text[1024], position[128];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    describe_position(position, sizeof position);
    fprintf(stderr, "cuda_host: %s%s%s (CUDA_HOST_SEED=%llu)\n", position, *position ? ": " : "",
            text, static_cast<unsigned long long>(configured_seed()));
    fflush(stderr);
    abort();
}

bool cuda_host_fault(const char *name) {
    static const char *const wanted = getenv("CUDA_HOST_FAULT");
    return wanted && !strcmp(wanted, name);
}
