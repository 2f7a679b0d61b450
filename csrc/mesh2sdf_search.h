// The three inner steps of the exact search, and the arrays they work on. mesh2sdf.cpp says how they follow each other;
// mesh2sdf_search.cpp holds their loops.
#pragma once

#include <cstdint>
#include <memory>

#include "culling.h"
#include "tiles.h"

namespace imn {

constexpr int LANES = 16;  // the loops over them become one AVX-512 vector of float, two AVX2 or four NEON vectors

// Memory that is not initialised: pages that stay untouched cost nothing.
template <typename T>
std::unique_ptr<T[]> workspace(int64_t size) {
    return std::unique_ptr<T[]>(new T[size]);
}

// Faces by their numbers, in ascending order: those that are still in question.
struct FaceList {
    const int32_t* face;
    int64_t count;
};

// A box of voxels: its centre, and half its extent along each axis.
template <typename T>
struct Box {
    Vec3<T> centre, half;
};

// The balls around faces, in columns. They are padded to full lanes with copies of the last.
template <typename T>
struct Balls {
    std::unique_ptr<T[]> x, y, z, radius;
    std::unique_ptr<int32_t[]> face;  // ascending
    int64_t count = 0;

    explicit Balls(int64_t faces) {
        int64_t capacity = faces + LANES;
        x = workspace<T>(capacity);
        y = workspace<T>(capacity);
        z = workspace<T>(capacity);
        radius = workspace<T>(capacity);
        face = workspace<int32_t>(capacity);
    }

    void set(int64_t at, Ball<T> ball, int32_t index) {
        x[at] = ball.centre.x;
        y[at] = ball.centre.y;
        z[at] = ball.centre.z;
        radius[at] = ball.radius;
        face[at] = index;
    }

    Ball<T> get(int64_t at) const { return {{x[at], y[at], z[at]}, radius[at]}; }

    // Takes the listed balls of another set. The list counts within that set.
    void take(const Balls& from, const int32_t* list, int64_t kept) {
        for (int64_t k = 0; k < kept; k++) set(k, from.get(list[k]), from.face[list[k]]);
        pad(kept);
    }

    // The first `size` balls are there.
    void pad(int64_t size) {
        count = size;
        for (int64_t at = size; at % LANES; at++) set(at, get(size - 1), 0);
    }

    FaceList faces() const { return {face.get(), count}; }
};

// A triangle's frame before it was rounded to T.
struct Frame {
    Vec3<double> foot, x, y, z;
};

// All faces of a mesh, as the last step wants them.
template <typename T>
struct FaceTable {
    const Triangle<T>* triangles;
    const Frame* frames;
};

// The tiles of a box, one in each lane: their centres, half the extent of the widest, and what rounding may add.
template <typename T>
struct BoxTiles {
    alignas(64) T x[LANES], y[LANES], z[LANES];
    Vec3<T> half;
    T slack;
};

// What cull_tiles finds for triangle k of a list and tile l, at [k * LANES + l] (offsets: 4 k * LANES + l).
template <typename T>
struct TileVerdicts {
    T* offsets;     // room for four numbers a triangle and tile
    uint8_t* keep;  // whether the triangle can be the closest somewhere in the tile
};

// One tile while it is solved: SIDE slices of SIDE rows of SIDE voxels, at x[slice][lane], y[lane], z[lane] from its
// centre, each with the squared distance and the number of the closest face so far.
template <typename T>
struct Tile {
    alignas(64) T x[SIDE * LANES], y[LANES], z[LANES], squared[SIDE * LANES];
    alignas(64) int32_t face[SIDE * LANES];
    Vec3<double> centre;
};

// Where a tile's results go: voxel (i, j, k) of it at i * slices + j * rows + k; count[] are within the grid.
template <typename T>
struct TileOutput {
    const int8_t* inside;
    T* sdf;
    int32_t* face;
    int64_t slices, rows, count[3];
};

// Each step exists twice, for float and for double.
#define IMN_DECLARE(T)                                                                                                \
    /* Lists the balls, by their place, whose face can be the closest somewhere in the box; returns how many. */      \
    /* `squared` is room for a number a ball. */                                                                      \
    int64_t cull_balls(const Balls<T>& balls, const Box<T>& box, T* squared, int32_t* list);                          \
    /* Judges the listed triangles for each tile of a box. */                                                         \
    void cull_tiles(const Triangle<T>* triangles, FaceList list, const BoxTiles<T>& tiles, TileVerdicts<T> verdicts); \
    /* Compares the tile's voxels with the listed triangles, and writes signed distances and faces. */                \
    void solve_tile(const FaceTable<T>& table, FaceList list, Tile<T>& tile, const TileOutput<T>& output);
IMN_DECLARE(float)
IMN_DECLARE(double)
#undef IMN_DECLARE

}  // namespace imn
