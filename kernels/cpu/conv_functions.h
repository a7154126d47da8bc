// The ways to compute a convolution that conv.cpp chooses from.
#pragma once

#include <fovea/kernels/geometry.h>
#include <fovea/kernels/table.h>

namespace fovea::kernels {

template <class T>
struct ConvFunctions {
  int64_t (*workspace)(const ConvGeometry&);         // bytes, enough for any of the three; depends on num_threads()
  void (*forward)(const ConvGeometry&, const T* x, const T* weight, const T* bias, T* y, Workspace);
  void (*backward_data)(const ConvGeometry&, const T* dy, const T* weight, T* dx, Workspace);
  void (*backward_weight)(const ConvGeometry&, const T* x, const T* dy, T* dweight, Workspace);
};

// The versions for this processor; T is float or double.

// Groups == c: each channel of x makes k / c channels of y by itself. The formulas are those of conv.cpp.
template <class T>
const ConvFunctions<T>& depthwise_functions();

// 3x3 kernels with unit stride by minimal filtering, for geometries where that pays.
template <class T>
const ConvFunctions<T>& winograd_functions();
bool winograd_pays(const ConvGeometry& g);

}  // namespace fovea::kernels
