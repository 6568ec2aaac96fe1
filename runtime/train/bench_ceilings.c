#include "runtime/train/bench_ceilings.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/blas_product.h"
#include "kernels/register_peak.h"
#include "runtime/core/arena.h"
#include "runtime/train/metrics.h"
#include "runtime/train/parallel_copy.h"

// Products grow until one takes a moment: a GPU needs larger matrices to be busy. Short ones are
// timed in a row.
enum { FIRST_EXTENT = 1024, LAST_EXTENT = 8192, ROUNDS = 10, IN_A_ROW = 20 };
// Copies grow likewise, from more than caches hold.
enum {
    CPU_COPY_BYTES = 128 << 20,
    FIRST_GPU_COPY_BYTES = 64 << 20,
    LAST_GPU_COPY_BYTES = 512 << 20
};
static const double moment_seconds = 0.02, short_copy_seconds = 1e-3, patience_seconds = 2;

// Square matrices of the activation type, as they lie in memory: y = x w^T.
typedef struct product {
    td_op_context context;
    td_arena arena;
    td_matrix weight;
    td_linear_forward_args args;
    int by_blas;
} product;

static td_status fill_operands(product *p, void *x, void *w, size_t count) {
    const td_op_context *context = &p->context;
    td_dtype dtype = context->ops->activation;
    size_t item = td_dtype_bytes(dtype), bytes = count * item;
    unsigned char *host = malloc(bytes);
    if (!host)
        return td_fail(TD_ERR_MEMORY, "no memory for the operands of the GEMM peak");
    for (size_t i = 0; i < count; i++) {
        float value = (float)(i % 17) * 0.125f - 1.0f;
        uint16_t bits = td_f32_to_bf16(value);
        memcpy(host + i * item, dtype == TD_BF16 ? (void *)&bits : (void *)&value, item);
    }
    td_status status = context->device->table->copy(context->stream, x, host, bytes);
    if (status == TD_OK)
        status = context->device->table->copy(context->stream, w, host, bytes);
    td_status done = context->device->table->stream_synchronize(context->stream);
    free(host);
    return status != TD_OK ? status : done;
}

static td_status open_product(product *p, const td_op_context *context, int64_t extent) {
    size_t count = (size_t)(extent * extent);
    td_dtype dtype = context->ops->activation;
    td_workspace_query query = {.max_tokens = extent,
                                .max_in = extent,
                                .max_out = extent,
                                .max_weight_elements = (int64_t)count,
                                .n_heads = 1,
                                .n_kv_heads = 1,
                                .head_dim = 64};
    p->context = *context;
    p->context.workspace_bytes = context->ops->workspace_bytes(&query);
    size_t bytes =
        3 * count * td_dtype_bytes(dtype) + p->context.workspace_bytes + 4 * TD_ARENA_ALIGN;
    TD_TRY(td_arena_init(&p->arena, context->device, bytes, "GEMM peak"));
    void *x = td_arena_take(&p->arena, count, td_dtype_bytes(dtype));
    void *w = td_arena_take(&p->arena, count, td_dtype_bytes(dtype));
    void *y = td_arena_take(&p->arena, count, td_dtype_bytes(dtype));
    p->context.workspace = td_arena_take(&p->arena, p->context.workspace_bytes, 1);
    p->weight = (td_matrix){.format = dtype == TD_BF16 ? TD_MATRIX_BF16 : TD_MATRIX_F32,
                            .rows = extent,
                            .cols = extent,
                            .data = w,
                            .compute = dtype};
    p->args = (td_linear_forward_args){.n_tokens = extent, .x = x, .weight = &p->weight, .y = y};
    return fill_operands(p, x, w, count);
}

static td_status multiply(const product *p) {
    if (!p->by_blas)
        return p->context.ops->linear_forward(&p->context, &p->args);
    td_cpu_blas_product(p->args.n_tokens, p->args.x, p->weight.data, p->args.y);
    return TD_OK;
}

