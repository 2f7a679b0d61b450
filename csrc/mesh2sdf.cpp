// The exact signed distance on the CPU: ever smaller boxes of voxels cull the faces; survivors meet the voxels.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>

#include "winding.h"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("finite-math-only", "no-signed-zeros")  // makes minima and maxima one instruction; see solve_item
#endif

#include "faces.h"
#include "grid.h"

namespace {

using imn::Box;
using imn::Grid;
using imn::Triangle;
using imn::TRIANGLE_FIELDS;
using imn::Vec3;

constexpr int LEVELS = 3;
constexpr int64_t SIDE[LEVELS] = {16, 8, 4};  // voxels along a box of each level
constexpr int SLICE = 16;                     // voxels in one layer of the smallest box

// Triangles twice: each in one piece, and as a structure of arrays, field i of triangle f at fields[i * stride + f].
template <typename T>
struct Soup {
    std::vector<Triangle<T>> triangles;
    std::vector<T> fields;
    std::vector<int32_t> face;  // which face each triangle is, ascending
    int64_t stride, count = 0;

    explicit Soup(int64_t capacity)
        : triangles(capacity), face(capacity), stride((capacity / 16 | 1) * 16 + 16) {
        fields.resize(TRIANGLE_FIELDS * stride);  // no power of two apart, so that they fall into different cache sets
    }
    void append(const Triangle<T>& triangle, int32_t index) {
        static_assert(sizeof(triangle) == TRIANGLE_FIELDS * sizeof(T), "a Triangle is its fields, one after the other");
        for (int i = 0; i < TRIANGLE_FIELDS; i++) fields[i * stride + count] = (&triangle.a.x)[i];
        triangles[count] = triangle, face[count] = index, count++;
    }
};

template <typename T>
IMN_INLINE Triangle<T> load(const T* data, int64_t stride, int64_t f) {
    auto at = [&](int i) { return data[i * stride + f]; };
    return {{at(0), at(1), at(2)}, {at(3), at(4), at(5)}, {at(6), at(7), at(8)}, {at(9), at(10), at(11)},
            at(12), at(13), at(14), at(15), at(16), at(17)};
}

// The distance d of a point to one triangle, and the unit direction n from its closest point to it.
template <typename T>
IMN_INLINE void measure_one(const T* data, int64_t stride, int64_t f, Vec3<T> point, T& d, T& nx, T& ny, T& nz) {
    Triangle<T> t = load(data, stride, f);
    Vec3<T> r = imn::residual(t, imn::to_frame(t, point));
    d = imn::square_root(imn::dot(r, r));
    T inverse = T(1) / (d + std::numeric_limits<T>::min());
    Vec3<T> n = inverse * (r.x * t.x + r.y * t.y + r.z * t.z);
    nx = n.x, ny = n.y, nz = n.z;
}

template <typename T>  // structs stay out of simd loops, where gcc would make them arrays and give up
IMN_INLINE void measure(const T* data, int64_t stride, int64_t count, Vec3<T> point, T* d, T* nx, T* ny, T* nz) {
#pragma omp simd
    for (int64_t f = 0; f < count; f++) measure_one(data, stride, f, point, d[f], nx[f], ny[f], nz[f]);
}

// excess[f] <= 0 where triangle f can be the closest to some point c + u of the box around c, |u_a| <= h_a, |h| = R.
// It cannot where d - d* > 2 R. Nor where d - d* > sum_a h_a |n*_a - n_a| + R^2 / 2 d*: a triangle lies behind the
// plane through its closest point q across n, so it is at least d + u.n away, and |c + u - q*| <= d* + u.n* + |u|^2 /
// 2 d*.
template <typename T>
IMN_INLINE void bound(const T* d, const T* nx, const T* ny, const T* nz, int64_t count, int64_t nearest, Vec3<T> h,
                      T slack, T* excess) {
    T least = d[nearest], radius = imn::square_root(imn::dot(h, h));
    T curved = least > T(0) ? radius * radius / (2 * least) : 2 * radius;
    Vec3<T> n = {nx[nearest], ny[nearest], nz[nearest]};
#pragma omp simd
    for (int64_t f = 0; f < count; f++) {
        T turn = curved + h.x * imn::magnitude(n.x - nx[f]) + h.y * imn::magnitude(n.y - ny[f]) +
                 h.z * imn::magnitude(n.z - nz[f]);
        excess[f] = d[f] - least - slack - (turn < 2 * radius ? turn : 2 * radius);
    }
}

// The smallest box: voxel (i, l) stands at centre + (x[i], y[l], z[l]).
template <typename T>
struct Voxels {
    alignas(64) T x[SIDE[LEVELS - 1]], y[SLICE], z[SLICE], best[SIDE[LEVELS - 1] * SLICE];
    alignas(64) int32_t nearest[SIDE[LEVELS - 1] * SLICE];
};

// Keeps the closest of the listed triangles for each voxel, the first of equals.
template <typename T>
IMN_INLINE void compare(const Triangle<T>* triangles, const int32_t* list, int64_t count, Vec3<T> centre,
                        Voxels<T>& voxels) {
    for (int64_t k = 0; k < count; k++) {
        Triangle<T> t = triangles[list[k]];
        Vec3<T> origin = imn::to_frame(t, centre);
        for (int i = 0; i < SIDE[LEVELS - 1]; i++) {
            Vec3<T> row = origin + voxels.x[i] * Vec3<T>{t.x.x, t.y.x, t.z.x};
            T* best = voxels.best + i * SLICE;
            int32_t* nearest = voxels.nearest + i * SLICE;
#pragma omp simd
            for (int l = 0; l < SLICE; l++) {
                T y = voxels.y[l], z = voxels.z[l];
                T squared = imn::squared_distance(
                    t, Vec3<T>{row.x + y * t.x.y + z * t.x.z, row.y + y * t.y.y + z * t.y.z,
                               row.z + y * t.z.y + z * t.z.z});
                bool better = squared < best[l];
                best[l] = better ? squared : best[l];
                nearest[l] = better ? int32_t(k) : nearest[l];
            }
        }
    }
}

#define IMN_INSTANTIATE(T)                                                                                             \
    IMN_CLONES void measure_all(const T* data, int64_t stride, int64_t count, Vec3<T> point, T* d, T* nx, T* ny,       \
                                T* nz) {                                                                               \
        measure(data, stride, count, point, d, nx, ny, nz);                                                            \
    }                                                                                                                  \
    IMN_CLONES void bound_all(const T* d, const T* nx, const T* ny, const T* nz, int64_t count, int64_t nearest,       \
                              Vec3<T> h, T slack, T* excess) {                                                         \
        bound(d, nx, ny, nz, count, nearest, h, slack, excess);                                                        \
    }                                                                                                                  \
    IMN_CLONES void compare_all(const Triangle<T>* triangles, const int32_t* list, int64_t count, Vec3<T> centre,      \
                                Voxels<T>& voxels) {                                                                   \
        compare(triangles, list, count, centre, voxels);                                                               \
    }
IMN_INSTANTIATE(float)
IMN_INSTANTIATE(double)

// One thread's descent from a box to its voxels.
template <typename T>
struct Descent {
    const Grid& grid;
    const int8_t* inside;
    T slack;  // of distances and bounds, for rounding
    T* sdf;
    int32_t* face;
    std::vector<T> d, nx, ny, nz, excess;
    std::vector<int32_t> list;
    std::vector<Soup<T>> survivors;

