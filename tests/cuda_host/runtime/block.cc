// Runs the blocks of a grid: the threads of one block as fibers in random
// order, with the block's barrier and the collectives of its warps.
//
// A thread that never waits costs no switch: one fiber calls the kernel for one
// thread after another. When a thread has to wait, it keeps that fiber and the
// next one takes over. Every pick of the next thread is random among the last
// few that became ready; how few is drawn per block, so that some blocks mix
// all threads and others run one warp far ahead of the rest.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <vector>

#include "internal.h"

constexpr unsigned no_index = ~0u;
static const cuda_host_indices outside = {{no_index, no_index, no_index},
                                          {no_index, no_index, no_index},
                                          {no_index, no_index, no_index},
                                          {no_index, no_index, no_index}};
cuda_host_indices cuda_host_current = outside;
access_phases phases = {0, 0, 0, {}, {}, no_thread};
volatile bool cuda_host_in_atomic;

namespace {

enum thread_state : uint8_t { unstarted, ready, at_barrier, in_warp, exited };

struct stored {
    const cuda_host_storage_kind *kind;
    void *bytes;
};

// Where and for what a thread waits; on its own stack.
struct waiting_at {
    cuda_host_site site;
    unsigned mask; // of the warp collective
    void *lane;
    cuda_host_warp_step step;
};

struct emulated_thread {
    fiber *on;
    const waiting_at *wait;
    uint3 index;
    thread_state state;
    std::vector<stored> *storage; // NULL when it has none
};

struct emulated_warp {
    unsigned waiting, exited;
};

struct emulated_block {
    const kernel_run *run;
    unsigned n_threads, n_ready, n_exited, n_at_barrier;
    unsigned window; // the next thread is one of the last this many that became ready
    unsigned n_true; // of the barrier's predicates
    emulated_thread *first_at_barrier;
    unsigned result_true, result_arrived;
    emulated_thread *current;
    fiber *main;
    uint16_t ready_list[largest_block];
    uint16_t order[largest_block];
    emulated_thread threads[largest_block];
    emulated_warp warps[largest_block / 32];
};

emulated_block block;

unsigned index_of(const emulated_thread *thread) {
    return static_cast<unsigned>(thread - block.threads);
}

void shuffle(uint16_t *values, unsigned n) {
    for (unsigned i = n; i > 1; i--)
        std::swap(values[i - 1], values[cuda_host_random(i)]);
}

void make_ready(emulated_thread *thread) {
    thread->state = ready;
    block.ready_list[block.n_ready++] = static_cast<uint16_t>(index_of(thread));
}

[[noreturn]] void report_deadlock();

// Takes a ready thread off the list; NULL when none is left and all have ended.
emulated_thread *pick() {
    if (block.n_ready == 0) {
        if (block.n_exited < block.n_threads)
            report_deadlock();
        return nullptr;
    }
    unsigned among = std::min(block.window, block.n_ready);
    unsigned at = block.n_ready - 1 - (among > 1 ? cuda_host_random(among) : 0);
    unsigned index = block.ready_list[at];
    block.ready_list[at] = block.ready_list[--block.n_ready];
    return &block.threads[index];
}

void become(emulated_thread *thread) {
    block.current = thread;
    cuda_host_current.thread = thread->index;
    phases.thread = index_of(thread);
}

// Goes on with `next`, on its own fiber or a fresh one.
void resume(emulated_thread *next) {
    become(next);
    if (!next->on)
        next->on = take_fiber();
    switch_to(next->on);
}

// The current thread has put down what it waits for; returns when it is picked
// again.
void give_way() {
    emulated_thread *self = block.current;
    emulated_thread *next = pick();
    if (next != self)
        resume(next);
}

void release_barrier() {
    phases.now++;
    uint16_t *order = block.order;
    unsigned n = 0;
    for (unsigned i = 0; i < block.n_threads; i++)
        if (block.threads[i].state == at_barrier)
            order[n++] = static_cast<uint16_t>(i);
    if (block.window < 32) // the order matters then
        shuffle(order, n);
    for (unsigned i = 0; i < n; i++)
        make_ready(&block.threads[order[i]]);
    block.result_true = block.n_true;
    block.result_arrived = n;
    block.n_at_barrier = block.n_true = 0;
}

bool same_site(const cuda_host_site &a, const cuda_host_site &b) {
    return a.line == b.line && (a.primitive == b.primitive || !strcmp(a.primitive, b.primitive)) &&
           (a.file == b.file || !strcmp(a.file, b.file));
}

int print_thread(char *out, size_t bytes, const emulated_thread *thread) {
    return snprintf(out, bytes, "thread (%u,%u,%u)", thread->index.x, thread->index.y,
                    thread->index.z);
}

int print_block(char *out, size_t bytes) {
    const uint3 &at = cuda_host_current.block;
    return snprintf(out, bytes, "block (%u,%u,%u)", at.x, at.y, at.z);
}

// One line about `thread`, which waits at its site, and why that cannot end
// well.
[[noreturn]] void report_wait(const emulated_thread *thread, const char *why) {
    char where[64], who[64];
    print_block(where, sizeof where);
    print_thread(who, sizeof who, thread);
    block.current = nullptr; // named in the line already
    const cuda_host_site &site = thread->wait->site;
    cuda_host_fail("%s %s: %s at %s:%d: %s", where, who, site.primitive, site.file, site.line, why);
}

[[noreturn]] void report_two(const emulated_thread *waiting, const emulated_thread *other,
                             const char *what) {
    char why[512], who[64];
    print_thread(who, sizeof who, other);
    const cuda_host_site &site = other->wait->site;
    snprintf(why, sizeof why, "%s is in %s with mask 0x%08x at %s:%d: %s", who, site.primitive,
             other->wait->mask, site.file, site.line, what);
    report_wait(waiting, why);
}

emulated_thread *lane_of(const emulated_thread *thread, unsigned lane) {
    return &block.threads[(index_of(thread) & ~31u) + lane];
}

[[noreturn]] void report_missing(const emulated_thread *thread, unsigned missing) {
    emulated_warp &warp = block.warps[index_of(thread) / 32];
    char why[160];
    snprintf(why, sizeof why, "mask 0x%08x: lanes 0x%08x never arrive%s", thread->wait->mask,
             missing,
             missing & warp.exited ? " (they have returned, or the block has no such thread)"
                                   : " (they wait elsewhere)");
    report_wait(thread, why);
}

void report_deadlock() {
    emulated_thread *waiting = nullptr;
    for (unsigned i = 0; i < block.n_threads && !waiting; i++)
        if (block.threads[i].state == in_warp)
            waiting = &block.threads[i];
    if (waiting)
        report_missing(waiting, waiting->wait->mask & ~block.warps[index_of(waiting) / 32].waiting);
    cuda_host_fail("threads of a block wait for ever");
}

void check_no_lane_waits(emulated_thread *gone) {
    unsigned lane = index_of(gone) & 31;
    emulated_warp &warp = block.warps[index_of(gone) / 32];
    for (unsigned rest = warp.waiting; rest; rest &= rest - 1) {
        emulated_thread *other = lane_of(gone, static_cast<unsigned>(__builtin_ctz(rest)));
        if (other->wait->mask >> lane & 1)
            report_missing(other, 1u << lane);
    }
}

void drop_storage(emulated_thread *thread) {
    for (auto each = thread->storage->rbegin(); each != thread->storage->rend(); ++each) {
        if (each->kind->finish)
            each->kind->finish(each->bytes);
        delete[] static_cast<char *>(each->bytes);
    }
    delete thread->storage;
    thread->storage = nullptr;
}

void finish_thread() {
    emulated_thread *self = block.current;
    if (self->storage)
        drop_storage(self);
    self->state = exited;
    self->on = nullptr;
    emulated_warp &warp = block.warps[index_of(self) / 32];
    warp.exited |= 1u << (index_of(self) & 31);
    if (warp.waiting)
        check_no_lane_waits(self);
    block.n_exited++;
    // A thread that has returned is not waited for (sm_70 and later).
    if (block.n_at_barrier && block.n_at_barrier + block.n_exited == block.n_threads)
        release_barrier();
}

// Threads in random order; when one warp is to run ahead of the others, warps
// stay together.
void order_threads() {
    unsigned n = block.n_threads;
    for (unsigned i = 0; i < n; i++)
        block.ready_list[i] = static_cast<uint16_t>(i);
    block.n_ready = n;
    static const unsigned windows[] = {1, 2, 32, largest_block};
    unsigned mode = cuda_host_random(6);
    block.window = windows[std::min(mode, 3u)];
    if (block.window == largest_block)
        return;
    if (mode == 0) // single threads ahead, of any warp
        return shuffle(block.ready_list, n);
    unsigned n_warps = n / 32; // a last partial warp stays last in the list: it goes first
    for (unsigned i = n_warps; i > 1; i--) {
        unsigned j = cuda_host_random(i);
        if (j != i - 1)
            std::swap_ranges(block.ready_list + 32 * j, block.ready_list + 32 * j + 32,
                             block.ready_list + 32 * (i - 1));
    }
    for (unsigned i = 0; i < n_warps; i++)
        shuffle(block.ready_list + 32 * i, 32);
}

void run_block() {
    phases.of_block = ++phases.now;
    prepare_shared(block.run->shared_bytes);
    for (unsigned i = 0; i < block.n_threads; i++)
        block.threads[i].state = unstarted;
    for (unsigned i = 0; i < (block.n_threads + 31) / 32; i++) {
        unsigned lanes = std::min(32u, block.n_threads - 32 * i);
        block.warps[i] = {0, lanes == 32 ? 0 : ~0u << lanes};
    }
    block.n_exited = block.n_at_barrier = block.n_true = 0;
    order_threads();
    resume(pick());
    check_shared(block.run->shared_bytes);
}

void begin_grid(const kernel_run &run) {
    block.run = &run;
    block.main = running_fiber;
    phases.of_launch = phases.now + 1;
    block.n_threads = run.block.x * run.block.y * run.block.z;
    cuda_host_current.block_size = run.block;
    cuda_host_current.grid_size = run.grid;
    unsigned i = 0;
    for (unsigned z = 0; z < run.block.z; z++)
        for (unsigned y = 0; y < run.block.y; y++)
            for (unsigned x = 0; x < run.block.x; x++)
                block.threads[i++].index = uint3{x, y, z};
}

void end_grid() {
    cuda_host_current = outside;
    phases.thread = no_thread;
    block.current = nullptr;
    block.run = nullptr;
}

// Visits 0..n-1 in an order that looks random and needs no memory: a step that
// shares no factor with n.
struct scattered {
    uint64_t n, at, step;

