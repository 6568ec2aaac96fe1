#include "model/base.h"

#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "model/base_image.h"
#include "model/base_internal.h"
#include "model/safetensors.h"
#include "runtime/core/log.h"

enum { DESCRIPTION_BYTES = 32 * 1024 };
static const size_t huge_page_bytes = (size_t)2 << 20;

// What every rank must know before it can make room.
typedef struct base_prologue {
    td_model_config config; // the family as a number beside it: pointers differ between processes
    int family;
    td_dtype matrix_dtype;
} base_prologue;

// The reader's side: open files and the running fingerprint.
typedef struct base_reader {
    td_safetensors *files;
    td_hasher *hasher;
    const td_model_config *config;
    int has_nested_map;
    float nested_map[256]; // of a folder that holds nested NF4
} base_reader;

// One map of nested codes serves the whole base.
static td_status check_nested_map(base_reader *reader, const td_base_item *item,
                                  const td_nf4_stored *stored) {
    if (!stored->is_nested)
        return TD_OK;
    if (!reader->has_nested_map)
        memcpy(reader->nested_map, stored->nested_map, sizeof reader->nested_map);
    reader->has_nested_map = 1;
    if (memcmp(reader->nested_map, stored->nested_map, sizeof reader->nested_map) != 0)
        return td_fail(TD_ERR_DATA,
                       "tensor \"%s.nested_quant_map\" differs from that of other layers",
                       item->name);
    return TD_OK;
}

static td_status find_nf4(base_reader *reader, const td_base_item *item, td_nf4_stored *out) {
    TD_TRY(td_nf4_stored_find(reader->files, item->name, item->shape[0], item->shape[1],
                              reader->config->stored == TD_STORED_NF4_NESTED, out));
    return check_nested_map(reader, item, out);
}

static td_status require_item(void *self, const td_base_item *item) {
    base_reader *reader = self;
    td_tensor view;
    td_nf4_stored stored;
    if (td_base_item_is_stored_nf4(reader->config, item))
        return find_nf4(reader, item, &stored);
    return td_safetensors_require(reader->files, item->name, item->n_dims, item->shape, &view);
}

static int is_float(td_dtype dtype) {
    return dtype == TD_F32 || dtype == TD_F16 || dtype == TD_BF16;
}

// The dtype that all matrices share, NF4 codes apart; F32 when they differ, which holds any of them
// without loss.
static td_dtype shared_dtype(const td_safetensors *files, td_dtype dtype) {
    for (int64_t i = 0; i < td_safetensors_count(files); i++) {
        td_tensor view = td_safetensors_view(files, i);
        if (view.n_dims == 2 && is_float(view.dtype) && view.dtype != dtype)
            return TD_F32;
    }
    return dtype;
}

static int find_embedding(const td_safetensors *files, td_tensor_names names, td_tensor *out) {
    char name[TD_BASE_NAME_CHARS];
    td_base_embedding_name(names, name);
    return td_safetensors_find(files, name, out);
}

void td_base_find_names(const td_safetensors *files, td_model_config *config) {
    td_tensor embedding;
    if (td_model_is_multimodal(config) && find_embedding(files, TD_NAMES_INNER, &embedding))
        config->names = TD_NAMES_INNER;
}

static td_status peek(const char *folder, const td_safetensors *files, td_dtype *out) {
    td_tensor embedding;
    for (int names = 0; names < TD_NAMES_COUNT; names++)
        if (find_embedding(files, (td_tensor_names)names, &embedding)) {
            *out = shared_dtype(files, embedding.dtype);
            return TD_OK;
        }
    return td_fail(TD_ERR_DATA, "%s: tensor \"model.embed_tokens.weight\" is missing", folder);
}

td_status td_base_peek_dtype(const char *folder, td_dtype *out) {
    td_safetensors *files;
    TD_TRY(td_safetensors_open(folder, &files));
    td_status status = peek(folder, files, out);
    td_safetensors_close(files);
    return status;
}

