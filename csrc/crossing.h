// Where a grid's columns along Z cross a face, from vertices in fixed point, for host, CUDA and Metal alike.
#pragma once

#include "triangle.h"

namespace imn {

// Vertices are snapped to 2^-bits voxel, as fine as lets the edge functions be exact in 64 bits for coordinates up to
// `reach` voxels along X and Y; what lies beyond 2^25 voxels is moved there.
IMN_INLINE int fraction_bits(Real reach) {
    int bits = 28;
    for (; reach >= Real(2) && bits > 4; reach /= 2) bits--;
    return bits;
}

struct Fixed {
    Integer x, y;
    Real z;
};

IMN_INLINE Integer snap(Real value, int bits) {
    Real limit = Real(1 << 29);
    return Integer(round_even(minimum(maximum(value * Real(1 << bits), -limit), limit)));
}

// Twice the signed area of (a, b, p) and its sign after moving p by (eps, eps^2): never 0 but for a = b.
struct Edge {
    Integer value;
    int sign;
};

IMN_INLINE Edge edge(Fixed a, Fixed b, Integer x, Integer y) {
    Integer dx = b.x - a.x, dy = b.y - a.y, value = dx * (y - a.y) - dy * (x - a.x);
    Integer decider = value != 0 ? value : (dy != 0 ? -dy : dx);
    return {value, (decider > 0) - (decider < 0)};
}

// How the winding number changes where column (x, y) crosses the face, 0 if it does not, and the first voxel at or
// above the crossing, at most `size`.
struct Crossing {
    int change;
    Integer voxel;
};

IMN_INLINE Crossing crossing(Fixed a, Fixed b, Fixed c, Integer x, Integer y, Integer size, int bits) {
    Integer px = x << bits, py = y << bits;
    Edge bc = edge(b, c, px, py), ca = edge(c, a, px, py), ab = edge(a, b, px, py);
    Integer area = bc.value + ca.value + ab.value;
    if (bc.sign != ca.sign || ca.sign != ab.sign || area == 0) return {0, 0};
    Real z = a.z + (Real(ca.value) * (b.z - a.z) + Real(ab.value) * (c.z - a.z)) / Real(area);
    return {area < 0 ? 1 : -1, Integer(minimum(maximum(round_up(z), Real(0)), Real(size)))};
}

// The columns [low, high) along one axis of `size` that can cross a face with these coordinates.
struct Columns {
    Integer low, high;
};

IMN_INLINE Columns columns(Integer p, Integer q, Integer r, Integer size, int bits) {
    Integer low = (minimum(minimum(p, q), r) + (Integer(1) << bits) - 1) >> bits;
    Integer high = (maximum(maximum(p, q), r) >> bits) + 1;
    return {maximum(low, Integer(0)), minimum(high, size)};
}

}  // namespace imn
