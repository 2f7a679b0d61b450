// Weighted sums over the neighbours of each vertex of one fixed graph, on the CPU.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "checks.h"
#include "portable.h"

namespace {

template <typename T>
using Vector __attribute__((vector_size(64), aligned(sizeof(T)), may_alias)) = T;

template <typename T>
constexpr int64_t LANES = sizeof(Vector<T>) / sizeof(T);

// Channels that are summed together, in registers; those of all vertices fit the cache.
template <typename T>
constexpr int64_t WIDTH = 3 * LANES<T>;

template <typename T>
struct Graph {
    int64_t count, degree;
    const int64_t* neighbour;  // (count, degree)
    const T* weight;
};

// One block of `width` channels of one copy of the graph: sum = own (or 0) + the neighbours' rows of `around`.
template <typename T>
struct Block {
    const T *own, *around;
    T *sum, *copy;  // copy, unless null, takes the vertices' own rows of `around`
    int64_t in_stride, out_stride, width;
};

template <typename T, typename Lane, int COUNT>  // COUNT Lanes, a Lane being a vector or one channel
IMN_INLINE void add_rows(const Graph<T>& graph, const Block<T>& block, int64_t first) {
    auto row = [first](auto* rows, int64_t at) { return reinterpret_cast<const Lane*>(rows + at + first); };
    auto store = [first](T* rows, int64_t at, const Lane* values) {
        for (int k = 0; k < COUNT; k++) reinterpret_cast<Lane*>(rows + at + first)[k] = values[k];
    };
    for (int64_t v = 0; v < graph.count; v++) {
        Lane sum[COUNT];
        for (int k = 0; k < COUNT; k++) sum[k] = block.own ? row(block.own, v * block.in_stride)[k] : Lane{};
        for (int64_t slot = v * graph.degree; slot < (v + 1) * graph.degree; slot++) {
            const Lane* from = row(block.around, graph.neighbour[slot] * block.in_stride);
            for (int k = 0; k < COUNT; k++) sum[k] += graph.weight[slot] * from[k];
        }
        store(block.sum, v * block.out_stride, sum);
        if (block.copy) store(block.copy, v * block.out_stride, row(block.around, v * block.in_stride));
    }
}

#define IMN_INSTANTIATE(T)                                                                                         \
    IMN_CLONES void add(const Graph<T>& graph, const Block<T>& block) {                                            \
        if (block.width == WIDTH<T>) return add_rows<T, Vector<T>, 3>(graph, block, 0);                            \
        int64_t first = 0;                                                                                         \
        for (; first + LANES<T> <= block.width; first += LANES<T>) add_rows<T, Vector<T>, 1>(graph, block, first); \
        for (; first < block.width; first++) add_rows<T, T, 1>(graph, block, first);                               \
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
    TORCH_CHECK_VALUE(index.dim() == 2, "index: wanted shape (V, D), found ", index.sizes());
    imn::check_sizes(weight, index.sizes(), "weight");
    TORCH_CHECK_VALUE(from.dim() >= 2 && from.size(-2) == index.size(0) && !(own && !backward && from.size(-1) % 2),
                      "features: wanted shape (..., ", index.size(0), own && !backward ? ", 2 C)" : ", C)", ", found ",
                      from.sizes());
    for (int64_t slot = 0; slot < index.numel(); slot++) {
        int64_t neighbour = index.const_data_ptr<int64_t>()[slot];
        TORCH_CHECK_INDEX(0 <= neighbour && neighbour < index.size(0), "index: wanted vertices from 0 to ",
                          index.size(0) - 1, ", found ", neighbour);
    }
    auto sizes = from.sizes().vec();
    int64_t width = sizes.back(), channels = own && !backward ? width / 2 : width, half = own ? channels : 0;
    sizes.back() = backward ? channels + half : channels;
    auto result = at::empty(sizes, from.options());
    int64_t copies = from.numel() / std::max<int64_t>(index.size(0) * width, 1);
    AT_DISPATCH_FLOATING_TYPES(from.scalar_type(), "neighbour_sum", [&] {
        constexpr int64_t widest = WIDTH<scalar_t>;
        int64_t blocks = (channels + widest - 1) / widest;
        Graph<scalar_t> graph{index.size(0), index.size(1), index.const_data_ptr<int64_t>(),
                              weight.const_data_ptr<scalar_t>()};
        auto source = from.const_data_ptr<scalar_t>();
        auto target = result.mutable_data_ptr<scalar_t>();
        at::parallel_for(0, copies * blocks, 1, [&](int64_t begin, int64_t end) {
            for (int64_t task = begin; task < end; task++) {
                int64_t first = task % blocks * widest, row = task / blocks * graph.count;
                auto in = source + row * width + first;
                auto out = target + row * sizes.back() + first;
                auto count = std::min(widest, channels - first);
                Block<scalar_t> block{nullptr, in, out, nullptr, width, sizes.back(), count};
                if (own && backward) block.copy = out, block.sum = out + half;
                if (own && !backward) block.own = in, block.around = in + half;
                add(graph, block);
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
