// Splat, gather and the gather's gradient by the positions, on the CPU.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "trilinear.h"

namespace {

using imn::Cell;

// The eight voxels around a vertex, as offsets into a volume, and their weights.
template <typename T>
struct Corners {
    int64_t offset[8];
    T weight[8];
};

template <typename T>
std::vector<Cell<T>> locate(const at::Tensor& vertices, at::IntArrayRef shape) {
    std::vector<Cell<T>> cells(vertices.size(0) * vertices.size(1));
    const T* points = vertices.const_data_ptr<T>();
    for (size_t i = 0; i < cells.size(); i++)
        cells[i] = imn::locate(points[3 * i], points[3 * i + 1], points[3 * i + 2], shape[0], shape[1], shape[2]);
    return cells;
}

template <typename T>
std::vector<Corners<T>> corners_of(const std::vector<Cell<T>>& cells, at::IntArrayRef strides) {
    std::vector<Corners<T>> corners(cells.size());
    for (size_t i = 0; i < cells.size(); i++)
        for (int k = 0; k < 8; k++) {
            corners[i].offset[k] = cells[i].offset(k, strides[2], strides[3], strides[4]);
            corners[i].weight[k] = cells[i].weight(k);
        }
    return corners;
}

// Threads own channels of a batch item: no atomics, and the same sums in the same order on any number of threads.
template <typename T>
void splat_into(T* volume, at::IntArrayRef strides, const std::vector<Corners<T>>& corners, const T* features,
                int64_t batch, int64_t channels) {
    int64_t count = batch > 0 ? corners.size() / batch : 0, width = strides[1] == 1 ? 16 : 1;  // channels of one task
    int64_t groups = (channels + width - 1) / width;
    at::parallel_for(0, batch * groups, 1, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; task++) {
            int64_t b = task / groups, first = task % groups * width, size = std::min(width, channels - first);
            T* out = volume + b * strides[0] + first * strides[1];
            for (int64_t v = b * count; v < (b + 1) * count; v++)
                for (int k = 0; k < 8; k++) {
                    T* voxel = out + corners[v].offset[k];
                    const T* row = features + v * channels + first;
                    T weight = corners[v].weight[k];
                    for (int64_t c = 0; c < size; c++) voxel[c] += weight * row[c];
                }
        }
    });
}

at::Tensor splat(const at::Tensor& vertices_, const at::Tensor& features_, at::IntArrayRef shape, bool channels_last) {
    auto vertices = vertices_.contiguous(), features = features_.contiguous();
    auto format = channels_last ? at::MemoryFormat::ChannelsLast3d : at::MemoryFormat::Contiguous;
    auto volume = at::empty({features.size(0), features.size(2), shape[0], shape[1], shape[2]},
                            features.options().memory_format(format)).zero_();
    AT_DISPATCH_FLOATING_TYPES(features.scalar_type(), "splat", [&] {
        auto corners = corners_of(locate<scalar_t>(vertices, shape), volume.strides());
        splat_into(volume.mutable_data_ptr<scalar_t>(), volume.strides(), corners, features.const_data_ptr<scalar_t>(),
                   features.size(0), features.size(2));
    });
    return volume;
}

// Runs kernel(vertex, its batch item's volume) for all vertices, in parallel.
template <typename V, typename Kernel>
void for_each_vertex(const at::Tensor& volume, const at::Tensor& vertices, Kernel kernel) {
    const V* values = volume.const_data_ptr<V>();
    int64_t count = vertices.size(1);
    at::parallel_for(0, vertices.size(0) * count, 64, [&](int64_t begin, int64_t end) {
        for (int64_t v = begin; v < end; v++) kernel(v, values + v / count * volume.stride(0));
    });
}

at::Tensor gather(const at::Tensor& volume, const at::Tensor& vertices_) {
    auto vertices = vertices_.contiguous();
    int64_t channels = volume.size(1), step = volume.stride(1);
    auto result = at::zeros({vertices.size(0), vertices.size(1), channels}, vertices.options());
    AT_DISPATCH_FLOATING_TYPES(vertices.scalar_type(), "gather", [&] {
        using T = scalar_t;
        T* out = result.mutable_data_ptr<T>();
        auto corners = corners_of(locate<T>(vertices, volume.sizes().slice(2)), volume.strides());
        AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, volume.scalar_type(), "gather", [&] {
            for_each_vertex<scalar_t>(volume, vertices, [&](int64_t v, const scalar_t* values) {
                for (int k = 0; k < 8; k++) {
                    const scalar_t* voxel = values + corners[v].offset[k];
                    for (int64_t c = 0; c < channels; c++)
                        out[v * channels + c] += corners[v].weight[k] * static_cast<T>(voxel[c * step]);
                }
            });
        });
    });
    return result;
}

at::Tensor position_gradient(const at::Tensor& volume, const at::Tensor& vertices_, const at::Tensor& features_) {
    auto vertices = vertices_.contiguous(), features = features_.contiguous();
    int64_t channels = volume.size(1), step = volume.stride(1);
    auto result = at::empty(vertices.sizes(), vertices.options());
    AT_DISPATCH_FLOATING_TYPES(vertices.scalar_type(), "position_gradient", [&] {
        using T = scalar_t;
        const T* factors = features.const_data_ptr<T>();
        T* out = result.mutable_data_ptr<T>();
        auto cells = locate<T>(vertices, volume.sizes().slice(2));
        auto corners = corners_of(cells, volume.strides());
        AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, volume.scalar_type(), "position_gradient", [&] {
            for_each_vertex<scalar_t>(volume, vertices, [&](int64_t v, const scalar_t* values) {
                T sums[8] = {};
                for (int k = 0; k < 8; k++) {
                    const scalar_t* voxel = values + corners[v].offset[k];
                    for (int64_t c = 0; c < channels; c++)
                        sums[k] += factors[v * channels + c] * static_cast<T>(voxel[c * step]);
                }
                for (int axis = 0; axis < 3; axis++) out[3 * v + axis] = cells[v].slope_along(axis, sums);
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