// Seconds per product.
static td_status time_products(const product *p, int count, double *out) {
    double start = td_seconds_now();
    for (int i = 0; i < count; i++)
        TD_TRY(multiply(p));
    TD_TRY(p->context.device->table->stream_synchronize(p->context.stream));
    *out = (td_seconds_now() - start) / count;
    return TD_OK;
}

static td_status best_of_rounds(const product *p, double *out) {
    double seconds, best;
    TD_TRY(time_products(p, 1, &best));
    int count = best < moment_seconds ? IN_A_ROW : 1;
    double end = td_seconds_now() + patience_seconds;
    for (int round = 0; round < ROUNDS && (round == 0 || td_seconds_now() < end); round++) {
        TD_TRY(time_products(p, count, &seconds));
        best = seconds < best ? seconds : best;
    }
    *out = best;
    return TD_OK;
}

// By the operation, and on the CPU in fp32 by the BLAS library too.
static td_status measure_extent(product *p, double *slowest, td_bench_ceilings *out) {
    int n_ways = p->context.device->unified && p->context.ops->product == TD_F32 ? 2 : 1;
    double extent = (double)p->args.n_tokens, seconds;
    *slowest = 0;
    for (p->by_blas = 0; p->by_blas < n_ways; p->by_blas++) {
        TD_TRY(best_of_rounds(p, &seconds));
        double rate = 2 * extent * extent * extent / seconds;
        *slowest = fmax(*slowest, seconds);
        if (rate <= out->flops)
            continue;
        out->flops = rate;
        out->extent = p->args.n_tokens;
        out->product = p->by_blas ? "cblas_sgemm" : "linear_forward";
    }
    return TD_OK;
}

static td_status measure_products(const td_op_context *context, td_bench_ceilings *out) {
    double slowest = 0;
    for (int64_t extent = FIRST_EXTENT; extent <= LAST_EXTENT && slowest < moment_seconds;
         extent *= 2) {
        product p = {0};
        td_status status = open_product(&p, context, extent);
        if (status == TD_OK)
            status = measure_extent(&p, &slowest, out);
        td_arena_fini(&p.arena);
        TD_TRY(status);
    }
    return TD_OK;
}

// On the CPU, what products have in registers, and beside products in bf16 those in fp32.
static td_status measure_cpu(const td_op_context *context, td_bench_ceilings *out) {
    td_op_context fp32 = *context;
    td_bench_ceilings beside = {0};
    out->register_flops = td_cpu_register_peak(context->ops->product);
    if (context->ops->product == TD_F32)
        return TD_OK;
    TD_TRY(td_ops_check(&td_ops_cpu, &fp32.ops));
    TD_TRY(measure_products(&fp32, &beside));
    out->fp32_flops = beside.flops;
    return TD_OK;
}

static td_status copy_once(const td_op_context *context, void *to, const void *from, size_t bytes,
                           double *out) {
    double start = td_seconds_now();
    if (context->device->unified)
        td_copy_parallel(&(td_copy_span){to, from, bytes}, 1);
    else
        TD_TRY(context->device->table->copy(context->stream, to, from, bytes));
    TD_TRY(context->device->table->stream_synchronize(context->stream));
    *out = td_seconds_now() - start;
    return TD_OK;
}

static td_status measure_copies_of(const td_op_context *context, size_t bytes, double *out) {
    td_arena arena;
    TD_TRY(td_arena_init(&arena, context->device, 2 * bytes + 2 * TD_ARENA_ALIGN, "copy peak"));
    void *to = td_arena_take(&arena, bytes, 1), *from = td_arena_take(&arena, bytes, 1);
    td_status status = TD_OK;
    double seconds;
    *out = INFINITY;
    for (int round = 0; status == TD_OK && round <= ROUNDS; round++) {
        status = copy_once(context, to, from, bytes, &seconds);
        *out = status == TD_OK ? fmin(*out, seconds) : *out;
    }
    td_arena_fini(&arena);
    return status;
}

