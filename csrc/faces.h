// A mesh as the host kernels take it, and its faces as triangles in their own planes.
#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <cstdint>
#include <limits>

#include "triangle.h"

namespace imn {

constexpr double LIMIT = 1e9;  // a mesh with a vertex beyond, or not finite, has no distance

template <typename T>
struct Mesh {
    const T* vertices;  // (vertex_count, 3)
    int64_t vertex_count;
    const int64_t* faces;  // (face_count, 3)
    int64_t face_count;
};

// Item b of a batch: vertices (B, V, 3) and faces (F, 3) that all items share, both contiguous.
template <typename T>
Mesh<T> mesh_of(const at::Tensor& vertices, const at::Tensor& faces, int64_t b) {
    int64_t count = vertices.size(1);
    return {vertices.const_data_ptr<T>() + 3 * count * b, count, faces.const_data_ptr<int64_t>(), faces.size(0)};
}

// The largest coordinate of the vertices in use, at least 1: what rounding errors are in proportion to.
template <typename T>
T extent_of(const Mesh<T>& mesh) {
    T extent = 1;
    for (int64_t i = 0; i < 3 * mesh.face_count; i++)
        for (int a = 0; a < 3; a++) extent = std::max(extent, std::abs(mesh.vertices[3 * mesh.faces[i] + a]));
    return extent;
}

template <typename T, typename S>
Vec3<T> round_to(Vec3<S> v) {
    return {T(v.x), T(v.y), T(v.z)};
}

template <typename T, typename S>
RightTriangle<T> round_to(RightTriangle<S> r) {
    return {T(r.width), T(r.x), T(r.y), T(r.length)};
}

// A face's triangle in double; `order` gets the vertices that are its a, b, c.
template <typename T>
Triangle<double> face_triangle(const Mesh<T>& mesh, int64_t f, int32_t* order) {
    const int64_t* face = mesh.faces + 3 * f;
    Vec3<double> corner[3];
    for (int k = 0; k < 3; k++) {
        const T* v = mesh.vertices + 3 * face[k];
        corner[k] = {double(v[0]), double(v[1]), double(v[2])};
    }
    int first = longest_edge(corner);
    for (int k = 0; k < 3; k++) order[k] = int32_t(face[(first + k) % 3]);
    return make_triangle(corner[first], corner[(first + 1) % 3], corner[(first + 2) % 3],
                         std::numeric_limits<double>::epsilon());
}

template <typename T>
Triangle<T> round_to(const Triangle<double>& t) {
    return {round_to<T>(t.foot), round_to<T>(t.x),    round_to<T>(t.y),
            round_to<T>(t.z),    round_to<T>(t.left), round_to<T>(t.right)};
}

}  // namespace imn
