// Changing a tensor where it lies. Each returns x. The new value keeps x's shape and dtype; the other operand is broadcast to it.
//
// While operations are recorded, a change of something that requires a gradient is recorded too, where that is possible: not of a leaf (use
// NoGrad to update parameters), and not of memory that several tensors share. A backward pass that had saved the old value says so.
#pragma once

#include <fovea/autograd/elementwise.h>

namespace fovea {

const Tensor& add_(const Tensor& x, const Tensor& b, double alpha = 1);              // x += alpha * b
const Tensor& add_(const Tensor& x, Scalar b);
const Tensor& sub_(const Tensor& x, const Tensor& b, double alpha = 1);
const Tensor& sub_(const Tensor& x, Scalar b);
const Tensor& mul_(const Tensor& x, const Tensor& b);
const Tensor& mul_(const Tensor& x, Scalar b);
const Tensor& div_(const Tensor& x, const Tensor& b);
const Tensor& div_(const Tensor& x, Scalar b);
const Tensor& addcmul_(const Tensor& x, const Tensor& a, const Tensor& b, double value = 1);   // x += value * a * b
const Tensor& clamp_(const Tensor& x, double low, double high);
const Tensor& relu_(const Tensor& x);
const Tensor& fill_(const Tensor& x, double value);
const Tensor& zero_(const Tensor& x);
const Tensor& copy_(const Tensor& x, const Tensor& source);                          // converts the dtype

inline Tensor& operator+=(Tensor& x, const Tensor& b) { add_(x, b); return x; }
inline Tensor& operator+=(Tensor& x, Scalar b) { add_(x, b); return x; }
inline Tensor& operator-=(Tensor& x, const Tensor& b) { sub_(x, b); return x; }
inline Tensor& operator-=(Tensor& x, Scalar b) { sub_(x, b); return x; }
inline Tensor& operator*=(Tensor& x, const Tensor& b) { mul_(x, b); return x; }
inline Tensor& operator*=(Tensor& x, Scalar b) { mul_(x, b); return x; }
inline Tensor& operator/=(Tensor& x, const Tensor& b) { div_(x, b); return x; }
inline Tensor& operator/=(Tensor& x, Scalar b) { div_(x, b); return x; }

}  // namespace fovea