static td_status begin_fingerprint(base_reader *reader) {
    char *text = malloc(DESCRIPTION_BYTES);
    if (!text)
        return td_fail(TD_ERR_MEMORY, "no memory for the fingerprint of the base model");
    td_status status = td_hasher_create(&reader->hasher);
    if (status == TD_OK) {
        td_base_describe(reader->config, text, DESCRIPTION_BYTES);
        td_hasher_add_string(reader->hasher, text);
    }
    free(text);
    return status;
}

// Everything that can be wrong with the folder is found here, before memory is taken and anybody
// waits.
static td_status open_reader(const char *folder, base_reader *reader, base_prologue *out) {
    TD_TRY(td_model_config_read(folder, &out->config));
    out->family = (int)(out->config.family - td_families);
    reader->config = &out->config;
    TD_TRY(td_safetensors_open(folder, &reader->files));
    td_base_find_names(reader->files, &out->config);
    TD_TRY(td_base_visit(&out->config, require_item, reader));
    TD_TRY(peek(folder, reader->files, &out->matrix_dtype));
    return begin_fingerprint(reader);
}

static void close_reader(base_reader *reader) {
    td_safetensors_close(reader->files);
    td_hasher_destroy(reader->hasher);
}

static td_status find_tensor(void *self, const td_base_item *item, td_tensor *out) {
    base_reader *reader = self;
    return td_safetensors_require(reader->files, item->name, item->n_dims, item->shape, out);
}

static void fetch_bytes(void *self, const void *data, size_t bytes) {
    (void)self;
    td_safetensors_fetch(data, bytes);
}

static void pass_hashes(void *self, const td_base_item *item, const td_tensor *view,
                        const td_hash *hashes, int64_t count) {
    td_hasher *hasher = ((base_reader *)self)->hasher;
    td_hasher_add_string(hasher, item->name);
    td_hasher_add_string(hasher, td_dtype_name(view->dtype));
    td_hasher_add(hasher, hashes, (size_t)count * sizeof *hashes);
}

static td_status find_stored(void *self, const td_base_item *item, td_nf4_stored *out) {
    return find_nf4(self, item, out);
}

static void forget_piece(void *self, const td_tensor *piece) {
    td_safetensors_forget(((base_reader *)self)->files, piece);
}

