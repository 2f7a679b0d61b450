// The exact signed distance on the CPU: ever smaller boxes of voxels cull the faces; survivors meet the voxels.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <array>
#include <memory>

#include "winding.h"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("finite-math-only", "no-signed-zeros")  // makes minima and maxima one instruction; see solve_item
#endif

#include "allocate.h"
#include "checks.h"
#include "culling.h"
#include "faces.h"
#include "grid.h"

namespace {

using imn::Grid;
using imn::SIDE;
using imn::Tiles;
using imn::Triangle;
using imn::Vec3;

constexpr int LANES = 16;  // the loops over them become one AVX-512 vector of float, two AVX2 or four NEON vectors
constexpr int64_t BOX[3] = {2, 2, 4};    // tiles along a box: one lane each
constexpr int64_t BLOCK[3] = {4, 4, 4};  // tiles along a block of boxes

template <typename T>
std::unique_ptr<T[]> workspace(int64_t size) {
    return std::unique_ptr<T[]>(new T[size]);  // not initialised: pages that stay untouched cost nothing
}

// Faces' balls, in columns padded to full lanes with copies of the last.
template <typename T>
struct Balls {
    std::unique_ptr<T[]> x, y, z, radius;
    std::unique_ptr<int32_t[]> face;  // ascending
    int64_t count = 0;

