// Splat, gather and the gradient by the positions on CUDA.
#include "launch.h"
#include "grid_feature_projection_gpu.h"

namespace {

using imn::Integer;
using imn::Layout;
using imn::Thread;

__device__ Thread here() { return {Integer(blockIdx.x), int(threadIdx.x)}; }

template <typename T>
__global__ void __launch_bounds__(imn::GROUP)
    splat(const T* vertices, const T* features, T* volume, Integer batch, Integer count, Integer channels, Integer x,
          Integer y, Integer z, Integer step_b, Integer step_channel, Integer step_x, Integer step_y, Integer step_z) {
    imn::splat_channel(imn::Vertices<T>{vertices, batch, count}, features, volume,
                       Layout{channels, x, y, z, step_b, step_channel, step_x, step_y, step_z}, imn::Terms<T>{},
                       here());
}

__global__ void __launch_bounds__(imn::GROUP)
    splat_fixed(const float* vertices, const float* features, Integer* volume, const double* scale, Integer batch,
                Integer count, Integer channels, Integer x, Integer y, Integer z, Integer step_b, Integer step_channel,
                Integer step_x, Integer step_y, Integer step_z) {
    imn::splat_channel(imn::Vertices<float>{vertices, batch, count}, features, volume,
                       Layout{channels, x, y, z, step_b, step_channel, step_x, step_y, step_z}, imn::FixedTerms{scale},
                       here());
}

template <typename T, typename V>
__global__ void __launch_bounds__(imn::GROUP)
    gather(const V* volume, const T* vertices, T* result, Integer batch, Integer count, Integer row, Integer first,
           Integer channels, Integer x, Integer y, Integer z, Integer step_b, Integer step_channel, Integer step_x,
           Integer step_y, Integer step_z) {
    imn::gather_channel(volume, imn::Vertices<T>{vertices, batch, count}, result, imn::Row{row, first},
                        Layout{channels, x, y, z, step_b, step_channel, step_x, step_y, step_z}, here());
}

template <typename T, typename V>
__global__ void __launch_bounds__(imn::GROUP)
    position_gradient(const V* volume, const T* vertices, const T* features, T* result, Integer batch, Integer count,
                      Integer row, Integer first, Integer channels, Integer x, Integer y, Integer z, Integer step_b,
                      Integer step_channel, Integer step_x, Integer step_y, Integer step_z) {
    imn::differentiate_vertex(volume, imn::Vertices<T>{vertices, batch, count}, features, result, imn::Row{row, first},
                              Layout{channels, x, y, z, step_b, step_channel, step_x, step_y, step_z}, here());
}

}  // namespace

IMN_EXPORT(splat_float, splat<float>, imn::GROUP)
IMN_EXPORT(splat_double, splat<double>, imn::GROUP)
IMN_EXPORT(gather_float, (gather<float, float>), imn::GROUP)
IMN_EXPORT(gather_double, (gather<double, double>), imn::GROUP)
IMN_EXPORT(gather_bfloat16, (gather<float, imn::Bfloat16>), imn::GROUP)
IMN_EXPORT(position_gradient_float, (position_gradient<float, float>), imn::GROUP)
IMN_EXPORT(position_gradient_double, (position_gradient<double, double>), imn::GROUP)
IMN_EXPORT(position_gradient_bfloat16, (position_gradient<float, imn::Bfloat16>), imn::GROUP)
IMN_EXPORT(splat_fixed, splat_fixed, imn::GROUP)
