#include <fovea/autograd/shape.h>

#include <algorithm>
#include <numeric>

#include <fovea/autograd/arguments.h>
#include <fovea/autograd/elementwise.h>
#include <fovea/tensor/creation.h>

namespace fovea {

using detail::check_defined;
using detail::checked_axis;

namespace {

void check_has_room(const char* op, const Tensor& x) {
  check<ShapeError>(x.rank() < max_rank, op, ": a tensor has at most ", max_rank, " axes, and x ", x.shape(), " has them all");
}

Tensor view_of(const Tensor& x, const Shape& shape, const Strides& strides, int64_t offset) {
  return Tensor(x.storage(), shape, strides, offset, x.dtype());
}

void copy_into(const Tensor& x, const Tensor& y) {
  if (x.numel() > 0) table_of(x).copy(queue_of(x), x.view(), y.mutable_view());
}

// A gradient of zeros of `shape`, but for g in the view that `part` cuts out of it; the backward of everything that cuts.
Tensor scatter_view(const char* name, const Tensor& g, const Shape& shape, Tensor (*part)(const Tensor&, const std::vector<int64_t>&), std::vector<int64_t> arguments) {
  Tensor y = zeros(shape, {g.dtype(), g.device()});
  copy_into(g, part(y, arguments));
  return record(name, y, {g}, saving(), [part, arguments](const Saved&, const Tensor& gg) { return grads(part(gg, arguments)); });
}

Tensor slice_view(const Tensor& x, int axis, int64_t start, int64_t length, int64_t step) {
  Shape shape = x.shape();
  Strides strides = x.strides();
  const int64_t offset = x.offset() + (length > 0 ? start * strides[axis] : 0);
  shape[axis] = length;
  strides[axis] *= step;
  const Shape source = x.shape();
  return record("slice", view_of(x, shape, strides, offset), {x}, saving(), [=](const Saved&, const Tensor& g) {
    return grads(scatter_view("slice_backward", g, source, [](const Tensor& t, const std::vector<int64_t>& a) {
      return slice_view(t, static_cast<int>(a[0]), a[1], a[2], a[3]);
    }, {axis, start, length, step}));
  });
}

// The shape with its -1 worked out.
Shape resolve_shape(const Tensor& x, const Shape& asked) {
  Shape known = asked;
  int unknown = -1;
  for (int i = 0; i < asked.rank(); ++i) {
    if (asked[i] != -1) continue;
    check<ShapeError>(unknown < 0, "reshape: at most one size may be -1, got ", asked);
    unknown = i;
    known[i] = 1;
  }
  const int64_t product = checked_numel(known, "reshape");
  const bool fits = unknown < 0 ? product == x.numel() : product > 0 && x.numel() % product == 0;
  check<ShapeError>(fits, "reshape: x ", x.shape(), " of ", x.numel(), " elements does not fit into shape ", asked);
  if (unknown >= 0) known[unknown] = x.numel() / product;
  return known;
}

// Strides that show x as `shape` without a copy; false if there are none. Each run of axes of x that is contiguous in itself is cut anew.
bool strides_for(const Tensor& x, const Shape& shape, Strides& strides) {
  strides = contiguous_strides(shape);
  if (x.is_contiguous()) return true;
  Shape sizes, steps;                                      // x without its axes of size 1, whose strides mean nothing
  for (int i = 0; i < x.rank(); ++i) {
    if (x.shape()[i] == 1) continue;
    sizes.push_back(x.shape()[i]);
    steps.push_back(x.strides()[i]);
  }
  int axis = shape.rank() - 1;
  int64_t run = 1, innermost = 1;
  for (int i = sizes.rank() - 1; i >= 0; --i) {
    if (run == 1) innermost = steps[i];
    run *= sizes[i];
    const bool run_ends = i == 0 || steps[i - 1] != sizes[i] * steps[i];
    if (!run_ends) continue;
    int64_t taken = 1;
    while (axis >= 0 && taken < run) {
      strides[axis] = innermost * taken;
      taken *= shape[axis--];
    }
    if (taken != run) return false;
    run = 1;
  }
  return true;
}

// One axis of reflect (without repeating the border) or replicate padding, put together from views, so that gradients and their gradients follow.
Tensor pad_axis(const Tensor& x, int axis, int64_t before, int64_t after, PadMode mode) {
  const int64_t size = x.shape()[axis];
  check<ValueError>(before >= 0 && after >= 0, "pad: padding cannot be negative in reflect and replicate mode");
  check<ShapeError>(size > 0 && (mode == PadMode::replicate || (before < size && after < size)), mode == PadMode::reflect ? "pad: reflection" : "pad: replication", " by (", before, ",", after,
                    ") needs a larger axis than ", size);
  const auto border = [&](bool is_front, int64_t length) {
    if (mode == PadMode::reflect) return flip(narrow(x, axis, is_front ? 1 : size - 1 - length, length), {axis});
    Shape shape = x.shape();
    shape[axis] = length;
    return expand(narrow(x, axis, is_front ? 0 : size - 1, 1), shape);
  };
  std::vector<Tensor> parts;
  if (before > 0) parts.push_back(border(true, before));
  parts.push_back(x);
  if (after > 0) parts.push_back(border(false, after));
  return parts.size() == 1 ? x : concat(parts, axis);
}

Tensor pad_constant(const Tensor& x, const std::vector<int64_t>& padding, double value) {
  Shape shape = x.shape();
  Tensor inside = x;
  for (size_t k = 0; k < padding.size() / 2; ++k) {
    const int axis = x.rank() - 1 - static_cast<int>(k);
    const int64_t cut_before = std::max<int64_t>(-padding[2 * k], 0), cut_after = std::max<int64_t>(-padding[2 * k + 1], 0);
    check<ShapeError>(cut_before + cut_after <= x.shape()[axis], "pad: cannot cut ", cut_before + cut_after, " from axis ", axis, " of ", x.shape());
    if (cut_before + cut_after > 0) inside = narrow(inside, axis, cut_before, x.shape()[axis] - cut_before - cut_after);
    shape[axis] += padding[2 * k] + padding[2 * k + 1];
  }
  checked_numel(shape, "pad");
  auto window = [](const Tensor& t, const std::vector<int64_t>& a) {            // a: for each axis, start and length
    Tensor part = t;
    for (int axis = 0; axis < t.rank(); ++axis) part = narrow(part, axis, a[2 * static_cast<size_t>(axis)], a[2 * static_cast<size_t>(axis) + 1]);
    return part;
  };
  std::vector<int64_t> where;
  for (int axis = 0; axis < x.rank(); ++axis) {
    const size_t k = static_cast<size_t>(x.rank() - 1 - axis);
    where.push_back(2 * k < padding.size() ? std::max<int64_t>(padding[2 * k], 0) : 0);
    where.push_back(inside.shape()[axis]);
  }
  Tensor y = full(shape, value, {x.dtype(), x.device()});
  {
    NoGrad no_grad;
    copy_into(inside, window(y, where));
  }
  return record("pad", y, {inside}, saving(), [=](const Saved&, const Tensor& g) { return grads(window(g, where)); });
}

Tensor triangle(const char* name, const Tensor& x, int64_t diagonal, bool is_lower) {
  const cuda::Range range(name);
  check_defined(name, "x", x);
  check<ShapeError>(x.rank() >= 2, name, ": takes a matrix or a stack of matrices, got shape ", x.shape());
  Tensor y = zeros_like(x);
  const int64_t rows = x.size(-2), columns = x.size(-1);
  diagonal = std::clamp(diagonal, -rows - 1, columns + 1);               // beyond them nothing changes, and sums do not overflow
  if (x.numel() > 0) {                                                   // in a few kernels, however many rows there are
    NoGrad no_grad;
    const Tensor last_below = add(unsqueeze(arange(rows, {DType::int64, x.device()}), 1), diagonal), column = arange(columns, {DType::int64, x.device()});
    y = where(is_lower ? le(column, last_below) : ge(column, last_below), x, y);
  }
  return record(name, y, {x}, saving(), [=](const Saved&, const Tensor& g) { return grads(triangle(name, g, diagonal, is_lower)); });
}

}  // namespace

Tensor permute(const Tensor& x, const std::vector<int64_t>& axes) {
  check_defined("permute", "x", x);
  check<ShapeError>(static_cast<int>(axes.size()) == x.rank(), "permute: x ", x.shape(), " has ", x.rank(), " axes, got an order of ", axes.size());
  Shape shape = x.shape();
  Strides strides = x.strides();
  std::vector<int64_t> inverse(axes.size(), -1);
  for (size_t i = 0; i < axes.size(); ++i) {
    const int axis = wrap_axis(axes[i], x.rank(), "permute");
    check<ShapeError>(inverse[static_cast<size_t>(axis)] < 0, "permute: axis ", axis, " comes twice");
    inverse[static_cast<size_t>(axis)] = static_cast<int64_t>(i);
    shape[static_cast<int>(i)] = x.shape()[axis];
    strides[static_cast<int>(i)] = x.strides()[axis];
  }
  return record("permute", view_of(x, shape, strides, x.offset()), {x}, saving(), [inverse](const Saved&, const Tensor& g) { return grads(permute(g, inverse)); });
}

Tensor transpose(const Tensor& x, int64_t axis0, int64_t axis1) {
  check_defined("transpose", "x", x);
  std::vector<int64_t> axes(static_cast<size_t>(x.rank()));
  std::iota(axes.begin(), axes.end(), int64_t{0});
  std::swap(axes[static_cast<size_t>(wrap_axis(axis0, x.rank(), "transpose"))], axes[static_cast<size_t>(wrap_axis(axis1, x.rank(), "transpose"))]);
  return permute(x, axes);
}

Tensor transpose(const Tensor& x) {
  check_defined("transpose", "x", x);
  check<ShapeError>(x.rank() >= 2, "transpose: takes at least two axes, got shape ", x.shape());
  return transpose(x, -2, -1);
}

Tensor expand(const Tensor& x, const Shape& shape) {
  check_defined("expand", "x", x);
  if (x.shape() == shape) return x;
  checked_numel(shape, "expand");
  const int added = shape.rank() - x.rank();
  check<ShapeError>(added >= 0 && broadcast_shapes(x.shape(), shape, "expand") == shape, "expand: x ", x.shape(), " cannot be broadcast to ", shape);
  Strides strides = Shape::filled(shape.rank(), 0);
  for (int i = 0; i < x.rank(); ++i) strides[i + added] = x.shape()[i] == 1 ? 0 : x.strides()[i];
  const Shape source = x.shape();
  return record("expand", view_of(x, shape, strides, x.offset()), {x}, saving(), [source](const Saved&, const Tensor& g) { return grads(sum_to(g, source)); });
}

Tensor sum_to(const Tensor& g, const Shape& shape) {
  check_defined("sum_to", "g", g);
  if (g.shape() == shape) return g;
  const cuda::Range range("sum_to");
  const int added = g.rank() - shape.rank();
  check<ShapeError>(added >= 0 && broadcast_shapes(shape, g.shape(), "sum_to") == g.shape(), "sum_to: ", g.shape(), " is not ", shape, " broadcast");
  Shape kept = g.shape();
  for (int i = 0; i < g.rank(); ++i)
    if (i < added || (shape[i - added] == 1 && g.shape()[i] != 1)) kept[i] = 1;
  Tensor y = empty(kept, {g.dtype(), g.device()});
  table_of(g).reduce(queue_of(g), kernels::Reduce::sum, g.view(), y.mutable_view());
  y = view_of(y, shape, contiguous_strides(shape), 0);
  const Shape full_shape = g.shape();
  return record("sum_to", y, {g}, saving(), [full_shape](const Saved&, const Tensor& gg) { return grads(expand(gg, full_shape)); });
}

Tensor unsqueeze(const Tensor& x, int64_t axis) {
  check_defined("unsqueeze", "x", x);
  Shape shape = x.shape();
  Strides strides = x.strides();
  check_has_room("unsqueeze", x);
  const int at = wrap_axis(axis, x.rank() + 1, "unsqueeze");
  shape.insert(at, 1);
  strides.insert(at, 1);
  return record("unsqueeze", view_of(x, shape, strides, x.offset()), {x}, saving(), [at](const Saved&, const Tensor& g) { return grads(squeeze(g, at)); });
}

Tensor squeeze(const Tensor& x, int64_t axis) {
  const int at = checked_axis("squeeze", x, axis);
  check<ShapeError>(x.shape()[at] == 1, "squeeze: axis ", at, " of x ", x.shape(), " has size ", x.shape()[at], ", not 1");
  Shape shape = x.shape();
  Strides strides = x.strides();
  shape.erase(at);
  strides.erase(at);
  return record("squeeze", view_of(x, shape, strides, x.offset()), {x}, saving(), [at](const Saved&, const Tensor& g) { return grads(unsqueeze(g, at)); });
}

Tensor squeeze(const Tensor& x) {
  check_defined("squeeze", "x", x);
  Tensor y = x;
  for (int axis = x.rank() - 1; axis >= 0; --axis)
    if (x.shape()[axis] == 1) y = squeeze(y, axis);
  return y;
}

Tensor narrow(const Tensor& x, int64_t axis, int64_t start, int64_t length) {
  const int at = checked_axis("narrow", x, axis);
  check<IndexError>(start >= 0 && length >= 0 && start <= x.shape()[at] - length, "narrow: [", start, ", ", start, " + ", length, ") is not inside axis ", at, " of x ", x.shape());
  return slice_view(x, at, start, length, 1);
}

Tensor slice(const Tensor& x, int64_t axis, int64_t start, int64_t end, int64_t step) {
  const int at = checked_axis("slice", x, axis);
  check<ValueError>(step != 0, "slice: step cannot be 0");
  const int64_t size = x.shape()[at];
  const int64_t lowest = step > 0 ? 0 : -1, highest = step > 0 ? size : size - 1;
  start = std::clamp(start < 0 ? start + size : start, lowest, highest);
  end = std::clamp(end < 0 ? end + size : end, lowest, highest);
  step = std::clamp(step, -size - 1, size + 1);                       // a longer step than the axis takes one element too
  const int64_t room = step > 0 ? end - start : start - end, stride = step > 0 ? step : -step;
  return slice_view(x, at, start, room > 0 ? (room + stride - 1) / stride : 0, step);
}

Tensor select(const Tensor& x, int64_t axis, int64_t index) {
  const int at = checked_axis("select", x, axis);
  const int64_t size = x.shape()[at], i = index < 0 ? index + size : index;
  check<IndexError>(i >= 0 && i < size, "select: index ", index, " is out of range for axis ", at, " of x ", x.shape());
  return squeeze(slice_view(x, at, i, 1, 1), at);
}

Tensor flip(const Tensor& x, const std::vector<int64_t>& axes) {
  const cuda::Range range("flip");
  check_defined("flip", "x", x);
  Tensor y = x;
  bool is_flipped[max_rank] = {};
  for (int64_t axis : axes) {
    const int at = wrap_axis(axis, x.rank(), "flip");
    check<ValueError>(!is_flipped[at], "flip: axis ", at, " comes twice");
    is_flipped[at] = true;
    y = slice_view(y, at, y.shape()[at] - 1, y.shape()[at], -1);
  }
  return y;
}

Tensor diagonal(const Tensor& x) {
  check_defined("diagonal", "x", x);
  check<ShapeError>(x.rank() >= 2, "diagonal: takes at least two axes, got shape ", x.shape());
  Shape shape = x.shape();
  Strides strides = x.strides();
  const int last = x.rank() - 1;
  shape[last - 1] = std::min(shape[last - 1], shape[last]);
  strides[last - 1] += strides[last];
  shape.erase(last);
  strides.erase(last);
  const Shape source = x.shape();
  return record("diagonal", view_of(x, shape, strides, x.offset()), {x}, saving(), [source](const Saved&, const Tensor& g) {
    return grads(scatter_view("diagonal_backward", g, source, [](const Tensor& t, const std::vector<int64_t>&) { return diagonal(t); }, {}));
  });
}

std::vector<Tensor> split(const Tensor& x, const std::vector<int64_t>& sizes, int64_t axis) {
  const int at = checked_axis("split", x, axis);
  int64_t total = 0;
  for (int64_t size : sizes) {
    check<ValueError>(size >= 0, "split: sizes cannot be negative, got ", size);
    check<ShapeError>(size <= x.shape()[at] - total, "split: the sizes add up to more than the ", x.shape()[at], " of axis ", at, " of x ", x.shape());
    total += size;
  }
  check<ShapeError>(total == x.shape()[at], "split: the sizes add up to ", total, ", axis ", at, " of x ", x.shape(), " has ", x.shape()[at]);
  std::vector<Tensor> parts;
  int64_t start = 0;
  for (int64_t size : sizes) {
    parts.push_back(narrow(x, at, start, size));
    start += size;
  }
  return parts;
}

std::vector<Tensor> split(const Tensor& x, int64_t size, int64_t axis) {
  const int at = checked_axis("split", x, axis);
  const int64_t total = x.shape()[at];
  check<ValueError>(size > 0, "split: size must be positive, got ", size);
  std::vector<int64_t> sizes;
  size = std::min(size, std::max<int64_t>(total, 1));
  for (int64_t start = 0; start < total; start += size) sizes.push_back(std::min(size, total - start));
  if (total == 0) sizes.push_back(0);
  return split(x, sizes, at);
}

std::vector<Tensor> chunk(const Tensor& x, int64_t chunks, int64_t axis) {
  check<ValueError>(chunks > 0, "chunk: takes a positive number of chunks, got ", chunks);
  const int at = checked_axis("chunk", x, axis);
  const int64_t size = x.shape()[at];
  return split(x, size / chunks + (size % chunks > 0) + (size == 0), at);
}

Tensor reshape(const Tensor& x, const Shape& asked) {
  check_defined("reshape", "x", x);
  const Shape shape = resolve_shape(x, asked);
  if (shape == x.shape()) return x;
  Strides strides;
  if (!strides_for(x, shape, strides)) return reshape(contiguous(x), shape);
  const Shape source = x.shape();
  return record("reshape", view_of(x, shape, strides, x.offset()), {x}, saving(), [source](const Saved&, const Tensor& g) { return grads(reshape(g, source)); });
}

Tensor flatten(const Tensor& x, int64_t first_axis, int64_t last_axis) {
  check_defined("flatten", "x", x);
  if (x.rank() == 0) return reshape(x, {1});
  const int first = wrap_axis(first_axis, x.rank(), "flatten"), last = wrap_axis(last_axis, x.rank(), "flatten");
  check<ShapeError>(first <= last, "flatten: the first axis (", first, ") comes after the last (", last, ")");
  Shape shape;
  for (int i = 0; i < x.rank(); ++i) {
    if (i > first && i <= last) shape[shape.rank() - 1] *= x.shape()[i];
    else shape.push_back(x.shape()[i]);
  }
  return reshape(x, shape);
}

Tensor clone(const Tensor& x) {
  const cuda::Range range("clone");
  check_defined("clone", "x", x);
  Tensor y = empty_like(x);
  copy_into(x, y);
  return record("clone", y, {x}, saving(), [](const Saved&, const Tensor& g) { return grads(g); });
}

Tensor contiguous(const Tensor& x) { return check_defined("contiguous", "x", x).is_contiguous() ? x : clone(x); }

bool is_channels_last(const Tensor& x) { return check_defined("is_channels_last", "x", x).rank() == 4 && x.view().is_channels_last(); }

Tensor channels_last(const Tensor& x) {
  const cuda::Range range("channels_last");
  check_defined("channels_last", "x", x);
  check<ShapeError>(x.rank() == 4, "channels_last: takes x [n, channels, h, w], got ", x.shape());
  if (is_channels_last(x)) return x;
  Tensor y = empty_channels_last(x.shape(), detail::options_of(x));
  copy_into(x, y);
  return record("channels_last", y, {x}, saving(), [](const Saved&, const Tensor& g) { return grads(g); });
}

Tensor concat(const std::vector<Tensor>& tensors, int64_t axis) {
  const cuda::Range range("concat");
  check<ValueError>(!tensors.empty(), "concat: takes at least one tensor");
  for (const Tensor& t : tensors) check_defined("concat", "a part", t);
  if (const detail::Cast cast("concat", {}, tensors); cast) {
    std::vector<Tensor> parts;
    for (const Tensor& t : tensors) parts.push_back(cast(t));
    return concat(parts, axis);
  }
  const Tensor& first = tensors[0];
  const int at = wrap_axis(axis, first.rank(), "concat");
  Shape shape = first.shape();
  shape[at] = 0;
  std::vector<int64_t> sizes;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Tensor& t = tensors[i];
    Shape others = t.shape();
    if (t.rank() == first.rank()) others[at] = first.shape()[at];
    check<ShapeError>(others == first.shape(), "concat: tensor ", i, " has shape ", t.shape(), ", tensor 0 has ", first.shape(), "; only axis ", at, " may differ");
    check<DTypeError>(t.dtype() == first.dtype(), "concat: tensor ", i, " is ", t.dtype(), ", tensor 0 is ", first.dtype());
    check<DeviceError>(t.device() == first.device(), "concat: tensor ", i, " is on ", t.device(), ", tensor 0 on ", first.device());
    sizes.push_back(t.shape()[at]);
    shape[at] += t.shape()[at];
  }
  Tensor y = empty(shape, {first.dtype(), first.device()});
  {
    NoGrad no_grad;
    const std::vector<Tensor> parts = split(y, sizes, at);
    for (size_t i = 0; i < tensors.size(); ++i) copy_into(tensors[i], parts[i]);
  }
  return record("concat", y, tensors, saving(), [sizes, at](const Saved&, const Tensor& g) { return split(g, sizes, at); });
}

