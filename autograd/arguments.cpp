#include <fovea/autograd/arguments.h>

#include <fovea/autograd/shape.h>

namespace fovea::detail {

void check_real(const char* op, const char* name, const Tensor& x, kernels::Family family) {
  check_defined(op, name, x);
  check<DTypeError>(x.dtype() == DType::float32 || x.dtype() == DType::float64 || (is_half(x) && !must_widen(x, family)), op, ": ", name, " is ", x.dtype(),
                    "; takes float32 or float64, convert with to(x, DType::float32)");
}

Tensor empty_for(const Shape& shape, TensorOptions options, const TensorRefs& operands) {
  for (size_t i = 0; i < operands.size(); ++i)
    if (operands[i].shape() == shape && is_only_channels_last(operands[i])) return empty_channels_last(shape, options);
  return empty(shape, options);
}

Tensor laid_out(const Tensor& x) { return stays_channels_last(x) ? x : contiguous(x); }

Tensor empty_laid_out_as(const Tensor& x, const Shape& shape, DType dtype) {
  return stays_channels_last(x) ? empty_channels_last(shape, {dtype, x.device()}) : empty(shape, {dtype, x.device()});
}

Tensor widened(const Tensor& x) { return is_half(x) ? to(x, DType::float32) : x; }

namespace {

// What autocast makes of these arguments; nothing where it leaves them alone. With a float64 among them, it does: who takes float64 wants it.
std::optional<DType> autocast_target(const char* op, const TensorRefs& arguments) {
  const std::optional<DType> scope = Autocast::dtype();
  if (!scope) return {};
  DType widest = *scope;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const Tensor& x = arguments[i];
    if (!x || !is_floating(x.dtype())) continue;
    if (x.dtype() == DType::float64) return {};
    if (x.dtype() != *scope) widest = DType::float32;
  }
  switch (autocast_precision(op)) {
    case AutocastPrecision::half: return scope;
    case AutocastPrecision::single: return DType::float32;
    case AutocastPrecision::widest: return widest;
    case AutocastPrecision::as_given: break;
  }
  return {};
}

}  // namespace

Cast::Cast(const char* op, std::optional<kernels::Family> family, const TensorRefs& arguments) : autocast_(autocast_target(op, arguments)) {
  const Tensor& first = arguments[0];
  if (!first) return;
  result_ = dtype_of(first);
  bool are_alike = true;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const Tensor& x = arguments[i];
    if (!x || !is_floating(x.dtype())) continue;
    are_alike &= dtype_of(x) == result_;
    is_needed_ |= dtype_of(x) != x.dtype();
  }
  is_widened_ = family && is_half(result_) && !(are_alike && table_of(first).computes_half.has(*family));
  is_needed_ |= is_widened_;
  if (is_needed_ && Autocast::dtype()) off_.emplace(std::nullopt);
}

DType Cast::dtype_of(const Tensor& x) const { return autocast_ && is_floating(x.dtype()) ? *autocast_ : x.dtype(); }

Tensor Cast::operator()(const Tensor& x) const {
  if (!x) return x;
  const Tensor cast = dtype_of(x) == x.dtype() ? x : autocast_copy(x, dtype_of(x));
  return is_widened_ ? widened(cast) : cast;
}

Tensor Cast::back(const Tensor& y) const { return y && is_widened_ ? to(y, result_) : y; }

Tensor autocast(const char* op, const Tensor& x) {
  if (!Autocast::dtype() || !is_half(check_defined(op, "x", x)) || autocast_precision(op) != AutocastPrecision::single) return x;
  return to(x, DType::float32);
}

bool widens_result(const char* op, std::optional<kernels::Family> family, const Tensor& x) {
  return Autocast::dtype() && is_half(x) && autocast_precision(op) == AutocastPrecision::single && !(family && must_widen(x, *family));
}

void check_same_device(const char* op, const char* name, const Tensor& x, const char* other_name, const Tensor& other) {
  check<DeviceError>(x.device() == other.device(), op, ": ", name, " is on ", x.device(), " but ", other_name, " is on ", other.device(), "; copy one with to()");
}

void check_alike(const char* op, const char* name, const Tensor& x, const char* other_name, const Tensor& other) {
  check_defined(op, name, x);
  check_defined(op, other_name, other);
  check<DTypeError>(x.dtype() == other.dtype(), op, ": ", name, " is ", x.dtype(), " but ", other_name, " is ", other.dtype(),
                    "; convert one with to()");
  check_same_device(op, name, x, other_name, other);
}

void check_beside(const char* op, const char* name, const Tensor& x, const char* other_name, const Tensor& other) {
  check<DTypeError>(x.dtype() == wide_dtype(other), op, ": ", name, " is ", x.dtype(), " but ", other_name, " is ", other.dtype(), "; convert one with to()");
  check_same_device(op, name, x, other_name, other);
}

void check_window(const char* op, Pair stride, Pair padding, Pair dilation) {
  constexpr int64_t limit = int64_t{1} << 31;
  for (Pair option : {stride, padding, dilation})
    check<ValueError>(option.h < limit && option.w < limit, op, ": stride, padding and dilation must be less than ", limit, ", got ", option);
  check<ValueError>(stride.h >= 1 && stride.w >= 1, op, ": stride must be at least 1, got ", stride);
  check<ValueError>(padding.h >= 0 && padding.w >= 0, op, ": padding must not be negative, got ", padding);
  check<ValueError>(dilation.h >= 1 && dilation.w >= 1, op, ": dilation must be at least 1, got ", dilation);
}

void check_pooling(const char* op, Pair kernel, Pair stride, Pair padding, Pair dilation) {
  constexpr int64_t limit = int64_t{1} << 31;
  check<ValueError>(kernel.h >= 1 && kernel.w >= 1, op, ": kernel must be at least 1, got ", kernel);
  check<ValueError>(kernel.h < limit && kernel.w < limit, op, ": kernel must be less than ", limit, ", got ", kernel);
  check_window(op, stride, padding, dilation);
  check<ValueError>(padding.h <= kernel.h / 2 && padding.w <= kernel.w / 2, op, ": padding must be between 0 and half of the kernel ", kernel, ", got ", padding);
}

int kind_of(DType dtype) { return dtype == DType::boolean ? 0 : is_floating(dtype) ? 2 : 1; }

DType dtype_beside(const Tensor& x, bool is_integer) {
  const int kind = kind_of(x.dtype());
  if (kind == 2 || (kind == 1 && is_integer)) return x.dtype();
  return is_integer ? DType::int64 : DType::float32;
}

}  // namespace fovea::detail
