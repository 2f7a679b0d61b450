// The exact signed distance transform on the CPU: boxes of voxels cull the faces, the survivors meet every voxel.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <atomic>
#include <limits>

#include "faces.h"
#include "triangle.h"
#include "winding.h"

namespace {

using imn::Triangle;
using imn::TRIANGLE_FIELDS;
using imn::Vec3;

constexpr int64_t BLOCK = 16;  // voxels along the side of the outer box
constexpr int64_t BOX = 4;     // and of the inner one
constexpr int64_t LANES = BOX * BOX * BOX;
constexpr int64_t GRADIENT_CHUNKS = 32;  // fixed, so that sums do not depend on the number of threads

// Triangles as a structure of arrays: field i of triangle f at data[i * stride + f].
template <typename T>
struct Soup {
    std::vector<T> data;
    int64_t stride = 0, count = 0;

    void reserve(int64_t capacity) {
        stride = (capacity / 16 | 1) * 16 + 16;  // an odd number of cache lines: fields of a face in different sets
        data.resize(TRIANGLE_FIELDS * stride);
    }
    void append(const Soup& other, int64_t f) {
        for (int i = 0; i < TRIANGLE_FIELDS; i++) data[i * stride + count] = other.data[i * other.stride + f];
        count++;
    }
};

template <typename T>
IMN_INLINE Triangle<T> load(const T* data, int64_t stride, int64_t f) {
    auto at = [&](int i) { return data[i * stride + f]; };
    auto vec = [&](int i) { return Vec3<T>{at(i), at(i + 1), at(i + 2)}; };
    return {vec(0), vec(3), vec(6), vec(9), vec(12), vec(15), vec(18), at(21), at(22), at(23), at(24)};
}

template <typename T>
void build(Soup<T>& soup, const T* vertices, const int64_t* faces, int64_t count) {
    soup.reserve(count);
    soup.count = count;
    auto corner = [&](int64_t v) {
        return Vec3<double>{vertices[3 * v], vertices[3 * v + 1], vertices[3 * v + 2]};
    };
    for (int64_t f = 0; f < count; f++) {
        Triangle<double> t = imn::make_triangle(corner(faces[3 * f]), corner(faces[3 * f + 1]), corner(faces[3 * f + 2]));
        const double* fields = &t.a.x;
        static_assert(sizeof(t) == TRIANGLE_FIELDS * sizeof(double), "Triangle is its fields, one after the other");
        for (int i = 0; i < TRIANGLE_FIELDS; i++) soup.data[i * soup.stride + f] = T(fields[i]);
    }
}

// Offsets (d, dx, dy, dz) from the closest point of each triangle to c.
template <typename T>
IMN_INLINE void offsets(const T* data, int64_t stride, int64_t count, Vec3<T> c, T* IMN_RESTRICT d, T* IMN_RESTRICT dx,
                        T* IMN_RESTRICT dy, T* IMN_RESTRICT dz) {
#pragma omp simd
    for (int64_t f = 0; f < count; f++) {
        Triangle<T> t = load(data, stride, f);
        Vec3<T> offset = imn::closest_offset(t, c - t.a);
        d[f] = __builtin_sqrt(dot(offset, offset));
        dx[f] = offset.x, dy[f] = offset.y, dz[f] = offset.z;
    }
}

// excess[f] <= 0 where triangle f can be the closest to some point of the box around c with half sides h. It cannot
// where d - d* > 2 R; nor, since a triangle lies behind the plane through its closest point q, across c - q, and
// |p - q*| <= d* + u.n* + |u|^2 / 2 d*, where d - d* > sum_a h_a |n*_a - n_a| + R^2 / 2 d*.
template <typename T>
IMN_INLINE void excesses(const T* d, const T* dx, const T* dy, const T* dz, int64_t count, int64_t nearest, Vec3<T> h,
                         T radius, T* IMN_RESTRICT excess) {
    T least = d[nearest], inverse = least > 0 ? 1 / least : 0;
    T slack = 32 * std::numeric_limits<T>::epsilon() * (1 + least);
    T curved = least > 0 ? radius * radius / (2 * least) : 2 * radius;
    Vec3<T> n = {dx[nearest] * inverse, dy[nearest] * inverse, dz[nearest] * inverse};
#pragma omp simd
    for (int64_t f = 0; f < count; f++) {
        T scale = d[f] > 0 ? 1 / d[f] : T(0);
        T plane = curved + h.x * __builtin_fabs(n.x - dx[f] * scale) + h.y * __builtin_fabs(n.y - dy[f] * scale) +
                  h.z * __builtin_fabs(n.z - dz[f] * scale);
        excess[f] = d[f] - least - slack - (plane < 2 * radius ? plane : 2 * radius);
    }
}

// Keeps the closest of the listed triangles for each of LANES points.
template <typename T>
IMN_INLINE void nearest_of(const Triangle<T>* triangles, const int32_t* list, int64_t count, const T* IMN_RESTRICT px,
                           const T* IMN_RESTRICT py, const T* IMN_RESTRICT pz, T* IMN_RESTRICT best,
                           int32_t* IMN_RESTRICT face) {
    for (int64_t k = 0; k < count; k++) {
        int32_t id = list[k];
        Triangle<T> t = triangles[id];
#pragma omp simd
        for (int l = 0; l < LANES; l++) {
            T d = imn::closest_squared(t, Vec3<T>{px[l] - t.a.x, py[l] - t.a.y, pz[l] - t.a.z});
            bool better = d < best[l];
            best[l] = better ? d : best[l];
            face[l] = better ? id : face[l];
        }
    }
}

#define IMN_INSTANTIATE(T)                                                                                           \
    IMN_CLONES void offsets_of(const T* data, int64_t stride, int64_t count, Vec3<T> c, T* d, T* dx, T* dy, T* dz) { \
        offsets<T>(data, stride, count, c, d, dx, dy, dz);                                                           \
    }                                                                                                                \
    IMN_CLONES void excesses_of(const T* d, const T* dx, const T* dy, const T* dz, int64_t count, int64_t nearest,   \
                                Vec3<T> h, T radius, T* excess) {                                                    \
        excesses<T>(d, dx, dy, dz, count, nearest, h, radius, excess);                                               \
    }                                                                                                                \
    IMN_CLONES void nearest_to(const Triangle<T>* triangles, const int32_t* list, int64_t count, const T* px,        \
                               const T* py, const T* pz, T* best, int32_t* face) {                                   \
        nearest_of<T>(triangles, list, count, px, py, pz, best, face);                                               \
    }
IMN_INSTANTIATE(float)
IMN_INSTANTIATE(double)

// What one thread needs to cull: distances of up to F triangles, the survivors of a block and of a box.
template <typename T>
struct Workspace {
    std::vector<T> d, dx, dy, dz, excess;
    Soup<T> block;
    std::vector<Triangle<T>> triangles;  // the block's once more, each in one piece
    std::vector<int32_t> block_faces, box_list;

