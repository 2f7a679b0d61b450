// Which faces can be the closest to some point of a box: never drops one that is, for host, CUDA and Metal alike. A box
// is c + u with |u_a| <= h_a, its radius R = |h|.
#pragma once

#include "triangle.h"

namespace imn {

// The smallest ball around a triangle, centred in it.
template <typename T>
struct Ball {
    Vec3<T> centre;
    T radius;
};

template <typename T>
IMN_INLINE Ball<T> make_ball(const IMN_LOCAL Triangle<T>& t) {
    T height = t.left.y * t.left.length, x = (t.right.width - t.left.width) / 2;
    T y = height > T(0) ? (height * height - t.left.width * t.right.width) / (2 * height) : T(0);
    y = y > T(0) ? y : T(0);  // the circumcentre, or the middle of ab
    T middle = (t.left.width + t.right.width) / 2;
    return {t.foot + x * t.x + y * t.y, square_root(middle * middle + y * y)};
}

// Against the face * whose ball's centre m* is nearest to c: every point of the face at m is further from c + u than m*
// where |c + u - m| - r > |c + u - m*|, that is where |c - m|^2 - |c - m*|^2 > 2 u.(m - m*) + 2 r |c + u - m*| + r^2.
template <typename T>
struct BallRule {
    Vec3<T> nearest, extent;  // the box's h
    T limit, reach;

    IMN_INLINE bool keeps(Vec3<T> centre, T radius, T squared) const {
        Vec3<T> offset = centre - nearest;
        T turn = extent.x * magnitude(offset.x) + extent.y * magnitude(offset.y) + extent.z * magnitude(offset.z);
        return squared - 2 * turn - radius * (reach + radius) <= limit;
    }
};

template <typename T>
IMN_INLINE BallRule<T> make_ball_rule(Vec3<T> nearest, T squared, Vec3<T> extent) {
    return {nearest, extent, squared, 2 * (square_root(squared) + square_root(dot(extent, extent)))};
}

// Against the face * closest to c, by the offsets r and r* from the closest points to c. It is no further from c + u than
// |r* + u|, and than |r*| + R; another lies behind the plane through its closest point across r, so it is further than
// |r| + u.r / |r|, and than |r| - R. Hence it is dropped where |r| > |r*| + 2 R, or
// |r|^2 - |r*|^2 > 2 u.(r* - r) + R^2 (then |r| > R, so that the bound is not negative).
template <typename T>
struct FaceRule {
    Vec3<T> nearest, extent;  // the box's h
    T near, far;  // squares

    IMN_INLINE bool keeps(Vec3<T> offset, T squared) const {
        Vec3<T> turn = offset - nearest;
        T turned = extent.x * magnitude(turn.x) + extent.y * magnitude(turn.y) + extent.z * magnitude(turn.z);
        return (squared <= far) & (squared - 2 * turned <= near);
    }
};

// `slack` is for rounding, an error of the offsets.
template <typename T>
IMN_INLINE FaceRule<T> make_face_rule(Vec3<T> nearest, T squared, Vec3<T> extent, T slack) {
    T radius = square_root(dot(extent, extent)), reach = square_root(squared) + 2 * radius + slack;
    return {nearest, extent, squared + radius * radius + 4 * slack * reach, reach * reach};
}

}  // namespace imn
