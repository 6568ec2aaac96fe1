// Loading the frozen base: every tensor in its place, NF4 as the operation gives it, one reader for
// several ranks, memory as planned, and what damaged folders say.
#include <pthread.h>

#include "model/base.h"
#include "model/safetensors.h"
#include "safetensors_build.h"

static const char *const families[] = {
    "llama",  "llama2",  "tinyllama",        "mistral", "qwen2",
    "qwen3",  "smollm2", "smollm3",          "phi3",    "phi3_long",
    "gemma2", "gemma3",  "gemma3_multimodal"};
enum { FAMILIES = sizeof families / sizeof families[0] };

static const td_base_options plain = {.stored = TD_BF16, .compute = TD_F32};
static const td_base_options nf4 = {
    .quantize = 1, .double_quantize = 1, .stored = TD_BF16, .compute = TD_F32};
static const td_base_options nf4_single = {.quantize = 1, .stored = TD_F32, .compute = TD_F32};

static td_stream *stream;
static td_op_context context;

static void prepare(void) {
    context = (td_op_context){.ops = &td_ops_cpu, .device = td_device_cpu()};
    REQUIRE(context.device->table->stream_create(context.device, &stream) == TD_OK);
    context.stream = stream;
}

static void folder_of(const char *family, char out[512]) {
    snprintf(out, 512, "%s/families/%s", TEST_FIXTURES, family);
}

static td_base *load(const char *folder, const td_base_options *options) {
    td_base *base = NULL;
    td_status status = td_base_load(folder, options, NULL, &context, &base);
    if (status != TD_OK)
        fprintf(stderr, "    %s\n", td_error_message());
    REQUIRE(status == TD_OK);
    return base;
}

static void check_values(const td_safetensors *files, const char *name, int64_t n,
                         const float *values) {
    td_tensor view;
    int64_t elements;
    if (!CHECK(td_safetensors_find(files, name, &view)))
        return;
    REQUIRE(td_tensor_elements(&view, &elements) == TD_OK);
    if (!CHECK(elements == n))
        return;
    float *expected = malloc((size_t)n * sizeof *expected);
    td_convert_to_f32(view.data, view.dtype, n, expected);
    if (!CHECK(memcmp(expected, values, (size_t)n * sizeof *values) == 0))
        fprintf(stderr, "    %s differs\n", name);
    free(expected);
}

static float *matrix_values(const td_matrix *matrix) {
    float *values = malloc((size_t)(matrix->rows * matrix->cols) * sizeof *values);
    td_dequantize_args args = {.matrix = matrix, .row_count = matrix->rows, .out = values};
    REQUIRE(td_ops_cpu.dequantize(&context, &args) == TD_OK);
    return values;
}

static void check_matrix(const td_safetensors *files, const char *name, const td_matrix *matrix) {
    float *values = matrix_values(matrix);
    check_values(files, name, matrix->rows * matrix->cols, values);
    free(values);
}

static void check_vector(const td_safetensors *files, const char *name, int64_t n,
                         const float *vector) {
    td_tensor view;
    CHECK(td_safetensors_find(files, name, &view) == (vector != NULL));
    if (vector)
        check_values(files, name, n, vector);
}

// Some families store what norm weights exceed 1 by.
static void check_norm(const td_safetensors *files, const td_base *base, const char *name,
                       int64_t n, const float *vector) {
    td_tensor view;
    if (!base->config.family->norm_adds_one) {
        check_vector(files, name, n, vector);
        return;
    }
    REQUIRE(td_safetensors_find(files, name, &view) == 1 && view.dtype == TD_F32);
    const float *stored = view.data;
    CHECK_INT(view.shape[0], n);
    for (int64_t i = 0; i < n; i++)
        CHECK(vector[i] == 1.0f + stored[i]);
}

static const char *names_begin(const td_base *base) {
    static const char *const prefixes[TD_NAMES_COUNT] = {"model.", "language_model.model.",
                                                         "model.language_model."};
    return prefixes[base->config.names];
}

// `name` of a layer, which has it or not.
static void check_layer_norm(const td_safetensors *files, const td_base *base, int64_t layer,
                             const char *name, int64_t n, const float *vector) {
    char full[128];
    td_tensor view;
    snprintf(full, sizeof full, "%slayers.%d.%s.weight", names_begin(base), (int)layer, name);
    CHECK(td_safetensors_find(files, full, &view) == (vector != NULL));
    if (vector)
        check_norm(files, base, full, n, vector);
}