    explicit Workspace(int64_t faces)
        : d(faces), dx(faces), dy(faces), dz(faces), excess(faces), block_faces(faces), box_list(faces) {
        block.reserve(faces);
    }

    // Fills `list` with the triangles of the soup that can be closest within the box; ascending.
    int64_t cull(const Soup<T>& soup, Vec3<T> c, Vec3<T> h, int32_t* list) {
        offsets_of(soup.data.data(), soup.stride, soup.count, c, d.data(), dx.data(), dy.data(), dz.data());
        int64_t nearest = std::min_element(d.begin(), d.begin() + soup.count) - d.begin();
        T radius = std::sqrt(dot(h, h));
        excesses_of(d.data(), dx.data(), dy.data(), dz.data(), soup.count, nearest, h, radius, excess.data());
        int64_t kept = 0;
        for (int64_t f = 0; f < soup.count; f++) {
            list[kept] = int32_t(f);
            kept += excess[f] <= 0;
        }
        return kept;
    }
};

template <typename T>
struct Grid {
    int64_t shape[3];
    std::vector<T> axis[3];  // normalised voxel centres

    explicit Grid(at::IntArrayRef sizes) {
        for (int a = 0; a < 3; a++) {
            shape[a] = sizes[a];
            for (int64_t i = 0; i < sizes[a]; i++) axis[a].push_back(T(-1 + 2.0 * double(i) / double(sizes[a] - 1)));
        }
    }
    int64_t size() const { return shape[0] * shape[1] * shape[2]; }
};

// A range of voxels [low, high) along each axis, clipped to the grid.
template <typename T>
struct Range {
    int64_t low[3], high[3];

