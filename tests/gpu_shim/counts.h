// How many instructions each warp takes, for benchmarks/replay.py: it puts a counter into every basic block of the
// kernels' machine code and defines IMN_COUNT_BLOCKS. The lanes of a warp run a block together, so between two barriers
// a warp takes it as often as the lane that takes it most often.
#pragma once

#include <cstdint>
#include <vector>

#if defined(IMN_COUNT_BLOCKS)

extern "C" {
extern uint32_t imn_block_count[];               // of the running lane, since its turn began
extern const uint32_t imn_block_instructions[];  // of one run of each block
extern const uint32_t imn_blocks;                // a multiple of CHUNK
}

namespace shim::counts {

struct Tally {
    std::vector<std::vector<uint32_t>> most;  // of each warp: each block's runs since the last barrier
    std::vector<uint64_t> instructions;       // of each warp of the group
    std::vector<uint64_t> done;               // of each warp of the groups so far
};

inline Tally& tally() {
    static Tally instance;
    return instance;
}

inline void begin_group() { tally().instructions.assign(tally().most.size(), 0); }

constexpr uint32_t CHUNK = 16;  // blocks that are looked at together, as most have not run

inline bool any(const uint32_t* counts) {
    uint32_t all = 0;
    for (uint32_t i = 0; i < CHUNK; i++) all |= counts[i];
    return all != 0;
}

__attribute__((optimize("O3"))) inline void end_turn(size_t warp) {
    auto& most = tally().most;
    while (most.size() <= warp) most.emplace_back(imn_blocks), tally().instructions.push_back(0);
    uint32_t* of_warp = most[warp].data();
    for (uint32_t first = 0; first < imn_blocks; first += CHUNK) {
        if (!any(imn_block_count + first)) continue;
        for (uint32_t b = first; b < first + CHUNK; b++) {
            of_warp[b] = of_warp[b] > imn_block_count[b] ? of_warp[b] : imn_block_count[b];
            imn_block_count[b] = 0;
        }
    }
}

__attribute__((optimize("O3"))) inline void end_segment(size_t begin, size_t end) {
    for (size_t warp = begin; warp < end && warp < tally().most.size(); warp++) {
        uint32_t* of_warp = tally().most[warp].data();
        uint64_t sum = 0;
        for (uint32_t first = 0; first < imn_blocks; first += CHUNK) {
            if (!any(of_warp + first)) continue;
            for (uint32_t b = first; b < first + CHUNK; b++) {
                sum += uint64_t(of_warp[b]) * imn_block_instructions[b];
                of_warp[b] = 0;
            }
        }
        tally().instructions[warp] += sum;
    }
}

inline void end_group(size_t warps) {
    end_segment(0, warps);
    for (size_t warp = 0; warp < warps; warp++) tally().done.push_back(tally().instructions[warp]);
}

}  // namespace shim::counts

// Hands over the counts of each warp since the last call, at most `room`; returns how many there were.
extern "C" __attribute__((used)) inline int64_t imn_take_counts(uint64_t* to, int64_t room) {
    auto& done = shim::counts::tally().done;
    int64_t found = int64_t(done.size());
    for (int64_t i = 0; i < found && i < room; i++) to[i] = done[i];
    if (room >= found) done.clear();
    return found;
}

#else

namespace shim::counts {

inline void begin_group() {}
inline void end_turn(int) {}
inline void end_segment(int, int) {}
inline void end_group(int) {}

}  // namespace shim::counts

#endif
