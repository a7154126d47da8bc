// Which kernel computes a convolution, from its shape alone: a pure function of the host, so that a test can go through a table of shapes without a GPU, and so
// that the choice (and with it the order of every sum) is the same on every GPU.
#pragma once

#include <cstdint>

#include <fovea/kernels/geometry.h>
#include <fovea/kernels/view.h>

namespace fovea::kernels::cuda {

enum class ConvKernel : uint8_t {
  depthwise,                                 // conv_depthwise.cu
  wide,                                      // conv_plain*.cu, float32 and float64: tiles of many channels by many pixels
  broad,
  medium,
  narrow,
  grouped,                                   // few channels
  direct,                                    // conv_direct*.cu, float32 in small groups: tiles of neighbouring pixels by a group
  tensor_wide,                               // conv_tensor*.cu, the half types and TF32: tiles of many pixels by many channels
  tensor_medium,
  tensor_small,
  tensor_narrow,
  tensor_slim,
  tensor_grouped,                            // conv_grouped*.cu, the half types in small groups: tiles of neighbouring pixels by several groups
  // Kernels for Hopper's own instructions (wgmma fed by TMA) go here: a row of choose_tensor_tile, behind a field of ConvMath that says that the device has them.
};

enum class ConvPass : uint8_t { forward, backward_data, backward_weight };

// How a tensor-core kernel gets at its source's elements.
enum class ConvSource : uint8_t {
  windows,                                   // 16 bytes of neighbouring channels at a time, from wherever the window lies
  pointwise,                                 // the same where a window is one pixel: a plain product of matrices
  few_channels,                              // up to 4 channels of a half type: 8 bytes at a time, so that no more than 4 are padded to
};

// What may be taken besides the element type's own arithmetic.
struct ConvMath {
  bool has_tf32 = false;                     // cuda::allow_tf32()
};

// Note [What the tensor cores' kernels read]
// They copy 16 bytes of neighbouring channels at once, so the source lies [n, h, w, group, channel], with the channels of each group padded by zeros to whole copies;
// and the weights lie [group, row, r, s, channel], each row padded as well. Whatever does not lie so already is copied so first, into the workspace, for as many images
// at a time as stay in a GPU's L2 cache until they are read again (`images_per_slice`).
struct ConvLayout {
  int64_t x_channels = 0, y_channels = 0;    // the channels of a group, padded
  int64_t images_per_slice = 1;
  int64_t weight_row = 0;                    // elements of a padded row of weights; in backward_weight of a row of sums; in conv_plain.cu of a channel's rows,
                                             // or 0 where it reads the weights as they lie
  int64_t x_bytes = 0, y_bytes = 0, weight_bytes = 0, parts_bytes = 0;         // of the workspace, in this order
  int64_t bytes() const { return x_bytes + y_bytes + weight_bytes + parts_bytes; }
};

struct ConvPlan {
  ConvKernel kernel = ConvKernel::wide;
  const char* name = "";                     // what last_kernel() says, unless a kernel that adds up the parts follows
  int64_t tile_rows = 0, tile_columns = 0;   // of a block's tile of results: channels by pixels in conv_plain.cu, pixels by channels in conv_tensor.cu
  int64_t tile_h = 0, tile_w = 0;            // pixels of y that conv_grouped_weight.cu or conv_direct_weight.cu looks at at once
  int64_t splits = 1;                        // into so many parts the sum is cut; they are added up in order by a second kernel
  ConvSource source = ConvSource::windows;   // of the tensor cores' kernels
  ConvLayout layout;                         // of conv_plain.cu: the weights and parts alone

  bool uses_tensor_cores() const { return kernel >= ConvKernel::tensor_wide; }
};

ConvPlan choose_conv_kernel(const ConvGeometry& geometry, DType dtype, ConvPass pass, ConvMath math = {});

// Makes a plan for conv_plain.cu's forward or backward_data pack the weights. choose_conv_kernel has done so where that pays.
void plan_packed_weights(const ConvGeometry& geometry, DType dtype, ConvPass pass, ConvPlan& plan);

// Does a window see one pixel, the same in x and y?
inline bool is_pointwise(const ConvGeometry& g) { return g.r == 1 && g.s == 1 && g.stride_h == 1 && g.stride_w == 1 && g.pad_h == 0 && g.pad_w == 0; }

// The same of a depthwise weight's gradient where x and dy lie channels-last.
int64_t conv_depthwise_last_splits(const ConvGeometry& geometry, DType dtype);

// Into so many parts the sum of a bias's gradient is cut; is_planar: dy lies [n,k,h,w], not channels-last.
int64_t conv_bias_splits(const ConvGeometry& geometry, bool is_planar);

// Bytes of workspace that a pass wants.
int64_t conv_pass_bytes(const ConvGeometry& geometry, DType dtype, ConvPass pass, ConvMath math = {});

}  // namespace fovea::kernels::cuda
