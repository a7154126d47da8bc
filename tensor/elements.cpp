#include <fovea/tensor/elements.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include <fovea/tensor/creation.h>

namespace fovea {
namespace {

static_assert(std::endian::native == std::endian::little, "files are little-endian and so must the machine be");

using Kind = ElementType::Kind;

bool is_stored_as_is(ElementType type, DType dtype) { return size_of(dtype) == type.bytes && dtype != DType::boolean; }

template <class Stored, class T>
void widen(std::span<const uint8_t> bytes, T* out) {
  for (size_t i = 0; i < bytes.size() / sizeof(Stored); ++i) {
    Stored value;
    std::memcpy(&value, bytes.data() + i * sizeof(Stored), sizeof(Stored));
    out[i] = static_cast<T>(value);
  }
}

void widen_integers(std::span<const uint8_t> bytes, ElementType type, void* out) {
  if (type.bytes == 4) return widen<uint32_t>(bytes, static_cast<int64_t*>(out));
  int32_t* to = static_cast<int32_t*>(out);
  if (type.bytes == 1) widen<int8_t>(bytes, to);
  else if (type.kind == Kind::integer) widen<int16_t>(bytes, to);
  else widen<uint16_t>(bytes, to);
}

std::vector<uint8_t> swapped(std::span<const uint8_t> bytes, int element_bytes) {
  std::vector<uint8_t> result(bytes.begin(), bytes.end());
  for (size_t i = 0; i < result.size(); i += static_cast<size_t>(element_bytes)) std::reverse(result.begin() + i, result.begin() + i + element_bytes);
  return result;
}

}  // namespace

DType dtype_for(ElementType type, const std::string& what) {
  switch (type.kind) {
    case Kind::real:
      if (type.bytes == 2) return DType::float16;
      if (type.bytes == 4) return DType::float32;
      if (type.bytes == 8) return DType::float64;
      break;
    case Kind::brain: return DType::bfloat16;
    case Kind::integer:
      if (type.bytes <= 4) return DType::int32;
      if (type.bytes == 8) return DType::int64;
      break;
    case Kind::natural:
      if (type.bytes == 1) return DType::uint8;
      if (type.bytes == 2) return DType::int32;
      if (type.bytes == 4) return DType::int64;
      break;
    case Kind::boolean: return DType::boolean;
  }
  fail<FileError>(what, ": holds ", 8 * type.bytes, "-bit ", type.kind == Kind::real ? "floats" : "unsigned integers",
                  ", which no dtype here can hold; convert them before saving");
}

Tensor tensor_from_elements(std::span<const uint8_t> bytes, ElementType type, const Shape& shape, const std::string& what) {
  const DType dtype = dtype_for(type, what);
  check<FileError>(checked_bytes({shape.begin(), shape.end()}, type.bytes, what) == static_cast<int64_t>(bytes.size()), what, ": shape ", shape,
                   " does not fit ", bytes.size(), " bytes of elements of ", type.bytes);
  Tensor x = empty(shape, {dtype, Device::cpu()});
  if (bytes.empty()) return x;
  std::vector<uint8_t> in_our_order;
  if (type.is_big_endian && type.bytes > 1) bytes = in_our_order = swapped(bytes, type.bytes);
  void* out = x.mutable_view().data;
  if (dtype == DType::boolean) std::transform(bytes.begin(), bytes.end(), static_cast<bool*>(out), [](uint8_t b) { return b != 0; });
  else if (is_stored_as_is(type, dtype)) std::memcpy(out, bytes.data(), bytes.size());
  else widen_integers(bytes, type, out);
  return x;
}

Tensor contiguous_on_cpu(const Tensor& x, const std::string& what) {
  check<ValueError>(x.defined(), what, ": the tensor is undefined");
  check<DeviceError>(!x.is_meta(), what, ": the tensor is on meta, which holds shapes without data");
  return x.device() == Device::cpu() && x.is_contiguous() ? x : copied_to(x, Device::cpu());
}

std::span<const uint8_t> bytes_of(const Tensor& x) {
  return {static_cast<const uint8_t*>(x.view().data), static_cast<size_t>(x.nbytes())};
}

int64_t checked_bytes(std::span<const int64_t> sizes, int64_t element_bytes, const std::string& what) {
  check<FileError>(sizes.size() <= max_rank, what, ": has ", sizes.size(), " axes, at most ", max_rank, " are supported");
  const bool is_empty = std::find(sizes.begin(), sizes.end(), 0) != sizes.end();
  int64_t bytes = element_bytes;
  for (const int64_t size : sizes) {
    check<FileError>(size >= 0, what, ": has an axis of negative size (", size, ")");
    if (size == 0) continue;
    check<FileError>(bytes <= std::numeric_limits<int64_t>::max() / 16 / size, what, ": shape ", Shape(sizes), " is larger than memory can address");
    bytes *= size;
  }
  return is_empty ? 0 : bytes;
}

}  // namespace fovea
