// Splat, gather and their gradients by the positions, on the CPU.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <optional>

#include "allocate.h"
#include "checks.h"
#include "trilinear.h"

namespace {

using imn::Cell;

constexpr int64_t GROUP = 16;  // channels of a channels-first volume that are read together

// The first of the eight voxels around a vertex, and the weights of all.
template <typename T>
struct Corners {
    int64_t voxel;
    T weight[8];
};

// The step from the first of eight voxels to each, given the step along each axis, in whatever unit. It is the same for
// all vertices: an axis of one voxel has no second one in any cell, every other axis has one in all cells.
struct CornerOffsets {
    int64_t to[8];

    CornerOffsets(at::IntArrayRef shape, int64_t x, int64_t y, int64_t z) {
        if (shape[0] == 1) x = 0;
        if (shape[1] == 1) y = 0;
        if (shape[2] == 1) z = 0;
        for (int k = 0; k < 8; k++) to[k] = (k >> 2 & 1) * x + (k >> 1 & 1) * y + (k & 1) * z;
    }
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
std::vector<Corners<T>> corners_of(const std::vector<Cell<T>>& cells, at::IntArrayRef shape) {
    std::vector<Corners<T>> corners(cells.size());
    for (size_t i = 0; i < cells.size(); i++) {
        corners[i].voxel = cells[i].offset(0, shape[1] * shape[2], shape[2], 1);
        for (int k = 0; k < 8; k++) corners[i].weight[k] = cells[i].weight(k);
    }
    return corners;
}

template <typename T>
using Pair __attribute__((vector_size(2 * sizeof(T)), aligned(sizeof(T)), may_alias)) = T;

// Adds value at a vertex's corners; with `paired`, the two along Z lie side by side.
template <typename T>
inline void add_corners(T* plane, const Corners<T>& corners, const CornerOffsets& offsets, T value, bool paired) {
    T* first = plane + corners.voxel;
    if (paired)
        for (int k = 0; k < 8; k += 2) {
            auto both = reinterpret_cast<Pair<T>*>(first + offsets.to[k]);
            *both += value * Pair<T>{corners.weight[k], corners.weight[k + 1]};
        }
    else
        for (int k = 0; k < 8; k++) first[offsets.to[k]] += value * corners.weight[k];
}

// Where a task sums: in the result itself, or beside it where that holds fewer bits.
template <typename T, typename Out>
struct Part {
    std::vector<T> beside;
    int64_t size;

