#include "targets.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fovea::fuzz::stands(fovea::fuzz::read_gzip, {data, size});
  return 0;
}
