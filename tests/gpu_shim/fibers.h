// Runs GPU kernels on the host: the threads of a group are fibers that take turns at each barrier, so that barriers,
// shared memory and warps mean what they mean on the device. A barrier that only some threads reach is an error.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <utility>
#include <vector>

#include "context.h"
#include "counts.h"
#include "races.h"

namespace shim {

constexpr int WARP = 32, STACK = 128 << 10;
enum State { READY, AT_GROUP, AT_WARP, DONE };

struct Fiber {
    Context context;
    std::vector<char> stack;
    State state = READY;
    int collectives = 0, barriers = 0;  // so far
    races::Strand strand;
};

struct Scheduler {
    Context main;
    races::Strand main_strand;
    std::vector<Fiber> fibers;
    std::function<void()> body;
    int current = 0;
    int64_t group = 0;
    double exchange[2][1024];  // what collectives pass between lanes: each other one, as a lane may be one ahead
};

inline Scheduler& scheduler() {
    static Scheduler instance;
    return instance;
}

constexpr int GROUP_STARTS = 0, GROUP_ENDS = 1, BARRIERS = 2;  // places of races.h

// The place of a barrier of a fiber's warp or group: each other one, as a fiber may be one ahead.
inline int place_of(int fiber, State state, int number) {
    int of = state == AT_GROUP ? 0 : 1 + fiber / WARP;
    return BARRIERS + 2 * of + number % 2;
}

SHIM_UNWATCHED __attribute__((noinline)) inline void wait(State state) {
    Scheduler& s = scheduler();
    int own = s.current;
    Fiber& fiber = s.fibers[own];
    int place = state == DONE ? GROUP_ENDS : place_of(own, state, fiber.barriers++);
    fiber.state = state;
    races::release(place);
    races::before_switch(s.main_strand);
    fiber.context.switch_to(s.main);
    races::acquire(place);
}

SHIM_UNWATCHED inline void run_fiber() {
    races::acquire(GROUP_STARTS);
    scheduler().body();
    wait(DONE);
}

// Lets [begin, end) go on if all of them that are not done wait at `state`.
SHIM_UNWATCHED inline bool release(int begin, int end, State state) {
    auto& fibers = scheduler().fibers;
    bool any = false;
    for (int i = begin; i < end; i++) {
        if (fibers[i].state == DONE) continue;
        if (fibers[i].state != state) return false;
        any = true;
    }
    for (int i = begin; any && i < end; i++)
        if (fibers[i].state == state) fibers[i].state = READY;
    if (any) counts::end_segment(begin / WARP, (end + WARP - 1) / WARP);
    return any;
}

// One group. Threads run in an order that differs from group to group, so that nothing may lean on it.
SHIM_UNWATCHED inline void run_group(int64_t group, int size, std::function<void()> body) {
    Scheduler& s = scheduler();
    s.group = group, s.body = std::move(body);
    s.fibers.resize(size);
    for (Fiber& fiber : s.fibers) {
        fiber.stack.resize(STACK), fiber.state = READY, fiber.collectives = fiber.barriers = 0;
        races::start(fiber.strand);
        fiber.context.start(fiber.stack, run_fiber);
    }
    counts::begin_group();
    races::name_current(s.main_strand);
    races::release(GROUP_STARTS);
    for (bool moved = true; moved;) {
        moved = false;
        for (int n = 0; n < size; n++) {
            s.current = group % 2 ? size - 1 - n : n;
            if (s.fibers[s.current].state != READY) continue;
            races::before_switch(s.fibers[s.current].strand);
            s.main.switch_to(s.fibers[s.current].context);
            counts::end_turn(s.current / WARP);
            moved = true;
        }
        for (int begin = 0; begin < size; begin += WARP) moved |= release(begin, std::min(begin + WARP, size), AT_WARP);
        moved |= release(0, size, AT_GROUP);
    }
    for (Fiber& fiber : s.fibers)
        if (fiber.state != DONE) std::fprintf(stderr, "a barrier that not all threads reach\n"), std::abort();
    races::acquire(GROUP_ENDS);
    counts::end_group((size + WARP - 1) / WARP);
}

SHIM_UNWATCHED inline int current() { return scheduler().current; }
SHIM_UNWATCHED inline int64_t group() { return scheduler().group; }
inline int lane() { return current() % WARP; }

// The value that each lane passes, seen by lane `from`.
template <typename T, typename Reduce>
SHIM_UNWATCHED __attribute__((noinline)) T collective(T value, Reduce reduce) {
    Scheduler& s = scheduler();
    double* exchange = s.exchange[s.fibers[s.current].collectives++ % 2];
    exchange[s.current] = double(value);  // exact for float, double and int
    wait(AT_WARP);
    int first = s.current / WARP * WARP;
    return reduce(exchange + first, std::min<int>(WARP, s.fibers.size() - first));
}

template <typename... A, size_t... I>
void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_reference_t<A>*>(arguments[I])...);
}

}  // namespace shim