    explicit scattered(uint64_t count) : n(count) {
        at = cuda_host_random(static_cast<uint32_t>(std::min<uint64_t>(n, UINT32_MAX)));
        do
            step = 1 + cuda_host_random(static_cast<uint32_t>(std::min<uint64_t>(n, UINT32_MAX)));
        while (std::__gcd(step, n) != 1);
    }
    uint64_t next() {
        at = (at + step) % n;
        return at;
    }
};

} // namespace

void run_kernel(const kernel_run &run) {
    begin_grid(run);
    uint64_t blocks = static_cast<uint64_t>(run.grid.x) * run.grid.y * run.grid.z;
    scattered order(blocks);
    for (uint64_t i = 0; i < blocks; i++) {
        uint64_t at = order.next();
        cuda_host_current.block = uint3{static_cast<unsigned>(at % run.grid.x),
                                        static_cast<unsigned>(at / run.grid.x % run.grid.y),
                                        static_cast<unsigned>(at / run.grid.x / run.grid.y)};
        run_block();
    }
    end_grid();
}

// Runs on a fiber: threads one after another for as long as they are new ones.
void fiber_worker() {
    for (;;) {
        emulated_thread *self = block.current;
        self->on = running_fiber;
        block.run->call(block.run->kernel, block.run->parameters);
        finish_thread();
        emulated_thread *next = pick();
        if (next && !next->on) {
            become(next);
            continue;
        }
        return_fiber(running_fiber);
        if (next)
            resume(next);
        else
            switch_to(block.main);
    }
}

