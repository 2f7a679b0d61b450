// Several kernels in one call of the library, as each call costs the host some microseconds.
#pragma once

#include <cstdint>

// Starts kernels one after the other. `words` holds for each its function's address, its groups, how many arguments it
// has, and these; returns the first CUDA error code that is not 0.
extern "C" __attribute__((weak)) int imn_run(int64_t* words, int64_t count, void* stream) {
    constexpr int64_t MOST = 32;  // arguments
    void* arguments[MOST];
    for (int64_t at = 0; at < count;) {
        auto start = reinterpret_cast<int (*)(void**, int64_t, void*)>(words[at]);
        int64_t groups = words[at + 1], size = words[at + 2];
        at += 3;
        for (int64_t i = 0; i < size && i < MOST; i++) arguments[i] = words + at + i;
        at += size;
        int code = start(arguments, groups, stream);
        if (code != 0) return code;
    }
    return 0;
}
