// The emulated cuBLASLt: results in both orders, and misuse, which must end the program with a line
// that names it.
#include <cublasLt.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>

#include "selftest.cuh"

namespace {

constexpr size_t workspace_bytes = 1 << 16;

// d (m, n) = op(a) op(b) by columns, with everything that a test may get wrong.
struct attempt {
    uint64_t m = 4, n = 5, k = 6;
    int64_t ld_a = 4, ld_b = 6, ld_d = 4;
    size_t shift_a = 0, shift_workspace = 0; // in bytes
    size_t given_workspace = workspace_bytes;
    uint64_t chosen_k = 6; // the algorithm is asked for with this extent
    uint32_t align = 256, schemes = CUBLASLT_REDUCTION_SCHEME_NONE;
    int32_t order = CUBLASLT_ORDER_COL; // of every matrix
    cublasComputeType_t compute = CUBLAS_COMPUTE_32F_PEDANTIC;
    bool d_is_a = false, skip_layout = false, unknown_attribute = false;
};

struct descriptors {
    cublasLtMatmulDescOpaque_t product;
    cublasLtMatrixLayoutOpaque_t a, b, d;
};

void describe(const attempt &each, uint64_t k, descriptors *out) {
    memset(out, 0, sizeof *out);
    cublasLtMatmulDescInit(&out->product, each.compute, CUDA_R_32F);
    cublasLtMatrixLayoutInit(&out->a, CUDA_R_32F, each.m, k, each.ld_a);
    if (!each.skip_layout)
        cublasLtMatrixLayoutInit(&out->b, CUDA_R_32F, k, each.n, each.ld_b);
    cublasLtMatrixLayoutInit(&out->d, CUDA_R_32F, each.m, each.n, each.ld_d);
    if (each.unknown_attribute)
        cublasLtMatmulDescSetAttribute(&out->product, CUBLASLT_MATMUL_DESC_EPILOGUE, &each.order,
                                       sizeof each.order);
    if (each.order != CUBLASLT_ORDER_COL)
        for (cublasLtMatrixLayout_t layout : {&out->a, &out->b, &out->d})
            cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_ORDER, &each.order,
                                             sizeof each.order);
}

cublasStatus_t choose(const attempt &each, cublasLtHandle_t handle, descriptors *described,
                      cublasLtMatmulHeuristicResult_t *out) {
    cublasLtMatmulPreferenceOpaque_t preference;
    uint64_t bytes = workspace_bytes;
    int n = 0;
    cublasLtMatmulPreferenceInit(&preference);
    cublasLtMatmulPreferenceSetAttribute(&preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                         &bytes, sizeof bytes);
    cublasLtMatmulPreferenceSetAttribute(&preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                                         &each.schemes, sizeof each.schemes);
    cublasLtMatmulPreferenceSetAttribute(&preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
                                         &each.align, sizeof each.align);
    return cublasLtMatmulAlgoGetHeuristic(handle, &described->product, &described->a, &described->b,
                                          &described->d, &described->d, &preference, 1, out, &n);
}

cublasStatus_t run_attempt(const attempt &each, const std::vector<float> &a_values,
                           const std::vector<float> &b_values, std::vector<float> *out,
                           std::vector<unsigned char> *out_workspace) {
    device_array<float> a(a_values), b(b_values), d(out->size());
    device_array<unsigned char> workspace(workspace_bytes + 64);
    float alpha = 1.0f, beta = 0.0f;
    descriptors chosen, used;
    cublasLtMatmulHeuristicResult_t result;
    cublasLtHandle_t handle;
    cublasLtCreate(&handle);
    describe(each, each.chosen_k, &chosen);
    describe(each, each.k, &used);
    cublasStatus_t status = choose(each, handle, &chosen, &result);
    const char *a_at = reinterpret_cast<const char *>(a.data) + each.shift_a;
    float *d_at = each.d_is_a ? a.data : d.data;
    if (status == CUBLAS_STATUS_SUCCESS)
        status =
            cublasLtMatmul(handle, &used.product, &alpha, a_at, &used.a, b.data, &used.b, &beta,
                           d_at, &used.d, d_at, &used.d, &result.algo,
                           workspace.data + each.shift_workspace, each.given_workspace, nullptr);
    cudaDeviceSynchronize();
    cublasLtDestroy(handle);
    *out = d.get();
    *out_workspace = workspace.get();
    return status;
}

std::vector<float> numbers(size_t n) {
    std::vector<float> values(n);
    for (size_t i = 0; i < n; i++)
        values[i] = static_cast<float>(static_cast<int>(i * 7 % 11) - 5);
    return values;
}

// The index of (i, j) in a matrix of the order.
size_t index(int32_t order, int64_t ld, size_t i, size_t j) {
    size_t stride = static_cast<size_t>(ld);
    return order == CUBLASLT_ORDER_COL ? j * stride + i : i * stride + j;
}