void describe_position(char *out, size_t bytes) {
    out[0] = 0;
    if (!block.current)
        return;
    int n = print_block(out, bytes);
    n += snprintf(out + n, bytes - static_cast<size_t>(n), " ");
    print_thread(out + n, bytes - static_cast<size_t>(n), block.current);
}

static emulated_thread *require_thread(cuda_host_site site) {
    if (!block.current)
        cuda_host_fail("%s at %s:%d: called outside a kernel", site.primitive, site.file,
                       site.line);
    return block.current;
}

int cuda_host_block_barrier(cuda_host_site site, int predicate, bool *all) {
    emulated_thread *self = require_thread(site);
    waiting_at wait = {site, ~0u, nullptr, nullptr};
    self->wait = &wait;
    self->state = at_barrier;
    if (block.n_at_barrier++ == 0)
        block.first_at_barrier = self;
    else if (!same_site(block.first_at_barrier->wait->site, site))
        report_two(self, block.first_at_barrier, "threads of a block at different barriers");
    block.n_true += predicate != 0;
    if (block.n_at_barrier + block.n_exited == block.n_threads)
        release_barrier();
    give_way();
    *all = block.result_true == block.result_arrived;
    return static_cast<int>(block.result_true);
}

void cuda_host_barrier(cuda_host_site site) {
    static const bool skipped = cuda_host_fault("no-barrier");
    bool all;
    if (skipped)
        return;
    cuda_host_block_barrier(site, 0, &all);
}

