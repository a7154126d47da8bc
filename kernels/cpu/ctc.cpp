// Connectionist temporal classification: losses[b] = -ln p(target_b | logits[:,b,:]) and, in the same run, its gradient by the logits.
//   l' = the labels with blanks around each (2L + 1 states); alpha_t(s) = y_t(l'_s) [alpha(s) + alpha(s-1) + alpha(s-2) if l'_s is a label and not l'_(s-2)],
//   beta mirrored; d loss / d logit_t(k) = y_t(k) - sum over s with l'_s = k of gamma_t(s), gamma_t = alpha_t beta_t / p.   Source: Graves et al. 2006, sections 3 and 4.
// Layout: logits [time,batch,classes] contiguous; y = softmax over classes. Overwrites losses and dlogits. Deterministic: one thread a sample, sums in a fixed order.
// Infeasible samples: infinite loss (or 0), gradient 0. A NaN anywhere in a sample's valid steps makes its loss and gradient NaN.
// Floor: reading the logits once and writing the gradient once; time * (classes + 8 states) exponentials and products.
//
// Note [Probabilities with an exponent of their own]
// A probability is mantissa * 2^exponent, in two numbers of the element type: the range has no end, as in log space, but a sum of three takes shifts and
// adds instead of exponentials and logarithms, and the relative error of a step is one rounding, not an error that grows with |ln p|. A zero has
// mantissa 0 and exponent `lowest`. gamma_t is divided by its own sum over the states, which is p, so rounding in alpha cancels.
//
// States are kept as two arrays, blanks (L + 1) and labels (L): a step is then the same for all lanes,
//   blank(i) = y(blank) [blank(i) + label(i-1)],   label(i) = y(l_i) [label(i) + blank(i) + label(i-1) if l_i is not l_(i-1)].
#include <fovea/kernels/table.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include <fovea/kernels/cpu/parallel.h>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/ctc.cpp"
#include <fovea/kernels/cpu/simd.h>
#include <hwy/contrib/math/math-inl.h>

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace {

template <class T> using Tag = hn::ScalableTag<T>;
template <class T> using Vector = hn::Vec<Tag<T>>;
template <class T> constexpr int64_t lanes_of = hn::MaxLanes(Tag<T>());
template <class T> constexpr T lowest = T(-1e37);
constexpr int64_t round_up(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

// How an element type stores 2^n: bits of the fraction, the exponent's bias, and a number whose last bits read as an integer when a small one is added.
template <class T> struct Format;
template <> struct Format<float> {
  static constexpr int fraction_bits = 23;
  static constexpr float bias = 127, magic = 8388608.0f;
  static constexpr uint32_t magic_bits = 0x4B000000u, fraction_mask = 0x007FFFFFu, one_bits = 0x3F800000u;
};
template <> struct Format<double> {
  static constexpr int fraction_bits = 52;
  static constexpr double bias = 1023, magic = 4503599627370496.0;
  static constexpr uint64_t magic_bits = 0x4330000000000000ull, fraction_mask = 0x000FFFFFFFFFFFFFull, one_bits = 0x3FF0000000000000ull;
};

template <class T>
struct Scaled {
  Vector<T> mantissa, exponent;
};

// 2^n for integers n <= 0; everything below the smallest normal number counts as that.
template <class T>
HWY_INLINE Vector<T> power_of_two(Vector<T> n) {
  using F = Format<T>;
  const Tag<T> d;
  const Vector<T> shifted = hn::Add(hn::Max(n, hn::Set(d, T(1) - F::bias)), hn::Set(d, F::magic + F::bias));
  return hn::BitCast(d, hn::ShiftLeft<F::fraction_bits>(hn::BitCast(hn::RebindToUnsigned<Tag<T>>(), shifted)));
}

template <class T>
HWY_INLINE Scaled<T> sum(const Scaled<T>& a, const Scaled<T>& b) {
  const Vector<T> top = hn::Max(a.exponent, b.exponent);
  return {hn::MulAdd(a.mantissa, power_of_two<T>(hn::Sub(a.exponent, top)), hn::Mul(b.mantissa, power_of_two<T>(hn::Sub(b.exponent, top)))), top};
}

template <class T>
HWY_INLINE Scaled<T> sum(const Scaled<T>& a, const Scaled<T>& b, const Scaled<T>& c) {
  const Vector<T> top = hn::Max(hn::Max(a.exponent, b.exponent), c.exponent);
  const Vector<T> bc = hn::MulAdd(b.mantissa, power_of_two<T>(hn::Sub(b.exponent, top)), hn::Mul(c.mantissa, power_of_two<T>(hn::Sub(c.exponent, top))));
  return {hn::MulAdd(a.mantissa, power_of_two<T>(hn::Sub(a.exponent, top)), bc), top};
}

// a * b with the mantissa brought back to [1, 2).
template <class T>
HWY_INLINE Scaled<T> product(const Scaled<T>& a, const Scaled<T>& b) {
  using F = Format<T>;
  const Tag<T> d;
  const hn::RebindToUnsigned<Tag<T>> du;
  const Vector<T> mantissa = hn::Mul(a.mantissa, b.mantissa);
  const auto bits = hn::BitCast(du, mantissa);
  const Vector<T> shift = hn::Sub(hn::BitCast(d, hn::Or(hn::ShiftRight<F::fraction_bits>(bits), hn::Set(du, F::magic_bits))), hn::Set(d, F::magic + F::bias));
  const Vector<T> scaled = hn::BitCast(d, hn::Or(hn::And(bits, hn::Set(du, F::fraction_mask)), hn::Set(du, F::one_bits)));
  const Vector<T> exponent = hn::Max(hn::Add(hn::Add(a.exponent, b.exponent), shift), hn::Set(d, lowest<T>));
  const auto is_zero = hn::Eq(mantissa, hn::Zero(d));
  return {hn::IfThenZeroElse(is_zero, scaled), hn::IfThenElse(is_zero, hn::Set(d, lowest<T>), exponent)};
}

template <class T>
HWY_INLINE Scaled<T> only_where(Vector<T> flag, const Scaled<T>& a) {
  const Tag<T> d;
  const auto mask = hn::Ne(flag, hn::Zero(d));
  return {hn::IfThenElseZero(mask, a.mantissa), hn::IfThenElse(mask, a.exponent, hn::Set(d, lowest<T>))};
}

// Numbers with exponents in memory. Around `size` of them stand zeros, a vector before and at least a vector after, so that neighbours can be read everywhere.
template <class T>
struct ScaledArray {
  T* mantissa;
  T* exponent;

  static int64_t pitch(int64_t size) { return round_up(size, lanes_of<T>) + 2 * lanes_of<T>; }
  static int64_t elements(int64_t size) { return 2 * pitch(size); }
  ScaledArray(T* memory, int64_t size) : mantissa(memory + lanes_of<T>), exponent(mantissa + pitch(size)) {}

  void clear(int64_t size) {
    std::fill(mantissa - lanes_of<T>, mantissa - lanes_of<T> + pitch(size), T(0));
    std::fill(exponent - lanes_of<T>, exponent - lanes_of<T> + pitch(size), lowest<T>);
  }
  void set(int64_t i, T value) {
    mantissa[i] = value;
    exponent[i] = 0;
  }
  HWY_INLINE Scaled<T> load(int64_t i) const { return {hn::LoadU(Tag<T>(), mantissa + i), hn::LoadU(Tag<T>(), exponent + i)}; }
  HWY_INLINE void store(int64_t i, const Scaled<T>& a) const {
    hn::StoreU(a.mantissa, Tag<T>(), mantissa + i);
    hn::StoreU(a.exponent, Tag<T>(), exponent + i);
  }
  HWY_INLINE Scaled<T> broadcast(int64_t i) const { return {hn::Set(Tag<T>(), mantissa[i]), hn::Set(Tag<T>(), exponent[i])}; }
};

// The states of one time step: blanks and labels, both of size L + 1 (the last label is a zero).
template <class T>
struct States {
  ScaledArray<T> blank, label;
  static int64_t elements(int64_t size) { return 2 * ScaledArray<T>::elements(size); }
  States(T* memory, int64_t size) : blank(memory, size), label(memory + ScaledArray<T>::elements(size), size) {}
  void clear(int64_t size) {
    blank.clear(size);
    label.clear(size);
  }
};

// Scratch memory of one worker, cut up for the largest sample of the batch.
template <class T>
struct Layout {
  int64_t classes, states, alpha, emission, beta, skip, probability, inverse_sum, total;

  Layout(const CtcGeometry& g, bool has_gradient) {
    const int64_t size = g.max_target + 1, kept = has_gradient ? std::max<int64_t>(g.time, 1) : 1;
    classes = round_up(g.classes, lanes_of<T>);
    states = States<T>::elements(size);
    alpha = 0;
    beta = alpha + (kept + 1) * states;
    emission = beta + 2 * states;                                              // [kept] label scores; the one after the last label is the blank's
    skip = emission + kept * ScaledArray<T>::elements(size);
    probability = skip + ScaledArray<T>::pitch(size);                          // [kept, classes]
    inverse_sum = probability + kept * classes;
    total = round_up(inverse_sum + kept, 64 / static_cast<int64_t>(sizeof(T)));
  }
};

// One sample: what is read, and the steps of the computation.
template <class T>
struct Sample {
  const CtcGeometry& g;
  const Layout<T>& layout;
  T* memory;
  const T* logits;                            // row t is at logits + t * pitch
  int64_t pitch;
  const int64_t* target;
  int64_t time, length;
  bool keeps_steps;                           // for the gradient; otherwise each step takes the place of the one before

  int64_t size() const { return length + 1; }
  int64_t kept(int64_t t) const { return keeps_steps ? t : 0; }
  States<T> alpha(int64_t t) const { return {memory + layout.alpha + (keeps_steps ? t + 1 : (t + 1) % 2) * layout.states, size()}; }   // t = -1: before the first step
  States<T> beta(int64_t t) const { return {memory + layout.beta + t % 2 * layout.states, size()}; }
  ScaledArray<T> emission(int64_t t) const { return {memory + layout.emission + kept(t) * ScaledArray<T>::elements(g.max_target + 1), size()}; }
  T* probability(int64_t t) const { return memory + layout.probability + kept(t) * layout.classes; }
  T& inverse_sum(int64_t t) const { return memory[layout.inverse_sum + kept(t)]; }
  T* skip() const { return memory + layout.skip + lanes_of<T>; }               // 1 where a label differs from the one before it
};

// probability(t) = exp(logits - max) and inverse_sum(t) = 1 / their sum; returns the maximum.
template <class T>
T exponentials(const Sample<T>& s, int64_t t) {
  const Tag<T> d;
  T* row = s.probability(t);
  std::memcpy(row, s.logits + t * s.pitch, static_cast<size_t>(s.g.classes) * sizeof(T));
  std::fill(row + s.g.classes, row + s.layout.classes, -std::numeric_limits<T>::infinity());
  Vector<T> top = hn::LoadU(d, row);
  for (int64_t k = lanes_of<T>; k < s.layout.classes; k += lanes_of<T>) top = hn::Max(top, hn::LoadU(d, row + k));
  top = hn::MaxOfLanes(d, top);
  Vector<T> total = hn::Zero(d);
  for (int64_t k = 0; k < s.layout.classes; k += lanes_of<T>) {
    const Vector<T> x = hn::Sub(hn::LoadU(d, row + k), top);
    const auto is_nan = hn::IsNaN(x);                       // Highway's Exp turns its argument into an integer on the way: not for NaN
    const Vector<T> y = hn::IfThenElse(is_nan, x, hn::Exp(d, hn::IfThenZeroElse(is_nan, x)));
    total = hn::Add(total, y);
    hn::StoreU(y, d, row + k);
  }
  s.inverse_sum(t) = T(1) / hn::GetLane(hn::SumOfLanes(d, total));
  return hn::GetLane(top);
}

// emission(t)[i] = y_t(l_i), and y_t(blank) behind the last label. They are not taken from the exponentials, which end where the range of T ends.
template <class T>
void emissions(const Sample<T>& s, int64_t t, T top) {
  const Tag<T> d;
  const bool is_float = sizeof(T) == 4;
  const ScaledArray<T> out = s.emission(t);
  const T* row = s.logits + t * s.pitch;
  const int64_t width = round_up(s.size(), lanes_of<T>);
  for (int64_t i = 0; i < s.length; ++i) out.mantissa[i] = row[s.target[i]];
  out.mantissa[s.length] = row[s.g.blank];
  std::fill(out.mantissa + s.size(), out.mantissa + width, -std::numeric_limits<T>::infinity());
  const Vector<T> log2_e = hn::Set(d, T(1.44269504088896340736)), inverse_sum = hn::Set(d, s.inverse_sum(t));
  const Vector<T> minus_ln2_high = hn::Set(d, is_float ? T(-0.693145751953125) : T(-0.6931471805596629565)), floor_of_range = hn::Set(d, lowest<T>);
  const Vector<T> minus_ln2_low = hn::Set(d, is_float ? T(-1.428606765330187045e-6) : T(-0.28235290563031577122588448175e-12));
  for (int64_t i = 0; i < width; i += lanes_of<T>) {
    const Vector<T> x = hn::Sub(hn::LoadU(d, out.mantissa + i), hn::Set(d, top));
    const Vector<T> q = hn::Floor(hn::Mul(x, log2_e));
    const Vector<T> rest = hn::MulAdd(q, minus_ln2_low, hn::MulAdd(q, minus_ln2_high, x));
    const Vector<T> y = hn::Mul(hn::Exp(d, hn::Min(hn::Max(rest, hn::Zero(d)), hn::Set(d, T(0.7)))), inverse_sum);
    const auto is_zero = hn::Lt(x, hn::Set(d, -std::numeric_limits<T>::max()));
    hn::StoreU(hn::IfThenZeroElse(is_zero, y), d, out.mantissa + i);
    hn::StoreU(hn::IfThenElse(is_zero, floor_of_range, hn::Max(q, floor_of_range)), d, out.exponent + i);
  }
}

// alpha(t) from alpha(t - 1) and the scores of step t.
template <class T>
void step_alpha(const Sample<T>& s, int64_t t) {
  const States<T> from = s.alpha(t - 1), to = s.alpha(t);
  const ScaledArray<T> emission = s.emission(t);
  const Scaled<T> blank_score = emission.broadcast(s.length);
  emission.mantissa[s.length] = 0;                                             // there is no label in this place
  const T* skip = s.skip();
  for (int64_t i = 0; i < s.size(); i += lanes_of<T>) {
    const Scaled<T> blank = from.blank.load(i), label = from.label.load(i), before = from.label.load(i - 1);
    to.blank.store(i, product(sum(blank, before), blank_score));
    const Scaled<T> skipped = only_where<T>(hn::LoadU(Tag<T>(), skip + i), before);
    to.label.store(i, product(sum(label, blank, skipped), emission.load(i)));
  }
  emission.mantissa[s.length] = hn::GetLane(blank_score.mantissa);
}

// ln p(target), from the two states that may come last; -infinity when no path leads there.
template <class T>
double log_probability(const Sample<T>& s) {
  const States<T> last = s.alpha(s.time - 1);
  const int64_t n = s.length;
  const double blank = last.blank.mantissa[n], label = last.label.mantissa[n - 1];                // label -1, in front of the array, is a zero
  const double blank_exponent = last.blank.exponent[n], label_exponent = last.label.exponent[n - 1];
  if (blank == 0 && label == 0) return -std::numeric_limits<double>::infinity();
  const double top = blank == 0 ? label_exponent : label == 0 ? blank_exponent : std::max(blank_exponent, label_exponent);
  const double total = blank * std::exp2(std::min(blank_exponent - top, 0.0)) + label * std::exp2(std::min(label_exponent - top, 0.0));
  return std::log(total) + top * 0.69314718055994530942;
}

// One step back. beta(t) here includes the score of step t, so that beta(t + 1) holds what is needed: the sums over next states, times alpha(t), are gamma.
// The gradient of row t is left in probability(t).
template <class T>
void step_gradient(const Sample<T>& s, int64_t t) {
  const Tag<T> d;
  const States<T> alpha = s.alpha(t), from = s.beta(t + 1), to = s.beta(t);
  const ScaledArray<T> emission = s.emission(t);
  const Scaled<T> blank_score = emission.broadcast(s.length);
  emission.mantissa[s.length] = 0;
  const T* skip = s.skip();
  Vector<T> top = hn::Set(d, 2 * lowest<T>);
  for (int64_t i = 0; i < s.size(); i += lanes_of<T>) {
    const Scaled<T> label = from.label.load(i), next_blank = from.blank.load(i + 1), next_label = from.label.load(i + 1);
    const Scaled<T> from_blank = sum(from.blank.load(i), label);
    const Scaled<T> from_label = sum(label, next_blank, only_where<T>(hn::LoadU(d, skip + i + 1), next_label));
    to.blank.store(i, product(from_blank, blank_score));
    to.label.store(i, product(from_label, emission.load(i)));
    // alpha(t) is not needed again: gamma, not yet normalised, takes its place.
    const Scaled<T> a = alpha.blank.load(i), b = alpha.label.load(i);
    const Scaled<T> blank_gamma{hn::Mul(a.mantissa, from_blank.mantissa), hn::Add(a.exponent, from_blank.exponent)};
    const Scaled<T> label_gamma{hn::Mul(b.mantissa, from_label.mantissa), hn::Add(b.exponent, from_label.exponent)};
    alpha.blank.store(i, blank_gamma);
    alpha.label.store(i, label_gamma);
    top = hn::Max(top, hn::Max(blank_gamma.exponent, label_gamma.exponent));
  }
  top = hn::MaxOfLanes(d, top);
  Vector<T> blank_sum = hn::Zero(d), label_sum = hn::Zero(d);
  for (int64_t i = 0; i < s.size(); i += lanes_of<T>) {
    const Scaled<T> blank = alpha.blank.load(i), label = alpha.label.load(i);
    blank_sum = hn::MulAdd(blank.mantissa, power_of_two<T>(hn::Sub(blank.exponent, top)), blank_sum);
    const Vector<T> label_gamma = hn::Mul(label.mantissa, power_of_two<T>(hn::Sub(label.exponent, top)));
    label_sum = hn::Add(label_sum, label_gamma);
    hn::StoreU(label_gamma, d, alpha.label.mantissa + i);
  }
  T* row = s.probability(t);
  const Vector<T> inverse_sum = hn::Set(d, s.inverse_sum(t));
  for (int64_t k = 0; k < s.layout.classes; k += lanes_of<T>) hn::StoreU(hn::Mul(hn::LoadU(d, row + k), inverse_sum), d, row + k);
  const T blanks = hn::GetLane(hn::SumOfLanes(d, blank_sum)), share = T(1) / (blanks + hn::GetLane(hn::SumOfLanes(d, label_sum)));
  row[s.g.blank] -= blanks * share;
  for (int64_t i = 0; i < s.length; ++i) row[s.target[i]] -= alpha.label.mantissa[i] * share;
}

// ln p(target); NaN if one of the steps has no softmax.
template <class T>
double run_forward(const Sample<T>& s) {
  std::fill(s.skip() - lanes_of<T>, s.skip() - lanes_of<T> + ScaledArray<T>::pitch(s.size()), T(0));
  for (int64_t i = 1; i < s.length; ++i) s.skip()[i] = s.target[i] != s.target[i - 1];
  for (int64_t t = -1; t < (s.keeps_steps ? s.time : 1); ++t) s.alpha(t).clear(s.size());
  s.alpha(-1).blank.set(0, T(1));
  bool is_valid = true;
  for (int64_t t = 0; t < s.time; ++t) {
    const T top = exponentials(s, t);
    is_valid = is_valid && !std::isnan(s.inverse_sum(t));
    emissions(s, t, top);
    step_alpha(s, t);
  }
  return is_valid ? log_probability(s) : std::numeric_limits<double>::quiet_NaN();
}

template <class T>
void run_gradient(const Sample<T>& s, T* dlogits) {
  s.beta(s.time).clear(s.size());
  s.beta(s.time + 1).clear(s.size());
  s.beta(s.time).blank.set(s.length, T(1));
  for (int64_t t = s.time - 1; t >= 0; --t) {
    step_gradient(s, t);
    std::memcpy(dlogits + t * s.pitch, s.probability(t), static_cast<size_t>(s.g.classes) * sizeof(T));
  }
}

template <class T>
void fill_rows(T* rows, int64_t pitch, int64_t classes, int64_t begin, int64_t end, T value) {
  for (int64_t t = begin; t < end; ++t) std::fill(rows + t * pitch, rows + t * pitch + classes, value);
}

template <class T>
void run_sample(const Sample<T>& s, T* loss, T* dlogits) {
  const double log_p = run_forward(s);
  const bool is_infeasible = log_p == -std::numeric_limits<double>::infinity();
  *loss = is_infeasible && s.g.zero_infinity ? T(0) : static_cast<T>(log_p == 0 ? 0.0 : -log_p);
  if (!dlogits) return;
  fill_rows(dlogits, s.pitch, s.g.classes, s.time, s.g.time, T(0));
  if (is_infeasible || std::isnan(log_p)) {
    fill_rows(dlogits, s.pitch, s.g.classes, 0, s.time, is_infeasible ? T(0) : std::numeric_limits<T>::quiet_NaN());
  } else {
    run_gradient(s, dlogits);
  }
}

template <class T>
void ctc_typed(const CtcGeometry& g, const ConstView& logits, const ConstView& targets, const ConstView& input_lengths, const ConstView& target_lengths,
               const View& losses, const View& weights, const View& dlogits, Workspace scratch) {
  const Layout<T> layout(g, static_cast<bool>(dlogits));
  const int64_t workers = (scratch.bytes / static_cast<int64_t>(sizeof(T)) - g.batch) / layout.total;
  const bool is_reduced = g.reduction != Reduction::none;
  T* const all = static_cast<T*>(scratch.data) + workers * layout.total;      // the losses of all samples, where they are not the result
  T* const each = is_reduced ? all : losses.as<T>();
  const int64_t* lengths = target_lengths.as<int64_t>();
  parallel_workers(workers, g.batch, [&](int64_t worker, int64_t b) {         // samples differ in length
    T* memory = static_cast<T*>(scratch.data) + worker * layout.total;
    const Sample<T> sample{g, layout, memory, logits.as<T>() + b * g.classes, g.batch * g.classes, targets.as<int64_t>() + b * g.max_target,
                           input_lengths.as<int64_t>()[b], lengths[b], static_cast<bool>(dlogits)};
    run_sample(sample, each + b, dlogits ? dlogits.as<T>() + b * g.classes : nullptr);
  });
  if (!is_reduced) return;
  double total = 0;
  for (int64_t b = 0; b < g.batch; ++b) {
    const double divisor = g.reduction == Reduction::mean ? static_cast<double>(std::max<int64_t>(1, lengths[b])) * static_cast<double>(g.batch) : 1;
    total += static_cast<double>(each[b]) / divisor;
    if (weights) weights.as<T>()[b] = static_cast<T>(1 / divisor);
  }
  *losses.as<T>() = static_cast<T>(total);
}

void ctc_loss(Queue, const CtcGeometry& g, const ConstView& logits, const ConstView& targets, const ConstView& input_lengths, const ConstView& target_lengths,
              const View& losses, const View& weights, const View& dlogits, Workspace scratch) {
  dispatch_real(losses.dtype, "ctc_loss", [&](auto zero) {
    ctc_typed<decltype(zero)>(g, logits, targets, input_lengths, target_lengths, losses, weights, dlogits, scratch);
  });
}

int64_t ctc_workspace(const CtcGeometry& g, DType dtype) {
  return dispatch_real(dtype, "ctc_loss", [&](auto zero) {
    using T = decltype(zero);
    return (Layout<T>(g, true).total * std::min<int64_t>(g.batch, num_threads()) + g.batch) * static_cast<int64_t>(sizeof(T));
  });
}

}  // namespace
}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fovea::kernels {

void add_ctc(KernelTable& t) {
  t.ctc_workspace = FOVEA_BEST(ctc_workspace);
  t.ctc_loss = FOVEA_BEST(ctc_loss);
}

}  // namespace fovea::kernels
#endif
