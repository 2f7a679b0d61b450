// A tree of axis-aligned boxes around triangles: which boxes touch another, and which may hold the closest triangle.
//
// Each inner node's triangles are halved at the median of their boxes' centres along the axis where these spread most.
// Nodes stand in preorder: a node's first child follows it directly.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "triangle.h"

namespace imn {

struct AxisBox {
    double low[3], high[3];

    void include(const AxisBox& other) {
        for (int a = 0; a < 3; a++) {
            low[a] = std::min(low[a], other.low[a]);
            high[a] = std::max(high[a], other.high[a]);
        }
    }

    bool touches(const AxisBox& other) const {
        bool all = true;
        for (int a = 0; a < 3; a++) all &= (low[a] <= other.high[a]) & (other.low[a] <= high[a]);
        return all;
    }

    double squared_distance(Vec3<double> p) const {
        const double at[3] = {p.x, p.y, p.z};
        double sum = 0;
        for (int a = 0; a < 3; a++) {
            double beyond = std::max(std::max(low[a] - at[a], at[a] - high[a]), 0.0);
            sum += beyond * beyond;
        }
        return sum;
    }

    double twice_centre(int axis) const { return low[axis] + high[axis]; }
};

inline AxisBox box_around(Vec3<double> a, Vec3<double> b, Vec3<double> c) {
    return {{std::min({a.x, b.x, c.x}), std::min({a.y, b.y, c.y}), std::min({a.z, b.z, c.z})},
            {std::max({a.x, b.x, c.x}), std::max({a.y, b.y, c.y}), std::max({a.z, b.z, c.z})}};
}

class BoxTree {
public:
    explicit BoxTree(std::vector<AxisBox> boxes) : boxes_(std::move(boxes)), order_(boxes_.size()) {
        std::iota(order_.begin(), order_.end(), 0);
        nodes_.reserve(boxes_.size() + 1);
        if (!boxes_.empty()) grow(0, int32_t(boxes_.size()));
    }

    const AxisBox& box(int64_t triangle) const { return boxes_[triangle]; }

    // Calls visit(triangle) for each triangle whose box touches the given one.
    template <typename Visit>
    void touching(const AxisBox& box, Visit visit) const {
        int32_t stack[DEEPEST];
        int depth = 0;
        if (!nodes_.empty()) stack[depth++] = 0;
        while (depth) {
            const int32_t at = stack[--depth];
            const Node& node = nodes_[at];
            if (!node.box.touches(box)) continue;
            if (node.second) {
                stack[depth++] = node.second;
                stack[depth++] = at + 1;
                continue;
            }
            for (int32_t k = node.begin; k < node.end; k++)
                if (boxes_[order_[k]].touches(box)) visit(order_[k]);
        }
    }

    // Calls visit(triangle) for triangles that may be closer to p than `squared`, which visit lowers, nearest boxes
    // first.
    template <typename Visit>
    void closest(Vec3<double> p, double& squared, Visit visit) const {
        struct Entry {
            int32_t node;
            double squared;
        } stack[DEEPEST];
        int depth = 0;
        if (!nodes_.empty()) stack[depth++] = {0, 0.0};
        while (depth) {
            const Entry entry = stack[--depth];
            if (entry.squared >= squared) continue;
            const Node& node = nodes_[entry.node];
            if (!node.second) {
                for (int32_t k = node.begin; k < node.end; k++)
                    if (boxes_[order_[k]].squared_distance(p) < squared) visit(order_[k]);
                continue;
            }
            Entry near = {entry.node + 1, nodes_[entry.node + 1].box.squared_distance(p)};
            Entry far = {node.second, nodes_[node.second].box.squared_distance(p)};
            if (far.squared < near.squared) std::swap(near, far);
            stack[depth++] = far;
            stack[depth++] = near;
        }
    }

private:
    static constexpr int32_t LEAF = 4;      // triangles at most
    static constexpr int DEEPEST = 2 * 34;  // halves of 2^31 triangles, two entries each

    struct Node {
        AxisBox box;
        int32_t begin, end;  // of its triangles in order_
        int32_t second;      // its second child, 0 for a leaf
    };

    std::vector<AxisBox> boxes_;
    std::vector<int32_t> order_;
    std::vector<Node> nodes_;

    int32_t grow(int32_t begin, int32_t end) {
        const int32_t at = int32_t(nodes_.size());
        AxisBox box = boxes_[order_[begin]];
        for (int32_t k = begin + 1; k < end; k++) box.include(boxes_[order_[k]]);
        nodes_.push_back({box, begin, end, 0});
        if (end - begin <= LEAF) return at;
        const int axis = widest(begin, end);
        const int32_t middle = begin + (end - begin) / 2;
        std::nth_element(order_.begin() + begin, order_.begin() + middle, order_.begin() + end,
                         [this, axis](int32_t one, int32_t other) {
                             const double first = boxes_[one].twice_centre(axis);
                             const double second = boxes_[other].twice_centre(axis);
                             return first < second || (first == second && one < other);
                         });
        grow(begin, middle);
        nodes_[at].second = grow(middle, end);
        return at;
    }

    // The axis along which the centres of boxes spread most.
    int widest(int32_t begin, int32_t end) const {
        double spread[3];
        for (int axis = 0; axis < 3; axis++) {
            double low = boxes_[order_[begin]].twice_centre(axis), high = low;
            for (int32_t k = begin + 1; k < end; k++) {
                const double centre = boxes_[order_[k]].twice_centre(axis);
                low = std::min(low, centre);
                high = std::max(high, centre);
            }
            spread[axis] = high - low;
        }
        return int(std::max_element(spread, spread + 3) - spread);
    }
};

}  // namespace imn
