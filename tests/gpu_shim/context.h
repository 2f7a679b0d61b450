// What one fiber is switched away from and back to: by hand on x86-64, where ucontext would ask the kernel each time.
#pragma once

#include <cstdint>
#include <vector>

namespace shim {

#if defined(__x86_64__)

// Keeps what a called function must keep, and goes on where `to` was switched away from.
extern "C" void imn_switch_stacks(void** from, void* to);
asm(".text\n"
    ".weak imn_switch_stacks\n"
    "imn_switch_stacks:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp, (%rdi)\n"
    "movq %rsi, %rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\n"
    "ret\n");

struct Context {
    void* stack = nullptr;

    void start(std::vector<char>& memory, void (*run)()) {
        auto top = reinterpret_cast<uintptr_t>(memory.data() + memory.size()) & ~uintptr_t(15);
        void** at = reinterpret_cast<void**>(top) - 2;  // as if `run` had been called
        at[0] = reinterpret_cast<void*>(run);
        stack = at - 6;
    }
    void switch_to(Context& other) { imn_switch_stacks(&stack, other.stack); }
};

#else

}  // namespace shim
#include <ucontext.h>
namespace shim {

struct Context {
    ucontext_t context;

    void start(std::vector<char>& memory, void (*run)()) {
        getcontext(&context);
        context.uc_stack.ss_sp = memory.data(), context.uc_stack.ss_size = memory.size();
        makecontext(&context, run, 0);
    }
    void switch_to(Context& other) { swapcontext(&context, &other.context); }
};

#endif

}  // namespace shim
