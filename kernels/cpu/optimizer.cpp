// One step of an optimizer over one parameter, in place, in the order of PyTorch's arithmetic: sgd, adam (and AdamW), rmsprop, adagrad.
// Layout: contiguous float32 or float64, one dtype. Each parameter and state is read and written once. Deterministic.
// Sources: Kingma & Ba 2015 (adam), Loshchilov & Hutter 2019 (is_decoupled), Tieleman & Hinton 2012 (rmsprop), Duchi et al. 2011 (adagrad).
#include <cmath>
#include <cstring>

#include <fovea/kernels/cpu/parallel.h>
#include <fovea/kernels/table.h>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/optimizer.cpp"
#include <fovea/kernels/cpu/simd.h>

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

constexpr int64_t grain = 16384;

template <class D> HWY_INLINE hn::Vec<D> constant(D d, double value) { return hn::Set(d, static_cast<hn::TFromD<D>>(value)); }

// Up to three state tensors beside parameter and gradient; a null one is not touched.
template <class T>
struct Memory {
  T* parameter;
  const T* gradient;
  T* state[3];
};

template <class T>
Memory<T> memory_of(const View& parameter, const ConstView& gradient, const View& a, const View& b = {}, const View& c = {}) {
  return {parameter.as<T>(), gradient.as<T>(), {a.as<T>(), b.as<T>(), c.as<T>()}};
}

// step(d, parameter, gradient, state[3]) changes vectors of the parameter and its states; the rest goes through padded vectors.
template <class T, class F>
HWY_INLINE void for_vectors(const Memory<T>& m, int64_t n, const F& step) {
  const hn::ScalableTag<T> d;
  using V = hn::Vec<decltype(d)>;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  parallel_for(n, grain, [&](int64_t begin, int64_t end) HWY_ATTR {
    int64_t i = begin;
    for (; i + lanes <= end; i += lanes) {
      V p = hn::LoadU(d, m.parameter + i), s0 = hn::Zero(d), s1 = hn::Zero(d), s2 = hn::Zero(d);
      if (m.state[0]) s0 = hn::LoadU(d, m.state[0] + i);
      if (m.state[1]) s1 = hn::LoadU(d, m.state[1] + i);
      if (m.state[2]) s2 = hn::LoadU(d, m.state[2] + i);
      step(d, p, hn::LoadU(d, m.gradient + i), s0, s1, s2);
      hn::StoreU(p, d, m.parameter + i);
      if (m.state[0]) hn::StoreU(s0, d, m.state[0] + i);
      if (m.state[1]) hn::StoreU(s1, d, m.state[1] + i);
      if (m.state[2]) hn::StoreU(s2, d, m.state[2] + i);
    }
    if (i == end) return;
    HWY_ALIGN T rest[5][hn::MaxLanes(d)] = {};
    const size_t bytes = static_cast<size_t>(end - i) * sizeof(T);
    std::memcpy(rest[0], m.parameter + i, bytes);
    std::memcpy(rest[1], m.gradient + i, bytes);
    for (int k = 0; k < 3; ++k)
      if (m.state[k]) std::memcpy(rest[2 + k], m.state[k] + i, bytes);
    V p = hn::Load(d, rest[0]), s0 = hn::Load(d, rest[2]), s1 = hn::Load(d, rest[3]), s2 = hn::Load(d, rest[4]);
    step(d, p, hn::Load(d, rest[1]), s0, s1, s2);
    hn::Store(p, d, rest[0]);
    hn::Store(s0, d, rest[2]);
    hn::Store(s1, d, rest[3]);
    hn::Store(s2, d, rest[4]);
    std::memcpy(m.parameter + i, rest[0], bytes);
    for (int k = 0; k < 3; ++k)
      if (m.state[k]) std::memcpy(m.state[k] + i, rest[2 + k], bytes);
  });
}

// a + weight * (b - a), from the nearer end
template <class D, class V>
HWY_INLINE V lerp(D d, V a, V b, double weight) {
  const V difference = hn::Sub(b, a);
  if (weight < 0.5) return hn::MulAdd(constant(d, weight), difference, a);
  return hn::NegMulAdd(difference, constant(d, 1 - weight), b);
}

// g + weight_decay * p, where there is weight decay
template <class D, class V>
HWY_INLINE V decayed(D d, V g, V p, double weight_decay) {
  return weight_decay != 0 ? hn::MulAdd(p, constant(d, weight_decay), g) : g;
}

// average * a + (1 - a) * g^2
template <class D, class V>
HWY_INLINE V squares(D d, V average, V g, double a) {
  return hn::MulAdd(hn::Mul(constant(d, 1 - a), g), g, hn::Mul(average, constant(d, a)));
}

template <class T>
void sgd_of(const SgdStep& o, const View& parameter, const ConstView& gradient, const View& momentum_buffer) {
  for_vectors(memory_of<T>(parameter, gradient, momentum_buffer), parameter.numel(),
              [&](auto d, auto& p, auto g, auto& buffer, auto&, auto&) HWY_ATTR {
                g = decayed(d, g, p, o.weight_decay);
                if (o.momentum != 0) {
                  buffer = o.is_first ? g : hn::MulAdd(g, constant(d, 1 - o.dampening), hn::Mul(buffer, constant(d, o.momentum)));
                  g = o.nesterov ? hn::MulAdd(buffer, constant(d, o.momentum), g) : buffer;
                }
                p = hn::MulAdd(g, constant(d, -o.lr), p);
              });
}

