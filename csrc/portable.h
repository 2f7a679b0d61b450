// One switch for what differs between the host, CUDA and Metal; the geometry headers use nothing else.
#pragma once

#if defined(__METAL_VERSION__)
#define IMN_INLINE inline
#define IMN_LOCAL thread  // the address space of a function's own variables
#elif defined(__CUDACC__)
#define IMN_INLINE __host__ __device__ __forceinline__
#define IMN_LOCAL
#else
#define IMN_INLINE inline __attribute__((always_inline))
#define IMN_LOCAL
#endif

namespace imn {

#if defined(__METAL_VERSION__)
IMN_INLINE float square_root(float x) { return metal::sqrt(x); }
IMN_INLINE float magnitude(float x) { return metal::fabs(x); }
#else
IMN_INLINE float square_root(float x) { return __builtin_sqrtf(x); }
IMN_INLINE double square_root(double x) { return __builtin_sqrt(x); }
IMN_INLINE float magnitude(float x) { return __builtin_fabsf(x); }
IMN_INLINE double magnitude(double x) { return __builtin_fabs(x); }
#endif

}  // namespace imn

// Hot host loops are compiled once per instruction set and chosen when the library is loaded.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && !defined(__CUDACC__)
#define IMN_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define IMN_CLONES
#endif
