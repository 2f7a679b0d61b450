// Splat, gather and the gather's gradient by the positions, on the CPU.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "trilinear.h"

namespace {

using imn::Cell;

// The cells of all vertices (B, V, 3), once per call.
template <typename T>
std::vector<Cell<T>> locate(const at::Tensor& vertices, at::IntArrayRef shape) {
    std::vector<Cell<T>> cells(vertices.size(0) * vertices.size(1));
    const T* points = vertices.const_data_ptr<T>();
    at::parallel_for(0, cells.size(), 4096, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++)
            cells[i] = imn::locate(points[3 * i], points[3 * i + 1], points[3 * i + 2], shape[0], shape[1], shape[2]);
    });
    return cells;
}

// Threads own (batch, channel) volumes: no atomics, and the same sums in the same order on any number of threads.
at::Tensor splat(const at::Tensor& vertices_, const at::Tensor& features_, at::IntArrayRef shape, bool channels_last) {
    auto vertices = vertices_.contiguous(), features = features_.transpose(1, 2).contiguous();  // (B, C, V)
    int64_t batch = features.size(0), channels = features.size(1), count = features.size(2);
    int64_t sx = shape[1] * shape[2], sy = shape[2], size = shape[0] * sx;
    auto volume = at::empty({batch, channels, shape[0], shape[1], shape[2]}, features.options());
    AT_DISPATCH_FLOATING_TYPES(features.scalar_type(), "splat", [&] {
        auto cells = locate<scalar_t>(vertices, shape);
        const scalar_t* values = features.const_data_ptr<scalar_t>();
        scalar_t* out = volume.mutable_data_ptr<scalar_t>();
        at::parallel_for(0, batch * channels, 1, [&](int64_t begin, int64_t end) {
            for (int64_t bc = begin; bc < end; bc++) {
                scalar_t* plane = out + bc * size;
                std::fill(plane, plane + size, scalar_t(0));
                const Cell<scalar_t>* cell = cells.data() + bc / channels * count;
                for (int64_t v = 0; v < count; v++)
                    for (int corner = 0; corner < 8; corner++)
                        plane[cell[v].offset(corner, sx, sy, 1)] += cell[v].weight(corner) * values[bc * count + v];
            }
        });
    });
    return channels_last ? volume.contiguous(at::MemoryFormat::ChannelsLast3d) : volume;
}

// Runs `kernel(cell, volume of the batch item, strides, index)` for every vertex, over any volume type and layout.
template <typename V, typename T, typename Kernel>
void for_each_vertex(const at::Tensor& volume, const at::Tensor& vertices, Kernel kernel) {
    auto cells = locate<T>(vertices, volume.sizes().slice(2));
    int64_t count = vertices.size(1);
    const V* values = volume.const_data_ptr<V>();
    at::parallel_for(0, cells.size(), 64, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) kernel(cells[i], values + i / count * volume.stride(0), i);
    });
}

at::Tensor gather(const at::Tensor& volume, const at::Tensor& vertices_) {
    auto vertices = vertices_.contiguous();
    int64_t channels = volume.size(1), sc = volume.stride(1);
    int64_t sx = volume.stride(2), sy = volume.stride(3), sz = volume.stride(4);
    auto result = at::empty({vertices.size(0), vertices.size(1), channels}, vertices.options());
    AT_DISPATCH_FLOATING_TYPES(vertices.scalar_type(), "gather", [&] {
        using T = scalar_t;
        T* out = result.mutable_data_ptr<T>();
        AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, volume.scalar_type(), "gather", [&] {
            for_each_vertex<scalar_t, T>(volume, vertices, [&](const Cell<T>& cell, const scalar_t* values, int64_t i) {
                T* row = out + i * channels;
                std::fill(row, row + channels, T(0));
                for (int corner = 0; corner < 8; corner++) {
                    const scalar_t* source = values + cell.offset(corner, sx, sy, sz);
                    T weight = cell.weight(corner);
                    for (int64_t c = 0; c < channels; c++) row[c] += weight * static_cast<T>(source[c * sc]);
                }
            });
        });
    });
    return result;
}

at::Tensor position_gradient(const at::Tensor& volume, const at::Tensor& vertices_, const at::Tensor& features_) {
    auto vertices = vertices_.contiguous(), features = features_.contiguous();
    int64_t channels = volume.size(1), sc = volume.stride(1);
    int64_t sx = volume.stride(2), sy = volume.stride(3), sz = volume.stride(4);
    auto result = at::empty(vertices.sizes(), vertices.options());
    AT_DISPATCH_FLOATING_TYPES(vertices.scalar_type(), "position_gradient", [&] {
        using T = scalar_t;
        const T* factors = features.const_data_ptr<T>();
        T* out = result.mutable_data_ptr<T>();
        AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, volume.scalar_type(), "position_gradient", [&] {
            for_each_vertex<scalar_t, T>(volume, vertices, [&](const Cell<T>& cell, const scalar_t* values, int64_t i) {
                const T* row = factors + i * channels;
                T sums[8];
                for (int corner = 0; corner < 8; corner++) {
                    const scalar_t* source = values + cell.offset(corner, sx, sy, sz);
                    T sum = 0;
                    for (int64_t c = 0; c < channels; c++) sum += row[c] * static_cast<T>(source[c * sc]);
                    sums[corner] = sum;
                }
                for (int axis = 0; axis < 3; axis++) out[3 * i + axis] = cell.slope_along(axis, sums);
            });
        });
    });
    return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(implicitmeshnet, CPU, library) {
    library.impl("splat", splat);
    library.impl("gather", gather);
    library.impl("position_gradient", position_gradient);
}