template <class T>
void adam_of(const AdamStep& o, const View& parameter, const ConstView& gradient, const View& exp_avg, const View& exp_avg_sq) {
  const double correction1 = 1 - std::pow(o.beta1, static_cast<double>(o.step)),
               correction2 = std::sqrt(1 - std::pow(o.beta2, static_cast<double>(o.step)));
  const double step_size = o.lr / correction1;
  for_vectors(memory_of<T>(parameter, gradient, exp_avg, exp_avg_sq), parameter.numel(),
              [&](auto d, auto& p, auto g, auto& mean, auto& square, auto&) HWY_ATTR {
                if (o.is_decoupled)
                  p = hn::Mul(p, constant(d, 1 - o.lr * o.weight_decay));
                else
                  g = decayed(d, g, p, o.weight_decay);
                mean = lerp(d, mean, g, 1 - o.beta1);
                square = squares(d, square, g, o.beta2);
                const auto denominator = hn::Add(hn::Div(hn::Sqrt(square), constant(d, correction2)), constant(d, o.eps));
                p = hn::Add(p, hn::Div(hn::Mul(constant(d, -step_size), mean), denominator));
              });
}

template <class T>
void rmsprop_of(const RmspropStep& o, const View& parameter, const ConstView& gradient, const View& square_avg, const View& momentum_buffer,
                const View& grad_avg) {
  const Memory<T> m = memory_of<T>(parameter, gradient, square_avg, momentum_buffer, grad_avg);
  for_vectors(m, parameter.numel(), [&](auto d, auto& p, auto g, auto& square, auto& buffer, auto& mean) HWY_ATTR {
    g = decayed(d, g, p, o.weight_decay);
    square = squares(d, square, g, o.alpha);
    auto spread = square;
    if (o.is_centered) {
      mean = lerp(d, mean, g, 1 - o.alpha);
      spread = hn::NegMulAdd(mean, mean, square);
    }
    const auto denominator = hn::Add(hn::Sqrt(spread), constant(d, o.eps));
    if (o.momentum > 0) {
      buffer = hn::Add(hn::Mul(buffer, constant(d, o.momentum)), hn::Div(g, denominator));
      p = hn::MulAdd(buffer, constant(d, -o.lr), p);
    } else {
      p = hn::Add(p, hn::Div(hn::Mul(constant(d, -o.lr), g), denominator));
    }
  });
}

template <class T>
void adagrad_of(const AdagradStep& o, const View& parameter, const ConstView& gradient, const View& sum) {
  const double rate = o.lr / (1 + static_cast<double>(o.step - 1) * o.lr_decay);
  for_vectors(memory_of<T>(parameter, gradient, sum), parameter.numel(), [&](auto d, auto& p, auto g, auto& total, auto&, auto&) HWY_ATTR {
    g = decayed(d, g, p, o.weight_decay);
    total = hn::MulAdd(g, g, total);
    p = hn::Add(p, hn::Div(hn::Mul(constant(d, -rate), g), hn::Add(hn::Sqrt(total), constant(d, o.eps))));
  });
}

void sgd(Queue, const SgdStep& o, const View& parameter, const ConstView& gradient, const View& momentum_buffer) {
  dispatch_real(parameter.dtype, "sgd", [&](auto zero) { sgd_of<decltype(zero)>(o, parameter, gradient, momentum_buffer); });
}
void adam(Queue, const AdamStep& o, const View& parameter, const ConstView& gradient, const View& exp_avg, const View& exp_avg_sq) {
  dispatch_real(parameter.dtype, "adam", [&](auto zero) { adam_of<decltype(zero)>(o, parameter, gradient, exp_avg, exp_avg_sq); });
}
void rmsprop(Queue, const RmspropStep& o, const View& parameter, const ConstView& gradient, const View& square_avg,
             const View& momentum_buffer, const View& grad_avg) {
  dispatch_real(parameter.dtype, "rmsprop",
                [&](auto zero) { rmsprop_of<decltype(zero)>(o, parameter, gradient, square_avg, momentum_buffer, grad_avg); });
}
void adagrad(Queue, const AdagradStep& o, const View& parameter, const ConstView& gradient, const View& sum) {
  dispatch_real(parameter.dtype, "adagrad", [&](auto zero) { adagrad_of<decltype(zero)>(o, parameter, gradient, sum); });
}

}  // namespace
}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fovea::kernels {

void add_optimizer(KernelTable& t) {
  t.sgd = FOVEA_BEST(sgd);
  t.adam = FOVEA_BEST(adam);
  t.rmsprop = FOVEA_BEST(rmsprop);
  t.adagrad = FOVEA_BEST(adagrad);
}

}  // namespace fovea::kernels
#endif
