#include "runtime/train/run.h"

#include <stdlib.h>

#include "runtime/core/log.h"

// Buckets of about this many bytes: large enough to amortize a collective's latency, small enough
// to start early.
enum { BUCKET_BYTES = 8 << 20 };

// A page longer than the whole vector would only hold optimizer state of elements that do not
// exist.
td_status td_run_page_map(const td_session *session, td_page_map *out) {
    int64_t n = session->lora.n_parameters, page = session->config->page_elements;
    return td_page_map_init(out, n, page < n ? page : n, td_comm_size(session->comm));
}

td_pager_options td_run_pager_options(const td_session *session, const td_page_map *map) {
    return (td_pager_options){
        .device = session->context.device,
        .map = *map,
        .rank = td_comm_rank(session->comm),
        .state_bytes = td_optimizer_state_bytes(session->config->optim, map->page_elements),
        .device_cache_bytes = (size_t)session->config->optimizer_cache_bytes,
    };
}

td_device_comm_options td_run_device_comm_options(const td_session *session,
                                                  const td_page_map *map) {
    return (td_device_comm_options){
        .comm = session->comm,
        .device = session->context.device,
        .max_bytes = (size_t)map->page_elements * sizeof(int64_t),
        .in_flight = (size_t)map->n_pages,
    };
}

static td_status create_sampler(td_run *run, td_store *store) {
    const td_config *config = run->session->config;
    td_sampler_options options = {
        .n_rows = td_store_rows(store),
        .offsets = td_store_offsets(store),
        .row_trained = td_store_row_trained(store),
        .packing = config->packing,
        .micro_batch_tokens =
            config->micro_batch_tokens > 0 ? config->micro_batch_tokens : config->max_length,
        .sequences = config->per_device_train_batch_size,
        .accumulation = config->gradient_accumulation_steps,
        .shuffle = config->shuffle,
        .seed = (uint64_t)config->seed,
    };
    return td_sampler_create(&options, &run->sampler);
}

static int64_t at_least(int64_t a, int64_t b) {
    return a > b ? a : b;
}

static td_status make_plan(td_run *run, td_store *store, const td_evaluation *evaluation,
                           size_t checkpoint_bytes) {
    const td_session *session = run->session;
    const td_config *config = session->config;
    td_plan_needs needs = {
        .max_tokens = td_sampler_max_tokens(run->sampler),
        .max_sequences = td_sampler_max_rows(run->sampler),
        .max_positions = at_least(td_store_longest_row(store), config->max_length),
        .checkpoint_bytes = checkpoint_bytes,
        .n_loaders = evaluation ? 2 : 1,
        .embedding_dtype = TD_BF16,
    };
    if (evaluation) {
        needs.max_tokens = at_least(needs.max_tokens, td_evaluation_max_tokens(evaluation));
        needs.max_sequences = at_least(needs.max_sequences, td_evaluation_max_rows(evaluation));
    }
    // Positions and borders of sequences are 32-bit.
    if (needs.max_tokens > INT32_MAX)
        return td_fail(TD_ERR_USAGE,
                       "a micro-batch of %lld tokens is too large: lower "
                       "per_device_train_batch_size or max_length",
                       (long long)needs.max_tokens);
    const td_page_map *map = &run->parameters.map;
    td_device_comm_options travel = td_run_device_comm_options(session, map);
    needs.pager = td_run_pager_options(session, map);
    session->choice.transport->plan(&travel, &needs.travel_host_bytes, &needs.travel_device_bytes);
    if (!session->base && !session->has_random_base) {
        td_base_options base = td_session_base_options(session);
        TD_TRY(td_base_peek_dtype(config->model_name_or_path, &needs.embedding_dtype));
        needs.base_is_mapped =
            td_base_will_map(config->model_name_or_path, &base, &session->context);
    }
    return td_memory_plan_make(session, &needs, &run->plan);
}

static td_status plan_local(td_run *run, td_store *store, const td_evaluation *evaluation,
                            size_t checkpoint_bytes) {
    TD_TRY(create_sampler(run, store));
    TD_TRY(td_run_page_map(run->session, &run->parameters.map));
    return make_plan(run, store, evaluation, checkpoint_bytes);
}

td_status td_run_plan(td_run *run, td_session *session, td_store *store,
                      const td_evaluation *evaluation, size_t checkpoint_bytes) {
    run->session = session;
    td_status status = plan_local(run, store, evaluation, checkpoint_bytes);
    TD_TRY(td_comm_agree(session->comm, status, "memory plan"));
    session->host_embedding = run->plan.host_embedding;
    td_memory_plan_print(&run->plan);
    return TD_OK;
}

