// The voxel centres of a grid in normalised coordinates.
#pragma once

#include <ATen/ATen.h>

#include <vector>

namespace imn {

struct Grid {
    int64_t shape[3];
    std::vector<double> axis[3];  // voxel i of n stands at -1 + 2 i / (n - 1)

    explicit Grid(at::IntArrayRef sizes) {
        for (int a = 0; a < 3; a++) {
            shape[a] = sizes[a];
            for (int64_t i = 0; i < sizes[a]; i++) axis[a].push_back(-1 + 2 * double(i) / double(sizes[a] - 1));
        }
    }
    int64_t size() const { return shape[0] * shape[1] * shape[2]; }
};

}  // namespace imn
