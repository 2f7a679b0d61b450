// The signed distance's gradient by the vertices, on the CPU: d sdf / d v_k = -beta_k n.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "checks.h"
#include "faces.h"
#include "grid.h"

namespace {

using imn::Grid;
using imn::Mesh;
using imn::Triangle;
using imn::Vec3;

constexpr int LANES = 16;  // voxels of a row that are taken together
constexpr int FIELDS = 12;

// What a triangle is made of, and its vertices; one cache line in float.
template <typename T>
struct alignas(16 * sizeof(T)) Corners {
    T fields[FIELDS];  // foot, x, y, left and right width, height
    int32_t order[3];
};

template <typename T>
Corners<T> make_corners(const Mesh<T>& mesh, int64_t face) {
    Corners<T> corners;
    Triangle<double> t = imn::face_triangle(mesh, face, corners.order);
    const double fields[FIELDS] = {t.foot.x, t.foot.y, t.foot.z, t.x.x,        t.x.y,         t.x.z,
                                   t.y.x,    t.y.y,    t.y.z,    t.left.width, t.right.width, t.left.y * t.left.length};
    std::copy(std::begin(fields), std::end(fields), corners.fields);
    return corners;
}

template <typename T>
using Quad __attribute__((vector_size(4 * sizeof(T)), aligned(sizeof(T)), may_alias)) = T;

// What the forward pass found and what came back, voxel by voxel, Z running fastest.
template <typename T>
struct Voxels {
    const T *grad, *sdf;
    const int32_t* face;

    Voxels from(int64_t first) const { return {grad + first, sdf + first, face + first}; }
};

// Where a row of voxels along Z stands.
template <typename T>
struct Row {
    T x, y;
    const T* z;
    int64_t size;
};

// LANES voxels with their triangles, then the closest points' weights and grad's pull -grad n on each.
template <typename T>
struct Lanes {
    alignas(64) T fields[FIELDS][LANES], z[LANES], sdf[LANES], grad[LANES], weight[3][LANES], pull[LANES][4];
};

// n = (p - q) / sdf or, on the surface itself, the face normal.
template <typename T>
IMN_INLINE void pull_one(Lanes<T>& a, int l, T x, T y, T rounding) {
    auto at = [&](int i) { return Vec3<T>{a.fields[i][l], a.fields[i + 1][l], a.fields[i + 2][l]}; };
    T height = a.fields[11][l], sdf = a.sdf[l];
    const Triangle<T> t = {at(0),
                           at(3),
                           at(6),
                           imn::cross(at(3), at(6)),
                           imn::make_right_triangle(a.fields[9][l], height),
                           imn::make_right_triangle(a.fields[10][l], height)};
    Vec3<T> local = imn::to_frame(t, Vec3<T>{x, y, a.z[l]});
    imn::Weights<T> beta = imn::closest_weights(t, local);
    Vec3<T> r = imn::residual(t, local);
    T length = imn::square_root(imn::dot(r, r));  // |sdf|, but for the rounding that would not cancel
    bool on_surface = (imn::magnitude(sdf) <= rounding) | (length == T(0));
    T scale = -a.grad[l] * (on_surface ? T(1) : (sdf < T(0) ? T(-1) : T(1)) / length);
    Vec3<T> pull =
        scale * imn::from_frame(t, Vec3<T>{on_surface ? T(0) : r.x, on_surface ? T(0) : r.y, on_surface ? T(1) : r.z});
    a.weight[0][l] = T(1) - beta.b - beta.c;
    a.weight[1][l] = beta.b;
    a.weight[2][l] = beta.c;
    a.pull[l][0] = pull.x;
    a.pull[l][1] = pull.y;
    a.pull[l][2] = pull.z;
    a.pull[l][3] = T(0);
}

// Adds a row of voxels' shares to the sums (V, 4).
template <typename T>
IMN_INLINE void add_row(const Corners<T>* corners, Voxels<T> voxels, Row<T> row, T rounding, T* sums) {
    Lanes<T> a;
    for (int64_t first = 0; first < row.size; first += LANES) {
        int count = int(std::min<int64_t>(LANES, row.size - first));
        int any = 0;
#pragma omp simd reduction(| : any)
        for (int l = 0; l < count; l++) any |= voxels.grad[first + l] != T(0);
        if (!any) continue;
        for (int l = 0; l < LANES; l++) {  // lanes beyond the row repeat its last voxel
            int64_t voxel = first + std::min(l, count - 1);
            const Corners<T>& c = corners[voxels.face[voxel]];
            for (int i = 0; i < FIELDS; i++) a.fields[i][l] = c.fields[i];
            a.z[l] = row.z[voxel];
            a.sdf[l] = voxels.sdf[voxel];
            a.grad[l] = voxels.grad[voxel];
        }
#pragma omp simd
        for (int l = 0; l < LANES; l++) pull_one(a, l, row.x, row.y, rounding);
        for (int l = 0; l < count; l++) {
            const int32_t* order = corners[voxels.face[first + l]].order;
            Quad<T> pull = *reinterpret_cast<const Quad<T>*>(a.pull[l]);
            for (int k = 0; k < 3; k++)
                *reinterpret_cast<Quad<T>*>(sums + 4 * int64_t(order[k])) += a.weight[k][l] * pull;
        }
    }
}

#define IMN_INSTANTIATE(T)                                                                                     \
    IMN_CLONES void add(const Corners<T>* corners, Voxels<T> voxels, const Row<T>& row, T rounding, T* sums) { \
        add_row(corners, voxels, row, rounding, sums);                                                         \
    }
IMN_INSTANTIATE(float)
IMN_INSTANTIATE(double)

// Parts of the grid that are summed apart. The mesh and the grid alone decide, so threads do not change the bits.
int64_t chunk_count(const Grid& grid, int64_t vertex_count) {
    return std::min(grid.shape[0] * grid.shape[1], std::clamp<int64_t>(grid.size() / (16 * vertex_count), 8, 128));
}

template <typename T>
std::vector<Corners<T>> corners_of(const Mesh<T>& mesh) {
    std::vector<Corners<T>> corners(mesh.face_count);
    at::parallel_for(0, mesh.face_count, 1024, [&](int64_t begin, int64_t end) {
        for (int64_t f = begin; f < end; f++) corners[f] = make_corners(mesh, f);
    });
    return corners;
}

// Each chunk's sums, (chunks, V, 4).
template <typename T>
std::vector<T> chunk_sums(const Mesh<T>& mesh, Voxels<T> voxels, const Grid& grid, int64_t chunks) {
    std::vector<Corners<T>> corners = corners_of(mesh);
    T rounding = 8 * std::numeric_limits<T>::epsilon() * imn::extent_of(mesh);
    int64_t rows = grid.shape[0] * grid.shape[1];
    int64_t size = grid.shape[2];
    std::vector<T> z(grid.axis[2].begin(), grid.axis[2].end());
    std::vector<T> sums(chunks * 4 * mesh.vertex_count);
    at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
        for (int64_t chunk = begin; chunk < end; chunk++)
            for (int64_t i = rows * chunk / chunks; i < rows * (chunk + 1) / chunks; i++) {
                T x = T(grid.axis[0][i / grid.shape[1]]), y = T(grid.axis[1][i % grid.shape[1]]);
                Row<T> row = {x, y, z.data(), size};
                add(corners.data(), voxels.from(i * size), row, rounding, sums.data() + chunk * 4 * mesh.vertex_count);
            }
    });
    return sums;
}