// Runs twice: measuring, then for real.
static void take_vectors(td_run *run, td_arena *arena) {
    td_parameters *parameters = &run->parameters;
    size_t n = (size_t)parameters->map.n_elements;
    parameters->values = td_arena_take(arena, n + n % 2, sizeof(float));
    if (run->session->config->reduce == TD_REDUCE_FP32)
        parameters->floats = td_arena_take(arena, n, sizeof(float));
    else
        parameters->fixed = td_arena_take(arena, n, sizeof(int64_t));
    parameters->faults = td_arena_take(arena, 1, sizeof(int64_t));
    parameters->checks =
        td_arena_take(arena, (size_t)td_parameter_check_count(&parameters->map), sizeof(int64_t));
    td_optimizer_take(&run->optimizer, &parameters->map, arena);
}

static td_status allocate_vectors(td_run *run) {
    static const char name[] = "LoRA parameters and gradient sums";
    td_arena measure;
    td_arena_init_measure(&measure, name);
    take_vectors(run, &measure);
    TD_TRY(td_arena_init(&run->arena, run->session->context.device, measure.used_bytes, name));
    take_vectors(run, &run->arena);
    return TD_OK;
}

static td_status create_buckets(td_run *run) {
    const td_session *session = run->session;
    int exact = session->config->reduce == TD_REDUCE_EXACT;
    int64_t page_bytes = run->parameters.map.page_elements * (exact ? 8 : 4);
    int64_t pages = at_least(1, BUCKET_BYTES / page_bytes);
    return td_buckets_create(
        run->device_comm, &run->parameters.map, exact ? TD_COLLECTIVE_I64 : TD_COLLECTIVE_F32,
        exact ? (void *)run->parameters.fixed : run->parameters.floats, pages, &run->buckets);
}

static td_status allocate_local(td_run *run, td_store *store, volatile const int *stop_requested) {
    td_session *session = run->session;
    const td_transformer_options *options = &run->plan.transformer;
    td_pager_options pager = td_run_pager_options(session, &run->parameters.map);
    pager.device_cache_bytes = run->plan.optimizer_cache_bytes;
    TD_TRY(td_pager_create(&pager, &run->pager));
    TD_TRY(allocate_vectors(run));
    TD_TRY(td_transformer_create(session->base, &session->lora, options, &session->context,
                                 &run->transformer));
    TD_TRY(td_optimizer_init(&run->optimizer, session->config,
                             td_transformer_context(run->transformer), run->device_comm, run->pager,
                             &run->parameters));
    TD_TRY(td_token_loader_init(&run->loader, store, options->max_tokens, options->max_sequences));
    TD_TRY(create_buckets(run));
    run->step = (td_step){
        .config = session->config,
        .comm = session->comm,
        .transformer = run->transformer,
        .lora = &session->lora,
        .sampler = run->sampler,
        .loader = &run->loader,
        .parameters = &run->parameters,
        .optimizer = &run->optimizer,
        .buckets = run->buckets,
        .schedule = td_schedule_make(session->config, td_sampler_steps_per_epoch(run->sampler)),
        .stop_requested = stop_requested,
    };
    return td_step_init(&run->step);
}

// Last, when everything that a run cannot do without has its memory.
static td_status copy_weights(td_run *run) {
    const td_session *session = run->session;
    int64_t planned = run->plan.copies.n_copied;
    if (planned == 0)
        return TD_OK;
    TD_TRY(td_weight_copies_make(&run->copies, session->base, &session->context, planned));
    if (run->copies.n_copied < planned)
        td_info("GPU memory holds copies of %lld dequantized layers, not of %lld",
                (long long)run->copies.n_copied, (long long)planned);
    return TD_OK;
}

td_status td_run_allocate(td_run *run, td_store *store, volatile const int *stop_requested) {
    td_device_comm_options options = td_run_device_comm_options(run->session, &run->parameters.map);
    TD_TRY(run->session->choice.transport->create(&options, &run->device_comm));
    td_status status = allocate_local(run, store, stop_requested);
    TD_TRY(td_comm_agree(run->session->comm, status, "allocate"));
    status = copy_weights(run);
    TD_TRY(td_comm_agree(run->session->comm, status, "copies of dequantized layers"));
    return td_session_load_parameters(run->session, run->parameters.values);
}

void td_run_end_if_alone(td_comm *comm, td_status status) {
    int leaves_in_order = status == TD_OK || status == TD_STOPPED || td_comm_is_agreed(comm);
    if (!leaves_in_order && td_comm_size(comm) > 1)
        td_comm_abort(comm, status, NULL);
}

void td_run_destroy(td_run *run) {
    if (run->session && run->session->context.stream) // nothing queued may outlive what it works on
        (void)run->session->context.device->table->stream_synchronize(run->session->context.stream);
    td_step_fini(&run->step);
    if (run->buckets)
        td_buckets_destroy(run->buckets);
    if (run->device_comm)
        run->device_comm->transport->destroy(run->device_comm);
    td_token_loader_fini(&run->loader);
    td_transformer_destroy(run->transformer);
    td_weight_copies_fini(&run->copies);
    td_optimizer_fini(&run->optimizer);
    td_arena_fini(&run->arena);
    td_pager_destroy(run->pager);
    td_sampler_destroy(run->sampler);
    *run = (td_run){0};
}
