// Indexing by tensors of integers, masks, and order. Indices are int64 (int32 and uint8 are converted) and must lie in [0, size): IndexError naming the operation, the
// position and the value otherwise: on the CPU before anything is computed, on CUDA from whatever waits for the device next (cuda::synchronize(), item(), ...), while what
// such an index names reads as zero and nothing is added to it. They are not looked at on Device::meta(). Axes may be counted from the back.
#pragma once

#include <optional>

#include <fovea/autograd/tape.h>

namespace fovea {

// y[..i..] = x[..index[..i..]..] along `axis`; y has index's shape, which has x's rank and may be smaller than x along the other axes.
Tensor gather(const Tensor& x, int64_t axis, const Tensor& index);
// NumPy's take_along_axis: gather, with index broadcast to x along the other axes.
Tensor take_along(const Tensor& x, const Tensor& index, int64_t axis);
// A copy of x with source[..i..] added at [..index[..i..]..]; source has index's shape. Equal indices add up, in order.
Tensor scatter_add(const Tensor& x, int64_t axis, const Tensor& index, const Tensor& source);

// The slices of x along `axis` that a 1-D index names.
Tensor index_select(const Tensor& x, int64_t axis, const Tensor& index);
// A copy of x with slice i of source added to slice index[i].
Tensor index_add(const Tensor& x, int64_t axis, const Tensor& index, const Tensor& source);

// Rows of weight [count, size]: y [..., size] for indices [...]. The row padding_index gets no gradient (PyTorch's padding_idx; -1 is the last row).
Tensor embedding(const Tensor& indices, const Tensor& weight, std::optional<int64_t> padding_index = {});
// [...] -> [..., classes], int64: one where the index says, zero elsewhere.
Tensor one_hot(const Tensor& indices, int64_t classes);

// x with `value` where mask is true; mask is bool and is broadcast to x.
Tensor masked_fill(const Tensor& x, const Tensor& mask, double value);
// The elements where mask (of x's shape, or broadcast to it) is true, in row-major order. Reads the mask: not on Device::meta().
Tensor masked_select(const Tensor& x, const Tensor& mask);
// [count, rank]: the positions of the elements that are not zero, in row-major order. Reads x: not on Device::meta().
Tensor nonzero(const Tensor& x);

// In order along an axis. Stable; NaN counts as the largest, as in PyTorch. Gradients go back to where the values came from.
struct Ordered {
  Tensor values, indices;
};
Ordered sort(const Tensor& x, int64_t axis = -1, bool descending = false);
Tensor argsort(const Tensor& x, int64_t axis = -1, bool descending = false);
// The k largest (or smallest), the first of them first.
Ordered topk(const Tensor& x, int64_t k, int64_t axis = -1, bool largest = true);

namespace detail {
// Checks that index (argument `name` of `op`, both literals) is of integers, on x's device and in [0, size), and returns it as int64. `what` is what it counts: "rows".
Tensor checked_index(const char* op, const char* name, const Tensor& index, const Tensor& x, int64_t size, const std::string& what);
}  // namespace detail

}  // namespace fovea
