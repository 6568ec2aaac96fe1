#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/dynamic_map.h"
#include "model/base_fill_internal.h"
#include "runtime/core/progress.h"

// Bytes of one broadcast, so that a rank that waits for a large tensor sees progress.
static const size_t max_message_bytes = 64u << 20;

int td_base_is_shared(const td_base_share *share) {
    return share && share->broadcast;
}

int td_base_is_reader(const td_base_share *share) {
    return !td_base_is_shared(share) || share->is_reader;
}

td_status td_base_agree(const td_base_share *share, td_status mine, const char *what) {
    return td_base_is_shared(share) ? share->agree(share->self, mine, what) : mine;
}

static const td_device_table *table_of(const td_base_filler *filler) {
    return filler->context.device->table;
}

static size_t max_offsets(const td_base_filler *filler) {
    return (size_t)filler->base->config.n_layers * TD_PROJ_COUNT;
}

td_status td_base_copy_now(const td_base_filler *filler, void *to, const void *from, size_t bytes) {
    TD_TRY(table_of(filler)->copy(filler->context.stream, to, from, bytes));
    return table_of(filler)->stream_synchronize(filler->context.stream);
}

// In place: element i is written at byte 2i, and what is still to be read begins beyond it at byte
// 4i.
static td_status put_bf16(const td_base_filler *filler, uint16_t *to, int64_t count) {
    unsigned char *packed = (unsigned char *)filler->host;
    for (int64_t i = 0; i < count; i++) {
        uint16_t bits = td_f32_to_bf16(filler->host[i]);
        memcpy(packed + 2 * i, &bits, sizeof bits);
    }
    return td_base_copy_now(filler, to, packed, (size_t)count * sizeof *to);
}

static td_status put_nf4(const td_base_filler *filler, const td_matrix *matrix, int64_t begin,
                         int64_t count) {
    float *absmax = matrix->absmax ? td_base_writable(matrix->absmax) : filler->absmax;
    if (filler->slice != filler->host)
        TD_TRY(
            td_base_copy_now(filler, filler->slice, filler->host, (size_t)count * sizeof(float)));
    td_nf4_quantize_args args = {.n_elements = count,
                                 .weight = filler->slice,
                                 .codes = (uint8_t *)td_base_writable(matrix->data) + begin / 2,
                                 .absmax = absmax + begin / TD_NF4_BLOCK};
    TD_TRY(filler->context.ops->nf4_quantize(&filler->context, &args));
    return table_of(filler)->stream_synchronize(filler->context.stream);
}

static td_status put_slice(const td_base_filler *filler, const td_base_item *item, int64_t begin,
                           int64_t count) {
    if (!td_base_item_is_matrix(item)) {
        const float *vector = *td_base_vector(filler->base, item);
        return td_base_copy_now(filler, (float *)td_base_writable(vector) + begin, filler->host,
                                (size_t)count * sizeof(float));
    }
    const td_matrix *matrix = td_base_matrix(filler->base, item);
    switch (matrix->format) {
    case TD_MATRIX_NF4:
        return put_nf4(filler, matrix, begin, count);
    case TD_MATRIX_BF16:
        return put_bf16(filler, (uint16_t *)td_base_writable(matrix->data) + begin, count);
    default:
        return td_base_copy_now(filler, (float *)td_base_writable(matrix->data) + begin,
                                filler->host, (size_t)count * sizeof(float));
    }
}

static int is_nested(const td_base_filler *filler, const td_base_item *item) {
    return item->kind == TD_BASE_LINEAR && filler->options->double_quantize &&
           td_base_matrix(filler->base, item)->format == TD_MATRIX_NF4;
}

// The offset is a view's and not the arena's: a device writes it to pinned memory.
static td_status nest_absmax(td_base_filler *filler, const td_base_item *item) {
    td_matrix *matrix = td_base_matrix(filler->base, item);
    td_absmax_quantize_args args = {.n_blocks = td_nf4_block_count(item->n_elements),
                                    .absmax = filler->absmax,
                                    .codes = td_base_writable(matrix->absmax_codes),
                                    .nested_absmax = td_base_writable(matrix->nested_absmax),
                                    .offset = &filler->offsets[filler->n_offsets++]};
    return filler->context.ops->absmax_quantize(&filler->context, &args);
}

static td_status store_drawn(const td_base_filler *filler, const td_base_item *item) {
    int64_t step = filler->plan.slice_elements;
    for (int64_t begin = 0; begin < item->n_elements; begin += step) {
        int64_t left = item->n_elements - begin, count = left < step ? left : step;
        td_progress_tick();
        TD_TRY(filler->source->read(filler->source->self, item, begin, count, filler->host));
        TD_TRY(put_slice(filler, item, begin, count));
    }
    return TD_OK;
}

