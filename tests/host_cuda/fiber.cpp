// Not ucontext: swapcontext saves and restores the signal mask with two system calls, 235 ns a switch where these few instructions take 13 ns, and a block of 256
// threads switches 256 times at every barrier. Only the registers that a call must preserve are saved; kernels leave the floating-point control words alone.
#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <stdexcept>
#include <vector>

#include "model.h"
#include "sanitizers.h"

extern "C" void host_cuda_switch(void** save, void* to);

#if defined(__x86_64__)
asm(R"(
.text
.globl host_cuda_switch
.hidden host_cuda_switch
.type host_cuda_switch, @function
host_cuda_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size host_cuda_switch, . - host_cuda_switch
)");
#elif defined(__aarch64__)
asm(R"(
.text
.globl host_cuda_switch
.hidden host_cuda_switch
.type host_cuda_switch, %function
host_cuda_switch:
  sub sp, sp, #160
  stp x19, x20, [sp]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size host_cuda_switch, . - host_cuda_switch
)");
#else
#error "the model of CUDA switches stacks with a few instructions of its own: write them for this processor in tests/host_cuda/fiber.cpp"
#endif

namespace host_cuda {
namespace {

constexpr size_t most_fibers = most_resident_threads + 1;

struct Slab {
  char* begin;
  size_t bytes;
};
std::vector<Slab>& slabs() {
  static std::vector<Slab> all = [] {
    std::vector<Slab> none;
    none.reserve(most_fibers);           // never moved: the thread sanitizer would see fibers that nothing orders do it
    return none;
  }();
  return all;
}

size_t page_bytes() {
  static const size_t bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

}  // namespace

// A stack has a page below it that may not be touched. The pages of it that are used are touched only when they are used.
void make_fiber(Fiber& fiber) {
  const size_t bytes = fiber_stack_bytes + page_bytes();
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::runtime_error("host_cuda: no memory for the stack of a kernel's thread");
  mprotect(memory, page_bytes(), PROT_NONE);
  slabs().push_back({static_cast<char*>(memory), page_bytes()});
  fiber.bottom = static_cast<char*>(memory) + page_bytes();
  fiber.bytes = fiber_stack_bytes;
  // Tops that lie at equal places within their pages would share a few sets of the first-level cache: they are staggered by up to a page.
  fiber.stagger = slabs().size() * 5 % 32 * 128;
  if (sanitize_threads) fiber.sanitizer_state = tsan_create_fiber();
}

void start_fiber(Fiber& fiber, void (*entry)()) {
  unpoison(fiber.bottom, fiber.bytes);
  void** top = reinterpret_cast<void**>(fiber.bottom + fiber.bytes - fiber.stagger - 64);
#if defined(__x86_64__)
  // After `ret` into entry the stack pointer must be 8 beyond a multiple of 16, as after a call; it points at the return address of nobody.
  for (int i = 1; i <= 8; ++i) top[-i] = nullptr;
  top[-2] = reinterpret_cast<void*>(entry);
  fiber.stack_pointer = top - 8;
#else
  for (int i = 1; i <= 20; ++i) top[-i] = nullptr;
  top[-20 + 11] = reinterpret_cast<void*>(entry);          // x30
  fiber.stack_pointer = top - 20;
#endif
}

void adopt_host_thread(Fiber& fiber) {
  fiber = {};
  if (sanitize_threads) fiber.sanitizer_state = tsan_current_fiber();
}

NO_SANITIZE void enter_fiber(Fiber& host) {
  if (host.bottom) return end_switch(nullptr);
  const void* bottom = nullptr;
  end_switch(nullptr, &bottom, &host.bytes);
  host.bottom = static_cast<char*>(const_cast<void*>(bottom));
}

NO_SANITIZE void switch_fiber(Fiber& from, Fiber& to, bool from_ends) {
  if (sanitize_threads) tsan_switch_to_fiber(to.sanitizer_state);
  begin_switch(from_ends ? nullptr : &from.sanitizer_state, to.bottom, to.bytes);
  host_cuda_switch(&from.stack_pointer, to.stack_pointer);
  end_switch(from.sanitizer_state);
}

bool is_stack_guard(const void* address) {
  for (const Slab& s : slabs())
    if (address >= s.begin && address < s.begin + s.bytes) return true;
  return false;
}

}  // namespace host_cuda
