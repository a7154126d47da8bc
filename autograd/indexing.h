// x[{0, slice(1, 5), ellipsis, newaxis, indices}]: NumPy's indexing.
//
// Integers take an axis out, slices cut it, newaxis adds one of size 1, ellipsis stands for all axes not named. These give views. A tensor of integers picks along an
// axis, a bool tensor picks where it is true (it stands for as many axes as it has); these copy. Several index tensors are broadcast together; the axes
// they make stand where the first of them stood if they are neighbours, else at the front.
#pragma once

#include <initializer_list>
#include <optional>
#include <vector>

#include <fovea/tensor/tensor.h>

namespace fovea {

// start : end : step, as in Python: what is left out reaches to the end, negative positions count from the back.
struct Slice {
  std::optional<int64_t> start, end;
  int64_t step = 1;
};
inline Slice slice() { return {}; }
inline Slice slice(int64_t end) { return {{}, end, 1}; }
inline Slice slice(int64_t start, int64_t end, int64_t step = 1) { return {start, end, step}; }
inline Slice slice_from(int64_t start, int64_t step = 1) { return {start, {}, step}; }

struct Ellipsis {};
struct NewAxis {};
inline constexpr Ellipsis ellipsis;
inline constexpr NewAxis newaxis;

class Index {
 public:
  enum class Kind { integer, slice, ellipsis, newaxis, tensor };

  Index(int64_t position) : kind_(Kind::integer), position_(position) {}
  Index(int position) : Index(int64_t{position}) {}
  Index(Slice slice) : kind_(Kind::slice), slice_(slice) {}
  Index(Ellipsis) : kind_(Kind::ellipsis) {}
  Index(NewAxis) : kind_(Kind::newaxis) {}
  Index(Tensor indices) : kind_(Kind::tensor), tensor_(std::move(indices)) {}

  Kind kind() const { return kind_; }
  int64_t position() const { return position_; }
  const Slice& slice() const { return slice_; }
  const Tensor& tensor() const { return tensor_; }
  int axes() const;                          // how many axes of x it stands for (ellipsis: 0)

 private:
  Kind kind_;
  int64_t position_ = 0;
  Slice slice_;
  Tensor tensor_;
};

}  // namespace fovea