static td_status measure_copy(const td_op_context *context, td_bench_ceilings *out) {
    int is_cpu = context->device->unified;
    size_t bytes = is_cpu ? CPU_COPY_BYTES : FIRST_GPU_COPY_BYTES;
    size_t most = is_cpu ? CPU_COPY_BYTES : LAST_GPU_COPY_BYTES;
    double seconds = 0;
    for (; bytes <= most && seconds < short_copy_seconds; bytes *= 2) {
        TD_TRY(measure_copies_of(context, bytes, &seconds));
        out->copy_bytes = bytes;
        out->bytes_per_second = 2 * (double)bytes / seconds;
    }
    return TD_OK;
}

td_status td_bench_ceilings_measure(const td_op_context *context, td_bench_ceilings *out) {
    *out = (td_bench_ceilings){.is_bf16 = context->ops->product == TD_BF16, .product = "none"};
    TD_TRY(measure_products(context, out));
    if (context->device->unified)
        TD_TRY(measure_cpu(context, out));
    return measure_copy(context, out);
}

void td_bench_ceilings_keep_larger(const td_bench_ceilings *other, td_bench_ceilings *out) {
    td_bench_ceilings larger = other->flops > out->flops ? *other : *out;
    int is_faster = other->bytes_per_second > out->bytes_per_second;
    larger.bytes_per_second = is_faster ? other->bytes_per_second : out->bytes_per_second;
    larger.copy_bytes = is_faster ? other->copy_bytes : out->copy_bytes;
    larger.fp32_flops = fmax(other->fp32_flops, out->fp32_flops);
    larger.register_flops = fmax(other->register_flops, out->register_flops);
    *out = larger;
}

void td_bench_ceilings_print(const td_bench_ceilings *ceilings) {
    printf("GEMM ceiling:   %.1f GFLOP/s, %s %lld^3 product by %s, this run\n",
           ceilings->flops * 1e-9, ceilings->is_bf16 ? "bf16" : "fp32", (long long)ceilings->extent,
           ceilings->product);
    if (ceilings->fp32_flops > 0)
        printf("in fp32:        %.1f GFLOP/s, the fastest product in this run\n",
               ceilings->fp32_flops * 1e-9);
    if (ceilings->register_flops > 0)
        printf(
            "in registers:   %.1f GFLOP/s of multiply-adds alone; the GEMM ceiling is %.1f %% of "
            "it\n",
            ceilings->register_flops * 1e-9, 100 * ceilings->flops / ceilings->register_flops);
    printf("copy ceiling:   %.1f GB/s read and written, copies of %zu MiB, this run\n",
           ceilings->bytes_per_second * 1e-9, ceilings->copy_bytes >> 20);
}

void td_bench_ceilings_record(const td_bench_ceilings *ceilings, cJSON *record) {
    td_bench_record_number(record, "gemm_peak_flops", ceilings->flops);
    td_bench_record_number(record, "gemm_peak_extent", (double)ceilings->extent);
    td_bench_record_text(record, "gemm_peak_by", ceilings->product);
    td_bench_record_text(record, "gemm_peak_operands", ceilings->is_bf16 ? "bf16" : "fp32");
    if (ceilings->fp32_flops > 0)
        td_bench_record_number(record, "fp32_gemm_peak_flops", ceilings->fp32_flops);
    if (ceilings->register_flops > 0)
        td_bench_record_number(record, "register_peak_flops", ceilings->register_flops);
    td_bench_record_number(record, "copy_peak_bytes_per_second", ceilings->bytes_per_second);
}

double td_bench_bound(const td_bench_ceilings *ceilings, double flops, double bytes) {
    return fmax(flops / ceilings->flops, bytes / ceilings->bytes_per_second);
}
