// Weighted sums over the neighbours of each vertex of one graph, on CUDA.
#include <cuda_runtime.h>
#include "launch.h"
#include "triangle.h"
#include "gpu.h"

namespace {

using imn::Integer;

// One warp a vertex of a copy of the graph, one lane a channel of it after the other. A row of features has `stride`
// channels and those that are summed from `first` on; a row of the result `wide` and from `start` on. With `own`, the
// row's first channels are added.
template <typename T>
__global__ void __launch_bounds__(imn::GROUP)
    neighbour_sum(const T* features, const Integer* index, const T* weight, T* result, Integer rows, Integer vertices,
                  Integer degree, Integer channels, Integer stride, Integer first, Integer wide, Integer start,
                  Integer own) {
    Integer row = Integer(blockIdx.x) * imn::WARPS + threadIdx.x / imn::WARP;
    if (row >= rows) return;
    Integer vertex = row % vertices, copy = row - vertex;
    index += vertex * degree, weight += vertex * degree;
    for (Integer channel = threadIdx.x % imn::WARP; channel < channels; channel += imn::WARP) {
        T sum = own ? features[row * stride + channel] : T(0);
        for (Integer d = 0; d < degree; d++) {
            // What is no vertex is moved into range: nothing waits for the device to say so.
            Integer neighbour = imn::minimum(imn::maximum(index[d], Integer(0)), vertices - 1);
            sum += weight[d] * features[(copy + neighbour) * stride + first + channel];
        }
        result[row * wide + start + channel] = sum;
    }
}

}  // namespace

IMN_EXPORT(neighbour_sum_float, neighbour_sum<float>, imn::GROUP)
IMN_EXPORT(neighbour_sum_double, neighbour_sum<double>, imn::GROUP)