void both_orders_are_right() {
    for (int32_t order : {CUBLASLT_ORDER_COL, CUBLASLT_ORDER_ROW}) {
        attempt each;
        each.order = order;
        each.ld_a = each.ld_b = each.ld_d = 8;
        std::vector<float> a = numbers(64), b = numbers(64), d(64);
        std::vector<unsigned char> workspace;
        CHECK_INT(run_attempt(each, a, b, &d, &workspace), CUBLAS_STATUS_SUCCESS);
        for (size_t i = 0; i < each.m; i++)
            for (size_t j = 0; j < each.n; j++) {
                float sum = 0.0f;
                for (size_t l = 0; l < each.k; l++)
                    sum += a[index(order, 8, i, l)] * b[index(order, 8, l, j)];
                CHECK_NEAR(d[index(order, 8, i, j)], sum, 0.0);
            }
    }
}

void the_whole_workspace_is_overwritten() {
    attempt each;
    std::vector<float> d(32);
    std::vector<unsigned char> workspace;
    CHECK_INT(run_attempt(each, numbers(32), numbers(32), &d, &workspace), CUBLAS_STATUS_SUCCESS);
    for (size_t i = 0; i < workspace_bytes; i++)
        if (!CHECK(workspace[i] == 0xff))
            break;
}

// A product whose bits depend on the order of its sums.
std::vector<float> long_sums(const attempt &each) {
    attempt longer = each;
    longer.k = longer.chosen_k = 4096;
    longer.ld_b = 4096;
    std::vector<float> a(4 * 4096), b(5 * 4096), d(20);
    for (size_t i = 0; i < a.size(); i++)
        a[i] = 1.0f / static_cast<float>(i % 977 + 1);
    for (size_t i = 0; i < b.size(); i++)
        b[i] = 1.0f / static_cast<float>(i % 1009 + 3);
    std::vector<unsigned char> workspace;
    CHECK_INT(run_attempt(longer, a, b, &d, &workspace), CUBLAS_STATUS_SUCCESS);
    return d;
}

void bits_depend_on_what_the_algorithm_may_do() {
    for (uint32_t schemes :
         {CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE, CUBLASLT_REDUCTION_SCHEME_MASK}) {
        attempt each;
        each.schemes = schemes;
        std::vector<float> first = long_sums(each);
        int differ = 0;
        for (int round = 0; round < 8; round++)
            differ += first != long_sums(each);
        CHECK((differ > 0) == (schemes == CUBLASLT_REDUCTION_SCHEME_MASK));
    }
    attempt narrow;
    narrow.align = 4;
    CHECK(long_sums(narrow) != long_sums(attempt()));
}

void other_arithmetic_has_no_algorithm() {
    attempt each;
    each.compute = CUBLAS_COMPUTE_32F_FAST_TF32;
    std::vector<float> d(32);
    std::vector<unsigned char> workspace;
    CHECK_INT(run_attempt(each, numbers(32), numbers(32), &d, &workspace),
              CUBLAS_STATUS_NOT_SUPPORTED);
}

// What a child that makes the attempt prints before it aborts; "" when it does not abort.
std::string last_words(const attempt &each) {
    int ends[2];
    REQUIRE(pipe(ends) == 0);
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        std::vector<float> d(32);
        std::vector<unsigned char> workspace;
        dup2(ends[1], STDERR_FILENO);
        signal(SIGABRT, SIG_DFL);
        run_attempt(each, numbers(32), numbers(32), &d, &workspace);
        _exit(0);
    }
    close(ends[1]);
    std::string words;
    char buffer[512];
    for (ssize_t n; (n = read(ends[0], buffer, sizeof buffer)) > 0;)
        words.append(buffer, static_cast<size_t>(n));
    close(ends[0]);
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? "" : words;
}

void expect_refusal(const attempt &each, const char *words) {
    std::string said = last_words(each);
    if (!CHECK(said.find(words) != std::string::npos))
        fprintf(stderr, "    expected \"%s\", said \"%s\"\n", words, said.c_str());
}

attempt changed(void (*change)(attempt *)) {
    attempt each;
    change(&each);
    return each;
}

void misuse_is_refused() {
    CHECK(last_words(attempt()).empty());
    expect_refusal(changed([](attempt *each) { each->ld_a = 3; }), "leading dimension of 3");
    expect_refusal(changed([](attempt *each) { each->shift_a = 4; }), "multiples of 16");
    expect_refusal(changed([](attempt *each) { each->chosen_k = 5; }), "for another product");
    expect_refusal(changed([](attempt *each) { each->given_workspace = 0; }), "bytes of workspace");
    expect_refusal(changed([](attempt *each) { each->shift_workspace = 64; }),
                   "not aligned to 256");
    expect_refusal(changed([](attempt *each) { each->d_is_a = true; }), "is d");
    expect_refusal(changed([](attempt *each) { each->skip_layout = true; }), "not initialised");
    expect_refusal(changed([](attempt *each) { each->unknown_attribute = true; }), "not emulated");
    expect_refusal(changed([](attempt *each) { each->ld_d = 400; }), "pass the end");
    attempt tolerant;
    tolerant.shift_a = tolerant.align = 4;
    CHECK(last_words(tolerant).empty());
}

} // namespace

int main() {
    TEST(both_orders_are_right);
    TEST(the_whole_workspace_is_overwritten);
    TEST(bits_depend_on_what_the_algorithm_may_do);
    TEST(other_arithmetic_has_no_algorithm);
    TEST(misuse_is_refused);
    return test_report();
}