    Range(const Grid<T>& grid, const int64_t* corner, int64_t side) {
        for (int a = 0; a < 3; a++) low[a] = corner[a], high[a] = std::min(grid.shape[a], corner[a] + side);
    }
    void box(const Grid<T>& grid, Vec3<T>& centre, Vec3<T>& half) const {
        T c[3], h[3];
        for (int a = 0; a < 3; a++) {
            T first = grid.axis[a][low[a]], last = grid.axis[a][high[a] - 1];
            c[a] = (first + last) / 2, h[a] = (last - first) / 2;
        }
        centre = {c[0], c[1], c[2]}, half = {h[0], h[1], h[2]};
    }
};

template <typename T>
void solve_box(const Grid<T>& grid, const Range<T>& range, Workspace<T>& space, const int8_t* inside, T* sdf,
               int32_t* face) {
    Vec3<T> centre, half;
    range.box(grid, centre, half);
    int64_t kept = space.cull(space.block, centre, half, space.box_list.data());
    alignas(64) T px[LANES], py[LANES], pz[LANES], best[LANES];
    alignas(64) int32_t nearest[LANES];
    for (int l = 0; l < LANES; l++) {  // lanes beyond the grid repeat its last voxel
        px[l] = grid.axis[0][std::min(range.low[0] + l / 16, range.high[0] - 1)];
        py[l] = grid.axis[1][std::min(range.low[1] + l / 4 % 4, range.high[1] - 1)];
        pz[l] = grid.axis[2][std::min(range.low[2] + l % 4, range.high[2] - 1)];
        best[l] = std::numeric_limits<T>::infinity();
        nearest[l] = 0;
    }
    nearest_to(space.triangles.data(), space.box_list.data(), kept, px, py, pz, best, nearest);
    for (int l = 0; l < LANES; l++) {
        int64_t i = range.low[0] + l / 16, j = range.low[1] + l / 4 % 4, k = range.low[2] + l % 4;
        if (i >= range.high[0] || j >= range.high[1] || k >= range.high[2]) continue;
        int64_t voxel = (i * grid.shape[1] + j) * grid.shape[2] + k;
        T d = std::sqrt(best[l]);
        sdf[voxel] = inside[voxel] ? -d : d;
        face[voxel] = space.block_faces[nearest[l]];
    }
}

template <typename T>
void solve_block(const Grid<T>& grid, const int64_t* corner, const Soup<T>& soup, Workspace<T>& space,
                 const int8_t* inside, T* sdf, int32_t* face) {
    Range<T> block(grid, corner, BLOCK);
    Vec3<T> centre, half;
    block.box(grid, centre, half);
    int64_t kept = space.cull(soup, centre, half, space.block_faces.data());
    space.block.count = 0, space.triangles.clear();
    for (int64_t k = 0; k < kept; k++) {
        space.block.append(soup, space.block_faces[k]);
        space.triangles.push_back(load(soup.data.data(), soup.stride, space.block_faces[k]));
    }
    int64_t at[3];
    for (at[0] = block.low[0]; at[0] < block.high[0]; at[0] += BOX)
        for (at[1] = block.low[1]; at[1] < block.high[1]; at[1] += BOX)
            for (at[2] = block.low[2]; at[2] < block.high[2]; at[2] += BOX)
                solve_box(grid, Range<T>(grid, at, BOX), space, inside, sdf, face);
}

template <typename T>
void forward_item(const T* vertices, int64_t vertex_count, const int64_t* faces, int64_t face_count,
                  const Grid<T>& grid, std::vector<int8_t>& inside, T* sdf, int32_t* face) {
    for (int64_t i = 0; i < 3 * vertex_count; i++)
        if (!std::isfinite(vertices[i])) {
            std::fill(sdf, sdf + grid.size(), std::numeric_limits<T>::quiet_NaN());
            std::fill(face, face + grid.size(), 0);
            return;
        }
    double half[3];
    for (int a = 0; a < 3; a++) half[a] = double(grid.shape[a] - 1) / 2;
    imn::inside_mask(vertices, half, half, vertex_count, faces, face_count, grid.shape, inside.data());
    Soup<T> soup;
    build(soup, vertices, faces, face_count);
    int64_t blocks[3];
    for (int a = 0; a < 3; a++) blocks[a] = (grid.shape[a] + BLOCK - 1) / BLOCK;
    std::atomic<int64_t> next{0};  // blocks near the surface cost more, so threads take them one by one
    at::parallel_for(0, at::get_num_threads(), 1, [&](int64_t, int64_t) {
        Workspace<T> space(face_count);
        for (int64_t i; (i = next++) < blocks[0] * blocks[1] * blocks[2];) {
            int64_t corner[3] = {i / (blocks[1] * blocks[2]) * BLOCK, i / blocks[2] % blocks[1] * BLOCK,
                                 i % blocks[2] * BLOCK};
            solve_block(grid, corner, soup, space, inside.data(), sdf, face);
        }
    });
}

std::tuple<at::Tensor, at::Tensor> mesh2sdf(const at::Tensor& vertices_, const at::Tensor& faces_,
                                            at::IntArrayRef shape) {
    auto vertices = vertices_.contiguous(), faces = faces_.contiguous();
    imn::check_faces(faces, vertices.size(1));
    auto sdf = at::empty({vertices.size(0), shape[0], shape[1], shape[2]}, vertices.options());
    auto face = at::empty(sdf.sizes(), sdf.options().dtype(at::kInt));
    AT_DISPATCH_FLOATING_TYPES(vertices.scalar_type(), "mesh2sdf", [&] {
        Grid<scalar_t> grid(shape);
        std::vector<int8_t> inside(grid.size());
        for (int64_t b = 0; b < vertices.size(0); b++)
            forward_item(vertices.const_data_ptr<scalar_t>() + b * vertices.size(1) * 3, vertices.size(1),
                         faces.const_data_ptr<int64_t>(), faces.size(0), grid, inside,
                         sdf.mutable_data_ptr<scalar_t>() + b * grid.size(),
                         face.mutable_data_ptr<int32_t>() + b * grid.size());
    });
    return {sdf, face};
}

// d sdf / d v_k = -beta_k n with n = (p - q) / sdf, on the surface itself the face's normal.
template <typename T>
IMN_INLINE void add_gradient(const T* vertices, const int64_t* corner, Vec3<T> p, T sdf, T grad, double* sums) {
    auto vertex = [&](int k) {
        return Vec3<T>{vertices[3 * corner[k]], vertices[3 * corner[k] + 1], vertices[3 * corner[k] + 2]};
    };
    Vec3<T> a = vertex(0), b = vertex(1), c = vertex(2);
    imn::Closest<T> closest = imn::closest_weights(a, b, c, p);
    Vec3<T> n = (1 / sdf) * closest.offset;
    if (!(std::abs(sdf) > 16 * std::numeric_limits<T>::epsilon())) {
        Vec3<T> normal = cross(b - a, c - a);
        T length = std::sqrt(dot(normal, normal));
        n = (length > 0 ? 1 / length : T(0)) * normal;
    }
    for (int k = 0; k < 3; k++) {
        T scale = -grad * closest.weight[k];
        sums[3 * corner[k]] += scale * n.x;
        sums[3 * corner[k] + 1] += scale * n.y;
        sums[3 * corner[k] + 2] += scale * n.z;
    }
}

template <typename T>
void backward_item(const T* grad, const T* vertices, int64_t vertex_count, const int64_t* faces, const T* sdf,
                   const int32_t* face, const Grid<T>& grid, std::vector<double>& sums, T* result) {
    int64_t columns = grid.shape[0] * grid.shape[1];
    at::parallel_for(0, GRADIENT_CHUNKS, 1, [&](int64_t begin, int64_t end) {
        for (int64_t chunk = begin; chunk < end; chunk++) {
            double* own = sums.data() + chunk * 3 * vertex_count;
            std::fill(own, own + 3 * vertex_count, 0.0);
            int64_t first = columns * chunk / GRADIENT_CHUNKS, last = columns * (chunk + 1) / GRADIENT_CHUNKS;
            for (int64_t column = first; column < last; column++)
                for (int64_t k = 0; k < grid.shape[2]; k++) {
                    int64_t voxel = column * grid.shape[2] + k;
                    if (grad[voxel] == 0) continue;
                    Vec3<T> p = {grid.axis[0][column / grid.shape[1]], grid.axis[1][column % grid.shape[1]],
                                 grid.axis[2][k]};
                    add_gradient(vertices, faces + 3 * face[voxel], p, sdf[voxel], grad[voxel], own);
                }
        }
    });
    at::parallel_for(0, 3 * vertex_count, 4096, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) {
            double sum = 0;
            for (int64_t chunk = 0; chunk < GRADIENT_CHUNKS; chunk++) sum += sums[chunk * 3 * vertex_count + i];
            result[i] = T(sum);
        }
    });
}

