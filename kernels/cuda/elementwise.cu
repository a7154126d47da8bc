// ternary: y = f(a, b, c; alpha), element by element, with the formulas of kernels/cpu/binary.cpp; and the table's elementwise entries (unary.cu,
// binary.cu). Layout: any strides; operands already broadcast to y's shape. Overwrites y, which may be an operand itself. Computed in float32 (for
// float16 and bfloat16 too), float64 or int64. Deterministic. Floor: one read of each operand, one write. Which loop runs: see Note [Two loops] in
// elementwise.h.
#include <fovea/kernels/cuda/elementwise_functions.h>

namespace fovea::kernels::cuda {
namespace {

struct Where {
  template <class C> __device__ C operator()(bool condition, C yes, C no) const { return condition ? yes : no; }
};

template <class C>
struct AddProduct {
  C alpha;
  __device__ C operator()(C a, C b, C c) const {
    if constexpr (std::is_integral_v<C>) return wrapped_add(a, wrapped_multiply(alpha, wrapped_multiply(b, c)));
    else return std::fma(alpha * b, c, a);
  }
};

template <class C>
struct AddQuotient {
  C alpha;
  __device__ C operator()(C a, C b, C c) const { return a + alpha * b / c; }
};

// Exact at both ends, as PyTorch's: from a below 1/2, from b above.
struct Lerp {
  template <class C>
  __device__ C operator()(C a, C b, C weight) const {
    const C difference = b - a;
    return std::fabs(weight) < C(0.5) ? std::fma(weight, difference, a) : std::fma(-difference, C(1) - weight, b);
  }
};

template <class T>
void run(Queue queue, Ternary op, Scalars s, Loop<3>& loop) {
  using C = Compute<T>;
  const C alpha = scalar<C>(s.alpha);
  if (op == Ternary::where) return map<bool, bool, T, T>(queue, "where", loop, Where());
  if (op == Ternary::add_product) return map<T, C, T, T>(queue, "add_product", loop, AddProduct<C>{alpha});
  if constexpr (std::is_integral_v<C>) {
    fail<DTypeError>("this elementwise operation takes floating-point tensors, got integers; convert with to(x, DType::float32)");
  } else {
    if (op == Ternary::add_quotient) return map<T, C, T, T>(queue, "add_quotient", loop, AddQuotient<C>{alpha});
    return map<T, C, T, T>(queue, "lerp", loop, Lerp());
  }
}

void ternary(Queue queue, Ternary op, Scalars s, const ConstView& a, const ConstView& b, const ConstView& c, const View& y) {
  if (y.numel() == 0) return;
  Loop<3> loop = loop_over<3>(y, {&a, &b, &c});
  dispatch(y.dtype, [&](auto zero) { run<decltype(zero)>(queue, op, s, loop); });
}

}  // namespace

void add_elementwise(KernelTable& t) {
  t.unary = unary;
  t.binary = binary;
  t.ternary = ternary;
}

}  // namespace fovea::kernels::cuda
