// What CUDA and Metal name differently, for the kernels that both run: groups of threads in warps of 32.
#pragma once

#include "portable.h"

#if defined(__METAL_VERSION__)
#define IMN_DEVICE device       // the address space of tensors
#define IMN_SHARED threadgroup  // and of what a group's threads share
#ifndef IMN_SHARED_VARIABLE
#define IMN_SHARED_VARIABLE(type, name) threadgroup type name
#endif
#else
#define IMN_DEVICE
#define IMN_SHARED
#ifndef IMN_SHARED_VARIABLE
#define IMN_SHARED_VARIABLE(type, name) __shared__ type name
#endif
#endif

namespace imn {

IMN_CONSTANT int WARP = 32, WARPS = 8, GROUP = WARPS * WARP;  // threads of a warp, warps and threads of a group

// Where a thread stands: its group, and its place in the group.
struct Thread {
    Integer group;
    int index;
};

#if defined(__METAL_VERSION__)
template <typename T>
IMN_INLINE T not_a_number() {
    return as_type<T>(0x7fc00000);
}
IMN_INLINE void group_barrier() { metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup); }
IMN_INLINE void warp_barrier() { metal::simdgroup_barrier(metal::mem_flags::mem_threadgroup); }
IMN_INLINE float warp_minimum(float x) { return metal::simd_min(x); }
IMN_INLINE int warp_minimum(int x) { return metal::simd_min(x); }
IMN_INLINE float warp_maximum(float x) { return metal::simd_max(x); }
IMN_INLINE float warp_sum(float x) { return metal::simd_sum(x); }
// The sum over the lanes up to this one.
IMN_INLINE int warp_running_sum(int x) { return metal::simd_prefix_inclusive_sum(x); }
IMN_INLINE int from_last_lane(int x) { return metal::simd_broadcast(x, ushort(31)); }
IMN_INLINE bool all_of_warp(bool x) { return metal::simd_all(x); }
IMN_INLINE float bits_to_float(uint bits) { return as_type<float>(bits); }
// Adds 1 and returns what was there before.
IMN_INLINE int take_next(threadgroup int* counter) {
    return metal::atomic_fetch_add_explicit(reinterpret_cast<threadgroup metal::atomic_int*>(counter), 1,
                                            metal::memory_order_relaxed);
}
// The same for a counter of all groups.
IMN_INLINE int take_next_of_all(device int* counter) {
    return metal::atomic_fetch_add_explicit(reinterpret_cast<device metal::atomic_int*>(counter), 1,
                                            metal::memory_order_relaxed);
}
// Puts `x` where -1 was; returns what was there before.
IMN_INLINE int take_place(threadgroup int* place, int x) {
    int found = -1;
    while (!metal::atomic_compare_exchange_weak_explicit(reinterpret_cast<threadgroup metal::atomic_int*>(place),
                                                         &found, x, metal::memory_order_relaxed,
                                                         metal::memory_order_relaxed)) {
        if (found != -1) return found;
    }
    return -1;
}
// Metal adds no floats within a group at once: the sum of what was there replaces that, until no other came between.
IMN_INLINE void add_in_group(threadgroup float* sum, float x) {
    threadgroup metal::atomic_uint* bits = reinterpret_cast<threadgroup metal::atomic_uint*>(sum);
    uint found = metal::atomic_load_explicit(bits, metal::memory_order_relaxed);
    while (!metal::atomic_compare_exchange_weak_explicit(bits, &found, as_type<uint>(as_type<float>(found) + x),
                                                         metal::memory_order_relaxed, metal::memory_order_relaxed)) {
    }
}
// Makes a value that is not negative at least x; such floats order as their bits do.
IMN_INLINE void raise_to(device float* value, float x) {
    metal::atomic_fetch_max_explicit(reinterpret_cast<device metal::atomic_uint*>(value), as_type<uint>(x),
                                     metal::memory_order_relaxed);
}
IMN_INLINE void add_to(device int* sum, int x) {
    metal::atomic_fetch_add_explicit(reinterpret_cast<device metal::atomic_int*>(sum), x, metal::memory_order_relaxed);
}
IMN_INLINE void add_to(device float* sum, float x) {
    metal::atomic_fetch_add_explicit(reinterpret_cast<device metal::atomic_float*>(sum), x,
                                     metal::memory_order_relaxed);
}
#else
template <typename T>
__device__ __forceinline__ T not_a_number() {
    return T(NAN);
}
__device__ __forceinline__ void group_barrier() { __syncthreads(); }
__device__ __forceinline__ void warp_barrier() { __syncwarp(); }
template <typename T>
__device__ __forceinline__ T warp_minimum(T x) {
    for (int step = WARP / 2; step > 0; step /= 2) {
        T other = __shfl_xor_sync(0xffffffffu, x, step);
        x = other < x ? other : x;
    }
    return x;
}
template <typename T>
__device__ __forceinline__ T warp_maximum(T x) {
    for (int step = WARP / 2; step > 0; step /= 2) {
        T other = __shfl_xor_sync(0xffffffffu, x, step);
        x = other > x ? other : x;
    }
    return x;
}
template <typename T>
__device__ __forceinline__ T warp_sum(T x) {
    for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}
__device__ __forceinline__ int warp_running_sum(int x) {
    for (int step = 1; step < WARP; step *= 2) {
        int before = __shfl_up_sync(0xffffffffu, x, step);
        if (int(threadIdx.x) % WARP >= step) x += before;
    }
    return x;
}
__device__ __forceinline__ int from_last_lane(int x) { return __shfl_sync(0xffffffffu, x, WARP - 1); }
__device__ __forceinline__ bool all_of_warp(bool x) { return __all_sync(0xffffffffu, x); }
__device__ __forceinline__ float bits_to_float(unsigned bits) { return __uint_as_float(bits); }
__device__ __forceinline__ int take_next(int* counter) { return atomicAdd(counter, 1); }
__device__ __forceinline__ int take_next_of_all(int* counter) { return atomicAdd(counter, 1); }
__device__ __forceinline__ void raise_to(float* value, float x) {
    atomicMax(reinterpret_cast<unsigned*>(value), __float_as_uint(x));
}
__device__ __forceinline__ void raise_to(double* value, double x) {
    atomicMax(reinterpret_cast<unsigned long long*>(value), static_cast<unsigned long long>(__double_as_longlong(x)));
}
template <typename T>
__device__ __forceinline__ void add_to(T* sum, T x) {
    atomicAdd(sum, x);
}
// A sum in fixed point does not depend on the order of its terms.
__device__ __forceinline__ void add_to(Integer* sum, Integer x) {
    atomicAdd(reinterpret_cast<unsigned long long*>(sum), static_cast<unsigned long long>(x));
}
template <typename T>
__device__ __forceinline__ void add_in_group(T* sum, T x) {
    add_to(sum, x);
}
__device__ __forceinline__ int take_place(int* place, int x) { return atomicCAS(place, -1, x); }
#endif

// How a number becomes a term of a sum: as it is, or in fixed point, in units of 1 / scale.
template <typename T>
struct Terms {
    IMN_INLINE T term(T x) const { return x; }
};

#if !defined(__METAL_VERSION__)
struct FixedTerms {
    const double* scale;

    IMN_INLINE Integer term(float x) const { return Integer(round_even(double(x) * *scale)); }
};
#endif

}  // namespace imn

#if defined(__METAL_VERSION__)
#define IMN_KERNEL_INLINE inline
#else
#define IMN_KERNEL_INLINE __device__ __forceinline__  // may use the collectives above
#endif