    Descent(const Grid& grid, int64_t capacity, const int8_t* inside, T slack, T* sdf, int32_t* face)
        : grid(grid), inside(inside), slack(slack), sdf(sdf), face(face), d(capacity), nx(capacity), ny(capacity),
          nz(capacity), excess(capacity), list(capacity), survivors(LEVELS - 1, Soup<T>(capacity)) {}

    void descend(const Soup<T>& soup, const Box& box, int level) {
        Vec3<T> centre = {T(box.centre(grid, 0)), T(box.centre(grid, 1)), T(box.centre(grid, 2))};
        int64_t kept = cull(soup, centre, {T(box.half(grid, 0)), T(box.half(grid, 1)), T(box.half(grid, 2))});
        if (level == LEVELS - 1) return solve(soup, box, centre, kept);
        survivors[level].count = 0;
        for (int64_t k = 0; k < kept; k++) survivors[level].append(soup.triangles[list[k]], soup.face[list[k]]);
        box.split(SIDE[level + 1], [&](const Box& part) { descend(survivors[level], part, level + 1); });
    }

    // Lists the triangles of the soup that can be the closest somewhere in the box; returns how many.
    int64_t cull(const Soup<T>& soup, Vec3<T> centre, Vec3<T> half) {
        measure_all(soup.fields.data(), soup.stride, soup.count, centre, d.data(), nx.data(), ny.data(), nz.data());
        int64_t nearest = std::min_element(d.begin(), d.begin() + soup.count) - d.begin();
        bound_all(d.data(), nx.data(), ny.data(), nz.data(), soup.count, nearest, half, slack, excess.data());
        int64_t kept = 0;
        for (int64_t f = 0; f < soup.count; f++) {
            list[kept] = int32_t(f);
            kept += excess[f] <= 0;
        }
        return kept;
    }

