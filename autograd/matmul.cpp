#include <fovea/autograd/matmul.h>

#include <fovea/autograd/arguments.h>
#include <fovea/autograd/shape.h>
#include <fovea/tensor/creation.h>

namespace fovea {

using kernels::Family;

namespace {

// The axes before the matrices.
Shape batch_shape(const Tensor& x) {
  Shape shape = x.shape();
  shape.erase(shape.rank() - 1);
  shape.erase(shape.rank() - 1);
  return shape;
}

// A stack of matrices seen with the batch axes broadcast to `batch`.
ConstView broadcast_view(const Tensor& x, const Shape& batch) {
  ConstView v = x.view();
  const int added = batch.rank() + 2 - x.rank();
  for (int i = 0; i < added; ++i) {
    v.shape.insert(0, 1);
    v.strides.insert(0, 0);
  }
  for (int i = 0; i < batch.rank(); ++i) {
    if (v.shape[i] != batch[i]) v.strides[i] = 0;
    v.shape[i] = batch[i];
  }
  return v;
}

void run_kernel(const Tensor& a, const Tensor& b, const Tensor& bias, const Shape& batch, const Tensor& y) {
  const MatmulGeometry g{batch.numel(), a.size(-2), b.size(-1), a.size(-1)};
  const kernels::KernelTable& table = table_of(y);
  const Scratch scratch(table.matmul_workspace(g, y.dtype()), y.device());
  table.matmul(queue_of(y), g, {1, 0}, broadcast_view(a, batch), broadcast_view(b, batch), detail::view_or_none(bias), y.mutable_view(), scratch);
}

// Of two stacks of matrices.
Tensor matrix_product(const Tensor& a, const Tensor& b) {
  const Shape batch = broadcast_shapes(batch_shape(a), batch_shape(b), "matmul");
  Shape shape = batch;
  shape.push_back(a.size(-2));
  shape.push_back(b.size(-1));
  const Tensor y = empty(shape, {a.dtype(), a.device()});
  run_kernel(a, b, {}, batch, y);
  const Shape shape_a = a.shape(), shape_b = b.shape();
  return record("matmul", y, {a, b}, saving(b.requires_grad() ? a : Tensor(), a.requires_grad() ? b : Tensor()),
                [shape_a, shape_b](const Saved& s, const Tensor& g) {
                  Tensor da, db;
                  if (s.needs(0)) da = sum_to(matmul(g, transpose(s[1])), shape_a);
                  if (s.needs(1)) db = sum_to(matmul(transpose(s[0]), g), shape_b);
                  return grads(da, db);
                });
}

// [..,k] as [rows,k]
Tensor as_rows(const Tensor& x) {
  const int64_t length = x.size(-1);
  Shape batch = x.shape();
  batch.erase(batch.rank() - 1);
  return reshape(x, {batch.numel(), length});
}

Shape with_last(Shape shape, int64_t size) {
  shape[shape.rank() - 1] = size;
  return shape;
}

}  // namespace

Tensor matmul(const Tensor& a, const Tensor& b) {
  const cuda::Range range("matmul");
  detail::check_defined("matmul", "a", a);
  detail::check_defined("matmul", "b", b);
  if (const detail::Cast cast("matmul", Family::matmul, {a, b}); cast) return cast.back(matmul(cast(a), cast(b)));
  check<ShapeError>(a.rank() >= 1 && b.rank() >= 1, "matmul: takes tensors with at least one axis, got a ", a.shape(), " and b ", b.shape(), "; use a * b for scalars");
  detail::check_real("matmul", "a", a, Family::matmul);
  detail::check_alike("matmul", "a", a, "b", b);
  const int64_t inner = b.rank() == 1 ? b.size(0) : b.size(-2);
  check<ShapeError>(a.size(-1) == inner, "matmul: a ", a.shape(), " has ", a.size(-1), " columns but b ", b.shape(), " has ", inner, " rows");
  if (b.rank() == 1) return squeeze(matmul(a, unsqueeze(b, 1)), -1);
  if (a.rank() == 1) return squeeze(matmul(unsqueeze(a, 0), b), -2);
  // One matrix on the right: all rows of the stack on the left go through one product.
  if (a.rank() > 2 && b.rank() == 2 && a.is_contiguous()) return reshape(matrix_product(as_rows(a), b), with_last(a.shape(), b.size(1)));
  return matrix_product(a, b);
}

Tensor dot(const Tensor& a, const Tensor& b) {
  const cuda::Range range("dot");
  detail::check_defined("dot", "a", a);
  detail::check_defined("dot", "b", b);
  detail::check_same_device("dot", "a", a, "b", b);
  check<ShapeError>(a.rank() == 1 && b.rank() == 1 && a.size(0) == b.size(0), "dot: takes two vectors of the same length, got a ", a.shape(), " and b ", b.shape());
  return matmul(a, b);
}

Tensor outer(const Tensor& a, const Tensor& b) {
  const cuda::Range range("outer");
  detail::check_defined("outer", "a", a);
  detail::check_defined("outer", "b", b);
  detail::check_same_device("outer", "a", a, "b", b);
  check<ShapeError>(a.rank() == 1 && b.rank() == 1, "outer: takes two vectors, got a ", a.shape(), " and b ", b.shape());
  return matmul(unsqueeze(a, 1), unsqueeze(b, 0));
}

Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  const cuda::Range range("linear");
  detail::check_defined("linear", "x", x);
  detail::check_defined("linear", "weight", weight);
  if (const detail::Cast cast("linear", Family::matmul, {x, weight, bias}); cast) return cast.back(linear(cast(x), cast(weight), cast(bias)));
  check<ShapeError>(weight.rank() == 2, "linear: weight must be [out,in], got ", weight.shape());
  check<ShapeError>(x.rank() >= 1 && x.size(-1) == weight.size(1), "linear: x ", x.shape(), " should have a last axis of ", weight.size(1), ", as weight ",
                    weight.shape(), " expects");
  detail::check_real("linear", "x", x, Family::matmul);
  detail::check_alike("linear", "x", x, "weight", weight);
  if (bias) {
    check<ShapeError>(bias.rank() == 1 && bias.size(0) == weight.size(0), "linear: bias must be [", weight.size(0), "] to go with weight ", weight.shape(), ", got ", bias.shape());
    detail::check_alike("linear", "x", x, "bias", bias);
  }
  if (x.rank() != 2) {
    Shape shape = with_last(x.shape(), weight.size(0));
    return reshape(linear(as_rows(x), weight, bias), shape);
  }
  const Tensor y = empty({x.size(0), weight.size(0)}, {x.dtype(), x.device()});
  run_kernel(x, transpose(weight.detach()), bias ? contiguous(bias.detach()) : Tensor(), {}, y);
  return record("linear", y, {x, weight, bias}, saving(weight.requires_grad() ? x : Tensor(), x.requires_grad() ? weight : Tensor()), [](const Saved& s, const Tensor& g) {
    Tensor dx, dweight, dbias;
    if (s.needs(0)) dx = matmul(g, s[1]);
    if (s.needs(1)) dweight = matmul(transpose(g), s[0]);
    if (s.needs(2)) dbias = sum_to(g, {g.size(1)});
    return grads(dx, dweight, dbias);
  });
}

}  // namespace fovea
