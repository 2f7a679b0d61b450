// Checks of what the host ops are handed. The package's functions check more, and say it better; these keep whoever
// calls an op itself, or changes memory behind its back, from reading where nothing is.
#pragma once

#include <ATen/ATen.h>

#include <limits>

namespace imn {

inline void check_sizes(const at::Tensor& tensor, at::IntArrayRef sizes, const char* name) {
    TORCH_CHECK_VALUE(tensor.sizes() == sizes, name, ": wanted shape ", sizes, ", found ", tensor.sizes());
}

// (B, V, 3)
inline void check_vertices(const at::Tensor& vertices) {
    TORCH_CHECK_VALUE(vertices.dim() == 3 && vertices.size(2) == 3, "vertices: wanted shape (B, V, 3), found ",
                      vertices.sizes());
}

constexpr int64_t LARGEST = 1 << 24;  // voxels along an axis, as in ops/_checks.py

inline bool is_shape(at::IntArrayRef shape, int64_t smallest) {
    bool fits = shape.size() == 3;
    for (int64_t size : shape) fits &= size >= smallest && size <= LARGEST;
    return fits;
}

inline void check_shape(at::IntArrayRef shape, int64_t smallest) {
    TORCH_CHECK_VALUE(is_shape(shape, smallest), "shape: wanted three integers from ", smallest, " to ", LARGEST,
                      ", found ", shape);
}

// (F, 3), not empty, of vertices that are there and that 32 bits can name.
inline void check_faces(const at::Tensor& faces, int64_t vertex_count) {
    constexpr int64_t largest = std::numeric_limits<int32_t>::max();
    TORCH_CHECK_VALUE(faces.dim() == 2 && faces.size(1) == 3, "faces: wanted shape (F, 3), found ", faces.sizes());
    TORCH_CHECK_VALUE(faces.size(0) > 0, "faces: wanted at least one face, found none");
    TORCH_CHECK_VALUE(faces.size(0) <= largest && vertex_count <= largest, "faces: wanted at most ", largest,
                      " faces and vertices, found ", faces.size(0), " and ", vertex_count);
    const int64_t* index = faces.const_data_ptr<int64_t>();
    for (int64_t i = 0; i < 3 * faces.size(0); i++)
        TORCH_CHECK_VALUE(index[i] >= 0 && index[i] < vertex_count, "faces: wanted vertex indices from 0 to ",
                          vertex_count - 1, ", found ", index[i]);
}

}  // namespace imn
