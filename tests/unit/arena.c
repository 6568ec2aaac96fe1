// arena.h and the CPU device below it.
#include "runtime/core/arena.h"

#include <stdint.h>
#include <sys/wait.h>
#include <unistd.h>

#include "runtime/core/device_cpu_internal.h"
#include "scratch.h"

static void lay_out(td_arena *arena, void *pieces[3]) {
    pieces[0] = td_arena_take(arena, 3, 5);
    size_t mark = td_arena_mark(arena);
    pieces[1] = td_arena_take(arena, 1000, 8);
    td_arena_release_to(arena, mark);
    pieces[2] = td_arena_take(arena, 1, 1);
}

static void the_plan_equals_the_allocation(void) {
    td_arena measure, real;
    void *pieces[3];
    td_arena_init_measure(&measure, "test");
    CHECK(td_arena_is_measuring(&measure));
    lay_out(&measure, pieces);
    CHECK(!pieces[0] && !pieces[1] && !pieces[2]);
    CHECK_INT(measure.peak_bytes, 64 + 8000);
    CHECK_INT(measure.used_bytes, 128);
    REQUIRE(td_arena_init(&real, td_device_cpu(), measure.peak_bytes, "test") == TD_OK);
    CHECK(!td_arena_is_measuring(&real));
    lay_out(&real, pieces);
    CHECK_INT(real.peak_bytes, measure.peak_bytes);
    CHECK_INT(real.used_bytes, measure.used_bytes);
    CHECK(pieces[1] == pieces[2]);
    td_arena_fini(&real);
}

static void pieces_are_aligned_zeroed_and_apart(void) {
    td_arena arena;
    REQUIRE(td_arena_init(&arena, td_device_cpu(), 4096, "test") == TD_OK);
    unsigned char *a = td_arena_take(&arena, 100, 1), *b = td_arena_take(&arena, 100, 1);
    CHECK_INT((uintptr_t)a % 64, 0);
    CHECK_INT((uintptr_t)b % 64, 0);
    CHECK(b >= a + 100);
    for (int i = 0; i < 100; i++)
        CHECK(a[i] == 0 && b[i] == 0);
    td_arena_fini(&arena);
}

static void overflowing_counts_do_not_wrap(void) {
    td_arena arena;
    td_arena_init_measure(&arena, "test");
    td_arena_take(&arena, SIZE_MAX / 2, 4);
    CHECK(arena.peak_bytes >= SIZE_MAX / 2);
    td_arena_take(&arena, 100, 1);
    CHECK(arena.peak_bytes >= SIZE_MAX / 2);
}

// Signal that ends a child which takes `bytes` from an arena of 128.
static int signal_of_child_taking(size_t bytes) {
    fflush(NULL);
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        td_arena arena;
        (void)!freopen("/dev/null", "w", stderr);
        if (td_arena_init(&arena, td_device_cpu(), 128, "test") != TD_OK)
            _exit(9);
        td_arena_take(&arena, bytes, 1);
        _exit(0);
    }
    int status;
    REQUIRE(waitpid(child, &status, 0) == child);
    return WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status) * -1;
}

static void running_past_the_capacity_aborts(void) {
    CHECK_INT(signal_of_child_taking(128), 0);
    CHECK_INT(signal_of_child_taking(129), SIGABRT);
    CHECK_INT(signal_of_child_taking(SIZE_MAX), SIGABRT);
}

static void too_much_memory_is_refused_by_name(void) {
    td_arena arena;
    CHECK_INT(td_arena_init(&arena, td_device_cpu(), SIZE_MAX - 5, "activations"), TD_ERR_MEMORY);
    CHECK_MESSAGE("activations");
}

static void the_cpu_device_copies_and_sets(void) {
    const td_device *cpu = td_device_cpu();
    td_stream *stream;
    td_event *event;
    void *memory;
    CHECK(cpu->unified);
    REQUIRE(cpu->table->alloc(cpu, 16 << 20, "test", &memory) == TD_OK);
    CHECK_INT((uintptr_t)memory % 64, 0);
    CHECK(((char *)memory)[(16 << 20) - 1] == 0);
    REQUIRE(cpu->table->stream_create(cpu, &stream) == TD_OK);
    REQUIRE(cpu->table->event_create(cpu, &event) == TD_OK);
    CHECK_INT(cpu->table->set(stream, memory, 'x', 10), TD_OK);
    CHECK_INT(cpu->table->copy(stream, (char *)memory + 100, memory, 10), TD_OK);
    CHECK_INT(cpu->table->event_record(event, stream), TD_OK);
    CHECK_INT(cpu->table->event_synchronize(event), TD_OK);
    CHECK(memcmp((char *)memory + 100, "xxxxxxxxxx\0", 11) == 0);
    cpu->table->event_destroy(event);
    cpu->table->stream_destroy(stream);
    cpu->table->free(cpu, memory);
}

static void memory_of_this_machine_is_known(void) {
    size_t free_bytes = 0, total_bytes = 0;
    REQUIRE(td_device_cpu()->table->memory_info(td_device_cpu(), &free_bytes, &total_bytes) ==
            TD_OK);
    CHECK(free_bytes > 1 << 20);
    CHECK(total_bytes >= free_bytes);
}

// A copy of the kernel's files: the machine has 1000 MiB, 800 free.
static void make_kernel_files(const char *cgroup_line) {
    REQUIRE(td_folder_make(scratch("proc/self")) == TD_OK);
    REQUIRE(td_folder_make(scratch("sys/fs/cgroup/job/step")) == TD_OK);
    REQUIRE(td_folder_make(scratch("sys/fs/cgroup/memory/job")) == TD_OK);
    scratch_file("proc/meminfo", "MemTotal:  1024000 kB\nMemFree: 1 kB\nMemAvailable: 819200 kB\n");
    scratch_file("proc/self/cgroup", cgroup_line);
}

static void check_memory(size_t expected_free_mib, size_t expected_total_mib) {
    size_t free_bytes, total_bytes;
    REQUIRE(td_cpu_memory_read(scratch_, &free_bytes, &total_bytes) == TD_OK);
    CHECK_INT(free_bytes >> 20, expected_free_mib);
    CHECK_INT(total_bytes >> 20, expected_total_mib);
}

static void control_groups_bound_the_memory(void) {
    make_kernel_files("0::/job/step\n");
    check_memory(800, 1000);
    scratch_file("sys/fs/cgroup/job/step/memory.max", "max\n");
    check_memory(800, 1000);
    scratch_file("sys/fs/cgroup/job/memory.max", "314572800\n");
    scratch_file("sys/fs/cgroup/job/memory.current", "104857600\n");
    check_memory(200, 300);
    make_kernel_files("5:memory:/job\n3:cpu:/job\n");
    scratch_file("sys/fs/cgroup/memory/job/memory.limit_in_bytes", "209715200\n");
    scratch_file("sys/fs/cgroup/memory/job/memory.usage_in_bytes", "104857600\n");
    check_memory(100, 200);
}

int main(void) {
    TEST(the_plan_equals_the_allocation);
    TEST(pieces_are_aligned_zeroed_and_apart);
    TEST(overflowing_counts_do_not_wrap);
    TEST(running_past_the_capacity_aborts);
    TEST(too_much_memory_is_refused_by_name);
    TEST(the_cpu_device_copies_and_sets);
    TEST(memory_of_this_machine_is_known);
    TEST(control_groups_bound_the_memory);
    return test_report();
}
