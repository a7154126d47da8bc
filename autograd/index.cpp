#include <fovea/autograd/index.h>

#include <algorithm>

#include <fovea/autograd/arguments.h>
#include <fovea/autograd/elementwise.h>
#include <fovea/autograd/shape.h>
#include <fovea/kernels/coordinates.h>
#include <fovea/tensor/creation.h>

namespace fovea {
namespace {

using detail::check_defined;
using detail::checked_axis;
using detail::must_widen;
using detail::options_of;
using kernels::Family;

Tensor checked_along(const char* op, const Tensor& x, int axis, const Tensor& index) {
  bool fits = check_defined(op, "index", index).rank() == x.rank();
  for (int i = 0; fits && i < x.rank(); ++i) fits = i == axis || index.shape()[i] <= x.shape()[i];
  check<ShapeError>(fits, op, ": index ", index.shape(), " must have as many axes as x ", x.shape(), " and be no larger than it, but along axis ", axis);
  return detail::checked_index(op, "index", index, x, x.shape()[axis], str("axis ", axis, " of x ", x.shape()));
}

// The operations proper, on checked arguments; each is the other's backward pass.
Tensor gather_checked(const Tensor& x, int axis, const Tensor& index);

// Into zeros, which need no copy. Halves add up in float32.
Tensor scatter_checked(const Shape& shape, int axis, const Tensor& index, const Tensor& source) {
  if (must_widen(source, Family::index)) return to(scatter_checked(shape, axis, index, to(source, DType::float32)), source.dtype());
  const Tensor y = zeros(shape, options_of(source));
  table_of(y).scatter_add(queue_of(y), axis, index.view(), source.view(), y.mutable_view());
  return record("scatter_add", y, {source}, saving(index), [axis](const Saved& s, const Tensor& g) { return grads(gather_checked(g, axis, s[0])); });
}

Tensor scatter_add_checked(const Tensor& x, int axis, const Tensor& index, const Tensor& source) {
  if (must_widen(x, Family::index)) return to(scatter_add_checked(detail::widened(x), axis, index, detail::widened(source)), x.dtype());
  const Tensor y = clone(x.detach());
  table_of(x).scatter_add(queue_of(x), axis, index.view(), source.view(), y.mutable_view());
  return record("scatter_add", y, {x, source}, saving(index), [axis](const Saved& s, const Tensor& g) {
    return grads(g, s.needs(1) ? gather_checked(g, axis, s[0]) : Tensor());
  });
}

Tensor gather_checked(const Tensor& x, int axis, const Tensor& index) {
  const Tensor y = empty(index.shape(), options_of(x));
  table_of(x).gather(queue_of(x), axis, x.view(), index.view(), y.mutable_view());
  return record("gather", y, {x}, saving(index), [axis, shape = x.shape()](const Saved& s, const Tensor& g) {
    return grads(scatter_checked(shape, axis, s[0], g));
  });
}

Tensor index_select_checked(const Tensor& x, int axis, const Tensor& index);

Tensor index_scatter_checked(const Shape& shape, int axis, const Tensor& index, const Tensor& source) {
  if (must_widen(source, Family::index)) return to(index_scatter_checked(shape, axis, index, to(source, DType::float32)), source.dtype());
  const Tensor y = zeros(shape, options_of(source));
  table_of(y).index_add(queue_of(y), axis, index.view(), source.view(), y.mutable_view());
  return record("index_add", y, {source}, saving(index), [axis](const Saved& s, const Tensor& g) { return grads(index_select_checked(g, axis, s[0])); });
}

Tensor index_add_checked(const Tensor& x, int axis, const Tensor& index, const Tensor& source) {
  if (must_widen(x, Family::index)) return to(index_add_checked(detail::widened(x), axis, index, detail::widened(source)), x.dtype());
  const Tensor y = clone(x.detach());
  table_of(x).index_add(queue_of(x), axis, index.view(), source.view(), y.mutable_view());
  return record("index_add", y, {x, source}, saving(index), [axis](const Saved& s, const Tensor& g) {
    return grads(g, s.needs(1) ? index_select_checked(g, axis, s[0]) : Tensor());
  });
}

Tensor index_select_checked(const Tensor& x, int axis, const Tensor& index) {
  Shape shape = x.shape();
  shape[axis] = index.numel();
  const Tensor y = empty(shape, options_of(x));
  table_of(x).index_select(queue_of(x), axis, x.view(), index.view(), y.mutable_view());
  return record("index_select", y, {x}, saving(index), [axis, source = x.shape()](const Saved& s, const Tensor& g) {
    return grads(index_scatter_checked(source, axis, s[0], g));
  });
}

void check_can_add_axis(const char* op, const char* name, const Tensor& x) {
  check_defined(op, name, x);
  check<ShapeError>(x.rank() < max_rank, op, ": a tensor has at most ", max_rank, " axes, and ", name, " ", x.shape(), " leaves no room for one more");
}

Tensor checked_list(const char* op, const Tensor& x, int axis, const Tensor& index) {
  check_defined(op, "index", index);
  check<ShapeError>(index.rank() == 1, op, ": index must have one axis, got ", index.shape());
  return detail::checked_index(op, "index", index, x, x.shape()[axis], str("axis ", axis, " of x ", x.shape()));
}

// Values by `order` and their positions along an axis, of which `kept` remain.
template <class Order>
Ordered ordered(const char* name, const Tensor& x, int axis, int64_t kept, const Order& order) {
  Shape shape = x.shape();
  shape[axis] = kept;
  Ordered result{empty(shape, options_of(x)), empty(shape, {DType::int64, x.device()})};
  order(result.values.mutable_view(), result.indices.mutable_view());
  result.values = record(name, result.values, {x}, saving(result.indices), [axis, source = x.shape()](const Saved& s, const Tensor& g) {
    return grads(scatter_checked(source, axis, s[0], g));
  });
  return result;
}

// The operations below wait for the device: the shape of their result depends on the values.
void check_is_readable(const char* op, const Tensor& x) {
  check_defined(op, "x", x);
  check<DeviceError>(!x.is_meta(), op, ": the shape of the result depends on the values, which a tensor on meta does not have");
}

}  // namespace

namespace detail {

Tensor checked_index(const char* op, const char* name, const Tensor& index, const Tensor& x, int64_t size, const std::string& what) {
  const DType dtype = check_defined(op, name, index).dtype();
  check<DTypeError>(dtype == DType::int64 || dtype == DType::int32 || dtype == DType::uint8, op, ": ", name, " must be int64, got ", dtype, "; convert with to(x, DType::int64)");
  check<DeviceError>(index.device() == x.device(), op, ": ", name, " is on ", index.device(), " but x is on ", x.device(), "; copy one with to()");
  const Tensor wide = to(index.detach(), DType::int64);
  table_of(wide).check_range(queue_of(wide), {op, name, 0, size, what}, wide.view(), {});
  return wide;
}

}  // namespace detail

Tensor gather(const Tensor& x, int64_t axis, const Tensor& index) {
  const cuda::Range range("gather");
  if (check_defined("gather", "x", x).rank() == 0 && check_defined("gather", "index", index).rank() == 0)
    return reshape(gather(reshape(x, {1}), axis, reshape(index, {1})), {});
  const int at = checked_axis("gather", x, axis);
  return gather_checked(x, at, checked_along("gather", x, at, index));
}

Tensor take_along(const Tensor& x, const Tensor& index, int64_t axis) {
  const cuda::Range range("take_along");
  const int at = checked_axis("take_along", x, axis);
  Shape shape = x.shape();
  check_defined("take_along", "index", index);
  check<ShapeError>(index.rank() == x.rank(), "take_along: index ", index.shape(), " must have as many axes as x ", x.shape());
  shape[at] = index.shape()[at];
  check<ShapeError>(broadcast_shapes(index.shape(), shape, "take_along") == shape, "take_along: index ", index.shape(), " must have x's sizes, or 1, along all axes but ", at,
                    "; x is ", x.shape());
  return gather_checked(x, at, checked_along("take_along", x, at, expand(index.detach(), shape)));
}

Tensor scatter_add(const Tensor& x, int64_t axis, const Tensor& index, const Tensor& source) {
  const cuda::Range range("scatter_add");
  if (const detail::Cast cast("scatter_add", {}, {x, source}); cast) return scatter_add(cast(x), axis, index, cast(source));
  const int at = checked_axis("scatter_add", x, axis);
  detail::check_alike("scatter_add", "source", source, "x", x);
  check_defined("scatter_add", "index", index);
  check<ShapeError>(source.shape() == index.shape(), "scatter_add: source ", source.shape(), " must have the shape of index ", index.shape());
  return scatter_add_checked(x, at, checked_along("scatter_add", x, at, index), source);
}

Tensor index_select(const Tensor& x, int64_t axis, const Tensor& index) {
  const cuda::Range range("index_select");
  const int at = checked_axis("index_select", x, axis);
  return index_select_checked(x, at, checked_list("index_select", x, at, index));
}

Tensor index_add(const Tensor& x, int64_t axis, const Tensor& index, const Tensor& source) {
  const cuda::Range range("index_add");
  if (const detail::Cast cast("index_add", {}, {x, source}); cast) return index_add(cast(x), axis, index, cast(source));
  const int at = checked_axis("index_add", x, axis);
  detail::check_alike("index_add", "source", source, "x", x);
  const Tensor list = checked_list("index_add", x, at, index);
  Shape shape = x.shape();
  shape[at] = list.numel();
  check<ShapeError>(source.shape() == shape, "index_add: source must be ", shape, " for x ", x.shape(), " and index ", index.shape(), ", got ", source.shape());
  return index_add_checked(x, at, list, source);
}

Tensor embedding(const Tensor& indices, const Tensor& weight, std::optional<int64_t> padding_index) {
  const cuda::Range range("embedding");
  check_defined("embedding", "indices", indices);
  check_defined("embedding", "weight", weight);
  check<ShapeError>(weight.rank() == 2, "embedding: weight must be [count, size], got ", weight.shape());
  const int64_t count = weight.size(0), size = weight.size(1);
  check_can_add_axis("embedding", "indices", indices);
  int64_t padding = -1;                                    // none
  if (padding_index) {
    padding = *padding_index < 0 ? *padding_index + count : *padding_index;
    check<IndexError>(padding >= 0 && padding < count, "embedding: padding_index ", *padding_index, " is out of range for weight ", weight.shape());
  }
  const Tensor index = reshape(detail::checked_index("embedding", "indices", indices, weight, count, str("weight ", weight.shape())), {indices.numel()});
  Shape shape = indices.shape();
  shape.push_back(size);
  const Tensor y = empty({index.numel(), size}, options_of(weight));
  table_of(weight).index_select(queue_of(weight), 0, weight.view(), index.view(), y.mutable_view());
  return reshape(record("embedding", y, {weight}, saving(index), [padding, count, size](const Saved& s, const Tensor& g) {
    const Tensor rows = padding >= 0 ? where(eq(unsqueeze(s[0], 1), padding), 0.0, g) : g;
    return grads(index_scatter_checked({count, size}, 0, s[0], rows));
  }), shape);
}

Tensor one_hot(const Tensor& indices, int64_t classes) {
  const cuda::Range range("one_hot");
  check<ValueError>(classes >= 0, "one_hot: the number of classes cannot be negative, got ", classes);
  check_can_add_axis("one_hot", "indices", indices);
  checked_numel({std::max<int64_t>(indices.numel(), 1), classes}, "one_hot");
  const Tensor index = detail::checked_index("one_hot", "indices", indices, indices, classes, str(classes, " classes"));
  return to(eq(unsqueeze(index, -1), arange(classes, {DType::int64, index.device()})), DType::int64);
}

Tensor masked_fill(const Tensor& x, const Tensor& mask, double value) {
  const cuda::Range range("masked_fill");
  check_defined("masked_fill", "x", x);
  check_defined("masked_fill", "mask", mask);
  check<DTypeError>(mask.dtype() == DType::boolean, "masked_fill: mask must be bool, got ", mask.dtype());
  detail::check_same_device("masked_fill", "mask", mask, "x", x);
  check<ShapeError>(broadcast_shapes(mask.shape(), x.shape(), "masked_fill") == x.shape(), "masked_fill: mask ", mask.shape(), " cannot be broadcast to x ", x.shape());
  detail::check_fits("masked_fill", value, x.dtype());
  return where(mask, full({}, value, options_of(x)), x);
}

Tensor nonzero(const Tensor& x) {
  const cuda::Range range("nonzero");
  check_is_readable("nonzero", x);
  const std::vector<uint8_t> flags = ne(x, 0).to_vector<uint8_t>();
  std::vector<int64_t> positions;
  for (size_t i = 0; i < flags.size(); ++i) {
    if (!flags[i]) continue;
    const Shape at = coordinates_of(static_cast<int64_t>(i), x.shape());
    positions.insert(positions.end(), at.begin(), at.end());
  }
  int64_t count = 0;
  for (uint8_t flag : flags) count += flag;
  return from_vector(positions, {count, x.rank()}, x.device());
}

Tensor masked_select(const Tensor& x, const Tensor& mask) {
  const cuda::Range range("masked_select");
  check_defined("masked_select", "x", x);
  check_defined("masked_select", "mask", mask);
  check<DTypeError>(mask.dtype() == DType::boolean, "masked_select: mask must be bool, got ", mask.dtype());
  detail::check_same_device("masked_select", "mask", mask, "x", x);
  check_is_readable("masked_select", mask);
  const Shape shape = broadcast_shapes(x.shape(), mask.shape(), "masked_select");
  const Tensor positions = reshape(nonzero(reshape(expand(mask, shape), {shape.numel()})), {-1});
  return index_select_checked(reshape(expand(x, shape), {shape.numel()}), 0, positions);
}

namespace {

Ordered sorted(const char* op, const Tensor& x, int64_t axis, bool descending) {
  const cuda::Range range(op);
  if (check_defined(op, "x", x).rank() == 0) {
    const Ordered line = sorted(op, reshape(x, {1}), axis, descending);
    return {reshape(line.values, {}), reshape(line.indices, {})};
  }
  const int at = checked_axis(op, x, axis);
  return ordered(op, x, at, x.shape()[at], [&](const View& values, const View& indices) {
    table_of(x).sort(queue_of(x), at, descending, x.view(), values, indices);
  });
}

}  // namespace

Ordered sort(const Tensor& x, int64_t axis, bool descending) { return sorted("sort", x, axis, descending); }

Tensor argsort(const Tensor& x, int64_t axis, bool descending) {
  return sorted("argsort", check_defined("argsort", "x", x).detach(), axis, descending).indices;
}

Ordered topk(const Tensor& x, int64_t k, int64_t axis, bool largest) {
  const cuda::Range range("topk");
  const int at = checked_axis("topk", x, axis);
  check<ValueError>(k >= 0 && k <= x.shape()[at], "topk: k must be in [0, ", x.shape()[at], "] for axis ", at, " of x ", x.shape(), ", got ", k);
  return ordered("topk", x, at, k, [&](const View& values, const View& indices) { table_of(x).topk(queue_of(x), at, largest, x.view(), values, indices); });
}

}  // namespace fovea
