// Weighted sums over the neighbours of each vertex of one fixed graph, on the CPU.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "allocate.h"
#include "portable.h"

namespace {

template <typename T>
struct Graph {
    int64_t count, degree;
    const int64_t* neighbour;  // (count, degree)
    const T* weight;
};

// Adds to one vertex's sum the rows of its neighbours in its own copy of the graph.
template <typename T>
IMN_INLINE void add_row(const Graph<T>& graph, int64_t row, const T* source, int64_t stride, T* sum, int64_t channels) {
    int64_t vertex = row % graph.count, first = row - vertex;
    for (int64_t slot = vertex * graph.degree; slot < (vertex + 1) * graph.degree; slot++) {
        T weight = graph.weight[slot];
        const T* from = source + (first + graph.neighbour[slot]) * stride;
#pragma omp simd
        for (int64_t c = 0; c < channels; c++) sum[c] += weight * from[c];
    }
}

#define IMN_INSTANTIATE(T)                                                                                             \
    IMN_CLONES void add(const Graph<T>& graph, int64_t row, const T* source, int64_t stride, T* sum,                   \
                        int64_t channels) {                                                                            \
        add_row(graph, row, source, stride, sum, channels);                                                            \
    }
IMN_INSTANTIATE(float)
IMN_INSTANTIATE(double)

// Forward, features (..., V, C) -> their neighbours' sums (..., V, C); with `own`, features (..., V, 2 C) -> the first
// half plus the sums of the second (..., V, C). Backward is the transpose for a symmetric graph: gradients
// (..., V, C) -> their sums, or (..., V, 2 C): themselves beside their sums.
template <bool backward>
at::Tensor run(const at::Tensor& from_, const at::Tensor& index_, const at::Tensor& weight_, bool own) {
    auto from = from_.contiguous(), index = index_.contiguous();
    auto weight = weight_.to(from.scalar_type()).contiguous();
    auto sizes = from.sizes().vec();
    int64_t width = sizes.back(), channels = own && !backward ? width / 2 : width;
    int64_t offset = own ? channels : 0, result_width = backward ? channels + offset : channels;
    sizes.back() = result_width;
    auto result = imn::empty_huge(sizes, from.options());
    AT_DISPATCH_FLOATING_TYPES(from.scalar_type(), "neighbour_sum", [&] {
        Graph<scalar_t> graph{index.size(0), index.size(1), index.const_data_ptr<int64_t>(),
                              weight.const_data_ptr<scalar_t>()};
        auto source = from.const_data_ptr<scalar_t>();
        auto target = result.mutable_data_ptr<scalar_t>();
        at::parallel_for(0, width > 0 ? from.numel() / width : 0, 64, [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; row++) {
                scalar_t* sum = target + row * result_width;
                if (own) std::copy_n(source + row * width, channels, sum);
                if (backward) sum += offset;
                if (backward || !own) std::fill_n(sum, channels, scalar_t(0));
                add(graph, row, source + (backward ? 0 : offset), width, sum, channels);
            }
        });
    });
    return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(implicitmeshnet, CPU, library) {
    library.impl("neighbour_sum", run<false>);
    library.impl("neighbour_sum_backward", run<true>);
}
