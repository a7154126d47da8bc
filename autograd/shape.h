// Operations that move elements around without computing: views of the same memory, and copies where a view cannot do it.
// Axes may be counted from the back (-1 is the last).
#pragma once

#include <vector>

#include <fovea/autograd/tape.h>

namespace fovea {

// --- views: no element is copied ---
Tensor transpose(const Tensor& x, int64_t axis0, int64_t axis1);
Tensor transpose(const Tensor& x);                                    // of a matrix (or a stack of matrices): the last two axes
Tensor permute(const Tensor& x, const std::vector<int64_t>& axes);    // axis i of the result is axis axes[i] of x
Tensor expand(const Tensor& x, const Shape& shape);                   // broadcasts x to shape (NumPy's rule)
Tensor unsqueeze(const Tensor& x, int64_t axis);
Tensor squeeze(const Tensor& x, int64_t axis);                        // takes out an axis of size 1
Tensor squeeze(const Tensor& x);                                      // all of them
Tensor narrow(const Tensor& x, int64_t axis, int64_t start, int64_t length);
Tensor slice(const Tensor& x, int64_t axis, int64_t start, int64_t end, int64_t step = 1);   // Python's rules; step may be negative
Tensor select(const Tensor& x, int64_t axis, int64_t index);          // x without the axis, at index
Tensor flip(const Tensor& x, const std::vector<int64_t>& axes);
Tensor diagonal(const Tensor& x);                                     // of the last two axes: [.., n, m] -> [.., min(n, m)]
std::vector<Tensor> split(const Tensor& x, int64_t size, int64_t axis = 0);                  // pieces of `size` (the last may be smaller)
std::vector<Tensor> split(const Tensor& x, const std::vector<int64_t>& sizes, int64_t axis = 0);
std::vector<Tensor> chunk(const Tensor& x, int64_t chunks, int64_t axis = 0);                // about equal pieces, as PyTorch cuts them

// --- a view where the strides allow it, a copy otherwise ---
Tensor reshape(const Tensor& x, const Shape& shape);                  // one size may be -1
Tensor flatten(const Tensor& x, int64_t first_axis = 0, int64_t last_axis = -1);

// --- copies ---
Tensor contiguous(const Tensor& x);                                   // x itself if it is contiguous already
Tensor clone(const Tensor& x);                                        // as contiguous

// Channels-last: the memory of a tensor [n, channels, h, w] lies as [n, h, w, channels], as tensor cores want it; shapes, indices and values are what they were. Elementwise
// operations, to(x, dtype) and batch norm keep that layout, on the CPU as on CUDA; operations that need contiguous memory copy.
bool is_channels_last(const Tensor& x);                               // true as well of a contiguous [n, channels, h, w] with one channel, or one place
Tensor channels_last(const Tensor& x);                                // x itself if it is channels-last already; ShapeError unless it has four axes
Tensor concat(const std::vector<Tensor>& tensors, int64_t axis = 0);
Tensor stack(const std::vector<Tensor>& tensors, int64_t axis = 0);   // along a new axis
Tensor repeat(const Tensor& x, const std::vector<int64_t>& times);    // tiles x, times[i] copies along axis i
Tensor roll(const Tensor& x, int64_t shift, int64_t axis);            // elements that fall off the end come back at the front

enum class PadMode { constant, reflect, replicate };
// padding: pairs (before, after), beginning with the last axis, as PyTorch's pad. Negative values cut (constant mode only).
Tensor pad(const Tensor& x, const std::vector<int64_t>& padding, PadMode mode = PadMode::constant, double value = 0);

// Lower (upper) triangle of the last two axes, with `diagonal` of them above the main one kept (cut); the rest is zero.
Tensor tril(const Tensor& x, int64_t diagonal = 0);
Tensor triu(const Tensor& x, int64_t diagonal = 0);

Tensor to(const Tensor& x, DType dtype);                              // x itself if it has the dtype already
// A copy on another device. With is_async, from pinned(x) to a CUDA device, the call doesn't wait: x is to be left alone until the current stream has come that far.
Tensor to(const Tensor& x, Device device, bool is_async = false);

// The sum of g over the axes along which a tensor of `shape` was broadcast: the gradient of expand().
Tensor sum_to(const Tensor& g, const Shape& shape);

}  // namespace fovea
