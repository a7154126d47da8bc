// Gate arithmetic of the recurrent cells, fused: each number is read and written once.
//   LSTM  i, f, o = sigmoid, g = tanh;  c' = f c + i g;  h = o tanh(c')                       (Hochreiter & Schmidhuber 1997 with Gers' forget gate)
//   GRU   r, z = sigmoid;  n = tanh(n_input + r n_hidden);  h' = (1 - z) n + z h              (Cho et al. 2014, with the reset gate behind the product, as PyTorch)
//   RNN   h = tanh or relu                                                                    (Elman 1990)
// Source of the conventions: PyTorch's torch.nn.LSTM, GRU and RNN. In the element type. tanh(c') is worked out again going back instead of being kept.
// Deterministic; a unit's value does not depend on where in a vector it stands. float32 sigmoid and tanh are within 3 units of the last place.
#include <fovea/kernels/cpu/rnn_cells.h>

#include <algorithm>

#include <fovea/kernels/cpu/parallel.h>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/rnn_cells.cpp"
#include <fovea/kernels/cpu/simd.h>
#include <fovea/kernels/cpu/vector_math.h>

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace {

// Calls f(tag, unit) for all units: by whole vectors, and one at a time for what is left.
template <class T, class F>
HWY_INLINE void for_units(int64_t count, const F& f) {
  const hn::ScalableTag<T> whole;
  const hn::CappedTag<T, 1> single;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(whole));
  int64_t j = 0;
  for (; j + lanes <= count; j += lanes) f(whole, j);
  for (; j < count; ++j) f(single, j);
}

template <class D, class T>
HWY_INLINE hn::Vec<D> load_or_zero(D d, const T* p, int64_t j) { return p ? hn::LoadU(d, p + j) : hn::Zero(d); }

// Sigmoid and tanh are most of a step's arithmetic, and three of four instructions of the general functions guard ranges that do not occur here, or wait for
// divisions. For float32: e^x = scale (1 + p) with scale = 2^n, n = round(x / ln 2), and p = e^r - 1 by its series, |r| <= ln 2 / 2; |x| must be at most 87.
template <class D, class V>
HWY_INLINE void split_exponential(D d, V x, V& scale, V& p) {
  const hn::RebindToUnsigned<D> du;
  const V magic = hn::Set(d, 12582912.0f);   // 1.5 * 2^23: a small number added to it ends up as an integer in the last bits
  const V shifted = hn::MulAdd(x, hn::Set(d, 1.44269504f), magic), n = hn::Sub(shifted, magic);
  const V r = hn::NegMulAdd(n, hn::Set(d, -2.12194440e-4f), hn::NegMulAdd(n, hn::Set(d, 0.693359375f), x));
  V series = hn::MulAdd(r, hn::Set(d, 1.0f / 5040), hn::Set(d, 1.0f / 720));
  series = hn::MulAdd(series, r, hn::Set(d, 1.0f / 120));
  series = hn::MulAdd(series, r, hn::Set(d, 1.0f / 24));
  series = hn::MulAdd(series, r, hn::Set(d, 1.0f / 6));
  series = hn::MulAdd(series, r, hn::Set(d, 0.5f));
  p = hn::MulAdd(hn::Mul(series, r), r, r);
  scale = hn::BitCast(d, hn::Add(hn::ShiftLeft<23>(hn::BitCast(du, shifted)), hn::Set(du, 0x3F800000u)));
}

// 1 / x for x in [1, 2^126], by Newton's method.
template <class D, class V>
HWY_INLINE V reciprocal(D d, V x) {
  const V one = hn::Set(d, 1.0f);
  V y = hn::ApproximateReciprocal(x);
  y = hn::MulAdd(y, hn::NegMulAdd(x, y, one), y);
  return hn::MulAdd(y, hn::NegMulAdd(x, y, one), y);
}

// NaN goes through.
template <class D, class V>
HWY_INLINE V clamped(D d, V x, float limit) {
  return hn::IfThenElse(hn::IsNaN(x), x, hn::Min(hn::Max(x, hn::Set(d, -limit)), hn::Set(d, limit)));
}

template <class D, class V>
HWY_INLINE V sigmoid(D d, V x) {
  if constexpr (sizeof(hn::TFromD<D>) == 4) {
    V scale, p;
    split_exponential(d, hn::Neg(clamped(d, x, 87.0f)), scale, p);
    return reciprocal(d, hn::Add(hn::MulAdd(p, scale, scale), hn::Set(d, 1.0f)));
  } else {
    return vector_math::sigmoid(d, x);
  }
}

