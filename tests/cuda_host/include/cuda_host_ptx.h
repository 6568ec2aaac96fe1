// The instructions of kernels/cuda/ptx.cuh, emulated from the PTX ISA documentation. Tensor-core
// instructions are collective over the warp. cp.async leaves NaN at its destination until the wait
// that covers its group.
#ifndef CUDA_HOST_CUDA_HOST_PTX_H
#define CUDA_HOST_CUDA_HOST_PTX_H

#include <cmath>
#include <cstdint>

#include "cuda_bf16.h"
#include "cuda_host.h"

// What one lane brings to mma.m16n8k16 and takes from it.
struct cuda_host_mma_lane {
    uint32_t a[4], b[2];
    float d[4];
};
void cuda_host_mma_step(void *const *lanes, unsigned mask);

inline void td_ptx_mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                CUDA_HOST_PLACE) {
    cuda_host_mma_lane lane = {{a[0], a[1], a[2], a[3]}, {b0, b1}, {d[0], d[1], d[2], d[3]}};
    cuda_host_warp_collective(CUDA_HOST_SITE("mma.m16n8k16"), 0xffffffffu, &lane,
                              cuda_host_mma_step);
    for (int i = 0; i < 4; i++)
        d[i] = lane.d[i];
}

// One lane of ldmatrix: the address of a row of 16 bytes, and its fragments of up to 4 matrices.
struct cuda_host_ldmatrix_lane {
    const void *row;
    int n_matrices;
    bool transpose;
    uint32_t out[4];
};
void cuda_host_ldmatrix_step(void *const *lanes, unsigned mask);

template <int N>
void cuda_host_ldmatrix(cuda_host_site site, uint32_t (&out)[N], const void *row, bool transpose) {
    cuda_host_ldmatrix_lane lane = {row, N, transpose, {}};
    cuda_host_warp_collective(site, 0xffffffffu, &lane, cuda_host_ldmatrix_step);
    for (int i = 0; i < N; i++)
        out[i] = lane.out[i];
}

inline void td_ptx_ldmatrix_x1(uint32_t (&out)[1], const void *row, CUDA_HOST_PLACE) {
    cuda_host_ldmatrix(CUDA_HOST_SITE("ldmatrix.x1"), out, row, false);
}
inline void td_ptx_ldmatrix_x2(uint32_t (&out)[2], const void *row, CUDA_HOST_PLACE) {
    cuda_host_ldmatrix(CUDA_HOST_SITE("ldmatrix.x2"), out, row, false);
}
inline void td_ptx_ldmatrix_x4(uint32_t (&out)[4], const void *row, CUDA_HOST_PLACE) {
    cuda_host_ldmatrix(CUDA_HOST_SITE("ldmatrix.x4"), out, row, false);
}
inline void td_ptx_ldmatrix_x1_trans(uint32_t (&out)[1], const void *row, CUDA_HOST_PLACE) {
    cuda_host_ldmatrix(CUDA_HOST_SITE("ldmatrix.x1.trans"), out, row, true);
}
inline void td_ptx_ldmatrix_x2_trans(uint32_t (&out)[2], const void *row, CUDA_HOST_PLACE) {
    cuda_host_ldmatrix(CUDA_HOST_SITE("ldmatrix.x2.trans"), out, row, true);
}
inline void td_ptx_ldmatrix_x4_trans(uint32_t (&out)[4], const void *row, CUDA_HOST_PLACE) {
    cuda_host_ldmatrix(CUDA_HOST_SITE("ldmatrix.x4.trans"), out, row, true);
}

// cp.async of the running thread: `bytes` at `shared`, of which the first source_bytes come from
// `global`.
void cuda_host_cp_async(cuda_host_site site, void *shared, const void *global, int bytes,
                        int source_bytes);
void cuda_host_cp_async_commit();
void cuda_host_cp_async_wait(int groups_left);

inline void td_ptx_cp_async_cg_16(void *shared, const void *global, int source_bytes = 16,
                                  CUDA_HOST_PLACE) {
    cuda_host_cp_async(CUDA_HOST_SITE("cp.async.cg"), shared, global, 16, source_bytes);
}
template <int SIZE>
void td_ptx_cp_async_ca(void *shared, const void *global, int source_bytes = SIZE,
                        CUDA_HOST_PLACE) {
    static_assert(SIZE == 4 || SIZE == 8 || SIZE == 16, "sizes of cp.async");
    cuda_host_cp_async(CUDA_HOST_SITE("cp.async.ca"), shared, global, SIZE, source_bytes);
}
inline void td_ptx_cp_async_commit() {
    cuda_host_cp_async_commit();
}
template <int N> void td_ptx_cp_async_wait() {
    cuda_host_cp_async_wait(N);
}

inline float td_ptx_exp2(float x) {
    float y = exp2f(x);
    return y < 0x1p-126f ? 0.0f : y;
}
inline uint32_t td_ptx_pack_bf16(float low, float high) {
    return static_cast<uint32_t>(cuda_host_bf16_bits(high)) << 16 | cuda_host_bf16_bits(low);
}

#endif
