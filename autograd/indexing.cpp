#include <fovea/autograd/indexing.h>

#include <algorithm>
#include <limits>

#include <fovea/autograd/arguments.h>
#include <fovea/autograd/index.h>
#include <fovea/autograd/shape.h>
#include <fovea/kernels/coordinates.h>
#include <fovea/tensor/creation.h>

namespace fovea {
namespace {

Tensor apply_slice(const Tensor& x, int axis, const Slice& s) {
  constexpr int64_t far = std::numeric_limits<int64_t>::max() / 4;
  const int64_t start = s.start.value_or(s.step > 0 ? 0 : far);
  const int64_t end = s.end.value_or(s.step > 0 ? far : -far);
  return slice(x, axis, start, end, s.step);
}

// Positions along one axis, checked and made non-negative.
struct AxisPick {
  int axis;
  std::vector<int64_t> positions;
  Shape shape;
};

AxisPick pick_of(const Tensor& index, const Tensor& x, int axis, int axis_of_x) {
  const int64_t size = x.shape()[axis];
  check<DTypeError>(index.dtype() == DType::int64 || index.dtype() == DType::int32 || index.dtype() == DType::uint8,
                    "index: index tensors must be integers or bool, got ", index.dtype());
  if (x.is_meta() && index.is_meta()) return {axis, std::vector<int64_t>(static_cast<size_t>(index.numel())), index.shape()};    // only the shape matters
  AxisPick pick{axis, index.to_vector<int64_t>(), index.shape()};
  for (int64_t& p : pick.positions) {
    check<IndexError>(p >= -size && p < size, "index: position ", p, " is out of range for axis ", axis_of_x, " of size ", size);
    if (p < 0) p += size;
  }
  return pick;
}

// A mask picks along each of its axes the coordinates of its true elements.
std::vector<AxisPick> picks_of_mask(const Tensor& mask, const Tensor& x, int axis, int axis_of_x) {
  std::vector<AxisPick> picks;
  for (int i = 0; i < mask.rank(); ++i) {
    check<ShapeError>(mask.shape()[i] == x.shape()[axis + i], "index: a mask of shape ", mask.shape(), " does not fit axes ", axis_of_x, "... of what is indexed");
    picks.push_back({axis + i, {}, {}});
  }
  const std::vector<uint8_t> values = mask.to_vector<uint8_t>();
  for (size_t flat = 0; flat < values.size(); ++flat) {
    if (!values[flat]) continue;
    const Shape at = coordinates_of(static_cast<int64_t>(flat), mask.shape());
    for (int i = 0; i < mask.rank(); ++i) picks[static_cast<size_t>(i)].positions.push_back(at[i]);
  }
  for (AxisPick& pick : picks) pick.shape = {static_cast<int64_t>(pick.positions.size())};
  return picks;
}

// Row-major position of broadcast element `flat` of `shape` in a tensor of shape `source`.
int64_t broadcast_position(int64_t flat, const Shape& shape, const Shape& source) {
  int64_t position = 0, step = 1;
  for (int i = 0; i < shape.rank(); ++i) {
    const int64_t coordinate = flat % shape.back(i);
    flat /= shape.back(i);
    if (i >= source.rank()) continue;
    if (source.back(i) != 1) position += coordinate * step;
    step *= source.back(i);
  }
  return position;
}

// All picks at once: the picked axes are brought together, seen as one, and selected from by one list of positions.
Tensor apply_picks(Tensor x, const std::vector<AxisPick>& picks) {
  Shape result = picks[0].shape;
  bool are_neighbours = true;
  for (size_t i = 1; i < picks.size(); ++i) {
    result = broadcast_shapes(result, picks[i].shape, "index");
    are_neighbours &= picks[i].axis == picks[i - 1].axis + 1;
  }
  const int count = static_cast<int>(picks.size()), first = are_neighbours ? picks[0].axis : 0;
  if (!are_neighbours) {
    std::vector<int64_t> order;
    for (const AxisPick& pick : picks) order.push_back(pick.axis);
    for (int axis = 0; axis < x.rank(); ++axis)
      if (std::none_of(picks.begin(), picks.end(), [&](const AxisPick& p) { return p.axis == axis; })) order.push_back(axis);
    x = permute(x, order);
  }
  checked_numel(result, "index");
  Tensor positions = zeros(result, {DType::int64, Device::cpu()});      // the allocator says so where there is no room
  int64_t* linear = positions.mutable_data<int64_t>();
  const int64_t length = positions.numel();
  int64_t merged = 1;
  for (int i = count - 1; i >= 0; --i) {
    const AxisPick& pick = picks[static_cast<size_t>(i)];
    for (int64_t flat = 0; flat < length; ++flat)
      linear[flat] += merged * pick.positions[static_cast<size_t>(broadcast_position(flat, result, pick.shape))];
    merged *= x.shape()[first + i];
  }
  Shape seen, shape;
  for (int axis = 0; axis < x.rank(); ++axis) {
    if (axis == first) {
      seen.push_back(merged);
      for (int64_t size : result) shape.push_back(size);
    }
    if (axis >= first && axis < first + count) continue;
    seen.push_back(x.shape()[axis]);
    shape.push_back(x.shape()[axis]);
  }
  return reshape(index_select(reshape(x, seen), first, to(reshape(positions, {length}), x.device())), shape);
}

Tensor index(const Tensor& x, std::initializer_list<Index> indices) {
  detail::check_defined("index", "x", x);
  int named = 0, ellipses = 0;
  for (const Index& i : indices) {
    if (i.kind() == Index::Kind::tensor) detail::check_defined("index", "an index", i.tensor());
    named += i.axes();
    ellipses += i.kind() == Index::Kind::ellipsis;
  }
  check<IndexError>(named <= x.rank(), "index: ", named, " axes are indexed, x ", x.shape(), " has ", x.rank());
  check<IndexError>(ellipses <= 1, "index: only one ellipsis may be given");
  Tensor y = x;
  int axis = 0, axis_of_x = 0;                              // in y, and in x for messages
  std::vector<AxisPick> picks;
  for (const Index& i : indices) {
    switch (i.kind()) {
      case Index::Kind::integer: y = select(y, axis, i.position()); break;
      case Index::Kind::slice: y = apply_slice(y, axis++, i.slice()); break;
      case Index::Kind::newaxis:
        check<ShapeError>(y.rank() < max_rank, "index: a newaxis would give x ", x.shape(), " more than ", max_rank, " axes");
        y = unsqueeze(y, axis++);
        break;
      case Index::Kind::ellipsis: axis += x.rank() - named; break;
      case Index::Kind::tensor:
        check<IndexError>(i.tensor().dtype() != DType::boolean || i.tensor().rank() > 0, "index: a mask of rank 0 picks no axis; use a mask with axes, or an if");
        if (i.tensor().dtype() == DType::boolean) {
          for (AxisPick& pick : picks_of_mask(i.tensor(), y, axis, axis_of_x)) picks.push_back(std::move(pick));
        } else {
          picks.push_back(pick_of(i.tensor(), y, axis, axis_of_x));
        }
        axis += i.axes();
        break;
    }
    axis_of_x += i.kind() == Index::Kind::ellipsis ? x.rank() - named : i.axes();
  }
  return picks.empty() ? y : apply_picks(y, picks);
}

}  // namespace

int Index::axes() const {
  switch (kind_) {
    case Kind::ellipsis:
    case Kind::newaxis: return 0;
    case Kind::tensor: return tensor_.dtype() == DType::boolean ? tensor_.rank() : 1;
    default: return 1;
  }
}

Tensor Tensor::operator[](std::initializer_list<Index> indices) const { return index(*this, indices); }
Tensor Tensor::operator[](const Index& i) const { return index(*this, {i}); }

}  // namespace fovea