static void check_layer(const td_safetensors *files, const td_base *base, int64_t layer) {
    const td_base_layer *weights = &base->layers[layer];
    const td_model_config *config = &base->config;
    char prefix[64], name[128];
    snprintf(prefix, sizeof prefix, "%slayers.%d", names_begin(base), (int)layer);
    for (int i = 0; i < TD_PROJ_COUNT; i++) {
        const char *projection = td_projection_name((td_projection)i);
        if (!td_projection_exists(config, (td_projection)i))
            continue;
        snprintf(name, sizeof name, "%s.%s.weight", prefix, projection);
        CHECK_INT(weights->linear[i].rows, td_projection_out(config, (td_projection)i));
        CHECK_INT(weights->linear[i].cols, td_projection_in(config, (td_projection)i));
        check_matrix(files, name, &weights->linear[i]);
        snprintf(name, sizeof name, "%s.%s.bias", prefix, projection);
        check_vector(files, name, weights->linear[i].rows, weights->bias[i]);
    }
    int has_four = config->family->sandwich_norms;
    const float *after = has_four ? weights->attention_out_norm : weights->mlp_norm;
    check_layer_norm(files, base, layer, "input_layernorm", config->hidden, weights->input_norm);
    check_layer_norm(files, base, layer, "post_attention_layernorm", config->hidden, after);
    check_layer_norm(files, base, layer, "pre_feedforward_layernorm", config->hidden,
                     has_four ? weights->mlp_norm : NULL);
    check_layer_norm(files, base, layer, "post_feedforward_layernorm", config->hidden,
                     weights->mlp_out_norm);
    check_layer_norm(files, base, layer, "self_attn.q_norm", config->head_dim, weights->q_norm);
    check_layer_norm(files, base, layer, "self_attn.k_norm", config->head_dim, weights->k_norm);
}

static void check_planned(const td_base *base, const td_base_options *options, td_dtype dtype) {
    td_base_sizes sizes;
    td_base_plan(&base->config, options, dtype, &sizes);
    CHECK_INT(base->arena.used_bytes, sizes.arena_bytes);
    CHECK_INT(base->arena.capacity_bytes, sizes.arena_bytes);
    CHECK(sizes.slice_bytes > 0);
    CHECK((sizes.absmax_bytes > 0) == (options->quantize && options->double_quantize));
}

static void every_tensor_is_in_its_place(void) {
    for (int i = 0; i < FAMILIES; i++) {
        char folder[512];
        td_safetensors *files;
        td_dtype dtype;
        folder_of(families[i], folder);
        td_base *base = load(folder, &plain);
        REQUIRE(td_safetensors_open(folder, &files) == TD_OK);
        REQUIRE(td_base_peek_dtype(folder, &dtype) == TD_OK);
        check_planned(base, &plain, dtype);
        char embedding[64], norm[64];
        snprintf(embedding, sizeof embedding, "%sembed_tokens.weight", names_begin(base));
        snprintf(norm, sizeof norm, "%snorm.weight", names_begin(base));
        check_matrix(files, embedding, &base->embedding);
        check_norm(files, base, norm, base->config.hidden, base->final_norm);
        if (base->config.tie_word_embeddings)
            CHECK(base->head.data == base->embedding.data);
        else
            check_matrix(files, "lm_head.weight", &base->head);
        for (int64_t layer = 0; layer < base->config.n_layers; layer++)
            check_layer(files, base, layer);
        td_safetensors_close(files);
        td_base_destroy(base);
    }
}

static void sixteen_bit_weights_stay_sixteen_bit(void) {
    char folder[512];
    td_dtype dtype;
    folder_of("tinyllama", folder);
    REQUIRE(td_base_peek_dtype(folder, &dtype) == TD_OK);
    CHECK_INT(dtype, TD_BF16);
    td_base *base = load(folder, &plain);
    CHECK_INT(base->embedding.format, TD_MATRIX_BF16);
    CHECK_INT(base->layers[1].linear[TD_PROJ_UP].format, TD_MATRIX_BF16);
    td_base_destroy(base);
    base = load(folder, &nf4_single);
    CHECK_INT(base->embedding.format, TD_MATRIX_F32);
    CHECK_INT(base->head.format, TD_MATRIX_F32);
    td_base_destroy(base);
    folder_of("llama", folder);
    base = load(folder, &plain);
    CHECK_INT(base->embedding.format, TD_MATRIX_F32);
    td_base_destroy(base);
}

