// The emulated PTX instructions against plain loops: fragments are put together here from where an
// element goes, there from what a register holds. And what they refuse.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernels/cuda/cuda_internal.cuh"
#include "kernels/cuda/ptx.cuh"
#include "selftest.cuh"

static uint16_t bf16_of(int value) {
    return __bfloat16_as_ushort(__float2bfloat16_rn(static_cast<float>(value)));
}

static void put_half(uint32_t *word, int half, uint16_t bits) {
    *word |= static_cast<uint32_t>(bits) << (16 * half);
}

// All exact in bf16, and all sums exact in fp32: any order of the additions gives the same.
struct mma_operands {
    int a[16][16], b[16][8], c[16][8];
};

static mma_operands distinct_operands() {
    mma_operands x;
    for (int i = 0; i < 256; i++)
        x.a[i / 16][i % 16] = i - 100;
    for (int i = 0; i < 128; i++) {
        x.b[i / 8][i % 8] = i - 50;
        x.c[i / 8][i % 8] = 1000 * i;
    }
    return x;
}

static int mma_expected(const mma_operands &x, int row, int col) {
    int sum = x.c[row][col];
    for (int k = 0; k < 16; k++)
        sum += x.a[row][k] * x.b[k][col];
    return sum;
}

struct mma_fragments {
    std::vector<uint32_t> a = std::vector<uint32_t>(32 * 4), b = std::vector<uint32_t>(32 * 2);
    std::vector<float> d = std::vector<float>(32 * 4);
};

static size_t d_place(int row, int col) {
    return static_cast<size_t>((row % 8 * 4 + col / 2) * 4 + row / 8 * 2 + col % 2);
}

static mma_fragments fragments_of(const mma_operands &x) {
    mma_fragments f;
    for (int row = 0; row < 16; row++)
        for (int k = 0; k < 16; k++) {
            int lane = row % 8 * 4 + k % 8 / 2, reg = row / 8 + 2 * (k / 8);
            put_half(&f.a[static_cast<size_t>(lane * 4 + reg)], k % 2, bf16_of(x.a[row][k]));
        }
    for (int k = 0; k < 16; k++)
        for (int col = 0; col < 8; col++) {
            int lane = col * 4 + k % 8 / 2;
            put_half(&f.b[static_cast<size_t>(lane * 2 + k / 8)], k % 2, bf16_of(x.b[k][col]));
        }
    for (int row = 0; row < 16; row++)
        for (int col = 0; col < 8; col++)
            f.d[d_place(row, col)] = static_cast<float>(x.c[row][col]);
    return f;
}

// a_order and b_order say which registers are given as a[0..3] and b0, b1: 0123 and 01 are right.
static __device__ void mma_lane(const uint32_t *a, const uint32_t *b, float *d, int a_order,
                                int b_order) {
    unsigned lane = threadIdx.x;
    uint32_t part[4];
    float sum[4];
    for (int i = 3; i >= 0; i--, a_order /= 10) {
        part[i] = a[lane * 4 + static_cast<unsigned>(a_order % 10)];
        sum[i] = d[lane * 4 + static_cast<unsigned>(i)];
    }
    uint32_t b0 = b[lane * 2 + static_cast<unsigned>(b_order / 10)];
    uint32_t b1 = b[lane * 2 + static_cast<unsigned>(b_order % 10)];
    td_ptx_mma_m16n8k16(sum, part, b0, b1);
    for (unsigned i = 0; i < 4; i++)
        d[lane * 4 + i] = sum[i];
}

static __global__ void mma_kernel(const uint32_t *a, const uint32_t *b, float *d, int a_order,
                                  int b_order) {
    mma_lane(a, b, d, a_order, b_order);
}

static int mma_wrong_elements(int a_order, int b_order) {
    mma_operands x = distinct_operands();
    mma_fragments f = fragments_of(x);
    device_array<uint32_t> a(f.a), b(f.b);
    device_array<float> d(f.d);
    run(mma_kernel, 1, 32, 0, a.data, b.data, d.data, a_order, b_order);
    std::vector<float> result = d.get();
    int wrong = 0;
    for (int row = 0; row < 16; row++)
        for (int col = 0; col < 8; col++)
            wrong += result[d_place(row, col)] != static_cast<float>(mma_expected(x, row, col));
    return wrong;
}

