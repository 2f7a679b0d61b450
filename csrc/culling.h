// Which faces can be the closest to some point of a box of voxels, for host, CUDA and Metal alike. The rules never drop
// a face that is the closest somewhere.
//
// A box is the points c + u with |u_a| <= h_a along each axis a; R = |h| is its radius. A face * close to c serves as a
// yardstick: another face is dropped where it is further away than * throughout the box. Each rule compares squared
// distances from c and allows for how much they can shift over the box, which is the most that 2 u.d reaches for the
// difference d of two offsets: 2 slack_along_box, with slack_along_box = h_x |d_x| + h_y |d_y| + h_z |d_z|.
#pragma once

#include "triangle.h"

namespace imn {

// The largest u.d over the box.
template <typename T>
IMN_INLINE T largest_along_box(Vec3<T> half_extent, Vec3<T> d) {
    return half_extent.x * magnitude(d.x) + half_extent.y * magnitude(d.y) + half_extent.z * magnitude(d.z);
}

// The smallest ball around a triangle, centred in it.
template <typename T>
struct Ball {
    Vec3<T> centre;
    T radius;
};

// Its centre is the circumcentre, or for an obtuse triangle the middle of the longest edge ab.
template <typename T>
IMN_INLINE Ball<T> make_ball(const IMN_LOCAL Triangle<T>& t) {
    T height = t.left.y * t.left.length;
    T x = (t.right.width - t.left.width) / 2;
    T y = height > T(0) ? (height * height - t.left.width * t.right.width) / (2 * height) : T(0);
    y = y > T(0) ? y : T(0);
    T middle = (t.left.width + t.right.width) / 2;
    return {t.foot + x * t.x + y * t.y, square_root(middle * middle + y * y)};
}

// The yardstick * is the face whose ball's centre m* is nearest to c. A face of ball (m, r) has no point closer to c +
// u than |c + u - m| - r, and * is no further than |c + u - m*|. So it is dropped where |c + u - m| > |c + u - m*| + r,
// that is where |c - m|^2 - |c - m*|^2 > 2 u.(m - m*) + 2 r |c + u - m*| + r^2; and |c + u - m*| is at most |c - m*| +
// R.
template <typename T>
struct BallRule {
    Vec3<T> nearest, half_extent;  // m*, and the box's h
    T limit, reach;                // |c - m*|^2, and 2 (|c - m*| + R)

    // A ball whose centre has this squared distance from c.
    IMN_INLINE bool keeps(Vec3<T> centre, T radius, T squared) const {
        T slack_along_box = largest_along_box(half_extent, centre - nearest);
        return squared - 2 * slack_along_box - radius * (reach + radius) <= limit;
    }
};

template <typename T>
IMN_INLINE BallRule<T> make_ball_rule(Vec3<T> nearest, T squared, Vec3<T> half_extent) {
    return {nearest, half_extent, squared, 2 * (square_root(squared) + square_root(dot(half_extent, half_extent)))};
}

// The yardstick * is the face closest to c; r* and r are the offsets from the closest points of * and of another face
// to c. Then * is no further from c + u than |r* + u|, and than |r*| + R. The other face lies behind the plane through
// its closest point across r, so it is at least |r| + u.r / |r| away, and at least |r| - R. So it is dropped where
//     |r| > |r*| + 2 R, or
//     |r|^2 - |r*|^2 > 2 u.(r* - r) + R^2 (then |r| > R, so that the bound is not negative).
template <typename T>
struct FaceRule {
    Vec3<T> nearest, half_extent;  // r*, and the box's h
    T near, far;                   // what squared distances are held against

    IMN_INLINE bool keeps(Vec3<T> offset, T squared) const {
        T slack_along_box = largest_along_box(half_extent, offset - nearest);
        return (squared <= far) & (squared - 2 * slack_along_box <= near);
    }
};

// `slack` is how wrong rounding can make an offset.
template <typename T>
IMN_INLINE FaceRule<T> make_face_rule(Vec3<T> nearest, T squared, Vec3<T> half_extent, T slack) {
    T radius = square_root(dot(half_extent, half_extent));
    T reach = square_root(squared) + 2 * radius + slack;
    return {nearest, half_extent, squared + radius * radius + 4 * slack * reach, reach * reach};
}

}  // namespace imn
