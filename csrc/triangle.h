// The geometry of one point and one triangle, for host, CUDA and Metal alike. Branch-free, so that loops vectorise.
#pragma once

#include "portable.h"

namespace imn {

template <typename T>
struct Vec3 {
    T x, y, z;
};

template <typename T>
IMN_INLINE Vec3<T> operator+(Vec3<T> a, Vec3<T> b) {
    return {a.x + b.x, a.y + b.y, a.z + b.z};
}

template <typename T>
IMN_INLINE Vec3<T> operator-(Vec3<T> a, Vec3<T> b) {
    return {a.x - b.x, a.y - b.y, a.z - b.z};
}

template <typename T>
IMN_INLINE Vec3<T> operator*(T s, Vec3<T> a) {
    return {s * a.x, s * a.y, s * a.z};
}

template <typename T>
IMN_INLINE T dot(Vec3<T> a, Vec3<T> b) {
    return a.x * b.x + a.y * b.y + a.z * b.z;
}

template <typename T>
IMN_INLINE Vec3<T> cross(Vec3<T> a, Vec3<T> b) {
    return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}

template <typename T>
IMN_INLINE T minimum(T a, T b) {
    return a < b ? a : b;
}

template <typename T>
IMN_INLINE T maximum(T a, T b) {
    return a > b ? a : b;
}

// 0 for a length below any that a mesh in the unit cube means, so that nothing overflows in float either.
template <typename T>
IMN_INLINE T inverse_or_zero(T x) {
    return x > T(1e-30) ? T(1) / x : T(0);
}

// A triangle lies in its own plane with its longest edge ab along x. The altitude from c stands on ab, inside it, at
// the foot: the origin. It cuts the triangle into two right triangles that share their height:
//
//                    y
//                    |
//                    c = (0, height)
//                   /|\_
//      left.length / |  \_  right.length
//                 /  |    \_
//                /   |      \_
//      ---------a---foot------b--------> x
//         left.width   right.width
//
// Both are described as the right one is, and the left one by its mirror image: (0, 0), (width, 0) and (0, height) are
// the corners, and the third side, from (width, 0) up to c, has direction (-x, y) and `length`, so that (y, x) points
// out of the triangle across it. Without height it is a segment, and x = 1 then, even where it is a point.
template <typename T>
struct RightTriangle {
    T width, x, y, length;
};

// The axes x, y and z are orthonormal, z the face normal. For a face without area they have no meaning beyond x.
template <typename T>
struct Triangle {
    Vec3<T> foot, x, y, z;
    RightTriangle<T> left, right;
};

template <typename T>
IMN_INLINE RightTriangle<T> make_right_triangle(T width, T height) {
    T length = square_root(width * width + height * height);
    T inverse = inverse_or_zero(length);
    return {width, inverse > T(0) ? width * inverse : T(1), height * inverse, length};
}

// Which of the corners 0, 1, 2 the longest edge starts from.
template <typename T>
IMN_INLINE int longest_edge(const IMN_LOCAL Vec3<T>* corner) {
    T squared[3];
    for (int k = 0; k < 3; k++) {
        Vec3<T> edge = corner[(k + 1) % 3] - corner[k];
        squared[k] = dot(edge, edge);
    }
    int longest = squared[1] > squared[0] ? 1 : 0;
    return squared[2] > squared[longest] ? 2 : longest;
}

// Some vector across a unit vector x, away from the axis that x is most along.
template <typename T>
IMN_INLINE Vec3<T> any_across(Vec3<T> x) {
    T xx = x.x * x.x, yy = x.y * x.y, zz = x.z * x.z;
    if (xx <= yy && xx <= zz) return {T(0), -x.z, x.y};
    if (yy <= zz) return {x.z, T(0), -x.x};
    return {-x.y, x.x, T(0)};
}

// The longest edge must be ab. `epsilon` is that of T.
template <typename T>
IMN_INLINE Triangle<T> make_triangle(Vec3<T> a, Vec3<T> b, Vec3<T> c, T epsilon) {
    Vec3<T> ab = b - a, ac = c - a;
    T length = square_root(dot(ab, ab));
    Vec3<T> x = {T(1), T(0), T(0)};
    if (length > T(0)) x = (T(1) / length) * ab;
    T left = minimum(maximum(dot(ac, x), T(0)), length);
    Vec3<T> across = ac - left * x;
    across = across - dot(across, x) * x;  // once more, so that the axes of slivers are as exact as any
    T height = square_root(dot(across, across));
    if (!(height > epsilon * length)) {  // no area: any axis across will do
        across = any_across(x);
        height = T(0);
    }
    Vec3<T> y = (T(1) / square_root(dot(across, across))) * across;
    return {
        a + left * x, x, y, cross(x, y), make_right_triangle(left, height), make_right_triangle(length - left, height)};
}

// A point in the triangle's frame.
template <typename T>
IMN_INLINE Vec3<T> to_frame(const IMN_LOCAL Triangle<T>& t, Vec3<T> p) {
    Vec3<T> r = p - t.foot;
    return {dot(t.x, r), dot(t.y, r), dot(t.z, r)};
}

// Where a point p of the triangle's frame stands, seen from the right triangle on its side of the altitude. As ab is
// the longest edge, points below it see nothing else, and points above it see only the third side of their right
// triangle:
//
//      c
//      |\_         p
//      |  \_     _/
//      |    \_ _/        beyond    how far p is from the side's line, outwards; 0 inside
//      |      \          along     where on the side that is, from its lower end; within its length
//      |       \_        past_end  how far before its lower end (< 0) or past its upper end (> 0) p is
//      foot------b       below     how far p is below ab (< 0); 0 above
//
// So for the closest point q |p - q|^2 = past_end^2 + beyond^2 + below^2 + p.z^2.
template <typename T>
struct SidePosition {
    bool left;
    T x, y;  // the third side's direction, as in RightTriangle
    T along, past_end, beyond, below;
};

template <typename T>
IMN_INLINE SidePosition<T> measure(const IMN_LOCAL Triangle<T>& t, Vec3<T> p) {
    bool left = p.x < T(0);
    T x = left ? t.left.x : t.right.x;
    T y = left ? t.left.y : t.right.y;
    T length = left ? t.left.length : t.right.length;
    T above = maximum(p.y, T(0));
    T out = magnitude(p.x) - (left ? t.left.width : t.right.width);
    T unbounded = above * y - out * x;  // along the side's line
    T along = minimum(maximum(unbounded, T(0)), length);
    return {left, x, y, along, unbounded - along, maximum(above * x + out * y, T(0)), p.y - above};
}

template <typename T>
IMN_INLINE T squared_distance(const IMN_LOCAL Triangle<T>& t, Vec3<T> p) {
    SidePosition<T> at = measure(t, p);
    return at.past_end * at.past_end + at.beyond * at.beyond + at.below * at.below + p.z * p.z;
}

// The offset from the closest point to p, in the triangle's frame.
template <typename T>
IMN_INLINE Vec3<T> residual(const IMN_LOCAL Triangle<T>& t, Vec3<T> p) {
    SidePosition<T> at = measure(t, p);
    T x = at.beyond * at.y - at.past_end * at.x;
    return {at.left ? -x : x, at.beyond * at.x + at.past_end * at.y + at.below, p.z};
}

// A vector of the triangle's frame in space.
template <typename T>
IMN_INLINE Vec3<T> from_frame(const IMN_LOCAL Triangle<T>& t, Vec3<T> r) {
    return r.x * t.x + r.y * t.y + r.z * t.z;
}

// The closest point's barycentric weights of b and c.
template <typename T>
struct Weights {
    T b, c;
};

template <typename T>
IMN_INLINE Weights<T> closest_weights(const IMN_LOCAL Triangle<T>& t, Vec3<T> p) {
    SidePosition<T> at = measure(t, p);
    bool on_side = at.beyond > T(0) || !(at.y > T(0));
    T x = on_side ? (at.left ? t.left.width : t.right.width) - at.along * at.x : magnitude(p.x);
    T c = (on_side ? at.along * at.y : p.y - at.below) * inverse_or_zero(t.left.y * t.left.length);
    T b = ((at.left ? -x : x) + (T(1) - c) * t.left.width) * inverse_or_zero(t.left.width + t.right.width);
    return {b, c};
}

}  // namespace imn
