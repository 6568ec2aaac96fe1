// Matrix products of the backend: every combination it may ask cuBLASLt for, the cache of plans,
// threads, errors.
#include "kernels/cuda/gemm.cuh"

#include <algorithm>
#include <thread>
#include <vector>

#include "kernels/cuda/workspace.cuh"
#include "selftest.cuh"

namespace {

// What a thread needs to queue products.
struct queue {
    device_array<unsigned char> workspace{TD_CUDA_GEMM_PART_BYTES};
    td_op_context context = {};

    queue() {
        REQUIRE(td_cuda_device_open(0, &context.device) == TD_OK);
        REQUIRE(context.device->table->stream_create(context.device, &context.stream) == TD_OK);
        context.ops = &td_ops_cuda_fp32;
        context.workspace = workspace.data;
        context.workspace_bytes = workspace.n;
    }
    ~queue() {
        context.device->table->stream_destroy(context.stream);
    }
    td_status multiply(const td_cuda_gemm_args *args) {
        TD_TRY(td_cuda_gemm(&context, "a test", args));
        return context.device->table->stream_synchronize(context.stream);
    }
};

// Numbers that both types hold, and whose products sum up without rounding.
float value_at(int64_t i, int64_t j) {
    return static_cast<float>((i * 5 + j * 3) % 9 - 4);
}

// A matrix between other data: `shift` elements from an aligned address, rows `gap` elements apart.
struct matrix {
    int64_t rows, cols, ld, shift;
    td_dtype type;
    device_array<unsigned char> memory;

