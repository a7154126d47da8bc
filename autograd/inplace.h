// Changing a tensor where it lies. Each returns x, the handle and not a reference, so that relu_(x * 2) may be kept. The new value keeps x's shape and dtype; the other operand is broadcast to it.
//
// While operations are recorded, a change of something that requires a gradient is recorded too, where that is possible: not of a leaf (use
// NoGrad to update parameters), and not of memory that several tensors share. A backward pass that had saved the old value says so.
#pragma once

#include <fovea/autograd/elementwise.h>

namespace fovea {

Tensor add_(const Tensor& x, const Tensor& b, double alpha = 1);              // x += alpha * b
Tensor add_(const Tensor& x, Scalar b);
Tensor sub_(const Tensor& x, const Tensor& b, double alpha = 1);
Tensor sub_(const Tensor& x, Scalar b);
Tensor mul_(const Tensor& x, const Tensor& b);
Tensor mul_(const Tensor& x, Scalar b);
Tensor div_(const Tensor& x, const Tensor& b);
Tensor div_(const Tensor& x, Scalar b);
Tensor addcmul_(const Tensor& x, const Tensor& a, const Tensor& b, double value = 1);   // x += value * a * b
Tensor clamp_(const Tensor& x, double low, double high);
Tensor relu_(const Tensor& x);
Tensor fill_(const Tensor& x, double value);
Tensor zero_(const Tensor& x);
Tensor copy_(const Tensor& x, const Tensor& source);                          // converts the dtype

inline Tensor& operator+=(Tensor& x, const Tensor& b) { add_(x, b); return x; }
inline Tensor& operator+=(Tensor& x, Scalar b) { add_(x, b); return x; }
inline Tensor& operator-=(Tensor& x, const Tensor& b) { sub_(x, b); return x; }
inline Tensor& operator-=(Tensor& x, Scalar b) { sub_(x, b); return x; }
inline Tensor& operator*=(Tensor& x, const Tensor& b) { mul_(x, b); return x; }
inline Tensor& operator*=(Tensor& x, Scalar b) { mul_(x, b); return x; }
inline Tensor& operator/=(Tensor& x, const Tensor& b) { div_(x, b); return x; }
inline Tensor& operator/=(Tensor& x, Scalar b) { div_(x, b); return x; }

}  // namespace fovea
