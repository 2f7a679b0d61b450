// The signed distance's gradient by the vertices, on the CPU: d sdf / d v_k = -beta_k n.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <array>

#include "faces.h"
#include "grid.h"

namespace {

using imn::Grid;
using imn::Triangle;
using imn::Vec3;

constexpr int64_t CHUNKS = 32;  // of voxels, fixed, so that the sums do not depend on the number of threads

template <typename T>
struct Corners {
    Triangle<T> triangle;
    int64_t order[3];
};

// Adds one voxel's share to the sums (V, 3): beta are the closest point q's weights, n = (p - q) / sdf or, on the
// surface itself, the face normal.
template <typename T>
void add_voxel(const Corners<T>& corners, Vec3<T> p, T sdf, T grad, T* sums) {
    const Triangle<T>& t = corners.triangle;
    Vec3<T> local = imn::to_frame(t, p);
    imn::Weights<T> beta = imn::closest_weights(t, local);
    bool on_surface = std::abs(sdf) <= 8 * std::numeric_limits<T>::epsilon();
    Vec3<T> r = imn::residual(t, local);
    T length = imn::square_root(imn::dot(r, r));  // |sdf|, but for the rounding that would not cancel
    r = on_surface || length == 0 ? Vec3<T>{0, 0, 1} : (sdf < 0 ? -1 / length : 1 / length) * r;
    Vec3<T> pull = -grad * (r.x * t.x + r.y * t.y + r.z * t.z);
    const T weight[3] = {1 - beta.b - beta.c, beta.b, beta.c};
    for (int k = 0; k < 3; k++) {
        T* sum = sums + 3 * corners.order[k];
        sum[0] += weight[k] * pull.x, sum[1] += weight[k] * pull.y, sum[2] += weight[k] * pull.z;
    }
}

template <typename T>
void differentiate_item(const T* grad, const T* vertices, int64_t vertex_count, const at::Tensor& faces, const T* sdf,
                        const int32_t* face, const Grid& grid, T* result) {
    std::vector<Corners<T>> corners(faces.size(0));
    for (int64_t f = 0; f < faces.size(0); f++)
        corners[f].triangle = imn::face_triangle(vertices, faces.const_data_ptr<int64_t>() + 3 * f, corners[f].order);
    std::vector<T> sums(CHUNKS * 3 * vertex_count);
    at::parallel_for(0, CHUNKS, 1, [&](int64_t begin, int64_t end) {
        for (int64_t chunk = begin; chunk < end; chunk++) {
            int64_t rows = grid.shape[0] * grid.shape[1], last = rows * (chunk + 1) / CHUNKS;
            for (int64_t row = rows * chunk / CHUNKS; row < last; row++)
                for (int64_t k = 0; k < grid.shape[2]; k++) {
                    int64_t voxel = row * grid.shape[2] + k;
                    if (grad[voxel] == 0) continue;
                    Vec3<T> p = {T(grid.axis[0][row / grid.shape[1]]), T(grid.axis[1][row % grid.shape[1]]),
                                 T(grid.axis[2][k])};
                    add_voxel(corners[face[voxel]], p, sdf[voxel], grad[voxel], &sums[chunk * 3 * vertex_count]);
                }
        }
    });
    for (int64_t i = 0; i < 3 * vertex_count; i++) {
        double sum = 0;
        for (int64_t chunk = 0; chunk < CHUNKS; chunk++) sum += sums[chunk * 3 * vertex_count + i];
        result[i] = T(sum);
    }
}

at::Tensor mesh2sdf_backward(const at::Tensor& grad_, const at::Tensor& vertices_, const at::Tensor& faces_,
                             const at::Tensor& sdf_, const at::Tensor& face_) {
    auto grad = grad_.contiguous(), vertices = vertices_.contiguous(), faces = faces_.contiguous();
    auto sdf = sdf_.contiguous(), face = face_.contiguous();
    auto result = at::empty(vertices.sizes(), vertices.options());
    Grid grid(sdf.sizes().slice(1));
    AT_DISPATCH_FLOATING_TYPES(vertices.scalar_type(), "mesh2sdf_backward", [&] {
        for (int64_t b = 0; b < vertices.size(0); b++)
            differentiate_item(grad.const_data_ptr<scalar_t>() + b * grid.size(),
                               vertices.const_data_ptr<scalar_t>() + b * vertices.size(1) * 3, vertices.size(1), faces,
                               sdf.const_data_ptr<scalar_t>() + b * grid.size(),
                               face.const_data_ptr<int32_t>() + b * grid.size(), grid,
                               result.mutable_data_ptr<scalar_t>() + b * vertices.size(1) * 3);
    });
    return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(implicitmeshnet, CPU, library) { library.impl("mesh2sdf_backward", mesh2sdf_backward); }
