// The geometry of one point and one triangle, for host, CUDA and Metal alike.
#pragma once

#include "portable.h"

namespace imn {

template <typename T>
struct Vec3 {
    T x, y, z;
};

template <typename T>
IMN_INLINE Vec3<T> operator-(Vec3<T> a, Vec3<T> b) { return {a.x - b.x, a.y - b.y, a.z - b.z}; }

template <typename T>
IMN_INLINE Vec3<T> operator*(T s, Vec3<T> a) { return {s * a.x, s * a.y, s * a.z}; }

template <typename T>
IMN_INLINE T dot(Vec3<T> a, Vec3<T> b) { return a.x * b.x + a.y * b.y + a.z * b.z; }

template <typename T>
IMN_INLINE Vec3<T> cross(Vec3<T> a, Vec3<T> b) {
    return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}

template <typename T>
IMN_INLINE T clamp01(T t) { return t < T(0) ? T(0) : (t > T(1) ? T(1) : t); }

// What the distance to a triangle needs: corner a, edges u = b - a, v = c - a, w = c - b with their inverse squared
// lengths (0 where an edge is a point), the unit normal n, and the gradients gv, gw of the barycentric weights of b and
// c in the plane. A triangle without area has n = 0 and `flat` = 2, which no inside test passes.
template <typename T>
struct Triangle {
    Vec3<T> a, u, v, w, n, gv, gw;
    T iu, iv, iw, flat;
};

constexpr int TRIANGLE_FIELDS = 25;

template <typename T>
IMN_INLINE T inverse_or_zero(T x) { return x > T(0) ? T(1) / x : T(0); }

// Doubles in, so that slivers keep their directions; the result is rounded to T.
IMN_INLINE Triangle<double> make_triangle(Vec3<double> a, Vec3<double> b, Vec3<double> c) {
    Triangle<double> t;
    t.a = a, t.u = b - a, t.v = c - a, t.w = c - b;
    t.iu = inverse_or_zero(dot(t.u, t.u)), t.iv = inverse_or_zero(dot(t.v, t.v)), t.iw = inverse_or_zero(dot(t.w, t.w));
    Vec3<double> normal = cross(t.u, t.v);
    double squared = dot(normal, normal);
    // below this the plane is rounding noise of the vertices; the three edges describe the face
    bool solid = squared > 1e-30 * dot(t.u, t.u) * dot(t.v, t.v) && squared > 0;
    double inverse = solid ? 1 / squared : 0;
    t.n = (solid ? 1 / __builtin_sqrt(squared) : 0) * normal;
    t.gv = inverse * cross(t.v, normal);
    t.gw = inverse * cross(normal, t.u);
    t.flat = solid ? 0 : 2;
    return t;
}

// The vector from the closest point of the triangle to p = a + r. Branch-free, so that loops around it vectorise:
// the plane's foot where it falls inside, else the best of the three edges.
template <typename T>
IMN_INLINE Vec3<T> closest_offset(const Triangle<T>& t, Vec3<T> r) {
    Vec3<T> rb = r - t.u;
    Vec3<T> eu = r - clamp01(dot(r, t.u) * t.iu) * t.u;
    Vec3<T> ev = r - clamp01(dot(r, t.v) * t.iv) * t.v;
    Vec3<T> ew = rb - clamp01(dot(rb, t.w) * t.iw) * t.w;
    T du = dot(eu, eu), dv = dot(ev, ev), dw = dot(ew, ew);
    bool take_v = dv < du;
    Vec3<T> e = {take_v ? ev.x : eu.x, take_v ? ev.y : eu.y, take_v ? ev.z : eu.z};
    T d = take_v ? dv : du;
    bool take_w = dw < d;
    e = {take_w ? ew.x : e.x, take_w ? ew.y : e.y, take_w ? ew.z : e.z};
    T beta = dot(r, t.gv) + t.flat, gamma = dot(r, t.gw) + t.flat;
    T h = dot(r, t.n);
    bool inside = (beta >= T(0)) & (gamma >= T(0)) & (beta + gamma <= T(1));
    return {inside ? h * t.n.x : e.x, inside ? h * t.n.y : e.y, inside ? h * t.n.z : e.z};
}

// The squared length of closest_offset, without the selects that only its direction needs.
template <typename T>
IMN_INLINE T closest_squared(const Triangle<T>& t, Vec3<T> r) {
    Vec3<T> rb = r - t.u;
    Vec3<T> eu = r - clamp01(dot(r, t.u) * t.iu) * t.u;
    Vec3<T> ev = r - clamp01(dot(r, t.v) * t.iv) * t.v;
    Vec3<T> ew = rb - clamp01(dot(rb, t.w) * t.iw) * t.w;
    T du = dot(eu, eu), dv = dot(ev, ev), dw = dot(ew, ew);
    T d = du < dv ? du : dv;
    d = d < dw ? d : dw;
    T beta = dot(r, t.gv) + t.flat, gamma = dot(r, t.gw) + t.flat;
    T h = dot(r, t.n);
    bool inside = (beta >= T(0)) & (gamma >= T(0)) & (beta + gamma <= T(1));
    return inside ? h * h : d;
}

// Barycentric weights of the closest point of triangle (a, b, c) to p, and the vector from it to p.
template <typename T>
struct Closest {
    T weight[3];
    Vec3<T> offset;
};

template <typename T>
IMN_INLINE Closest<T> closest_weights(Vec3<T> a, Vec3<T> b, Vec3<T> c, Vec3<T> p) {
    Vec3<T> u = b - a, v = c - a, w = c - b, r = p - a, rb = p - b;
    T tu = clamp01(dot(r, u) * inverse_or_zero(dot(u, u)));
    T tv = clamp01(dot(r, v) * inverse_or_zero(dot(v, v)));
    T tw = clamp01(dot(rb, w) * inverse_or_zero(dot(w, w)));
    Vec3<T> eu = r - tu * u, ev = r - tv * v, ew = rb - tw * w;
    T du = dot(eu, eu), dv = dot(ev, ev), dw = dot(ew, ew);
    Closest<T> best = {{1 - tu, tu, 0}, eu};
    if (dv < du) best = {{1 - tv, 0, tv}, ev};
    if (dw < du && dw < dv) best = {{0, 1 - tw, tw}, ew};
    Vec3<T> normal = cross(u, v);
    T inverse = inverse_or_zero(dot(normal, normal));
    T beta = dot(r, cross(v, normal)) * inverse, gamma = dot(r, cross(normal, u)) * inverse;
    if (inverse > T(0) && beta >= T(0) && gamma >= T(0) && beta + gamma <= T(1))
        best = {{1 - beta - gamma, beta, gamma}, (dot(r, normal) * inverse) * normal};
    return best;
}

}  // namespace imn
