// What lets one header serve C and CUDA C++.
#ifndef TANDEM_CORE_PORTABLE_H
#define TANDEM_CORE_PORTABLE_H

// A small function in a header that kernels call too.
#if defined(__CUDACC__)
#define TD_INLINE static __host__ __device__ inline
#else
#define TD_INLINE static inline
#endif

// Around the declarations of a header whose functions the CUDA sources call or define.
#ifdef __cplusplus
#define TD_C_BEGIN extern "C" {
#define TD_C_END   }
#else
#define TD_C_BEGIN
#define TD_C_END
#endif

#endif
