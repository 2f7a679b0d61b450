// Inside or outside: signed crossings of a mesh with the grid's columns along Z, from vertices in fixed point.
#pragma once

#include <ATen/Parallel.h>

#include <cmath>
#include <cstdint>
#include <vector>

namespace imn {

constexpr int FRACTION_BITS = 18;  // vertices are snapped to 2^-18 voxel, so that the edge functions are exact
constexpr double RANGE = 4096;     // and clamped to this many voxels around the origin

struct Fixed {
    int64_t x, y;
    double z;
    bool finite;
};

inline Fixed snap(double x, double y, double z) {
    auto fix = [](double value) {
        return static_cast<int64_t>(std::nearbyint(std::fmin(std::fmax(value, -RANGE), RANGE) * (1 << FRACTION_BITS)));
    };
    if (!(std::isfinite(x) && std::isfinite(y) && std::isfinite(z))) return {0, 0, 0, false};
    return {fix(x), fix(y), z, true};
}

// Twice the signed area of (a, b, p) and its sign after moving p by (eps, eps^2): never 0 but for a = b.
struct Edge {
    int64_t value;
    int sign;
};

inline Edge edge(const Fixed& a, const Fixed& b, int64_t x, int64_t y) {
    int64_t dx = b.x - a.x, dy = b.y - a.y, value = dx * (y - a.y) - dy * (x - a.x);
    int64_t decider = value != 0 ? value : (dy != 0 ? -dy : dx);
    return {value, (decider > 0) - (decider < 0)};
}

// Adds the crossings of one face with the columns of [x0, x1) to delta (X, Y, Z), at the first voxel at or above each.
inline void cross_columns(const Fixed& a, const Fixed& b, const Fixed& c, int64_t x0, int64_t x1, const int64_t* shape,
                          int8_t* delta) {
    constexpr int64_t unit = int64_t(1) << FRACTION_BITS;
    auto first = [](int64_t p, int64_t q, int64_t r) { return (std::min({p, q, r}) + unit - 1) >> FRACTION_BITS; };
    auto last = [](int64_t p, int64_t q, int64_t r) { return std::max({p, q, r}) >> FRACTION_BITS; };
    x0 = std::max(x0, first(a.x, b.x, c.x)), x1 = std::min(x1, last(a.x, b.x, c.x) + 1);
    int64_t y0 = std::max<int64_t>(0, first(a.y, b.y, c.y)), y1 = std::min(shape[1], last(a.y, b.y, c.y) + 1);
    for (int64_t x = x0; x < x1; x++)
        for (int64_t y = y0; y < y1; y++) {
            int64_t px = x << FRACTION_BITS, py = y << FRACTION_BITS;
            Edge bc = edge(b, c, px, py), ca = edge(c, a, px, py), ab = edge(a, b, px, py);
            int64_t area = bc.value + ca.value + ab.value;
            if (bc.sign != ca.sign || ca.sign != ab.sign || area == 0) continue;
            double z = a.z + (double(ca.value) * (b.z - a.z) + double(ab.value) * (c.z - a.z)) / double(area);
            double k = std::fmax(std::ceil(z), 0);
            if (k < double(shape[2])) delta[(x * shape[1] + y) * shape[2] + int64_t(k)] += area < 0 ? 1 : -1;
        }
}

// inside (X, Y, Z): 1 where the winding number is not zero. Threads own disjoint slabs along X.
template <typename T>
void inside_mask(const T* vertices, const double* scale, const double* shift, int64_t vertex_count,
                 const int64_t* faces, int64_t face_count, const int64_t* shape, int8_t* inside) {
    std::vector<Fixed> fixed(vertex_count);
    for (int64_t v = 0; v < vertex_count; v++)
        fixed[v] = snap(vertices[3 * v] * scale[0] + shift[0], vertices[3 * v + 1] * scale[1] + shift[1],
                        vertices[3 * v + 2] * scale[2] + shift[2]);
    int64_t plane = shape[1] * shape[2];
    int64_t slab = std::max<int64_t>(1, shape[0] / (4 * at::get_num_threads()));
    at::parallel_for(0, (shape[0] + slab - 1) / slab, 1, [&](int64_t begin, int64_t end) {
        int64_t x0 = begin * slab, x1 = std::min(shape[0], end * slab);
        std::fill(inside + x0 * plane, inside + x1 * plane, int8_t(0));
        for (int64_t f = 0; f < face_count; f++) {
            const Fixed &a = fixed[faces[3 * f]], &b = fixed[faces[3 * f + 1]], &c = fixed[faces[3 * f + 2]];
            if (a.finite && b.finite && c.finite) cross_columns(a, b, c, x0, x1, shape, inside);
        }
        for (int8_t* column = inside + x0 * plane; column < inside + x1 * plane; column += shape[2]) {
            int8_t winding = 0;  // modulo 256, as deep as any mesh overlaps itself
            for (int64_t k = 0; k < shape[2]; k++) {
                winding = int8_t(winding + column[k]);
                column[k] = winding != 0;
            }
        }
    });
}

}  // namespace imn
