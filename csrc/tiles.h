// One axis of a grid cut into tiles of four voxels: the smallest boxes that the search culls faces for.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace imn {

constexpr int64_t SIDE = 4;  // voxels along a tile

// A span of voxel centres along one axis: its middle and half its extent.
struct Span {
    double centre, half;
};

// One axis cut into tiles, the last of which may be shorter. It refers to the axis, which must outlive it.
template <typename T>
struct Tiles {
    int64_t count;
    std::vector<double> centre;  // of each tile
    std::vector<T> offset;       // from there to each of the tile's voxels; a shorter tile repeats its last
    T half = 0;                  // half the extent of the widest tile

    explicit Tiles(const std::vector<double>& axis) : count((axis.size() + SIDE - 1) / SIDE), axis_(axis) {
        for (int64_t t = 0; t < count; t++) {
            Span one = span(t, t + 1);
            centre.push_back(one.centre);
            half = std::max(half, T(one.half));
            for (int64_t i = t * SIDE; i < (t + 1) * SIDE; i++)
                offset.push_back(T(axis[std::min(i, size() - 1)] - centre[t]));
        }
    }
    int64_t size() const { return axis_.size(); }

    // The voxels of the tiles [first, last).
    Span span(int64_t first, int64_t last) const {
        double low = axis_[first * SIDE];
        double high = axis_[std::min(last * SIDE, size()) - 1];
        return {(high + low) / 2, (high - low) / 2};
    }

private:
    const std::vector<double>& axis_;
};

}  // namespace imn
