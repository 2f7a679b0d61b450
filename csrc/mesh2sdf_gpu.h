// The kernels of mesh2sdf and voxelize, for CUDA and Metal alike: each a function of the thread that runs it. The
// search descends as on the CPU (mesh2sdf.cpp), by the same rules. `list_block` lists in global memory the faces that
// can be the closest somewhere in a block of 16^3 voxels. In `solve_box` a group of threads takes a box of 8^3 and each
// of its eight warps a tile of 4^3. Tiles that too many faces are left for, as near the medial axis, wait in a queue,
// and in `solve_crowded` a group takes one, each of its warps a cell of it, of 2^3 voxels.
#pragma once

#include "crossing.h"
#include "culling.h"
#include "gpu.h"

namespace imn {

IMN_CONSTANT int BLOCK = 16, BOX = 8, TILE = 4, CELL = 2;  // voxels along
IMN_CONSTANT int BLOCK_FACES = 8192;      // listed, at most as many bytes as the block's results; beyond, all are read
IMN_CONSTANT int BOX_FACES = 1024;        // listed; the tiles of a box with more are crowded
IMN_CONSTANT int TILE_FACES = 128;        // listed; a tile with more is crowded
IMN_CONSTANT int CROWD_FACES = 768;       // listed for a crowded tile at a time
IMN_CONSTANT int MOST_SHARED = 32 << 10;  // bytes that a group may share on Metal, where numbers are float
IMN_CONSTANT int SLOTS = 6;               // faces that a lane keeps in registers at a time
IMN_CONSTANT int RUN = 8;                 // voxels along Z that one thread differentiates
IMN_CONSTANT int TABLE = 1024;            // vertices that a block's sums have room for
IMN_CONSTANT float LIMIT = 1e9f;          // a mesh with a vertex beyond, or not finite, has no distance
IMN_CONSTANT int TRIANGLE_FIELDS = 20, BALL_FIELDS = 4, BOUND_FIELDS = 4;

template <typename T>
IMN_INLINE T epsilon_of() {
    return sizeof(T) == 8 ? T(2.220446049250313e-16) : T(1.1920929e-07);
}

struct Shape {
    int x, y, z;

    IMN_INLINE Integer size() const { return Integer(x) * y * z; }
};

// A batch of meshes of the same faces.
template <typename T>
struct Meshes {
    const IMN_DEVICE T* vertices;     // (batch, vertex_count, 3)
    const IMN_DEVICE Integer* faces;  // (face_count, 3)
    Integer batch, vertex_count, face_count;
};

// What `prepare` makes of them, and the solver works on.
template <typename T>
struct Faces {
    const IMN_DEVICE T* triangles;  // (face_count, TRIANGLE_FIELDS), or of all items
    const IMN_DEVICE T* balls;      // (face_count, BALL_FIELDS), likewise
    Integer count;
};

template <typename T>
IMN_INLINE Faces<T> of_item(Faces<T> faces, Integer item) {
    return {faces.triangles + TRIANGLE_FIELDS * faces.count * item, faces.balls + BALL_FIELDS * faces.count * item,
            faces.count};
}

// A corner's vertex, clamped so that no index is read out of bounds; the caller marks such meshes as not valid.
IMN_INLINE Integer vertex_of(const IMN_DEVICE Integer* faces, Integer face, int corner, Integer vertex_count) {
    return minimum(maximum(faces[3 * face + corner], Integer(0)), vertex_count - 1);
}

// Where a corner of a face of a batch item stands.
template <typename T>
IMN_INLINE Vec3<T> corner_of(const IMN_LOCAL Meshes<T>& meshes, Integer item, Integer face, int corner) {
    Integer v = meshes.vertex_count * item + vertex_of(meshes.faces, face, corner, meshes.vertex_count);
    return {meshes.vertices[3 * v], meshes.vertices[3 * v + 1], meshes.vertices[3 * v + 2]};
}

template <typename T>
IMN_INLINE Vec3<Real> to_real(Vec3<T> v) {
    return {Real(v.x), Real(v.y), Real(v.z)};
}

template <typename T>
IMN_INLINE void store(IMN_DEVICE T* to, Vec3<Real> v) {
    to[0] = T(v.x), to[1] = T(v.y), to[2] = T(v.z);
}

template <typename T>
IMN_INLINE void store(IMN_DEVICE T* to, RightTriangle<Real> h) {
    to[0] = T(h.width), to[1] = T(h.x), to[2] = T(h.y), to[3] = T(h.length);
}

// What one instruction loads.
template <typename T>
struct alignas(16) Quad {
    T x, y, z, w;
};

template <typename T>
IMN_INLINE Ball<T> load_ball(const IMN_DEVICE T* balls, Integer face) {
    Quad<T> ball = reinterpret_cast<const IMN_DEVICE Quad<T>*>(balls)[face];
    return {{ball.x, ball.y, ball.z}, ball.w};
}

template <typename T>
IMN_INLINE Triangle<T> load_triangle(const IMN_DEVICE T* triangles, Integer face) {
    const IMN_DEVICE Quad<T>* from =
        reinterpret_cast<const IMN_DEVICE Quad<T>*>(triangles) + TRIANGLE_FIELDS / 4 * face;
    Quad<T> a = from[0], b = from[1], c = from[2], d = from[3], e = from[4];
    return {{a.x, a.y, a.z}, {a.w, b.x, b.y},      {b.z, b.w, c.x},
            {c.y, c.z, c.w}, {d.x, d.y, d.z, d.w}, {e.x, e.y, e.z, e.w}};
}

// A coordinate's size; what is beyond the limit or no number is 4e9, so that it is seen to be.
template <typename T>
IMN_INLINE T size_of(T x) {
    T size = magnitude(x);
    return size <= T(LIMIT) ? size : T(4e9);
}

// What `bounds` finds of each batch item: all 0 before.
template <typename T>
struct Bounds {
    IMN_DEVICE T* of_items;  // (batch, BOUND_FIELDS)

