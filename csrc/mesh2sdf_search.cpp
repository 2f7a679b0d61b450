// The hot loops of the exact search. They stand in a file of their own because they are compiled as if no number were
// infinite, NaN or -0, which makes minima and maxima one instruction each. So nothing in this file may meet or make
// such a number: the caller keeps meshes that are not finite away. A pragma says so, and not a compiler's flag, as
// setuptools gives all files of an extension the same flags, and splat and gather must pass NaN on.
//
// A trap: a struct with a name inside a loop under `omp simd` keeps GCC 12 from vectorising it, and costs a factor
// of 6. So structs in there are temporaries, or stand in functions that are inlined.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("finite-math-only", "no-signed-zeros")
#endif

#include "mesh2sdf_search.h"

#include <algorithm>
#include <limits>

namespace imn {

namespace {

template <typename T>
IMN_INLINE T squared_offset(T x, T y, T z, Vec3<T> point) {
    Vec3<T> offset = Vec3<T>{x, y, z} - point;
    return dot(offset, offset);
}

// Writes the squared distances from a point to the balls' centres; returns the place of the nearest.
template <typename T>
IMN_INLINE int64_t nearest_centre(const Balls<T>& balls, Vec3<T> point, T* squared) {
    const T *x = balls.x.get(), *y = balls.y.get(), *z = balls.z.get();
    T low[LANES];
    int32_t block[LANES];  // where each lane's nearest stands
    for (int l = 0; l < LANES; l++) {
        low[l] = std::numeric_limits<T>::max();
        block[l] = 0;
    }
    for (int64_t f = 0; f < balls.count; f += LANES) {
#pragma omp simd
        for (int l = 0; l < LANES; l++) {
            T d = squared_offset(x[f + l], y[f + l], z[f + l], point);
            bool better = d < low[l];
            squared[f + l] = d;
            low[l] = better ? d : low[l];
            block[l] = better ? int32_t(f) : block[l];
        }
    }
    int lane = int(std::min_element(low, low + LANES) - low);
    return block[lane] + lane;
}

template <typename T>
IMN_INLINE int64_t list_balls(const Balls<T>& balls, const Box<T>& box, T* squared, int32_t* list) {
    int64_t nearest = nearest_centre(balls, box.centre, squared);
    BallRule<T> rule = make_ball_rule(balls.get(nearest).centre, squared[nearest], box.half);
    const T *x = balls.x.get(), *y = balls.y.get(), *z = balls.z.get(), *radius = balls.radius.get();
    int64_t kept = 0;
    for (int64_t f = 0; f < balls.count; f += LANES) {
        int32_t keep[LANES], any = 0;
#pragma omp simd reduction(| : any)
        for (int l = 0; l < LANES; l++) {
            keep[l] = rule.keeps(Vec3<T>{x[f + l], y[f + l], z[f + l]}, radius[f + l], squared[f + l]);
            any |= keep[l];
        }
        if (!any) continue;
        // Without a branch: each is written, and the next writes over it unless it is kept.
        for (int l = 0; l < LANES; l++) {
            list[kept] = int32_t(f + l);
            kept += keep[l];
        }
    }
    while (kept > 0 && list[kept - 1] >= balls.count) kept--;  // the padding
    return kept;
}

// The offset from the triangle's closest point to (x, y, z), and its square, LANES apart.
template <typename T>
IMN_INLINE void offset_to(const Triangle<T>& t, T x, T y, T z, T* offset) {
    Vec3<T> r = from_frame(t, residual(t, to_frame(t, Vec3<T>{x, y, z})));
    offset[0] = r.x;
    offset[LANES] = r.y;
    offset[2 * LANES] = r.z;
    offset[3 * LANES] = dot(r, r);
}

// The offset from the closest of the triangles to each lane's centre, and its square.
template <typename T>
struct ClosestOffsets {
    alignas(64) T x[LANES], y[LANES], z[LANES], squared[LANES];
};

// Writes the offset of each listed triangle to each tile's centre, and finds each tile's shortest.
template <typename T>
IMN_INLINE void measure_offsets(const Triangle<T>* triangles, FaceList list, const BoxTiles<T>& tiles, T* offsets,
                                ClosestOffsets<T>& best) {
    for (int l = 0; l < LANES; l++) {
        best.x[l] = best.y[l] = best.z[l] = 0;
        best.squared[l] = std::numeric_limits<T>::max();
    }
    for (int64_t k = 0; k < list.count; k++) {
        const Triangle<T> t = triangles[list.face[k]];
        T* offset = offsets + 4 * LANES * k;
#pragma omp simd
        for (int l = 0; l < LANES; l++) {
            offset_to(t, tiles.x[l], tiles.y[l], tiles.z[l], offset + l);
            bool better = offset[3 * LANES + l] < best.squared[l];
            best.x[l] = better ? offset[l] : best.x[l];
            best.y[l] = better ? offset[LANES + l] : best.y[l];
            best.z[l] = better ? offset[2 * LANES + l] : best.z[l];
            best.squared[l] = better ? offset[3 * LANES + l] : best.squared[l];
        }
    }
}

// What each tile's faces are judged by.
template <typename T>
struct LaneRules {
    ClosestOffsets<T> best;
    alignas(64) T near[LANES], far[LANES];
    Vec3<T> half;
};

template <typename T>
IMN_INLINE bool keeps(const LaneRules<T>& rules, const T* offset, int l) {
    Vec3<T> nearest = {rules.best.x[l], rules.best.y[l], rules.best.z[l]};
    FaceRule<T> rule = {nearest, rules.half, rules.near[l], rules.far[l]};
    return rule.keeps(Vec3<T>{offset[l], offset[LANES + l], offset[2 * LANES + l]}, offset[3 * LANES + l]);
}

template <typename T>
IMN_INLINE void judge_tiles(const Triangle<T>* triangles, FaceList list, const BoxTiles<T>& tiles,
                            TileVerdicts<T> verdicts) {
    LaneRules<T> rules;
    rules.half = tiles.half;
    measure_offsets(triangles, list, tiles, verdicts.offsets, rules.best);
    for (int l = 0; l < LANES; l++) {
        Vec3<T> nearest = {rules.best.x[l], rules.best.y[l], rules.best.z[l]};
        FaceRule<T> rule = make_face_rule(nearest, rules.best.squared[l], tiles.half, tiles.slack);
        rules.near[l] = rule.near;
        rules.far[l] = rule.far;
    }
    for (int64_t k = 0; k < list.count; k++) {
        const T* offset = verdicts.offsets + 4 * LANES * k;
        uint8_t* keep = verdicts.keep + LANES * k;
#pragma omp simd
        for (int l = 0; l < LANES; l++) keep[l] = keeps(rules, offset, l);
    }
}

// Keeps the closest of the listed triangles for each voxel, the first of equals. Far from a triangle, float would lose
// most in the offset to it, so the tile's centre comes to the triangle's frame in double; the small steps are added
// then.
template <typename T>
IMN_INLINE void compare(const FaceTable<T>& table, FaceList list, Tile<T>& tile) {
    for (int64_t k = 0; k < list.count; k++) {
        int32_t index = list.face[k];
        const Triangle<T> t = table.triangles[index];
        const Frame& frame = table.frames[index];
        Vec3<double> offset = tile.centre - frame.foot;
        offset = {dot(frame.x, offset), dot(frame.y, offset), dot(frame.z, offset)};
        const T origin_x = T(offset.x), origin_y = T(offset.y), origin_z = T(offset.z);
        // What rounding the centre lost is small, so it goes with the small steps.
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
                T d = squared_distance(t,
                                       Vec3<T>{origin_x + (x[l] + step[l] * t.x.x), origin_y + (y[l] + step[l] * t.y.x),
                                               origin_z + (z[l] + step[l] * t.z.x)});
                bool better = d < squared[l];
                squared[l] = better ? d : squared[l];
                face[l] = better ? index : face[l];
            }
        }
    }
}