    void solve(const Soup<T>& soup, const Box& box, Vec3<T> centre, int64_t kept) {
        Voxels<T> voxels;
        auto offset = [&](int a, int64_t step, T middle) {  // lanes beyond the box repeat its last voxel
            return T(grid.axis[a][std::min(box.low[a] + step, box.high[a] - 1)] - double(middle));
        };
        for (int i = 0; i < SIDE[LEVELS - 1]; i++) voxels.x[i] = offset(0, i, centre.x);
        for (int l = 0; l < SLICE; l++) {
            voxels.y[l] = offset(1, l / 4, centre.y);
            voxels.z[l] = offset(2, l % 4, centre.z);
        }
        std::fill(std::begin(voxels.best), std::end(voxels.best), std::numeric_limits<T>::max());
        std::fill(std::begin(voxels.nearest), std::end(voxels.nearest), 0);
        compare_all(soup.triangles.data(), list.data(), kept, centre, voxels);
        for (int64_t i = box.low[0]; i < box.high[0]; i++)
            for (int64_t j = box.low[1]; j < box.high[1]; j++)
                for (int64_t k = box.low[2]; k < box.high[2]; k++) {
                    int64_t voxel = (i * grid.shape[1] + j) * grid.shape[2] + k;
                    int64_t lane = (i - box.low[0]) * SLICE + (j - box.low[1]) * 4 + k - box.low[2];
                    T distance = imn::square_root(voxels.best[lane]);
                    sdf[voxel] = inside[voxel] ? -distance : distance;
                    face[voxel] = soup.face[list[voxels.nearest[lane]]];
                }
    }
};

// The vertices must be finite, and nothing in this file may meet or make a value that is not.
template <typename T>
void solve_item(const T* vertices, int64_t vertex_count, const int64_t* faces, int64_t face_count, const Grid& grid,
                int8_t* inside, T* sdf, int32_t* face) {
    T extent = 1;
    for (int64_t i = 0; i < 3 * vertex_count; i++) extent = std::max(extent, std::abs(vertices[i]));
    double half[3];
    for (int a = 0; a < 3; a++) half[a] = double(grid.shape[a] - 1) / 2;
    imn::inside_mask(vertices, half, half, vertex_count, faces, face_count, grid.shape, inside);
    Soup<T> soup(face_count);
    int64_t order[3];
    for (int64_t f = 0; f < face_count; f++)
        soup.append(imn::face_triangle(vertices, faces + 3 * f, order), int32_t(f));
    std::vector<Box> boxes;
    Box whole = {{0, 0, 0}, {grid.shape[0], grid.shape[1], grid.shape[2]}};
    whole.split(SIDE[0], [&](const Box& box) { boxes.push_back(box); });
    T slack = 32 * std::numeric_limits<T>::epsilon() * extent;
    std::atomic<size_t> next{0};  // boxes near the surface cost more, so threads take them one by one
    at::parallel_for(0, at::get_num_threads(), 1, [&](int64_t, int64_t) {
        Descent<T> descent(grid, face_count, inside, slack, sdf, face);
        for (size_t i; (i = next++) < boxes.size();) descent.descend(soup, boxes[i], 0);
    });
}

std::tuple<at::Tensor, at::Tensor> mesh2sdf(const at::Tensor& vertices_, const at::Tensor& faces_,
                                            at::IntArrayRef shape) {
    auto vertices = vertices_.contiguous(), faces = faces_.contiguous();
    imn::check_faces(faces, vertices.size(1));
    auto sdf = at::full({vertices.size(0), shape[0], shape[1], shape[2]}, NAN, vertices.options());
    auto face = at::zeros(sdf.sizes(), sdf.options().dtype(at::kInt));
    auto finite = vertices.isfinite().flatten(1).all(1);
    Grid grid(shape);
    std::vector<int8_t> inside(grid.size());
    AT_DISPATCH_FLOATING_TYPES(vertices.scalar_type(), "mesh2sdf", [&] {
        for (int64_t b = 0; b < vertices.size(0); b++) {
            if (!finite[b].item<bool>()) continue;
            solve_item(vertices.const_data_ptr<scalar_t>() + b * vertices.size(1) * 3, vertices.size(1),
                       faces.const_data_ptr<int64_t>(), faces.size(0), grid, inside.data(),
                       sdf.mutable_data_ptr<scalar_t>() + b * grid.size(),
                       face.mutable_data_ptr<int32_t>() + b * grid.size());
        }
    });
    return {sdf, face};
}

}  // namespace

TORCH_LIBRARY_IMPL(implicitmeshnet, CPU, library) { library.impl("mesh2sdf", mesh2sdf); }