    explicit Part(int64_t size) : beside(std::is_same_v<T, Out> ? 0 : size), size(size) {}
    T* zeroed(Out* out) {
        T* sums = std::is_same_v<T, Out> ? reinterpret_cast<T*>(out) : beside.data();
        std::fill_n(sums, size, T(0));
        return sums;
    }
    void finish(Out* out) const {
        for (size_t i = 0; i < beside.size(); i++) out[i] = static_cast<Out>(beside[i]);
    }
};

// What is splatted: features (B, C, V) or (B, V, C), and the voxels around each vertex (B, V).
template <typename T>
struct Features {
    const T* values;
    const Corners<T>* corners;
    int64_t batch, count, channels;
};

// Channels first: a task is a channel of an item, zeroed and filled while it lies in the cache; features (B, C, V).
template <typename T, typename Out>
void splat_planes(Out* volume, at::IntArrayRef shape, const Features<T>& features) {
    const T* values = features.values;
    const Corners<T>* corners = features.corners;
    int64_t batch = features.batch, count = features.count, channels = features.channels;
    int64_t voxels = shape[0] * shape[1] * shape[2];
    const CornerOffsets offsets(shape, shape[1] * shape[2], shape[2], 1);
    const bool paired = shape[2] > 1;
    at::parallel_for(0, batch * channels, 1, [&](int64_t begin, int64_t end) {
        Part<T, Out> part(voxels);
        for (int64_t task = begin; task < end; task++) {
            T* plane = part.zeroed(volume + task * voxels);
            const Corners<T>* at = corners + task / channels * count;
            for (int64_t v = 0; v < count; v++) add_corners(plane, at[v], offsets, values[task * count + v], paired);
            part.finish(volume + task * voxels);
        }
    });
}

// Channels last: a task is a slice along X, filled by the vertices whose cell begins there or one before, in order of
// X and index; features (B, V, C).
template <typename T, typename Out>
void splat_slices(Out* volume, at::IntArrayRef shape, const Features<T>& features) {
    const T* values = features.values;
    const Corners<T>* corners = features.corners;
    int64_t batch = features.batch, count = features.count, channels = features.channels;
    int64_t plane = shape[1] * shape[2];
    int64_t size = plane * channels;
    const CornerOffsets offsets(shape, plane, shape[2], 1);
    std::vector<std::vector<int64_t>> beginning(batch * shape[0]);  // vertices by the slice where their cell begins
    for (int64_t v = 0; v < batch * count; v++) beginning[v / count * shape[0] + corners[v].voxel / plane].push_back(v);
    at::parallel_for(0, batch * shape[0], 1, [&](int64_t begin, int64_t end) {
        Part<T, Out> part(size);
        for (int64_t task = begin; task < end; task++) {
            T* slice = part.zeroed(volume + task * size);
            int64_t first = task % shape[0] * plane;
            for (int64_t before = task % shape[0] > 0 ? 1 : 0; before >= 0; before--)
                for (int64_t v : beginning[task - before])
                    for (int64_t k = 4 * before; k < 4 * before + 4; k++) {
                        T* row = slice + (corners[v].voxel + offsets.to[k] - first) * channels;
                        const T* from = values + v * channels;
                        T weight = corners[v].weight[k];
#pragma omp simd
                        for (int64_t c = 0; c < channels; c++) row[c] += weight * from[c];
                    }
            part.finish(volume + task * size);
        }
    });
}

// Features are (B, V, C) like the vertices (B, V, 3).
void check_features(const at::Tensor& features, const at::Tensor& vertices) {
    imn::check_vertices(vertices);
    TORCH_CHECK_VALUE(features.dim() == 3, "features: wanted shape (B, V, C), found ", features.sizes());
    imn::check_sizes(features, {vertices.size(0), vertices.size(1), features.size(2)}, "features");
}

at::Tensor splat(const at::Tensor& vertices_, const at::Tensor& features, at::IntArrayRef shape, bool channels_last,
                 std::optional<at::ScalarType> dtype) {
    auto vertices = vertices_.contiguous();
    auto values = features.to(vertices.scalar_type());
    check_features(values, vertices);
    imn::check_shape(shape, 1);
    auto format = channels_last ? at::MemoryFormat::ChannelsLast3d : at::MemoryFormat::Contiguous;
    int64_t batch = features.size(0), channels = features.size(2);
    auto volume = imn::empty_huge({batch, channels, shape[0], shape[1], shape[2]},
                                  features.options().dtype(dtype.value_or(features.scalar_type())), format);
    if (volume.numel() == 0) return volume;
    values = channels_last ? values.contiguous() : values.transpose(1, 2).contiguous();
    AT_DISPATCH_FLOATING_TYPES(vertices.scalar_type(), "splat", [&] {
        using T = scalar_t;
        auto corners = corners_of(locate<T>(vertices, shape), shape);
        Features<T> from = {values.const_data_ptr<T>(), corners.data(), batch, features.size(1), channels};
        AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, volume.scalar_type(), "splat", [&] {
            scalar_t* out = volume.mutable_data_ptr<scalar_t>();
            if (channels_last) splat_slices<T, scalar_t>(out, shape, from);
            else splat_planes<T, scalar_t>(out, shape, from);
        });
    });
    return volume;
}

// What is read around a run of vertices: interpolated values (V, C), and features' products with each corner (V, 8).
template <typename T>
struct Reading {
    T* values = nullptr;
    int64_t values_stride = 0;
    const T* features = nullptr;
    int64_t features_stride = 0;
    T* products = nullptr;
};

// Some channels of one item of a volume: where they start, and the strides (B, C, X, Y, Z) and sizes (X, Y, Z).
template <typename V>
struct Source {
    const V* values;
    int64_t channels;
    at::IntArrayRef strides, shape;
};

// Channels last: vertex by vertex, all channels of a corner side by side.
template <typename T, typename V>
void read_rows(const Source<V>& volume, const Corners<T>* corners, const CornerOffsets& offsets, int64_t count,
               Reading<T> reading) {
    int64_t channels = volume.channels, step = volume.strides[4];
    for (int64_t v = 0; v < count; v++) {
        const V* row[8];
        for (int k = 0; k < 8; k++) row[k] = volume.values + corners[v].voxel * step + offsets.to[k];
        if (reading.values) {
            T* out = reading.values + v * reading.values_stride;
            const T* w = corners[v].weight;
#pragma omp simd
            for (int64_t c = 0; c < channels; c++)
                out[c] = w[0] * T(row[0][c]) + w[1] * T(row[1][c]) + w[2] * T(row[2][c]) + w[3] * T(row[3][c]) +
                         w[4] * T(row[4][c]) + w[5] * T(row[5][c]) + w[6] * T(row[6][c]) + w[7] * T(row[7][c]);
        }
        for (int k = 0; k < 8 && reading.products; k++) {
            const T* factor = reading.features + v * reading.features_stride;
            T sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t c = 0; c < channels; c++) sum += factor[c] * T(row[k][c]);
            reading.products[8 * v + k] = sum;
        }
    }
}

