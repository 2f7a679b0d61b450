// Fresh memory for big results.
#pragma once

#include <ATen/ATen.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace imn {

// An uninitialised tensor on the CPU, in huge pages where the system grants them on request: a first touch of 4 KiB
// pages costs more than the kernels that fill them. A request refused changes nothing.
inline at::Tensor empty_huge(at::IntArrayRef sizes, const at::TensorOptions& options,
                             at::MemoryFormat format = at::MemoryFormat::Contiguous) {
    auto tensor = at::empty(sizes, options, format);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr uintptr_t page = 4096, huge = 2 << 20;
    uintptr_t begin = reinterpret_cast<uintptr_t>(tensor.data_ptr()), end = begin + tensor.nbytes();
    begin = (begin + page - 1) / page * page, end = end / page * page;
    if (tensor.nbytes() >= 2 * huge) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
    return tensor;
}

}  // namespace imn
