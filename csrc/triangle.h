// The geometry of one point and one triangle, for host, CUDA and Metal alike. Branch-free where loops are to vectorise.
#pragma once

#include "portable.h"

namespace imn {

template <typename T>
struct Vec3 {
    T x, y, z;
};

template <typename T>
IMN_INLINE Vec3<T> operator+(Vec3<T> a, Vec3<T> b) { return {a.x + b.x, a.y + b.y, a.z + b.z}; }

template <typename T>
IMN_INLINE Vec3<T> operator-(Vec3<T> a, Vec3<T> b) { return {a.x - b.x, a.y - b.y, a.z - b.z}; }

template <typename T>
IMN_INLINE Vec3<T> operator*(T s, Vec3<T> a) { return {s * a.x, s * a.y, s * a.z}; }

template <typename T>
IMN_INLINE T dot(Vec3<T> a, Vec3<T> b) { return a.x * b.x + a.y * b.y + a.z * b.z; }

template <typename T>
IMN_INLINE Vec3<T> cross(Vec3<T> a, Vec3<T> b) {
    return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}

template <typename T>
IMN_INLINE T least(T a, T b) { return a < b ? a : b; }

template <typename T>
IMN_INLINE T clamp(T t, T high) {
    T low = t > T(0) ? t : T(0);
    return least(low, high);
}

// 0 for a length below any that a mesh in the unit cube means, so that nothing overflows in float either.
template <typename T>
IMN_INLINE T inverse_or_zero(T x) { return x > T(1e-30) ? T(1) / x : T(0); }

// A triangle in its own plane: corners a = (0, 0), b = (length, 0), c = (cx, cy), ab the longest edge, cy >= 0. The
// axes are orthonormal, z the face normal. A face without area has cy = 0, a point length = 0, and axes of no meaning.
template <typename T>
struct Triangle {
    Vec3<T> a, x, y, z;
    T length, cx, cy;
    T inverse_length, inverse_ac, inverse_bc;  // 1 / |ab|, 1 / |ac|^2, 1 / |bc|^2, or 0
};

constexpr int TRIANGLE_FIELDS = 18;

// Which of the corners 0, 1, 2 the longest edge starts from.
template <typename T>
IMN_INLINE int longest_edge(const Vec3<T>* corner) {
    T squared[3];
    for (int k = 0; k < 3; k++) {
        Vec3<T> edge = corner[(k + 1) % 3] - corner[k];
        squared[k] = dot(edge, edge);
    }
    int longest = squared[1] > squared[0] ? 1 : 0;
    return squared[2] > squared[longest] ? 2 : longest;
}

// The longest edge must be ab. Slivers keep exact axes, by Gram-Schmidt; `epsilon` is that of T.
template <typename T>
IMN_INLINE Triangle<T> make_triangle(Vec3<T> a, Vec3<T> b, Vec3<T> c, T epsilon) {
    Vec3<T> ab = b - a, ac = c - a;
    T length = square_root(dot(ab, ab));
    Vec3<T> x = length > T(0) ? (T(1) / length) * ab : Vec3<T>{T(1), T(0), T(0)};
    T cx = dot(ac, x);
    Vec3<T> across = ac - cx * x;
    across = across - dot(across, x) * x;
    T cy = square_root(dot(across, across));
    if (!(cy > epsilon * length)) {
        T xx = x.x * x.x, yy = x.y * x.y, zz = x.z * x.z;
        across = xx <= yy && xx <= zz ? Vec3<T>{T(0), -x.z, x.y}
                 : yy <= zz           ? Vec3<T>{x.z, T(0), -x.x}
                                      : Vec3<T>{-x.y, x.x, T(0)};
        cy = T(0);
    }
    Vec3<T> y = (T(1) / square_root(dot(across, across))) * across;
    T gx = cx - length;
    return {a, x, y, cross(x, y), length, cx, cy, inverse_or_zero(length), inverse_or_zero(cx * cx + cy * cy),
            inverse_or_zero(gx * gx + cy * cy)};
}

// A point in the triangle's frame.
template <typename T>
IMN_INLINE Vec3<T> to_frame(const Triangle<T>& t, Vec3<T> p) {
    Vec3<T> r = p - t.a;
    return {dot(t.x, r), dot(t.y, r), dot(t.z, r)};
}

template <typename T>
IMN_INLINE bool above_inside(const Triangle<T>& t, Vec3<T> p) {
    return (p.y > T(0)) & (t.cy * p.x > t.cx * p.y) & ((t.cx - t.length) * p.y > t.cy * (p.x - t.length));
}

// What the three edges offer p, in the triangle's frame: the ways from their closest points to it in the plane, how far
// along each edge those are, and the squared distances. As ab is the longest edge, it is the closest where y <= 0 only.
template <typename T>
struct Edges {
    T abx, aby, acx, acy, bcx, bcy, along_ac, along_bc, ab, ac, bc;
};

template <typename T>
IMN_INLINE Edges<T> measure_edges(const Triangle<T>& t, Vec3<T> p) {
    Edges<T> e;
    T gx = t.cx - t.length, bx = p.x - t.length;
    e.abx = p.x - clamp(p.x, t.length), e.aby = p.y;
    e.along_ac = clamp((p.x * t.cx + p.y * t.cy) * t.inverse_ac, T(1));
    e.acx = p.x - e.along_ac * t.cx, e.acy = p.y - e.along_ac * t.cy;
    e.along_bc = clamp((bx * gx + p.y * t.cy) * t.inverse_bc, T(1));
    e.bcx = bx - e.along_bc * gx, e.bcy = p.y - e.along_bc * t.cy;
    e.ab = e.abx * e.abx + e.aby * e.aby;
    e.ac = e.acx * e.acx + e.acy * e.acy;
    e.bc = e.bcx * e.bcx + e.bcy * e.bcy;
    return e;
}

// The squared distance of p, in the triangle's frame.
template <typename T>
IMN_INLINE T squared_distance(const Triangle<T>& t, Vec3<T> p) {
    Edges<T> e = measure_edges(t, p);
    T edge = least(least(e.ac, e.bc), e.ab);
    return p.z * p.z + (above_inside(t, p) ? T(0) : edge);
}

// The way from the closest point to p, in the triangle's frame.
template <typename T>
IMN_INLINE Vec3<T> residual(const Triangle<T>& t, Vec3<T> p) {
    Edges<T> e = measure_edges(t, p);
    T x = e.ac < e.bc ? e.acx : e.bcx, y = e.ac < e.bc ? e.acy : e.bcy, edge = least(e.ac, e.bc);
    x = e.ab < edge ? e.abx : x, y = e.ab < edge ? e.aby : y;
    bool inside = above_inside(t, p);
    return {inside ? T(0) : x, inside ? T(0) : y, p.z};
}

// The closest point's barycentric weights of b and c.
template <typename T>
struct Weights {
    T b, c;
};

template <typename T>
IMN_INLINE Weights<T> closest_weights(const Triangle<T>& t, Vec3<T> p) {
    if (above_inside(t, p)) {
        T height = p.y * inverse_or_zero(t.cy);
        return {(p.x - height * t.cx) * t.inverse_length, height};
    }
    Edges<T> e = measure_edges(t, p);
    if (e.ab < least(e.ac, e.bc)) return {clamp(p.x * t.inverse_length, T(1)), T(0)};
    return e.ac < e.bc ? Weights<T>{T(0), e.along_ac} : Weights<T>{T(1) - e.along_bc, e.along_bc};
}

}  // namespace imn
