// The exact signed distance on the CPU. To compare every voxel with every face would take 1.3 billion tests for a mesh
// of 5120 faces in a grid of 64^3. Instead the search descends through smaller and smaller boxes of voxels, and each
// step leaves fewer faces in question:
//
//                          faces   boxes
//     the whole grid        5120       1
//         |  BallRule: drops a face whose ball is too far from the block, compared with the ball nearest to its centre
//         v
//     a block of 16^3       1243      64
//         |  BallRule again, for the box, among the block's faces
//         v
//     a box of 8 x 8 x 16    590     256
//         |  FaceRule: drops a face that is too far from the tile, compared with the face closest to its centre
//         v
//     a tile of 4^3           93    4096
//         |  squared_distance: compares every voxel of the tile with every face that is left
//         v
//     a voxel                  1   64^3
//
// The counts were measured: faces that are left for a box, in the mean, for the displaced sphere of
// benchmarks/signed_distance.py (mesh b). They make 0.3 million tests of balls for the blocks and as many for the
// boxes, 2.4 million tests of faces for the tiles and 25 million for the voxels. Each rule drops a face only where
// another one is closer throughout the box, so the result is the same as with all tests; culling.h says why. A ball is
// quick to test, but its rule leaves more faces than that of the face itself. The sign is found separately, in
// winding.h.
//
// A thread takes one block at a time. A box holds 16 tiles, one for each lane of a vector. The descent is in this file,
// the loops of its steps are in mesh2sdf_search.cpp.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>

#include "allocate.h"
#include "checks.h"
#include "faces.h"
#include "grid.h"
#include "mesh2sdf_search.h"
#include "winding.h"

namespace {

using imn::Balls;
using imn::Box;
using imn::BoxTiles;
using imn::Frame;
using imn::Grid;
using imn::LANES;
using imn::Mesh;
using imn::SIDE;
using imn::Tile;
using imn::TileOutput;
using imn::Tiles;
using imn::Triangle;
using imn::Vec3;
using imn::workspace;

// Places of tiles in the grid, or how many of them.
using Index3 = std::array<int64_t, 3>;

constexpr Index3 BLOCK = {4, 4, 4};  // tiles along a block
constexpr Index3 BOX = {2, 2, 4};    // tiles along a box: one lane each
static_assert(BOX[0] * BOX[1] * BOX[2] == LANES);

// Where one batch item's results go, (X, Y, Z) each.
template <typename T>
struct Output {
    const int8_t* inside;
    T* sdf;
    int32_t* face;
};

// A mesh over a grid, prepared for the search.
template <typename T>
struct Problem {
    const Grid& grid;
    Tiles<T> tiles[3];  // along X, Y and Z
    std::vector<Triangle<T>> triangles;
    std::vector<Frame> frames;  // of the triangles
    Balls<T> balls;
    T slack;  // more than rounding can make an offset or a ball's radius wrong by
    Output<T> output;

    Problem(const Grid& grid, int64_t face_count, T slack, Output<T> output)
        : grid(grid), tiles{Tiles<T>(grid.axis[0]), Tiles<T>(grid.axis[1]), Tiles<T>(grid.axis[2])},
          triangles(face_count), frames(face_count), balls(face_count), slack(slack), output(output) {}
};

// One thread's descent from a block over its boxes and their tiles to the voxels. What it works in is made once.
template <typename T>
class Descent {
public:
    explicit Descent(const Problem<T>& problem)
        : p(problem), faces(problem.triangles.size()), block(faces), box(faces), squared(workspace<T>(faces + LANES)),
          offsets(workspace<T>(4 * LANES * faces)), keep(workspace<uint8_t>(LANES * faces)),
          list(workspace<int32_t>(faces + LANES)) {}

