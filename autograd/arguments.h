// What operations do with their arguments before they compute: checks whose messages read alike, dtypes that meet, and views of arguments that
// may be left out.
#pragma once

#include <fovea/autograd/pair.h>
#include <fovea/tensor/creation.h>

namespace fovea::detail {

// x itself; ValueError if there is no tensor in it. `name` is what `op` calls the argument.
inline const Tensor& check_defined(const char* op, const char* name, const Tensor& x) {
  check<ValueError>(x.defined(), op, ": ", name, " is an undefined tensor");
  return x;
}

// The axis counted from the front, of an x that is there; IndexError when x has no such axis.
inline int checked_axis(const char* op, const Tensor& x, int64_t axis) { return wrap_axis(axis, check_defined(op, "x", x).rank(), op); }

// DTypeError unless x, argument `name` of `op`, is float32 or float64.
void check_real(const char* op, const char* name, const Tensor& x);

// DTypeError or DeviceError unless argument `name` has the dtype and the device of argument `other_name`.
void check_alike(const char* op, const char* name, const Tensor& x, const char* other_name, const Tensor& other);

// ValueError naming `op` (an operation or a layer) unless a window may move so: stride and dilation from 1, padding from 0, none so large that products with the
// size of a tensor overflow.
void check_window(const char* op, Pair stride, Pair padding, Pair dilation);
// The same for pooling, which pads by half of the kernel at most.
void check_pooling(const char* op, Pair kernel, Pair stride, Pair padding, Pair dilation);

// 0 bool, 1 integers, 2 floating point: dtypes of a lower kind are promoted to those of a higher one.
int kind_of(DType dtype);
// The dtype of x beside a number: an integer tensor beside a fraction, and a bool beside any number, change kind.
DType dtype_beside(const Tensor& x, bool is_integer);

// Note [Half types are storage]
// Operations whose kernels want float32 or float64 widen float16 and bfloat16 arguments, compute in float32, and round the result. The conversions are recorded, so
// gradients come back in the dtype of each argument.
inline bool is_half(const Tensor& x) { return x.defined() && (x.dtype() == DType::float16 || x.dtype() == DType::bfloat16); }
Tensor widened(const Tensor& x);           // in float32 where x is of a half type, else x itself

inline TensorOptions options_of(const Tensor& x) { return {x.dtype(), x.device()}; }

// An undefined tensor is an argument that is not there: a view without data.
inline ConstView view_or_none(const Tensor& x) { return x ? x.view() : ConstView(); }
inline View mutable_view_or_none(const Tensor& x) { return x ? x.mutable_view() : View(); }

}  // namespace fovea::detail
