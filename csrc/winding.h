// Inside or outside: signed crossings of a mesh with the grid's columns along Z.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "crossing.h"
#include "faces.h"

namespace imn {

// Voxel coordinates of a vertex are scale * vertex + shift.
struct VoxelTransform {
    double scale[3], shift[3];
};

// The vertices in fixed point along X and Y, and how many bits of it are the fraction.
struct FixedVertices {
    std::vector<Fixed> vertex;
    int bits;
};

template <typename T>
FixedVertices fix_vertices(const Mesh<T>& mesh, const VoxelTransform& to_voxels, const int64_t* shape) {
    auto voxel = [&](int64_t v, int a) { return mesh.vertices[3 * v + a] * to_voxels.scale[a] + to_voxels.shift[a]; };
    double reach = double(std::max(shape[0], shape[1]));
    for (int64_t i = 0; i < 3 * mesh.face_count; i++)
        reach = std::max({reach, std::abs(voxel(mesh.faces[i], 0)), std::abs(voxel(mesh.faces[i], 1))});
    int bits = fraction_bits(reach);
    std::vector<Fixed> vertex(mesh.vertex_count);
    for (int64_t v = 0; v < mesh.vertex_count; v++)
        vertex[v] = {snap(voxel(v, 0), bits), snap(voxel(v, 1), bits), voxel(v, 2)};
    return {std::move(vertex), bits};
}

// Adds one face's crossings with the columns of the slab [x0, x1) to `changes`, and marks the columns it crosses.
// `changes` starts at the grid's first voxel, `crossed` at the slab's first column.
inline void cross_slab(const Fixed* corner[3], int bits, const int64_t* shape, int64_t x0, int64_t x1, int8_t* changes,
                       int8_t* crossed) {
    const Fixed &a = *corner[0], &b = *corner[1], &c = *corner[2];
    Columns along_x = columns(a.x, b.x, c.x, x1, bits);
    Columns along_y = columns(a.y, b.y, c.y, shape[1], bits);
    for (int64_t x = std::max(x0, along_x.low); x < along_x.high; x++)
        for (int64_t y = along_y.low; y < along_y.high; y++) {
            Crossing at = crossing(a, b, c, x, y, shape[2], bits);
            if (at.change == 0 || at.voxel == shape[2]) continue;
            changes[(x * shape[1] + y) * shape[2] + at.voxel] += at.change;
            crossed[(x - x0) * shape[1] + y] = 1;
        }
}

// A column's changes of the winding number -> whether it is not 0. Counts are modulo 256, deeper than meshes overlap.
inline void sum_column(int8_t* column, int64_t size) {
    int8_t winding = 0;
    for (int64_t k = 0; k < size; k++) {
        winding = int8_t(winding + column[k]);
        column[k] = winding != 0;
    }
}

// inside (X, Y, Z): 1 where the winding number is not zero, otherwise 0. The vertices must be finite.
template <typename T>
void inside_mask(const Mesh<T>& mesh, const VoxelTransform& to_voxels, const int64_t* shape, int8_t* inside) {
    FixedVertices fixed = fix_vertices(mesh, to_voxels, shape);
    int64_t plane = shape[1] * shape[2];
    // Threads own disjoint slabs along X, a few each, so that one full of faces holds up no other.
    int64_t slab = std::max<int64_t>(1, shape[0] / (4 * at::get_num_threads()));
    at::parallel_for(0, (shape[0] + slab - 1) / slab, 1, [&](int64_t begin, int64_t end) {
        int64_t x0 = begin * slab, x1 = std::min(shape[0], end * slab);
        std::vector<int8_t> crossed((x1 - x0) * shape[1]);
        std::fill(inside + x0 * plane, inside + x1 * plane, int8_t(0));
        for (int64_t f = 0; f < mesh.face_count; f++) {
            const Fixed* corner[3];
            for (int k = 0; k < 3; k++) corner[k] = &fixed.vertex[mesh.faces[3 * f + k]];
            cross_slab(corner, fixed.bits, shape, x0, x1, inside, crossed.data());
        }
        for (int64_t i = 0; i < (x1 - x0) * shape[1]; i++)
            if (crossed[i]) sum_column(inside + x0 * plane + i * shape[2], shape[2]);
    });
}

}  // namespace imn