// Writes `size` voxels of row j of slice i.
template <typename T>
IMN_INLINE void write_row(const Tile<T>& tile, const TileOutput<T>& output, int64_t i, int64_t j, int64_t size) {
    int64_t lane = i * LANES + j * SIDE;
    int64_t voxel = i * output.slices + j * output.rows;
    const T* distance = tile.squared + lane;  // its roots by now
    const int32_t* nearest = tile.face + lane;
    const int8_t* inside = output.inside + voxel;
    T* sdf = output.sdf + voxel;
    int32_t* face = output.face + voxel;
#pragma omp simd
    for (int64_t l = 0; l < size; l++) {
        sdf[l] = distance[l] * T(1 - 2 * inside[l]);
        face[l] = nearest[l];
    }
}

template <typename T>
IMN_INLINE void write(Tile<T>& tile, const TileOutput<T>& output) {
#pragma omp simd
    for (int l = 0; l < SIDE * LANES; l++) tile.squared[l] = square_root(tile.squared[l]);
    for (int64_t i = 0; i < output.count[0]; i++)
        for (int64_t j = 0; j < output.count[1]; j++) {
            if (output.count[2] == SIDE) write_row(tile, output, i, j, SIDE);  // known when compiled: one vector
            else write_row(tile, output, i, j, output.count[2]);
        }
}

}  // namespace

#define IMN_INSTANTIATE(T)                                                                                             \
    IMN_CLONES int64_t cull_balls(const Balls<T>& balls, const Box<T>& box, T* squared, int32_t* list) {               \
        return list_balls(balls, box, squared, list);                                                                  \
    }                                                                                                                  \
    IMN_CLONES void cull_tiles(const Triangle<T>* triangles, FaceList list, const BoxTiles<T>& tiles,                  \
                               TileVerdicts<T> verdicts) {                                                             \
        judge_tiles(triangles, list, tiles, verdicts);                                                                 \
    }                                                                                                                  \
    IMN_CLONES void solve_tile(const FaceTable<T>& table, FaceList list, Tile<T>& tile, const TileOutput<T>& output) { \
        compare(table, list, tile);                                                                                    \
        write(tile, output);                                                                                           \
    }
IMN_INSTANTIATE(float)
IMN_INSTANTIATE(double)

}  // namespace imn
