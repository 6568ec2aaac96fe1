// The table of operations: nothing is missing, wrong shapes are refused with a message, and a short
// workspace is noticed.
#include "kernels/ops_check.h"
#include "test.h"

static const td_ops *ops;
static td_op_context context;

static void expect_refusal(td_status status, const char *words) {
    CHECK_INT(status, TD_ERR_INTERNAL);
    if (!CHECK(strstr(td_error_message(), words) != NULL))
        fprintf(stderr, "    message is \"%s\", expected \"%s\" in it\n", td_error_message(),
                words);
    td_error_clear();
}

static void the_table_is_whole(void) {
    CHECK_STRING(ops->name, "cpu");
    CHECK_INT(ops->activation, TD_F32);
    CHECK_INT(td_ops_check_slots(ops), TD_OK);
}

static void a_missing_operation_is_named(void) {
    td_ops broken = td_ops_cpu;
    broken.rope = NULL;
    expect_refusal(td_ops_check_slots(&broken), "cpu has no operation rope");
    broken = td_ops_cpu;
    broken.adamw_8bit = NULL;
    expect_refusal(td_ops_check_slots(&broken), "adamw_8bit");
}

static void a_backend_with_a_gap_gives_no_table(void) {
    td_ops broken = td_ops_cpu;
    const td_ops *found = NULL;
    broken.name = "abacus";
    broken.add = NULL;
    expect_refusal(td_ops_check(&broken, &found), "abacus has no operation add");
    CHECK(found == NULL);
}

static void a_backend_has_one_table(void) {
    const td_ops *again = NULL;
    CHECK_INT(td_ops_check(&td_ops_cpu, &again), TD_OK);
    CHECK(again == ops);
}

static void wrong_shapes_are_refused(void) {
    float x[8] = {0}, cosine[4] = {1, 1, 1, 1};
    int32_t positions[1] = {0};
    td_rope_args rope = {.n_tokens = 1,
                         .n_heads = 1,
                         .head_dim = 7,
                         .x = x,
                         .x_stride = 7,
                         .positions = positions,
                         .n_positions = 1,
                         .cos = cosine,
                         .sin = cosine};
    expect_refusal(ops->rope(&context, &rope), "head_dim");
    td_matrix weight = {.format = TD_MATRIX_NF4, .rows = 2, .cols = 4, .data = x};
    td_linear_forward_args linear = {.n_tokens = 1, .x = x, .weight = &weight, .y = x};
    expect_refusal(ops->linear_forward(&context, &linear), "absmax");
    weight = (td_matrix){.format = TD_MATRIX_F32, .rows = 2, .cols = (int64_t)1 << 31, .data = x};
    expect_refusal(ops->linear_forward(&context, &linear), "is_extent(matrix->cols)");
    weight.cols = 4;
    td_dequantize_args dequantize = {&weight, 1, 2, x, 0};
    expect_refusal(ops->dequantize(&context, &dequantize), "row_count");
}

static void an_id_outside_the_table_is_refused(void) {
    float table[6] = {1, 2, 3, 4, 5, 6}, y[4] = {0};
    td_matrix matrix = {.format = TD_MATRIX_F32, .rows = 3, .cols = 2, .data = table};
    int32_t ids[2] = {2, 3};
    td_embedding_args args = {2, 1.0f, ids, &matrix, y};
    expect_refusal(ops->embedding(&context, &args), "id 3");
    ids[1] = -1;
    expect_refusal(ops->embedding(&context, &args), "id -1");
    ids[1] = 0;
    CHECK_INT(ops->embedding(&context, &args), TD_OK);
    CHECK_NEAR(y[0], 5.0, 0.0);
    CHECK_NEAR(y[3], 2.0, 0.0);
}

static void a_short_workspace_is_refused(void) {
    static uint16_t weights[16 * 8];
    float x[8 * 8] = {0}, y[8 * 16];
    td_matrix weight = {.format = TD_MATRIX_BF16, .rows = 16, .cols = 8, .data = weights};
    td_linear_forward_args args = {.n_tokens = 8, .x = x, .weight = &weight, .y = y};
    expect_refusal(ops->linear_forward(&context, &args), "workspace");
}

int main(void) {
    context.device = td_device_cpu();
    REQUIRE(td_ops_check(&td_ops_cpu, &ops) == TD_OK);
    context.ops = ops;
    TEST(the_table_is_whole);
    TEST(a_missing_operation_is_named);
    TEST(a_backend_with_a_gap_gives_no_table);
    TEST(a_backend_has_one_table);
    TEST(wrong_shapes_are_refused);
    TEST(an_id_outside_the_table_is_refused);
    TEST(a_short_workspace_is_refused);
    return test_report();
}
