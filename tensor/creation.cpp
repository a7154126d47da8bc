#include <fovea/tensor/creation.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <span>

#include <fovea/kernels/philox.h>
#include <fovea/tensor/number.h>

namespace fovea {
namespace {

void check_floating(const char* op, DType dtype) {
  check<DTypeError>(is_floating(dtype), op, ": draws floating-point numbers, got ", dtype, "; use randint or bernoulli");
}

Tensor random(kernels::Distribution distribution, kernels::Scalars scalars, const Shape& shape, TensorOptions options, Generator& generator) {
  Tensor y = empty(shape, options);
  table_of(y).random(queue_of(y), distribution, scalars, generator.next(y.numel()), y.mutable_view());
  return y;
}

Tensor from_doubles(const std::vector<double>& values, const Shape& shape, TensorOptions options) {
  Tensor source = from_vector(values, shape, Device::cpu());
  if (options.dtype == DType::float64 && options.device == Device::cpu()) return source;
  Tensor y = empty(shape, {options.dtype, Device::cpu()});
  table_of(y).copy(queue_of(y), source.view(), y.mutable_view());
  return options.device == Device::cpu() ? y : copied_to(y, options.device);
}

thread_local Device device_by_default = Device::cpu();

// x itself, if it is contiguous.
Tensor contiguous_here(const Tensor& x) {
  if (x.is_contiguous()) return x;
  Tensor y = empty_like(x);
  table_of(x).copy(queue_of(x), x.view(), y.mutable_view());
  return y;
}

Tensor filled(const char* op, const Shape& shape, double value, TensorOptions options) {
  checked_numel(shape, op);
  detail::check_fits(op, value, options.dtype);
  Tensor y = empty(shape, options);
  table_of(y).fill(queue_of(y), value, y.mutable_view());
  return y;
}

}  // namespace

Device default_device() { return device_by_default; }

void set_default_device(Device device) {
  kernels::for_device(device);                                               // throws where there is no such device
  device_by_default = device;
}

Device device_named(const std::string& name) {
  const std::string_view text = name;
  Device device = Device::cpu();
  if (text != "cpu") {
    const std::optional<int> index = text == "cuda" ? 0 : text.starts_with("cuda:") ? number_in<int>(text.substr(5)) : std::nullopt;
    check<ValueError>(index && *index >= 0, "\"", name, "\" is no device; devices are cpu, cuda and cuda:1 (the second GPU)");
    device = Device::cuda(*index);
  }
  kernels::for_device(device);                                               // throws where there is no such device
  return device;
}

namespace detail {

bool fits(double value, DType dtype) {
  const double whole = std::trunc(value);
  switch (dtype) {
    case DType::int32: return whole >= -0x1p31 && whole < 0x1p31;
    case DType::int64: return whole >= -0x1p63 && whole < 0x1p63;
    case DType::uint8: return whole >= 0 && whole < 256;
    default: return true;
  }
}

bool is_only_channels_last(const Tensor& x) { return x.rank() == 4 && !x.is_contiguous() && x.view().is_channels_last(); }

void check_fits(const char* op, double value, DType dtype) { check<ValueError>(fits(value, dtype), op, ": ", value, " does not fit into ", dtype); }

}  // namespace detail

Tensor empty(const Shape& shape, TensorOptions options) {
  const int64_t bytes = checked_numel(shape, "empty") * size_of(options.dtype);
  std::shared_ptr<Storage> storage;
  try {
    storage = std::make_shared<Storage>(bytes, options.device);
  } catch (const MemoryError& error) {
    fail<MemoryError>(error.what(), " (for a tensor of shape ", shape, " of ", options.dtype, ")");
  }
  return Tensor(std::move(storage), shape, contiguous_strides(shape), 0, options.dtype);
}

Tensor empty_like(const Tensor& x) { return empty(x.shape(), {x.dtype(), x.device()}); }
Tensor empty_like(const Tensor& x, DType dtype) { return empty(x.shape(), {dtype, x.device()}); }

Tensor empty_channels_last(const Shape& shape, TensorOptions options) {
  check<ShapeError>(shape.rank() == 4, "empty_channels_last: takes a shape [n, channels, h, w], got ", shape);
  const Tensor memory = empty(shape, options);
  const int64_t c = shape[1], h = shape[2], w = shape[3];
  return Tensor(memory.storage(), shape, {h * w * c, 1, w * c, c}, 0, options.dtype);
}

Tensor full(const Shape& shape, double value, TensorOptions options) { return filled("full", shape, value, options); }
Tensor zeros(const Shape& shape, TensorOptions options) { return filled("zeros", shape, 0, options); }
Tensor ones(const Shape& shape, TensorOptions options) { return filled("ones", shape, 1, options); }
Tensor zeros_like(const Tensor& x) { return full_like(x, 0); }
Tensor ones_like(const Tensor& x) { return full_like(x, 1); }
Tensor full_like(const Tensor& x, double value) { return full(x.shape(), value, {x.dtype(), x.device()}); }
Tensor scalar(double value, TensorOptions options) { return full(Shape{}, value, options); }

Tensor arange(double start, double end, double step, TensorOptions options) {
  check<ValueError>(step != 0 && std::isfinite(start) && std::isfinite(end) && std::isfinite(step),
                    "arange: start, end and step must be finite and step not zero, got ", start, ", ", end, ", ", step);
  const double count = std::max(0.0, std::ceil((end - start) / step));
  check<ShapeError>(count < 0x1p59, "arange: ", count, " elements are too many");
  Tensor y = empty({static_cast<int64_t>(count)}, options);
  table_of(y).arange(queue_of(y), start, step, y.mutable_view());
  return y;
}

Tensor arange(int64_t end, TensorOptions options) { return arange(0.0, static_cast<double>(end), 1.0, options); }

Tensor linspace(double start, double end, int64_t count, TensorOptions options) {
  check<ValueError>(count >= 0, "linspace: count cannot be negative, got ", count);
  Tensor y = empty({count}, options);
  table_of(y).arange(queue_of(y), start, count > 1 ? (end - start) / static_cast<double>(count - 1) : 0.0, y.mutable_view());
  return y;
}

Tensor eye(int64_t n, TensorOptions options) {
  check<ValueError>(n >= 0, "eye: n cannot be negative, got ", n);
  checked_numel({n, n}, "eye");
  Tensor y = zeros({n, n}, options);
  View diagonal = y.mutable_view();
  diagonal.shape = {n};
  diagonal.strides = {n + 1};
  table_of(y).fill(queue_of(y), 1, diagonal);
  return y;
}

template <class T>
Tensor from_vector(const std::vector<T>& values, const Shape& shape, Device device) {
  check<ShapeError>(checked_numel(shape, "from_vector") == static_cast<int64_t>(values.size()), "from_vector: ", values.size(),
                    " values do not fill shape ", shape);
  Tensor y = empty(shape, {dtype_of<T>, Device::cpu()});
  if (!values.empty()) std::memcpy(y.mutable_view().data, values.data(), values.size() * sizeof(T));
  return device == Device::cpu() ? y : copied_to(y, device);
}
template Tensor from_vector(const std::vector<float>&, const Shape&, Device);
template Tensor from_vector(const std::vector<double>&, const Shape&, Device);
template Tensor from_vector(const std::vector<int32_t>&, const Shape&, Device);
template Tensor from_vector(const std::vector<int64_t>&, const Shape&, Device);
template Tensor from_vector(const std::vector<uint8_t>&, const Shape&, Device);

Tensor tensor(std::initializer_list<detail::Number> list, TensorOptions options) {
  std::vector<double> values;
  for (const detail::Number& number : list) values.push_back(number.value);
  return from_doubles(values, {static_cast<int64_t>(values.size())}, options);
}

Tensor tensor(std::initializer_list<std::initializer_list<double>> rows, TensorOptions options) {
  std::vector<double> values;
  const size_t columns = rows.size() ? rows.begin()->size() : 0;
  for (const auto& row : rows) {
    check<ShapeError>(row.size() == columns, "tensor: rows have ", columns, " and ", row.size(), " values");
    values.insert(values.end(), row.begin(), row.end());
  }
  return from_doubles(values, {static_cast<int64_t>(rows.size()), static_cast<int64_t>(columns)}, options);
}

Tensor from_blob(void* data, const Shape& shape, DType dtype, std::shared_ptr<const void> owner) {
  check<ValueError>(owner != nullptr, "from_blob: an owner is needed to keep the memory alive");
  const int64_t bytes = checked_numel(shape, "from_blob") * size_of(dtype);
  return Tensor(std::make_shared<Storage>(data, bytes, Device::cpu(), std::move(owner)), shape, contiguous_strides(shape), 0, dtype);
}

Tensor rand(const Shape& shape, TensorOptions options, Generator& generator) {
  checked_numel(shape, "rand");
  check_floating("rand", options.dtype);
  return random(kernels::Distribution::uniform, {0, 1}, shape, options, generator);
}
Tensor rand(const Shape& shape, TensorOptions options) { return rand(shape, options, default_generator()); }

Tensor randn(const Shape& shape, TensorOptions options, Generator& generator) {
  checked_numel(shape, "randn");
  check_floating("randn", options.dtype);
  return random(kernels::Distribution::normal, {0, 1}, shape, options, generator);
}
Tensor randn(const Shape& shape, TensorOptions options) { return randn(shape, options, default_generator()); }

Tensor randint(int64_t low, int64_t high, const Shape& shape, TensorOptions options, Generator& generator) {
  check<ValueError>(low < high, "randint: low (", low, ") must be below high (", high, ")");
  checked_numel(shape, "randint");
  constexpr int64_t exact = int64_t{1} << 53;                                // the kernel is handed doubles
  check<ValueError>(low >= -exact && high <= exact, "randint: low and high must be within 2^53 of zero, got ", low, " and ", high);
  const bool is_bool = options.dtype == DType::boolean;
  check<ValueError>(is_bool ? low >= 0 && high <= 2 : detail::fits(static_cast<double>(low), options.dtype) && detail::fits(static_cast<double>(high - 1), options.dtype),
                    "randint: the numbers ", low, " .. ", high - 1, " do not fit into ", options.dtype);
  return random(kernels::Distribution::integers, {static_cast<double>(low), static_cast<double>(high)}, shape, options, generator);
}
Tensor randint(int64_t low, int64_t high, const Shape& shape, TensorOptions options) { return randint(low, high, shape, options, default_generator()); }

Tensor bernoulli(double probability, const Shape& shape, TensorOptions options) {
  check<ValueError>(probability >= 0 && probability <= 1, "bernoulli: probability must be in [0, 1], got ", probability);
  return random(kernels::Distribution::bernoulli, {probability, 0}, shape, options, default_generator());
}

Tensor randperm(int64_t n, Generator& generator) {
  check<ValueError>(n >= 0, "randperm: n cannot be negative, got ", n);
  Tensor result = empty({n}, {DType::int64, Device::cpu()});                 // says so where there is no room
  std::span<int64_t> order(result.mutable_data<int64_t>(), static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), int64_t{0});
  const kernels::PhiloxKey key = generator.next(n);                          // one block a swap
  for (int64_t i = n - 1; i > 0; --i) {                                      // Fisher and Yates
    const auto words = kernels::Philox::words(key.seed, key.offset + static_cast<uint64_t>(i));
    const uint64_t wide = (uint64_t{words[0]} << 32) | words[1];
    std::swap(order[static_cast<size_t>(i)], order[static_cast<size_t>(wide % static_cast<uint64_t>(i + 1))]);
  }
  return default_device() == Device::cpu() ? result : copied_to(result, default_device());
}
Tensor randperm(int64_t n) { return randperm(n, default_generator()); }

Tensor copied_to(const Tensor& x, Device device, bool is_async) {
  Tensor y = empty(x.shape(), {x.dtype(), device});                          // throws where there is no such device
  if (y.is_meta()) return y;
  check<DeviceError>(!x.is_meta(), "copied_to: a tensor on meta has no data to copy to ", device);
  if (x.device() == device) {
    table_of(x).copy(queue_of(x), x.view(), y.mutable_view());
    return y;
  }
  const Tensor source = contiguous_here(x);
  cuda::copy_bytes(y.mutable_view().data, device, source.view().data, x.device(), x.nbytes(), is_async && device.kind == Device::Kind::cuda);
  return y;
}

Tensor pinned(const Tensor& x) {
  const int64_t bytes = x.nbytes();
  void* memory = cuda::allocate_pinned(bytes);
  const std::shared_ptr<const void> owner(memory, [bytes](const void* block) { cuda::release_pinned(const_cast<void*>(block), bytes); });
  Tensor y = from_blob(memory, x.shape(), x.dtype(), owner);
  const Tensor source = x.device() == Device::cpu() ? x : copied_to(x, Device::cpu());
  table_of(y).copy(queue_of(y), source.view(), y.mutable_view());
  return y;
}

}  // namespace fovea
