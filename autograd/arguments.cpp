#include <fovea/autograd/arguments.h>

#include <fovea/autograd/shape.h>

namespace fovea::detail {

void check_real(const char* op, const char* name, const Tensor& x) {
  check_defined(op, name, x);
  check<DTypeError>(x.dtype() == DType::float32 || x.dtype() == DType::float64, op, ": ", name, " is ", x.dtype(),
                    "; takes float32 or float64, convert with to(x, DType::float32)");
}

Tensor widened(const Tensor& x) { return is_half(x) ? to(x, DType::float32) : x; }

void check_alike(const char* op, const char* name, const Tensor& x, const char* other_name, const Tensor& other) {
  check_defined(op, name, x);
  check_defined(op, other_name, other);
  check<DTypeError>(x.dtype() == other.dtype(), op, ": ", name, " is ", x.dtype(), " but ", other_name, " is ", other.dtype(),
                    "; convert one with to()");
  check<DeviceError>(x.device() == other.device(), op, ": ", name, " is on ", x.device(), " but ", other_name, " is on ", other.device(),
                     "; copy one with to()");
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
