// Steps of an optimizer over all parameters, in place, in the order of PyTorch's arithmetic: sgd, adam (and AdamW), rmsprop, adagrad; the norm of all gradients,
// clipping, and dynamic loss scaling (Micikevicius et al. 2018).
// Layout: contiguous float32 or float64; gradients and rounded parameters of half types are converted a block at a time. Each parameter and state is read and
// written once. One loop over all elements of all parameters, so that small ones cost no loop of their own. Deterministic.
// Sources: Kingma & Ba 2015 (adam), Loshchilov & Hutter 2019 (is_decoupled), Tieleman & Hinton 2012 (rmsprop), Duchi et al. 2011 (adagrad).
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>

#include <fovea/kernels/cpu/convert.h>
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

// A run of elements of one parameter: up to three states beside parameter and gradient; a null one is not touched.
template <class T>
struct Memory {
  T* parameter;
  const T* gradient;
  T* state[3];
  T gradient_factor;
};

// step(d, parameter, gradient, state[3]) changes vectors of the parameter and its states; the rest goes through padded vectors.
template <class T, class F>
HWY_INLINE void for_vectors(const Memory<T>& m, int64_t n, const F& step) {
  const hn::ScalableTag<T> d;
  using V = hn::Vec<decltype(d)>;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const V factor = hn::Set(d, m.gradient_factor);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    V p = hn::LoadU(d, m.parameter + i), s0 = hn::Zero(d), s1 = hn::Zero(d), s2 = hn::Zero(d);
    if (m.state[0]) s0 = hn::LoadU(d, m.state[0] + i);
    if (m.state[1]) s1 = hn::LoadU(d, m.state[1] + i);
    if (m.state[2]) s2 = hn::LoadU(d, m.state[2] + i);
    step(d, p, hn::Mul(hn::LoadU(d, m.gradient + i), factor), s0, s1, s2);
    hn::StoreU(p, d, m.parameter + i);
    if (m.state[0]) hn::StoreU(s0, d, m.state[0] + i);
    if (m.state[1]) hn::StoreU(s1, d, m.state[1] + i);
    if (m.state[2]) hn::StoreU(s2, d, m.state[2] + i);
  }
  if (i == n) return;
  HWY_ALIGN T rest[5][hn::MaxLanes(d)] = {};
  const size_t bytes = static_cast<size_t>(n - i) * sizeof(T);
  std::memcpy(rest[0], m.parameter + i, bytes);
  std::memcpy(rest[1], m.gradient + i, bytes);
  for (int k = 0; k < 3; ++k)
    if (m.state[k]) std::memcpy(rest[2 + k], m.state[k] + i, bytes);
  V p = hn::Load(d, rest[0]), s0 = hn::Load(d, rest[2]), s1 = hn::Load(d, rest[3]), s2 = hn::Load(d, rest[4]);
  step(d, p, hn::Mul(hn::Load(d, rest[1]), factor), s0, s1, s2);
  hn::Store(p, d, rest[0]);
  hn::Store(s0, d, rest[2]);
  hn::Store(s1, d, rest[3]);
  hn::Store(s2, d, rest[4]);
  std::memcpy(m.parameter + i, rest[0], bytes);
  for (int k = 0; k < 3; ++k)
    if (m.state[k]) std::memcpy(m.state[k] + i, rest[2 + k], bytes);
}

// Elements [begin, end) of a parameter.
struct Run {
  const StepSlot& slot;
  int64_t begin, end;
  double gradient_factor;
};

template <class T>
T* moved(void* p, int64_t elements) { return p ? static_cast<T*>(p) + elements : nullptr; }

// Note [Master copies] in table.h: elements that are not the copy rounded become the copy.
HWY_INLINE void take_changed(float* copy, const uint16_t* rounded, DType dtype, int64_t n) {
  uint16_t expected[1024];
  convert_run(DType::float32, dtype)(copy, sizeof(float), expected, sizeof(uint16_t), n);
  if (std::memcmp(expected, rounded, static_cast<size_t>(n) * sizeof(uint16_t)) == 0) return;
  const ConvertRun widen = convert_run(dtype, DType::float32);
  for (int64_t i = 0; i < n; ++i)
    if (expected[i] != rounded[i]) widen(rounded + i, sizeof(uint16_t), copy + i, sizeof(float), 1);
}

