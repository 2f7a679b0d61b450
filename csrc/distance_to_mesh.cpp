// Signed distances of points from a closed mesh and the ways out of it, on the CPU: a tree of boxes finds the closest
// face, the closest point's feature tells the side (Baerentzen and Aanaes, IEEE TVCG 2005).
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "boxes.h"
#include "checks.h"

namespace {

typedef imn::Vec3<double> Point;

constexpr int64_t POINTS_AT_ONCE = 64;
constexpr double ON_SURFACE = 1e-6;  // relative to the largest face: no direction is taken from a smaller distance

double length_of(Point v) { return std::sqrt(dot(v, v)); }

Point unit(Point v) { return (1 / std::max(length_of(v), 1e-300)) * v; }

// The closest point of a triangle: its weights of the corners, exactly 0 for those that do not hold it.
struct Closest {
    Point offset;  // from it to the point in question
    double weight[3];
};

// By the regions of Ericson, Real-Time Collision Detection (2005), section 5.1.5.
Closest closest_point(Point p, Point a, Point b, Point c) {
    const Point ab = b - a, ac = c - a, ap = p - a, bp = p - b, cp = p - c;
    const double d1 = dot(ab, ap), d2 = dot(ac, ap);
    if (d1 <= 0 && d2 <= 0) return {ap, {1, 0, 0}};
    const double d3 = dot(ab, bp), d4 = dot(ac, bp);
    if (d3 >= 0 && d4 <= d3) return {bp, {0, 1, 0}};
    const double d5 = dot(ab, cp), d6 = dot(ac, cp);
    if (d6 >= 0 && d5 <= d6) return {cp, {0, 0, 1}};
    const double across_c = d1 * d4 - d3 * d2;
    if (across_c <= 0 && d1 >= 0 && d3 <= 0) {
        const double along = d1 == d3 ? 0 : d1 / (d1 - d3);
        return {ap - along * ab, {1 - along, along, 0}};
    }
    const double across_b = d5 * d2 - d1 * d6;
    if (across_b <= 0 && d2 >= 0 && d6 <= 0) {
        const double along = d2 == d6 ? 0 : d2 / (d2 - d6);
        return {ap - along * ac, {1 - along, 0, along}};
    }
    const double across_a = d3 * d6 - d5 * d4;
    if (across_a <= 0 && d4 >= d3 && d5 >= d6) {
        const double whole = (d4 - d3) + (d5 - d6), along = whole == 0 ? 0 : (d4 - d3) / whole;
        return {bp - along * (c - b), {0, 1 - along, along}};
    }
    const double total = across_a + across_b + across_c, v = across_b / total, w = across_c / total;
    return {ap - v * ab - w * ac, {1 - v - w, v, w}};
}

class ClosedMesh {
public:
    ClosedMesh(const at::Tensor& vertices, const at::Tensor& faces)
        : points_(vertices.const_data_ptr<double>()), faces_(faces.const_data_ptr<int64_t>()), count_(faces.size(0)),
          normals_(count_), at_vertices_(vertices.size(0), Point{0, 0, 0}), first_(vertices.size(0) + 1, 0),
          around_(3 * count_), tree_(boxes()) {
        for (int64_t i = 0; i < 3 * count_; i++) first_[faces_[i] + 1]++;
        for (size_t v = 1; v < first_.size(); v++) first_[v] += first_[v - 1];
        std::vector<int64_t> next(first_.begin(), first_.end() - 1);
        for (int64_t i = 0; i < 3 * count_; i++) around_[next[faces_[i]]++] = i / 3;
        for (int64_t f = 0; f < count_; f++) measure(f);
        for (Point& normal : at_vertices_) normal = unit(normal);
    }

