// For tests of kernels that take tensors of four axes in more than one layout.
#pragma once

#include "cuda_kernels.h"

namespace fovea::testing {

// How tensors of four axes lie on the device.
enum class Layout { planar, channels_last };

inline Strides strides_of(const Shape& shape, Layout layout) {
  if (layout == Layout::planar) return contiguous_strides(shape);
  return {shape[1] * shape[2] * shape[3], 1, shape[3] * shape[1], shape[1]};
}

// A contiguous host tensor [a,b,c,d] with its elements in the order in which `layout` has them, and back.
inline Tensor as_it_lies(const Tensor& x, Layout layout) {
  Tensor y = empty(x.shape(), x.dtype());
  View view = y.mutable_view();
  view.strides = strides_of(x.shape(), layout);
  cpu().copy(nullptr, x.view(), view);
  return y;
}
inline Tensor from_where_it_lies(const Tensor& y, Layout layout) {
  Tensor x = empty(y.shape(), y.dtype());
  ConstView view = y.view();
  view.strides = strides_of(y.shape(), layout);
  cpu().copy(nullptr, view, x.mutable_view());
  return x;
}

// A tensor on the device that lies so, `offset` elements from where packs may be read.
class LaidTensor {
 public:
  LaidTensor(const Tensor& host, Layout layout, int64_t offset) : layout_(layout), tensor_(as_it_lies(host, layout), offset) {}
  LaidTensor(const Shape& shape, DType dtype, Layout layout, int64_t offset) : layout_(layout), tensor_(DeviceTensor::poisoned(shape, dtype, offset)) {}
  View view() const {
    const View v = tensor_.view();
    return tensor_.view(v.shape, strides_of(v.shape, layout_));
  }
  Tensor to_host() const { return from_where_it_lies(tensor_.to_host(), layout_); }

 private:
  Layout layout_;
  DeviceTensor tensor_;
};

}  // namespace fovea::testing
