// The pager on the memory of a GPU: pages visit the device through a cache that holds a few of
// them, are changed there by an operation on one of two streams, with the next page on its way, and
// end with the bits that they have without a cache.
#include "test.h"

#include "kernels/ops.h"
#include "runtime/core/gpu_module.h"
#include "runtime/core/pager.h"

enum { N_PAGES = 13, PAGE_ELEMENTS = 40000, STEPS = 24 };

static const size_t state_bytes = PAGE_ELEMENTS * sizeof(float);

typedef struct paged_run {
    const td_device *device;
    td_op_context contexts[2]; // one per stream
    td_pager *pager;
    float *addends; // (PAGE_ELEMENTS) device memory
    int64_t *faults;
} paged_run;

static void *alloc_device(const td_device *device, size_t bytes) {
    void *memory = NULL;
    REQUIRE(device->table->alloc(device, bytes, "a test", &memory) == TD_OK);
    return memory;
}

static paged_run start(const td_device *device, const td_ops *ops, size_t cache_pages) {
    paged_run self = {.device = device};
    td_pager_options options = {.device = device,
                                .state_bytes = state_bytes,
                                .device_cache_bytes = cache_pages * state_bytes};
    REQUIRE(td_page_map_init(&options.map, (int64_t)N_PAGES * PAGE_ELEMENTS, PAGE_ELEMENTS, 1) ==
            TD_OK);
    REQUIRE(td_pager_create(&options, &self.pager) == TD_OK);
    for (int i = 0; i < 2; i++) {
        self.contexts[i] = (td_op_context){.ops = ops, .device = device};
        REQUIRE(device->table->stream_create(device, &self.contexts[i].stream) == TD_OK);
    }
    self.addends = alloc_device(device, state_bytes);
    self.faults = alloc_device(device, sizeof *self.faults);
    return self;
}

static void finish(paged_run *self) {
    for (int i = 0; i < 2; i++)
        self->device->table->stream_destroy(self->contexts[i].stream);
    self->device->table->free(self->device, self->addends);
    self->device->table->free(self->device, self->faults);
    td_pager_destroy(self->pager);
}

// The same on every device: page p starts with its own numbers.
static void fill(paged_run *self) {
    float *values = malloc(state_bytes);
    REQUIRE(values != NULL);
    for (int64_t i = 0; i < PAGE_ELEMENTS; i++)
        values[i] = (float)((i * 7919) % 1001) / 64;
    REQUIRE(self->device->table->copy(self->contexts[0].stream, self->addends, values,
                                      state_bytes) == TD_OK);
    REQUIRE(self->device->table->stream_synchronize(self->contexts[0].stream) == TD_OK);
    for (int64_t page = 0; page < N_PAGES; page++) {
        float *state = td_pager_host_state(self->pager, page);
        for (int64_t i = 0; i < PAGE_ELEMENTS; i++)
            state[i] = (float)(page * 1000 + i % 97);
    }
    free(values);
}

// The first `count` elements grow by as much as the step says; a step that changes nothing only
// looks.
static void visit(paged_run *self, int64_t page, int64_t next, int step) {
    td_op_context *context = &self->contexts[(step + page) % 2];
    void *state = NULL;
    int changes = (step + page) % 4 != 0;
    REQUIRE(td_pager_acquire(self->pager, page, context->stream, &state) == TD_OK);
    if (next >= 0 && next < N_PAGES)
        REQUIRE(td_pager_prefetch(self->pager, next) == TD_OK);
    if (changes) {
        td_f32_add_args args = {.n_elements = PAGE_ELEMENTS - step,
                                .values = self->addends,
                                .accumulator = state,
                                .faults = self->faults};
        REQUIRE(context->ops->f32_add(context, &args) == TD_OK);
    }
    REQUIRE(td_pager_release(self->pager, page, context->stream, changes) == TD_OK);
}

// Back and forth over the pages, so that even a small cache has hits.
static void run(paged_run *self) {
    fill(self);
    for (int step = 0; step < STEPS; step++)
        for (int64_t i = 0; i < N_PAGES; i++)
            visit(self, step % 2 ? N_PAGES - 1 - i : i, step % 2 ? N_PAGES - 2 - i : i + 1, step);
    REQUIRE(td_pager_flush(self->pager) == TD_OK);
}

static const td_gpu_module *module;

static void pages_end_with_the_bits_of_the_cpu(void) {
    const td_device *gpu;
    REQUIRE(module->device_open(0, &gpu) == TD_OK);
    paged_run plain = start(td_device_cpu(), &td_ops_cpu, 0);
    run(&plain);
    for (size_t cache_pages = 2; cache_pages <= N_PAGES; cache_pages += 3) {
        paged_run paged = start(gpu, module->ops_fp32, cache_pages);
        run(&paged);
        for (int64_t page = 0; page < N_PAGES; page++)
            CHECK(memcmp(td_pager_host_state(paged.pager, page),
                         td_pager_host_state(plain.pager, page), state_bytes) == 0);
        td_pager_counters seen = td_pager_read_counters(paged.pager);
        CHECK(seen.hits > 0 && seen.misses >= N_PAGES && seen.write_backs >= N_PAGES);
        finish(&paged);
    }
    finish(&plain);
}

int main(void) {
    char reason[512] = "";
    td_gpu_module_load(&module, reason, sizeof reason);
    if (!module)
        fprintf(stderr, "no GPU: %s\n", reason);
    REQUIRE(module != NULL);
    TEST(pages_end_with_the_bits_of_the_cpu);
    return test_report();
}