// Whole huge pages where the system has them.
static td_status map_arena(td_base *base, const td_device *device, size_t bytes) {
    size_t mapped = bytes + huge_page_bytes;
    unsigned char *memory = mapped < bytes ? MAP_FAILED
                                           : mmap(NULL, mapped, PROT_READ | PROT_WRITE,
                                                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return td_fail(TD_ERR_MEMORY, "cannot allocate %.1f MiB of memory for base model",
                       (double)bytes / (1 << 20));
    base->mapped = memory;
    base->mapped_bytes = mapped;
    size_t offset = huge_page_bytes - (uintptr_t)memory % huge_page_bytes;
    (void)madvise(memory + offset, bytes / huge_page_bytes * huge_page_bytes, MADV_HUGEPAGE);
    td_base_use_memory(base, device, memory + offset, bytes);
    return TD_OK;
}

void td_base_use_memory(td_base *base, const td_device *device, void *memory, size_t bytes) {
    base->arena =
        (td_arena){.device = device, .base = memory, .capacity_bytes = bytes, .name = "base model"};
}

static td_status take_memory(td_base *base, const td_device *device, size_t bytes) {
    return device->unified ? map_arena(base, device, bytes)
                           : td_arena_init(&base->arena, device, bytes, "base model");
}

static td_status take_host_memory(td_base *base, const td_device *device, size_t bytes) {
    void *memory = NULL;
    TD_TRY(device->table->alloc_pinned(device, bytes, "embeddings", &memory));
    base->host_arena =
        (td_arena){.device = device, .base = memory, .capacity_bytes = bytes, .name = "embeddings"};
    return TD_OK;
}

td_status td_base_create(const td_model_config *config, const td_base_options *options,
                         td_dtype matrix_dtype, const td_op_context *context, td_base **out) {
    td_base_sizes sizes;
    td_base *base = calloc(1, sizeof *base);
    if (!base)
        return td_fail(TD_ERR_MEMORY, "no memory for the base model");
    base->config = *config;
    base->layers = calloc((size_t)config->n_layers, sizeof *base->layers);
    td_status status = TD_OK;
    if (!base->layers)
        status = td_fail(TD_ERR_MEMORY, "no memory for the base model");
    td_base_plan(config, options, matrix_dtype, &sizes);
    if (status == TD_OK)
        status = take_memory(base, context->device, sizes.arena_bytes);
    if (status == TD_OK && sizes.host_bytes > 0)
        status = take_host_memory(base, context->device, sizes.host_bytes);
    if (status != TD_OK) {
        td_base_destroy(base);
        return status;
    }
    td_base_lay_out(base, options, matrix_dtype);
    *out = base;
    return TD_OK;
}

void td_base_destroy(td_base *base) {
    if (!base)
        return;
    if (base->mapped)
        munmap(base->mapped, base->mapped_bytes);
    else
        td_arena_fini(&base->arena);
    if (base->host_arena.base)
        base->host_arena.device->table->free_pinned(base->host_arena.device, base->host_arena.base);
    free(base->layers);
    free(base);
}

static td_status share_prologue(const td_base_share *share, base_prologue *prologue) {
    if (!td_base_is_shared(share))
        return TD_OK;
    TD_TRY(share->broadcast(share->self, prologue, sizeof *prologue, "base config"));
    prologue->config.family = &td_families[prologue->family];
    return TD_OK;
}

// The fingerprint is known when everything has been read.
static td_status share_fingerprint(td_base *base, const td_base_share *share,
                                   const base_reader *reader) {
    if (td_base_is_reader(share))
        base->fingerprint = td_hasher_value(reader->hasher);
    if (!td_base_is_shared(share))
        return TD_OK;
    return share->broadcast(share->self, &base->fingerprint, sizeof base->fingerprint,
                            "base fingerprint");
}

// What the reader tells the others of its node.
typedef struct image_offer {
    td_base_image image;
    int is_there;
} image_offer;

typedef struct base_loading {
    const char *folder;
    const td_base_options *options;
    const td_base_share *share;
    const td_op_context *context;
    base_reader *reader;
    base_prologue prologue;
    td_base_options effective;
    image_offer offer;
} base_loading;

static td_status find_image(const base_loading *loading, td_base_image *out) {
    return td_base_image_find(loading->options->image_folder, loading->folder,
                              loading->reader->files, &loading->prologue.config,
                              &loading->effective, loading->prologue.matrix_dtype, out);
}

// An image is the base in one piece.
static td_status open_image(base_loading *loading, int verify, int says_why, td_base **out) {
    if (loading->effective.host_embedding)
        return TD_OK;
    return td_base_image_open(&loading->offer.image, &loading->prologue.config, &loading->effective,
                              loading->prologue.matrix_dtype, loading->context, verify, says_why,
                              out);
}

int td_base_will_map(const char *folder, const td_base_options *options,
                     const td_op_context *context) {
    base_reader reader = {0};
    base_loading loading = {
        .folder = folder, .options = options, .context = context, .reader = &reader};
    td_base *base = NULL;
    if (!options->image_folder || !context->device->unified)
        return 0;
    td_status status = open_reader(folder, &reader, &loading.prologue);
    loading.effective = td_base_options_for(&loading.prologue.config, options);
    if (status == TD_OK && loading.effective.quantize)
        status = find_image(&loading, &loading.offer.image);
    if (status == TD_OK && loading.effective.quantize)
        status = open_image(&loading, 0, 0, &base);
    int will_map = status == TD_OK && base;
    td_base_destroy(base);
    close_reader(&reader);
    td_error_clear();
    return will_map;
}

// The reader compares every checksum. The others then map the same bytes, or copy and compare them
// too. One rank that cannot is enough for all to read the model's own files.
static td_status load_image(base_loading *loading, td_base **out) {
    const td_base_share *share = loading->share;
    image_offer *offer = &loading->offer;
    td_status status = TD_OK;
    if (td_base_is_reader(share)) {
        status = find_image(loading, &offer->image);
        if (status == TD_OK)
            status = open_image(loading, 1, 1, out);
        offer->is_there = *out != NULL;
    }
    TD_TRY(td_base_agree(share, status, "looking for an image of the base"));
    if (!td_base_is_shared(share))
        return TD_OK;
    TD_TRY(share->broadcast(share->self, offer, sizeof *offer, "base image"));
    if (!share->is_reader && offer->is_there)
        status = open_image(loading, 0, 0, out);
    TD_TRY(td_base_agree(share, status, "opening an image of the base"));
    if (share->all(share->self, *out != NULL, "image of the base"))
        return TD_OK;
    td_base_destroy(*out);
    *out = NULL;
    return TD_OK;
}

// Only of what was read: files that changed meanwhile have another key now.
static void write_image(const base_loading *loading, td_base *base) {
    td_base_image now;
    double start = omp_get_wtime();
    if (!td_base_is_reader(loading->share) || loading->offer.is_there ||
        loading->effective.host_embedding)
        return;
    td_status status = find_image(loading, &now);
    if (status == TD_OK && !td_hash_equal(now.key, loading->offer.image.key))
        return;
    if (status == TD_OK)
        status = td_base_image_write(&now, base, loading->context);
    if (status != TD_OK)
        td_warn("no image of the base model is kept: %s", td_error_message());
    td_error_clear();
    base->times.image += omp_get_wtime() - start;
}

static td_status load_files(base_loading *loading, td_base **out) {
    base_reader *reader = loading->reader;
    const td_base_share *share = loading->share;
    td_base_source source = {.find = find_tensor,
                             .find_nf4 = find_stored,
                             .fetch = fetch_bytes,
                             .pass = pass_hashes,
                             .forget = forget_piece,
                             .self = reader};
    td_status status = td_base_create(&loading->prologue.config, &loading->effective,
                                      loading->prologue.matrix_dtype, loading->context, out);
    TD_TRY(td_base_agree(share, status, "memory for the base model"));
    TD_TRY(td_base_fill(*out, &loading->effective, &source, share, loading->context));
    return share_fingerprint(*out, share, reader);
}

static td_status load(base_loading *loading, td_base **out) {
    const td_base_share *share = loading->share;
    td_status status = TD_OK;
    if (td_base_is_reader(share))
        status = open_reader(loading->folder, loading->reader, &loading->prologue);
    TD_TRY(td_base_agree(share, status, "opening the base model"));
    TD_TRY(share_prologue(share, &loading->prologue));
    loading->effective = td_base_options_for(&loading->prologue.config, loading->options);
    int wants_image = loading->options->image_folder && loading->effective.quantize;
    if (wants_image)
        TD_TRY(load_image(loading, out));
    if (*out)
        return TD_OK;
    TD_TRY(load_files(loading, out));
    if (wants_image)
        write_image(loading, *out);
    return TD_OK;
}

td_status td_base_load(const char *folder, const td_base_options *options,
                       const td_base_share *share, const td_op_context *context, td_base **out) {
    base_reader reader = {0};
    td_base *base = NULL;
    base_loading loading = {.folder = folder,
                            .options = options,
                            .share = share,
                            .context = context,
                            .reader = &reader};
    td_status status = load(&loading, &base);
    close_reader(&reader);
    if (status != TD_OK) {
        td_base_destroy(base);
        return status;
    }
    *out = base;
    return TD_OK;
}