    explicit Balls(int64_t faces) {
        int64_t capacity = faces + LANES;
        x = workspace<T>(capacity), y = workspace<T>(capacity), z = workspace<T>(capacity);
        radius = workspace<T>(capacity), face = workspace<int32_t>(capacity);
    }
    void set(int64_t at, Vec3<T> centre, T r, int32_t index) {
        x[at] = centre.x, y[at] = centre.y, z[at] = centre.z, radius[at] = r, face[at] = index;
    }
    void take(const Balls& from, const int32_t* list, int64_t kept) {
        for (int64_t k = 0; k < kept; k++) {
            int32_t f = list[k];
            set(k, {from.x[f], from.y[f], from.z[f]}, from.radius[f], from.face[f]);
        }
        pad(kept);
    }
    void pad(int64_t size) {
        count = size;
        for (int64_t f = size; f % LANES; f++) set(f, {x[size - 1], y[size - 1], z[size - 1]}, radius[size - 1], 0);
    }
};

template <typename T>
IMN_INLINE T squared_offset(T x, T y, T z, Vec3<T> point) {
    Vec3<T> offset = Vec3<T>{x, y, z} - point;
    return imn::dot(offset, offset);
}

// Lists the balls whose face can be the closest somewhere in the box around `centre`; returns how many.
template <typename T>
IMN_INLINE int64_t cull(const Balls<T>& balls, Vec3<T> centre, Vec3<T> half, T* squared, int32_t* list) {
    const T *x = balls.x.get(), *y = balls.y.get(), *z = balls.z.get(), *radius = balls.radius.get();
    T low[LANES];
    int32_t block[LANES];
    for (int l = 0; l < LANES; l++) low[l] = std::numeric_limits<T>::max(), block[l] = 0;
    for (int64_t f = 0; f < balls.count; f += LANES) {
#pragma omp simd
        for (int l = 0; l < LANES; l++) {
            T d = squared_offset(x[f + l], y[f + l], z[f + l], centre);
            bool better = d < low[l];
            squared[f + l] = d, low[l] = better ? d : low[l], block[l] = better ? int32_t(f) : block[l];
        }
    }
    int lane = int(std::min_element(low, low + LANES) - low), n = block[lane] + lane;
    imn::BallRule<T> rule = imn::make_ball_rule(Vec3<T>{x[n], y[n], z[n]}, low[lane], half);
    int64_t kept = 0;
    for (int64_t f = 0; f < balls.count; f += LANES) {
        int32_t keep[LANES], any = 0;
#pragma omp simd reduction(| : any)
        for (int l = 0; l < LANES; l++) {
            keep[l] = rule.keeps(Vec3<T>{x[f + l], y[f + l], z[f + l]}, radius[f + l], squared[f + l]);
            any |= keep[l];
        }
        if (!any) continue;
        for (int l = 0; l < LANES; l++) list[kept] = int32_t(f + l), kept += keep[l];
    }
    while (kept > 0 && list[kept - 1] >= balls.count) kept--;  // the padding
    return kept;
}

// A box's tiles, one in each lane.
template <typename T>
struct Lanes {
    alignas(64) T x[LANES], y[LANES], z[LANES];
};

template <typename T>
IMN_INLINE void offset_to(const Triangle<T>& t, T x, T y, T z, T* offset) {
    Vec3<T> r = imn::from_frame(t, imn::residual(t, imn::to_frame(t, Vec3<T>{x, y, z})));
    offset[0] = r.x, offset[LANES] = r.y, offset[2 * LANES] = r.z, offset[3 * LANES] = imn::dot(r, r);
}

// keep[k * LANES + l]: whether the k-th listed triangle can be the closest somewhere in tile l. `offsets` is room for four
// numbers a triangle and tile.
template <typename T>
IMN_INLINE void cull_tiles(const Triangle<T>* triangles, const int32_t* list, int64_t count, const Lanes<T>& centre,
                           Vec3<T> half, T slack, T* offsets, uint8_t* keep) {
    alignas(64) T x[LANES], y[LANES], z[LANES], squared[LANES], near[LANES], far[LANES];
    for (int l = 0; l < LANES; l++) x[l] = y[l] = z[l] = 0, squared[l] = std::numeric_limits<T>::max();
    for (int64_t k = 0; k < count; k++) {
        const Triangle<T> t = triangles[list[k]];
        T* offset = offsets + 4 * LANES * k;
#pragma omp simd
        for (int l = 0; l < LANES; l++) {
            offset_to(t, centre.x[l], centre.y[l], centre.z[l], offset + l);
            bool better = offset[3 * LANES + l] < squared[l];
            x[l] = better ? offset[l] : x[l], y[l] = better ? offset[LANES + l] : y[l];
            z[l] = better ? offset[2 * LANES + l] : z[l], squared[l] = better ? offset[3 * LANES + l] : squared[l];
        }
    }
    for (int l = 0; l < LANES; l++) {
        imn::FaceRule<T> rule = imn::make_face_rule(Vec3<T>{x[l], y[l], z[l]}, squared[l], half, slack);
        near[l] = rule.near, far[l] = rule.far;
    }
    for (int64_t k = 0; k < count; k++) {
        const T* offset = offsets + 4 * LANES * k;
#pragma omp simd
        for (int l = 0; l < LANES; l++)
            keep[LANES * k + l] = imn::FaceRule<T>{{x[l], y[l], z[l]}, half, near[l], far[l]}.keeps(
                Vec3<T>{offset[l], offset[LANES + l], offset[2 * LANES + l]}, offset[3 * LANES + l]);
    }
}

// Lists what is kept in one tile; returns how many. `keep` starts at the tile's lane.
inline int64_t select(const int32_t* from, const uint8_t* keep, int64_t count, int32_t* list) {
    int64_t kept = 0;
    for (int64_t k = 0; k < count; k++) list[kept] = from[k], kept += keep[LANES * k];
    return kept;
}

// A triangle's frame before rounding.
struct Frame {
    Vec3<double> foot, x, y, z;
};

// A tile: SIDE slices of SIDE rows of SIDE voxels, at x[slice][lane], y[lane], z[lane] from its centre.
template <typename T>
struct Tile {
    alignas(64) T x[SIDE * LANES], y[LANES], z[LANES], squared[SIDE * LANES];
    alignas(64) int32_t face[SIDE * LANES];
};

// Where a tile's results go: voxel (i, j, k) of it at i * slices + j * rows + k; count[] are within the grid.
template <typename T>
struct TileOutput {
    const int8_t* inside;
    T* sdf;
    int32_t* face;
    int64_t slices, rows, count[3];
};

// Keeps the closest of the listed triangles for each voxel, the first of equals. Far from a triangle, float would lose
// most in the offset to it, so the tile's centre comes to the triangle's frame in double; the small steps are added then.
template <typename T>
IMN_INLINE void compare(const Triangle<T>* triangles, const Frame* frames, const int32_t* list, int64_t count,
                        Vec3<double> centre, Tile<T>& tile) {
    for (int64_t k = 0; k < count; k++) {
        int32_t index = list[k];
        const Triangle<T> t = triangles[index];
        Vec3<double> offset = centre - frames[index].foot;
        offset = {imn::dot(frames[index].x, offset), imn::dot(frames[index].y, offset), imn::dot(frames[index].z, offset)};
        const T origin_x = T(offset.x), origin_y = T(offset.y), origin_z = T(offset.z);
        const T rest_x = T(offset.x - origin_x), rest_y = T(offset.y - origin_y), rest_z = T(offset.z - origin_z);
        alignas(64) T x[LANES], y[LANES], z[LANES];
#pragma omp simd
        for (int l = 0; l < LANES; l++) {
            x[l] = rest_x + tile.y[l] * t.x.y + tile.z[l] * t.x.z;
            y[l] = rest_y + tile.y[l] * t.y.y + tile.z[l] * t.y.z;
            z[l] = rest_z + tile.y[l] * t.z.y + tile.z[l] * t.z.z;
        }
        for (int i = 0; i < SIDE; i++) {
            const T* step = tile.x + i * LANES;
            T* squared = tile.squared + i * LANES;
            int32_t* face = tile.face + i * LANES;
#pragma omp simd
            for (int l = 0; l < LANES; l++) {
                T d = imn::squared_distance(t, Vec3<T>{origin_x + (x[l] + step[l] * t.x.x),
                                                       origin_y + (y[l] + step[l] * t.y.x),
                                                       origin_z + (z[l] + step[l] * t.z.x)});
                bool better = d < squared[l];
                squared[l] = better ? d : squared[l], face[l] = better ? index : face[l];
            }
        }
    }
}

template <typename T>
IMN_INLINE void write_row(const T* distance, const int32_t* nearest, const int8_t* inside, T* sdf, int32_t* face,
                          int64_t size) {
#pragma omp simd
    for (int64_t l = 0; l < size; l++) sdf[l] = distance[l] * T(1 - 2 * inside[l]), face[l] = nearest[l];
}

template <typename T>
IMN_INLINE void write(Tile<T>& tile, const TileOutput<T>& place) {
#pragma omp simd
    for (int l = 0; l < SIDE * LANES; l++) tile.squared[l] = imn::square_root(tile.squared[l]);
    for (int64_t i = 0; i < place.count[0]; i++)
        for (int64_t j = 0; j < place.count[1]; j++) {
            int64_t lane = i * LANES + j * SIDE, voxel = i * place.slices + j * place.rows;
            auto write_some = [&](int64_t size) __attribute__((always_inline)) {
                write_row(tile.squared + lane, tile.face + lane, place.inside + voxel, place.sdf + voxel,
                          place.face + voxel, size);
            };
            if (place.count[2] == SIDE) write_some(SIDE);  // known when compiled, so that a row is one vector
            else write_some(place.count[2]);
        }
}

#define IMN_INSTANTIATE(T)                                                                                             \
    IMN_CLONES int64_t cull_balls(const Balls<T>& balls, Vec3<T> centre, Vec3<T> half, T* squared, int32_t* list) {    \
        return cull(balls, centre, half, squared, list);                                                               \
    }                                                                                                                  \
    IMN_CLONES void cull_box(const Triangle<T>* triangles, const int32_t* list, int64_t count,                         \
                             const Lanes<T>& centre, Vec3<T> half, T slack, T* offsets, uint8_t* keep) {                  \
        cull_tiles(triangles, list, count, centre, half, slack, offsets, keep);                                           \
    }                                                                                                                  \
    IMN_CLONES void solve_tile(const Triangle<T>* triangles, const Frame* frames, const int32_t* list, int64_t count,  \
                               Vec3<double> centre, Tile<T>& tile, const TileOutput<T>& place) {                            \
        compare(triangles, frames, list, count, centre, tile);                                                         \
        write(tile, place);                                                                                            \
    }
IMN_INSTANTIATE(float)
IMN_INSTANTIATE(double)

// A mesh over a grid, and where its distances go.
template <typename T>
struct Problem {
    const Grid& grid;
    Tiles<T> tiles[3];
    std::vector<Triangle<T>> triangles;
    std::vector<Frame> frames;  // of the triangles
    Balls<T> balls;
    T slack;
    const int8_t* inside;
    T* sdf;
    int32_t* face;
};

// One thread's descent from a block over its boxes and their tiles to the voxels.
template <typename T>
class Descent {
public:
    explicit Descent(const Problem<T>& problem)
        : p(problem), faces(problem.triangles.size()), block(faces), box(faces), squared(workspace<T>(faces + LANES)),
          offsets(workspace<T>(4 * LANES * faces)), keep(workspace<uint8_t>(LANES * faces)),
          list(workspace<int32_t>(faces + LANES)) {}

