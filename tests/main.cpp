// The entry of every test program. Fresh memory is poisoned with NaN and stands between guards for the whole run, so that a kernel that leaves part of its output
// unwritten, or writes beside it, fails a test. FOVEA_DEVICE=cuda in the environment makes the first CUDA device the one that tensors are made on.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdio>
#include <cstdlib>

#include <fovea/tensor/allocator.h>
#include <fovea/tensor/creation.h>

namespace {

// False, with a message, for a device that is not there.
bool choose_device() {
  const char* wish = std::getenv("FOVEA_DEVICE");
  if (!wish) return true;
  try {
    fovea::set_default_device(fovea::device_named(wish));
    return true;
  } catch (const fovea::Error& e) {
    std::fprintf(stderr, "FOVEA_DEVICE: %s\n", e.what());
    return false;
  }
}

}  // namespace

int main(int argc, char** argv) {
  fovea::allocator::set_debug(true);
  if (!choose_device()) return 2;
  doctest::Context context(argc, argv);
  if (fovea::default_device() != fovea::Device::cpu()) context.addFilter("test-suite-exclude", "cpu");      // devices.h
  const int status = context.run();
  const long long damaged = fovea::allocator::damaged_blocks();
  if (damaged == 0) return status;
  std::fprintf(stderr, "%lld tensors were freed with overwritten guard bytes: something wrote outside its memory\n", damaged);
  return 1;
}
