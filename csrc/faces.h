// A mesh's faces as the host kernels want them: triangles in their own planes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "triangle.h"

namespace imn {

constexpr double LIMIT = 1e9;  // a mesh with a vertex beyond, or not finite, has no distance

// The largest coordinate of the vertices in use, at least 1: what rounding errors are in proportion to.
template <typename T>
T extent_of(const T* vertices, const int64_t* faces, int64_t face_count) {
    T extent = 1;
    for (int64_t i = 0; i < 3 * face_count; i++)
        for (int a = 0; a < 3; a++) extent = std::max(extent, std::abs(vertices[3 * faces[i] + a]));
    return extent;
}

template <typename T, typename S>
Vec3<T> round_to(Vec3<S> v) { return {T(v.x), T(v.y), T(v.z)}; }

template <typename T, typename S>
RightTriangle<T> round_to(RightTriangle<S> h) { return {T(h.width), T(h.x), T(h.y), T(h.length)}; }

// One face's triangle in double; `order` gets the vertices that are its a, b, c.
template <typename T>
Triangle<double> face_triangle(const T* vertices, const int64_t* face, int32_t* order) {
    Vec3<double> corner[3];
    for (int k = 0; k < 3; k++) {
        const T* v = vertices + 3 * face[k];
        corner[k] = {double(v[0]), double(v[1]), double(v[2])};
    }
    int first = longest_edge(corner);
    for (int k = 0; k < 3; k++) order[k] = int32_t(face[(first + k) % 3]);
    return make_triangle(corner[first], corner[(first + 1) % 3], corner[(first + 2) % 3],
                         std::numeric_limits<double>::epsilon());
}

template <typename T>
Triangle<T> round_to(const Triangle<double>& t) {
    return {round_to<T>(t.foot), round_to<T>(t.x), round_to<T>(t.y), round_to<T>(t.z), round_to<T>(t.left),
            round_to<T>(t.right)};
}

}  // namespace imn
