// Instance norm with weights, a summand, leaky ReLU and a factor in one pass, and their gradient, on the CPU.
//
// The channels of a voxel lie side by side. What belongs to a channel is repeated over a tile of a few hundred numbers,
// so that loops run along the memory and are as long for one channel as for many. An item of the batch is done after
// the other, as one fits the cache, and is cut into parts that do not depend on the number of threads. Means and sums
// are taken in float32 within a part and in float64 over the parts.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <vector>

#include "allocate.h"
#include "checks.h"
#include "portable.h"

namespace {

constexpr double EPSILON = 1e-5;     // torch's
constexpr int64_t TILE = 256;        // numbers, at least
constexpr int64_t PART = 32 * TILE;  // numbers, about: they stay in the first cache between the passes over them

// What a number is stored as, and what is computed with.
template <typename T>
struct Stored {
    using Number = T;
    static IMN_INLINE T read(T value) { return value; }
    static IMN_INLINE T rounded(T value) { return value; }
};

template <>
struct Stored<uint16_t> {  // the bits of a bfloat16
    using Number = float;
    static IMN_INLINE float read(uint16_t value) {
        uint32_t bits = uint32_t(value) << 16;
        float number;
        __builtin_memcpy(&number, &bits, 4);
        return number;
    }
    static IMN_INLINE uint16_t rounded(float number) {  // to even
        uint32_t bits;
        __builtin_memcpy(&bits, &number, 4);
        uint32_t up = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
        return uint16_t(number == number ? up : 0x7fc0);
    }
};

template <typename T>
using Number = typename Stored<T>::Number;

// Tiles of what belongs to each channel. The norm is factor (x - mean) + bias; the activation multiplies it by `high`
// where the sum is positive and by `low` elsewhere.
template <typename S>
struct Forward {
    const S *mean, *factor, *bias, *high, *low;
};

template <typename S>
struct Reduction {
    const S *mean, *high, *low;
};

// The gradient is by_grad g - constant - by_offset (x - mean), with g that by the norm.
template <typename S>
struct Backward {
    const S *mean, *by_grad, *constant, *by_offset;
};

// sums (width) = those of x, at each place of the tile.
template <typename T, typename S>
IMN_INLINE void sum_rows(const T* x, int64_t size, int64_t width, S* sums) {
    for (int64_t i = 0; i < width; i++) sums[i] = 0;
    for (int64_t first = 0; first < size; first += width) {
        int64_t count = std::min(width, size - first);
#pragma omp simd
        for (int64_t i = 0; i < count; i++) sums[i] += Stored<T>::read(x[first + i]);
    }
}

template <typename T, typename S>
IMN_INLINE void square_rows(const T* x, int64_t size, int64_t width, const S* mean, S* sums) {
    for (int64_t i = 0; i < width; i++) sums[i] = 0;
    for (int64_t first = 0; first < size; first += width) {
        int64_t count = std::min(width, size - first);
#pragma omp simd
        for (int64_t i = 0; i < count; i++) {
            S offset = Stored<T>::read(x[first + i]) - mean[i];
            sums[i] += offset * offset;
        }
    }
}

template <bool SUMMED, typename T, typename S>
IMN_INLINE void forward_rows(const T* x, const T* residual, T* y, int64_t size, int64_t width, const Forward<S>& by) {
    const S *mean = by.mean, *factor = by.factor, *bias = by.bias, *high = by.high, *low = by.low;
    for (int64_t first = 0; first < size; first += width) {
        int64_t count = std::min(width, size - first);
#pragma omp simd
        for (int64_t i = 0; i < count; i++) {
            S sum = factor[i] * (Stored<T>::read(x[first + i]) - mean[i]) + bias[i];
            if (SUMMED) sum += Stored<T>::read(residual[first + i]);
            y[first + i] = Stored<T>::rounded(sum * (sum > 0 ? high[i] : low[i]));
        }
    }
}

// written = g, the gradient by the sum before the activation, whose sign is that of the result; sums and products
// (width) = those of g and of g (x - mean).
template <typename T, typename S>
IMN_INLINE void reduce_rows(const T* grad, const T* x, const T* result, T* written, int64_t size, int64_t width,
                            const Reduction<S>& by, S* sums, S* products) {
    const S *mean = by.mean, *high = by.high, *low = by.low;
    for (int64_t i = 0; i < width; i++) sums[i] = products[i] = 0;
    for (int64_t first = 0; first < size; first += width) {
        int64_t count = std::min(width, size - first);
#pragma omp simd
        for (int64_t i = 0; i < count; i++) {
            int64_t at = first + i;
            S factor = Stored<T>::read(result[at]) > 0 ? high[i] : low[i];
            T g = Stored<T>::rounded(Stored<T>::read(grad[at]) * factor);
            written[at] = g;
            sums[i] += Stored<T>::read(g);
            products[i] += Stored<T>::read(g) * (Stored<T>::read(x[at]) - mean[i]);
        }
    }
}

// g and y may be the same memory.
template <typename T, typename S>
IMN_INLINE void backward_rows(const T* g, const T* x, T* y, int64_t size, int64_t width, const Backward<S>& by) {
    const S *mean = by.mean, *by_grad = by.by_grad, *constant = by.constant, *by_offset = by.by_offset;
    for (int64_t first = 0; first < size; first += width) {
        int64_t count = std::min(width, size - first);
#pragma omp simd
        for (int64_t i = 0; i < count; i++) {
            S offset = Stored<T>::read(x[first + i]) - mean[i];
            y[first + i] =
                Stored<T>::rounded(by_grad[i] * Stored<T>::read(g[first + i]) - constant[i] - by_offset[i] * offset);
        }
    }
}

#define IMN_INSTANTIATE(T)                                                                                            \
    IMN_CLONES void sum(const T* x, int64_t size, int64_t width, Number<T>* sums) { sum_rows(x, size, width, sums); } \
    IMN_CLONES void square(const T* x, int64_t size, int64_t width, const Number<T>* mean, Number<T>* sums) {         \
        square_rows(x, size, width, mean, sums);                                                                      \
    }                                                                                                                 \
    IMN_CLONES void forward(const T* x, const T* residual, T* y, int64_t size, int64_t width,                         \
                            const Forward<Number<T>>& by) {                                                           \
        if (residual) return forward_rows<true>(x, residual, y, size, width, by);                                     \
        forward_rows<false>(x, residual, y, size, width, by);                                                         \
    }                                                                                                                 \
    IMN_CLONES void reduce(const T* grad, const T* x, const T* result, T* written, int64_t size, int64_t width,       \
                           const Reduction<Number<T>>& by, Number<T>* sums, Number<T>* products) {                    \
        reduce_rows(grad, x, result, written, size, width, by, sums, products);                                       \
    }                                                                                                                 \
    IMN_CLONES void backward(const T* g, const T* x, T* y, int64_t size, int64_t width,                               \
                             const Backward<Number<T>>& by) {                                                         \
        backward_rows(g, x, y, size, width, by);                                                                      \
    }
IMN_INSTANTIATE(float)
IMN_INSTANTIATE(double)
IMN_INSTANTIATE(uint16_t)

// How the numbers of an item are cut: into parts of whole voxels, and these into tiles.
struct Cut {
    int64_t channels, voxels, width, part;
    explicit Cut(const at::Tensor& volume)
        : channels(volume.size(1)), voxels(volume.size(2) * volume.size(3) * volume.size(4)) {
        width = channels * ((TILE + channels - 1) / std::max<int64_t>(channels, 1));
        part = std::max<int64_t>(width * ((PART + width - 1) / std::max<int64_t>(width, 1)), 1);
    }
    int64_t size() const { return channels * voxels; }
    int64_t parts() const { return (size() + part - 1) / part; }
};

// run(part, first number, count of numbers) for each part of an item.
template <typename Run>
void over_parts(const Cut& cut, Run run) {
    at::parallel_for(0, cut.parts(), 1, [&](int64_t begin, int64_t end) {
        for (int64_t part = begin; part < end; part++)
            run(part, part * cut.part, std::min(cut.part, cut.size() - part * cut.part));
    });
}

// A tile of value(channel).
template <typename S, typename Value>
std::vector<S> tile_of(const Cut& cut, Value value) {
    std::vector<S> tile(cut.width);
    for (int64_t i = 0; i < cut.width; i++) tile[i] = i < cut.channels ? S(value(i)) : tile[i - cut.channels];
    return tile;
}

// The sum over a tile's places of each channel.
template <typename S>
double folded(const Cut& cut, const std::vector<S>& tile, int64_t channel) {
    double sum = 0;
    for (int64_t i = channel; i < cut.width; i += cut.channels) sum += tile[i];
    return sum;
}

// Means and biased variances of the channels of an item; Chan et al. 1979 put those of the parts together.
template <typename T>
void moments_of(const Cut& cut, const T* x, double* mean, double* variance) {
    using S = Number<T>;
    std::vector<double> means(cut.parts() * cut.channels), squares(means.size());
    over_parts(cut, [&](int64_t part, int64_t first, int64_t size) {
        std::vector<S> sums(cut.width);
        sum(x + first, size, cut.width, sums.data());
        double* own = means.data() + part * cut.channels;
        for (int64_t c = 0; c < cut.channels; c++) own[c] = folded(cut, sums, c) * cut.channels / size;
        auto centre = tile_of<S>(cut, [&](int64_t c) { return own[c]; });
        square(x + first, size, cut.width, centre.data(), sums.data());
        for (int64_t c = 0; c < cut.channels; c++) {
            double off = own[c] - centre[c];  // centre is rounded
            squares[part * cut.channels + c] = folded(cut, sums, c) - off * off * (size / cut.channels);
        }
    });
    auto share = [&](int64_t part) { return double(std::min(cut.part, cut.size() - part * cut.part)) / cut.size(); };
    for (int64_t c = 0; c < cut.channels; c++) {
        mean[c] = variance[c] = 0;
        for (int64_t part = 0; part < cut.parts(); part++) mean[c] += share(part) * means[part * cut.channels + c];
        for (int64_t part = 0; part < cut.parts(); part++) {
            double off = means[part * cut.channels + c] - mean[c];
            variance[c] += squares[part * cut.channels + c] / cut.voxels + share(part) * off * off;
        }
    }
}

// An operator's arguments beside the volumes, each (C,) or (B, C) and contiguous.
template <typename S>
struct Coefficients {
    const S *weight, *bias, *multiplier, *mean, *scale;
    S slope;
};

// Tiles of what belongs to each channel of one item.
template <typename S>
struct Tiles {
    std::vector<S> mean, scale, factor, bias, high, low;
    Tiles(const Cut& cut, const Coefficients<S>& of, int64_t item) {
        int64_t first = item * cut.channels;
        mean = tile_of<S>(cut, [&](int64_t c) { return of.mean[first + c]; });
        scale = tile_of<S>(cut, [&](int64_t c) { return of.scale[first + c]; });
        factor = tile_of<S>(cut, [&](int64_t c) { return of.weight[c] * scale[c]; });
        bias = tile_of<S>(cut, [&](int64_t c) { return of.bias[c]; });
        high = tile_of<S>(cut, [&](int64_t c) { return of.multiplier ? of.multiplier[first + c] : S(1); });
        low = tile_of<S>(cut, [&](int64_t c) { return of.slope * high[c]; });
    }
};

template <typename T>
void forward_item(const Cut& cut, const T* x, const T* residual, T* y, const Tiles<Number<T>>& tiles) {
    Forward<Number<T>> by{tiles.mean.data(), tiles.factor.data(), tiles.bias.data(), tiles.high.data(),
                          tiles.low.data()};
    over_parts(cut, [&](int64_t, int64_t first, int64_t size) {
        forward(x + first, residual ? residual + first : nullptr, y + first, size, cut.width, by);
    });
}

// What backward_item reads and writes of its item; `summed`, the gradient by the residual, may be that by the volume.
template <typename T>
struct Volumes {
    const T *grad, *x, *result;
    T *by_volume, *summed;
};

// Adds the item's part of the gradients by weight and bias to theirs.
template <typename T>
void backward_item(const Cut& cut, const Volumes<T>& at, const Tiles<Number<T>>& tiles, double* by_weight,
                   double* by_bias) {
    using S = Number<T>;
    Reduction<S> reduction{tiles.mean.data(), tiles.high.data(), tiles.low.data()};
    std::vector<double> sums(cut.parts() * cut.channels), products(sums.size());
    over_parts(cut, [&](int64_t part, int64_t first, int64_t size) {
        std::vector<S> sum(cut.width), product(cut.width);
        reduce(at.grad + first, at.x + first, at.result + first, at.summed + first, size, cut.width, reduction,
               sum.data(), product.data());
        for (int64_t c = 0; c < cut.channels; c++) {
            sums[part * cut.channels + c] = folded(cut, sum, c);
            products[part * cut.channels + c] = folded(cut, product, c);
        }
    });
    for (int64_t i = cut.channels; i < int64_t(sums.size()); i++) {
        sums[i % cut.channels] += sums[i];
        products[i % cut.channels] += products[i];
    }
    for (int64_t c = 0; c < cut.channels; c++) by_bias[c] += sums[c], by_weight[c] += tiles.scale[c] * products[c];
    // With n the normed channel and w its weight: w scale (g - mean(g) - n mean(g n)).
    auto share = [&](int64_t c) { return double(tiles.factor[c]) / cut.voxels; };
    auto constant = tile_of<S>(cut, [&](int64_t c) { return share(c) * sums[c]; });
    auto by_offset =
        tile_of<S>(cut, [&](int64_t c) { return share(c) * products[c] * tiles.scale[c] * tiles.scale[c]; });
    Backward<S> by{tiles.mean.data(), tiles.factor.data(), constant.data(), by_offset.data()};
    over_parts(cut, [&](int64_t, int64_t first, int64_t size) {
        backward(at.summed + first, at.x + first, at.by_volume + first, size, cut.width, by);
    });
}

// The type that numbers of a type are computed in.
at::ScalarType computed_in(at::ScalarType type) { return type == at::kDouble ? at::kDouble : at::kFloat; }

constexpr auto LAST = at::MemoryFormat::ChannelsLast3d;

void check_volume(const at::Tensor& volume) {
    TORCH_CHECK_VALUE(volume.dim() == 5, "volume: wanted shape (B, C, X, Y, Z), found ", volume.sizes());
}

// Another volume of that size, type and layout.
at::Tensor like_volume(const at::Tensor& other, const at::Tensor& volume, const char* name) {
    imn::check_sizes(other, volume.sizes(), name);
    return other.to(volume.scalar_type()).contiguous(LAST);
}

at::Tensor empty_like_volume(const at::Tensor& volume) {
    return imn::empty_huge(volume.sizes(), volume.options(), LAST);
}

// Owns what Coefficients points to: of the type that is computed in, with the right sizes.
struct Arguments {
    at::Tensor weight, bias, multiplier, mean, scale;
    template <typename S>
    Coefficients<S> get(double slope) const {
        auto pointer = [](const at::Tensor& tensor) { return tensor.defined() ? tensor.const_data_ptr<S>() : nullptr; };
        return {pointer(weight), pointer(bias), pointer(multiplier), pointer(mean), pointer(scale), S(slope)};
    }
};

Arguments arguments_for(const at::Tensor& volume, const at::Tensor& weight, const at::Tensor& bias,
                        const std::optional<at::Tensor>& multiplier, const at::Tensor& mean, const at::Tensor& scale) {
    std::vector<int64_t> one{volume.size(1)}, each{volume.size(0), volume.size(1)};
    auto checked = [&](const at::Tensor& tensor, at::IntArrayRef sizes, const char* name) {
        imn::check_sizes(tensor, sizes, name);
        return tensor.to(computed_in(volume.scalar_type())).contiguous();
    };
    return {checked(weight, one, "weight"), checked(bias, one, "bias"),
            multiplier ? checked(*multiplier, each, "multiplier") : at::Tensor(), checked(mean, each, "mean"),
            checked(scale, each, "scale")};
}

// run(a null pointer to the type that the volume's numbers are stored as).
template <typename Run>
void dispatch(at::ScalarType type, Run run) {
    if (type == at::kBFloat16) return run(static_cast<uint16_t*>(nullptr));
    AT_DISPATCH_FLOATING_TYPES(type, "instance_norm_leaky_relu", [&] { run(static_cast<scalar_t*>(nullptr)); });
}

template <typename T>
const T* numbers(const at::Tensor& tensor, int64_t first) {
    return tensor.defined() ? static_cast<const T*>(tensor.const_data_ptr()) + first : nullptr;
}

template <typename T>
T* mutable_numbers(const at::Tensor& tensor, int64_t first) {
    return tensor.defined() ? static_cast<T*>(tensor.mutable_data_ptr()) + first : nullptr;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> instance_norm_leaky_relu(
    const at::Tensor& volume_, const at::Tensor& weight, const at::Tensor& bias,
    const std::optional<at::Tensor>& residual_, const std::optional<at::Tensor>& multiplier, double slope) {
    check_volume(volume_);
    auto volume = volume_.contiguous(LAST);
    auto residual = residual_ ? like_volume(*residual_, volume, "residual") : at::Tensor();
    auto type = volume.options().dtype(computed_in(volume.scalar_type()));
    auto mean = at::zeros({volume.size(0), volume.size(1)}, type), scale = at::zeros_like(mean);
    auto result = empty_like_volume(volume);
    auto arguments = arguments_for(volume, weight, bias, multiplier, mean, scale);
    if (volume.numel() == 0) return {result, mean, scale};
    Cut cut(volume);
    dispatch(volume.scalar_type(), [&](auto* null) {
        using T = std::remove_pointer_t<decltype(null)>;
        using S = Number<T>;
        std::vector<double> means(cut.channels), variances(cut.channels);
        for (int64_t item = 0; item < volume.size(0); item++) {
            int64_t first = item * cut.size();
            const T* x = numbers<T>(volume, first);
            moments_of(cut, x, means.data(), variances.data());
            for (int64_t c = 0; c < cut.channels; c++) {
                mean.mutable_data_ptr<S>()[item * cut.channels + c] = means[c];
                scale.mutable_data_ptr<S>()[item * cut.channels + c] = 1 / std::sqrt(variances[c] + EPSILON);
            }
            Tiles<S> tiles(cut, arguments.get<S>(slope), item);
            forward_item(cut, x, numbers<T>(residual, first), mutable_numbers<T>(result, first), tiles);
        }
    });
    return {result, mean, scale};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> instance_norm_leaky_relu_backward(
    const at::Tensor& grad_, const at::Tensor& volume_, const at::Tensor& result_, const at::Tensor& weight,
    const std::optional<at::Tensor>& multiplier, const at::Tensor& mean, const at::Tensor& scale, double slope,
    bool summed) {
    check_volume(volume_);
    auto volume = volume_.contiguous(LAST);
    auto grad = like_volume(grad_, volume, "grad"), result = like_volume(result_, volume, "result");
    auto by_volume = empty_like_volume(volume), by_residual = summed ? empty_like_volume(volume) : at::Tensor();
    auto arguments = arguments_for(volume, weight, weight, multiplier, mean, scale);  // no bias is needed
    Cut cut(volume);
    auto by_weight = at::zeros({cut.channels}, at::kDouble), by_bias = at::zeros_like(by_weight);
    dispatch(volume.scalar_type(), [&](auto* null) {
        using T = std::remove_pointer_t<decltype(null)>;
        for (int64_t item = 0; item < (volume.numel() ? volume.size(0) : 0); item++) {
            int64_t first = item * cut.size();
            Volumes<T> at{numbers<T>(grad, first), numbers<T>(volume, first), numbers<T>(result, first),
                          mutable_numbers<T>(by_volume, first),
                          mutable_numbers<T>(summed ? by_residual : by_volume, first)};
            Tiles<Number<T>> tiles(cut, arguments.get<Number<T>>(slope), item);
            backward_item(cut, at, tiles, by_weight.mutable_data_ptr<double>(), by_bias.mutable_data_ptr<double>());
        }
    });
    return {by_volume, by_weight.to(weight.scalar_type()), by_bias.to(weight.scalar_type()),
            summed ? by_residual : at::empty({0}, volume.options())};
}

}  // namespace

TORCH_LIBRARY_IMPL(implicitmeshnet, CPU, library) {
    library.impl("instance_norm_leaky_relu", instance_norm_leaky_relu);
    library.impl("instance_norm_leaky_relu_backward", instance_norm_leaky_relu_backward);
}
