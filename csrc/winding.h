// Inside or outside: signed crossings of a mesh with the grid's columns along Z.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "crossing.h"

namespace imn {

// inside (X, Y, Z): 1 where the winding number is not zero. Threads own disjoint slabs along X. The vertices must be
// finite; voxel coordinates are scale * vertex + shift.
template <typename T>
void inside_mask(const T* vertices, const double* scale, const double* shift, int64_t vertex_count,
                 const int64_t* faces, int64_t face_count, const int64_t* shape, int8_t* inside) {
    auto voxel = [&](int64_t v, int a) { return vertices[3 * v + a] * scale[a] + shift[a]; };
    double reach = double(std::max(shape[0], shape[1]));
    for (int64_t i = 0; i < 3 * face_count; i++)
        reach = std::max({reach, std::abs(voxel(faces[i], 0)), std::abs(voxel(faces[i], 1))});
    int bits = fraction_bits(reach);
    std::vector<Fixed> fixed(vertex_count);
    for (int64_t v = 0; v < vertex_count; v++)
        fixed[v] = {snap(voxel(v, 0), bits), snap(voxel(v, 1), bits), voxel(v, 2)};
    int64_t plane = shape[1] * shape[2];
    int64_t slab = std::max<int64_t>(1, shape[0] / (4 * at::get_num_threads()));
    at::parallel_for(0, (shape[0] + slab - 1) / slab, 1, [&](int64_t begin, int64_t end) {
        int64_t x0 = begin * slab, x1 = std::min(shape[0], end * slab);
        std::vector<int8_t> crossed((x1 - x0) * shape[1]);
        std::fill(inside + x0 * plane, inside + x1 * plane, int8_t(0));
        for (int64_t f = 0; f < face_count; f++) {
            const Fixed &a = fixed[faces[3 * f]], &b = fixed[faces[3 * f + 1]], &c = fixed[faces[3 * f + 2]];
            Columns along_x = columns(a.x, b.x, c.x, x1, bits), along_y = columns(a.y, b.y, c.y, shape[1], bits);
            for (int64_t x = std::max(x0, along_x.low); x < along_x.high; x++)
                for (int64_t y = along_y.low; y < along_y.high; y++) {
                    Crossing at = crossing(a, b, c, x, y, shape[2], bits);
                    if (at.change == 0 || at.voxel == shape[2]) continue;
                    inside[(x * shape[1] + y) * shape[2] + at.voxel] += at.change;
                    crossed[(x - x0) * shape[1] + y] = 1;
                }
        }
        for (int64_t i = 0; i < (x1 - x0) * shape[1]; i++) {
            int8_t winding = 0, *column = inside + x0 * plane + i * shape[2];  // modulo 256, deeper than meshes overlap
            for (int64_t k = 0; crossed[i] && k < shape[2]; k++) {
                winding = int8_t(winding + column[k]);
                column[k] = winding != 0;
            }
        }
    });
}

}  // namespace imn