at::Tensor mesh2sdf_backward(const at::Tensor& grad_, const at::Tensor& vertices_, const at::Tensor& faces_,
                             const at::Tensor& sdf_, const at::Tensor& face_) {
    auto grad = grad_.contiguous(), vertices = vertices_.contiguous(), faces = faces_.contiguous();
    auto sdf = sdf_.contiguous(), face = face_.contiguous();
    auto result = at::empty(vertices.sizes(), vertices.options());
    AT_DISPATCH_FLOATING_TYPES(vertices.scalar_type(), "mesh2sdf_backward", [&] {
        Grid<scalar_t> grid(sdf.sizes().slice(1));
        int64_t count = vertices.size(1);
        std::vector<double> sums(GRADIENT_CHUNKS * 3 * count);
        for (int64_t b = 0; b < vertices.size(0); b++)
            backward_item(grad.const_data_ptr<scalar_t>() + b * grid.size(),
                          vertices.const_data_ptr<scalar_t>() + b * count * 3, count, faces.const_data_ptr<int64_t>(),
                          sdf.const_data_ptr<scalar_t>() + b * grid.size(),
                          face.const_data_ptr<int32_t>() + b * grid.size(), grid, sums,
                          result.mutable_data_ptr<scalar_t>() + b * count * 3);
    });
    return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(implicitmeshnet, CPU, library) {
    library.impl("mesh2sdf", mesh2sdf);
    library.impl("mesh2sdf_backward", mesh2sdf_backward);
}