static td_status store_all_drawn(td_base_filler *filler, const td_base_group *group) {
    for (int i = 0; i < group->n_items; i++) {
        TD_TRY(store_drawn(filler, &group->items[i]));
        if (is_nested(filler, &group->items[i]))
            TD_TRY(nest_absmax(filler, &group->items[i]));
    }
    return TD_OK;
}

static td_status store(td_base_filler *filler, td_base_group *group) {
    if (!filler->source->find)
        return store_all_drawn(filler, group);
    for (int i = 0; i < group->n_items; i++)
        TD_TRY(td_base_add_streams(filler, group, &group->items[i]));
    return td_base_store_group(filler, group);
}

// Device memory that the host cannot see goes through the staging buffer.
static td_status share_piece(const td_base_filler *filler, unsigned char *piece, size_t bytes,
                             const char *what) {
    const td_base_share *share = filler->share;
    if (filler->context.device->unified)
        return share->broadcast(share->self, piece, bytes, what);
    if (share->is_reader)
        TD_TRY(td_base_copy_now(filler, filler->host, piece, bytes));
    TD_TRY(share->broadcast(share->self, filler->host, bytes, what));
    return share->is_reader ? TD_OK : td_base_copy_now(filler, piece, filler->host, bytes);
}

static td_status share_bytes(const td_base_filler *filler, const void *memory, size_t bytes,
                             const char *what) {
    unsigned char *begin = td_base_writable(memory);
    size_t step = filler->context.device->unified ? max_message_bytes : filler->plan.slice_bytes;
    for (size_t done = 0; done < bytes; done += step) {
        size_t left = bytes - done;
        td_progress_tick();
        TD_TRY(share_piece(filler, begin + done, left < step ? left : step, what));
    }
    return TD_OK;
}

static td_status share_matrix(const td_base_filler *filler, const td_matrix *matrix,
                              int64_t n_elements) {
    static const char what[] = "base weights";
    size_t n = (size_t)n_elements, n_blocks = (size_t)td_nf4_block_count(n_elements);
    if (matrix->format != TD_MATRIX_NF4)
        return share_bytes(filler, matrix->data, n * (matrix->format == TD_MATRIX_BF16 ? 2 : 4),
                           what);
    TD_TRY(share_bytes(filler, matrix->data, (n + 1) / 2, what));
    if (matrix->absmax)
        return share_bytes(filler, matrix->absmax, n_blocks * sizeof(float), what);
    TD_TRY(share_bytes(filler, matrix->absmax_codes, n_blocks, what));
    return share_bytes(filler, matrix->nested_absmax,
                       (size_t)td_nf4_nested_count(n_elements) * sizeof(float), what);
}

static td_status share_item(const td_base_filler *filler, const td_base_item *item) {
    if (td_base_item_is_matrix(item))
        return share_matrix(filler, td_base_matrix(filler->base, item), item->n_elements);
    return share_bytes(filler, *td_base_vector(filler->base, item),
                       (size_t)item->n_elements * sizeof(float), "base weights");
}

// The reader's failure is everybody's before anybody waits for its bytes.
static td_status fill_group(td_base_filler *filler) {
    td_base_group *group = filler->group;
    td_status status = td_base_is_reader(filler->share) ? store(filler, group) : TD_OK;
    double start = omp_get_wtime();
    TD_TRY(td_base_agree(filler->share, status, "reading the base"));
    for (int i = 0; i < group->n_items && td_base_is_shared(filler->share); i++)
        TD_TRY(share_item(filler, &group->items[i]));
    filler->base->times.share += omp_get_wtime() - start;
    group->n_items = group->n_streams = 0;
    group->n_elements = group->n_blocks = group->n_hashes = 0;
    return TD_OK;
}

// Groups follow from the config alone: they are the same on all ranks.
static td_status fill_item(void *self, const td_base_item *item) {
    td_base_filler *filler = self;
    td_base_group *group = filler->group;
    int is_full =
        group->n_items == TD_BASE_GROUP_ITEMS ||
        (group->n_items > 0 && group->n_elements + item->n_elements > TD_BASE_GROUP_ELEMENTS);
    if (is_full)
        TD_TRY(fill_group(filler));
    group->items[group->n_items++] = *item;
    group->n_elements += item->n_elements;
    return TD_OK;
}

static td_status set_offset(void *self, const td_base_item *item) {
    td_base_filler *filler = self;
    if (is_nested(filler, item))
        td_base_matrix(filler->base, item)->nested_offset = filler->offsets[filler->n_offsets++];
    return TD_OK;
}

