// Enough of CUDA to run csrc/*.cu on the host, see fibers.h.
#pragma once

#include <cstring>

#include "fibers.h"

#define __CUDACC__
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

struct dim3 {
    unsigned x;
    explicit dim3(unsigned x) : x(x) {}
};

#define threadIdx (dim3(unsigned(shim::current())))
#define blockIdx (dim3(unsigned(shim::group())))

inline void __syncthreads() { shim::wait(shim::AT_GROUP); }
inline void __syncwarp() { shim::wait(shim::AT_WARP); }

template <typename T>
T __shfl_xor_sync(unsigned, T value, int step) {
    int other = shim::lane() ^ step;
    return shim::collective(value, [other](const double* lanes, int) { return T(lanes[other]); });
}

template <typename T>
T __shfl_up_sync(unsigned, T value, int step) {
    int lane = shim::lane(), other = lane < step ? lane : lane - step;
    return shim::collective(value, [other](const double* lanes, int) { return T(lanes[other]); });
}

template <typename T>
T __shfl_sync(unsigned, T value, int lane) {
    return shim::collective(value, [lane](const double* lanes, int) { return T(lanes[lane]); });
}

inline bool __all_sync(unsigned, bool value) {
    return shim::collective(int(value), [](const double* lanes, int count) {
        return int(std::all_of(lanes, lanes + count, [](double lane) { return lane != 0; }));
    });
}

template <typename To, typename From>
To shim_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof(to));
    return to;
}
inline unsigned __float_as_uint(float value) { return shim_bits<unsigned>(value); }
inline long long __double_as_longlong(double value) { return shim_bits<long long>(value); }

inline float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

// By whole numbers of as many bits, so that ThreadSanitizer knows them for atomic.
template <typename T, typename Change>
T change_at_once(T* at, Change change) {
    using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
    Bits* bits = reinterpret_cast<Bits*>(at);
    Bits found = __atomic_load_n(bits, __ATOMIC_RELAXED);
    T old = shim_bits<T>(found);
    while (!__atomic_compare_exchange_n(bits, &found, shim_bits<Bits>(change(old)), false, __ATOMIC_RELAXED,
                                        __ATOMIC_RELAXED))
        old = shim_bits<T>(found);
    return old;
}
template <typename T>
T atomicAdd(T* sum, T value) {
    return change_at_once(sum, [=](T old) { return T(old + value); });
}
template <typename T>
T atomicCAS(T* place, T expected, T value) {
    return change_at_once(place, [=](T old) { return old == expected ? value : old; });
}
template <typename T>
T atomicMax(T* most, T value) {
    return change_at_once(most, [=](T old) { return std::max(old, value); });
}

template <typename... A>
int launch_on_host(void (*kernel)(A...), dim3 groups, dim3 threads, void** arguments) {
    for (unsigned group = 0; group < groups.x; group++)
        shim::run_group(group, int(threads.x),
                        [=] { shim::call(kernel, arguments, std::make_index_sequence<sizeof...(A)>()); });
    return 0;
}

// The kernel's type is lost in a const void*, so the macro of csrc/launch.h is replaced as a whole.
#define IMN_EXPORT(name, kernel, threads)                                                 \
    extern "C" int imn_##name(void** arguments, int64_t groups, void*) {                  \
        return launch_on_host(&kernel, dim3(unsigned(groups)), dim3(threads), arguments); \
    }
