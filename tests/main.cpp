// The entry of every test program. Fresh memory is poisoned with NaN and stands between guards for the whole run, so that a kernel that leaves part of its output
// unwritten, or writes beside it, fails a test.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdio>

#include <fovea/tensor/allocator.h>

int main(int argc, char** argv) {
  fovea::allocator::set_debug(true);
  const int status = doctest::Context(argc, argv).run();
  const long long damaged = fovea::allocator::damaged_blocks();
  if (damaged == 0) return status;
  std::fprintf(stderr, "%lld tensors were freed with overwritten guard bytes: something wrote outside its memory\n", damaged);
  return 1;
}
