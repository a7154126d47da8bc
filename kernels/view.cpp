#include <fovea/kernels/view.h>

#include <limits>
#include <ostream>

namespace fovea {

int64_t size_of(DType dtype) {
  return dispatch(dtype, [](auto zero) -> int64_t { return sizeof(zero); });
}

const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::float32: return "float32";
    case DType::float64: return "float64";
    case DType::float16: return "float16";
    case DType::bfloat16: return "bfloat16";
    case DType::int32: return "int32";
    case DType::int64: return "int64";
    case DType::uint8: return "uint8";
    case DType::boolean: return "bool";
  }
  return "unknown";
}

bool is_floating(DType dtype) { return dtype <= DType::bfloat16; }

std::ostream& operator<<(std::ostream& out, DType dtype) { return out << name_of(dtype); }

std::ostream& operator<<(std::ostream& out, Device device) {
  switch (device.kind) {
    case Device::Kind::cpu: return out << "cpu";
    case Device::Kind::cuda: return out << "cuda:" << device.index;
    case Device::Kind::meta: return out << "meta";
  }
  return out;
}

Shape::Shape(std::span<const int64_t> values) {
  check<ShapeError>(values.size() <= max_rank, "a tensor has at most ", max_rank, " axes, got ", values.size());
  for (int64_t v : values) values_[rank_++] = v;
}

Shape Shape::filled(int rank, int64_t value) {
  Shape s;
  for (int i = 0; i < rank; ++i) s.push_back(value);
  return s;
}

void Shape::push_back(int64_t value) { insert(rank_, value); }

void Shape::insert(int axis, int64_t value) {
  check<ShapeError>(rank_ < max_rank, "a tensor has at most ", max_rank, " axes");
  for (int i = rank_; i > axis; --i) values_[i] = values_[i - 1];
  values_[axis] = value;
  ++rank_;
}

void Shape::erase(int axis) {
  for (int i = axis; i + 1 < rank_; ++i) values_[i] = values_[i + 1];
  values_[--rank_] = 0;
}

int64_t Shape::numel() const {
  int64_t n = 1;
  for (int64_t v : *this) n *= v;
  return n;
}

bool Shape::operator==(const Shape& other) const {
  if (rank_ != other.rank_) return false;
  for (int i = 0; i < rank_; ++i)
    if (values_[i] != other.values_[i]) return false;
  return true;
}

std::ostream& operator<<(std::ostream& out, const Shape& shape) {
  out << '[';
  for (int i = 0; i < shape.rank(); ++i) out << (i ? "," : "") << shape[i];
  return out << ']';
}

int64_t checked_numel(const Shape& shape, const char* op) {
  constexpr int64_t limit = std::numeric_limits<int64_t>::max() / 16;   // room for the byte count of any dtype
  int64_t n = 1;
  bool is_empty = false;
  for (int64_t v : shape) {
    check<ShapeError>(v >= 0, op, ": sizes cannot be negative, got ", shape);
    if (v == 0) is_empty = true;
    else check<ShapeError>(n <= limit / v, op, ": ", shape, " has more elements than memory can address");
    if (v != 0) n *= v;
  }
  return is_empty ? 0 : n;
}

Strides contiguous_strides(const Shape& shape) {
  Strides strides = shape;
  int64_t step = 1;
  for (int i = shape.rank() - 1; i >= 0; --i) {
    strides[i] = step;
    if (shape[i] > 0) step *= shape[i];
  }
  return strides;
}

int wrap_axis(int64_t axis, int rank, const char* op) {
  const int64_t wrapped = axis < 0 ? axis + rank : axis;
  check<IndexError>(wrapped >= 0 && wrapped < rank, op, ": axis ", axis, " is out of range for a tensor of rank ", rank);
  return static_cast<int>(wrapped);
}

Shape broadcast_shapes(const Shape& a, const Shape& b, const char* op) {
  Shape result = a.rank() >= b.rank() ? a : b;
  const Shape& shorter = a.rank() >= b.rank() ? b : a;
  for (int i = 0; i < shorter.rank(); ++i) {
    int64_t& size = result[result.rank() - 1 - i];
    const int64_t other = shorter.back(i);
    check<ShapeError>(size == other || size == 1 || other == 1, op, ": shapes ", a, " and ", b,
                      " cannot be broadcast together (sizes ", size, " and ", other, " on axis ", -1 - i, ")");
    if (size == 1) size = other;
  }
  return result;
}

}  // namespace fovea