    void solve_block(const Index3& low) {
        int64_t kept = cull(p.balls, low, BLOCK);
        block.take(p.balls, list.get(), kept);
        for (int64_t i = low[0]; i < end(0, low, BLOCK); i += BOX[0])
            for (int64_t j = low[1]; j < end(1, low, BLOCK); j += BOX[1]) solve_box({i, j, low[2]});
    }

private:
    // The first tile along an axis that is not in a box of `size` tiles from `low` on.
    int64_t end(int axis, const Index3& low, const Index3& size) const {
        return std::min(p.tiles[axis].count, low[axis] + size[axis]);
    }

    // Lists the balls whose face can be the closest somewhere in a box of `size` tiles from `low` on.
    int64_t cull(const Balls<T>& balls, const Index3& low, const Index3& size) {
        imn::Span span[3];
        for (int a = 0; a < 3; a++) span[a] = p.tiles[a].span(low[a], end(a, low, size));
        Box<T> voxels = {{T(span[0].centre), T(span[1].centre), T(span[2].centre)},
                         {T(span[0].half), T(span[1].half), T(span[2].half)}};
        return cull_balls(balls, voxels, squared.get(), list.get());
    }

    // The tile that a lane of a box stands for, perhaps beyond the grid.
    static Index3 tile_of(int lane, const Index3& low) {
        return {low[0] + lane / (BOX[1] * BOX[2]), low[1] + lane / BOX[2] % BOX[1], low[2] + lane % BOX[2]};
    }

    bool in_grid(const Index3& tile) const {
        return tile[0] < p.tiles[0].count && tile[1] < p.tiles[1].count && tile[2] < p.tiles[2].count;
    }

    // A box's tiles; lanes beyond the grid repeat its last tile.
    BoxTiles<T> tiles_of(const Index3& low) const {
        BoxTiles<T> tiles;
        T* centre[3] = {tiles.x, tiles.y, tiles.z};
        for (int l = 0; l < LANES; l++) {
            Index3 tile = tile_of(l, low);
            for (int a = 0; a < 3; a++) centre[a][l] = T(p.tiles[a].centre[std::min(tile[a], p.tiles[a].count - 1)]);
        }
        tiles.half = {p.tiles[0].half, p.tiles[1].half, p.tiles[2].half};
        tiles.slack = p.slack;
        return tiles;
    }

    void solve_box(const Index3& low) {
        int64_t kept = cull(block, low, BOX);
        box.take(block, list.get(), kept);
        cull_tiles(p.triangles.data(), box.faces(), tiles_of(low), {offsets.get(), keep.get()});
        for (int l = 0; l < LANES; l++) {
            Index3 tile = tile_of(l, low);
            if (in_grid(tile)) fill(tile, faces_of(l));
        }
    }

    // Lists the box's faces that are kept in one of its tiles.
    imn::FaceList faces_of(int lane) {
        const int32_t* from = box.face.get();
        const uint8_t* kept_here = keep.get() + lane;
        int32_t* to = list.get();
        int64_t kept = 0;
        for (int64_t k = 0, count = box.count; k < count; k++) {
            to[kept] = from[k];  // the next writes over it unless it is kept
            kept += kept_here[LANES * k];
        }
        return {to, kept};
    }

    // Solves one tile with the faces that are left.
    void fill(const Index3& at, imn::FaceList left) {
        Tile<T> tile;
        for (int64_t l = 0; l < SIDE * LANES; l++) tile.x[l] = p.tiles[0].offset[SIDE * at[0] + l / LANES];
        for (int l = 0; l < LANES; l++) {
            tile.y[l] = p.tiles[1].offset[SIDE * at[1] + l / SIDE];
            tile.z[l] = p.tiles[2].offset[SIDE * at[2] + l % SIDE];
        }
        std::fill(std::begin(tile.squared), std::end(tile.squared), std::numeric_limits<T>::max());
        std::fill(std::begin(tile.face), std::end(tile.face), 0);
        tile.centre = {p.tiles[0].centre[at[0]], p.tiles[1].centre[at[1]], p.tiles[2].centre[at[2]]};
        solve_tile({p.triangles.data(), p.frames.data()}, left, tile, output_of(at));
    }