template <class T, class F>
HWY_INLINE void for_elements(const Run& run, const F& step) {
  const StepSlot& s = run.slot;
  const auto memory_at = [&](int64_t i, const void* gradient) {
    return Memory<T>{moved<T>(s.parameter, i), static_cast<const T*>(gradient),
                     {moved<T>(s.state[0], i), moved<T>(s.state[1], i), moved<T>(s.state[2], i)}, static_cast<T>(run.gradient_factor)};
  };
  if (s.gradient_dtype == s.dtype && !s.rounded) {
    for_vectors(memory_at(run.begin, static_cast<const T*>(s.gradient) + run.begin), run.end - run.begin, step);
    return;
  }
  constexpr int64_t most = 1024;
  T gradient[most];
  const int64_t gradient_bytes = size_of(s.gradient_dtype);
  const ConvertRun widen = convert_run(s.gradient_dtype, dtype_of<T>);
  for (int64_t i = run.begin; i < run.end; i += most) {
    const int64_t n = std::min(most, run.end - i);
    widen(static_cast<const char*>(s.gradient) + i * gradient_bytes, gradient_bytes, gradient, sizeof(T), n);
    const Memory<T> m = memory_at(i, gradient);
    uint16_t* rounded = moved<uint16_t>(s.rounded, i);
    if constexpr (std::is_same_v<T, float>)
      if (rounded) take_changed(m.parameter, rounded, s.rounded_dtype, n);
    for_vectors(m, n, step);
    if (rounded) convert_run(s.dtype, s.rounded_dtype)(m.parameter, sizeof(T), rounded, sizeof(uint16_t), n);
  }
}