unsigned cuda_host_lane() {
    return index_of(block.current) & 31;
}

inline static void check_agreement(const emulated_thread *self, const emulated_thread *other) {
    if (!same_site(other->wait->site, self->wait->site) || other->wait->step != self->wait->step)
        report_two(self, other, "lanes of one mask in different calls");
    if (other->wait->mask != self->wait->mask)
        report_two(self, other, "lanes of one collective disagree about the mask");
}

__attribute__((noinline)) static void finish_collective(emulated_thread *self,
                                                        emulated_warp *warp) {
    unsigned mask = self->wait->mask;
    void *lanes[32] = {};
    uint16_t order[32];
    unsigned n = 0, base = index_of(self) & ~31u;
    for (unsigned rest = mask; rest; rest &= rest - 1) {
        unsigned lane = static_cast<unsigned>(__builtin_ctz(rest));
        check_agreement(self, &block.threads[base + lane]);
        lanes[lane] = block.threads[base + lane].wait->lane;
        order[n++] = static_cast<uint16_t>(base + lane);
    }
    self->wait->step(lanes, mask);
    warp->waiting &= ~mask;
    phases.collectives[index_of(self) / 32]++;
    if (block.window < 32)
        shuffle(order, n);
    for (unsigned i = 0; i < n; i++)
        make_ready(&block.threads[order[i]]);
}

void cuda_host_warp_collective(cuda_host_site site, unsigned mask, void *lane,
                               cuda_host_warp_step step) {
    emulated_thread *self = require_thread(site);
    emulated_warp *warp = &block.warps[index_of(self) / 32];
    unsigned bit = 1u << (index_of(self) & 31), others = warp->waiting & mask;
    waiting_at wait = {site, mask, lane, step};
    self->wait = &wait;
    if (!(mask & bit))
        report_wait(self, "the calling lane is not in its own mask");
    if (mask & warp->exited)
        report_missing(self, mask & warp->exited);
    if (others)
        check_agreement(self, lane_of(self, static_cast<unsigned>(__builtin_ctz(others))));
    self->state = in_warp;
    warp->waiting |= bit;
    if ((warp->waiting & mask) == mask)
        finish_collective(self, warp);
    give_way();
}

void cuda_host_yield() {
    if (block.current && cuda_host_random(16) == 0) {
        make_ready(block.current);
        give_way();
    }
}

void *cuda_host_thread_storage(const cuda_host_storage_kind *kind) {
    emulated_thread *self = require_thread({"thread storage", kind->name, 0});
    if (!self->storage)
        self->storage = new std::vector<stored>();
    for (const stored &each : *self->storage)
        if (each.kind == kind)
            return each.bytes;
    self->storage->push_back({kind, new char[kind->bytes]()});
    return self->storage->back().bytes;
}
