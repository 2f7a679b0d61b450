// The voxel centres of a grid in normalised coordinates, and tiles of voxels.
#pragma once

#include <ATen/ATen.h>

#include <vector>

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

constexpr int64_t SIDE = 4;  // voxels along a tile

// A span of voxel centres along one axis: its middle and half its extent.
struct Span {
    double centre, half;
};

// One axis cut into tiles, the last of which may be shorter.
template <typename T>
struct Tiles {
    int64_t count;
    std::vector<double> centre;  // of each tile
    std::vector<T> offset;       // of each of its voxels from there, the last repeated to SIDE
    T half = 0;                  // of the widest

    explicit Tiles(const std::vector<double>& axis) : count((axis.size() + SIDE - 1) / SIDE), axis_(axis) {
        for (int64_t t = 0; t < count; t++) {
            Span one = span(t, t + 1);
            centre.push_back(one.centre), half = std::max(half, T(one.half));
            for (int64_t i = t * SIDE; i < (t + 1) * SIDE; i++)
                offset.push_back(T(axis[std::min(i, size() - 1)] - centre[t]));
        }
    }
    int64_t size() const { return axis_.size(); }

    // The voxels of the tiles [first, last).
    Span span(int64_t first, int64_t last) const {
        double low = axis_[first * SIDE], high = axis_[std::min(last * SIDE, size()) - 1];
        return {(high + low) / 2, (high - low) / 2};
    }

private:
    const std::vector<double>& axis_;
};

}  // namespace imn
