// What ThreadSanitizer is told of the fibers: each is a thread to it, a barrier orders what is before and after it, and
// nothing else does. Groups and launches follow each other, so only races within a group are found.
#pragma once

#if defined(__SANITIZE_THREAD__)

#define SHIM_UNWATCHED __attribute__((no_sanitize("thread")))  // the scheduler's own part

#include <sanitizer/tsan_interface.h>

namespace shim::races {

struct Strand {
    void* of_sanitizer = nullptr;
};

inline char& place(int at) {
    static char places[4096];
    return places[at];
}

inline void name_current(Strand& strand) { strand.of_sanitizer = __tsan_get_current_fiber(); }
inline void start(Strand& strand) {
    if (!strand.of_sanitizer) strand.of_sanitizer = __tsan_create_fiber(0);
}
inline void before_switch(Strand& to) { __tsan_switch_to_fiber(to.of_sanitizer, __tsan_switch_to_fiber_no_sync); }
inline void release(int at) { __tsan_release(&place(at)); }
inline void acquire(int at) { __tsan_acquire(&place(at)); }

}  // namespace shim::races

#else

#define SHIM_UNWATCHED

namespace shim::races {

struct Strand {};
inline void name_current(Strand&) {}
inline void start(Strand&) {}
inline void before_switch(Strand&) {}
inline void release(int) {}
inline void acquire(int) {}

}  // namespace shim::races

#endif