    // The largest coordinate of the vertices in use, that along X and Y, that of all vertices, and 1 if some index is
    // that of no vertex.
    IMN_INLINE IMN_DEVICE T* used(Integer item) const { return of_items + BOUND_FIELDS * item; }
    IMN_INLINE IMN_DEVICE T* used_xy(Integer item) const { return used(item) + 1; }
    IMN_INLINE IMN_DEVICE T* any(Integer item) const { return used(item) + 2; }
    IMN_INLINE IMN_DEVICE T* wrong(Integer item) const { return used(item) + 3; }

    // Whether the item has a distance.
    IMN_INLINE bool valid(Integer item) const { return *any(item) <= T(LIMIT) && *wrong(item) == T(0); }
    // How wrong rounding can make an offset.
    IMN_INLINE T slack(Integer item) const { return 32 * epsilon_of<T>() * maximum(*used(item), T(1)); }
};

// One thread a face and a vertex of a batch item. Items fill whole warps, each of which adds what it found at once.
template <typename T>
IMN_KERNEL_INLINE void find_bounds(Meshes<T> meshes, Bounds<T> bounds, Thread me) {
    Integer rows = (maximum(meshes.face_count, meshes.vertex_count) + WARP - 1) / WARP * WARP;
    Integer i = me.group * GROUP + me.index;
    Integer item = i / rows, row = i % rows;
    if (item >= meshes.batch) return;
    T used = 0, used_xy = 0, any = 0, wrong = 0;
    for (int k = 0; k < 3 && row < meshes.face_count; k++) {
        Integer v = meshes.faces[3 * row + k];
        if (v < 0 || v >= meshes.vertex_count) wrong = 1;
        Vec3<T> p = corner_of(meshes, item, row, k);
        used_xy = maximum(used_xy, maximum(size_of(p.x), size_of(p.y)));
        used = maximum(used, size_of(p.z));
    }
    used = maximum(used, used_xy);
    for (int k = 0; k < 3 && row < meshes.vertex_count; k++)
        any = maximum(any, size_of(meshes.vertices[3 * (item * meshes.vertex_count + row) + k]));
    used = warp_maximum(used), used_xy = warp_maximum(used_xy), any = warp_maximum(any), wrong = warp_maximum(wrong);
    if (me.index % WARP != 0) return;
    raise_to(bounds.used(item), used);
    raise_to(bounds.used_xy(item), used_xy);
    raise_to(bounds.any(item), any);
    raise_to(bounds.wrong(item), wrong);
}

// One thread a word: two arrays and a counter become 0.
IMN_INLINE void clear_words(IMN_DEVICE int* words, Integer count, IMN_DEVICE int* more, Integer more_count,
                            IMN_DEVICE int* counter, Thread me) {
    Integer i = me.group * GROUP + me.index;
    if (i < count) words[i] = 0;
    if (i < more_count) more[i] = 0;
    if (i == 0) *counter = 0;
}

// The triangle of a face of a batch item, and which of the face's corners is its a.
struct FaceTriangle {
    Triangle<Real> triangle;
    int first;
};

template <typename T>
IMN_INLINE FaceTriangle triangle_of(const IMN_LOCAL Meshes<T>& meshes, Integer item, Integer face) {
    Vec3<Real> corner[3];
    for (int k = 0; k < 3; k++) corner[k] = to_real(corner_of(meshes, item, face, k));
    int a = longest_edge(corner);
    return {make_triangle(corner[a], corner[(a + 1) % 3], corner[(a + 2) % 3], epsilon_of<Real>()), a};
}

template <typename T>
IMN_INLINE void store(IMN_DEVICE T* to, const IMN_LOCAL Triangle<Real>& t) {
    store(to, t.foot);
    store(to + 3, t.x);
    store(to + 6, t.y);
    store(to + 9, t.z);
    store(to + 12, t.left);
    store(to + 16, t.right);
}

// For the search, one thread a face of a batch item: its triangle, and its ball, whose radius grows by the item's
// slack.
template <typename T>
IMN_INLINE void prepare(Meshes<T> meshes, Bounds<T> bounds, IMN_DEVICE T* triangles, IMN_DEVICE T* balls, Thread me) {
    Integer i = me.group * GROUP + me.index;
    Integer item = i / meshes.face_count, face = i % meshes.face_count;
    if (item >= meshes.batch) return;
    Triangle<Real> t = triangle_of(meshes, item, face).triangle;
    Ball<Real> ball = make_ball(t);
    store(triangles + TRIANGLE_FIELDS * i, t);
    store(balls + BALL_FIELDS * i, ball.centre);
    balls[BALL_FIELDS * i + 3] = T(ball.radius) + bounds.slack(item);
}

// For the gradient, one thread a face of a batch item: its triangle, and which corner is its a. It needs no bounds, so
// that the backward pass starts no kernel to find them.
template <typename T>
IMN_INLINE void prepare_gradient(Meshes<T> meshes, IMN_DEVICE T* triangles, IMN_DEVICE int* first, Thread me) {
    Integer i = me.group * GROUP + me.index;
    Integer item = i / meshes.face_count, face = i % meshes.face_count;
    if (item >= meshes.batch) return;
    FaceTriangle found = triangle_of(meshes, item, face);
    store(triangles + TRIANGLE_FIELDS * i, found.triangle);
    first[i] = found.first;
}

// What crossings are counted on: a grid, and whether vertices are in normalised coordinates or in its voxels.
struct WindingGrid {
    Shape shape;
    bool normalised;
};

template <typename T>
IMN_INLINE Fixed snap_vertex(Vec3<T> v, WindingGrid grid, int bits) {
    Vec3<Real> p = to_real(v);
    Shape shape = grid.shape;
    if (grid.normalised)
        p = {(p.x + 1) * (Real(shape.x - 1) / 2), (p.y + 1) * (Real(shape.y - 1) / 2),
             (p.z + 1) * (Real(shape.z - 1) / 2)};
    return {snap(p.x, bits), snap(p.y, bits), p.z};
}

// How many voxels from the grid's first its vertices or the grid itself reach along X and Y.
template <typename T>
IMN_INLINE Real reach_of(Bounds<T> bounds, Integer item, WindingGrid grid) {
    Real largest = Real(maximum(grid.shape.x, grid.shape.y)), used = Real(*bounds.used_xy(item));
    return maximum(grid.normalised ? (used + 1) * (largest / 2) : used, largest);
}

// One warp a face of a batch item: adds its crossings with the grid's columns to changes (B, X, Y, Z).
template <typename T>
IMN_KERNEL_INLINE void cross_face(Meshes<T> meshes, Bounds<T> bounds, IMN_DEVICE int* changes, WindingGrid grid,
                                  Thread me) {
    Integer i = me.group * WARPS + me.index / WARP;
    Integer item = i / meshes.face_count, face = i % meshes.face_count;
    if (item >= meshes.batch || !bounds.valid(item)) return;  // nothing is inside then
    int bits = fraction_bits(reach_of(bounds, item, grid));
    Shape shape = grid.shape;
    Fixed corner[3];
    for (int k = 0; k < 3; k++) corner[k] = snap_vertex(corner_of(meshes, item, face, k), grid, bits);
    Columns along_x = columns(corner[0].x, corner[1].x, corner[2].x, shape.x, bits);
    Columns along_y = columns(corner[0].y, corner[1].y, corner[2].y, shape.y, bits);
    Integer width = maximum(along_y.high - along_y.low, Integer(0));
    Integer count = (along_x.high - along_x.low) * width;
    for (Integer n = me.index % WARP; n < count; n += WARP) {
        Integer x = along_x.low + n / width, y = along_y.low + n % width;
        Crossing at = crossing(corner[0], corner[1], corner[2], x, y, shape.z, bits);
        if (at.change != 0 && at.voxel < shape.z)
            add_to(changes + ((item * shape.x + x) * shape.y + y) * shape.z + at.voxel, at.change);
    }
}

// One warp a column: changes (B * X * Y, Z) of the winding number -> whether it is not 0.
IMN_KERNEL_INLINE void accumulate_column(IMN_DEVICE int* changes, Integer count, Integer size, Thread me) {
    Integer i = me.group * WARPS + me.index / WARP;
    if (i >= count) return;
    int before = 0;
    for (Integer start = 0; start < size; start += WARP) {
        Integer k = start + me.index % WARP;
        int change = k < size ? changes[i * size + k] : 0;
        // Most faces are elsewhere: without a change the count stays what it was.
        int winding = before;
        if (!all_of_warp(change == 0)) winding += warp_running_sum(change);
        if (k < size && change != (winding != 0)) changes[i * size + k] = winding != 0;
        before = from_last_lane(winding);
    }
}

// The face ids still in question: a list, or all.
struct Candidates {
    const IMN_DEVICE int* list;
    int count;
    bool all;

