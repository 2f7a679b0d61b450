// How the host starts a CUDA kernel: C functions of raw pointers and a stream, all alike.
#pragma once

#include <cuda_runtime.h>
#include "run.h"

#ifndef IMN_EXPORT  // the tests run the kernels on the host
// imn_NAME(arguments, groups, stream): arguments[i] points to the kernel's i-th argument; returns the CUDA error code.
#define IMN_EXPORT(name, kernel, threads)                                                                          \
    extern "C" int imn_##name(void** arguments, int64_t groups, void* stream) {                                    \
        return int(cudaLaunchKernel(reinterpret_cast<const void*>(&kernel), dim3(unsigned(groups)), dim3(threads), \
                                    arguments, 0, static_cast<cudaStream_t>(stream)));                             \
    }
#endif