// result (V, 3) = the chunks' sums, added in order.
template <typename T>
void differentiate_item(const Mesh<T>& mesh, Voxels<T> voxels, const Grid& grid, T* result) {
    int64_t vertex_count = mesh.vertex_count;
    int64_t chunks = chunk_count(grid, vertex_count);
    std::vector<T> sums = chunk_sums(mesh, voxels, grid, chunks);
    at::parallel_for(0, vertex_count, 1024, [&](int64_t begin, int64_t end) {
        for (int64_t v = begin; v < end; v++)
            for (int i = 0; i < 3; i++) {
                double sum = 0;
                for (int64_t chunk = 0; chunk < chunks; chunk++) sum += sums[4 * (chunk * vertex_count + v) + i];
                result[3 * v + i] = T(sum);
            }
    });
}

// Whether all numbers are from 0 to bound - 1.
IMN_CLONES bool are_below(const int32_t* numbers, int64_t count, uint32_t bound) {
    int beyond = 0;
#pragma omp simd reduction(| : beyond)
    for (int64_t i = 0; i < count; i++) beyond |= uint32_t(numbers[i]) >= bound;
    return !beyond;
}

void check(const at::Tensor& grad, const at::Tensor& vertices, const at::Tensor& faces, const at::Tensor& sdf,
           const at::Tensor& face) {
    imn::check_vertices(vertices);
    imn::check_faces(faces, vertices.size(1));
    TORCH_CHECK_VALUE(sdf.dim() == 4 && sdf.size(0) == vertices.size(0), "sdf: wanted shape (", vertices.size(0),
                      ", X, Y, Z), found ", sdf.sizes());
    imn::check_sizes(grad, sdf.sizes(), "grad");
    imn::check_sizes(face, sdf.sizes(), "face");
    TORCH_CHECK_VALUE(are_below(face.const_data_ptr<int32_t>(), face.numel(), uint32_t(faces.size(0))),
                      "face: wanted faces from 0 to ", faces.size(0) - 1, ", found others");
}

at::Tensor mesh2sdf_backward(const at::Tensor& grad_, const at::Tensor& vertices_, const at::Tensor& faces_,
                             const at::Tensor& sdf_, const at::Tensor& face_) {
    auto grad = grad_.contiguous();
    auto vertices = vertices_.contiguous();
    auto faces = faces_.contiguous();
    auto sdf = sdf_.contiguous();
    auto face = face_.contiguous();
    check(grad, vertices, faces, sdf, face);
    if (sdf.numel() == 0) return at::zeros(vertices.sizes(), vertices.options());
    auto result = at::empty(vertices.sizes(), vertices.options());
    Grid grid(sdf.sizes().slice(1));
    AT_DISPATCH_FLOATING_TYPES(vertices.scalar_type(), "mesh2sdf_backward", [&] {
        Voxels<scalar_t> voxels = {grad.const_data_ptr<scalar_t>(), sdf.const_data_ptr<scalar_t>(),
                                   face.const_data_ptr<int32_t>()};
        for (int64_t b = 0; b < vertices.size(0); b++)
            differentiate_item(imn::mesh_of<scalar_t>(vertices, faces, b), voxels.from(b * grid.size()), grid,
                               result.mutable_data_ptr<scalar_t>() + b * vertices.size(1) * 3);
    });
    return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(implicitmeshnet, CPU, library) { library.impl("mesh2sdf_backward", mesh2sdf_backward); }