static void mma_multiplies(void) {
    CHECK_INT(mma_wrong_elements(123, 1), 0);
}

static void wrong_fragment_index_gives_wrong_numbers(void) {
    CHECK(mma_wrong_elements(213, 1) > 100); // a[1] and a[2] exchanged
    CHECK(mma_wrong_elements(1032, 1) > 100);
    CHECK(mma_wrong_elements(123, 10) > 100); // b0 and b1 exchanged
}

// Row r of matrix i lies at 16 bytes number (5 (8 i + r) mod 32), so that addresses matter.
enum { MATRIX_ROWS = 32 };

static int row_place(int row) {
    return row * 5 % MATRIX_ROWS;
}

static uint16_t matrix_element(int matrix, int row, int col) {
    return static_cast<uint16_t>(matrix * 1000 + row * 10 + col);
}

static __global__ void ldmatrix_kernel(const uint16_t *rows, uint32_t *out, int n, int transpose,
                                       int skew) {
    uint16_t *shared = td_cuda_shared<uint16_t>();
    unsigned lane = threadIdx.x;
    for (unsigned i = lane; i < MATRIX_ROWS * 8; i += 32)
        shared[i] = rows[i];
    __syncthreads();
    const uint16_t *row = shared + row_place(static_cast<int>(lane)) * 8 + skew;
    uint32_t x1[1] = {}, x2[2] = {}, x4[4] = {};
    if (n == 1)
        transpose ? td_ptx_ldmatrix_x1_trans(x1, row) : td_ptx_ldmatrix_x1(x1, row);
    else if (n == 2)
        transpose ? td_ptx_ldmatrix_x2_trans(x2, row) : td_ptx_ldmatrix_x2(x2, row);
    else
        transpose ? td_ptx_ldmatrix_x4_trans(x4, row) : td_ptx_ldmatrix_x4(x4, row);
    const uint32_t *from = n == 1 ? x1 : n == 2 ? x2 : x4;
    for (int i = 0; i < n; i++)
        out[lane * 4 + static_cast<unsigned>(i)] = from[i];
}

static std::vector<uint16_t> matrix_rows() {
    std::vector<uint16_t> rows(MATRIX_ROWS * 8);
    for (int i = 0; i < MATRIX_ROWS; i++)
        for (int col = 0; col < 8; col++)
            rows[static_cast<size_t>(row_place(i) * 8 + col)] = matrix_element(i / 8, i % 8, col);
    return rows;
}

static void ldmatrix_case(int n, int transpose) {
    device_array<uint16_t> rows(matrix_rows());
    device_array<uint32_t> out(std::vector<uint32_t>(32 * 4));
    run(ldmatrix_kernel, 1, 32, MATRIX_ROWS * 16, rows.data, out.data, n, transpose, 0);
    std::vector<uint32_t> expected(32 * 4);
    for (int i = 0; i < n; i++)
        for (int row = 0; row < 8; row++)
            for (int col = 0; col < 8; col++) {
                int lane = transpose ? col * 4 + row / 2 : row * 4 + col / 2;
                put_half(&expected[static_cast<size_t>(lane * 4 + i)],
                         transpose ? row % 2 : col % 2, matrix_element(i, row, col));
            }
    CHECK(out.get() == expected);
}

static void ldmatrix_loads(void) {
    for (int n = 1; n <= 4; n *= 2) {
        ldmatrix_case(n, 0);
        ldmatrix_case(n, 1);
    }
}

