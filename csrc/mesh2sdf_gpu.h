// The kernels of mesh2sdf and voxelize, for CUDA and Metal alike: each a function of the thread that runs it.
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
IMN_INLINE T epsilon_of() { return sizeof(T) == 8 ? T(2.220446049250313e-16) : T(1.1920929e-07); }

struct Shape {
    int x, y, z;

    IMN_INLINE Integer size() const { return Integer(x) * y * z; }
};

template <typename T>
IMN_INLINE Vec3<T> load_vertex(const IMN_DEVICE T* vertices, Integer v) {
    return {vertices[3 * v], vertices[3 * v + 1], vertices[3 * v + 2]};
}

// A corner's vertex, clamped so that no index is read out of bounds; the caller marks such meshes as not valid.
IMN_INLINE Integer vertex_of(const IMN_DEVICE Integer* faces, Integer face, int corner, Integer vertex_count) {
    return minimum(maximum(faces[3 * face + corner], Integer(0)), vertex_count - 1);
}

template <typename T>
IMN_INLINE Vec3<Real> to_real(Vec3<T> v) { return {Real(v.x), Real(v.y), Real(v.z)}; }

template <typename T>
IMN_INLINE void store(IMN_DEVICE T* to, Vec3<Real> v) { to[0] = T(v.x), to[1] = T(v.y), to[2] = T(v.z); }

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
    return {{a.x, a.y, a.z}, {a.w, b.x, b.y}, {b.z, b.w, c.x}, {c.y, c.z, c.w},
            {d.x, d.y, d.z, d.w}, {e.x, e.y, e.z, e.w}};
}

// One thread a face of a batch item: its triangle, its ball, whose radius grows by `slack`, and which corner is its a.
template <typename T>
IMN_INLINE void prepare(const IMN_DEVICE T* vertices, const IMN_DEVICE Integer* faces, const IMN_DEVICE T* slack,
                        IMN_DEVICE T* triangles, IMN_DEVICE T* balls, IMN_DEVICE int* first, Integer batch,
                        Integer vertex_count, Integer face_count, Thread me) {
    Integer i = me.group * GROUP + me.index, item = i / face_count;
    if (item >= batch) return;
    Vec3<Real> corner[3];
    for (int k = 0; k < 3; k++)
        corner[k] = to_real(load_vertex(vertices + 3 * vertex_count * item,
                                        vertex_of(faces, i % face_count, k, vertex_count)));
    int a = longest_edge(corner);
    Triangle<Real> t = make_triangle(corner[a], corner[(a + 1) % 3], corner[(a + 2) % 3],
                                     epsilon_of<Real>());
    Ball<Real> ball = make_ball(t);
    IMN_DEVICE T* to = triangles + TRIANGLE_FIELDS * i;
    store(to, t.foot), store(to + 3, t.x), store(to + 6, t.y), store(to + 9, t.z);
    store(to + 12, t.left), store(to + 16, t.right);
    store(balls + BALL_FIELDS * i, ball.centre);
    balls[BALL_FIELDS * i + 3] = T(ball.radius) + slack[item];
    first[i] = a;
}

template <typename T>
IMN_INLINE Fixed snap_vertex(Vec3<T> v, Shape shape, bool normalised, int bits) {
    Vec3<Real> p = to_real(v);
    if (normalised)
        p = {(p.x + 1) * (Real(shape.x - 1) / 2), (p.y + 1) * (Real(shape.y - 1) / 2),
             (p.z + 1) * (Real(shape.z - 1) / 2)};
    return {snap(p.x, bits), snap(p.y, bits), p.z};
}

