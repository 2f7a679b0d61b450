// Layer norm of each row and leaky ReLU in one pass, and their gradient, on the CPU.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "checks.h"
#include "portable.h"

namespace {

constexpr double EPSILON = 1e-5;  // torch's

template <typename T>
struct Moments {
    T mean, scale;  // 1 / standard deviation
};

template <typename T>
IMN_INLINE Moments<T> moments_of(const T* x, int64_t size) {
    T sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < size; c++) sum += x[c];
    T mean = sum / T(size);
#pragma omp simd reduction(+ : squares)
    for (int64_t c = 0; c < size; c++) squares += (x[c] - mean) * (x[c] - mean);
    return {mean, T(1) / imn::square_root(squares / T(size) + T(EPSILON))};
}

template <typename T>
IMN_INLINE void forward_rows(const T* x, T* y, int64_t rows, int64_t size, T slope) {
    for (; rows > 0; rows--, x += size, y += size) {
        auto moments = moments_of(x, size);
#pragma omp simd
        for (int64_t c = 0; c < size; c++) {
            T normed = (x[c] - moments.mean) * moments.scale;
            y[c] = normed > 0 ? normed : slope * normed;
        }
    }
}

// With n the normed row and g the gradient by it: dx = scale (g - mean(g) - n mean(g n)).
template <typename T>
IMN_INLINE void backward_rows(const T* x, const T* grad, T* result, int64_t rows, int64_t size, T slope) {
    for (; rows > 0; rows--, x += size, grad += size, result += size) {
        auto moments = moments_of(x, size);
        T sum = 0, product = 0;
#pragma omp simd reduction(+ : sum, product)
        for (int64_t c = 0; c < size; c++) {
            T normed = (x[c] - moments.mean) * moments.scale, g = normed > 0 ? grad[c] : slope * grad[c];
            result[c] = g, sum += g, product += g * normed;
        }
        sum /= T(size), product /= T(size);
#pragma omp simd
        for (int64_t c = 0; c < size; c++)
            result[c] = moments.scale * (result[c] - sum - (x[c] - moments.mean) * moments.scale * product);
    }
}

#define IMN_INSTANTIATE(T)                                                                                \
    IMN_CLONES void forward(const T* x, T* y, int64_t rows, int64_t size, T slope) {                      \
        forward_rows(x, y, rows, size, slope);                                                            \
    }                                                                                                     \
    IMN_CLONES void backward(const T* x, const T* grad, T* result, int64_t rows, int64_t size, T slope) { \
        backward_rows(x, grad, result, rows, size, slope);                                                \
    }
IMN_INSTANTIATE(float)
IMN_INSTANTIATE(double)

template <typename Rows>
at::Tensor over_rows(const at::Tensor& features, Rows rows) {
    auto result = at::empty(features.sizes(), features.options());
    int64_t size = features.size(-1), count = size > 0 ? features.numel() / size : 0;
    at::parallel_for(0, count, 64, [&](int64_t begin, int64_t end) { rows(result, begin * size, end - begin, size); });
    return result;
}

at::Tensor layer_norm_leaky_relu(const at::Tensor& features_, double slope) {
    auto features = features_.contiguous();
    return over_rows(features, [&](at::Tensor& result, int64_t first, int64_t rows, int64_t size) {
        AT_DISPATCH_FLOATING_TYPES(features.scalar_type(), "layer_norm_leaky_relu", [&] {
            forward(features.const_data_ptr<scalar_t>() + first, result.mutable_data_ptr<scalar_t>() + first, rows,
                    size, scalar_t(slope));
        });
    });
}

at::Tensor layer_norm_leaky_relu_backward(const at::Tensor& grad_, const at::Tensor& features_, double slope) {
    auto grad = grad_.contiguous(), features = features_.contiguous();
    imn::check_sizes(grad, features.sizes(), "grad");
    return over_rows(features, [&](at::Tensor& result, int64_t first, int64_t rows, int64_t size) {
        AT_DISPATCH_FLOATING_TYPES(features.scalar_type(), "layer_norm_leaky_relu", [&] {
            backward(features.const_data_ptr<scalar_t>() + first, grad.const_data_ptr<scalar_t>() + first,
                     result.mutable_data_ptr<scalar_t>() + first, rows, size, scalar_t(slope));
        });
    });
}

}  // namespace

TORCH_LIBRARY_IMPL(implicitmeshnet, CPU, library) {
    library.impl("layer_norm_leaky_relu", layer_norm_leaky_relu);
    library.impl("layer_norm_leaky_relu_backward", layer_norm_leaky_relu_backward);
}