static void check_single(const td_matrix *matrix, const float *weights) {
    int64_t n = matrix->rows * matrix->cols, n_blocks = td_nf4_block_count(n);
    uint8_t *codes = calloc((size_t)(n + 1) / 2, 1);
    float *absmax = calloc((size_t)n_blocks, sizeof *absmax);
    td_nf4_quantize_args args = {
        .n_elements = n, .weight = weights, .codes = codes, .absmax = absmax};
    REQUIRE(td_ops_cpu.nf4_quantize(&context, &args) == TD_OK);
    CHECK_INT(matrix->format, TD_MATRIX_NF4);
    CHECK(memcmp(matrix->data, codes, (size_t)(n + 1) / 2) == 0);
    CHECK(memcmp(matrix->absmax, absmax, (size_t)n_blocks * sizeof *absmax) == 0);
    free(codes);
    free(absmax);
}

// Quantizing the whole tensor at once gives the same codes and scales.
static void check_double(const td_matrix *matrix, const float *weights) {
    int64_t n = matrix->rows * matrix->cols, n_blocks = td_nf4_block_count(n);
    size_t n_nested = (size_t)td_nf4_nested_count(n);
    uint8_t *codes = calloc((size_t)(n + 1) / 2, 1), *scales = calloc((size_t)n_blocks, 1);
    float *absmax = calloc((size_t)n_blocks, sizeof *absmax);
    float *nested = calloc(n_nested, sizeof *nested), offset;
    td_nf4_quantize_args first = {
        .n_elements = n, .weight = weights, .codes = codes, .absmax = absmax};
    td_absmax_quantize_args second = {.n_blocks = n_blocks,
                                      .absmax = absmax,
                                      .codes = scales,
                                      .nested_absmax = nested,
                                      .offset = &offset};
    REQUIRE(td_ops_cpu.nf4_quantize(&context, &first) == TD_OK);
    REQUIRE(td_ops_cpu.absmax_quantize(&context, &second) == TD_OK);
    CHECK_INT(matrix->format, TD_MATRIX_NF4);
    CHECK(matrix->absmax == NULL);
    CHECK(memcmp(matrix->data, codes, (size_t)(n + 1) / 2) == 0);
    CHECK(memcmp(matrix->absmax_codes, scales, (size_t)n_blocks) == 0);
    CHECK(memcmp(matrix->nested_absmax, nested, n_nested * sizeof *nested) == 0);
    CHECK(matrix->nested_offset == offset);
    CHECK(matrix->nested_map[0] > -1.0f && matrix->nested_map[0] < -0.99f);
    CHECK(matrix->nested_map[255] == 1.0f);
    free(codes);
    free(scales);
    free(absmax);
    free(nested);
}

static void linear_layers_are_quantized(void) {
    for (int i = 0; i < FAMILIES; i++) {
        char folder[512];
        td_dtype dtype;
        folder_of(families[i], folder);
        REQUIRE(td_base_peek_dtype(folder, &dtype) == TD_OK);
        td_base *exact = load(folder, &plain), *twice = load(folder, &nf4);
        td_base *once = load(folder, &nf4_single);
        check_planned(twice, &nf4, dtype);
        check_planned(once, &nf4_single, dtype);
        CHECK(twice->embedding.format != TD_MATRIX_NF4 && twice->head.format != TD_MATRIX_NF4);
        for (int64_t layer = 0; layer < exact->config.n_layers; layer++)
            for (int j = 0; j < TD_PROJ_COUNT; j++) {
                if (!td_projection_exists(&exact->config, (td_projection)j))
                    continue;
                float *weights = matrix_values(&exact->layers[layer].linear[j]);
                check_single(&once->layers[layer].linear[j], weights);
                check_double(&twice->layers[layer].linear[j], weights);
                free(weights);
            }
        td_base_destroy(exact);
        td_base_destroy(twice);
        td_base_destroy(once);
    }
}