Tensor stack(const std::vector<Tensor>& tensors, int64_t axis) {
  const cuda::Range range("stack");
  check<ValueError>(!tensors.empty(), "stack: takes at least one tensor");
  for (const Tensor& t : tensors) check_defined("stack", "a part", t);
  check_has_room("stack", tensors[0]);
  const int at = wrap_axis(axis, tensors[0].rank() + 1, "stack");
  std::vector<Tensor> rows;
  for (const Tensor& t : tensors) {
    check<ShapeError>(t.shape() == tensors[0].shape(), "stack: shapes ", t.shape(), " and ", tensors[0].shape(), " differ");
    rows.push_back(unsqueeze(t, at));
  }
  return concat(rows, at);
}

// An axis at a time, from the last: seen as [before, 1, from the axis on], expanded and copied. So no more axes are needed than x has.
Tensor repeat(const Tensor& x, const std::vector<int64_t>& times) {
  const cuda::Range range("repeat");
  check_defined("repeat", "x", x);
  check<ShapeError>(static_cast<int>(times.size()) >= x.rank(), "repeat: x ", x.shape(), " has more axes than the ", times.size(), " numbers given");
  Shape shape = x.shape();
  while (shape.rank() < static_cast<int>(times.size())) shape.insert(0, 1);
  Shape result = shape;                      // looked at as a whole before any memory is asked for
  for (int axis = 0; axis < shape.rank(); ++axis) {
    const int64_t n = times[static_cast<size_t>(axis)];
    check<ValueError>(n >= 0, "repeat: counts cannot be negative, got ", n);
    result[axis] = checked_numel({n, shape[axis]}, "repeat");
  }
  checked_numel(result, "repeat");
  Tensor y = reshape(x, shape);
  for (int axis = shape.rank() - 1; axis >= 0; --axis) {
    const int64_t n = times[static_cast<size_t>(axis)];
    if (n == 1) continue;
    int64_t before = 1, rest = 1;
    for (int i = 0; i < shape.rank(); ++i) (i < axis ? before : rest) *= shape[i];
    shape[axis] = result[axis];
    y = reshape(expand(reshape(y, {before, 1, rest}), {before, n, rest}), shape);
  }
  return y;
}