// Every thread copies SIZE bytes, the last thread % 3 * SIZE / 4 of them as zeros, and reads what
// its neighbour's copy brought.
template <int SIZE>
static __global__ void copy_kernel(const unsigned char *from, unsigned char *out, int through_l1) {
    unsigned char *shared = td_cuda_shared<unsigned char>();
    unsigned thread = threadIdx.x, next = (thread + 1) % blockDim.x;
    int source_bytes = SIZE - static_cast<int>(thread % 3) * SIZE / 4;
    if (SIZE == 16 && !through_l1)
        td_ptx_cp_async_cg_16(shared + thread * 16, from + thread * 16, source_bytes);
    else
        td_ptx_cp_async_ca<SIZE>(shared + thread * SIZE, from + thread * SIZE, source_bytes);
    td_ptx_cp_async_commit();
    td_ptx_cp_async_wait<0>();
    __syncthreads();
    for (unsigned i = 0; i < SIZE; i++)
        out[next * SIZE + i] = shared[next * SIZE + i];
}

template <int SIZE> static void copy_case(int through_l1) {
    enum { THREADS = 70 };
    std::vector<unsigned char> source(THREADS * SIZE), expected(THREADS * SIZE);
    for (size_t i = 0; i < source.size(); i++) {
        int zeros = static_cast<int>(i / SIZE % 3) * SIZE / 4;
        source[i] = static_cast<unsigned char>(i * 7 + 1);
        expected[i] = static_cast<int>(i % SIZE) < SIZE - zeros ? source[i] : 0;
    }
    device_array<unsigned char> from(source), out(source);
    run(copy_kernel<SIZE>, 1, THREADS, THREADS * SIZE, from.data, out.data, through_l1);
    CHECK(out.get() == expected);
}

static void cp_async_copies(void) {
    copy_case<4>(1);
    copy_case<8>(1);
    copy_case<16>(1);
    copy_case<16>(0);
}

// Two groups: what of them is there before any wait, when one may still be under way, and after.
static __global__ void groups_kernel(const float *from, float *out) {
    float *shared = td_cuda_shared<float>();
    for (int i = 0; i < 2; i++) {
        td_ptx_cp_async_ca<4>(shared + i, from + i);
        td_ptx_cp_async_commit();
    }
    out[0] = shared[0];
    td_ptx_cp_async_wait<1>();
    out[1] = shared[0];
    out[2] = shared[1];
    td_ptx_cp_async_wait<0>();
    out[3] = shared[1];
}

static void cp_async_is_nan_until_its_wait(void) {
    device_array<float> from(std::vector<float>{3.0f, 4.0f}), out(std::vector<float>(4));
    run(groups_kernel, 1, 1, 8, from.data, out.data);
    std::vector<float> seen = out.get();
    CHECK(std::isnan(seen[0]));
    CHECK_NEAR(seen[1], 3.0, 0);
    CHECK(std::isnan(seen[2]));
    CHECK_NEAR(seen[3], 4.0, 0);
}

// An uncommitted copy belongs to no group that a wait could cover.
static __global__ void uncommitted_kernel(const float *from, float *out) {
    float *shared = td_cuda_shared<float>();
    td_ptx_cp_async_ca<4>(shared, from);
    td_ptx_cp_async_wait<0>();
    out[0] = shared[0];
    td_ptx_cp_async_commit();
    td_ptx_cp_async_wait<0>();
    out[1] = shared[0];
}

static void commit_makes_the_group(void) {
    device_array<float> from(std::vector<float>{3.0f}), out(std::vector<float>(2));
    run(uncommitted_kernel, 1, 1, 4, from.data, out.data);
    CHECK(std::isnan(out.get()[0]));
    CHECK_NEAR(out.get()[1], 3.0, 0);
}

static __global__ void arithmetic_kernel(const float *x, float *exp2_out, uint32_t *packed) {
    unsigned i = threadIdx.x;
    exp2_out[i] = td_ptx_exp2(x[i]);
    packed[i] = td_ptx_pack_bf16(x[i], -x[i]);
}

static void exp2_and_pack(void) {
    std::vector<float> values = {0, 1, -1.5f, 10.25f, -126, -126.5f, -INFINITY, 3.14159f};
    device_array<float> x(values), power(values);
    device_array<uint32_t> packed(std::vector<uint32_t>(values.size()));
    run(arithmetic_kernel, 1, static_cast<unsigned>(values.size()), 0, x.data, power.data,
        packed.data);
    for (size_t i = 0; i < values.size(); i++) {
        double exact = values[i] < -126 ? 0.0 : exp2(static_cast<double>(values[i]));
        CHECK_NEAR(power.get()[i], exact, 3e-7 * exact);
        uint16_t low = __bfloat16_as_ushort(__float2bfloat16_rn(values[i]));
        CHECK_INT(packed.get()[i], static_cast<uint32_t>(low ^ 0x8000) << 16 | low);
    }
}

