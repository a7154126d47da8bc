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

int kind_of(DType dtype) { return dtype == DType::boolean ? 0 : is_floating(dtype) ? 2 : 1; }

DType dtype_beside(const Tensor& x, bool is_integer) {
  const int kind = kind_of(x.dtype());
  if (kind == 2 || (kind == 1 && is_integer)) return x.dtype();
  return is_integer ? DType::int64 : DType::float32;
}

}  // namespace fovea::detail