    IMN_INLINE int face(int i) const { return all ? i : list[i]; }
};

template <typename T>
struct Nearest {
    T squared;
    int face;
};

// The least of equally close faces, so that the order of a list does not matter.
template <typename T>
IMN_INLINE Nearest<T> nearer(Nearest<T> a, Nearest<T> b) {
    return b.squared < a.squared || (b.squared == a.squared && b.face < a.face) ? b : a;
}

template <typename T>
IMN_KERNEL_INLINE Nearest<T> warp_nearest(Nearest<T> mine) {
    T squared = warp_minimum(mine.squared);
    return {squared, warp_minimum(mine.squared == squared ? mine.face : 0x7fffffff)};
}

// A list of faces that threads append to; more than its capacity are counted, but not listed.
template <typename Pointer>
struct FaceList {
    Pointer face;
    IMN_SHARED int* count;
    int capacity;
};

template <typename Pointer>
IMN_KERNEL_INLINE void append(FaceList<Pointer> list, int face) {
    int place = take_next(list.count);
    if (place < list.capacity) list.face[place] = face;
}

// How threads share out a list: this one takes every `step`-th entry from `start` on.
struct Stride {
    int start, step;
};

struct Voxel {
    int x, y, z;
};

// A box of voxels [low, high), clipped, in normalised coordinates.
template <typename T>
struct Region {
    Vec3<T> centre, half_extent;
    bool empty;
};

template <typename T>
IMN_INLINE T coordinate(int twice, int size) {
    return T(twice - (size - 1)) / T(size - 1);
}  // of voxel twice / 2

// The cube of `side` voxels from `low` on.
template <typename T>
IMN_INLINE Region<T> region(Voxel low, int side, Shape shape) {
    int high_x = minimum(low.x + side, shape.x) - 1;
    int high_y = minimum(low.y + side, shape.y) - 1;
    int high_z = minimum(low.z + side, shape.z) - 1;
    return {
        {coordinate<T>(low.x + high_x, shape.x), coordinate<T>(low.y + high_y, shape.y),
         coordinate<T>(low.z + high_z, shape.z)},
        {T(high_x - low.x) / T(shape.x - 1), T(high_y - low.y) / T(shape.y - 1), T(high_z - low.z) / T(shape.z - 1)},
        high_x < low.x || high_y < low.y || high_z < low.z};
}

// The nearest face that each warp found.
template <typename T>
struct NearestOfWarps {
    T squared[WARPS];
    int face[WARPS];
};

// The nearest of all threads. Between two calls stands a barrier of the group.
template <typename T>
IMN_KERNEL_INLINE Nearest<T> group_nearest(Nearest<T> mine, Thread me, IMN_SHARED NearestOfWarps<T>* shared) {
    mine = warp_nearest(mine);
    if (me.index % WARP == 0) {
        shared->squared[me.index / WARP] = mine.squared;
        shared->face[me.index / WARP] = mine.face;
    }
    group_barrier();
    for (int w = 0; w < WARPS; w++) {
        Nearest<T> other = {shared->squared[w], shared->face[w]};
        mine = nearer(mine, other);
    }
    return mine;
}

// The ball nearest to a point among this thread's share of the candidates.
template <typename T>
IMN_INLINE Nearest<T> nearest_ball(const IMN_DEVICE T* balls, Candidates from, Vec3<T> point, Stride mine) {
    Nearest<T> best = {T(3e38), 0x7fffffff};
    for (int i = mine.start; i < from.count; i += mine.step) {
        int face = from.face(i);
        Vec3<T> offset = load_ball(balls, face).centre - point;
        T squared = dot(offset, offset);
        if (squared < best.squared) best = {squared, face};
    }
    return best;
}

template <typename T>
IMN_INLINE bool keeps(const IMN_LOCAL BallRule<T>& rule, Vec3<T> point, Ball<T> ball) {
    Vec3<T> offset = ball.centre - point;
    return rule.keeps(ball.centre, ball.radius, dot(offset, offset));
}

template <typename T>
IMN_INLINE BallRule<T> ball_rule(const IMN_DEVICE T* balls, Nearest<T> best, Region<T> region) {
    return make_ball_rule(load_ball(balls, best.face).centre, best.squared, region.half_extent);
}

// Appends this thread's share of the candidates that can be the closest somewhere in a region.
template <typename T, typename Pointer>
IMN_KERNEL_INLINE void keep_balls(const IMN_DEVICE T* balls, Candidates from, Region<T> region, Nearest<T> best,
                                  Stride mine, FaceList<Pointer> list) {
    BallRule<T> rule = ball_rule(balls, best, region);
    for (int i = mine.start; i < from.count; i += mine.step) {
        int face = from.face(i);
        if (keeps(rule, region.centre, load_ball(balls, face))) append(list, face);
    }
}

// The offset from a face's closest point to a point.
template <typename T>
IMN_INLINE Vec3<T> offset_from(const IMN_DEVICE T* triangles, int face, Vec3<T> point) {
    Triangle<T> t = load_triangle(triangles, face);
    return from_frame(t, residual(t, to_frame(t, point)));
}

// Where one batch item's results go; `face` holds whether each voxel is inside until its face is known.
template <typename T>
struct Output {
    IMN_DEVICE T* sdf;
    IMN_DEVICE int* face;
    Shape shape;

