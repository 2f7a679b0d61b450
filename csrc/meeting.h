// Whether two triangles of whole numbers have more in common than the vertices that they share, exactly.
//
// Segments against triangles by signed volumes, as in Guigue and Devillers, Journal of Graphics Tools 2003; triangles
// in one plane by separating lines. Coordinates are at most 2^24 in size, so areas fit 64 bits and volumes 128.
#pragma once

#include <algorithm>
#include <cstdint>

#include "triangle.h"

namespace imn {

typedef Vec3<int64_t> Whole;
__extension__ typedef __int128 Wide;

struct WholeTriangle {
    Whole corner[3];
    int64_t vertex[3];
};

inline int sign_of(int64_t value) { return (value > 0) - (value < 0); }

// The sign of the volume of the tetrahedron of four points.
inline int volume_sign(Whole a, Whole b, Whole c, Whole d) {
    const Whole u = a - d, normal = cross(b - d, c - d);
    const Wide volume = Wide(u.x) * normal.x + Wide(u.y) * normal.y + Wide(u.z) * normal.z;
    return (volume > 0) - (volume < 0);
}

inline int side_of(const WholeTriangle& triangle, Whole point) {
    return volume_sign(triangle.corner[0], triangle.corner[1], triangle.corner[2], point);
}

inline Whole area_vector(const WholeTriangle& triangle) {
    return cross(triangle.corner[1] - triangle.corner[0], triangle.corner[2] - triangle.corner[0]);
}

inline bool has_area(const WholeTriangle& triangle) {
    const Whole normal = area_vector(triangle);
    return normal.x != 0 || normal.y != 0 || normal.z != 0;
}

// Whether the edge of `edged` from corner `start` touches or crosses the triangle, which lies in another plane. `sides`
// say on which side of that plane each corner of `edged` is.
inline bool edge_meets(const WholeTriangle& edged, const WholeTriangle& triangle, const int* sides, int start) {
    const int end = (start + 1) % 3;
    if (sides[start] * sides[end] > 0 || (sides[start] == 0 && sides[end] == 0)) return false;
    bool left = true, right = true;  // whether the edge's line has all edges of the triangle on that side
    for (int k = 0; k < 3 && (left || right); k++) {
        const int turn =
            volume_sign(edged.corner[start], edged.corner[end], triangle.corner[k], triangle.corner[(k + 1) % 3]);
        left &= turn >= 0;
        right &= turn <= 0;
    }
    return left || right;
}

struct Flat {
    int64_t x, y;
};

// A triangle along an axis.
struct FlatTriangle {
    Flat corner[3];

