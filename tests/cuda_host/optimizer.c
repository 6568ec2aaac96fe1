// The update of pages on a GPU with a cache for some of them, against the CPU's: the same bits
// after every update, in as few visits of pages to the device as the cache allows.
#include "runtime/train/optimizer.h"

#include "runtime/core/gpu_module.h"
#include "runtime/core/rng.h"
#include "test.h"

enum { PAGE_ELEMENTS = 700, N_ELEMENTS = 7 * PAGE_ELEMENTS - 123, UPDATES = 6, QUANTUM = -46 };

static td_comm *comm;

// One backend with its copy of the run.
typedef struct side {
    const td_device *device;
    td_config config;
    td_op_context context;
    td_device_comm device_comm;
    td_pager *pager;
    td_parameters parameters;
    td_optimizer optimizer;
} side;

static void *take(const td_device *device, size_t bytes) {
    void *memory = NULL;
    REQUIRE(device->table->alloc(device, bytes, "a test", &memory) == TD_OK);
    return memory;
}

static void send(const side *s, void *to, const void *from, size_t bytes) {
    REQUIRE(s->device->table->copy(s->context.stream, to, from, bytes) == TD_OK);
    REQUIRE(s->device->table->stream_synchronize(s->context.stream) == TD_OK);
}

static void make_context(side *s, const td_ops *ops) {
    size_t bytes = ops->workspace_bytes(&(td_workspace_query){0});
    s->context = (td_op_context){.ops = ops,
                                 .device = s->device,
                                 .workspace = take(s->device, bytes),
                                 .workspace_bytes = bytes};
    REQUIRE(s->device->table->stream_create(s->device, &s->context.stream) == TD_OK);
}

static void make_parameters(side *s) {
    s->parameters.values = take(s->device, N_ELEMENTS * sizeof(float));
    s->parameters.fixed = take(s->device, N_ELEMENTS * sizeof(int64_t));
    s->parameters.faults = take(s->device, sizeof(int64_t));
    float values[N_ELEMENTS];
    for (int i = 0; i < N_ELEMENTS; i++)
        values[i] = td_rng_word(1, 0, 0, (uint64_t)i) * 0x1p-31f - 1.0f;
    send(s, s->parameters.values, values, sizeof values);
}

static void start(side *s, const td_device *device, const td_ops *ops, td_optimizer_kind kind,
                  size_t cache_pages) {
    *s = (side){.device = device, .device_comm = {.comm = comm, .device = device}};
    REQUIRE(td_config_init(&s->config) == TD_OK);
    s->config.optim = kind;
    s->config.gradient_quantum_log2 = QUANTUM;
    s->config.max_grad_norm = 0; // the norm's last digits differ
    make_context(s, ops);
    td_page_map *map = &s->parameters.map;
    REQUIRE(td_page_map_init(map, N_ELEMENTS, PAGE_ELEMENTS, 1) == TD_OK);
    make_parameters(s);
    size_t state_bytes = td_optimizer_state_bytes(kind, PAGE_ELEMENTS);
    td_pager_options options = {.device = device,
                                .map = *map,
                                .state_bytes = state_bytes,
                                .device_cache_bytes = cache_pages * (state_bytes + 64)};
    REQUIRE(td_pager_create(&options, &s->pager) == TD_OK);
    REQUIRE(td_optimizer_init(&s->optimizer, &s->config, &s->context, &s->device_comm, s->pager,
                              &s->parameters) == TD_OK);
    s->optimizer.page_gradient = take(device, PAGE_ELEMENTS * sizeof(float));
}

static void stop(side *s) {
    void *all[] = {s->optimizer.page_gradient, s->parameters.values, s->parameters.fixed,
                   s->parameters.faults, s->context.workspace};
    td_optimizer_fini(&s->optimizer);
    s->device->table->stream_destroy(s->context.stream);
    td_pager_destroy(s->pager);
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        s->device->table->free(s->device, all[i]);
    td_config_fini(&s->config);
}

// Norm and update with this update's gradient; everything is only queued but for the norm.
static double update(side *s, int64_t number) {
    int64_t fixed[N_ELEMENTS];
    double norm = 0;
    for (int i = 0; i < N_ELEMENTS; i++)
        fixed[i] = (int64_t)td_rng_word(2, (uint32_t)number, 0, (uint64_t)i) - (INT64_C(1) << 31);
    send(s, s->parameters.fixed, fixed, sizeof fixed);
    REQUIRE(td_optimizer_norm(&s->optimizer, &norm) == TD_OK);
    REQUIRE(td_optimizer_update(&s->optimizer, norm, 1e-3 / (double)number, number) == TD_OK);
    return norm;
}

static void check_same(side *cpu, side *gpu) {
    float expected[N_ELEMENTS], found[N_ELEMENTS];
    send(cpu, expected, cpu->parameters.values, sizeof expected);
    send(gpu, found, gpu->parameters.values, sizeof found);
    CHECK(memcmp(expected, found, sizeof found) == 0);
    REQUIRE(td_pager_flush(gpu->pager) == TD_OK);
    size_t bytes = td_optimizer_state_bytes(gpu->config.optim, PAGE_ELEMENTS);
    for (int64_t page = 0; page < gpu->parameters.map.n_pages; page++)
        CHECK(memcmp(td_pager_host_state(cpu->pager, page), td_pager_host_state(gpu->pager, page),
                     bytes) == 0);
}

static const td_gpu_module *module;

static void check_updates(td_optimizer_kind kind, size_t cache_pages) {
    const td_device *device;
    side cpu, gpu;
    REQUIRE(module->device_open(0, &device) == TD_OK);
    start(&cpu, td_device_cpu(), &td_ops_cpu, kind, 0);
    start(&gpu, device, module->ops_bf16, kind, cache_pages);
    int64_t n_pages = gpu.parameters.map.n_pages;
    for (int64_t number = 1; number <= UPDATES; number++) {
        double norm = update(&cpu, number);
        CHECK_NEAR(update(&gpu, number), norm, 1e-12 * norm);
        if (number % 2 == 0)
            check_same(&cpu, &gpu);
    }
    // The first update brings every page; each other one finds as many as the cache holds.
    uint64_t kept = cache_pages < (size_t)n_pages ? cache_pages : (size_t)n_pages;
    td_pager_counters counters = td_pager_read_counters(gpu.pager);
    CHECK_INT(counters.hits, (UPDATES - 1) * kept);
    CHECK_INT(counters.misses, UPDATES * (uint64_t)n_pages - counters.hits);
    stop(&cpu);
    stop(&gpu);
}

static void updates_are_those_of_the_cpu(void) {
    for (size_t cache_pages = 2; cache_pages <= 8; cache_pages += 2) {
        check_updates(TD_OPTIM_ADAMW, cache_pages);
        check_updates(TD_OPTIM_ADAMW_8BIT, cache_pages);
    }
}

int main(void) {
    char reason[256] = "";
    REQUIRE(td_comm_bootstrap(&comm) == TD_OK);
    td_gpu_module_load(&module, reason, sizeof reason);
    if (!module)
        fprintf(stderr, "no GPU: %s\n", reason);
    REQUIRE(module != NULL);
    TEST(updates_are_those_of_the_cpu);
    REQUIRE(td_comm_finish(comm) == TD_OK);
    return test_report();
}
