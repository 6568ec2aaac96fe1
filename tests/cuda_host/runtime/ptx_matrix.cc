// mma and ldmatrix for a whole warp, from the fragment layouts of the PTX ISA documentation
// ("Matrix Fragments for mma.m16n8k16 with floating point type", "ldmatrix"). There groupID is
// lane / 4 and threadID_in_group is lane % 4.
#include <cstring>

#include "tests/cuda_host/include/cuda_host_ptx.h"

// A pair of bf16 as two floats: the low half is the lower column of A or row of B.
static float low(uint32_t pair) {
    return __uint_as_float(pair << 16);
}
static float high(uint32_t pair) {
    return __uint_as_float(pair & 0xffff0000u);
}

// The documentation numbers the elements of a lane: element i of A is the half i % 2 of register
// i / 2. Its row is groupID for 0 <= i < 2 and 4 <= i < 6, else groupID + 8; its column
// threadID_in_group * 2 + (i & 1), and 8 more for i >= 4.
static void gather_a(const cuda_host_mma_lane &from, int group, int thread, float (*a)[16]) {
    for (int i = 0; i < 8; i += 2) {
        int row = i < 2 || (i >= 4 && i < 6) ? group : group + 8;
        int col = thread * 2 + (i < 4 ? 0 : 8);
        a[row][col] = low(from.a[i / 2]);
        a[row][col + 1] = high(from.a[i / 2]);
    }
}

// Element i of B: row threadID_in_group * 2 + (i & 1), and 8 more for i >= 2; column groupID.
static void gather_b(const cuda_host_mma_lane &from, int group, int thread, float (*b)[8]) {
    for (int i = 0; i < 4; i += 2) {
        int row = thread * 2 + (i < 2 ? 0 : 8);
        b[row][group] = low(from.b[i / 2]);
        b[row + 1][group] = high(from.b[i / 2]);
    }
}

// Element i of C and of D: row groupID for i < 2, else groupID + 8; column threadID_in_group * 2 +
// (i & 1).
static float *d_element(float (*d)[8], int group, int thread, int i) {
    return &d[i < 2 ? group : group + 8][thread * 2 + (i & 1)];
}

typedef float row_of_8 __attribute__((vector_size(32), aligned(4), may_alias));

// Products of bf16 are exact in fp32; they are added one by one in the order of k.
static void multiply(float (*d)[8], const float (*a)[16], const float (*b)[8]) {
    for (int row = 0; row < 16; row++) {
        row_of_8 sum = *reinterpret_cast<const row_of_8 *>(d[row]);
        for (int k = 0; k < 16; k++)
            sum += a[row][k] * *reinterpret_cast<const row_of_8 *>(b[k]);
        *reinterpret_cast<row_of_8 *>(d[row]) = sum;
    }
}

void cuda_host_mma_step(void *const *lanes, unsigned) {
    float a[16][16], b[16][8], d[16][8];
    for (int lane = 0; lane < 32; lane++) {
        const auto &from = *static_cast<const cuda_host_mma_lane *>(lanes[lane]);
        gather_a(from, lane / 4, lane % 4, a);
        gather_b(from, lane / 4, lane % 4, b);
        for (int i = 0; i < 4; i++)
            *d_element(d, lane / 4, lane % 4, i) = from.d[i];
    }
    multiply(d, a, b);
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < 4; i++)
            static_cast<cuda_host_mma_lane *>(lanes[lane])->d[i] =
                *d_element(d, lane / 4, lane % 4, i);
}

static void check_row(const void *row, int lane) {
    const char *begin = static_cast<const char *>(cuda_host_shared_memory());
    const char *at = static_cast<const char *>(row);
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0)
        cuda_host_fail("ldmatrix: the row address of lane %d is not a multiple of 16", lane);
    if (at < begin || at + 16 > begin + cuda_host_shared_bytes())
        cuda_host_fail("ldmatrix: the row of lane %d is outside the block's shared memory", lane);
}

// Matrix i's eight rows are at the addresses of lanes 8 i to 8 i + 7.
static void read_matrix(void *const *lanes, int i, uint16_t (*out)[8]) {
    for (int row = 0; row < 8; row++) {
        int lane = i * 8 + row;
        const void *from = static_cast<const cuda_host_ldmatrix_lane *>(lanes[lane])->row;
        check_row(from, lane);
        memcpy(out[row], from, 16);
    }
}

void cuda_host_ldmatrix_step(void *const *lanes, unsigned) {
    const auto &first = *static_cast<const cuda_host_ldmatrix_lane *>(lanes[0]);
    uint16_t matrix[8][8];
    for (int i = 0; i < first.n_matrices; i++) {
        read_matrix(lanes, i, matrix);
        for (int lane = 0; lane < 32; lane++) {
            int group = lane / 4, pair = lane % 4 * 2;
            uint32_t low = first.transpose ? matrix[pair][group] : matrix[group][pair];
            uint32_t high = first.transpose ? matrix[pair + 1][group] : matrix[group][pair + 1];
            static_cast<cuda_host_ldmatrix_lane *>(lanes[lane])->out[i] = high << 16 | low;
        }
    }
}