Tensor roll(const Tensor& x, int64_t shift, int64_t axis) {
  const cuda::Range range("roll");
  const int at = checked_axis("roll", x, axis);
  const int64_t size = x.shape()[at];
  if (size == 0 || shift % size == 0) return x;
  const int64_t k = (shift % size + size) % size;
  return concat({narrow(x, at, size - k, k), narrow(x, at, 0, size - k)}, at);
}

Tensor pad(const Tensor& x, const std::vector<int64_t>& padding, PadMode mode, double value) {
  const cuda::Range range("pad");
  check_defined("pad", "x", x);
  check<ShapeError>(padding.size() % 2 == 0 && static_cast<int>(padding.size()) <= 2 * x.rank(), "pad: takes pairs (before, after) for at most ", x.rank(), " axes, got ",
                    padding.size(), " values");
  constexpr int64_t limit = int64_t{1} << 60;                       // so that sums do not overflow
  for (int64_t p : padding) check<ShapeError>(p > -limit && p < limit, "pad: cannot pad by ", p, ", x is ", x.shape());
  if (mode == PadMode::constant) return pad_constant(x, padding, value);
  Tensor y = x;
  for (size_t k = 0; k < padding.size() / 2; ++k) y = pad_axis(y, x.rank() - 1 - static_cast<int>(k), padding[2 * k], padding[2 * k + 1], mode);
  return y;
}

