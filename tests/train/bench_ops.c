// `bench ops` finds every operation right as it is, and names each one that is broken on purpose.
#include "test.h"

#include "runtime/train/bench_ops.h"

static td_op_context context_of(const td_ops *ops) {
    td_op_context context = {.ops = ops, .device = td_device_cpu()};
    REQUIRE(context.device->table->stream_create(context.device, &context.stream) == TD_OK);
    return context;
}

static const td_bench_ops_options small = {.tokens = 20,
                                           .seq_tokens = 12,
                                           .rank = 4,
                                           .dropout = 0.1,
                                           .head_tokens = 20,
                                           .page_elements = 300,
                                           .nested = 1};

static td_status run(const td_ops *ops, const td_bench_ops_options *options,
                     td_bench_ops_result *out) {
    static td_model_config model;
    td_op_context context = context_of(ops);
    if (!model.family)
        REQUIRE(td_model_config_read(TEST_FIXTURES "/families/qwen3", &model) == TD_OK);
    return td_bench_ops_run(&context, &model, options, out);
}

static void all_are_right(void) {
    td_bench_ops_result result;
    td_bench_ops_options plain = small;
    int seen[TD_OP_COUNT] = {0};
    CHECK_INT(run(&td_ops_cpu, &small, &result), TD_OK);
    for (int i = 0; i < result.count; i++) {
        const td_bench_op_time *time = &result.times[i];
        seen[time->op]++;
        CHECK(time->n_samples > 0 && time->seconds.median > 0);
        CHECK((td_op_is_product(time->op) ? time->work.flops : time->work.bytes) > 0);
    }
    for (int op = 0; op < TD_OP_COUNT; op++)
        CHECK(seen[op] > 0);
    td_bench_ops_fini(&result);
    plain.nested = 0;
    plain.dropout = 0;
    CHECK_INT(run(&td_ops_cpu, &plain, &result), TD_OK);
    td_bench_ops_fini(&result);
    CHECK_INT(run(&td_ops_cpu_medium, &small, &result), TD_OK);
    td_bench_ops_fini(&result);
}

// The operation as it is, and then one number of its results changed.
#define BROKEN(name, op, args_type, damage)                                                        \
    static td_status broken_##name(const td_op_context *context, const args_type *args) {          \
        td_status status = td_ops_cpu.op(context, args);                                           \
        damage;                                                                                    \
        return status;                                                                             \
    }

static void change(const void *number) {
    *(float *)(uintptr_t)number += 1;
}

static void change_code(const void *code) {
    *(uint8_t *)(uintptr_t)code ^= 0x90;
}

static void change_word(const void *word) {
    *(int64_t *)(uintptr_t)word += 1;
}

BROKEN(linear_forward, linear_forward, td_linear_forward_args, change(args->y))
BROKEN(linear_dx, linear_backward, td_linear_backward_args, change(args->dx))
BROKEN(linear_da, linear_backward, td_linear_backward_args,
       for (int64_t i = 0; args->da && i < args->lora->rank; i++)
           change(args->da + i * args->weight->cols))
BROKEN(linear_db, linear_backward, td_linear_backward_args,
       for (int64_t i = 0; args->db && i < args->lora->rank; i++) change(args->db + i))
BROKEN(nf4_codes, nf4_quantize, td_nf4_quantize_args, change_code(args->codes))
BROKEN(nf4_absmax, nf4_quantize, td_nf4_quantize_args, change(args->absmax))
BROKEN(absmax_quantize, absmax_quantize, td_absmax_quantize_args, change_code(args->codes))
BROKEN(absmax_offset, absmax_quantize, td_absmax_quantize_args, *args->offset += 1e-3f)
BROKEN(dequantize, dequantize, td_dequantize_args, change(args->out))
BROKEN(embedding, embedding, td_embedding_args, change(args->y))
BROKEN(rmsnorm_forward, rmsnorm_forward, td_rmsnorm_forward_args, change(args->y))
BROKEN(rmsnorm_backward, rmsnorm_backward, td_rmsnorm_backward_args, change(args->dx))
BROKEN(rope, rope, td_rope_args, change(args->x))
BROKEN(attention_out, attention_forward, td_attention_forward_args, change(args->out))
BROKEN(attention_lse, attention_forward, td_attention_forward_args, change(args->lse))
BROKEN(attention_dq, attention_backward, td_attention_backward_args, change(args->dq))
BROKEN(attention_dk, attention_backward, td_attention_backward_args, change(args->dk))
BROKEN(attention_dv, attention_backward, td_attention_backward_args, change(args->dv))
BROKEN(glu_forward, glu_forward, td_glu_forward_args, change(args->y))
BROKEN(glu_dgate, glu_backward, td_glu_backward_args, change(args->dgate))
BROKEN(glu_dup, glu_backward, td_glu_backward_args, change(args->dup))
BROKEN(add, add, td_add_args, change(args->y))
BROKEN(gather_rows, gather_rows, td_rows_args, change(args->y))
BROKEN(scatter_rows, scatter_rows, td_rows_args, change(args->y))
BROKEN(cross_entropy_loss, cross_entropy, td_cross_entropy_args, change(args->loss))
BROKEN(cross_entropy_gradient, cross_entropy, td_cross_entropy_args, change(args->logits))
BROKEN(fixed_add, fixed_add, td_fixed_add_args, change_word(args->accumulator))
BROKEN(fixed_faults, fixed_add, td_fixed_add_args, change_word(args->faults))
BROKEN(fixed_to_f32, fixed_to_f32, td_fixed_to_f32_args, change(args->values))
BROKEN(fixed_squares, fixed_to_f32, td_fixed_to_f32_args, *args->sum_squares += 1e-3)
BROKEN(f32_add, f32_add, td_f32_add_args, change(args->accumulator))
BROKEN(sum_squares, sum_squares, td_sum_squares_args, *args->sum_squares += 1)
BROKEN(word_sum, word_sum, td_word_sum_args, change_word(args->sum))
BROKEN(adamw, adamw, td_adamw_args, change(args->parameters))
BROKEN(adamw_state, adamw, td_adamw_args, change(args->state))
BROKEN(adamw_8bit, adamw_8bit, td_adamw_args, change(args->parameters))
BROKEN(adamw_8bit_state, adamw_8bit, td_adamw_args, change_code(args->state))