    // The signed distance and the direction in which it grows.
    void solve(Point p, double* distance, double* outward) const {
        double squared = std::numeric_limits<double>::infinity();
        int64_t face = 0;
        Closest best = {{0, 0, 0}, {1, 0, 0}};
        tree_.closest(p, squared, [&](int64_t f) {
            const Closest found = closest_point(p, corner(f, 0), corner(f, 1), corner(f, 2));
            const double own = dot(found.offset, found.offset);
            if (own >= squared) return;
            squared = own;
            face = f;
            best = found;
        });
        const double length = std::sqrt(squared);
        Point way = normal_of(face, best.weight);
        const double side = dot(best.offset, way) < 0 ? -1.0 : 1.0;
        if (length > ON_SURFACE * largest_) way = (side / length) * best.offset;
        *distance = side * length;
        outward[0] = way.x;
        outward[1] = way.y;
        outward[2] = way.z;
    }

private:
    const double* points_;
    const int64_t* faces_;
    int64_t count_;
    double largest_ = 0;              // extent of a face
    std::vector<Point> normals_;      // of faces, unit vectors
    std::vector<Point> at_vertices_;  // likewise: of their faces, weighted by the faces' angles there
    std::vector<int64_t> first_;      // of each vertex's faces in around_
    std::vector<int64_t> around_;
    imn::BoxTree tree_;

    Point corner(int64_t face, int k) const {
        const double* p = points_ + 3 * faces_[3 * face + k];
        return {p[0], p[1], p[2]};
    }

    std::vector<imn::AxisBox> boxes() const {
        std::vector<imn::AxisBox> found;
        found.reserve(count_);
        for (int64_t f = 0; f < count_; f++) found.push_back(imn::box_around(corner(f, 0), corner(f, 1), corner(f, 2)));
        return found;
    }

    void measure(int64_t f) {
        normals_[f] = unit(cross(corner(f, 1) - corner(f, 0), corner(f, 2) - corner(f, 0)));
        for (int k = 0; k < 3; k++) {
            const Point onward = corner(f, (k + 1) % 3) - corner(f, k), back = corner(f, (k + 2) % 3) - corner(f, k);
            const double angle = std::atan2(length_of(cross(onward, back)), dot(onward, back));
            Point& sum = at_vertices_[faces_[3 * f + k]];
            sum = sum + angle * normals_[f];
            largest_ = std::max(largest_, length_of(onward));
        }
    }

    // The unit normal of what a closest point of these weights lies on: a face, an edge or a corner.
    Point normal_of(int64_t face, const double* weight) const {
        int zeros = 0, zero = 0, corner = 0;
        for (int k = 0; k < 3; k++) {
            if (weight[k] <= 1e-12) {
                zeros++;
                zero = k;
            } else {
                corner = k;
            }
        }
        if (zeros == 0) return normals_[face];
        if (zeros == 2) return at_vertices_[faces_[3 * face + corner]];
        const int64_t start = faces_[3 * face + (zero + 1) % 3], end = faces_[3 * face + (zero + 2) % 3];
        Point sum = {0, 0, 0};
        for (int64_t k = first_[start]; k < first_[start + 1]; k++) {
            const int64_t* own = faces_ + 3 * around_[k];
            if (own[0] == end || own[1] == end || own[2] == end) sum = sum + normals_[around_[k]];
        }
        return unit(sum);
    }
};

std::tuple<at::Tensor, at::Tensor> distance_to_mesh(const at::Tensor& points, const at::Tensor& vertices,
                                                    const at::Tensor& faces) {
    for (const auto& [tensor, name] : {std::pair(points, "points"), std::pair(vertices, "vertices")}) {
        TORCH_CHECK_VALUE(tensor.dim() == 2 && tensor.size(1) == 3, name, ": wanted shape (N, 3), found ",
                          tensor.sizes());
        TORCH_CHECK_TYPE(tensor.scalar_type() == at::kDouble, name, ": wanted float64, found ", tensor.scalar_type());
    }
    const auto places = points.contiguous(), own = vertices.contiguous(), corners = faces.contiguous();
    imn::check_faces(corners, own.size(0));
    const ClosedMesh mesh(own, corners);
    auto distance = at::empty({places.size(0)}, places.options());
    auto outward = at::empty({places.size(0), 3}, places.options());
    const double* p = places.const_data_ptr<double>();
    double* distances = distance.mutable_data_ptr<double>();
    double* ways = outward.mutable_data_ptr<double>();
    at::parallel_for(0, places.size(0), POINTS_AT_ONCE, [&](int64_t first, int64_t last) {
        for (int64_t k = first; k < last; k++)
            mesh.solve({p[3 * k], p[3 * k + 1], p[3 * k + 2]}, distances + k, ways + 3 * k);
    });
    return {distance, outward};
}

}  // namespace

TORCH_LIBRARY_IMPL(implicitmeshnet, CPU, library) { library.impl("distance_to_mesh", distance_to_mesh); }
