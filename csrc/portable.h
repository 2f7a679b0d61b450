// One switch for what differs between the host, CUDA and Metal; the geometry headers use nothing else.
#pragma once

#if defined(__METAL_VERSION__)
#define IMN_INLINE inline
#elif defined(__CUDACC__)
#define IMN_INLINE __host__ __device__ __forceinline__
#else
#define IMN_INLINE inline __attribute__((always_inline))
#endif

#define IMN_RESTRICT __restrict__

// Hot host loops are compiled once per instruction set and chosen when the library is loaded.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && !defined(__CUDACC__)
#define IMN_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define IMN_CLONES
#endif