// A matrix that does not fit in one slice, with an odd number of elements at the end of none.
static void large_matrices_are_quantized_in_slices(void) {
    static const td_base_options wide = {.stored = TD_F32, .compute = TD_F32};
    td_model_config config = {.family = &td_families[0],
                              .vocabulary = 3,
                              .hidden = 2050,
                              .intermediate = 2111,
                              .n_layers = 1,
                              .n_heads = 1,
                              .n_kv_heads = 1,
                              .head_dim = 2};
    td_base *exact, *once, *twice;
    td_base_sizes sizes;
    REQUIRE(td_base_create_random(&config, &wide, 3, &context, &exact) == TD_OK);
    REQUIRE(td_base_create_random(&config, &nf4_single, 3, &context, &once) == TD_OK);
    REQUIRE(td_base_create_random(&config, &nf4, 3, &context, &twice) == TD_OK);
    td_base_plan(&config, &nf4_single, TD_F32, &sizes);
    CHECK(sizes.slice_bytes + sizes.absmax_bytes <
          (size_t)(config.hidden * config.intermediate) * sizeof(float));
    check_single(&once->layers[0].linear[TD_PROJ_GATE], exact->layers[0].linear[TD_PROJ_GATE].data);
    check_double(&twice->layers[0].linear[TD_PROJ_DOWN],
                 exact->layers[0].linear[TD_PROJ_DOWN].data);
    td_base_destroy(exact);
    td_base_destroy(once);
    td_base_destroy(twice);
}

static int same_bytes(const td_base *a, const td_base *b) {
    return a->arena.used_bytes == b->arena.used_bytes &&
           memcmp(a->arena.base, b->arena.base, a->arena.used_bytes) == 0;
}

static int same_offsets(const td_base *a, const td_base *b) {
    for (int64_t layer = 0; layer < a->config.n_layers; layer++)
        for (int j = 0; j < TD_PROJ_COUNT; j++)
            if (a->layers[layer].linear[j].nested_offset !=
                b->layers[layer].linear[j].nested_offset)
                return 0;
    return 1;
}

// A device whose memory the host must copy to.
static void separate_memory_gives_the_same_bytes(void) {
    td_device separate = *td_device_cpu();
    td_op_context other = context;
    char folder[512];
    separate.unified = 0;
    other.device = &separate;
    folder_of("qwen2", folder);
    td_base *expected = load(folder, &nf4), *base;
    REQUIRE(td_base_load(folder, &nf4, NULL, &other, &base) == TD_OK);
    CHECK(same_bytes(expected, base));
    CHECK(same_offsets(expected, base));
    td_base_destroy(expected);
    td_base_destroy(base);
}

static void random_weights_are_normal_and_keyed_by_the_seed(void) {
    char folder[512];
    td_model_config config;
    td_base *a, *b, *c;
    static const td_base_options f32 = {.stored = TD_F32, .compute = TD_F32};
    folder_of("qwen2", folder);
    REQUIRE(td_model_config_read(folder, &config) == TD_OK);
    REQUIRE(td_base_create_random(&config, &f32, 1, &context, &a) == TD_OK);
    REQUIRE(td_base_create_random(&config, &f32, 1, &context, &b) == TD_OK);
    REQUIRE(td_base_create_random(&config, &f32, 2, &context, &c) == TD_OK);
    CHECK(same_bytes(a, b));
    CHECK(!same_bytes(a, c));
    CHECK(td_hash_equal(a->fingerprint, b->fingerprint));
    CHECK(!td_hash_equal(a->fingerprint, c->fingerprint));
    const float *values = a->embedding.data;
    double n = (double)(config.vocabulary * config.hidden), sum = 0, squares = 0;
    for (int64_t i = 0; i < config.vocabulary * config.hidden; i++) {
        sum += values[i];
        squares += (double)values[i] * values[i];
    }
    CHECK_NEAR(sum / n, 0, 0.001);
    CHECK_NEAR(sqrt(squares / n), 0.02, 0.001);
    CHECK(a->final_norm[0] == 1.0f && a->layers[1].input_norm[47] == 1.0f);
    CHECK(a->layers[0].bias[TD_PROJ_Q][0] != 1.0f);
    td_base_destroy(a);
    td_base_destroy(b);
    td_base_destroy(c);
}

enum { RANKS = 3 };

// A broadcast and an agreement among threads; the reader is rank 0.
typedef struct shared_node {
    pthread_barrier_t barrier;
    void *buffer;
    size_t bytes;
    td_status statuses[RANKS];
} shared_node;

typedef struct node_member {
    shared_node *node;
    int rank;
    const char *folder;
    const td_base_options *options;
    const td_op_context *context;
    td_status status;
    td_base *base;
    char message[256];
} node_member;

