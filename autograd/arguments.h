// What operations do with their arguments before they compute: checks whose messages read alike, dtypes that meet, and views of arguments that
// may be left out.
#pragma once

#include <optional>

#include <fovea/autograd/autocast.h>
#include <fovea/autograd/pair.h>
#include <fovea/autograd/tape.h>
#include <fovea/tensor/creation.h>

namespace fovea::detail {

// x itself; ValueError if there is no tensor in it. `name` is what `op` calls the argument.
inline const Tensor& check_defined(const char* op, const char* name, const Tensor& x) {
  check<ValueError>(x.defined(), op, ": ", name, " is an undefined tensor");
  return x;
}

// The axis counted from the front, of an x that is there; IndexError when x has no such axis.
inline int checked_axis(const char* op, const Tensor& x, int64_t axis) { return wrap_axis(axis, check_defined(op, "x", x).rank(), op); }

// DTypeError unless x, argument `name` of `op`, is float32 or float64, or of a half type that the device's kernels of the family compute on.
void check_real(const char* op, const char* name, const Tensor& x, kernels::Family family);

// DeviceError unless argument `name` is on the device of argument `other_name`. For operations made of others, which would give those names.
void check_same_device(const char* op, const char* name, const Tensor& x, const char* other_name, const Tensor& other);
// DTypeError or DeviceError unless argument `name` has the dtype and the device of argument `other_name`.
void check_alike(const char* op, const char* name, const Tensor& x, const char* other_name, const Tensor& other);
// The same of a parameter, which is float32 beside a half `other`.
void check_beside(const char* op, const char* name, const Tensor& x, const char* other_name, const Tensor& other);

// ValueError naming `op` (an operation or a layer) unless a window may move so: stride and dilation from 1, padding from 0, none so large that products with the
// size of a tensor overflow.
void check_window(const char* op, Pair stride, Pair padding, Pair dilation);
// The same for pooling, which pads by half of the kernel at most.
void check_pooling(const char* op, Pair kernel, Pair stride, Pair padding, Pair dilation);

// 0 bool, 1 integers, 2 floating point: dtypes of a lower kind are promoted to those of a higher one.
int kind_of(DType dtype);
// The dtype of x beside a number: an integer tensor beside a fraction, and a bool beside any number, change kind.
DType dtype_beside(const Tensor& x, bool is_integer);

// Note [Half types]
// Where a device's kernels of a family do not compute on float16 and bfloat16 (KernelTable::computes_half; none do on the CPU), half types are storage: arguments are
// widened, the operation computes in float32, and its result is rounded. The same where half arguments meet others of another dtype. An Autocast scope may want other
// dtypes first (autograd/autocast.h). All of it is decided in one place, Cast, and the conversions are recorded, so that gradients come back in the dtype of each argument.
inline bool is_half(DType dtype) { return dtype == DType::float16 || dtype == DType::bfloat16; }
inline bool is_half(const Tensor& x) { return x.defined() && is_half(x.dtype()); }
Tensor widened(const Tensor& x);           // in float32 where x is of a half type, else x itself
// Is x of a half type that the family's kernels on its device do not take?
inline bool must_widen(const Tensor& x, kernels::Family family) { return is_half(x) && !table_of(x).computes_half.has(family); }
// The dtype of what kernels keep in float32 beside a half x: statistics, parameters of norms, losses.
inline DType wide_dtype(const Tensor& x) { return is_half(x) ? DType::float32 : x.dtype(); }

// The dtypes that an operation's arguments are computed in, where those are not the ones they have:
//
//     if (const detail::Cast cast("linear", Family::matmul, {x, weight, bias}); cast) return cast.back(linear(cast(x), cast(weight), cast(bias)));
//
// The first argument's dtype, after autocast, is that of the result. No autocast happens while a Cast that is needed lives: what it converts has been decided.
class Cast {
 public:
  // No family: kernels that take every dtype, or an operation put together from others.
  Cast(const char* op, std::optional<kernels::Family> family, const TensorRefs& arguments);
  explicit operator bool() const { return is_needed_; }
  Tensor operator()(const Tensor& x) const;  // an argument, converted; an undefined one, or one that is not floating-point, as it is
  Tensor back(const Tensor& y) const;        // a result, rounded

 private:
  DType dtype_of(const Tensor& x) const;

  std::optional<DType> autocast_;            // what autocast makes of floating-point arguments
  DType result_ = DType::float32;
  bool is_widened_ = false, is_needed_ = false;
  std::optional<Autocast> off_;
};

// x, the only argument of an operation whose kernels take every dtype, as autocast wants it.
Tensor autocast(const char* op, const Tensor& x);
// Does autocast want x, of a half type, in float32, while the kernels read it as it is (no family: every kernel of `op` does) and only their result has to be wider?
// Then nothing is converted on the way in, and the gradient is rounded on the way back.
bool widens_result(const char* op, std::optional<kernels::Family> family, const Tensor& x);

// Memory for the result of an elementwise operation: channels-last where an operand of its shape is, else contiguous.
Tensor empty_for(const Shape& shape, TensorOptions options, const TensorRefs& operands);

inline TensorOptions options_of(const Tensor& x) { return {x.dtype(), x.device()}; }

// Note [Layouts of images]
// On CUDA, where the kernels of convolutions and pooling want it, a tensor [n,c,h,w] that lies channels-last ([n,h,w,c] in memory) stays so, and the result lies as what is convolved or
// pooled does. Everything else is contiguous.
inline bool stays_channels_last(const Tensor& x) { return x.device().kind == Device::Kind::cuda && is_only_channels_last(x); }
// x as such a kernel takes it, and what it writes to: of `shape`, for what is computed from x.
Tensor laid_out(const Tensor& x);
Tensor empty_laid_out_as(const Tensor& x, const Shape& shape, DType dtype);

// An undefined tensor is an argument that is not there: a view without data.
inline ConstView view_or_none(const Tensor& x) { return x ? x.view() : ConstView(); }
inline View mutable_view_or_none(const Tensor& x) { return x ? x.mutable_view() : View(); }

}  // namespace fovea::detail
