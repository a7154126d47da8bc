// Stands in for the CUDA backend in a build without one.
#include <fovea/kernels/table.h>

namespace fovea::kernels {

const KernelTable& cuda_table(int index) {
  fail<DeviceError>("cuda:", index, ": this build of Fovea has no CUDA; configure with `cmake --preset cuda` on a machine that has nvcc");
}

}  // namespace fovea::kernels
