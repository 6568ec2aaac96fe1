// Training calls whose work has been recorded. A small model's operations end sooner than the host
// queues them; repeating a recording costs the host next to nothing.
//
// All that changes between calls of one shape is in device memory: ids, positions, borders of
// sequences, the place of dropout. The head, whose work depends on the number of targets, is queued
// as ever between the recorded blocks and the recorded layers of the backward pass.
#include <stdlib.h>
#include <string.h>

#include "model/transformer_internal.h"
#include "runtime/core/log.h"

enum {
    SHAPES = 32, // of recent calls that are remembered
    SETS = 4,    // recordings of whole calls that are kept
    // A recording that has not been repeated in so many calls makes room for another.
    LAST_CALLS = 64,
};

// What is written into a recording. No padding but zeros: compared as bytes.
typedef struct shape_key {
    int64_t n_tokens, n_borders;
    const float *parameters;
    uint64_t dropout_seed;
    double dropout_probability;
    void *sink;
    td_status (*module_done)(void *self, int64_t offset, int64_t count, const float *values);
} shape_key;

typedef struct shape {
    shape_key key;
    uint64_t last_call;  // 0: empty
    td_graph **segments; // (n_layers + 1), or NULL: not recorded
} shape;

struct td_graphs {
    shape shapes[SHAPES];
    uint64_t calls;
    shape *running; // whose segments the call records or repeats, or NULL
    td_graph_counts counts;
};

// Queueing an operation costs the host about 2.5 us; a GPU of today computes some 1.2 GFLOP in that
// time. A layer is about 120 operations, forward and backward, of 4 FLOP per weight and token
// altogether, and small products run at half the speed of large ones: ARCHITECTURE.md, "GPU".
static const double largest_layer = 6.9e10; // weights times tokens

static int pays(const td_transformer *transformer) {
    const td_model_config *config = transformer->config;
    double weights = 0;
    for (int i = 0; i < TD_PROJ_COUNT; i++)
        if (td_projection_exists(config, (td_projection)i))
            weights += (double)td_projection_in(config, (td_projection)i) *
                       (double)td_projection_out(config, (td_projection)i);
    return weights * (double)transformer->options.max_tokens < largest_layer;
}

td_status td_transformer_create_graphs(td_transformer *transformer) {
    td_graphs_use use = transformer->options.graphs;
    if (!transformer->options.training || !transformer->context.device->table->capture_begin ||
        use == TD_GRAPHS_OFF || (use == TD_GRAPHS_AUTO && !pays(transformer)))
        return TD_OK;
    transformer->graphs = calloc(1, sizeof *transformer->graphs);
    return transformer->graphs ? TD_OK : td_fail(TD_ERR_MEMORY, "no memory for recordings");
}

static void drop_recordings(const td_transformer *transformer, shape *self) {
    for (int64_t i = 0; self->segments && i <= transformer->config->n_layers; i++)
        transformer->context.device->table->graph_destroy(self->segments[i]);
    free(self->segments);
    self->segments = NULL;
}

void td_transformer_destroy_graphs(td_transformer *transformer) {
    if (!transformer->graphs)
        return;
    for (int i = 0; i < SHAPES; i++)
        drop_recordings(transformer, &transformer->graphs->shapes[i]);
    free(transformer->graphs);
    transformer->graphs = NULL;
}

td_graph_counts td_transformer_graph_counts(const td_transformer *transformer) {
    return transformer->graphs ? transformer->graphs->counts : (td_graph_counts){.is_off = 1};
}

static shape_key key_of(const td_transformer *transformer) {
    shape_key key;
    memset(&key, 0, sizeof key);
    key.n_tokens = transformer->n_tokens;
    key.n_borders = transformer->n_borders;
    key.parameters = transformer->parameters;
    key.dropout_seed = transformer->dropout.seed;
    key.dropout_probability = transformer->dropout.probability;
    key.sink = transformer->sink->self;
    key.module_done = transformer->sink->module_done;
    return key;
}