Tensor tril(const Tensor& x, int64_t diagonal) { return triangle("tril", x, diagonal, true); }
Tensor triu(const Tensor& x, int64_t diagonal) { return triangle("triu", x, diagonal, false); }

Tensor to(const Tensor& x, DType dtype) {
  check_defined("to", "x", x);
  if (x.dtype() == dtype) return x;
  const cuda::Range range("to");
  Tensor y = detail::empty_for(x.shape(), {dtype, x.device()}, {x});
  copy_into(x, y);
  if (!is_floating(x.dtype()) || !is_floating(dtype)) return y;      // no gradient goes through integers
  const DType source = x.dtype();
  return record("to", y, {x}, saving(), [source](const Saved&, const Tensor& g) { return grads(to(g, source)); });
}

Tensor to(const Tensor& x, Device device, bool is_async) {
  check_defined("to", "x", x);
  if (x.device() == device) return x;
  const cuda::Range range("to");
  check<DeviceError>(!x.is_meta(), "to: a tensor on meta has no data to copy to ", device);
  const Device source = x.device();
  const Tensor y = copied_to(x, device, is_async);                   // throws where there is no such device
  return record("to", y, {x}, saving(), [source](const Saved&, const Tensor& g) { return grads(to(g, source)); });
}

}  // namespace fovea