// Other layouts: channel by channel, so that what is read lies close together.
template <typename T, typename V>
void read_planes(const Source<V>& source, const Corners<T>* corners, int64_t count, Reading<T> reading) {
    const V* volume = source.values;
    at::IntArrayRef strides = source.strides, shape = source.shape;
    int64_t channels = source.channels;
    const CornerOffsets offsets(shape, strides[2], strides[3], strides[4]);
    std::vector<int64_t> offset(count);  // of the vertices' first voxels
    for (int64_t v = 0; v < count; v++) {
        int64_t voxel = corners[v].voxel;
        int64_t x = voxel / (shape[1] * shape[2]), y = voxel / shape[2] % shape[1], z = voxel % shape[2];
        offset[v] = x * strides[2] + y * strides[3] + z * strides[4];
    }
    if (reading.products) std::fill_n(reading.products, 8 * count, T(0));
    for (int64_t c = 0; c < channels; c++)
        for (int64_t v = 0; v < count; v++) {
            T sum = 0, factor = reading.products ? reading.features[v * reading.features_stride + c] : T(0);
            for (int k = 0; k < 8; k++) {
                T value = T(volume[c * strides[1] + offset[v] + offsets.to[k]]);
                sum += corners[v].weight[k] * value;
                if (reading.products) reading.products[8 * v + k] += factor * value;
            }
            if (reading.values) reading.values[v * reading.values_stride + c] = sum;
        }
}

// Reads a volume (B, C, X, Y, Z) around the vertices of its items; `reading` starts at the first item's first vertex
// and channel. Threads own vertices (channels last) or groups of channels, whose products are added in order.
template <typename T>
void read(const at::Tensor& volume, const std::vector<Corners<T>>& corners, Reading<T> reading) {
    int64_t batch = volume.size(0), channels = volume.size(1);
    int64_t count = batch > 0 ? corners.size() / batch : 0;
    auto strides = volume.strides();
    auto shape = volume.sizes().slice(2);
    bool rows =
        strides[1] == 1 && strides[3] == volume.size(4) * strides[4] && strides[2] == volume.size(3) * strides[3];
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, volume.scalar_type(), "read", [&] {
        const scalar_t* values = volume.const_data_ptr<scalar_t>();
        auto part = [&](int64_t v, int64_t channel, T* products) {
            return Reading<T>{reading.values ? reading.values + v * reading.values_stride + channel : nullptr,
                              reading.values_stride, reading.features + v * reading.features_stride + channel,
                              reading.features_stride, products};
        };
        if (rows) {
            const CornerOffsets offsets(shape, strides[2], strides[3], strides[4]);
            at::parallel_for(0, batch * count, 64, [&](int64_t begin, int64_t end) {
                for (int64_t v = begin; v < end; v++)
                    read_rows(Source<scalar_t>{values + v / count * strides[0], channels, strides, shape}, &corners[v],
                              offsets, 1, part(v, 0, reading.products ? reading.products + 8 * v : nullptr));
            });
            return;
        }
        int64_t groups = (channels + GROUP - 1) / GROUP;
        std::vector<T> products(reading.products ? batch * groups * count * 8 : 0);
        at::parallel_for(0, batch * groups, 1, [&](int64_t begin, int64_t end) {
            for (int64_t task = begin; task < end; task++) {
                int64_t b = task / groups;
                int64_t first = task % groups * GROUP;
                Source<scalar_t> source = {values + b * strides[0] + first * strides[1],
                                           std::min(GROUP, channels - first), strides, shape};
                read_planes(source, corners.data() + b * count, count,
                            part(b * count, first, products.empty() ? nullptr : products.data() + task * count * 8));
            }
        });
        for (int64_t i = 0; i < (reading.products ? batch * count * 8 : 0); i++) {
            T sum = 0;
            for (int64_t g = 0; g < groups; g++)
                sum += products[((i / (8 * count) * groups + g) * count) * 8 + i % (8 * count)];
            reading.products[i] = sum;
        }
    });
}

