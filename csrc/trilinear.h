// The trilinear cell around one normalised position, for host, CUDA and Metal alike.
#pragma once

#include "portable.h"

namespace imn {

template <typename T>
struct Axis {
    int low, step;      // the cell's lower voxel and the step to its upper one, 0 on an axis of one voxel
    T fraction, slope;  // position in the cell, and its derivative by the coordinate (0 outside the cube)
};

template <typename T>
IMN_INLINE Axis<T> locate(T coordinate, Integer size) {
    T middle = T(size - 1) / 2;
    T clamped = coordinate < T(-1) ? T(-1) : (coordinate > T(1) ? T(1) : coordinate);
    T position = (clamped + 1) * middle;
    int low = position >= T(0) ? int(position) : 0;  // NaN lies in cell 0 and stays NaN in its fraction
    if (low > size - 2) low = size > 1 ? int(size - 2) : 0;
    return {low, size > 1, position - T(low), coordinate >= T(-1) && coordinate <= T(1) ? middle : T(0)};
}

template <typename T>
struct Cell {
    Axis<T> x, y, z;

    // Corner bits: 4 upper along X, 2 along Y, 1 along Z.
    IMN_INLINE Integer offset(int corner, Integer sx, Integer sy, Integer sz) const {
        return (x.low + (corner >> 2 & x.step)) * sx + (y.low + (corner >> 1 & y.step)) * sy +
               (z.low + (corner & z.step)) * sz;
    }
    IMN_INLINE T weight(int corner) const {
        return (corner & 4 ? x.fraction : 1 - x.fraction) * (corner & 2 ? y.fraction : 1 - y.fraction) *
               (corner & 1 ? z.fraction : 1 - z.fraction);
    }
    // Derivative along one axis of the interpolation of eight corner values.
    IMN_INLINE T slope_along(int axis, const IMN_LOCAL T* values) const {
        T sum = 0;
        for (int corner = 0; corner < 8; corner++) {
            T wx = axis == 0 ? T(1) : (corner & 4 ? x.fraction : 1 - x.fraction);
            T wy = axis == 1 ? T(1) : (corner & 2 ? y.fraction : 1 - y.fraction);
            T wz = axis == 2 ? T(1) : (corner & 1 ? z.fraction : 1 - z.fraction);
            sum += (corner & (4 >> axis) ? 1 : -1) * wx * wy * wz * values[corner];
        }
        return sum * (axis == 0 ? x.slope : axis == 1 ? y.slope : z.slope);
    }
};

template <typename T>
IMN_INLINE Cell<T> locate(T x, T y, T z, Integer nx, Integer ny, Integer nz) {
    return {locate(x, nx), locate(y, ny), locate(z, nz)};
}

}  // namespace imn
