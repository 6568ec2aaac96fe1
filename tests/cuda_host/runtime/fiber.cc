// Fibers: a stack and a saved stack pointer each. Stacks have a guard page
// below, are reused, and never given back.
#include <sys/mman.h>
#include <unistd.h>

#include <vector>

#include "internal.h"

#if CUDA_HOST_ASAN
#include <sanitizer/common_interface_defs.h>
constexpr size_t stack_bytes = 256 * 1024;
#else
constexpr size_t stack_bytes = 64 * 1024;
#endif
constexpr size_t guard_bytes = 64 * 1024; // no frame steps over it unseen

static fiber main_fiber;
fiber *running_fiber = &main_fiber;
// Never destroyed: streams may still run while static objects go.
static auto &idle_fibers = *new std::vector<fiber *>();
static auto &all_stacks = *new std::vector<char *>();

#if !defined(__x86_64__)
#error "the emulation switches stacks on x86-64 only"
#endif
// Saves the registers that a call preserves, then the stack pointer, and returns to where `to` was
// saved. All fibers switch at the same place, most from the same callers, so the processor predicts
// the returns well.
asm(R"(
    .text
    .p2align 4
    .globl cuda_host_switch_stack
    .type cuda_host_switch_stack, @function
cuda_host_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size cuda_host_switch_stack, . - cuda_host_switch_stack
)");

#if CUDA_HOST_ASAN
static void finish_switch() {
    const void *from;
    size_t bytes;
    __sanitizer_finish_switch_fiber(running_fiber->fake_stack, &from, &bytes);
    if (!main_fiber.stack) { // the first switch away from the OS thread's stack
        main_fiber.stack = static_cast<char *>(const_cast<void *>(from));
        main_fiber.bytes = bytes;
    }
}

void switch_to(fiber *next) {
    fiber *self = running_fiber;
    running_fiber = next;
    if (self == &main_fiber)
        main_fiber.stack = nullptr; // whichever OS thread this is
    __sanitizer_start_switch_fiber(&self->fake_stack, next->stack, next->bytes);
    cuda_host_switch_stack(&self->stack_pointer, next->stack_pointer);
    finish_switch();
}
#else
static void finish_switch() {
}
#endif

extern "C" [[noreturn]] void cuda_host_fiber_start() {
    finish_switch();
    fiber_worker();
    __builtin_trap();
}

// Tops of stacks that are a power of two apart would share a few cache sets:
// each starts a different number of lines lower.
static fiber *new_fiber() {
    size_t bytes = guard_bytes + stack_bytes;
    void *memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, guard_bytes, PROT_NONE))
        cuda_host_fail("no memory for the stack of a thread");
    auto *made = new fiber();
    made->stack = static_cast<char *>(memory) + guard_bytes;
    made->bytes = stack_bytes;
    size_t colour = all_stacks.size() * 5 % 32 * 64;
    all_stacks.push_back(static_cast<char *>(memory));
    auto **top = reinterpret_cast<void **>(made->stack + stack_bytes - colour);
    // As if called from nowhere: the slot of that return address, then what the switch pops.
    top[-2] = reinterpret_cast<void *>(cuda_host_fiber_start);
    made->stack_pointer = top - 8;
    return made;
}

fiber *take_fiber() {
    if (idle_fibers.empty())
        return new_fiber();
    fiber *idle = idle_fibers.back();
    idle_fibers.pop_back();
    return idle;
}

void return_fiber(fiber *idle) {
    idle_fibers.push_back(idle);
}

bool is_stack_guard(const void *address) {
    auto *at = static_cast<const char *>(address);
    for (char *memory : all_stacks)
        if (at >= memory && at < memory + guard_bytes)
            return true;
    return false;
}