// With E = e^(2|x|) - 1: E / (E + 2), which is exact near 0, and 1 - 2 / (E + 2), which is never above 1.
template <class D, class V>
HWY_INLINE V tanh(D d, V x) {
  if constexpr (sizeof(hn::TFromD<D>) == 4) {
    const V one = hn::Set(d, 1.0f), two = hn::Set(d, 2.0f), twice = hn::Mul(hn::Abs(clamped(d, x, 10.0f)), two);
    V scale, p;
    split_exponential(d, twice, scale, p);
    const V e = hn::MulAdd(p, scale, hn::Sub(scale, one)), inverse = reciprocal(d, hn::Add(e, two));
    const V y = hn::IfThenElse(hn::Lt(twice, one), hn::Mul(e, inverse), hn::NegMulAdd(two, inverse, one));
    return hn::CopySignToAbs(y, x);
  } else {
    return vector_math::tanh(d, x);
  }
}

// s (1 - s), the slope of the sigmoid, and 1 - t^2, that of tanh, from their values.
template <class D, class V>
HWY_INLINE V sigmoid_slope(D, V s) { return hn::NegMulAdd(s, s, s); }
template <class D, class V>
HWY_INLINE V tanh_slope(D d, V t) { return hn::NegMulAdd(t, t, hn::Set(d, hn::TFromD<D>(1))); }

template <class T>
void lstm_forward(int64_t hidden, T* gates, T* c, T* c_saved, T* h, T* y) {
  T *const i_gate = gates, *const f_gate = gates + hidden, *const g_gate = gates + 2 * hidden, *const o_gate = gates + 3 * hidden;
  for_units<T>(hidden, [&](auto d, int64_t j) HWY_ATTR {
    const auto i = sigmoid(d, hn::LoadU(d, i_gate + j)), f = sigmoid(d, hn::LoadU(d, f_gate + j));
    const auto g = tanh(d, hn::LoadU(d, g_gate + j)), o = sigmoid(d, hn::LoadU(d, o_gate + j));
    const auto cell = hn::MulAdd(f, hn::LoadU(d, c + j), hn::Mul(i, g));
    const auto out = hn::Mul(o, tanh(d, cell));
    hn::StoreU(i, d, i_gate + j);
    hn::StoreU(f, d, f_gate + j);
    hn::StoreU(g, d, g_gate + j);
    hn::StoreU(o, d, o_gate + j);
    hn::StoreU(cell, d, c + j);
    if (c_saved) hn::StoreU(cell, d, c_saved + j);
    hn::StoreU(out, d, h + j);
    hn::StoreU(out, d, y + j);
  });
}

template <class T>
void lstm_backward(int64_t hidden, const T* gates, const T* c_previous, const T* c, const T* dy, const T* dh, T* dc, T* dgates) {
  for_units<T>(hidden, [&](auto d, int64_t j) HWY_ATTR {
    const auto i = hn::LoadU(d, gates + j), f = hn::LoadU(d, gates + hidden + j);
    const auto g = hn::LoadU(d, gates + 2 * hidden + j), o = hn::LoadU(d, gates + 3 * hidden + j);
    const auto tanh_c = tanh(d, hn::LoadU(d, c + j));
    const auto out = hn::Add(hn::LoadU(d, dh + j), load_or_zero(d, dy, j));
    const auto cell = hn::MulAdd(hn::Mul(out, o), tanh_slope(d, tanh_c), hn::LoadU(d, dc + j));
    hn::StoreU(hn::Mul(hn::Mul(cell, g), sigmoid_slope(d, i)), d, dgates + j);
    hn::StoreU(hn::Mul(hn::Mul(cell, hn::LoadU(d, c_previous + j)), sigmoid_slope(d, f)), d, dgates + hidden + j);
    hn::StoreU(hn::Mul(hn::Mul(cell, i), tanh_slope(d, g)), d, dgates + 2 * hidden + j);
    hn::StoreU(hn::Mul(hn::Mul(out, tanh_c), sigmoid_slope(d, o)), d, dgates + 3 * hidden + j);
    hn::StoreU(hn::Mul(cell, f), d, dc + j);
  });
}

template <class T>
void gru_forward(int64_t hidden, T* gates, const T* hidden_n, T* h, T* y) {
  T *const r_gate = gates, *const z_gate = gates + hidden, *const n_gate = gates + 2 * hidden;
  for_units<T>(hidden, [&](auto d, int64_t j) HWY_ATTR {
    const auto r = sigmoid(d, hn::LoadU(d, r_gate + j)), z = sigmoid(d, hn::LoadU(d, z_gate + j));
    const auto n = tanh(d, hn::MulAdd(r, hn::LoadU(d, hidden_n + j), hn::LoadU(d, n_gate + j)));
    const auto out = hn::MulAdd(z, hn::Sub(hn::LoadU(d, h + j), n), n);
    hn::StoreU(r, d, r_gate + j);
    hn::StoreU(z, d, z_gate + j);
    hn::StoreU(n, d, n_gate + j);
    hn::StoreU(out, d, h + j);
    hn::StoreU(out, d, y + j);
  });
}

