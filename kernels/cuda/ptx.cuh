// The PTX instructions that the kernels use, one function per instruction. On the host their
// emulation takes their place. (PTX ISA, "Warp-level matrix instructions", "cp.async".)
//
// Fragments of m16n8k16, with row = lane / 4 and pair = lane % 4 * 2; a register of A and B holds
// two bf16, the one of the lower column (A) or row (B) in its low half:
//     A (16, 16): a[0] (row, pair), a[1] (row + 8, pair), a[2] (row, pair + 8),
//                 a[3] (row + 8, pair + 8)
//     B (16, 8):  b0 (pair, row), b1 (pair + 8, row)
//     D (16, 8):  d[0], d[1] (row, pair and pair + 1), d[2], d[3] (row + 8, the same)
// ldmatrix gives row `row`, elements pair and pair + 1, of an 8x8 matrix; with .trans column `row`.
#ifndef TANDEM_KERNELS_CUDA_PTX_CUH
#define TANDEM_KERNELS_CUDA_PTX_CUH

#include <cstdint>

#if defined(__CUDACC__)

static __device__ __forceinline__ uint32_t td_ptx_shared_address(const void *shared) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// d += a b, the whole warp together.
static __device__ __forceinline__ void td_ptx_mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4],
                                                           uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Matrix i's row r is the 16 bytes at the address of lane 8 i + r; its fragment goes to out[i].
static __device__ __forceinline__ void td_ptx_ldmatrix_x1(uint32_t (&out)[1], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                 : "=r"(out[0])
                 : "r"(td_ptx_shared_address(row))
                 : "memory");
}

static __device__ __forceinline__ void td_ptx_ldmatrix_x2(uint32_t (&out)[2], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(out[0]), "=r"(out[1])
                 : "r"(td_ptx_shared_address(row))
                 : "memory");
}

static __device__ __forceinline__ void td_ptx_ldmatrix_x4(uint32_t (&out)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(td_ptx_shared_address(row))
                 : "memory");
}

static __device__ __forceinline__ void td_ptx_ldmatrix_x1_trans(uint32_t (&out)[1],
                                                                const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                 : "=r"(out[0])
                 : "r"(td_ptx_shared_address(row))
                 : "memory");
}

static __device__ __forceinline__ void td_ptx_ldmatrix_x2_trans(uint32_t (&out)[2],
                                                                const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(out[0]), "=r"(out[1])
                 : "r"(td_ptx_shared_address(row))
                 : "memory");
}

static __device__ __forceinline__ void td_ptx_ldmatrix_x4_trans(uint32_t (&out)[4],
                                                                const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(td_ptx_shared_address(row))
                 : "memory");
}

// Copies 16 bytes to shared memory past the L1 cache, of which the last 16 - source_bytes become
// zero and are not read. The data is there after the wait for the group of the copy, for the
// thread itself; for others after a barrier behind that wait. Addresses are multiples of the size.
static __device__ __forceinline__ void td_ptx_cp_async_cg_16(void *shared, const void *global,
                                                             int source_bytes = 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(td_ptx_shared_address(shared)), "l"(__cvta_generic_to_global(global)),
                   "r"(source_bytes)
                 : "memory");
}

// The same for SIZE bytes through the L1 cache.
template <int SIZE>
static __device__ __forceinline__ void td_ptx_cp_async_ca(void *shared, const void *global,
                                                          int source_bytes = SIZE) {
    static_assert(SIZE == 4 || SIZE == 8 || SIZE == 16, "sizes of cp.async");
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
                 :
                 : "r"(td_ptx_shared_address(shared)), "l"(__cvta_generic_to_global(global)),
                   "n"(SIZE), "r"(source_bytes)
                 : "memory");
}

// Makes one group of the thread's copies since the last commit.
static __device__ __forceinline__ void td_ptx_cp_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most the last N groups are under way.
template <int N> static __device__ __forceinline__ void td_ptx_cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// 2^x to 2 ulp; results below the smallest normal number are 0.
static __device__ __forceinline__ float td_ptx_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Two numbers rounded to the nearest bf16, ties to even; the first in the low half.
static __device__ __forceinline__ uint32_t td_ptx_pack_bf16(float low, float high) {
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

#else
#include <cuda_host_ptx.h>
#endif

#endif
