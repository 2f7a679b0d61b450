// One switch for what differs between the host, CUDA and Metal; the geometry headers use nothing else.
#pragma once

#if defined(__METAL_VERSION__)
#define IMN_INLINE inline
#define IMN_LOCAL thread  // the address space of a function's own variables
#define IMN_CONSTANT constant constexpr
#else
#include <cmath>
#include <cstdint>
#define IMN_LOCAL
#define IMN_CONSTANT constexpr
#if defined(__CUDACC__)
#define IMN_INLINE __host__ __device__ __forceinline__
#else
#define IMN_INLINE inline __attribute__((always_inline))
#endif
#endif

namespace imn {

#if defined(__METAL_VERSION__)
typedef long Integer;  // 64 bits
typedef float Real;    // the most precise there is
IMN_INLINE float square_root(float x) { return metal::sqrt(x); }
IMN_INLINE float magnitude(float x) { return metal::fabs(x); }
IMN_INLINE float round_even(float x) { return metal::rint(x); }
IMN_INLINE float round_up(float x) { return metal::ceil(x); }
#else
typedef int64_t Integer;
typedef double Real;
#if defined(__CUDACC__)
IMN_INLINE float square_root(float x) { return ::sqrtf(x); }
IMN_INLINE double square_root(double x) { return ::sqrt(x); }
IMN_INLINE float magnitude(float x) { return ::fabsf(x); }
IMN_INLINE double magnitude(double x) { return ::fabs(x); }
#else
IMN_INLINE float square_root(float x) { return __builtin_sqrtf(x); }
IMN_INLINE double square_root(double x) { return __builtin_sqrt(x); }
IMN_INLINE float magnitude(float x) { return __builtin_fabsf(x); }
IMN_INLINE double magnitude(double x) { return __builtin_fabs(x); }
#endif
IMN_INLINE double round_even(double x) { return ::rint(x); }
IMN_INLINE double round_up(double x) { return ::ceil(x); }
#endif

}  // namespace imn

// Hot host loops are compiled once per instruction set and chosen when the library is loaded.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && !defined(__CUDACC__)
#define IMN_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define IMN_CLONES
#endif
