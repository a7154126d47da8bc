// Which kernel computes a convolution, from its shape alone: a pure function of the host, so that a test can go through a table of shapes without a GPU, and so
// that the choice (and with it the order of every sum) is the same on every GPU.
#pragma once

#include <cstdint>

#include <fovea/kernels/geometry.h>
#include <fovea/kernels/view.h>

namespace fovea::kernels::cuda {

enum class ConvKernel : uint8_t {
  depthwise,                                 // conv_depthwise.cu
  wide,                                      // tiles of many channels by many pixels
  medium,
  narrow,
  grouped,                                   // groups of a few channels each
};

enum class ConvPass : uint8_t { forward, backward_data, backward_weight };

struct ConvPlan {
  ConvKernel kernel = ConvKernel::wide;
  int64_t splits = 1;                        // backward_weight: into so many parts the sum over pixels is cut; they are added up in order by a second kernel
};

ConvPlan choose_conv_kernel(const ConvGeometry& geometry, DType dtype, ConvPass pass);

// Bytes of the partial sums of backward_weight; 0 where the sum is not cut.
int64_t conv_partial_bytes(const ConvGeometry& geometry, DType dtype);

}  // namespace fovea::kernels::cuda
