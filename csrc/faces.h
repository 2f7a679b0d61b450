// A mesh's faces as the host kernels want them: checked, and as triangles in their own planes.
#pragma once

#include <ATen/ATen.h>

#include <limits>

#include "triangle.h"

namespace imn {

inline void check_faces(const at::Tensor& faces, int64_t vertex_count) {
    TORCH_CHECK_VALUE(faces.size(0) > 0, "faces: wanted at least one face, found none");
    const int64_t* index = faces.const_data_ptr<int64_t>();
    for (int64_t i = 0; i < 3 * faces.size(0); i++)
        TORCH_CHECK_VALUE(index[i] >= 0 && index[i] < vertex_count, "faces: wanted vertex indices from 0 to ",
                          vertex_count - 1, ", found ", index[i]);
}

// One face's triangle, worked out in double and rounded to T; `order` gets the vertices that are its a, b, c.
template <typename T>
Triangle<T> face_triangle(const T* vertices, const int64_t* face, int64_t* order) {
    Vec3<double> corner[3];
    for (int k = 0; k < 3; k++) {
        const T* v = vertices + 3 * face[k];
        corner[k] = {double(v[0]), double(v[1]), double(v[2])};
    }
    int first = longest_edge(corner), second = (first + 1) % 3, third = (first + 2) % 3;
    order[0] = face[first], order[1] = face[second], order[2] = face[third];
    Triangle<double> t = make_triangle(corner[first], corner[second], corner[third],
                                       std::numeric_limits<double>::epsilon());
    auto round = [](Vec3<double> v) { return Vec3<T>{T(v.x), T(v.y), T(v.z)}; };
    return {round(t.a), round(t.x), round(t.y), round(t.z), T(t.length), T(t.cx), T(t.cy), T(t.inverse_length),
            T(t.inverse_ac), T(t.inverse_bc)};
}

}  // namespace imn
