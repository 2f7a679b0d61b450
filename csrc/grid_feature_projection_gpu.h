// The kernels of splat, gather and the gradient by the positions, for CUDA and Metal alike. Volumes (B, C, X, Y, Z)
// come in any layout, as strides; features are (B, V, C), some of a row's channels where a list of volumes is read.
#pragma once

#include "bfloat16.h"
#include "trilinear.h"

namespace imn {

struct Layout {
    Integer channels, x, y, z;                             // sizes
    Integer step_b, step_channel, step_x, step_y, step_z;  // strides
};

// The vertices of a batch, (batch, count, 3).
template <typename T>
struct Vertices {
    const IMN_DEVICE T* position;
    Integer batch, count;

    IMN_INLINE Integer size() const { return batch * count; }
};

// Where a volume's channels stand in a vertex's row of `size` channels.
struct Row {
    Integer size, first;
};

template <typename T>
IMN_INLINE Cell<T> cell_of(const IMN_LOCAL Vertices<T>& vertices, Integer v, Layout layout) {
    const IMN_DEVICE T* at = vertices.position + 3 * v;
    return locate(at[0], at[1], at[2], layout.x, layout.y, layout.z);
}

// One thread a channel of a vertex: adds it to the volume around.
template <typename T, typename S, typename By>
IMN_KERNEL_INLINE void splat_channel(Vertices<T> vertices, const IMN_DEVICE T* features, IMN_DEVICE S* volume,
                                     Layout layout, By by, Thread me) {
    Integer i = me.group * GROUP + me.index;
    Integer v = i / layout.channels, channel = i % layout.channels;
    if (v >= vertices.size()) return;
    Cell<T> cell = cell_of(vertices, v, layout);
    volume += v / vertices.count * layout.step_b + channel * layout.step_channel;
    for (int corner = 0; corner < 8; corner++)
        add_to(volume + cell.offset(corner, layout.step_x, layout.step_y, layout.step_z),
               by.term(cell.weight(corner) * features[i]));
}

// One thread a channel of a vertex: interpolates it into result (B, V, row.size).
template <typename T, typename V>
IMN_KERNEL_INLINE void gather_channel(const IMN_DEVICE V* volume, Vertices<T> vertices, IMN_DEVICE T* result, Row row,
                                      Layout layout, Thread me) {
    Integer i = me.group * GROUP + me.index;
    Integer v = i / layout.channels, channel = i % layout.channels;
    if (v >= vertices.size()) return;
    Cell<T> cell = cell_of(vertices, v, layout);
    volume += v / vertices.count * layout.step_b + channel * layout.step_channel;
    T sum = 0;
    for (int corner = 0; corner < 8; corner++)
        sum +=
            cell.weight(corner) * value_of<T>(volume[cell.offset(corner, layout.step_x, layout.step_y, layout.step_z)]);
    result[v * row.size + row.first + channel] = sum;
}

// One warp a vertex: adds to result (B, V, 3) the gradient by the position of features (B, V, row.size) times what is
// interpolated there.
template <typename T, typename V>
IMN_KERNEL_INLINE void differentiate_vertex(const IMN_DEVICE V* volume, Vertices<T> vertices,
                                            const IMN_DEVICE T* features, IMN_DEVICE T* result, Row row, Layout layout,
                                            Thread me) {
    Integer v = me.group * WARPS + me.index / WARP;
    if (v >= vertices.size()) return;
    int lane = me.index % WARP;
    Cell<T> cell = cell_of(vertices, v, layout);
    volume += v / vertices.count * layout.step_b;
    T products[8];
    for (int corner = 0; corner < 8; corner++) {
        Integer offset = cell.offset(corner, layout.step_x, layout.step_y, layout.step_z);
        T sum = 0;
        for (Integer channel = lane; channel < layout.channels; channel += WARP)
            sum += features[v * row.size + row.first + channel] *
                   value_of<T>(volume[channel * layout.step_channel + offset]);
        products[corner] = warp_sum(sum);
    }
    if (lane < 3) result[3 * v + lane] += cell.slope_along(lane, products);
}

}  // namespace imn