static td_status settle_offsets(td_base_filler *filler) {
    TD_TRY(table_of(filler)->stream_synchronize(filler->context.stream));
    if (td_base_is_shared(filler->share)) {
        const float *map = filler->base->nested_map;
        if (map)
            TD_TRY(share_bytes(filler, map, 256 * sizeof *map, "base map"));
        TD_TRY(filler->share->broadcast(filler->share->self, filler->offsets,
                                        max_offsets(filler) * sizeof(float), "base offsets"));
    }
    filler->n_offsets = 0;
    return td_base_visit(&filler->base->config, set_offset, filler);
}

static td_status fill(td_base_filler *filler) {
    TD_TRY(td_base_visit(&filler->base->config, fill_item, filler));
    TD_TRY(fill_group(filler));
    return settle_offsets(filler);
}

static td_status put_nested_map(const td_base_filler *filler) {
    const float *on_device = filler->base->nested_map;
    if (!on_device)
        return TD_OK;
    float map[256];
    td_dynamic_map_signed(map);
    return td_base_copy_now(filler, td_base_writable(on_device), map, sizeof map);
}

size_t td_base_workspace_bytes(const td_ops *ops) {
    return ops->workspace_bytes(&(td_workspace_query){0});
}

static td_status allocate_staging(td_base_filler *filler, const char *purpose) {
    const td_device *device = filler->context.device;
    void *memory = NULL;
    TD_TRY(
        device->table->alloc_pinned(device, max_offsets(filler) * sizeof(float), purpose, &memory));
    filler->offsets = memory;
    TD_TRY(device->table->alloc_pinned(device, filler->plan.slice_bytes, purpose, &memory));
    filler->host = filler->slice = memory;
    if (device->unified)
        return TD_OK;
    filler->slice = NULL;
    TD_TRY(device->table->alloc(device, filler->plan.slice_bytes, purpose, &memory));
    filler->slice = memory;
    for (int half = 0; half < 2; half++)
        TD_TRY(device->table->event_create(device, &filler->sent[half]));
    return TD_OK;
}

// Every array may begin a chunk more, and one that is nested has another hash.
static td_status allocate_group(td_base_filler *filler) {
    size_t hashes =
        (size_t)(filler->plan.group_elements / TD_BASE_CHUNK_ELEMENTS) + 2 * TD_BASE_GROUP_STREAMS;
    filler->group = calloc(1, sizeof *filler->group);
    if (filler->group)
        filler->group->hashes = calloc(hashes, sizeof *filler->group->hashes);
    if (!filler->group || !filler->group->hashes)
        return td_fail(TD_ERR_MEMORY, "no memory for the fingerprint of the base model");
    return TD_OK;
}

static td_status allocate(td_base_filler *filler) {
    const td_device *device = filler->context.device;
    static const char purpose[] = "buffers while loading";
    void *memory = NULL;
    TD_TRY(allocate_group(filler));
    TD_TRY(allocate_staging(filler, purpose));
    if (filler->plan.absmax_bytes > 0) {
        TD_TRY(device->table->alloc(device, filler->plan.absmax_bytes, purpose, &memory));
        filler->absmax = memory;
    }
    filler->context.workspace_bytes = td_base_workspace_bytes(filler->context.ops);
    return device->table->alloc(device, filler->context.workspace_bytes, purpose,
                                &filler->context.workspace);
}

static void release(td_base_filler *filler) {
    const td_device *device = filler->context.device;
    (void)table_of(filler)->stream_synchronize(filler->context.stream);
    for (int half = 0; half < 2; half++)
        if (filler->sent[half])
            device->table->event_destroy(filler->sent[half]);
    if (filler->context.workspace)
        device->table->free(device, filler->context.workspace);
    if (filler->absmax)
        device->table->free(device, filler->absmax);
    if (filler->slice && filler->slice != filler->host)
        device->table->free(device, filler->slice);
    if (filler->host)
        device->table->free_pinned(device, filler->host);
    if (filler->offsets)
        device->table->free_pinned(device, filler->offsets);
    if (filler->group)
        free(filler->group->hashes);
    free(filler->group);
}

td_status td_base_fill(td_base *base, const td_base_options *options, const td_base_source *source,
                       const td_base_share *share, const td_op_context *context) {
    td_base_filler filler = {.base = base,
                             .options = options,
                             .source = source,
                             .share = share,
                             .context = *context,
                             .plan = td_base_staging_plan(&base->config, options)};
    filler.context.workspace = NULL;
    td_status status = allocate(&filler);
    if (status == TD_OK)
        status = put_nested_map(&filler);
    status = td_base_agree(share, status, "memory for reading the base");
    if (status == TD_OK)
        status = fill(&filler);
    release(&filler);
    return status;
}
