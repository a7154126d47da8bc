// What a kernel is told about memory: element type, sizes, strides and a pointer. A view owns nothing.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <iosfwd>
#include <span>
#include <string>

#include <fovea/kernels/error.h>
#include <fovea/kernels/half.h>

namespace fovea {

enum class DType : uint8_t { float32, float64, float16, bfloat16, int32, int64, uint8, boolean };

int64_t size_of(DType dtype);                    // bytes of one element
const char* name_of(DType dtype);                // "float32", ...
bool is_floating(DType dtype);
std::ostream& operator<<(std::ostream& out, DType dtype);

template <class T> struct DTypeOf;
template <> struct DTypeOf<float> { static constexpr DType value = DType::float32; };
template <> struct DTypeOf<double> { static constexpr DType value = DType::float64; };
template <> struct DTypeOf<float16> { static constexpr DType value = DType::float16; };
template <> struct DTypeOf<bfloat16> { static constexpr DType value = DType::bfloat16; };
template <> struct DTypeOf<int32_t> { static constexpr DType value = DType::int32; };
template <> struct DTypeOf<int64_t> { static constexpr DType value = DType::int64; };
template <> struct DTypeOf<uint8_t> { static constexpr DType value = DType::uint8; };
template <> struct DTypeOf<bool> { static constexpr DType value = DType::boolean; };
template <class T> inline constexpr DType dtype_of = DTypeOf<T>::value;

// Calls f with a value-initialised element of the C++ type behind `dtype`, to be used as f([](auto zero) { using T = decltype(zero); }).
template <class F>
decltype(auto) dispatch(DType dtype, F&& f) {
  switch (dtype) {
    case DType::float32: return f(float{});
    case DType::float64: return f(double{});
    case DType::float16: return f(float16{});
    case DType::bfloat16: return f(bfloat16{});
    case DType::int32: return f(int32_t{});
    case DType::int64: return f(int64_t{});
    case DType::uint8: return f(uint8_t{});
    case DType::boolean: return f(bool{});
  }
  fail<DTypeError>("unknown dtype ", static_cast<int>(dtype));
}

// float32 or float64; anything else is an error that names `op`.
template <class F>
decltype(auto) dispatch_real(DType dtype, const char* op, F&& f) {
  if (dtype == DType::float32) return f(float{});
  if (dtype == DType::float64) return f(double{});
  fail<DTypeError>(op, ": takes float32 or float64, got ", name_of(dtype), "; convert with to(x, DType::float32)");
}

struct Device {
  enum class Kind : uint8_t { cpu, cuda, meta };
  Kind kind = Kind::cpu;
  int index = 0;

  static Device cpu() { return {}; }
  static Device cuda(int index = 0) { return {Kind::cuda, index}; }
  static Device meta() { return {Kind::meta, 0}; }             // shapes without data
  bool operator==(const Device&) const = default;
};
std::ostream& operator<<(std::ostream& out, Device device);     // "cpu", "cuda:0", "meta"

inline constexpr int max_rank = 8;

// Up to eight sizes (or strides, in elements), kept in place: making one never allocates.
class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<int64_t> values) : Shape(std::span<const int64_t>(values.begin(), values.size())) {}
  explicit Shape(std::span<const int64_t> values);
  static Shape filled(int rank, int64_t value);

  int rank() const { return rank_; }
  int64_t operator[](int i) const { return values_[i]; }
  int64_t& operator[](int i) { return values_[i]; }
  int64_t back(int from_end = 0) const { return values_[rank_ - 1 - from_end]; }
  const int64_t* begin() const { return values_; }
  const int64_t* end() const { return values_ + rank_; }
  void push_back(int64_t value);
  void insert(int axis, int64_t value);
  void erase(int axis);
  int64_t numel() const;                                       // product; 1 for rank 0
  bool operator==(const Shape& other) const;

 private:
  int rank_ = 0;
  int64_t values_[max_rank] = {};
};
using Strides = Shape;
std::ostream& operator<<(std::ostream& out, const Shape& shape);  // [2,3,4]

// Product of the sizes; ShapeError naming `op` if one is negative, or if the bytes of so many elements do not fit into an int64.
int64_t checked_numel(const Shape& shape, const char* op);
Strides contiguous_strides(const Shape& shape);
// An axis counted from the front, or from the back when negative; IndexError naming `op` when there is no such axis.
int wrap_axis(int64_t axis, int rank, const char* op);
// NumPy's rule; ShapeError naming `op` and both shapes when they do not fit.
Shape broadcast_shapes(const Shape& a, const Shape& b, const char* op);

template <class Pointer>
struct BasicView {
  Pointer data = nullptr;
  DType dtype = DType::float32;
  Shape shape;
  Strides strides;                                             // in elements; may be zero (broadcast) or negative (flip)

  int rank() const { return shape.rank(); }
  int64_t size(int axis) const { return shape[axis]; }
  int64_t stride(int axis) const { return strides[axis]; }
  int64_t numel() const { return shape.numel(); }
  bool is_contiguous() const { return strides_are_contiguous(shape, strides); }
  explicit operator bool() const { return data != nullptr; }   // false for an optional argument that is not there

  static bool strides_are_contiguous(const Shape& shape, const Strides& strides) {
    if (shape.numel() == 0) return true;
    int64_t expected = 1;
    for (int i = shape.rank() - 1; i >= 0; --i) {
      if (shape[i] != 1 && strides[i] != expected) return false;
      expected *= shape[i];
    }
    return true;
  }

  // [n, channels, ...] whose channels lie innermost in memory (NHWC), in one dense run. What has one channel or one place is contiguous as well.
  bool is_channels_last() const { return strides_are_channels_last(shape, strides); }

  static bool strides_are_channels_last(const Shape& shape, const Strides& strides) {
    if (shape.rank() < 3) return false;
    Shape memory_shape = shape;
    Strides memory_strides = strides;
    memory_shape.erase(1);
    memory_shape.push_back(shape[1]);
    memory_strides.erase(1);
    memory_strides.push_back(strides[1]);
    return strides_are_contiguous(memory_shape, memory_strides);
  }
};

struct ConstView : BasicView<const void*> {
  template <class T> const T* as() const { return static_cast<const T*>(data); }
};

struct View : BasicView<void*> {
  template <class T> T* as() const { return static_cast<T*>(data); }
  operator ConstView() const {
    ConstView v;
    v.data = data;
    v.dtype = dtype;
    v.shape = shape;
    v.strides = strides;
    return v;
  }
};

}  // namespace fovea
