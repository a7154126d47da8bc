// Group norm over x [n, channels, spatial] and layer norm over rows: y = gamma * (x - mean) / sqrt(var + eps) + beta, with the biased variance of each sample and
// group (Wu & He 2018; Ba, Kiros & Hinton 2016). Instance norm is group norm with groups = channels. Backward, over the m elements of a group, with g = dy * gamma:
//     dx = invstd * (g - mean(g) - xhat * mean(g * xhat)),  dgamma = sum_n(dy * xhat),  dbeta = sum_n(dy).
// Layout: contiguous. Overwrites its outputs. Statistics: Note [Variance without cancellation] in norm_runs.h; dgamma and dbeta accumulate in float64 in the order
// of the samples: deterministic, whatever the number of threads. Floor: one read and one write of x forward; backward reads dy and x twice (once more for dgamma).
#include <algorithm>
#include <cmath>

#include <fovea/kernels/cpu/parallel.h>
#include <fovea/kernels/table.h>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/group_norm.cpp"
#include <fovea/kernels/cpu/simd.h>

#include <fovea/kernels/cpu/norm_runs.h>

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {
namespace {

constexpr int64_t column_block = 64;

int64_t grain_for(int64_t elements) { return std::max<int64_t>(1, 16384 / std::max<int64_t>(elements, 1)); }

// Layer norm is group norm with one group, a channel for each element of a row and one position.
NormGeometry rows_as_channels(const NormGeometry& g) { return {g.n, g.spatial, 1, 1, g.eps}; }

template <class T>
const T* at(const ConstView& view, int64_t i) {
  return view ? view.as<T>() + i : nullptr;
}

// --- one group whose elements each have a gamma of their own (spatial == 1) ---

template <class D, class T = hn::TFromD<D>>
HWY_INLINE void affine_row(D d, const T* x, T* y, int64_t n, T mean, T invstd, const T* gamma, const T* beta) {
  const auto center = hn::Set(d, mean), scale = hn::Set(d, invstd), one = hn::Set(d, T(1)), zero = hn::Zero(d);
  for_each_vector(d, n, [&](int64_t i, int64_t count) HWY_ATTR {
    const auto normal = hn::Mul(hn::Sub(load_some(d, x + i, count), center), scale);
    const auto a = gamma ? load_some(d, gamma + i, count) : one, b = beta ? load_some(d, beta + i, count) : zero;
    store_some(d, hn::MulAdd(normal, a, b), y + i, count);
  });
}

template <class D, class T = hn::TFromD<D>>
HWY_INLINE GradientSums row_sums(D d, const T* dy, const T* x, const T* gamma, int64_t n, T mean) {
  const auto center = hn::Set(d, mean), one = hn::Set(d, T(1));
  GradientSums total;
  for (int64_t start = 0; start < n; start += moments_chunk) {
    auto s = hn::Zero(d), q = hn::Zero(d);
    const T *dy_part = dy + start, *x_part = x + start, *gamma_part = gamma ? gamma + start : nullptr;
    for_each_vector(d, std::min(moments_chunk, n - start), [&](int64_t i, int64_t count) HWY_ATTR {
      const auto g = hn::Mul(load_some(d, dy_part + i, count), gamma_part ? load_some(d, gamma_part + i, count) : one);
      s = hn::Add(s, g);
      q = hn::MulAdd(g, hn::Sub(load_some(d, x_part + i, count), center), q);
    });
    total.add({static_cast<double>(sum_lanes(d, s)), static_cast<double>(sum_lanes(d, q))});
  }
  return total;
}

template <class D, class T = hn::TFromD<D>>
HWY_INLINE void gradient_row(D d, const T* dy, const T* x, const T* gamma, T* dx, int64_t n, T mean, T invstd, T mean_g, T slope) {
  const auto center = hn::Set(d, mean), a = hn::Set(d, invstd), m = hn::Set(d, mean_g), k = hn::Set(d, slope), one = hn::Set(d, T(1));
  for_each_vector(d, n, [&](int64_t i, int64_t count) HWY_ATTR {
    const auto g = hn::Mul(load_some(d, dy + i, count), gamma ? load_some(d, gamma + i, count) : one);
    const auto deviation = hn::Sub(load_some(d, x + i, count), center);
    store_some(d, hn::Mul(a, hn::Sub(hn::Sub(g, m), hn::Mul(deviation, k))), dx + i, count);
  });
}

// --- forward ---

template <class T>
void forward(const NormGeometry& g, const ConstView& x, const ConstView& gamma, const ConstView& beta, const View& y, const View& mean, const View& invstd) {
  const hn::ScalableTag<T> d;
  const int64_t group_channels = g.channels / g.groups, elements = group_channels * g.spatial;
  parallel_for(g.n * g.groups, grain_for(elements), [&](int64_t begin, int64_t end) HWY_ATTR {
    for (int64_t group = begin; group < end; ++group) {
      const T* in = x.as<T>() + group * elements;
      T* out = y.as<T>() + group * elements;
      const int64_t first_channel = group % g.groups * group_channels;
      const Moments m = run_moments(d, in, elements);
      const double inverse = 1.0 / std::sqrt(m.variance() + g.eps);
      const T center = static_cast<T>(m.mean);
      if (mean) mean.as<T>()[group] = center;
      if (invstd) invstd.as<T>()[group] = static_cast<T>(inverse);
      if (g.spatial == 1) {
        affine_row(d, in, out, elements, center, static_cast<T>(inverse), at<T>(gamma, first_channel), at<T>(beta, first_channel));
        continue;
      }
      for (int64_t c = 0; c < group_channels; ++c) {
        const double scale = inverse * static_cast<double>(value_or<T>(gamma, first_channel + c, 1));
        const double shift = static_cast<double>(value_or<T>(beta, first_channel + c, 0)) + (static_cast<double>(center) - m.mean) * scale;
        affine_run(d, in + c * g.spatial, static_cast<const T*>(nullptr), out + c * g.spatial, g.spatial, center, static_cast<T>(scale), static_cast<T>(shift), false);
      }
    }
  });
}

// --- backward ---

// The same sums over a plane of any length.
template <class D, class T = hn::TFromD<D>>
HWY_INLINE GradientSums plane_sums(D d, const T* dy, const T* x, int64_t n, T mean) {
  GradientSums total;
  for (int64_t i = 0; i < n; i += moments_chunk) total.add(gradient_sums(d, dy + i, x + i, static_cast<const T*>(nullptr), std::min(moments_chunk, n - i), mean));
  return total;
}

template <class T>
void backward_x(const NormGeometry& g, const ConstView& dy, const ConstView& x, const ConstView& gamma, const ConstView& mean, const ConstView& invstd,
                const View& dx) {
  const hn::ScalableTag<T> d;
  const int64_t group_channels = g.channels / g.groups, elements = group_channels * g.spatial;
  const double count = static_cast<double>(std::max<int64_t>(elements, 1));
  parallel_for(g.n * g.groups, grain_for(elements), [&](int64_t begin, int64_t end) HWY_ATTR {
    for (int64_t group = begin; group < end; ++group) {
      const T *gradient = dy.as<T>() + group * elements, *in = x.as<T>() + group * elements;
      T* out = dx.as<T>() + group * elements;
      const int64_t first_channel = group % g.groups * group_channels;
      const T center = mean.as<T>()[group], inverse = invstd.as<T>()[group];
      const double k = static_cast<double>(inverse);
      GradientSums sums;
      if (g.spatial == 1) {
        sums = row_sums(d, gradient, in, at<T>(gamma, first_channel), elements, center);
        gradient_row(d, gradient, in, at<T>(gamma, first_channel), out, elements, center, inverse, static_cast<T>(sums.dy / count),
                     static_cast<T>(sums.dy_deviation * k * k / count));
        continue;
      }
      for (int64_t c = 0; c < group_channels; ++c) {
        const double weight = static_cast<double>(value_or<T>(gamma, first_channel + c, 1));
        const GradientSums part = plane_sums(d, gradient + c * g.spatial, in + c * g.spatial, g.spatial, center);
        sums.add({part.dy * weight, part.dy_deviation * weight});
      }
      for (int64_t c = 0; c < group_channels; ++c) {
        // gamma differs between the channels of a group, so: dx = a * dy - b - (x - mean) * e
        const T weight = value_or<T>(gamma, first_channel + c, 1);
        const auto a = hn::Set(d, weight * inverse), b = hn::Set(d, static_cast<T>(sums.dy / count * k)), m = hn::Set(d, center);
        const auto e = hn::Set(d, static_cast<T>(sums.dy_deviation * k * k * k / count));
        const T *dy_plane = gradient + c * g.spatial, *x_plane = in + c * g.spatial;
        T* dx_plane = out + c * g.spatial;
        for_each_vector(d, g.spatial, [&](int64_t i, int64_t lanes) HWY_ATTR {
          const auto deviation = hn::Sub(load_some(d, x_plane + i, lanes), m);
          store_some(d, hn::NegMulAdd(deviation, e, hn::MulSub(load_some(d, dy_plane + i, lanes), a, b)), dx_plane + i, lanes);
        });
      }
    }
  });
}

template <class T>
void backward_affine_planes(const NormGeometry& g, const ConstView& dy, const ConstView& x, const ConstView& mean, const ConstView& invstd, const View& dgamma,
                            const View& dbeta) {
  const hn::ScalableTag<T> d;
  const int64_t group_channels = g.channels / g.groups;
  parallel_for(g.channels, grain_for(g.n * g.spatial), [&](int64_t begin, int64_t end) HWY_ATTR {
    for (int64_t c = begin; c < end; ++c) {
      GradientSums sums;
      for (int64_t n = 0; n < g.n; ++n) {
        const int64_t plane = (n * g.channels + c) * g.spatial, group = n * g.groups + c / group_channels;
        const GradientSums part = plane_sums(d, dy.as<T>() + plane, x.as<T>() + plane, g.spatial, mean.as<T>()[group]);
        sums.add({part.dy, part.dy_deviation * static_cast<double>(invstd.as<T>()[group])});
      }
      if (dgamma) dgamma.as<T>()[c] = static_cast<T>(sums.dy_deviation);
      if (dbeta) dbeta.as<T>()[c] = static_cast<T>(sums.dy);
    }
  });
}

template <class T>
void backward_affine_rows(const NormGeometry& g, const ConstView& dy, const ConstView& x, const ConstView& mean, const ConstView& invstd, const View& dgamma,
                          const View& dbeta) {
  const int64_t group_channels = g.channels / g.groups;
  parallel_for((g.channels + column_block - 1) / column_block, grain_for(g.n * column_block), [&](int64_t begin, int64_t end) HWY_ATTR {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * column_block, width = std::min(column_block, g.channels - first);
      double sum[column_block] = {}, product[column_block] = {};
      for (int64_t n = 0; n < g.n; ++n) {
        const T *gradient = dy.as<T>() + n * g.channels + first, *in = x.as<T>() + n * g.channels + first;
        for (int64_t start = 0; start < width;) {                            // runs of columns of one group
          const int64_t group = (first + start) / group_channels, stop = std::min(width, (group + 1) * group_channels - first);
          const double center = static_cast<double>(mean.as<T>()[n * g.groups + group]), scale = static_cast<double>(invstd.as<T>()[n * g.groups + group]);
          for (int64_t j = start; j < stop; ++j) {
            sum[j] += static_cast<double>(gradient[j]);
            product[j] += static_cast<double>(gradient[j]) * ((static_cast<double>(in[j]) - center) * scale);
          }
          start = stop;
        }
      }
      for (int64_t j = 0; j < width; ++j) {
        if (dgamma) dgamma.as<T>()[first + j] = static_cast<T>(product[j]);
        if (dbeta) dbeta.as<T>()[first + j] = static_cast<T>(sum[j]);
      }
    }
  });
}

void group_norm(Queue, const NormGeometry& g, const ConstView& x, const ConstView& gamma, const ConstView& beta, const View& y, const View& mean,
                const View& invstd) {
  dispatch_real(x.dtype, "group_norm", [&](auto zero) { forward<decltype(zero)>(g, x, gamma, beta, y, mean, invstd); });
}

void group_norm_backward(Queue, const NormGeometry& g, const ConstView& dy, const ConstView& x, const ConstView& gamma, const ConstView& mean,
                         const ConstView& invstd, const View& dx, const View& dgamma, const View& dbeta) {
  dispatch_real(x.dtype, "group_norm_backward", [&](auto zero) {
    using T = decltype(zero);
    if (dx) backward_x<T>(g, dy, x, gamma, mean, invstd, dx);
    if (dgamma || dbeta) (g.spatial == 1 ? backward_affine_rows<T> : backward_affine_planes<T>)(g, dy, x, mean, invstd, dgamma, dbeta);
  });
}

void layer_norm(Queue queue, const NormGeometry& g, const ConstView& x, const ConstView& gamma, const ConstView& beta, const View& y, const View& mean,
                const View& invstd) {
  group_norm(queue, rows_as_channels(g), x, gamma, beta, y, mean, invstd);
}

void layer_norm_backward(Queue queue, const NormGeometry& g, const ConstView& dy, const ConstView& x, const ConstView& gamma, const ConstView& mean,
                         const ConstView& invstd, const View& dx, const View& dgamma, const View& dbeta) {
  group_norm_backward(queue, rows_as_channels(g), dy, x, gamma, mean, invstd, dx, dgamma, dbeta);
}

}  // namespace
}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fovea::kernels {
void add_group_norm(KernelTable& t) {
  t.group_norm = FOVEA_BEST(group_norm);
  t.group_norm_backward = FOVEA_BEST(group_norm_backward);
  t.layer_norm = FOVEA_BEST(layer_norm);
  t.layer_norm_backward = FOVEA_BEST(layer_norm_backward);
}
}  // namespace fovea::kernels
#endif
