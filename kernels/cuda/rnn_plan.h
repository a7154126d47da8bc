// Which kernel computes a step of a recurrent layer, from the layer's shape alone: a pure function of the host, so that a test can go
// through a table of shapes without a GPU, and so that the choice (and with it the order of every sum) is the same on every GPU.
#pragma once

#include <cstdint>

#include <fovea/kernels/geometry.h>
#include <fovea/kernels/view.h>

namespace fovea::kernels::cuda {

// By the tile of a block: so many samples by so many hidden units, forward with all their gates. The smaller ones share the sum out among
// their warps as well.
enum class RnnKernel : uint8_t {
  tiny,                                      // for at most 8 samples; not on tensor cores, whose instruction takes 16
  slim,
  small,
  medium,
  wide,
  // A kernel for Hopper that keeps the weights on chip for the whole sequence (a cluster of blocks) goes here.
};

enum class RnnPass : uint8_t { forward, backward };

struct RnnPlan {
  RnnKernel kernel = RnnKernel::slim;
  bool uses_tensor_cores = false;            // the half types, and float32 where TF32 is allowed
  const char* name = "";                     // what last_kernel() says of a step
  int64_t tile_samples = 0, tile_units = 0;
};

RnnPlan choose_rnn_kernel(const RnnGeometry& geometry, DType dtype, RnnPass pass, bool has_tf32 = false);

}  // namespace fovea::kernels::cuda
