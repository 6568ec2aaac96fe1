// Device memory is out of the host's reach except while emulated devices run,
// and the fault handler that says so.
#include <csignal>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <sys/mman.h>
#include <unistd.h>

#include "runtime.h"

device_region regions[largest_device_count];

static int depth;
static volatile bool is_open;

static double seconds(clockid_t clock) {
    timespec now;
    clock_gettime(clock, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

static void protect(int protection) {
    for (const device_region &each : regions)
        if (each.used && mprotect(each.base, each.used, protection))
            cuda_host_fail("mprotect of device memory failed");
    is_open = protection != PROT_NONE;
}

// Changing the protection of much memory is slow: past an allowance for short
// programs it may take a twentieth of the time.
static bool may_close() {
    static double started = seconds(CLOCK_MONOTONIC), spent;
    double now = seconds(CLOCK_MONOTONIC);
    if (spent > 0.2 + 0.05 * (now - started))
        return false;
    protect(PROT_NONE);
    spent += 2 * (seconds(CLOCK_MONOTONIC) - now); // opening costs about the same
    return true;
}

void begin_device_access() {
    if (depth++ == 0 && !is_open)
        protect(PROT_READ | PROT_WRITE);
}

void end_device_access() {
    if (--depth == 0)
        may_close();
}

static struct sigaction previous_handler;

static void say(const char *format, const void *address, int device) {
    char text[256];
    int n = snprintf(text, sizeof text, format, address, device);
    n += snprintf(text + n, sizeof text - static_cast<size_t>(n), " (CUDA_HOST_SEED=%llu)\n",
                  static_cast<unsigned long long>(configured_seed()));
    if (write(STDERR_FILENO, text, static_cast<size_t>(n)) < 0)
        return;
}

// Says what it knows about the address, then lets the fault happen again under
// the handler that was there before.
static void on_fault(int signal, siginfo_t *info, void *) {
    auto *at = static_cast<char *>(info->si_addr);
    for (int i = 0; i < largest_device_count; i++) {
        if (!regions[i].base || at < regions[i].base || at >= regions[i].base + regions[i].reserved)
            continue;
        say(is_open ? "cuda_host: access to unallocated device memory at %p of "
                      "device %d"
                    : "cuda_host: host access to device memory at %p of device %d",
            at, i);
    }
    if (is_stack_guard(at))
        say("cuda_host: a kernel's thread overflowed its stack at %p", at, 0);
    sigaction(signal, &previous_handler, nullptr);
}

// The fault may be the end of a fiber's stack, so the handler needs one of its
// own.
static void install_handler() {
    static char stack[64 * 1024];
    stack_t current, own = {};
    own.ss_sp = stack;
    own.ss_size = sizeof stack;
    if (!sigaltstack(nullptr, &current) && (current.ss_flags & SS_DISABLE))
        sigaltstack(&own, nullptr);
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &previous_handler);
}

void use_region(int device, size_t bytes) {
    static bool installed;
    if (!installed)
        install_handler();
    installed = true;
    device_region &region = regions[device];
    if (is_open && mprotect(region.base, bytes, PROT_READ | PROT_WRITE))
        cuda_host_fail("mprotect of device memory failed");
    region.used = bytes;
}