    matrix(int64_t n_rows, int64_t n_cols, td_dtype dtype, int64_t gap, int64_t offset)
        : rows(n_rows), cols(n_cols), ld(n_cols + gap), shift(offset), type(dtype),
          memory(static_cast<size_t>(n_rows * ld + offset) * td_dtype_bytes(dtype)) {
        std::vector<unsigned char> bytes(memory.n, 0x55);
        for (int64_t i = 0; i < rows; i++)
            for (int64_t j = 0; j < cols; j++)
                put(bytes, i, j);
        cudaMemcpy(memory.data, bytes.data(), bytes.size(), cudaMemcpyHostToDevice);
    }
    size_t at(int64_t i, int64_t j) const {
        return static_cast<size_t>(shift + i * ld + j) * td_dtype_bytes(type);
    }
    void put(std::vector<unsigned char> &bytes, int64_t i, int64_t j) const {
        float value = value_at(i, j);
        uint16_t half = td_f32_to_bf16(value);
        if (type == TD_F32)
            memcpy(&bytes[at(i, j)], &value, sizeof value);
        else
            memcpy(&bytes[at(i, j)], &half, sizeof half);
    }
    float get(const std::vector<unsigned char> &bytes, int64_t i, int64_t j) const {
        float value;
        uint16_t half;
        memcpy(&half, &bytes[at(i, j)], sizeof half);
        if (type != TD_F32)
            return td_bf16_to_f32(half);
        memcpy(&value, &bytes[at(i, j)], sizeof value);
        return value;
    }
    void *data() const {
        return memory.data + at(0, 0);
    }
};

struct product {
    int64_t m, n, k;
    int transpose_a, transpose_b;
    td_dtype type, c_type;
    float beta;
    int64_t gap, shift;
};

float expected(const product &each, int64_t i, int64_t j) {
    float sum = 0.0f;
    for (int64_t l = 0; l < each.k; l++)
        sum += (each.transpose_a ? value_at(l, i) : value_at(i, l)) *
               (each.transpose_b ? value_at(j, l) : value_at(l, j));
    float result = 0.5f * sum + each.beta * value_at(i, j);
    return each.c_type == TD_F32 ? result : td_bf16_to_f32(td_f32_to_bf16(result));
}

// Computes it; the number of elements that are wrong, what lies between the rows included.
int64_t wrong_elements(queue *q, const product &each) {
    matrix a(each.transpose_a ? each.k : each.m, each.transpose_a ? each.m : each.k, each.type,
             each.gap, each.shift);
    matrix b(each.transpose_b ? each.n : each.k, each.transpose_b ? each.k : each.n, each.type,
             each.gap, each.shift);
    matrix c(each.m, each.n, each.c_type, each.gap, each.shift);
    std::vector<unsigned char> before = c.memory.get();
    td_cuda_gemm_args args = {each.transpose_a,
                              each.transpose_b,
                              each.m,
                              each.n,
                              each.k,
                              0.5f,
                              a.data(),
                              a.ld,
                              b.data(),
                              b.ld,
                              each.beta,
                              c.data(),
                              c.ld,
                              each.type,
                              each.c_type};
    if (!CHECK(q->multiply(&args) == TD_OK)) {
        fprintf(stderr, "    %s\n", td_error_message());
        return -1;
    }
    std::vector<unsigned char> after = c.memory.get();
    int64_t wrong = 0;
    for (int64_t i = 0; i < each.m; i++)
        for (int64_t j = 0; j < each.n; j++) {
            wrong += c.get(after, i, j) != expected(each, i, j);
            memcpy(&after[c.at(i, j)], &before[c.at(i, j)], td_dtype_bytes(each.c_type));
        }
    return wrong + (before != after);
}

void every_product_is_right() {
    static const td_dtype types[][2] = {{TD_F32, TD_F32}, {TD_BF16, TD_BF16}, {TD_BF16, TD_F32}};
    queue q;
    for (const auto &type : types)
        for (int bits = 0; bits < 32; bits++) {
            product each = {7,
                            11,
                            13,
                            bits & 1,
                            bits >> 1 & 1,
                            type[0],
                            type[1],
                            bits & 4 ? 1.0f : 0.0f,
                            bits & 8 ? 3 : 0,
                            bits & 16 ? 1 : 0};
            CHECK_INT(wrong_elements(&q, each), 0);
        }
}

td_cuda_gemm_counts counts_after(queue *q, const product &each) {
    CHECK_INT(wrong_elements(q, each), 0);
    return td_cuda_gemm_counts_of(0);
}

void a_plan_is_made_once() {
    queue q;
    product each = {9, 10, 32, 0, 1, TD_BF16, TD_BF16, 0.0f, 0, 0};
    td_cuda_gemm_counts first = counts_after(&q, each), second = counts_after(&q, each);
    CHECK_INT(second.made, first.made);
    CHECK_INT(second.found, first.found + 1);
    each.shift = 8; // another address, as aligned as the first: 16 bytes are all that counts
    td_cuda_gemm_counts moved = counts_after(&q, each);
    CHECK_INT(moved.made, first.made);
    each.shift = 1;
    td_cuda_gemm_counts unaligned = counts_after(&q, each);
    CHECK_INT(unaligned.made, first.made + 1);
    each.beta = 1.0f;
    CHECK_INT(counts_after(&q, each).made, first.made + 2);
}

enum { PRODUCTS = 2600, PLANS = 2048 }; // far more products than there are plans

product small_product(int64_t k) {
    return {1, 2, k, 0, 0, TD_F32, TD_F32, 0.0f, 0, 0};
}

// The oldest make room, and are made again when needed.
void the_cache_is_bounded() {
    queue q;
    auto sweep = [&] {
        uint64_t before = td_cuda_gemm_counts_of(0).made;
        for (int64_t k = 1; k <= PRODUCTS; k++)
            CHECK_INT(wrong_elements(&q, small_product(k)), 0);
        return td_cuda_gemm_counts_of(0).made - before;
    };
    CHECK_INT(sweep(), PRODUCTS);
    CHECK(sweep() >= PRODUCTS - PLANS);
    uint64_t before = td_cuda_gemm_counts_of(0).made;
    CHECK_INT(counts_after(&q, small_product(PRODUCTS)).made, before); // still there
}

void a_plan_in_use_stays() {
    queue q;
    product used = small_product(7), other = small_product(0);
    other.n = 3;
    counts_after(&q, used);
    for (other.k = 1; other.k <= PRODUCTS / 3; other.k++) {
        uint64_t made = counts_after(&q, other).made;
        if (!CHECK(counts_after(&q, used).made == made))
            break;
    }
}

void threads_do_not_disturb_each_other() {
    enum { THREADS = 4, ROUNDS = 40 };
    int64_t wrong[THREADS] = {};
    std::vector<std::thread> threads;
    for (int t = 0; t < THREADS; t++)
        threads.emplace_back([t, &wrong] {
            queue q;
            for (int round = 0; round < ROUNDS; round++) {
                product each = {3 + round % 5, 4 + t,  5 + round, t & 1, round & 1,
                                TD_BF16,       TD_F32, 0.0f,      0,     0};
                wrong[t] += wrong_elements(&q, each);
            }
        });
    for (std::thread &thread : threads)
        thread.join();
    for (int64_t each : wrong)
        CHECK_INT(each, 0);
}

int message_has(const char *text) {
    int has = strstr(td_error_message(), text) != nullptr;
    if (!has)
        fprintf(stderr, "    message: %s\n", td_error_message());
    return has;
}

void what_cannot_be_done_is_said() {
    queue q;
    matrix a(2, 3, TD_F32, 0, 0), b(3, 4, TD_F32, 0, 0), c(2, 4, TD_BF16, 0, 0);
    td_cuda_gemm_args args = {0,        0, 2,    4,        3, 1.0f,   a.data(), 3,
                              b.data(), 4, 0.0f, c.data(), 4, TD_F32, TD_BF16};
    uint64_t made = td_cuda_gemm_counts_of(0).made;
    CHECK_INT(td_cuda_gemm(&q.context, "a test", &args), TD_ERR_INTERNAL);
    CHECK(message_has("no algorithm for c (2, 4) = a b over 3, F32 to BF16"));
    CHECK(message_has("CUBLAS_STATUS_NOT_SUPPORTED"));
    CHECK_INT(td_cuda_gemm_counts_of(0).made, made);
    td_error_clear();
    args.c_type = TD_F32;
    q.context.workspace_bytes--;
    CHECK_INT(td_cuda_gemm(&q.context, "a test", &args), TD_ERR_INTERNAL);
    CHECK(message_has("a test: needs a workspace of 1048832 bytes, has 1048831"));
    td_error_clear();
}

// A plan that cannot be made may have taken the place of one that was there: the emulation ends the
// program when a product is given the rest of another one's.
void failures_leave_no_plan_behind() {
    queue q;
    matrix a(1, PRODUCTS, TD_F32, 0, 0), b(PRODUCTS, 2, TD_F32, 0, 0), c(1, 2, TD_F32, 0, 0);
    td_cuda_gemm_args args = {0,        0, 1,    2,        0, 1.0f,   a.data(), 0,
                              b.data(), 2, 0.0f, c.data(), 2, TD_F32, TD_F32};
    for (td_dtype c_type : {TD_F32, TD_BF16, TD_F32})
        for (args.k = args.lda = 1; args.k <= PRODUCTS; args.lda = ++args.k) {
            args.c_type = c_type;
            CHECK((td_cuda_gemm(&q.context, "a test", &args) == TD_OK) == (c_type == TD_F32));
            td_error_clear();
        }
    CHECK_INT(q.context.device->table->stream_synchronize(q.context.stream), TD_OK);
}

} // namespace

int main() {
    TEST(every_product_is_right);
    TEST(a_plan_is_made_once);
    TEST(the_cache_is_bounded);
    TEST(a_plan_in_use_stays);
    TEST(threads_do_not_disturb_each_other);
    TEST(what_cannot_be_done_is_said);
    TEST(failures_leave_no_plan_behind);
    return test_report();
}
