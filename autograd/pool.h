// Pooling: what remains of windows of an image: their maximum or their mean. float32, float64 or a half type.
// The first derivative of max pooling and everything of average pooling is linear in the gradient, so all of it is differentiable twice.
//
// 2d: x [n, channels, h, w] or [channels, h, w]. 1d: x [n, channels, length] or [channels, length]. stride 0 means: as large as the kernel.
#pragma once

#include <fovea/autograd/pair.h>
#include <fovea/autograd/tape.h>

namespace fovea {

struct MaxPool2dOptions {
  Pair stride = 0, padding = 0, dilation = 1;
  bool ceil_mode = false;                    // also a last window that hangs over the border
};
struct AvgPool2dOptions {
  Pair stride = 0, padding = 0;
  bool ceil_mode = false;
  bool count_include_pad = true;             // divide by the whole window, padding included
};
struct MaxPool1dOptions {
  int64_t stride = 0, padding = 0, dilation = 1;
  bool ceil_mode = false;
};
struct AvgPool1dOptions {
  int64_t stride = 0, padding = 0;
  bool ceil_mode = false;
  bool count_include_pad = true;
};

// Largest of each window; padding does not count. NaN if there is one. The gradient goes to the first of equals.
Tensor max_pool2d(const Tensor& x, Pair kernel, const MaxPool2dOptions& options = {});
Tensor max_pool1d(const Tensor& x, int64_t kernel, const MaxPool1dOptions& options = {});

// The same, with where in its plane (h * w) each maximum stands (int64).
struct PooledMaxima {
  Tensor values, indices;
};
PooledMaxima max_pool2d_with_indices(const Tensor& x, Pair kernel, const MaxPool2dOptions& options = {});

// Mean of each window; padding counts as zero.
Tensor avg_pool2d(const Tensor& x, Pair kernel, const AvgPool2dOptions& options = {});
Tensor avg_pool1d(const Tensor& x, int64_t kernel, const AvgPool1dOptions& options = {});

// To a given size: window i goes from floor(i * in / out) to ceil((i + 1) * in / out).
Tensor adaptive_max_pool2d(const Tensor& x, Pair output);
Tensor adaptive_avg_pool2d(const Tensor& x, Pair output);
Tensor adaptive_max_pool1d(const Tensor& x, int64_t output);
Tensor adaptive_avg_pool1d(const Tensor& x, int64_t output);

// Over all positions: [n, channels, ...] -> [n, channels].
Tensor global_avg_pool(const Tensor& x);
Tensor global_max_pool(const Tensor& x);

}  // namespace fovea
