// Instance norm with weights, a summand, leaky ReLU and a factor at once, and their gradient, on CUDA.
//
// The channels of a voxel lie side by side. A group takes a part of an item's voxels: as many neighbouring threads as
// there are channels, at most all, take a voxel's, and the others the next voxels'. So a thread stays with its channel,
// and a warp reads along the memory. It loads a few of its voxels before it works on them, and stores after that: one
// wait for all, where the compiler may not move a load before a store that could be of the same memory. Means and sums
// are taken in the type that is computed in within a part, and in double over the parts, each in a fixed order.
#include <cuda_runtime.h>
#include "launch.h"
#include "triangle.h"
#include "bfloat16.h"

namespace {

using imn::Bfloat16;
using imn::GROUP;
using imn::Integer;
using imn::WARP;
using imn::WARPS;

template <typename V, typename T>
__device__ __forceinline__ V stored(T x) {
    return imn::StoredAs<V, T>::rounded(x);
}

constexpr int AT_ONCE = 4;           // voxels that a thread loads at a time
constexpr int OF_ONE = 2 * AT_ONCE;  // where it loads from one volume alone

// Groups on a multiprocessor at once that registers must leave room for, so that loads are many.
template <typename T>
constexpr int groups_at_once() {
    return sizeof(T) == 4 ? 4 : 1;
}

// How volumes (batch, voxels, channels) are cut into parts of `part` voxels.
struct Cut {
    Integer channels, voxels, parts, part;
};

// What a thread of a group takes: voxels [first, last) of an item, every `rows`-th, and of these every `width`-th
// channel.
struct Share {
    Integer item, number, first, last;
    int width, rows, row, lane, step;  // `step` numbers from a voxel to the thread's next

    __device__ __forceinline__ explicit Share(const Cut& cut) {
        item = blockIdx.x / cut.parts, number = blockIdx.x % cut.parts;
        first = number * cut.part, last = imn::minimum(first + cut.part, cut.voxels);
        width = int(imn::minimum(cut.channels, Integer(GROUP)));
        rows = GROUP / width, row = int(threadIdx.x) / width, lane = int(threadIdx.x) % width;
        first += row;
        if (row >= rows) first = last;
        step = rows * int(cut.channels);
    }
    // How far the part goes on from a voxel, as far as that matters for the thread's next `count`.
    __device__ __forceinline__ int left(Integer voxel, int count) const {
        return int(imn::minimum(last - voxel, Integer(count) * rows));
    }
    __device__ __forceinline__ bool has(int k, int left) const { return k * rows < left; }
    // The thread's next voxels, 0 for those beyond its last, for which the first is read again: without a branch
    // between them, one load need not wait for another.
    template <int COUNT, typename V, typename T>
    __device__ __forceinline__ void load(const V* from, int left, T (&values)[COUNT]) const {
#pragma unroll
        for (int k = 0; k < COUNT; k++) {
            T value = imn::value_of<T>(from[has(k, left) ? k * step : 0]);
            values[k] = has(k, left) ? value : T(0);
        }
    }
};

// How many numbers, their mean, and the sum of squares around it. Chan et al. 1979 put two together.
template <typename T>
struct Moments {
    T count, mean, square;

