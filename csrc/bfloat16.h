// Numbers of 16 bits that are computed with in float32, on GPUs.
#pragma once

#include "gpu.h"

namespace imn {

typedef unsigned short Bfloat16;  // its bits

template <typename T>
IMN_KERNEL_INLINE T value_of(T x) {
    return x;
}
template <typename T>
IMN_KERNEL_INLINE T value_of(Bfloat16 x) {
    return T(bits_to_float(unsigned(x) << 16));
}

#if !defined(__METAL_VERSION__)
// A number as it is stored: rounded to even.
template <typename V, typename T>
struct StoredAs {
    static IMN_KERNEL_INLINE V rounded(T x) { return V(x); }
};
template <>
struct StoredAs<Bfloat16, float> {
    static IMN_KERNEL_INLINE Bfloat16 rounded(float x) {
        unsigned bits = __float_as_uint(x);
        unsigned up = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
        return Bfloat16(x == x ? up : 0x7fc0);
    }
};
#endif

}  // namespace imn
