// The kernels of mesh2sdf and voxelize, for CUDA and Metal alike: each a function of the thread that runs it. The
// search descends as on the CPU (mesh2sdf.cpp), by the same rules: a group of threads takes a block of 16^3 voxels,
// each of its eight warps a box of 8^3, and the warp the eight tiles of 4^3 in there one after the other.
#pragma once

#include "crossing.h"
#include "culling.h"
#include "gpu.h"

namespace imn {

IMN_CONSTANT int BLOCK = 16, BOX = 8, TILE = 4;  // voxels along what a group, a warp, and a warp at a time work on
IMN_CONSTANT int BLOCK_FACES = 2048, BOX_FACES = 512;  // listed; where more are kept, the list above goes on
IMN_CONSTANT int TILE_FACES = 2 * WARP;                // listed at a time
IMN_CONSTANT int RUN = 8;                              // voxels along Z that one thread differentiates
IMN_CONSTANT int TRIANGLE_FIELDS = 20, BALL_FIELDS = 4;

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

// Where `prepare` writes, one entry a face of each batch item.
template <typename T>
struct PreparedOutput {
    IMN_DEVICE T* triangles;
    IMN_DEVICE T* balls;
    IMN_DEVICE int* first;  // which corner is the triangle's a
};

// One thread a face of a batch item: its triangle, its ball, whose radius grows by the item's `slack`, and its a.
template <typename T>
IMN_INLINE void prepare(Meshes<T> meshes, const IMN_DEVICE T* slack, PreparedOutput<T> out, Thread me) {
    Integer i = me.group * GROUP + me.index;
    Integer item = i / meshes.face_count, face = i % meshes.face_count;
    if (item >= meshes.batch) return;
    Vec3<Real> corner[3];
    for (int k = 0; k < 3; k++) corner[k] = to_real(corner_of(meshes, item, face, k));
    int a = longest_edge(corner);
    Triangle<Real> t = make_triangle(corner[a], corner[(a + 1) % 3], corner[(a + 2) % 3], epsilon_of<Real>());
    Ball<Real> ball = make_ball(t);
    IMN_DEVICE T* to = out.triangles + TRIANGLE_FIELDS * i;
    store(to, t.foot);
    store(to + 3, t.x);
    store(to + 6, t.y);
    store(to + 9, t.z);
    store(to + 12, t.left);
    store(to + 16, t.right);
    store(out.balls + BALL_FIELDS * i, ball.centre);
    out.balls[BALL_FIELDS * i + 3] = T(ball.radius) + slack[item];
    out.first[i] = a;
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

// One warp a face of a batch item: adds its crossings with the grid's columns to changes (B, X, Y, Z). `reach` (B,).
template <typename T>
IMN_KERNEL_INLINE void cross_face(Meshes<T> meshes, const IMN_DEVICE T* reach, IMN_DEVICE int* changes,
                                  WindingGrid grid, Thread me) {
    Integer i = me.group * WARPS + me.index / WARP;
    Integer item = i / meshes.face_count, face = i % meshes.face_count;
    if (item >= meshes.batch) return;
    int bits = fraction_bits(Real(reach[item]));
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

// One thread a column: changes (B * X * Y, Z) of the winding number -> whether it is not 0.
IMN_INLINE void accumulate_column(IMN_DEVICE int* changes, Integer count, Integer size, Thread me) {
    Integer i = me.group * GROUP + me.index;
    if (i >= count) return;
    int winding = 0;
    for (Integer k = 0; k < size; k++) {
        int change = changes[i * size + k];
        winding += change;
        if (change != (winding != 0)) changes[i * size + k] = winding != 0;
    }
}

// The face ids still in question: a list, or all.
struct Candidates {
    const IMN_SHARED int* list;
    int count;
    bool all;

    IMN_INLINE int face(int i) const { return all ? i : list[i]; }
};

// A list that `count` faces were appended to; what it stands for where they did not fit is `above`.
IMN_INLINE Candidates candidates(const IMN_SHARED int* list, int count, int capacity, Candidates above) {
    if (count > capacity) return above;
    return {list, count, false};
}

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
struct FaceList {
    IMN_SHARED int* face;
    IMN_SHARED int* count;
    int capacity;
};

IMN_KERNEL_INLINE void append(FaceList list, int face) {
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

// What a group's threads share: the nearest ball that each warp found, and the lists of the block, of each warp's box
// and of each warp's tile.
template <typename T>
struct Shared {
    T squared[WARPS];
    int nearest[WARPS], block_count, box_count[WARPS], tile_count[WARPS];
    int block[BLOCK_FACES], box[WARPS][BOX_FACES], tile[WARPS][TILE_FACES];
};

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
template <typename T>
IMN_KERNEL_INLINE void keep_balls(const IMN_DEVICE T* balls, Candidates from, Region<T> region, Nearest<T> best,
                                  Stride mine, FaceList list) {
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

// A list of faces or, where that did not fit, the list above it, of which `rule` keeps the same faces.
template <typename T>
struct FaceFilter {
    Candidates from;
    bool all;  // no rule needed
    BallRule<T> rule;
    Vec3<T> centre;
};

template <typename T>
IMN_INLINE bool passes(const IMN_LOCAL FaceFilter<T>& filter, const IMN_DEVICE T* balls, int face) {
    return filter.all || keeps(filter.rule, filter.centre, load_ball(balls, face));
}

// What judges a tile's faces: found by the whole warp, each lane looking at its share.
template <typename T>
IMN_KERNEL_INLINE FaceRule<T> tile_rule(Faces<T> faces, const IMN_LOCAL FaceFilter<T>& filter, Region<T> tile, T slack,
                                        int lane) {
    Nearest<T> best = {T(3e38), 0x7fffffff};
    for (int n = lane; n < filter.from.count; n += WARP) {
        int face = filter.from.face(n);
        if (!passes(filter, faces.balls, face)) continue;
        Vec3<T> offset = offset_from(faces.triangles, face, tile.centre);
        best = nearer(best, Nearest<T>{dot(offset, offset), face});
    }
    best = warp_nearest(best);
    Vec3<T> offset = offset_from(faces.triangles, best.face, tile.centre);
    return make_face_rule(offset, best.squared, tile.half_extent, slack);
}

// The first or second voxel of a lane in a tile.
IMN_INLINE Voxel voxel_of(Voxel low, int lane, int v) {
    return {low.x + lane / (TILE * TILE) + 2 * v, low.y + lane / TILE % TILE, low.z + lane % TILE};
}

// A warp's tile: its two voxels a lane against the faces that can be the closest somewhere in the tile, listed a few at
// a time.
template <typename T>
IMN_KERNEL_INLINE void solve_tile(Faces<T> faces, const IMN_LOCAL FaceFilter<T>& filter, Region<T> tile, Voxel low,
                                  T slack, int lane, FaceList list, Output<T> out) {
    Candidates from = filter.from;
    FaceRule<T> rule = tile_rule(faces, filter, tile, slack, lane);
    Vec3<T> point[2];
    Nearest<T> mine[2];
    for (int v = 0; v < 2; v++) {
        Voxel voxel = voxel_of(low, lane, v);
        point[v] = {coordinate<T>(2 * voxel.x, out.shape.x), coordinate<T>(2 * voxel.y, out.shape.y),
                    coordinate<T>(2 * voxel.z, out.shape.z)};
        mine[v] = {T(3e38), 0x7fffffff};
    }
    if (lane == 0) *list.count = 0;
    warp_barrier();
    for (int start = 0; start < from.count; start += WARP) {
        int n = start + lane;
        if (n < from.count) {
            int face = from.face(n);
            if (passes(filter, faces.balls, face)) {
                Vec3<T> offset = offset_from(faces.triangles, face, tile.centre);
                if (rule.keeps(offset, dot(offset, offset))) append(list, face);
            }
        }
        warp_barrier();
        int listed = *list.count;
        warp_barrier();
        // The list goes on until the next WARP faces might not fit.
        if (listed <= list.capacity - WARP && start + WARP < from.count) continue;
        for (int m = 0; m < listed; m++) {
            Triangle<T> t = load_triangle(faces.triangles, list.face[m]);
            for (int v = 0; v < 2; v++)
                mine[v] = nearer(mine[v], Nearest<T>{squared_distance(t, to_frame(t, point[v])), list.face[m]});
        }
        warp_barrier();
        if (lane == 0) *list.count = 0;
        warp_barrier();
    }
    for (int v = 0; v < 2; v++) {
        Voxel voxel = voxel_of(low, lane, v);
        if (!out.has(voxel)) continue;
        Integer at = out.at(voxel);
        T distance = square_root(mine[v].squared);
        out.sdf[at] = out.face[at] != 0 ? -distance : distance;
        out.face[at] = mine[v].face;
    }
}

// The `part`-th of the eight cubes of `side` voxels that a cube twice as wide is made of.
IMN_INLINE Voxel octant(Voxel low, int part, int side) {
    return {low.x + (part / 4) * side, low.y + (part / 2 % 2) * side, low.z + (part % 2) * side};
}

// A warp's box: its list, then tile by tile.
template <typename T>
IMN_KERNEL_INLINE void solve_box(Faces<T> faces, Candidates block, Voxel low, T slack, int warp, int lane,
                                 IMN_SHARED Shared<T>* shared, Output<T> out) {
    Region<T> box = region<T>(low, BOX, out.shape);
    if (box.empty) return;
    Stride mine = {lane, WARP};
    Nearest<T> best = warp_nearest(nearest_ball(faces.balls, block, box.centre, mine));
    FaceList list = {shared->box[warp], &shared->box_count[warp], BOX_FACES};
    FaceList tile_list = {shared->tile[warp], &shared->tile_count[warp], TILE_FACES};
    if (lane == 0) *list.count = 0;
    warp_barrier();
    keep_balls(faces.balls, block, box, best, mine, list);
    warp_barrier();
    int listed = *list.count;
    FaceFilter<T> filter = {candidates(list.face, listed, BOX_FACES, block), listed <= BOX_FACES,
                            ball_rule(faces.balls, best, box), box.centre};
    for (int part = 0; part < 8; part++) {
        Voxel corner = octant(low, part, TILE);
        Region<T> tile = region<T>(corner, TILE, out.shape);
        if (!tile.empty) solve_tile(faces, filter, tile, corner, slack, lane, tile_list, out);
    }
}

// Fills a block with NaN, and with face 0.
template <typename T>
IMN_KERNEL_INLINE void invalidate_block(Voxel low, int index, Output<T> out) {
    for (int n = index; n < BLOCK * BLOCK * BLOCK; n += GROUP) {
        Voxel voxel = {low.x + n / (BLOCK * BLOCK), low.y + n / BLOCK % BLOCK, low.z + n % BLOCK};
        if (!out.has(voxel)) continue;
        out.sdf[out.at(voxel)] = not_a_number<T>();
        out.face[out.at(voxel)] = 0;
    }
}

// Lists the faces that can be the closest somewhere in a block, all threads of the group together.
template <typename T>
IMN_KERNEL_INLINE Candidates list_block(Faces<T> faces, Region<T> block, Thread me, IMN_SHARED Shared<T>* shared) {
    int warp = me.index / WARP, lane = me.index % WARP;
    Candidates all = {shared->block, int(faces.count), true};
    Stride mine = {me.index, GROUP};
    Nearest<T> best = warp_nearest(nearest_ball(faces.balls, all, block.centre, mine));
    if (lane == 0) {
        shared->squared[warp] = best.squared;
        shared->nearest[warp] = best.face;
    }
    if (me.index == 0) shared->block_count = 0;
    group_barrier();
    for (int w = 0; w < WARPS; w++) {
        Nearest<T> other = {shared->squared[w], shared->nearest[w]};
        best = nearer(best, other);
    }
    keep_balls(faces.balls, all, block, best, mine, FaceList{shared->block, &shared->block_count, BLOCK_FACES});
    group_barrier();
    return candidates(shared->block, shared->block_count, BLOCK_FACES, all);
}

// One group a block of a batch item, one warp a box of it. An item that is not valid gets NaN. `faces` and `out` are
// those of the whole batch.
template <typename T>
IMN_KERNEL_INLINE void solve_block(Faces<T> faces, const IMN_DEVICE T* slacks, const IMN_DEVICE int* valid,
                                   Output<T> out, Thread me, IMN_SHARED Shared<T>* shared) {
    int across_y = (out.shape.y + BLOCK - 1) / BLOCK, across_z = (out.shape.z + BLOCK - 1) / BLOCK;
    int blocks = (out.shape.x + BLOCK - 1) / BLOCK * across_y * across_z;
    Integer item = me.group / blocks;
    int block = int(me.group % blocks);
    Voxel low = {block / (across_y * across_z) * BLOCK, block / across_z % across_y * BLOCK, block % across_z * BLOCK};
    out.sdf += item * out.shape.size();
    out.face += item * out.shape.size();
    if (!valid[item]) {
        invalidate_block(low, me.index, out);
        return;
    }
    faces.triangles += TRIANGLE_FIELDS * faces.count * item;
    faces.balls += BALL_FIELDS * faces.count * item;
    Candidates left = list_block(faces, region<T>(low, BLOCK, out.shape), me, shared);
    int warp = me.index / WARP, lane = me.index % WARP;
    solve_box(faces, left, octant(low, warp, BOX), slacks[item], warp, lane, shared, out);
}

// What the gradient is made from, of the whole batch. `first` says which corner of each face is its triangle's a.
template <typename T>
struct GradientInput {
    const IMN_DEVICE T* grad;
    const IMN_DEVICE T* triangles;
    const IMN_DEVICE Integer* faces;
    const IMN_DEVICE int* first;
    const IMN_DEVICE T* slack;
    const IMN_DEVICE T* sdf;
    const IMN_DEVICE int* face;
    Integer batch, vertex_count, face_count;
    Shape shape;
};

// Adds a face's sums, one vector a corner in the order of its triangle, to the item's result (V, 3).
template <typename T>
IMN_KERNEL_INLINE void add_corners(const IMN_LOCAL GradientInput<T>& in, Integer item, Integer face,
                                   const IMN_LOCAL Vec3<T>* sums, IMN_DEVICE T* result) {
    int first = in.first[item * in.face_count + face];
    for (int k = 0; k < 3; k++) {
        IMN_DEVICE T* to = result + 3 * vertex_of(in.faces, face, (first + k) % 3, in.vertex_count);
        add_to(to, sums[k].x);
        add_to(to + 1, sums[k].y);
        add_to(to + 2, sums[k].z);
    }
}

// One voxel: where it is, and what it holds.
template <typename T>
struct Sample {
    Vec3<T> point;
    T sdf, grad;
};

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

// One thread a run of voxels along Z: adds their shares to the result (B, V, 3), once for each face that it meets.
template <typename T>
IMN_KERNEL_INLINE void differentiate_run(GradientInput<T> in, IMN_DEVICE T* result, Thread me) {
    Shape shape = in.shape;
    Integer runs = (shape.z + RUN - 1) / RUN, i = me.group * GROUP + me.index;
    Integer row = i / runs, item = row / (Integer(shape.x) * shape.y);
    if (item >= in.batch) return;
    int x = int(row / shape.y % shape.x), y = int(row % shape.y), z = int(i % runs) * RUN;
    int met = -1;  // the face that the sums are of
    Vec3<T> sums[3];
    Triangle<T> t;
    result += 3 * in.vertex_count * item;
    for (int k = z; k < minimum(z + RUN, shape.z); k++) {
        Integer at = row * shape.z + k;
        if (in.grad[at] == T(0)) continue;
        int closest = minimum(maximum(in.face[at], 0), int(in.face_count) - 1);  // nothing is read out of bounds
        if (closest != met) {
            if (met >= 0) add_corners(in, item, met, sums, result);
            met = closest;
            t = load_triangle(in.triangles, item * in.face_count + met);
            for (int c = 0; c < 3; c++) sums[c] = {T(0), T(0), T(0)};
        }
        Vec3<T> point = {coordinate<T>(2 * x, shape.x), coordinate<T>(2 * y, shape.y), coordinate<T>(2 * k, shape.z)};
        add_shares(t, Sample<T>{point, in.sdf[at], in.grad[at]}, in.slack[item] / 4, sums);
    }
    if (met >= 0) add_corners(in, item, met, sums, result);
}

}  // namespace imn