    IMN_INLINE bool has(Voxel v) const { return v.x < shape.x && v.y < shape.y && v.z < shape.z; }
    IMN_INLINE Integer at(Voxel v) const { return (Integer(v.x) * shape.y + v.y) * shape.z + v.z; }
};

// The grid of a batch cut into cubes of `side` voxels, numbered item by item.
struct Cubes {
    Shape shape;
    int side;

    IMN_INLINE int along(int size) const { return (size + side - 1) / side; }
    IMN_INLINE Integer count() const { return Integer(along(shape.x)) * along(shape.y) * along(shape.z); }
    IMN_INLINE Voxel low(Integer cube) const {
        int y = along(shape.y), z = along(shape.z);
        return {int(cube / (Integer(y) * z)) * side, int(cube / z % y) * side, int(cube % z) * side};
    }
    IMN_INLINE Integer holding(Voxel v) const {
        return (Integer(v.x / side) * along(shape.y) + v.y / side) * along(shape.z) + v.z / side;
    }
};

// The lists of all blocks of the batch, (blocks, capacity), and their lengths, which may be beyond the capacity.
struct BlockLists {
    IMN_DEVICE int* face;
    IMN_DEVICE int* count;
    int capacity;

    IMN_INLINE Candidates of(Integer block, Integer face_count) const {
        bool all = count[block] > capacity;
        return {face + block * capacity, all ? int(face_count) : count[block], all};
    }
};

template <typename T>
struct ListShared {
    NearestOfWarps<T> nearest;
    int count;
};

// One group a block of a batch item.
template <typename T>
IMN_KERNEL_INLINE void list_block(Faces<T> faces, Bounds<T> bounds, Shape shape, BlockLists lists, Thread me,
                                  IMN_SHARED ListShared<T>* shared) {
    Cubes blocks = {shape, BLOCK};
    Integer item = me.group / blocks.count();
    if (!bounds.valid(item)) return;
    faces = of_item(faces, item);
    Region<T> block = region<T>(blocks.low(me.group % blocks.count()), BLOCK, shape);
    Candidates all = {lists.face, int(faces.count), true};
    Stride mine = {me.index, GROUP};
    if (me.index == 0) shared->count = 0;
    Nearest<T> best = group_nearest(nearest_ball(faces.balls, all, block.centre, mine), me, &shared->nearest);
    FaceList<IMN_DEVICE int*> list = {lists.face + me.group * lists.capacity, &shared->count, lists.capacity};
    keep_balls(faces.balls, all, block, best, mine, list);
    group_barrier();
    if (me.index == 0) lists.count[me.group] = shared->count;
}

// The tiles of the batch that too many faces are left for: numbers of tiles, in any order.
struct Crowd {
    IMN_DEVICE int* tile;
    IMN_DEVICE int* count;
};

// A face as seen from the middle of a tile: it lies behind the plane across its offset, so no point u from the middle
// is nearer to it than normal.u + distance, a bound that rounding does not break. See FaceRule.
template <typename T>
IMN_INLINE Quad<T> plane_of(Vec3<T> offset, T squared, T radius, T slack) {
    T length = square_root(squared);
    T inverse = inverse_or_zero(length);
    Vec3<T> normal = inverse * offset;
    return {normal.x, normal.y, normal.z, length - 2 * slack * (T(1) + radius * inverse)};
}

// Whether a face behind the plane is surely no nearer to u than what was found.
template <typename T>
IMN_INLINE bool is_behind(Quad<T> plane, Vec3<T> u, T squared) {
    T least = plane.x * u.x + plane.y * u.y + plane.z * u.z + plane.w;
    return least > T(0) && least * least > squared;
}

// What a group's threads share: the box's list, and each warp's tile's, with planes.
template <typename T>
struct SolveShared {
    NearestOfWarps<T> nearest;
    int box_count, tile_count[WARPS];
    int box[BOX_FACES];
    int tile[WARPS][TILE_FACES];
    Quad<T> plane[WARPS][TILE_FACES];
};

static_assert(sizeof(SolveShared<float>) <= MOST_SHARED, "Metal starts no group that shares more");

// One warp's part of that.
template <typename T>
struct TileList {
    IMN_SHARED int* face;
    IMN_SHARED Quad<T>* plane;
    IMN_SHARED int* count;
};

// Lists the faces of a box that can be the closest somewhere in a tile, and returns the one closest to its middle. Of
// as many faces as fit into registers at once the closest joins the rule, and the rule then judges these.
template <typename T>
IMN_KERNEL_INLINE Nearest<T> list_tile(Faces<T> faces, const IMN_SHARED int* box, int count, Region<T> tile, T slack,
                                       int lane, TileList<T> list) {
    Nearest<T> best = {T(3e38), 0x7fffffff};
    T radius = square_root(dot(tile.half_extent, tile.half_extent));
    for (int start = 0; start < count; start += SLOTS * WARP) {
        Vec3<T> offset[SLOTS];
        Nearest<T> mine = best;
#pragma unroll
        for (int k = 0; k < SLOTS; k++) {
            int n = start + k * WARP + lane;
            if (n >= count) continue;
            offset[k] = offset_from(faces.triangles, box[n], tile.centre);
            mine = nearer(mine, Nearest<T>{dot(offset[k], offset[k]), box[n]});
        }
        best = warp_nearest(mine);
        Vec3<T> nearest = offset_from(faces.triangles, best.face, tile.centre);
        FaceRule<T> rule = make_face_rule(nearest, best.squared, tile.half_extent, slack);
#pragma unroll
        for (int k = 0; k < SLOTS; k++) {
            int n = start + k * WARP + lane;
            if (n >= count) continue;
            T squared = dot(offset[k], offset[k]);
            if (!rule.keeps(offset[k], squared)) continue;
            int place = take_next(list.count);
            if (place >= TILE_FACES) continue;
            list.face[place] = box[n];
            list.plane[place] = plane_of(offset[k], squared, radius, slack);
        }
    }
    return best;
}

// The first or second voxel of a lane in a tile.
IMN_INLINE Voxel voxel_of(Voxel low, int lane, int v) {
    return {low.x + lane / (TILE * TILE) + 2 * v, low.y + lane / TILE % TILE, low.z + lane % TILE};
}

// A voxel's centre; of one beyond the grid, that of the grid's last.
template <typename T>
IMN_INLINE Vec3<T> centre_of(Voxel v, Shape shape) {
    return {coordinate<T>(2 * minimum(v.x, shape.x - 1), shape.x),
            coordinate<T>(2 * minimum(v.y, shape.y - 1), shape.y),
            coordinate<T>(2 * minimum(v.z, shape.z - 1), shape.z)};
}

// Writes a voxel's result.
template <typename T>
IMN_INLINE void put(Output<T> out, Voxel voxel, Nearest<T> closest) {
    if (!out.has(voxel)) return;
    Integer at = out.at(voxel);
    T distance = square_root(closest.squared);
    out.sdf[at] = out.face[at] != 0 ? -distance : distance;
    out.face[at] = closest.face;
}

// A warp's tile: its two voxels a lane against the faces that can be the closest somewhere in there, the closest to
// its middle first, and past those that are nearer to none of the voxels than what was found. Whether it was done:
// false if it is crowded.
template <typename T>
IMN_KERNEL_INLINE bool solve_tile(Faces<T> faces, const IMN_SHARED int* box, int count, Voxel low, T slack, int lane,
                                  TileList<T> list, Output<T> out) {
    Region<T> tile = region<T>(low, TILE, out.shape);
    Nearest<T> middle = list_tile(faces, box, count, tile, slack, lane, list);
    warp_barrier();
    int listed = *list.count;
    if (listed > TILE_FACES) return false;
    Vec3<T> point[2];
    Nearest<T> mine[2];
    Triangle<T> first = load_triangle(faces.triangles, middle.face);
    for (int v = 0; v < 2; v++) {
        point[v] = centre_of<T>(voxel_of(low, lane, v), out.shape);
        mine[v] = {squared_distance(first, to_frame(first, point[v])), middle.face};
    }
    for (int m = 0; m < listed; m++) {
        int face = list.face[m];
        if (face == middle.face) continue;
        Quad<T> plane = list.plane[m];
        bool behind = is_behind(plane, point[0] - tile.centre, mine[0].squared) &&
                      is_behind(plane, point[1] - tile.centre, mine[1].squared);
        if (all_of_warp(behind)) continue;
        Triangle<T> t = load_triangle(faces.triangles, face);
        for (int v = 0; v < 2; v++)
            mine[v] = nearer(mine[v], Nearest<T>{squared_distance(t, to_frame(t, point[v])), face});
    }
    for (int v = 0; v < 2; v++) put(out, voxel_of(low, lane, v), mine[v]);
    return true;
}

// The `part`-th of the eight cubes of `side` voxels that a cube twice as wide is made of.
IMN_INLINE Voxel octant(Voxel low, int part, int side) {
    return {low.x + (part / 4) * side, low.y + (part / 2 % 2) * side, low.z + (part % 2) * side};
}

// Fills a box with NaN, and with face 0.
template <typename T>
IMN_KERNEL_INLINE void invalidate_box(Voxel low, int index, Output<T> out) {
    for (int n = index; n < BOX * BOX * BOX; n += GROUP) {
        Voxel voxel = {low.x + n / (BOX * BOX), low.y + n / BOX % BOX, low.z + n % BOX};
        if (!out.has(voxel)) continue;
        out.sdf[out.at(voxel)] = not_a_number<T>();
        out.face[out.at(voxel)] = 0;
    }
}

template <typename T>
IMN_INLINE Output<T> of_item(Output<T> out, Integer item) {
    return {out.sdf + item * out.shape.size(), out.face + item * out.shape.size(), out.shape};
}

// The search through a batch: what it reads, and where it writes.
template <typename T>
struct Search {
    Faces<T> faces;
    Bounds<T> bounds;
    BlockLists lists;
    Crowd crowd;
    Output<T> out;
};

// The faces in question for the block around a voxel.
template <typename T>
IMN_INLINE Candidates candidates(const IMN_LOCAL Search<T>& search, Integer item, Voxel low) {
    Cubes blocks = {search.out.shape, BLOCK};
    return search.lists.of(item * blocks.count() + blocks.holding(low), search.faces.count);
}

// One group a box of a batch item, one warp a tile of it. An item that is not valid gets NaN.
template <typename T>
IMN_KERNEL_INLINE void solve_box(Search<T> search, Thread me, IMN_SHARED SolveShared<T>* shared) {
    Cubes boxes = {search.out.shape, BOX}, tiles = {search.out.shape, TILE};
    Integer item = me.group / boxes.count();
    Voxel low = boxes.low(me.group % boxes.count());
    Output<T> out = of_item(search.out, item);
    if (!search.bounds.valid(item)) {
        invalidate_box(low, me.index, out);
        return;
    }
    Faces<T> faces = of_item(search.faces, item);
    Candidates from = candidates(search, item, low);
    Region<T> box = region<T>(low, BOX, out.shape);
    Stride mine = {me.index, GROUP};
    int warp = me.index / WARP, lane = me.index % WARP;
    if (me.index == 0) shared->box_count = 0;
    if (lane == 0) shared->tile_count[warp] = 0;
    Nearest<T> best = group_nearest(nearest_ball(faces.balls, from, box.centre, mine), me, &shared->nearest);
    keep_balls(faces.balls, from, box, best, mine,
               FaceList<IMN_SHARED int*>{shared->box, &shared->box_count, BOX_FACES});
    group_barrier();
    Voxel corner = octant(low, warp, TILE);
    if (!out.has(corner)) return;
    TileList<T> list = {shared->tile[warp], shared->plane[warp], &shared->tile_count[warp]};
    int count = shared->box_count;
    T slack = search.bounds.slack(item);
    if (count <= BOX_FACES && solve_tile(faces, shared->box, count, corner, slack, lane, list, out)) return;
    if (lane == 0)
        search.crowd.tile[take_next_of_all(search.crowd.count)] = int(item * tiles.count() + tiles.holding(corner));
}

// What a group's threads share: a crowded tile's list, with planes, and what each warp's cell needs.
template <typename T>
struct CrowdShared {
    NearestOfWarps<T> nearest;
    int count, near_count[WARPS];
    int face[CROWD_FACES];
    unsigned short near[WARPS][CROWD_FACES];  // places in the list
    Quad<T> plane[CROWD_FACES];
    Quad<T> voxel[WARPS][8];  // from the tile's middle, and the squared distance found so far
    T squared[GROUP];
    int found[GROUP];
};
static_assert(sizeof(CrowdShared<float>) <= MOST_SHARED, "Metal starts no group that shares more");

// Lists the n-th of the candidates if it can be the closest somewhere in a tile.
template <typename T>
IMN_KERNEL_INLINE void list_crowd(Faces<T> faces, Candidates from, int n, Region<T> tile, BallRule<T> ball_rule,
                                  FaceRule<T> rule, T slack, IMN_SHARED CrowdShared<T>* shared) {
    if (n >= from.count) return;
    int face = from.face(n);
    if (!keeps(ball_rule, tile.centre, load_ball(faces.balls, face))) return;
    Vec3<T> offset = offset_from(faces.triangles, face, tile.centre);
    T squared = dot(offset, offset);
    if (!rule.keeps(offset, squared)) return;
    int place = take_next(&shared->count);
    shared->face[place] = face;
    shared->plane[place] = plane_of(offset, squared, square_root(dot(tile.half_extent, tile.half_extent)), slack);
}

// One of the eight voxels of a warp's cell; four lanes hold each.
template <typename T>
struct CellVoxel {
    Vec3<T> point, offset;  // where it is, and that from its tile's middle
};

// A warp's cell against the faces listed for its tile, but those that are behind for all of its voxels: of each four
// at a time, a lane one. Returns the nearest of `mine` and all of them, the same for the lanes of a voxel.
template <typename T>
IMN_KERNEL_INLINE Nearest<T> solve_cell(Faces<T> faces, int listed, CellVoxel<T> voxel, Nearest<T> mine, Thread me,
                                        IMN_SHARED CrowdShared<T>* shared) {
    int warp = me.index / WARP, lane = me.index % WARP;
    if (lane < 8) {
        Quad<T> held = {voxel.offset.x, voxel.offset.y, voxel.offset.z, mine.squared};
        shared->voxel[warp][lane] = held;
    }
    if (lane == 0) shared->near_count[warp] = 0;
    warp_barrier();
    for (int m = lane; m < listed; m += WARP) {
        Quad<T> plane = shared->plane[m];
        bool behind = true;
#pragma unroll
        for (int v = 0; v < 8; v++) {
            Quad<T> held = shared->voxel[warp][v];
            behind = behind & is_behind(plane, Vec3<T>{held.x, held.y, held.z}, held.w);
        }
        if (!behind) shared->near[warp][take_next(&shared->near_count[warp])] = (unsigned short)(m);
    }
    warp_barrier();
    int near = shared->near_count[warp];
    for (int n = lane / 8; n < near; n += WARP / 8) {
        int face = shared->face[shared->near[warp][n]];
        Triangle<T> t = load_triangle(faces.triangles, face);
        mine = nearer(mine, Nearest<T>{squared_distance(t, to_frame(t, voxel.point)), face});
    }
    shared->squared[me.index] = mine.squared;
    shared->found[me.index] = mine.face;
    warp_barrier();
    for (int other = lane % 8; other < WARP; other += 8) {
        int at = warp * WARP + other;
        Nearest<T> its = {shared->squared[at], shared->found[at]};
        mine = nearer(mine, its);
    }
    return mine;
}

// One group a crowded tile, one warp a cell of it. The faces that can be the closest somewhere in the tile are listed
// as many at a time as there is room for.
template <typename T>
IMN_KERNEL_INLINE void solve_crowded_tile(Search<T> search, Integer number, Thread me,
                                          IMN_SHARED CrowdShared<T>* shared) {
    Cubes tiles = {search.out.shape, TILE};
    Integer place = search.crowd.tile[number];
    Integer item = place / tiles.count();
    Output<T> out = of_item(search.out, item);
    Voxel low = tiles.low(place % tiles.count());
    Faces<T> faces = of_item(search.faces, item);
    Candidates from = candidates(search, item, low);
    Region<T> tile = region<T>(low, TILE, out.shape);
    T slack = search.bounds.slack(item);
    // Among the nearest balls of all threads, the face that is the nearest itself is what others are held against.
    Nearest<T> best = nearest_ball(faces.balls, from, tile.centre, Stride{me.index, GROUP});
    if (best.face < faces.count) {
        Vec3<T> offset = offset_from(faces.triangles, best.face, tile.centre);
        best.squared = dot(offset, offset);
    }
    if (me.index == 0) shared->count = 0;
    best = group_nearest(best, me, &shared->nearest);
    Triangle<T> first = load_triangle(faces.triangles, best.face);
    Vec3<T> nearest = from_frame(first, residual(first, to_frame(first, tile.centre)));
    FaceRule<T> rule = make_face_rule(nearest, best.squared, tile.half_extent, slack);
    Vec3<T> centre = load_ball(faces.balls, best.face).centre, away = centre - tile.centre;
    BallRule<T> ball_rule = make_ball_rule(centre, dot(away, away), tile.half_extent);
    Voxel voxel = octant(octant(low, me.index / WARP, CELL), me.index % 8, 1);
    Vec3<T> point = centre_of<T>(voxel, out.shape);
    Nearest<T> mine = {squared_distance(first, to_frame(first, point)), best.face};
    for (int start = 0; start < from.count; start += GROUP) {
        list_crowd(faces, from, start + me.index, tile, ball_rule, rule, slack, shared);
        group_barrier();
        int listed = shared->count;
        group_barrier();
        // The list goes on until the next GROUP faces might not fit.
        if (listed <= CROWD_FACES - GROUP && start + GROUP < from.count) continue;
        mine = solve_cell(faces, listed, CellVoxel<T>{point, point - tile.centre}, mine, me, shared);
        group_barrier();
        if (me.index == 0) shared->count = 0;
        group_barrier();
    }
    if (me.index % WARP < 8) put(out, voxel, mine);
}

template <typename T>
IMN_KERNEL_INLINE void solve_crowded(Search<T> search, Integer groups, Thread me, IMN_SHARED CrowdShared<T>* shared) {
    Integer count = *search.crowd.count;
    for (Integer number = me.group; number < count; number += groups) {
        solve_crowded_tile(search, number, me, shared);
        group_barrier();  // before the next one writes what this one read
    }
}

// What the gradient is made from, of the whole batch. `first` says which corner of each face is its triangle's a.
template <typename T>
struct GradientInput {
    const IMN_DEVICE T* grad;
    const IMN_DEVICE T* triangles;
    const IMN_DEVICE Integer* faces;
    const IMN_DEVICE int* first;
    const IMN_DEVICE T* sdf;
    const IMN_DEVICE int* face;
    Integer batch, vertex_count, face_count;
    Shape shape;
};

// What a group's threads share: sums of a block's gradients for the vertices that it meets. A free place holds -1.
template <typename S>
struct GradientShared {
    int point[TABLE];
    S sum[3 * TABLE];
};

// Where a vertex's sums are in the table, which it joins; -1 if the places that it may take are taken.
IMN_KERNEL_INLINE int place_of(IMN_SHARED int* vertices, int point) {
    for (int n = 0; n < 16; n++) {
        int place = (point + n) % TABLE;
        int found = take_place(vertices + place, point);
        if (found == -1 || found == point) return place;
    }
    return -1;
}

// Where sums of an item go: those of a block first, and the item's own (V, 3).
template <typename S>
struct Sums {
    IMN_SHARED GradientShared<S>* block;
    IMN_DEVICE S* result;
};

// Adds a face's sums, one vector a corner in the order of its triangle.
template <typename T, typename S, typename By>
IMN_KERNEL_INLINE void add_corners(const IMN_LOCAL GradientInput<T>& in, Integer item, Integer face,
                                   const IMN_LOCAL Vec3<T>* sums, Sums<S> to, By by) {
    int first = in.first[item * in.face_count + face];
    for (int k = 0; k < 3; k++) {
        int point = int(vertex_of(in.faces, face, (first + k) % 3, in.vertex_count));
        int place = place_of(to.block->point, point);
        S x = by.term(sums[k].x), y = by.term(sums[k].y), z = by.term(sums[k].z);
        if (place >= 0) {
            add_in_group(to.block->sum + 3 * place, x);
            add_in_group(to.block->sum + 3 * place + 1, y);
            add_in_group(to.block->sum + 3 * place + 2, z);
        } else {
            add_to(to.result + 3 * Integer(point), x);
            add_to(to.result + 3 * Integer(point) + 1, y);
            add_to(to.result + 3 * Integer(point) + 2, z);
        }
    }
}

// One voxel: where it is, and what it holds.
template <typename T>
struct Sample {
    Vec3<T> point;
    T sdf, grad;
};

// How wrong rounding can make the distance of a voxel on a face: in proportion to where they stand.
template <typename T>
IMN_INLINE T rounding_of(const IMN_LOCAL Triangle<T>& t) {
    T reach = maximum(maximum(magnitude(t.foot.x), magnitude(t.foot.y)), magnitude(t.foot.z));
    return 8 * epsilon_of<T>() * maximum(reach, T(1));
}

// Adds one voxel's shares -beta_k grad n to the sums; n = (p - q) / sdf or, on the surface itself, the face normal.
template <typename T>
IMN_INLINE void add_shares(const IMN_LOCAL Triangle<T>& t, Sample<T> voxel, T rounding, IMN_LOCAL Vec3<T>* sums) {
    Vec3<T> local = to_frame(t, voxel.point);
    Vec3<T> r = residual(t, local);
    Weights<T> beta = closest_weights(t, local);
    T length = square_root(dot(r, r));
    if (magnitude(voxel.sdf) <= rounding || length == T(0)) {
        r = {T(0), T(0), voxel.sdf < T(0) ? T(-1) : T(1)};
        length = T(1);
    }
    Vec3<T> pull = ((voxel.sdf < T(0) ? voxel.grad : -voxel.grad) / length) * from_frame(t, r);
    sums[0] = sums[0] + (T(1) - beta.b - beta.c) * pull;
    sums[1] = sums[1] + beta.b * pull;
    sums[2] = sums[2] + beta.c * pull;
}

// A run of voxels along Z: adds their shares, once for each face that it meets.
template <typename T, typename S, typename By>
IMN_KERNEL_INLINE void differentiate_run(const IMN_LOCAL GradientInput<T>& in, Integer item, Voxel low, Sums<S> to,
                                         By by) {
    Shape shape = in.shape;
    Integer row = (item * shape.x + low.x) * shape.y + low.y;
    int met = -1;  // the face that the sums are of
    Vec3<T> sums[3];
    Triangle<T> t;
    T rounding = 0;
    for (int k = low.z; k < minimum(low.z + RUN, shape.z); k++) {
        Integer at = row * shape.z + k;
        if (in.grad[at] == T(0)) continue;
        int closest = minimum(maximum(in.face[at], 0), int(in.face_count) - 1);  // nothing is read out of bounds
        if (closest != met) {
            if (met >= 0) add_corners(in, item, met, sums, to, by);
            met = closest;
            t = load_triangle(in.triangles, item * in.face_count + met);
            rounding = rounding_of(t);
            for (int c = 0; c < 3; c++) sums[c] = {T(0), T(0), T(0)};
        }
        Vec3<T> point = centre_of<T>(Voxel{low.x, low.y, k}, shape);
        add_shares(t, Sample<T>{point, in.sdf[at], in.grad[at]}, rounding, sums);
    }
    if (met >= 0) add_corners(in, item, met, sums, to, by);
}

// One group half a block of a batch item, one thread a run in there, so that small grids fill a GPU too: what they add
// up in the half is added to the result (B, V, 3) once for each vertex.
template <typename T, typename S, typename By>
IMN_KERNEL_INLINE void differentiate_half_block(GradientInput<T> in, IMN_DEVICE S* result, By by, Thread me,
                                                IMN_SHARED GradientShared<S>* shared) {
    Cubes blocks = {in.shape, BLOCK};
    Integer block = me.group / 2, item = block / blocks.count();
    Voxel low = blocks.low(block % blocks.count());
    for (int n = me.index; n < TABLE; n += GROUP) {
        shared->point[n] = -1;
        for (int a = 0; a < 3; a++) shared->sum[3 * n + a] = S(0);
    }
    group_barrier();
    Sums<S> to = {shared, result + 3 * in.vertex_count * item};
    int across = BLOCK / RUN, run = int(me.group % 2) * GROUP + me.index;  // of the block's 2 GROUP
    Voxel first = {low.x + run / (BLOCK * across), low.y + run / across % BLOCK, low.z + run % across * RUN};
    if (first.x < in.shape.x && first.y < in.shape.y) differentiate_run(in, item, first, to, by);
    group_barrier();
    for (int n = me.index; n < TABLE; n += GROUP)
        for (int a = 0; a < 3 && shared->point[n] >= 0; a++)
            add_to(to.result + 3 * Integer(shared->point[n]) + a, shared->sum[3 * n + a]);
}

}  // namespace imn