    FlatTriangle(const WholeTriangle& triangle, int axis) {
        for (int k = 0; k < 3; k++) {
            const Whole p = triangle.corner[k];
            corner[k] = axis == 0 ? Flat{p.y, p.z} : axis == 1 ? Flat{p.z, p.x} : Flat{p.x, p.y};
        }
    }
};

// The axis along which a triangle keeps most of its area.
inline int flattest_axis(const WholeTriangle& triangle) {
    const Whole normal = area_vector(triangle);
    const int64_t size[3] = {std::abs(normal.x), std::abs(normal.y), std::abs(normal.z)};
    return int(std::max_element(size, size + 3) - size);
}

// Twice the signed area of three points.
inline int64_t area_of(Flat a, Flat b, Flat c) { return (b.x - a.x) * (c.y - a.y) - (b.y - a.y) * (c.x - a.x); }

// Whether a line along an edge of `mine` has all of points on its outer side, or on it where that counts too.
inline bool edges_part(const FlatTriangle& mine, const Flat* points, int count, bool on_it) {
    for (int k = 0; k < 3; k++) {
        const Flat a = mine.corner[k], b = mine.corner[(k + 1) % 3];
        const int inner = sign_of(area_of(a, b, mine.corner[(k + 2) % 3]));
        bool apart = true;
        for (int p = 0; p < count; p++) {
            const int outer = inner * sign_of(area_of(a, b, points[p]));
            apart &= on_it ? outer <= 0 : outer < 0;
        }
        if (apart) return true;
    }
    return false;
}

// Whether triangles of one plane overlap, or only touch where that counts.
inline bool overlap_in_plane(const WholeTriangle& one, const WholeTriangle& other, bool touching) {
    const int axis = flattest_axis(one);
    const FlatTriangle mine(one, axis), theirs(other, axis);
    return !edges_part(mine, theirs.corner, 3, !touching) && !edges_part(theirs, mine.corner, 3, !touching);
}

// Whether the edge across from the first corner of `edged` touches the triangle.
inline bool opposite_meets(const FlatTriangle& edged, const FlatTriangle& triangle) {
    int beside[3];
    for (int k = 0; k < 3; k++) beside[k] = sign_of(area_of(edged.corner[1], edged.corner[2], triangle.corner[k]));
    const bool one_side = beside[0] != 0 && beside[0] == beside[1] && beside[1] == beside[2];
    return !one_side && !edges_part(triangle, edged.corner + 1, 2, false);
}

// Triangles that share no vertex.
inline bool apart_meet(const WholeTriangle& one, const WholeTriangle& other) {
    int sides_of_one[3], sides_of_other[3];
    for (int k = 0; k < 3; k++) sides_of_one[k] = side_of(other, one.corner[k]);
    if (std::abs(sides_of_one[0] + sides_of_one[1] + sides_of_one[2]) == 3) return false;
    for (int k = 0; k < 3; k++) sides_of_other[k] = side_of(one, other.corner[k]);
    if (std::abs(sides_of_other[0] + sides_of_other[1] + sides_of_other[2]) == 3) return false;
    bool coplanar = true;
    for (int k = 0; k < 3; k++) coplanar &= sides_of_one[k] == 0 && sides_of_other[k] == 0;
    if (coplanar) return overlap_in_plane(one, other, true);
    for (int k = 0; k < 3; k++)
        if (edge_meets(one, other, sides_of_one, k) || edge_meets(other, one, sides_of_other, k)) return true;
    return false;
}

// Triangles whose first corners are the one vertex that they share. Whatever else they share begins or ends on the edge
// of either that lies across from it.
inline bool corner_meet(const WholeTriangle& one, const WholeTriangle& other) {
    const int sides_of_one[3] = {0, side_of(other, one.corner[1]), side_of(other, one.corner[2])};
    if (std::abs(sides_of_one[1] + sides_of_one[2]) == 2) return false;
    if (sides_of_one[1] == 0 && sides_of_one[2] == 0) {
        const int axis = flattest_axis(one);
        const FlatTriangle mine(one, axis), theirs(other, axis);
        return opposite_meets(mine, theirs) || opposite_meets(theirs, mine);
    }
    const int sides_of_other[3] = {0, side_of(one, other.corner[1]), side_of(one, other.corner[2])};
    return edge_meets(one, other, sides_of_one, 1) || edge_meets(other, one, sides_of_other, 1);
}

// Triangles that share an edge; `across` is the other's corner that is not on it.
inline bool edge_meet(const WholeTriangle& one, const WholeTriangle& other, int across) {
    return side_of(one, other.corner[across]) == 0 && overlap_in_plane(one, other, false);
}

inline WholeTriangle rolled(const WholeTriangle& triangle, int first) {
    WholeTriangle result;
    for (int k = 0; k < 3; k++) {
        result.corner[k] = triangle.corner[(first + k) % 3];
        result.vertex[k] = triangle.vertex[(first + k) % 3];
    }
    return result;
}

inline bool meet(const WholeTriangle& one, const WholeTriangle& other) {
    int shared = 0, of_one = 0, of_other = 0, lone = 0;
    for (int k = 0; k < 3; k++) {
        bool common = false;
        for (int m = 0; m < 3; m++) {
            if (other.vertex[k] != one.vertex[m]) continue;
            common = true;
            shared++;
            of_one = m;
            of_other = k;
        }
        if (!common) lone = k;
    }
    if (shared == 0) return apart_meet(one, other);
    if (shared == 1) return corner_meet(rolled(one, of_one), rolled(other, of_other));
    return shared > 2 || edge_meet(one, other, lone);
}

}  // namespace imn
