// Which voxels lie inside a mesh, on the CPU: the winding number of winding.h, for vertices in voxel coordinates.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "checks.h"
#include "winding.h"

namespace {

at::Tensor voxelize(const at::Tensor& vertices, const at::Tensor& faces, at::IntArrayRef shape) {
    auto points = vertices.contiguous();
    auto corners = faces.contiguous();
    TORCH_CHECK_VALUE(points.dim() == 2 && points.size(1) == 3, "vertices: wanted shape (V, 3), found ",
                      points.sizes());
    imn::check_faces(corners, points.size(0));
    imn::check_shape(shape, 1);
    auto inside = at::empty(shape, vertices.options().dtype(at::kBool));
    const imn::VoxelTransform identity = {{1, 1, 1}, {0, 0, 0}};
    AT_DISPATCH_FLOATING_TYPES(points.scalar_type(), "voxelize", [&] {
        imn::inside_mask(imn::mesh_of<scalar_t>(points.unsqueeze(0), corners, 0), identity, shape.data(),
                         reinterpret_cast<int8_t*>(inside.mutable_data_ptr<bool>()));
    });
    return inside;
}

}  // namespace

TORCH_LIBRARY_IMPL(implicitmeshnet, CPU, library) { library.impl("voxelize", voxelize); }