static td_status broadcast(void *self, void *buffer, size_t bytes, const char *what) {
    node_member *member = self;
    shared_node *node = member->node;
    (void)what;
    if (member->rank == 0) {
        node->buffer = buffer;
        node->bytes = bytes;
    }
    pthread_barrier_wait(&node->barrier);
    if (member->rank != 0 && bytes == node->bytes)
        memcpy(buffer, node->buffer, bytes);
    td_status status = bytes == node->bytes ? TD_OK : TD_ERR_INTERNAL;
    pthread_barrier_wait(&node->barrier);
    return status;
}

static td_status agree(void *self, td_status mine, const char *what) {
    node_member *member = self;
    (void)what;
    member->node->statuses[member->rank] = mine;
    pthread_barrier_wait(&member->node->barrier);
    td_status status = TD_OK;
    for (int i = 0; i < RANKS && status == TD_OK; i++)
        status = member->node->statuses[i];
    pthread_barrier_wait(&member->node->barrier);
    return status;
}

static void *run_member(void *argument) {
    node_member *member = argument;
    td_base_share share = {
        .is_reader = member->rank == 0, .broadcast = broadcast, .agree = agree, .self = member};
    member->status =
        td_base_load(member->folder, member->options, &share, member->context, &member->base);
    snprintf(member->message, sizeof member->message, "%s", td_error_message());
    td_error_clear();
    return NULL;
}

// Only rank 0 is given the folder. A rank that is left waiting is ended by the test's time limit.
static void run_node(const char *folder, const td_base_options *options,
                     const td_op_context *contexts[RANKS], node_member members[RANKS]) {
    shared_node node = {0};
    pthread_t threads[RANKS];
    REQUIRE(pthread_barrier_init(&node.barrier, NULL, RANKS) == 0);
    for (int i = 0; i < RANKS; i++) {
        members[i] = (node_member){.node = &node,
                                   .rank = i,
                                   .folder = i == 0 ? folder : "/nowhere",
                                   .options = options,
                                   .context = contexts[i]};
        REQUIRE(pthread_create(&threads[i], NULL, run_member, &members[i]) == 0);
    }
    for (int i = 0; i < RANKS; i++)
        pthread_join(threads[i], NULL);
    pthread_barrier_destroy(&node.barrier);
}

static void others_receive_what_one_rank_reads(void) {
    static const td_base_options *const options[] = {&plain, &nf4, &nf4_single};
    td_device separate = *td_device_cpu();
    td_op_context other = context;
    separate.unified = 0;
    other.device = &separate;
    const td_op_context *contexts[RANKS] = {&context, &context, &other};
    for (int i = 0; i < FAMILIES; i++)
        for (int j = 0; j < 3; j++) {
            char folder[512];
            node_member members[RANKS];
            folder_of(families[i], folder);
            td_base *expected = load(folder, options[j]);
            run_node(folder, options[j], contexts, members);
            for (int k = 0; k < RANKS; k++) {
                if (!CHECK(members[k].status == TD_OK))
                    continue;
                CHECK(same_bytes(expected, members[k].base));
                CHECK(same_offsets(expected, members[k].base));
                CHECK(td_hash_equal(expected->fingerprint, members[k].base->fingerprint));
                CHECK_INT(members[k].base->config.vocabulary, expected->config.vocabulary);
                CHECK_STRING(members[k].base->config.family->name, expected->config.family->name);
                td_base_destroy(members[k].base);
            }
            td_base_destroy(expected);
        }
}

static void a_folder_that_one_rank_cannot_read_fails_on_all(void) {
    const td_op_context *contexts[RANKS] = {&context, &context, &context};
    node_member members[RANKS];
    run_node("/not/there", &nf4, contexts, members);
    for (int i = 0; i < RANKS; i++) {
        CHECK_INT(members[i].status, TD_ERR_DATA);
        CHECK(members[i].base == NULL);
        CHECK((strstr(members[i].message, "/not/there") != NULL) == (i == 0));
    }
}

static int calls_until_failure;

static td_status failing_quantize(const td_op_context *self, const td_nf4_quantize_args *args) {
    if (--calls_until_failure == 0)
        return td_fail(TD_ERR_MEMORY, "no memory at this call");
    return td_ops_cpu.nf4_quantize(self, args);
}

