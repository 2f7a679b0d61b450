// The pairs of faces that cross or touch, on the CPU: a tree of boxes finds who may, `meeting.h` decides.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "boxes.h"
#include "checks.h"
#include "meeting.h"

namespace {

typedef std::pair<int64_t, int64_t> Pair;

constexpr int64_t LARGEST_WHOLE = 1 << 24;  // in size, so that `meeting.h` is exact
constexpr int64_t FACES_AT_ONCE = 256;

std::vector<imn::WholeTriangle> triangles_of(const at::Tensor& vertices, const at::Tensor& faces) {
    const int64_t* point = vertices.const_data_ptr<int64_t>();
    for (int64_t i = 0; i < vertices.numel(); i++)
        TORCH_CHECK_VALUE(std::abs(point[i]) <= LARGEST_WHOLE, "vertices: wanted whole numbers up to ", LARGEST_WHOLE,
                          " in size, found ", point[i]);
    const int64_t* face = faces.const_data_ptr<int64_t>();
    std::vector<imn::WholeTriangle> triangles(faces.size(0));
    for (size_t f = 0; f < triangles.size(); f++) {
        for (int k = 0; k < 3; k++) {
            const int64_t vertex = face[3 * f + k];
            triangles[f].vertex[k] = vertex;
            triangles[f].corner[k] = {point[3 * vertex], point[3 * vertex + 1], point[3 * vertex + 2]};
        }
    }
    return triangles;
}

imn::BoxTree tree_of(const std::vector<imn::WholeTriangle>& triangles) {
    std::vector<imn::AxisBox> boxes;
    boxes.reserve(triangles.size());
    for (const imn::WholeTriangle& triangle : triangles) {
        imn::Vec3<double> corner[3];
        for (int k = 0; k < 3; k++) {
            const imn::Whole p = triangle.corner[k];
            corner[k] = {double(p.x), double(p.y), double(p.z)};
        }
        boxes.push_back(imn::box_around(corner[0], corner[1], corner[2]));
    }
    return imn::BoxTree(std::move(boxes));
}

at::Tensor crossing_pairs(const at::Tensor& vertices, const at::Tensor& faces, const at::Tensor& chosen) {
    TORCH_CHECK_VALUE(vertices.dim() == 2 && vertices.size(1) == 3, "vertices: wanted shape (V, 3), found ",
                      vertices.sizes());
    TORCH_CHECK_TYPE(vertices.scalar_type() == at::kLong, "vertices: wanted int64, found ", vertices.scalar_type());
    const auto corners = faces.contiguous();
    imn::check_faces(corners, vertices.size(0));
    imn::check_sizes(chosen, {faces.size(0)}, "chosen");
    const auto wanted_faces = chosen.contiguous();
    const bool* wanted = wanted_faces.const_data_ptr<bool>();
    const std::vector<imn::WholeTriangle> triangles = triangles_of(vertices.contiguous(), corners);
    const imn::BoxTree tree = tree_of(triangles);
    std::vector<int64_t> rows;
    for (int64_t f = 0; f < chosen.size(0); f++)
        if (wanted[f]) rows.push_back(f);
    // Each block of faces has its own list, so that the order hangs on no thread.
    const int64_t count = int64_t(rows.size()), blocks = (count + FACES_AT_ONCE - 1) / FACES_AT_ONCE;
    std::vector<std::vector<Pair>> found(blocks);
    at::parallel_for(0, blocks, 1, [&](int64_t first, int64_t last) {
        for (int64_t block = first; block < last; block++) {
            for (int64_t at = block * FACES_AT_ONCE; at < std::min(count, (block + 1) * FACES_AT_ONCE); at++) {
                const int64_t f = rows[at];
                if (!has_area(triangles[f])) found[block].emplace_back(f, f);
                tree.touching(tree.box(f), [&](int64_t other) {
                    if (other == f || (wanted[other] && other < f)) return;
                    const Pair pair = std::minmax(f, other);
                    if (meet(triangles[pair.first], triangles[pair.second])) found[block].push_back(pair);
                });
            }
        }
    });
    std::vector<Pair> all;
    for (const auto& part : found) all.insert(all.end(), part.begin(), part.end());
    std::sort(all.begin(), all.end());
    auto result = at::empty({int64_t(all.size()), 2}, faces.options());
    int64_t* pair = result.mutable_data_ptr<int64_t>();
    for (size_t k = 0; k < all.size(); k++) {
        pair[2 * k] = all[k].first;
        pair[2 * k + 1] = all[k].second;
    }
    return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(implicitmeshnet, CPU, library) { library.impl("crossing_pairs", crossing_pairs); }