    void solve_block(const int64_t* low) {
        block.take(p.balls, list.get(), cull_to(p.balls, low, BLOCK));
        for (int64_t i = low[0]; i < end(0, low, BLOCK); i += BOX[0])
            for (int64_t j = low[1]; j < end(1, low, BLOCK); j += BOX[1]) solve_box({i, j, low[2]});
    }

private:
    int64_t end(int a, const int64_t* low, const int64_t* size) const {
        return std::min(p.tiles[a].count, low[a] + size[a]);
    }

    int64_t cull_to(const Balls<T>& balls, const int64_t* low, const int64_t* size) {
        imn::Span span[3];
        for (int a = 0; a < 3; a++) span[a] = p.tiles[a].span(low[a], end(a, low, size));
        return cull_balls(balls, {T(span[0].centre), T(span[1].centre), T(span[2].centre)},
                          {T(span[0].half), T(span[1].half), T(span[2].half)}, squared.get(), list.get());
    }

    // Lanes beyond the grid repeat its last tile.
    void solve_box(std::array<int64_t, 3> low) {
        box.take(block, list.get(), cull_to(block, low.data(), BOX));
        Lanes<T> centre;
        auto tile_of = [&](int a, int64_t step) { return std::min(low[a] + step, p.tiles[a].count - 1); };
        for (int l = 0; l < LANES; l++) {
            centre.x[l] = T(p.tiles[0].centre[tile_of(0, l / 8)]);
            centre.y[l] = T(p.tiles[1].centre[tile_of(1, l / 4 % 2)]);
            centre.z[l] = T(p.tiles[2].centre[tile_of(2, l % 4)]);
        }
        cull_box(p.triangles.data(), box.face.get(), box.count, centre,
                 {p.tiles[0].half, p.tiles[1].half, p.tiles[2].half}, p.slack, offsets.get(), keep.get());
        for (int l = 0; l < LANES; l++) {
            int64_t i = low[0] + l / 8, j = low[1] + l / 4 % 2, k = low[2] + l % 4;
            if (i >= p.tiles[0].count || j >= p.tiles[1].count || k >= p.tiles[2].count) continue;
            int64_t kept = select(box.face.get(), keep.get() + l, box.count, list.get());
            fill(i, j, k, kept);
        }
    }