static void a_failure_in_the_middle_fails_on_all(void) {
    td_ops ops = td_ops_cpu;
    td_op_context failing = context;
    char folder[512];
    node_member members[RANKS];
    ops.nf4_quantize = failing_quantize;
    failing.ops = &ops;
    const td_op_context *contexts[RANKS] = {&failing, &context, &context};
    folder_of("qwen3", folder);
    calls_until_failure = 9;
    run_node(folder, &nf4, contexts, members);
    for (int i = 0; i < RANKS; i++) {
        CHECK_INT(members[i].status, TD_ERR_MEMORY);
        CHECK(members[i].base == NULL);
    }
    CHECK_STRING(members[0].message, "no memory at this call");
}

// A copy of the llama fixture, with a change to one of its files.
static const char *copy_model(void) {
    static char folder[512];
    char path[600];
    snprintf(folder, sizeof folder, "%s", scratch("model"));
    REQUIRE(td_folder_make(folder) == TD_OK);
    snprintf(path, sizeof path, "%s/families/llama/config.json", TEST_FIXTURES);
    copy_file(path, scratch("model/config.json"));
    snprintf(path, sizeof path, "%s/families/llama/model.safetensors", TEST_FIXTURES);
    copy_file(path, scratch("model/model.safetensors"));
    return folder;
}

static td_hash fingerprint_of(const char *folder) {
    td_base *base = load(folder, &nf4);
    td_hash hash = base->fingerprint;
    td_base_destroy(base);
    return hash;
}

