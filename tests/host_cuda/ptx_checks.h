// What the models of instructions check alike. `who` begins a sentence about what is wrong, and is called only where there is one to say.
#pragma once

#include "model.h"

namespace host_cuda {

// That `bytes` of shared memory are there, aligned as the instruction wants them.
template <class Who>
void check_shared(const void* p, int bytes, int alignment, const Who& who) {
  const SharedRange s = shared_range();
  const char* begin = static_cast<const char*>(p);
  if (begin < s.begin || begin + bytes > s.begin + s.bytes) fail_kernel(text(who(), ", ", describe_address(p), ", but it takes ", bytes, " bytes of shared memory"));
  if (reinterpret_cast<uintptr_t>(p) % static_cast<uintptr_t>(alignment) != 0)
    fail_kernel(text(who(), ", ", describe_address(p), ", which is not a multiple of ", alignment, " bytes, as the instruction needs"));
}

}  // namespace host_cuda