#define EXPECT_NAMED(name, op)                                                                     \
    do {                                                                                           \
        td_ops ops_ = td_ops_cpu;                                                                  \
        ops_.op = broken_##name;                                                                   \
        expect_named(&ops_, #name, #op);                                                           \
    } while (0)

static void expect_named(const td_ops *ops, const char *what, const char *op) {
    td_bench_ops_result result;
    char expected[64];
    td_error_clear();
    snprintf(expected, sizeof expected, "%s of cpu is wrong", op);
    td_status status = run(ops, &small, &result);
    if (!CHECK(status == TD_ERR_NUMERIC && strstr(td_error_message(), expected)))
        fprintf(stderr, "    %s: status %d, \"%s\"\n", what, (int)status, td_error_message());
    td_bench_ops_fini(&result);
}

static void broken_ones_are_named(void) {
    EXPECT_NAMED(linear_forward, linear_forward);
    EXPECT_NAMED(linear_dx, linear_backward);
    EXPECT_NAMED(linear_da, linear_backward);
    EXPECT_NAMED(linear_db, linear_backward);
    EXPECT_NAMED(nf4_codes, nf4_quantize);
    EXPECT_NAMED(nf4_absmax, nf4_quantize);
    EXPECT_NAMED(absmax_quantize, absmax_quantize);
    EXPECT_NAMED(absmax_offset, absmax_quantize);
    EXPECT_NAMED(dequantize, dequantize);
    EXPECT_NAMED(embedding, embedding);
    EXPECT_NAMED(rmsnorm_forward, rmsnorm_forward);
    EXPECT_NAMED(rmsnorm_backward, rmsnorm_backward);
    EXPECT_NAMED(rope, rope);
    EXPECT_NAMED(attention_out, attention_forward);
    EXPECT_NAMED(attention_lse, attention_forward);
    EXPECT_NAMED(attention_dq, attention_backward);
    EXPECT_NAMED(attention_dk, attention_backward);
    EXPECT_NAMED(attention_dv, attention_backward);
    EXPECT_NAMED(glu_forward, glu_forward);
    EXPECT_NAMED(glu_dgate, glu_backward);
    EXPECT_NAMED(glu_dup, glu_backward);
    EXPECT_NAMED(add, add);
    EXPECT_NAMED(gather_rows, gather_rows);
    EXPECT_NAMED(scatter_rows, scatter_rows);
    EXPECT_NAMED(cross_entropy_loss, cross_entropy);
    EXPECT_NAMED(cross_entropy_gradient, cross_entropy);
    EXPECT_NAMED(fixed_add, fixed_add);
    EXPECT_NAMED(fixed_faults, fixed_add);
    EXPECT_NAMED(fixed_to_f32, fixed_to_f32);
    EXPECT_NAMED(fixed_squares, fixed_to_f32);
    EXPECT_NAMED(f32_add, f32_add);
    EXPECT_NAMED(sum_squares, sum_squares);
    EXPECT_NAMED(word_sum, word_sum);
    EXPECT_NAMED(adamw, adamw);
    EXPECT_NAMED(adamw_state, adamw);
    EXPECT_NAMED(adamw_8bit, adamw_8bit);
    EXPECT_NAMED(adamw_8bit_state, adamw_8bit);
}

int main(void) {
    TEST(all_are_right);
    TEST(broken_ones_are_named);
    return test_report();
}
