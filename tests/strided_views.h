// Views of a tensor's memory with shapes and strides of a test's own, and reading them element by element.
#pragma once

#include <functional>

#include <fovea/tensor/tensor.h>

namespace fovea::testing {

// The memory of x from element `offset` on, seen with another shape and other strides.
inline View restrided(Tensor& x, const Shape& shape, const Strides& strides, int64_t offset = 0) {
  View v = x.mutable_view();
  v.data = static_cast<char*>(v.data) + offset * size_of(v.dtype);
  v.shape = shape;
  v.strides = strides;
  return v;
}
inline ConstView restrided(const Tensor& x, const Shape& shape, const Strides& strides, int64_t offset = 0) {
  Tensor same = x;
  return restrided(same, shape, strides, offset);
}

// Calls f(index) for every index of a shape, in row-major order.
inline void for_each_index(const Shape& shape, const std::function<void(const Shape&)>& f) {
  Shape index = Shape::filled(shape.rank(), 0);
  for (int64_t i = 0, n = shape.numel(); i < n; ++i) {
    f(index);
    for (int axis = shape.rank() - 1; axis >= 0; --axis) {
      if (++index[axis] < shape[axis]) break;
      index[axis] = 0;
    }
  }
}

inline double at(const ConstView& v, const Shape& index) {
  int64_t offset = 0;
  for (int i = 0; i < v.rank(); ++i) offset += index[i] * v.strides[i];
  return dispatch(v.dtype, [&](auto zero) { return static_cast<double>(v.as<decltype(zero)>()[offset]); });
}

}  // namespace fovea::testing