    void fill(int64_t i, int64_t j, int64_t k, int64_t kept) {
        Tile<T> tile;
        for (int64_t l = 0; l < SIDE * LANES; l++) tile.x[l] = p.tiles[0].offset[SIDE * i + l / LANES];
        for (int l = 0; l < LANES; l++) {
            tile.y[l] = p.tiles[1].offset[SIDE * j + l / SIDE];
            tile.z[l] = p.tiles[2].offset[SIDE * k + l % SIDE];
        }
        std::fill(std::begin(tile.squared), std::end(tile.squared), std::numeric_limits<T>::max());
        std::fill(std::begin(tile.face), std::end(tile.face), 0);
        const int64_t* shape = p.grid.shape;
        int64_t rows = shape[2], slices = shape[1] * rows, first = SIDE * (i * slices + j * rows + k);
        auto left = [&](int a, int64_t low) { return std::min(SIDE, shape[a] - SIDE * low); };
        Vec3<double> centre = {p.tiles[0].centre[i], p.tiles[1].centre[j], p.tiles[2].centre[k]};
        TileOutput<T> place = {p.inside + first, p.sdf + first, p.face + first, slices, rows,
                          {left(0, i), left(1, j), left(2, k)}};
        solve_tile(p.triangles.data(), p.frames.data(), list.get(), kept, centre, tile, place);
    }