// The shape of the key, or NULL. *out_place: where a new one goes, the one that came longest ago of
// those without recordings, of which there are always some.
static shape *find_shape(td_graphs *graphs, const shape_key *key, shape **out_place) {
    *out_place = NULL;
    for (shape *each = graphs->shapes; each < graphs->shapes + SHAPES; each++) {
        if (each->last_call > 0 && memcmp(&each->key, key, sizeof *key) == 0)
            return each;
        if (!each->segments && (!*out_place || each->last_call < (*out_place)->last_call))
            *out_place = each;
    }
    return NULL;
}

// Makes room for one more set of recordings; 0: those that are there are in use.
static int make_room(td_transformer *transformer) {
    td_graphs *graphs = transformer->graphs;
    shape *oldest = NULL;
    int n_sets = 0;
    for (shape *each = graphs->shapes; each < graphs->shapes + SHAPES; each++) {
        if (!each->segments)
            continue;
        n_sets++;
        if (!oldest || each->last_call < oldest->last_call)
            oldest = each;
    }
    if (n_sets < SETS)
        return 1;
    if (graphs->calls - oldest->last_call <= LAST_CALLS)
        return 0;
    const td_device_table *device = transformer->context.device->table;
    if (device->stream_synchronize(transformer->context.stream) != TD_OK)
        return 0; // the next operation says what is wrong
    drop_recordings(transformer, oldest);
    return 1;
}

// The first call of a shape is queued as ever, which also makes the plans of its products and loads
// its kernels; the second one records.
void td_transformer_begin_graphs(td_transformer *transformer) {
    td_graphs *graphs = transformer->graphs;
    if (!graphs || graphs->counts.is_off)
        return;
    shape_key key = key_of(transformer);
    shape *place, *found = find_shape(graphs, &key, &place);
    graphs->calls++;
    if (!found) {
        *place = (shape){.key = key, .last_call = graphs->calls};
        return;
    }
    found->last_call = graphs->calls;
    if (!found->segments && make_room(transformer))
        found->segments = calloc((size_t)transformer->config->n_layers + 1, sizeof(td_graph *));
    graphs->running = found->segments ? found : NULL;
}

void td_transformer_end_graphs(td_transformer *transformer) {
    if (transformer->graphs)
        transformer->graphs->running = NULL;
}

static td_status queue_segment(td_transformer *transformer, int64_t segment,
                               td_status (*queue)(td_transformer *transformer, int64_t layer),
                               int64_t layer, int is_recorded) {
    TD_TRY(td_transformer_begin_ahead(transformer, segment, is_recorded));
    return queue(transformer, layer);
}

static td_status record(td_transformer *transformer, int64_t segment,
                        td_status (*queue)(td_transformer *transformer, int64_t layer),
                        int64_t layer, td_graph **out) {
    const td_device_table *device = transformer->context.device->table;
    td_stream *stream = transformer->context.stream;
    TD_TRY(device->capture_begin(stream));
    td_status status = queue_segment(transformer, segment, queue, layer, 1);
    td_status ended = device->capture_end(stream, status == TD_OK ? out : NULL);
    return status != TD_OK ? status : ended;
}

// From now on everything is queued as ever. What was recorded may still run: it goes at the end.
static void switch_off(td_graphs *graphs) {
    td_warn("CUDA graphs are off: %s", td_error_message());
    td_error_clear();
    graphs->counts.is_off = 1;
    graphs->running = NULL;
}

td_status td_transformer_segment(td_transformer *transformer, int64_t segment,
                                 td_status (*queue)(td_transformer *transformer, int64_t layer),
                                 int64_t layer) {
    td_graphs *graphs = transformer->graphs;
    if (!graphs || !graphs->running)
        return queue_segment(transformer, segment, queue, layer, 0);
    td_graph **graph = &graphs->running->segments[segment];
    td_status status = TD_OK;
    if (!*graph) {
        status = record(transformer, segment, queue, layer, graph);
        graphs->counts.recorded += status == TD_OK;
    }
    if (status == TD_OK)
        status =
            transformer->context.device->table->graph_launch(*graph, transformer->context.stream);
    if (status == TD_OK) {
        graphs->counts.repeated++;
        return TD_OK;
    }
    switch_off(graphs); // neither a recording nor a launch that failed has done any work
    return queue_segment(transformer, segment, queue, layer, 0);
}