// Runs `body` in a child; whether it aborted with a line that has `text` in it.
static bool aborts_with(void (*body)(), const char *text) {
    int ends[2], status = 0;
    REQUIRE(pipe(ends) == 0);
    fflush(stdout);
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        dup2(ends[1], STDERR_FILENO);
        body();
        _exit(0);
    }
    close(ends[1]);
    char line[4096];
    size_t n = 0;
    for (ssize_t got; (got = read(ends[0], line + n, sizeof line - 1 - n)) > 0;)
        n += static_cast<size_t>(got);
    line[n] = 0;
    close(ends[0]);
    REQUIRE(waitpid(child, &status, 0) == child);
    bool as_expected = WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT && strstr(line, text);
    if (!as_expected)
        fprintf(stderr, "expected an abort with \"%s\", got status %d: %s\n", text, status, line);
    return as_expected;
}

static void misaligned_row(void) {
    device_array<uint16_t> rows(matrix_rows());
    device_array<uint32_t> out(std::vector<uint32_t>(32 * 4));
    run(ldmatrix_kernel, 1, 32, MATRIX_ROWS * 16, rows.data, out.data, 4, 0, 4);
}

static void row_outside(void) {
    device_array<uint16_t> rows(matrix_rows());
    device_array<uint32_t> out(std::vector<uint32_t>(32 * 4));
    run(ldmatrix_kernel, 1, 32, MATRIX_ROWS * 16, rows.data, out.data, 4, 0, 8);
}

enum copy_fault { MISALIGNED, OUTSIDE, NEVER_WAITED, OVERWRITTEN };

static __global__ void faulty_copy_kernel(const float *from, int fault) {
    float *shared = td_cuda_shared<float>();
    int offset = fault == MISALIGNED ? 1 : fault == OUTSIDE ? 8 : 0;
    td_ptx_cp_async_cg_16(shared + offset, from);
    td_ptx_cp_async_commit();
    if (fault == OVERWRITTEN)
        shared[2] = 1.0f;
    if (fault != NEVER_WAITED)
        td_ptx_cp_async_wait<0>();
}

template <int FAULT> static void faulty_copy(void) {
    device_array<float> from(std::vector<float>(8));
    run(faulty_copy_kernel, 1, 1, 32, from.data, static_cast<int>(FAULT));
}

static __global__ void half_a_warp_kernel(const uint32_t *a, const uint32_t *b, float *d) {
    if (threadIdx.x < 16)
        mma_lane(a, b, d, 123, 1);
}

static void half_a_warp(void) {
    mma_fragments f;
    device_array<uint32_t> a(f.a), b(f.b);
    device_array<float> d(f.d);
    run(half_a_warp_kernel, 1, 32, 0, a.data, b.data, d.data);
}

static void faults_are_refused(void) {
    CHECK(aborts_with(misaligned_row, "not a multiple of 16"));
    CHECK(aborts_with(row_outside, "outside the block's shared memory"));
    CHECK(aborts_with(faulty_copy<MISALIGNED>, "not a multiple of 16"));
    CHECK(aborts_with(faulty_copy<OUTSIDE>, "outside the block's shared memory"));
    CHECK(aborts_with(faulty_copy<NEVER_WAITED>, "never waited for"));
    CHECK(aborts_with(faulty_copy<OVERWRITTEN>, "written while it was under way"));
    CHECK(aborts_with(half_a_warp, "mma.m16n8k16"));
}

int main(void) {
    TEST(faults_are_refused); // first: children start with an untouched runtime
    TEST(mma_multiplies);
    TEST(wrong_fragment_index_gives_wrong_numbers);
    TEST(ldmatrix_loads);
    TEST(cp_async_copies);
    TEST(cp_async_is_nan_until_its_wait);
    TEST(commit_makes_the_group);
    TEST(exp2_and_pack);
    return test_report();
}
