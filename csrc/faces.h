// The one check of a face list that the kernels need before they index with it.
#pragma once

#include <ATen/ATen.h>

namespace imn {

inline void check_faces(const at::Tensor& faces, int64_t vertex_count) {
    TORCH_CHECK_VALUE(faces.size(0) > 0, "faces: wanted at least one face, found none");
    const int64_t* index = faces.const_data_ptr<int64_t>();
    for (int64_t i = 0; i < 3 * faces.size(0); i++)
        TORCH_CHECK_VALUE(index[i] >= 0 && index[i] < vertex_count, "faces: wanted vertex indices from 0 to ",
                          vertex_count - 1, ", found ", index[i]);
}

}  // namespace imn