    __device__ __forceinline__ void add(Moments more) {
        if (more.count == T(0)) return;
        T total = count + more.count, offset = more.mean - mean;
        square += more.square + offset * offset * (count * more.count / total);
        mean += offset * (more.count / total);
        count = total;
    }
};

template <typename T>
struct NormShared {
    T count[GROUP], a[GROUP], b[GROUP];
};

// (batch, parts, channels): means, and sums of squares around them.
template <typename V, typename T>
__global__ void __launch_bounds__(GROUP, groups_at_once<T>())
    moments(const V* volume, T* means, T* squares, Integer channels, Integer voxels, Integer parts, Integer part) {
    IMN_SHARED_VARIABLE(NormShared<T>, shared);
    Cut cut = {channels, voxels, parts, part};
    Share share(cut);
    const V* x = volume + share.item * voxels * channels;
    for (Integer base = 0; base < channels; base += share.width) {
        Integer channel = base + share.lane;
        Moments<T> own = {T(0), T(0), T(0)};
        for (Integer v = share.first; v < share.last && channel < channels; v += OF_ONE * share.rows) {
            T value[OF_ONE];
            int left = share.left(v, OF_ONE);
            share.load(x + v * channels + channel, left, value);
            Moments<T> next = {T(0), T(0), T(0)};
#pragma unroll
            for (int k = 0; k < OF_ONE; k++) next.count += share.has(k, left) ? T(1) : T(0), next.mean += value[k];
            next.mean /= next.count;
#pragma unroll
            for (int k = 0; k < OF_ONE; k++) {
                T offset = share.has(k, left) ? value[k] - next.mean : T(0);
                next.square += offset * offset;
            }
            own.add(next);
        }
        shared.count[threadIdx.x] = own.count, shared.a[threadIdx.x] = own.mean, shared.b[threadIdx.x] = own.square;
        imn::group_barrier();
        if (share.row == 0 && channel < channels) {
            for (int other = share.lane + share.width; other < share.rows * share.width; other += share.width)
                own.add({shared.count[other], shared.a[other], shared.b[other]});
            Integer at = (share.item * parts + share.number) * channels + channel;
            means[at] = own.mean, squares[at] = own.square;
        }
        imn::group_barrier();
    }
}

// One warp a channel of an item: mean and 1 / deviation (batch, channels) from those of the parts.
template <typename T>
__global__ void __launch_bounds__(GROUP) normalise(const T* means, const T* squares, T* mean, T* scale, Integer count,
                                                   Integer channels, Integer voxels, Integer parts, Integer part) {
    Integer i = Integer(blockIdx.x) * WARPS + threadIdx.x / WARP;
    if (i >= count) return;
    Integer first = i / channels * parts * channels + i % channels;
    int lane = threadIdx.x % WARP;
    double sum = 0;
    for (Integer p = lane; p < parts; p += WARP)
        sum += double(imn::minimum(part, voxels - p * part)) * means[first + p * channels];
    double middle = imn::warp_sum(sum) / voxels, square = 0;
    for (Integer p = lane; p < parts; p += WARP) {
        double offset = means[first + p * channels] - middle;
        square += squares[first + p * channels] + double(imn::minimum(part, voxels - p * part)) * offset * offset;
    }
    double variance = imn::warp_sum(square) / voxels;
    if (lane == 0) mean[i] = T(middle), scale[i] = T(1 / sqrt(variance + 1e-5));
}

// The result. The residual and the multiplier may be null pointers.
template <typename V, typename T>
__global__ void __launch_bounds__(GROUP, groups_at_once<T>())
    activate(const V* volume, const V* residual, V* result, const T* weight, const T* bias, const T* multiplier,
             const T* mean, const T* scale, double slope, Integer channels, Integer voxels, Integer parts,
             Integer part) {
    Cut cut = {channels, voxels, parts, part};
    Share share(cut);
    Integer item = share.item * voxels * channels;
    for (Integer channel = share.lane; channel < channels; channel += share.width) {
        Integer of = share.item * channels + channel;
        T middle = mean[of], factor = weight[channel] * scale[of], summand = bias[channel];
        T high = multiplier ? multiplier[of] : T(1), low = T(slope) * high;
        for (Integer v = share.first; v < share.last; v += AT_ONCE * share.rows) {
            Integer at = item + v * channels + channel;
            T value[AT_ONCE], more[AT_ONCE] = {};
            int left = share.left(v, AT_ONCE);
            share.load(volume + at, left, value);
            if (residual) share.load(residual + at, left, more);
#pragma unroll
            for (int k = 0; k < AT_ONCE; k++) {
                T sum = factor * (value[k] - middle) + summand + more[k];
                if (share.has(k, left)) result[at + k * share.step] = stored<V>(sum * (sum > T(0) ? high : low));
            }
        }
    }
}

// written = g, the gradient by the sum before the activation; (batch, parts, channels): sums of g and g (x - mean).
template <typename V, typename T>
__global__ void __launch_bounds__(GROUP, groups_at_once<T>())
    reduce(const V* grad, const V* volume, const V* result, V* written, const T* multiplier, const T* mean, T* sums,
           T* products, double slope, Integer channels, Integer voxels, Integer parts, Integer part) {
    IMN_SHARED_VARIABLE(NormShared<T>, shared);
    Cut cut = {channels, voxels, parts, part};
    Share share(cut);
    Integer item = share.item * voxels * channels;
    for (Integer base = 0; base < channels; base += share.width) {
        Integer channel = base + share.lane;
        T sum = 0, product = 0;
        if (channel < channels) {
            Integer of = share.item * channels + channel;
            T middle = mean[of], high = multiplier ? multiplier[of] : T(1), low = T(slope) * high;
            for (Integer v = share.first; v < share.last; v += AT_ONCE * share.rows) {
                Integer at = item + v * channels + channel;
                T given[AT_ONCE], after[AT_ONCE], value[AT_ONCE];
                int left = share.left(v, AT_ONCE);
                share.load(grad + at, left, given);
                share.load(result + at, left, after);
                share.load(volume + at, left, value);
#pragma unroll
                for (int k = 0; k < AT_ONCE; k++) {
                    V g = stored<V>(given[k] * (after[k] > T(0) ? high : low));
                    if (share.has(k, left)) written[at + k * share.step] = g;
                    sum += imn::value_of<T>(g);
                    product += imn::value_of<T>(g) * (value[k] - middle);
                }
            }
        }
        shared.a[threadIdx.x] = sum, shared.b[threadIdx.x] = product;
        imn::group_barrier();
        if (share.row == 0 && channel < channels) {
            for (int other = share.lane + share.width; other < share.rows * share.width; other += share.width)
                sum += shared.a[other], product += shared.b[other];
            Integer at = (share.item * parts + share.number) * channels + channel;
            sums[at] = sum, products[at] = product;
        }
        imn::group_barrier();
    }
}

// One warp a channel of an item: its part of the gradients by weight and bias, and what `differentiate` subtracts. With
// n the normed channel and w its weight: w scale (g - mean(g) - n mean(g n)).
template <typename T>
__global__ void __launch_bounds__(GROUP)
    gather_sums(const T* sums, const T* products, const T* weight, const T* scale, double* by_weight, double* by_bias,
                T* constant, T* by_offset, Integer count, Integer channels, Integer voxels, Integer parts) {
    Integer i = Integer(blockIdx.x) * WARPS + threadIdx.x / WARP;
    if (i >= count) return;
    Integer first = i / channels * parts * channels + i % channels;
    int lane = threadIdx.x % WARP;
    double sum = 0, product = 0;
    for (Integer p = lane; p < parts; p += WARP)
        sum += sums[first + p * channels], product += products[first + p * channels];
    sum = imn::warp_sum(sum), product = imn::warp_sum(product);
    if (lane != 0) return;
    double deviation = scale[i], share = double(weight[i % channels]) * deviation / voxels;
    by_weight[i] = deviation * product, by_bias[i] = sum;
    constant[i] = T(share * sum), by_offset[i] = T(share * product * deviation * deviation);
}

// The gradient by the volume; g and by_volume may be the same memory.
template <typename V, typename T>
__global__ void __launch_bounds__(GROUP, groups_at_once<T>())
    differentiate_norm(const V* g, const V* volume, V* by_volume, const T* weight, const T* mean, const T* scale,
                       const T* constant, const T* by_offset, Integer channels, Integer voxels, Integer parts,
                       Integer part) {
    Cut cut = {channels, voxels, parts, part};
    Share share(cut);
    Integer item = share.item * voxels * channels;
    for (Integer channel = share.lane; channel < channels; channel += share.width) {
        Integer of = share.item * channels + channel;
        T middle = mean[of], factor = weight[channel] * scale[of], less = constant[of], slope = by_offset[of];
        for (Integer v = share.first; v < share.last; v += AT_ONCE * share.rows) {
            Integer at = item + v * channels + channel;
            T by_sum[AT_ONCE], value[AT_ONCE];
            int left = share.left(v, AT_ONCE);
            share.load(g + at, left, by_sum);
            share.load(volume + at, left, value);
#pragma unroll
            for (int k = 0; k < AT_ONCE; k++)
                if (share.has(k, left))
                    by_volume[at + k * share.step] = stored<V>(factor * by_sum[k] - less - slope * (value[k] - middle));
        }
    }
}

}  // namespace