// One warp a face of a batch item: adds its crossings with the grid's columns to changes (B, X, Y, Z). `reach` (B,).
template <typename T>
IMN_KERNEL_INLINE void cross_face(const IMN_DEVICE T* vertices, const IMN_DEVICE Integer* faces,
                                  const IMN_DEVICE T* reach, IMN_DEVICE int* changes,
                                  Integer batch, Integer vertex_count, Integer face_count, Shape shape, bool normalised,
                                  Thread me) {
    Integer i = me.group * WARPS + me.index / WARP, item = i / face_count;
    if (item >= batch) return;
    int bits = fraction_bits(Real(reach[item]));
    Fixed corner[3];
    for (int k = 0; k < 3; k++)
        corner[k] = snap_vertex(load_vertex(vertices + 3 * vertex_count * item,
                                            vertex_of(faces, i % face_count, k, vertex_count)),
                                shape, normalised, bits);
    Columns along_x = columns(corner[0].x, corner[1].x, corner[2].x, shape.x, bits);
    Columns along_y = columns(corner[0].y, corner[1].y, corner[2].y, shape.y, bits);
    Integer width = maximum(along_y.high - along_y.low, Integer(0)), count = (along_x.high - along_x.low) * width;
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

IMN_KERNEL_INLINE void append(IMN_SHARED int* list, IMN_SHARED int* count, int capacity, int face) {
    int place = take_next(count);
    if (place < capacity) list[place] = face;
}

// A box of voxels [low, high), clipped, in normalised coordinates.
template <typename T>
struct Region {
    Vec3<T> centre, half;
    bool empty;
};

template <typename T>
IMN_INLINE T coordinate(int twice, int size) { return T(twice - (size - 1)) / T(size - 1); }  // of voxel twice / 2

template <typename T>
IMN_INLINE Region<T> region(int x, int y, int z, int side, Shape shape) {
    int high_x = minimum(x + side, shape.x) - 1, high_y = minimum(y + side, shape.y) - 1;
    int high_z = minimum(z + side, shape.z) - 1;
    return {{coordinate<T>(x + high_x, shape.x), coordinate<T>(y + high_y, shape.y),
             coordinate<T>(z + high_z, shape.z)},
            {T(high_x - x) / T(shape.x - 1), T(high_y - y) / T(shape.y - 1), T(high_z - z) / T(shape.z - 1)},
            high_x < x || high_y < y || high_z < z};
}

// What a group's threads share.
template <typename T>
struct Shared {
    T squared[WARPS];
    int nearest[WARPS], block_count, box_count[WARPS], tile_count[WARPS];
    int block[BLOCK_FACES], box[WARPS][BOX_FACES], tile[WARPS][TILE_FACES];
};

// The ball nearest to a point among every `step`-th candidate.
template <typename T>
IMN_INLINE Nearest<T> nearest_ball(const IMN_DEVICE T* balls, Candidates from, Vec3<T> point, int start, int step) {
    Nearest<T> best = {T(3e38), 0x7fffffff};
    for (int i = start; i < from.count; i += step) {
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
IMN_KERNEL_INLINE void keep_balls(const IMN_DEVICE T* balls, Candidates from, Region<T> region, Nearest<T> best,
                                  int start, int step, IMN_SHARED int* list, IMN_SHARED int* count, int capacity) {
    BallRule<T> rule = make_ball_rule(load_ball(balls, best.face).centre, best.squared, region.half);
    for (int i = start; i < from.count; i += step) {
        int face = from.face(i);
        if (keeps(rule, region.centre, load_ball(balls, face))) append(list, count, capacity, face);
    }
}

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

// A warp's tile: its two voxels a lane against the faces that can be the closest somewhere in the tile, listed a few at
// a time.
template <typename T>
IMN_KERNEL_INLINE void solve_tile(const IMN_DEVICE T* triangles, const IMN_DEVICE T* balls,
                                  const IMN_LOCAL FaceFilter<T>& filter, Region<T> tile, int x, int y, int z, T slack,
                                  int lane, IMN_SHARED int* list, IMN_SHARED int* count, Output<T> out) {
    Candidates from = filter.from;
    Nearest<T> best = {T(3e38), 0x7fffffff};
    for (int n = lane; n < from.count; n += WARP) {
        int face = from.face(n);
        if (!passes(filter, balls, face)) continue;
        Vec3<T> offset = offset_from(triangles, face, tile.centre);
        best = nearer(best, Nearest<T>{dot(offset, offset), face});
    }
    best = warp_nearest(best);
    FaceRule<T> rule = make_face_rule(offset_from(triangles, best.face, tile.centre), best.squared, tile.half, slack);
    int i = x + lane / (TILE * TILE), j = y + lane / TILE % TILE, k = z + lane % TILE;  // and i + 2
    Vec3<T> point[2];
    Nearest<T> mine[2];
    for (int v = 0; v < 2; v++) {
        point[v] = {coordinate<T>(2 * (i + 2 * v), out.shape.x), coordinate<T>(2 * j, out.shape.y),
                    coordinate<T>(2 * k, out.shape.z)};
        mine[v] = {T(3e38), 0x7fffffff};
    }
    if (lane == 0) *count = 0;
    warp_barrier();
    for (int start = 0; start < from.count; start += WARP) {
        int n = start + lane;
        if (n < from.count) {
            int face = from.face(n);
            if (passes(filter, balls, face)) {
                Vec3<T> offset = offset_from(triangles, face, tile.centre);
                if (rule.keeps(offset, dot(offset, offset))) append(list, count, TILE_FACES, face);
            }
        }
        warp_barrier();
        int listed = *count;
        warp_barrier();
        if (listed <= TILE_FACES - WARP && start + WARP < from.count) continue;
        for (int m = 0; m < listed; m++) {
            Triangle<T> t = load_triangle(triangles, list[m]);
            for (int v = 0; v < 2; v++)
                mine[v] = nearer(mine[v], Nearest<T>{squared_distance(t, to_frame(t, point[v])), list[m]});
        }
        warp_barrier();
        if (lane == 0) *count = 0;
        warp_barrier();
    }
    for (int v = 0; v < 2; v++) {
        if (i + 2 * v >= out.shape.x || j >= out.shape.y || k >= out.shape.z) continue;
        Integer at = (Integer(i + 2 * v) * out.shape.y + j) * out.shape.z + k;
        T distance = square_root(mine[v].squared);
        out.sdf[at] = out.face[at] != 0 ? -distance : distance;
        out.face[at] = mine[v].face;
    }
}

// A warp's box: its list, then tile by tile.
template <typename T>
IMN_KERNEL_INLINE void solve_box(const IMN_DEVICE T* triangles, const IMN_DEVICE T* balls, Candidates block, int x,
                                 int y, int z, T slack, int warp, int lane, IMN_SHARED Shared<T>* shared,
                                 Output<T> out) {
    Region<T> box = region<T>(x, y, z, BOX, out.shape);
    if (box.empty) return;
    Nearest<T> best = warp_nearest(nearest_ball(balls, block, box.centre, lane, WARP));
    if (lane == 0) shared->box_count[warp] = 0;
    warp_barrier();
    keep_balls(balls, block, box, best, lane, WARP, shared->box[warp], &shared->box_count[warp], BOX_FACES);
    warp_barrier();
    int listed = shared->box_count[warp];
    FaceFilter<T> filter = {candidates(shared->box[warp], listed, BOX_FACES, block), listed <= BOX_FACES,
                      make_ball_rule(load_ball(balls, best.face).centre, best.squared, box.half), box.centre};
    for (int part = 0; part < 8; part++) {
        int i = x + (part / 4) * TILE, j = y + (part / 2 % 2) * TILE, k = z + (part % 2) * TILE;
        Region<T> tile = region<T>(i, j, k, TILE, out.shape);
        if (tile.empty) continue;
        solve_tile(triangles, balls, filter, tile, i, j, k, slack, lane, shared->tile[warp], &shared->tile_count[warp],
                   out);
    }
}

// One group a block of a batch item, one warp a box of it. An item that is not valid gets NaN.
template <typename T>
IMN_KERNEL_INLINE void solve_block(const IMN_DEVICE T* triangles, const IMN_DEVICE T* balls, const IMN_DEVICE T* slacks,
                                   const IMN_DEVICE int* valid, IMN_DEVICE T* sdf, IMN_DEVICE int* face,
                                   Integer face_count, Shape shape, Thread me, IMN_SHARED Shared<T>* shared) {
    int across_y = (shape.y + BLOCK - 1) / BLOCK, across_z = (shape.z + BLOCK - 1) / BLOCK;
    int blocks = (shape.x + BLOCK - 1) / BLOCK * across_y * across_z;
    Integer item = me.group / blocks;
    int block = int(me.group % blocks), warp = me.index / WARP, lane = me.index % WARP;
    int x = block / (across_y * across_z) * BLOCK, y = block / across_z % across_y * BLOCK;
    int z = block % across_z * BLOCK;
    Output<T> out = {sdf + item * shape.size(), face + item * shape.size(), shape};
    if (!valid[item]) {
        for (int voxel = me.index; voxel < BLOCK * BLOCK * BLOCK; voxel += GROUP) {
            int i = x + voxel / (BLOCK * BLOCK), j = y + voxel / BLOCK % BLOCK, k = z + voxel % BLOCK;
            Integer at = (Integer(i) * shape.y + j) * shape.z + k;
            if (i < shape.x && j < shape.y && k < shape.z) out.sdf[at] = not_a_number<T>(), out.face[at] = 0;
        }
        return;
    }
    triangles += TRIANGLE_FIELDS * face_count * item, balls += BALL_FIELDS * face_count * item;
    Candidates all = {shared->block, int(face_count), true};
    Region<T> whole = region<T>(x, y, z, BLOCK, shape);
    Nearest<T> best = warp_nearest(nearest_ball(balls, all, whole.centre, me.index, GROUP));
    if (lane == 0) shared->squared[warp] = best.squared, shared->nearest[warp] = best.face;
    if (me.index == 0) shared->block_count = 0;
    group_barrier();
    for (int w = 0; w < WARPS; w++) {
        Nearest<T> other = {shared->squared[w], shared->nearest[w]};
        best = nearer(best, other);
    }
    keep_balls(balls, all, whole, best, me.index, GROUP, shared->block, &shared->block_count, BLOCK_FACES);
    group_barrier();
    solve_box(triangles, balls, candidates(shared->block, shared->block_count, BLOCK_FACES, all),
              x + (warp / 4) * BOX, y + (warp / 2 % 2) * BOX, z + (warp % 2) * BOX, slacks[item], warp, lane, shared,
              out);
}

// Adds a face's sums, one vector a corner in the order of its triangle, to the result (V, 3).
template <typename T>
IMN_KERNEL_INLINE void add_corners(const IMN_DEVICE Integer* faces, Integer face, int first, Integer vertex_count,
                                   const IMN_LOCAL Vec3<T>* sums, IMN_DEVICE T* result) {
    for (int k = 0; k < 3; k++) {
        IMN_DEVICE T* to = result + 3 * vertex_of(faces, face, (first + k) % 3, vertex_count);
        add_to(to, sums[k].x), add_to(to + 1, sums[k].y), add_to(to + 2, sums[k].z);
    }
}

// Adds one voxel's shares -beta_k grad n to the sums; n = (p - q) / sdf or, on the surface itself, the face normal.
template <typename T>
IMN_INLINE void add_shares(const IMN_LOCAL Triangle<T>& t, Vec3<T> point, T sdf, T grad, T rounding,
                           IMN_LOCAL Vec3<T>* sums) {
    Vec3<T> local = to_frame(t, point), r = residual(t, local);
    Weights<T> beta = closest_weights(t, local);
    T length = square_root(dot(r, r));
    if (magnitude(sdf) <= rounding || length == T(0)) r = {T(0), T(0), sdf < T(0) ? T(-1) : T(1)}, length = T(1);
    Vec3<T> pull = ((sdf < T(0) ? grad : -grad) / length) * from_frame(t, r);
    sums[0] = sums[0] + (T(1) - beta.b - beta.c) * pull;
    sums[1] = sums[1] + beta.b * pull;
    sums[2] = sums[2] + beta.c * pull;
}

// One thread a run of voxels along Z: adds their shares to the result (B, V, 3), once for each face that it meets.
template <typename T>
IMN_KERNEL_INLINE void differentiate_run(const IMN_DEVICE T* grad, const IMN_DEVICE T* triangles,
                                         const IMN_DEVICE Integer* faces, const IMN_DEVICE int* first,
                                         const IMN_DEVICE T* slack, const IMN_DEVICE T* sdf,
                                         const IMN_DEVICE int* face, IMN_DEVICE T* result, Integer batch,
                                         Integer vertex_count, Integer face_count, Shape shape, Thread me) {
    Integer runs = (shape.z + RUN - 1) / RUN, i = me.group * GROUP + me.index;
    Integer row = i / runs, item = row / (Integer(shape.x) * shape.y);
    if (item >= batch) return;
    int x = int(row / shape.y % shape.x), y = int(row % shape.y), z = int(i % runs) * RUN, met = -1;
    Vec3<T> sums[3];
    Triangle<T> t;
    result += 3 * vertex_count * item;
    for (int k = z; k < minimum(z + RUN, shape.z); k++) {
        Integer at = row * shape.z + k;
        if (grad[at] == T(0)) continue;
        int closest = minimum(maximum(face[at], 0), int(face_count) - 1);  // nothing is read out of bounds
        if (closest != met) {
            if (met >= 0) add_corners(faces, met, first[item * face_count + met], vertex_count, sums, result);
            met = closest;
            t = load_triangle(triangles, item * face_count + met);
            for (int c = 0; c < 3; c++) sums[c] = {T(0), T(0), T(0)};
        }
        Vec3<T> point = {coordinate<T>(2 * x, shape.x), coordinate<T>(2 * y, shape.y), coordinate<T>(2 * k, shape.z)};
        add_shares(t, point, sdf[at], grad[at], slack[item] / 4, sums);
    }
    if (met >= 0) add_corners(faces, met, first[item * face_count + met], vertex_count, sums, result);
}

}  // namespace imn