static void replace_in_config(const char *from, const char *to) {
    char *text;
    size_t bytes;
    const char *path = scratch("model/config.json");
    REQUIRE(td_file_read(path, 1 << 20, &text, &bytes) == TD_OK);
    char *at = strstr(text, from);
    REQUIRE(at != NULL);
    FILE *file = fopen(path, "wb");
    REQUIRE(file != NULL);
    fprintf(file, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    fclose(file);
    free(text);
}

static void flip_last_byte(void) {
    char *bytes;
    size_t count;
    const char *path = scratch("model/model.safetensors");
    REQUIRE(td_file_read(path, 64 << 20, &bytes, &count) == TD_OK);
    bytes[count - 1] ^= 1;
    REQUIRE(td_file_write_atomic(path, bytes, count) == TD_OK);
    free(bytes);
}

static void fingerprint_follows_weights_and_config(void) {
    char fixture[512];
    folder_of("llama", fixture);
    const char *folder = copy_model();
    td_hash hash = fingerprint_of(fixture);
    CHECK(td_hash_equal(hash, fingerprint_of(folder)));
    replace_in_config("\"initializer_range\": 0.02", "\"initializer_range\": 0.5");
    CHECK(td_hash_equal(hash, fingerprint_of(folder)));
    replace_in_config("\"factor\": 8.0", "\"factor\": 4.0");
    CHECK(!td_hash_equal(hash, fingerprint_of(folder)));
    copy_model();
    flip_last_byte();
    CHECK(!td_hash_equal(hash, fingerprint_of(folder)));
}

static void check_refused(const char *folder, const char *message) {
    td_base *base = NULL;
    CHECK_INT(td_base_load(folder, &nf4, NULL, &context, &base), TD_ERR_DATA);
    CHECK(base == NULL);
    CHECK(strstr(td_error_message(), folder) != NULL);
    CHECK_MESSAGE(message);
}

typedef int (*tensor_filter)(td_named_tensor *tensor);

static void rewrite_tensors(tensor_filter keep) {
    char path[600];
    td_safetensors *files;
    snprintf(path, sizeof path, "%s/families/llama/model.safetensors", TEST_FIXTURES);
    REQUIRE(td_safetensors_open(path, &files) == TD_OK);
    int64_t count = td_safetensors_count(files), kept = 0;
    td_named_tensor *tensors = calloc((size_t)count, sizeof *tensors);
    for (int64_t i = 0; i < count; i++) {
        tensors[kept] =
            (td_named_tensor){td_safetensors_name(files, i), td_safetensors_view(files, i)};
        kept += keep(&tensors[kept]);
    }
    REQUIRE(td_safetensors_write(scratch("model/model.safetensors"), tensors, kept) == TD_OK);
    free(tensors);
    td_safetensors_close(files);
}

static int without_a_norm(td_named_tensor *tensor) {
    return strcmp(tensor->name, "model.layers.1.post_attention_layernorm.weight") != 0;
}

static int with_a_turned_matrix(td_named_tensor *tensor) {
    if (strcmp(tensor->name, "model.layers.0.mlp.up_proj.weight") == 0) {
        int64_t rows = tensor->tensor.shape[0];
        tensor->tensor.shape[0] = tensor->tensor.shape[1];
        tensor->tensor.shape[1] = rows;
    }
    return 1;
}

static int with_an_integer_matrix(td_named_tensor *tensor) {
    if (strcmp(tensor->name, "lm_head.weight") == 0)
        tensor->tensor.dtype = TD_I32;
    return 1;
}

static int without_an_embedding(td_named_tensor *tensor) {
    return strcmp(tensor->name, "model.embed_tokens.weight") != 0;
}

static void folders_that_do_not_fit_their_config_are_refused(void) {
    const char *folder = copy_model();
    rewrite_tensors(without_a_norm);
    check_refused(folder, "model.layers.1.post_attention_layernorm.weight\" is missing");
    rewrite_tensors(with_a_turned_matrix);
    check_refused(folder, "model.layers.0.mlp.up_proj.weight\" must have the shape [112, 64], "
                          "found [64, 112]");
    rewrite_tensors(with_an_integer_matrix);
    check_refused(folder, "found I32");
    rewrite_tensors(without_an_embedding);
    check_refused(folder, "embed_tokens");
    copy_model();
    replace_in_config("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3");
    check_refused(folder, "model.layers.2.");
    copy_model();
    replace_in_config("\"vocab_size\": 160", "\"vocab_size\": 161");
    check_refused(folder, "[161, 64]");
    copy_model();
    REQUIRE(truncate(scratch("model/model.safetensors"), 5000) == 0);
    check_refused(folder, "truncated");
    unlink(scratch("model/model.safetensors"));
    check_refused(folder, "model.safetensors");
}

// Some folders store the head though it is tied.
static void a_stored_head_is_ignored_when_tied(void) {
    const char *folder = copy_model();
    replace_in_config("\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true");
    td_base *base = load(folder, &nf4);
    CHECK(base->head.data == base->embedding.data);
    CHECK_INT(base->head.rows, 160);
    td_base_destroy(base);
}

// Rounded into memory that lives as long as the test.
static int with_one_wide_matrix(td_named_tensor *tensor) {
    static uint16_t pool[200000];
    static size_t used;
    if (tensor->tensor.n_dims != 2 || strcmp(tensor->name, "lm_head.weight") == 0)
        return 1;
    size_t n = (size_t)(tensor->tensor.shape[0] * tensor->tensor.shape[1]);
    const float *values = tensor->tensor.data;
    REQUIRE(used + n <= sizeof pool / sizeof pool[0]);
    tensor->tensor.data = pool + used;
    tensor->tensor.dtype = TD_BF16;
    for (size_t i = 0; i < n; i++)
        pool[used++] = td_f32_to_bf16(values[i]);
    return 1;
}

// BF16 beside F32 is kept as F32: nothing is rounded that was not.
static void mixed_dtypes_are_kept_without_loss(void) {
    td_dtype dtype;
    const char *folder = copy_model();
    rewrite_tensors(with_one_wide_matrix);
    REQUIRE(td_base_peek_dtype(folder, &dtype) == TD_OK);
    CHECK_INT(dtype, TD_F32);
    td_base *base = load(folder, &plain);
    td_safetensors *files;
    REQUIRE(td_safetensors_open(folder, &files) == TD_OK);
    check_matrix(files, "lm_head.weight", &base->head);
    check_matrix(files, "model.embed_tokens.weight", &base->embedding);
    td_safetensors_close(files);
    td_base_destroy(base);
}

int main(void) {
    prepare();
    TEST(every_tensor_is_in_its_place);
    TEST(sixteen_bit_weights_stay_sixteen_bit);
    TEST(linear_layers_are_quantized);
    TEST(large_matrices_are_quantized_in_slices);
    TEST(separate_memory_gives_the_same_bytes);
    TEST(random_weights_are_normal_and_keyed_by_the_seed);
    TEST(others_receive_what_one_rank_reads);
    TEST(a_folder_that_one_rank_cannot_read_fails_on_all);
    TEST(a_failure_in_the_middle_fails_on_all);
    TEST(fingerprint_follows_weights_and_config);
    TEST(folders_that_do_not_fit_their_config_are_refused);
    TEST(a_stored_head_is_ignored_when_tied);
    TEST(mixed_dtypes_are_kept_without_loss);
    context.device->table->stream_destroy(stream);
    return test_report();
}
