// Tensors out of nothing. Defaults: float32, on the default device, which is the CPU unless it was set.
#pragma once

#include <initializer_list>
#include <string>
#include <vector>

#include <fovea/tensor/random.h>
#include <fovea/tensor/tensor.h>

namespace fovea {

// Where tensors are made when no device is named; one a thread. DeviceError if there is no such device. Files, pictures and data sets are read to the CPU all the same.
Device default_device();
void set_default_device(Device device);
// The device that "cpu", "cuda" or "cuda:1" means, for command lines. ValueError for other texts, DeviceError if there is no such device.
Device device_named(const std::string& name);

struct TensorOptions {
  DType dtype = DType::float32;
  Device device = default_device();
  TensorOptions() = default;
  TensorOptions(DType dtype) : dtype(dtype) {}
  TensorOptions(Device device) : device(device) {}
  TensorOptions(DType dtype, Device device) : dtype(dtype), device(device) {}
};

namespace detail {
// Is the whole part of the value among the dtype's integers? Floating-point dtypes take every value, bool tells 0 from the rest.
bool fits(double value, DType dtype);
void check_fits(const char* op, double value, DType dtype);                    // ValueError naming `op` where it does not
// Is x [n, channels, h, w] channels-last, and not contiguous as well, as what has one channel or one place is?
bool is_only_channels_last(const Tensor& x);
}  // namespace detail

Tensor empty(const Shape& shape, TensorOptions options = {});                 // not initialised
Tensor empty_like(const Tensor& x);                                            // contiguous, x's shape, dtype and device
Tensor empty_like(const Tensor& x, DType dtype);
Tensor empty_channels_last(const Shape& shape, TensorOptions options = {});   // [n, channels, h, w], in memory as [n, h, w, channels]
Tensor zeros(const Shape& shape, TensorOptions options = {});
Tensor ones(const Shape& shape, TensorOptions options = {});
Tensor full(const Shape& shape, double value, TensorOptions options = {});     // ValueError if the value does not fit into an integer dtype
Tensor zeros_like(const Tensor& x);
Tensor ones_like(const Tensor& x);
Tensor full_like(const Tensor& x, double value);
Tensor scalar(double value, TensorOptions options = {});                       // rank 0
Tensor arange(double start, double end, double step = 1, TensorOptions options = {});   // start, start + step, ... below end
Tensor arange(int64_t end, TensorOptions options = DType::int64);              // 0 .. end - 1
Tensor linspace(double start, double end, int64_t count, TensorOptions options = {});   // both ends included
Tensor eye(int64_t n, TensorOptions options = {});

// Values in row-major order; a copy. ShapeError if there are not shape.numel() of them.
template <class T> Tensor from_vector(const std::vector<T>& values, const Shape& shape, Device device = default_device());
template <class T> Tensor from_vector(const std::vector<T>& values) { return from_vector(values, Shape{static_cast<int64_t>(values.size())}); }
// tensor({1, 2, 3}), tensor({{1, 2}, {3, 4}}). A number is a class of its own here, so that {{0}, {1}} is two rows, and not two numbers with braces around each.
namespace detail {
struct Number {
  double value;
  Number(double value) : value(value) {}
};
}  // namespace detail
Tensor tensor(std::initializer_list<detail::Number> values, TensorOptions options = {});
Tensor tensor(std::initializer_list<std::initializer_list<double>> rows, TensorOptions options = {});
// Memory that `owner` keeps alive, not copied. Contiguous, on the CPU.
Tensor from_blob(void* data, const Shape& shape, DType dtype, std::shared_ptr<const void> owner);

Tensor rand(const Shape& shape, TensorOptions options = {});                   // uniform in [0, 1); of a floating-point dtype, as randn
Tensor rand(const Shape& shape, TensorOptions options, Generator& generator);
Tensor randn(const Shape& shape, TensorOptions options = {});                  // standard normal
Tensor randn(const Shape& shape, TensorOptions options, Generator& generator);
Tensor randint(int64_t low, int64_t high, const Shape& shape, TensorOptions options = DType::int64);   // low .. high - 1, which the dtype must hold
Tensor randint(int64_t low, int64_t high, const Shape& shape, TensorOptions options, Generator& generator);
Tensor bernoulli(double probability, const Shape& shape, TensorOptions options = {});   // ones and zeros
Tensor randperm(int64_t n);                                                    // int64, a random order of 0 .. n - 1
Tensor randperm(int64_t n, Generator& generator);

// x's values on another device (or the same), contiguous; not recorded, unlike to(x, device) of autograd/shape.h. With is_async and x on the CPU in pinned memory
// the call returns before the values have arrived: x is to be left alone until the device's current stream has come that far.
Tensor copied_to(const Tensor& x, Device device, bool is_async = false);
// x's values on the CPU in memory that CUDA devices read by themselves. DeviceError where there is no CUDA device.
Tensor pinned(const Tensor& x);

}  // namespace fovea