// Volumes (B, C, X, Y, Z), B that of the vertices and no axis empty -> channels of them all.
int64_t check_volumes(at::TensorList volumes, const at::Tensor& vertices) {
    imn::check_vertices(vertices);
    int64_t channels = 0;
    for (const auto& volume : volumes) {
        TORCH_CHECK_VALUE(
            volume.dim() == 5 && volume.size(0) == vertices.size(0) && imn::is_shape(volume.sizes().slice(2), 1),
            "volume: wanted shape (", vertices.size(0), ", C, X, Y, Z) of axes from 1 to ", imn::LARGEST, ", found ",
            volume.sizes());
        channels += volume.size(1);
    }
    return channels;
}

at::Tensor gather(at::TensorList volumes, const at::Tensor& vertices_) {
    auto vertices = vertices_.contiguous();
    int64_t channels = check_volumes(volumes, vertices);
    int64_t first = 0;
    auto result = at::empty({vertices.size(0), vertices.size(1), channels}, vertices.options());
    AT_DISPATCH_FLOATING_TYPES(vertices.scalar_type(), "gather", [&] {
        for (const auto& volume : volumes) {
            auto shape = volume.sizes().slice(2);
            Reading<scalar_t> reading;
            reading.values = result.mutable_data_ptr<scalar_t>() + first;
            reading.values_stride = channels;
            read(volume, corners_of(locate<scalar_t>(vertices, shape), shape), reading);
            first += volume.size(1);
        }
    });
    return result;
}

// Adds the gradient by the positions to `result` (B, V, 3) and, where wanted, writes the interpolated values.
template <typename T>
void read_gradient(const at::Tensor& volume, const at::Tensor& vertices, const T* features, int64_t stride, T* values,
                   T* result) {
    auto shape = volume.sizes().slice(2);
    auto cells = locate<T>(vertices, shape);
    std::vector<T> products(8 * cells.size());
    read(volume, corners_of(cells, shape), Reading<T>{values, stride, features, stride, products.data()});
    at::parallel_for(0, cells.size(), 1024, [&](int64_t begin, int64_t end) {
        for (int64_t v = begin; v < end; v++)
            for (int axis = 0; axis < 3; axis++) result[3 * v + axis] += cells[v].slope_along(axis, &products[8 * v]);
    });
}

at::Tensor position_gradient(at::TensorList volumes, const at::Tensor& vertices_, const at::Tensor& features_) {
    auto vertices = vertices_.contiguous();
    auto features = features_.contiguous();
    imn::check_sizes(features, {vertices.size(0), vertices.size(1), check_volumes(volumes, vertices)}, "features");
    auto result = at::zeros(vertices.sizes(), vertices.options());
    int64_t first = 0;
    AT_DISPATCH_FLOATING_TYPES(vertices.scalar_type(), "position_gradient", [&] {
        for (const auto& volume : volumes) {
            read_gradient<scalar_t>(volume, vertices, features.const_data_ptr<scalar_t>() + first, features.size(2),
                                    nullptr, result.mutable_data_ptr<scalar_t>());
            first += volume.size(1);
        }
    });
    return result;
}

std::tuple<at::Tensor, at::Tensor> splat_backward(const at::Tensor& grad, const at::Tensor& vertices_,
                                                  const at::Tensor& features_) {
    auto vertices = vertices_.contiguous();
    auto features = features_.to(vertices.scalar_type()).contiguous();
    imn::check_sizes(features, {vertices.size(0), vertices.size(1), check_volumes(grad, vertices)}, "features");
    auto positions = at::zeros(vertices.sizes(), vertices.options());
    auto values = at::empty(features.sizes(), features.options());
    AT_DISPATCH_FLOATING_TYPES(vertices.scalar_type(), "splat_backward", [&] {
        read_gradient<scalar_t>(grad, vertices, features.const_data_ptr<scalar_t>(), features.size(2),
                                values.mutable_data_ptr<scalar_t>(), positions.mutable_data_ptr<scalar_t>());
    });
    return {positions, values.to(features_.scalar_type())};
}

}  // namespace

TORCH_LIBRARY_IMPL(implicitmeshnet, CPU, library) {
    library.impl("splat", splat);
    library.impl("splat_backward", splat_backward);
    library.impl("gather", gather);
    library.impl("position_gradient", position_gradient);
}
