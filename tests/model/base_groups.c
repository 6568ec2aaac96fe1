// Loading a base of more tensors and more elements than one group has: the bytes of the base whose
// weights were written, one fingerprint, for any number of threads, on a device with memory of its
// own, and on a rank that receives them.
#include <omp.h>
#include <pthread.h>

#include "model/base_internal.h"
#include "runtime/core/files.h"
#include "unit/scratch.h"

enum { SEED = 5, RANKS = 2 };

static td_stream *stream;
static td_op_context context, other_context;
static td_device separate; // whose memory the host must copy to
static char model[512];

static const td_base_options options[] = {
    {.stored = TD_BF16, .compute = TD_F32},
    {.quantize = 1, .stored = TD_BF16, .compute = TD_F32},
    {.quantize = 1, .double_quantize = 1, .stored = TD_BF16, .compute = TD_F32}};
enum { OPTIONS = sizeof options / sizeof options[0] };

static void prepare(void) {
    context = (td_op_context){.ops = &td_ops_cpu, .device = td_device_cpu()};
    REQUIRE(context.device->table->stream_create(context.device, &stream) == TD_OK);
    context.stream = stream;
    snprintf(model, sizeof model, "%s", scratch("model"));
    REQUIRE(td_folder_make(model) == TD_OK);
    separate = *td_device_cpu();
    separate.unified = 0;
    other_context = context;
    other_context.device = &separate;
}

static void write_model(int layers, int hidden, int intermediate, td_model_config *out) {
    char text[1024], path[600];
    snprintf(text, sizeof text,
             "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", "
             "\"vocab_size\": 301, \"hidden_size\": %d, \"intermediate_size\": %d, "
             "\"num_hidden_layers\": %d, \"num_attention_heads\": 4, \"num_key_value_heads\": 2, "
             "\"max_position_embeddings\": 64, \"rms_norm_eps\": 1e-5, \"hidden_act\": \"silu\", "
             "\"tie_word_embeddings\": false}",
             hidden, intermediate, layers);
    snprintf(path, sizeof path, "%s/config.json", model);
    REQUIRE(td_file_write_atomic(path, text, strlen(text)) == TD_OK);
    REQUIRE(td_model_config_read(model, out) == TD_OK);
    snprintf(path, sizeof path, "%s/model.safetensors", model);
    REQUIRE(td_base_write_random(out, SEED, path) == TD_OK);
}

static int is_same(const td_base *a, const td_base *b) {
    int same = a->arena.used_bytes == b->arena.used_bytes &&
               memcmp(a->arena.base, b->arena.base, a->arena.used_bytes) == 0;
    for (int64_t layer = 0; same && layer < a->config.n_layers; layer++)
        for (int i = 0; i < TD_PROJ_COUNT; i++)
            same &= a->layers[layer].linear[i].nested_offset ==
                    b->layers[layer].linear[i].nested_offset;
    return same;
}

static td_hash check_load(const td_base *expected, const td_base_options *with,
                          const td_op_context *where, int threads) {
    td_base *base = NULL;
    omp_set_num_threads(threads);
    REQUIRE(td_base_load(model, with, NULL, where, &base) == TD_OK);
    CHECK(is_same(expected, base));
    td_hash fingerprint = base->fingerprint;
    td_base_destroy(base);
    return fingerprint;
}

static td_base *drawn(const td_model_config *config, const td_base_options *with) {
    td_base *base;
    REQUIRE(td_base_create_random(config, with, SEED, &context, &base) == TD_OK);
    return base;
}

// Matrices of several chunks, the last of them short, in more tensors than a group has.
static void many_tensors(void) {
    td_model_config config;
    write_model(9, 320, 811, &config);
    for (int i = 0; i < OPTIONS; i++) {
        td_base *expected = drawn(&config, &options[i]);
        td_hash hash = check_load(expected, &options[i], &context, 1);
        CHECK(td_hash_equal(hash, check_load(expected, &options[i], &context, 3)));
        CHECK(td_hash_equal(hash, check_load(expected, &options[i], &other_context, 3)));
        td_base_destroy(expected);
    }
}

// More elements than a group has, so that there are block scales for a group and not for all.
static void many_elements(void) {
    const td_base_options *with = &options[OPTIONS - 1];
    td_model_config config;
    td_base_counts counts;
    write_model(3, 1024, 8192, &config);
    td_base_count(&config, &counts);
    REQUIRE(counts.total > TD_BASE_GROUP_ELEMENTS);
    td_base_staging plan = td_base_staging_plan(&config, with);
    CHECK(plan.n_blocks * TD_NF4_BLOCK < counts.total);
    td_base *expected = drawn(&config, with);
    check_load(expected, with, &context, 3);
    td_base_destroy(expected);
}

// What two threads exchange as two ranks of a node.
typedef struct node_member {
    pthread_barrier_t *barrier;
    void **buffer; // of rank 0, shared
    int rank, agreements;
    td_base *base;
} node_member;

static td_status broadcast(void *self, void *buffer, size_t bytes, const char *what) {
    node_member *member = self;
    (void)what;
    if (member->rank == 0)
        *member->buffer = buffer;
    pthread_barrier_wait(member->barrier);
    if (member->rank != 0)
        memcpy(buffer, *member->buffer, bytes);
    pthread_barrier_wait(member->barrier);
    return TD_OK;
}

static td_status agree(void *self, td_status mine, const char *what) {
    node_member *member = self;
    (void)what;
    member->agreements++;
    pthread_barrier_wait(member->barrier);
    return mine;
}

static void *run_member(void *argument) {
    node_member *member = argument;
    td_base_share share = {
        .is_reader = member->rank == 0, .broadcast = broadcast, .agree = agree, .self = member};
    REQUIRE(td_base_load(member->rank == 0 ? model : "/nowhere", &options[OPTIONS - 1], &share,
                         member->rank == 0 ? &context : &other_context, &member->base) == TD_OK);
    return NULL;
}

static void another_rank_receives_all_groups(void) {
    td_model_config config;
    pthread_barrier_t barrier;
    pthread_t threads[RANKS];
    node_member members[RANKS];
    void *buffer = NULL;
    write_model(9, 320, 811, &config);
    td_base *expected = drawn(&config, &options[OPTIONS - 1]);
    REQUIRE(pthread_barrier_init(&barrier, NULL, RANKS) == 0);
    for (int i = 0; i < RANKS; i++) {
        members[i] = (node_member){.barrier = &barrier, .buffer = &buffer, .rank = i};
        REQUIRE(pthread_create(&threads[i], NULL, run_member, &members[i]) == 0);
    }
    for (int i = 0; i < RANKS; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < RANKS; i++) {
        CHECK(is_same(expected, members[i].base));
        CHECK(td_hash_equal(members[0].base->fingerprint, members[i].base->fingerprint));
    }
    for (int i = 0; i < RANKS; i++)
        td_base_destroy(members[i].base);
    CHECK_INT(members[0].agreements, members[1].agreements);
    td_base_destroy(expected);
    pthread_barrier_destroy(&barrier);
}

int main(void) {
    prepare();
    TEST(many_tensors);
    TEST(many_elements);
    TEST(another_rank_receives_all_groups);
    context.device->table->stream_destroy(stream);
    return test_report();
}