// Calls step_run(options, run) on pieces of the parameters, with one loop over all their elements.
template <class Options, class StepRun>
void for_slots(const char* op, std::span<const Options> steps, std::span<const StepSlot> slots, const StepControl& control, const StepRun& step_run) {
  for (const StepSlot& s : slots) dispatch_real(s.dtype, op, [](auto) {});
  if (control.found_inf && *control.found_inf != 0) return;
  int64_t total = 0;
  for (const StepSlot& s : slots) total += s.numel;
  const double factor = control.grad_scale ? 1 / *control.grad_scale : 1;
  parallel_for(total, grain, [&](int64_t begin, int64_t end) {
    int64_t first = 0;                       // of the slot, among all elements
    for (const StepSlot& s : slots) {
      if (first >= end) break;
      const int64_t from = std::max(begin - first, int64_t{0}), to = std::min(end - first, s.numel);
      first += s.numel;
      if (from >= to) continue;
      Options o = steps[static_cast<size_t>(s.step)];
      if (s.count) o.lr = *s.lr, o.step = *s.count + 1;
      step_run(o, Run{s, from, to, factor});
    }
  });
  for (const StepSlot& s : slots)
    if (s.count) ++*s.count;
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
void sgd_run(const SgdStep& o, const Run& run) {
  for_elements<T>(run, [&](auto d, auto& p, auto g, auto& buffer, auto&, auto&) HWY_ATTR {
    g = decayed(d, g, p, o.weight_decay);
    if (o.momentum != 0) {
      buffer = o.step == 1 ? g : hn::MulAdd(g, constant(d, 1 - o.dampening), hn::Mul(buffer, constant(d, o.momentum)));
      g = o.nesterov ? hn::MulAdd(buffer, constant(d, o.momentum), g) : buffer;
    }
    p = hn::MulAdd(g, constant(d, -o.lr), p);
  });
}

template <class T>
void adam_run(const AdamStep& o, const Run& run) {
  const double correction1 = 1 - std::pow(o.beta1, static_cast<double>(o.step)),
               correction2 = std::sqrt(1 - std::pow(o.beta2, static_cast<double>(o.step)));
  const double step_size = o.lr / correction1;
  for_elements<T>(run, [&](auto d, auto& p, auto g, auto& mean, auto& square, auto&) HWY_ATTR {
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
void rmsprop_run(const RmspropStep& o, const Run& run) {
  for_elements<T>(run, [&](auto d, auto& p, auto g, auto& square, auto& buffer, auto& mean) HWY_ATTR {
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
void adagrad_run(const AdagradStep& o, const Run& run) {
  const double rate = o.lr / (1 + static_cast<double>(o.step - 1) * o.lr_decay);
  for_elements<T>(run, [&](auto d, auto& p, auto g, auto& total, auto&, auto&) HWY_ATTR {
    g = decayed(d, g, p, o.weight_decay);
    total = hn::MulAdd(g, g, total);
    p = hn::Add(p, hn::Div(hn::Mul(constant(d, -rate), g), hn::Add(hn::Sqrt(total), constant(d, o.eps))));
  });
}

void sgd(Queue, std::span<const SgdStep> steps, std::span<const StepSlot> slots, const StepControl& control) {
  for_slots("sgd", steps, slots, control, [](const SgdStep& o, const Run& run) {
    run.slot.dtype == DType::float32 ? sgd_run<float>(o, run) : sgd_run<double>(o, run);
  });
}
void adam(Queue, std::span<const AdamStep> steps, std::span<const StepSlot> slots, const StepControl& control) {
  for_slots("adam", steps, slots, control, [](const AdamStep& o, const Run& run) {
    run.slot.dtype == DType::float32 ? adam_run<float>(o, run) : adam_run<double>(o, run);
  });
}
void rmsprop(Queue, std::span<const RmspropStep> steps, std::span<const StepSlot> slots, const StepControl& control) {
  for_slots("rmsprop", steps, slots, control, [](const RmspropStep& o, const Run& run) {
    run.slot.dtype == DType::float32 ? rmsprop_run<float>(o, run) : rmsprop_run<double>(o, run);
  });
}
void adagrad(Queue, std::span<const AdagradStep> steps, std::span<const StepSlot> slots, const StepControl& control) {
  for_slots("adagrad", steps, slots, control, [](const AdagradStep& o, const Run& run) {
    run.slot.dtype == DType::float32 ? adagrad_run<float>(o, run) : adagrad_run<double>(o, run);
  });
}

}  // namespace
}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fovea::kernels {
namespace {

View flat_view(const GradientSlot& s) {
  View v;
  v.data = s.data;
  v.dtype = s.dtype;
  v.shape = {s.numel};
  v.strides = {1};
  return v;
}

double reduced(Reduce how, const GradientSlot& s) {
  const DType dtype = s.dtype == DType::float64 ? DType::float64 : DType::float32;       // squares of half types would not fit into them
  float narrow = 0;
  double wide = 0;
  cpu_table().reduce(nullptr, how, flat_view(s), flat_view({dtype == DType::float64 ? static_cast<void*>(&wide) : &narrow, 1, dtype}));
  return dtype == DType::float64 ? wide : narrow;
}

// The sum of squares, or the largest magnitude.
double partial_norm(bool is_infinity, const GradientSlot& s) {
  if (!is_infinity) return reduced(Reduce::sum_squares, s);
  const double highest = reduced(Reduce::max, s), lowest = reduced(Reduce::min, s);
  return std::isnan(highest) ? highest : std::max(std::abs(highest), std::abs(lowest));
}

// Sums of squares are added in float64, in the order of the gradients.
void gradient_norm(Queue, bool is_infinity, std::span<const GradientSlot> slots, double* norm) {
  double total = 0;
  for (const GradientSlot& s : slots) {
    if (s.numel == 0) continue;
    const double part = partial_norm(is_infinity, s);
    if (!is_infinity) total += part;
    else if (std::isnan(part) || part > total) total = part;
  }
  *norm = is_infinity ? total : std::sqrt(total);
}

void clip_gradients(Queue, double max_norm, const double* norm, std::span<const GradientSlot> slots) {
  const double factor = max_norm / (*norm + 1e-6);
  if (factor >= 1) return;                   // false for NaN: as in PyTorch all gradients become NaN, which cannot be overlooked
  for (const GradientSlot& s : slots) cpu_table().unary(nullptr, Unary::mul_scalar, {.alpha = factor}, flat_view(s), flat_view(s));
}

// Is a quotient infinite or NaN? The quotients are written if is_written.
template <class T>
bool unscale(bool is_written, float factor, T* x, int64_t n) {
  using V = std::conditional_t<std::is_same_v<T, double>, double, float>;
  bool is_finite = true;
  for (int64_t i = 0; i < n; ++i) {
    const V value = static_cast<V>(x[i]) * static_cast<V>(factor);
    is_finite &= std::abs(value) <= std::numeric_limits<V>::max();
    if (is_written) x[i] = static_cast<T>(value);
  }
  return !is_finite;
}

void unscale_gradients(Queue, bool is_written, const float* scale, std::span<const GradientSlot> slots, int32_t* found_inf) {
  const float factor = 1 / *scale;
  std::atomic<bool> found{false};
  for (const GradientSlot& s : slots)
    parallel_for(s.numel, 16384, [&](int64_t begin, int64_t end) {
      const auto of_type = [&](auto zero) { return unscale(is_written, factor, static_cast<decltype(zero)*>(s.data) + begin, end - begin); };
      const bool is_bad = s.dtype == DType::float32 ? of_type(float{}) : s.dtype == DType::float64 ? of_type(double{})
                        : s.dtype == DType::float16 ? of_type(float16{}) : of_type(bfloat16{});
      if (is_bad) found.store(true, std::memory_order_relaxed);
    });
  if (found) *found_inf = 1;
}

void update_scale(Queue, const ScaleGrowth& o, float* scale, int32_t* good_steps, int32_t* found_inf, int64_t count) {
  o.advance(std::any_of(found_inf, found_inf + count, [](int32_t found) { return found != 0; }), *scale, *good_steps);
  std::fill_n(found_inf, count, 0);
}

}  // namespace

void add_optimizer(KernelTable& t) {
  t.sgd = FOVEA_BEST(sgd);
  t.adam = FOVEA_BEST(adam);
  t.rmsprop = FOVEA_BEST(rmsprop);
  t.adagrad = FOVEA_BEST(adagrad);
  t.gradient_norm = gradient_norm;
  t.clip_gradients = clip_gradients;
  t.unscale_gradients = unscale_gradients;
  t.update_scale = update_scale;
}

}  // namespace fovea::kernels
#endif
