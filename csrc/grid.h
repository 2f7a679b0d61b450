// The voxel centres of a grid in normalised coordinates, and boxes of voxels.
#pragma once

#include <ATen/ATen.h>

#include <vector>

#include "triangle.h"

namespace imn {

struct Grid {
    int64_t shape[3];
    std::vector<double> axis[3];

    explicit Grid(at::IntArrayRef sizes) {
        for (int a = 0; a < 3; a++) {
            shape[a] = sizes[a];
            for (int64_t i = 0; i < sizes[a]; i++) axis[a].push_back(-1 + 2 * double(i) / double(sizes[a] - 1));
        }
    }
    int64_t size() const { return shape[0] * shape[1] * shape[2]; }
};

// The voxels [low, high) along each axis.
struct Box {
    int64_t low[3], high[3];

    // The box's sub-box of the given side at `corner`, clipped.
    Box part(int64_t i, int64_t j, int64_t k, int64_t side) const {
        return {{i, j, k}, {std::min(high[0], i + side), std::min(high[1], j + side), std::min(high[2], k + side)}};
    }
    // The middle and half the extent of the voxel centres along one axis.
    double centre(const Grid& grid, int a) const { return (grid.axis[a][low[a]] + grid.axis[a][high[a] - 1]) / 2; }
    double half(const Grid& grid, int a) const { return (grid.axis[a][high[a] - 1] - grid.axis[a][low[a]]) / 2; }

    // Calls visit(sub-box) for all sub-boxes of a side.
    template <typename Visit>
    void split(int64_t side, Visit visit) const {
        for (int64_t i = low[0]; i < high[0]; i += side)
            for (int64_t j = low[1]; j < high[1]; j += side)
                for (int64_t k = low[2]; k < high[2]; k += side) visit(part(i, j, k, side));
    }
};

}  // namespace imn
