// Stacks that threads of a kernel run on, and the switch between them.
#pragma once

#include <cstddef>

namespace host_cuda {

struct Fiber {
  char* bottom = nullptr;                // of the stack; the main fiber's is only known to the address sanitizer
  size_t bytes = 0;
  size_t stagger = 0;
  void* stack_pointer = nullptr;         // where it goes on, while another one runs
  void* sanitizer_state = nullptr;       // the address sanitizer's fake stack, or the thread sanitizer's fiber
};

// Goes on with `to`; returns when somebody switches back to `from`. An ending fiber is never switched back to.
void switch_fiber(Fiber& from, Fiber& to, bool from_ends = false);

// The fiber that called host_cuda::run_grid: the host thread's own stack. Its bounds are learnt when the first fiber that it starts calls enter_fiber, as all must.
void adopt_host_thread(Fiber& fiber);
void enter_fiber(Fiber& host);

// A fiber's stack, and what makes it run `entry` (which never returns) at the next switch to it.
inline constexpr size_t fiber_stack_bytes = 256 << 10;
void make_fiber(Fiber& fiber);
void start_fiber(Fiber& fiber, void (*entry)());

// Whether `address` is in the guard below a fiber's stack: the stack has overflowed.
bool is_stack_guard(const void* address);

}  // namespace host_cuda