template <class T>
void gru_backward(int64_t hidden, const T* gates, const T* hidden_n, const T* h_previous, const T* dy, T* dh, T* dgates_input, T* dgates_hidden) {
  for_units<T>(hidden, [&](auto d, int64_t j) HWY_ATTR {
    const auto r = hn::LoadU(d, gates + j), z = hn::LoadU(d, gates + hidden + j), n = hn::LoadU(d, gates + 2 * hidden + j);
    const auto out = hn::Add(hn::LoadU(d, dh + j), load_or_zero(d, dy, j));
    const auto dn = hn::Mul(hn::NegMulAdd(out, z, out), tanh_slope(d, n));
    const auto dr = hn::Mul(hn::Mul(dn, hn::LoadU(d, hidden_n + j)), sigmoid_slope(d, r));
    const auto dz = hn::Mul(hn::Mul(out, hn::Sub(hn::LoadU(d, h_previous + j), n)), sigmoid_slope(d, z));
    hn::StoreU(dr, d, dgates_input + j);
    hn::StoreU(dz, d, dgates_input + hidden + j);
    hn::StoreU(dn, d, dgates_input + 2 * hidden + j);
    hn::StoreU(dr, d, dgates_hidden + j);
    hn::StoreU(dz, d, dgates_hidden + hidden + j);
    hn::StoreU(hn::Mul(dn, r), d, dgates_hidden + 2 * hidden + j);
    hn::StoreU(hn::Mul(out, z), d, dh + j);
  });
}

template <class T>
void rnn_forward(int64_t hidden, bool is_relu, const T* gates, T* h, T* y) {
  for_units<T>(hidden, [&](auto d, int64_t j) HWY_ATTR {
    const auto x = hn::LoadU(d, gates + j);
    const auto out = is_relu ? vector_math::max_or_nan(d, x, hn::Zero(d)) : tanh(d, x);
    hn::StoreU(out, d, h + j);
    hn::StoreU(out, d, y + j);
  });
}

template <class T>
void rnn_backward(int64_t hidden, bool is_relu, const T* y, const T* dy, const T* dh, T* dgates) {
  for_units<T>(hidden, [&](auto d, int64_t j) HWY_ATTR {
    const auto out = hn::Add(hn::LoadU(d, dh + j), load_or_zero(d, dy, j)), value = hn::LoadU(d, y + j);
    const auto slope = is_relu ? hn::IfThenElseZero(hn::Gt(value, hn::Zero(d)), hn::Set(d, T(1))) : tanh_slope(d, value);
    hn::StoreU(hn::Mul(out, slope), d, dgates + j);
  });
}

// Blocks of 64 rows are summed apart and then added up, so that rounding grows with the square root of what a single chain would have.
template <class T>
void column_sums(int64_t rows, int64_t columns, const T* data, int64_t pitch, T* sums) {
  parallel_for(columns, 256, [&](int64_t begin, int64_t end) HWY_ATTR {
    for_units<T>(end - begin, [&](auto d, int64_t offset) HWY_ATTR {
      const T* column = data + begin + offset;
      auto total = hn::Zero(d);
      for (int64_t row = 0; row < rows; row += 64) {
        auto part = hn::Zero(d);
        for (int64_t i = row; i < std::min(rows, row + 64); ++i) part = hn::Add(part, hn::LoadU(d, column + i * pitch));
        total = hn::Add(total, part);
      }
      hn::StoreU(total, d, sums + begin + offset);
    });
  });
}

template <class T>
const RnnCells<T>* functions() {
  static constexpr RnnCells<T> table = {lstm_forward<T>, lstm_backward<T>, gru_forward<T>, gru_backward<T>, rnn_forward<T>, rnn_backward<T>, column_sums<T>};
  return &table;
}

}  // namespace

const RnnCells<float>* float_rnn_cells() { return functions<float>(); }
const RnnCells<double>* double_rnn_cells() { return functions<double>(); }

}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fovea::kernels {

template <>
const RnnCells<float>& rnn_cells<float>() {
  static const RnnCells<float>& table = *FOVEA_BEST(float_rnn_cells)();
  return table;
}

template <>
const RnnCells<double>& rnn_cells<double>() {
  static const RnnCells<double>& table = *FOVEA_BEST(double_rnn_cells)();
  return table;
}

}  // namespace fovea::kernels
#endif
