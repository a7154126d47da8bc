// Depthwise convolution (groups == c): each channel of x makes k / c channels of y by itself. The formulas are those of conv.cpp.
#pragma once

#include <fovea/kernels/geometry.h>
#include <fovea/kernels/table.h>

namespace fovea::kernels {

template <class T>
struct DepthwiseFunctions {
  int64_t (*workspace)(const ConvGeometry&);         // bytes, enough for any of the three; depends on num_threads()
  void (*forward)(const ConvGeometry&, const T* x, const T* weight, const T* bias, T* y, Workspace);
  void (*backward_data)(const ConvGeometry&, const T* dy, const T* weight, T* dx, Workspace);
  void (*backward_weight)(const ConvGeometry&, const T* x, const T* dy, T* dweight, Workspace);
};

// The version for this processor; T is float or double.
template <class T>
const DepthwiseFunctions<T>& depthwise_functions();

}  // namespace fovea::kernels