    TileOutput<T> output_of(const Index3& at) const {
        const int64_t* shape = p.grid.shape;
        int64_t rows = shape[2];
        int64_t slices = shape[1] * rows;
        int64_t first = SIDE * (at[0] * slices + at[1] * rows + at[2]);
        TileOutput<T> output = {p.output.inside + first, p.output.sdf + first, p.output.face + first, slices, rows, {}};
        for (int a = 0; a < 3; a++) output.count[a] = std::min(SIDE, shape[a] - SIDE * at[a]);
        return output;
    }

    const Problem<T>& p;
    int64_t faces;
    Balls<T> block, box;  // what is left in the block and the box that the descent is in
    std::unique_ptr<T[]> squared, offsets;
    std::unique_ptr<uint8_t[]> keep;
    std::unique_ptr<int32_t[]> list;
};

// The faces' triangles and balls; radii grow by the slack, so that rounding drops no face.
template <typename T>
void prepare(const Mesh<T>& mesh, Problem<T>& problem) {
    at::parallel_for(0, mesh.face_count, 1024, [&](int64_t begin, int64_t end) {
        int32_t order[3];
        for (int64_t f = begin; f < end; f++) {
            Triangle<double> triangle = imn::face_triangle(mesh, f, order);
            imn::Ball<double> ball = imn::make_ball(triangle);
            problem.triangles[f] = imn::round_to<T>(triangle);
            problem.frames[f] = {triangle.foot, triangle.x, triangle.y, triangle.z};
            problem.balls.set(f, {imn::round_to<T>(ball.centre), T(ball.radius) + problem.slack}, int32_t(f));
        }
    });
    problem.balls.pad(mesh.face_count);
}

// Threads take blocks one by one, as blocks near the surface cost more.
template <typename T>
void search(const Problem<T>& problem) {
    Index3 blocks;
    for (int a = 0; a < 3; a++) blocks[a] = (problem.tiles[a].count + BLOCK[a] - 1) / BLOCK[a];
    std::atomic<int64_t> next{0};
    at::parallel_for(0, at::get_num_threads(), 1, [&](int64_t, int64_t) {
        Descent<T> descent(problem);
        for (int64_t i; (i = next++) < blocks[0] * blocks[1] * blocks[2];)
            descent.solve_block({i / (blocks[1] * blocks[2]) * BLOCK[0], i / blocks[2] % blocks[1] * BLOCK[1],
                                 i % blocks[2] * BLOCK[2]});
    });
}

// The signed distances to one mesh, whose vertices must be finite. `inside` is memory for the signs.
template <typename T>
void solve_item(const Mesh<T>& mesh, const Grid& grid, int8_t* inside, T* sdf, int32_t* face) {
    imn::VoxelTransform to_voxels;
    for (int a = 0; a < 3; a++) to_voxels.scale[a] = to_voxels.shift[a] = double(grid.shape[a] - 1) / 2;
    imn::inside_mask(mesh, to_voxels, grid.shape, inside);
    T slack = 32 * std::numeric_limits<T>::epsilon() * imn::extent_of(mesh);
    Problem<T> problem(grid, mesh.face_count, slack, {inside, sdf, face});
    prepare(mesh, problem);
    search(problem);
}

std::tuple<at::Tensor, at::Tensor> mesh2sdf(const at::Tensor& vertices_, const at::Tensor& faces_,
                                            at::IntArrayRef shape) {
    auto vertices = vertices_.contiguous();
    auto faces = faces_.contiguous();
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
            if (!valid[b].item<bool>()) {  // the search may not meet what is not finite
                sdf[b].fill_(NAN);
                face[b].zero_();
                continue;
            }
            solve_item(imn::mesh_of<scalar_t>(vertices, faces, b), grid, inside.mutable_data_ptr<int8_t>(),
                       sdf.mutable_data_ptr<scalar_t>() + b * grid.size(),
                       face.mutable_data_ptr<int32_t>() + b * grid.size());
        }
    });
    return {sdf, face};
}

}  // namespace

TORCH_LIBRARY_IMPL(implicitmeshnet, CPU, library) { library.impl("mesh2sdf", mesh2sdf); }