IMN_EXPORT(moments_float, (moments<float, float>), GROUP)
IMN_EXPORT(moments_double, (moments<double, double>), GROUP)
IMN_EXPORT(moments_bfloat16, (moments<Bfloat16, float>), GROUP)
IMN_EXPORT(normalise_float, normalise<float>, GROUP)
IMN_EXPORT(normalise_double, normalise<double>, GROUP)
IMN_EXPORT(activate_float, (activate<float, float>), GROUP)
IMN_EXPORT(activate_double, (activate<double, double>), GROUP)
IMN_EXPORT(activate_bfloat16, (activate<Bfloat16, float>), GROUP)
IMN_EXPORT(reduce_float, (reduce<float, float>), GROUP)
IMN_EXPORT(reduce_double, (reduce<double, double>), GROUP)
IMN_EXPORT(reduce_bfloat16, (reduce<Bfloat16, float>), GROUP)
IMN_EXPORT(gather_sums_float, gather_sums<float>, GROUP)
IMN_EXPORT(gather_sums_double, gather_sums<double>, GROUP)
IMN_EXPORT(differentiate_norm_float, (differentiate_norm<float, float>), GROUP)
IMN_EXPORT(differentiate_norm_double, (differentiate_norm<double, double>), GROUP)
IMN_EXPORT(differentiate_norm_bfloat16, (differentiate_norm<Bfloat16, float>), GROUP)