    const Problem<T>& p;
    int64_t faces;
    Balls<T> block, box;
    std::unique_ptr<T[]> squared, offsets;
    std::unique_ptr<uint8_t[]> keep;
    std::unique_ptr<int32_t[]> list;
};

// The faces' triangles and balls; radii grow by `slack`.
template <typename T>
void prepare(const T* vertices, const int64_t* faces, Problem<T>& problem) {
    int64_t count = problem.triangles.size();
    at::parallel_for(0, count, 1024, [&](int64_t begin, int64_t end) {
        int32_t order[3];
        for (int64_t f = begin; f < end; f++) {
            Triangle<double> triangle = imn::face_triangle(vertices, faces + 3 * f, order);
            imn::Ball<double> ball = imn::make_ball(triangle);
            problem.triangles[f] = imn::round_to<T>(triangle);
            problem.frames[f] = {triangle.foot, triangle.x, triangle.y, triangle.z};
            problem.balls.set(f, imn::round_to<T>(ball.centre), T(ball.radius) + problem.slack, int32_t(f));
        }
    });
    problem.balls.pad(count);
}

// The vertices must be finite, and nothing in this file may meet or make a value that is not.
template <typename T>
void solve_item(const T* vertices, int64_t vertex_count, const int64_t* faces, int64_t face_count, const Grid& grid,
                int8_t* inside, T* sdf, int32_t* face) {
    T extent = imn::extent_of(vertices, faces, face_count);
    double half[3];
    for (int a = 0; a < 3; a++) half[a] = double(grid.shape[a] - 1) / 2;
    imn::inside_mask(vertices, half, half, vertex_count, faces, face_count, grid.shape, inside);
    Problem<T> problem{grid, {Tiles<T>(grid.axis[0]), Tiles<T>(grid.axis[1]), Tiles<T>(grid.axis[2])},
                       std::vector<Triangle<T>>(face_count), std::vector<Frame>(face_count), Balls<T>(face_count),
                       32 * std::numeric_limits<T>::epsilon() * extent, inside, sdf, face};
    prepare(vertices, faces, problem);
    int64_t blocks[3];
    for (int a = 0; a < 3; a++) blocks[a] = (problem.tiles[a].count + BLOCK[a] - 1) / BLOCK[a];
    std::atomic<int64_t> next{0};  // blocks near the surface cost more, so threads take them one by one
    at::parallel_for(0, at::get_num_threads(), 1, [&](int64_t, int64_t) {
        Descent<T> descent(problem);
        for (int64_t i; (i = next++) < blocks[0] * blocks[1] * blocks[2];) {
            const int64_t low[3] = {i / (blocks[1] * blocks[2]) * BLOCK[0], i / blocks[2] % blocks[1] * BLOCK[1],
                                    i % blocks[2] * BLOCK[2]};
            descent.solve_block(low);
        }
    });
}

std::tuple<at::Tensor, at::Tensor> mesh2sdf(const at::Tensor& vertices_, const at::Tensor& faces_,
                                            at::IntArrayRef shape) {
    auto vertices = vertices_.contiguous(), faces = faces_.contiguous();
    imn::check_vertices(vertices);
    imn::check_faces(faces, vertices.size(1));
    imn::check_shape(shape, 2);
    auto sdf = imn::empty_huge({vertices.size(0), shape[0], shape[1], shape[2]}, vertices.options());
    auto face = imn::empty_huge(sdf.sizes(), sdf.options().dtype(at::kInt));
    if (sdf.numel() == 0) return {sdf, face};
    auto valid = (vertices.abs() <= imn::LIMIT).flatten(1).all(1);
    Grid grid(shape);
    auto inside = at::empty({grid.size()}, at::kChar);
    AT_DISPATCH_FLOATING_TYPES(vertices.scalar_type(), "mesh2sdf", [&] {
        for (int64_t b = 0; b < vertices.size(0); b++) {
            if (!valid[b].item<bool>()) {
                sdf[b].fill_(NAN), face[b].zero_();
                continue;
            }
            solve_item(vertices.const_data_ptr<scalar_t>() + b * vertices.size(1) * 3, vertices.size(1),
                       faces.const_data_ptr<int64_t>(), faces.size(0), grid, inside.mutable_data_ptr<int8_t>(),
                       sdf.mutable_data_ptr<scalar_t>() + b * grid.size(),
                       face.mutable_data_ptr<int32_t>() + b * grid.size());
        }
    });
    return {sdf, face};
}

}  // namespace

TORCH_LIBRARY_IMPL(implicitmeshnet, CPU, library) { library.impl("mesh2sdf", mesh2sdf); }
