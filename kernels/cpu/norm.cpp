// Batch norm over x [n, channels, spatial], y = gamma * (x - mean_c) / sqrt(var_c + eps) + beta (Ioffe & Szegedy 2015, algorithm 1; var is the biased variance over n
// and spatial), with a residual added and a ReLU on top if asked, and its backward pass
//     dx = gamma * invstd * (g - mean(g) - xhat * mean(g * xhat)),  dgamma = sum(g * xhat),  dbeta = sum(g),  g = dresidual = dy where the ReLU let y through.
// Layout: contiguous, or channels-last, which is rows of features. Overwrites its outputs. Statistics: Note [Variance without cancellation] in norm_runs.h; sums in the element's type over at most 4096
// elements, in float64 beyond, in an order that the shape alone decides: deterministic, whatever the number of threads.
// Floor: forward reads and writes x once, backward reads dy, x (and y under a ReLU) once and writes dx, as long as a channel fits into the second-level cache.
#include <algorithm>
#include <cmath>

#include <fovea/kernels/cpu/parallel.h>
#include <fovea/kernels/table.h>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/norm.cpp"
#include <fovea/kernels/cpu/simd.h>

#include <fovea/kernels/cpu/norm_runs.h>

HWY_BEFORE_NAMESPACE();
namespace fovea::kernels::HWY_NAMESPACE {
namespace {

constexpr int64_t max_pieces = 32;                 // of a channel, when there are too few channels to go round
constexpr int64_t column_block = 64;

// Note [Units of a channel]
// A channel is n separate planes. It is walked in units of a plane's chunk, numbered over all planes; a thread takes a range of units.
struct Units {
  int64_t n, channels, spatial;
  int64_t per_plane() const { return (spatial + moments_chunk - 1) / moments_chunk; }
  int64_t count() const { return n * per_plane(); }

  // f(offset into the tensor, length) for the units [begin, end) of channel c.
  template <class F>
  void walk(int64_t c, int64_t begin, int64_t end, const F& f) const {
    const int64_t chunks = per_plane();
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t start = unit % chunks * moments_chunk;
      f((unit / chunks * channels + c) * spatial + start, std::min(moments_chunk, spatial - start));
    }
  }
};

// Sums over a channel: sum_range(begin, end) gives the sum of a range of units. `is_split` lets the threads share one channel.
template <class Sums, class F>
Sums sum_units(int64_t units, bool is_split, const F& sum_range) {
  if (!is_split) return sum_range(int64_t{0}, units);
  const int64_t grain = (units + max_pieces - 1) / max_pieces;
  Sums pieces[max_pieces];
  parallel_for(units, grain, [&](int64_t begin, int64_t end) { pieces[begin / grain] = sum_range(begin, end); });
  Sums total;
  for (const Sums& piece : pieces) total.add(piece);
  return total;
}

template <class T> T* at_offset(T* p, int64_t offset) { return p ? p + offset : nullptr; }       // of a tensor that may not be there

// Runs f(channel, is_split) for all channels: channels beside each other where there are many, one after the other and each split where there are few.
template <class F>
void for_each_channel(const NormGeometry& g, const Units& units, const F& f) {
  const int64_t per_channel = g.n * g.spatial;
  const bool is_split = g.channels < 8 && per_channel >= 8 * moments_chunk && units.count() > 1;
  if (is_split) {
    for (int64_t c = 0; c < g.channels; ++c) f(c, true);
  } else {
    parallel_for(g.channels, std::max<int64_t>(1, 16384 / std::max<int64_t>(per_channel, 1)), [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) f(c, false);
    });
  }
}

template <class F>
void apply_units(int64_t units, bool is_split, const F& apply_range) {
  if (is_split) parallel_for(units, (units + max_pieces - 1) / max_pieces, apply_range);
  else apply_range(int64_t{0}, units);
}

// --- planes: spatial > 1 ---

template <class T>
void train_planes(const NormGeometry& g, bool has_relu, const ConstView& x, const ConstView& residual, const ConstView& gamma, const ConstView& beta, const View& y, const View& mean,
                  const View& invstd, const Running<T>& running) {
  const hn::ScalableTag<T> d;
  const Units units{g.n, g.channels, g.spatial};
  for_each_channel(g, units, [&](int64_t c, bool is_split) HWY_ATTR {
    const Moments m = sum_units<Moments>(units.count(), is_split, [&](int64_t begin, int64_t end) HWY_ATTR {
      Moments total;
      units.walk(c, begin, end, [&](int64_t offset, int64_t length) HWY_ATTR { total.add(chunk_moments(d, x.as<T>() + offset, length)); });
      return total;
    });
    const double inverse = 1.0 / std::sqrt(m.variance() + g.eps);
    const T center = static_cast<T>(m.mean);
    mean.as<T>()[c] = center;
    invstd.as<T>()[c] = static_cast<T>(inverse);
    running.update(c, m.mean, m.variance());
    const double scale = inverse * static_cast<double>(value_or<T>(gamma, c, 1));
    const double shift = static_cast<double>(value_or<T>(beta, c, 0)) + (static_cast<double>(center) - m.mean) * scale;      // makes up for center's rounding
    apply_units(units.count(), is_split, [&](int64_t begin, int64_t end) HWY_ATTR {
      units.walk(c, begin, end, [&](int64_t offset, int64_t length) HWY_ATTR {
        affine_run(d, x.as<T>() + offset, at_offset(residual.as<T>(), offset), y.as<T>() + offset, length, center, static_cast<T>(scale), static_cast<T>(shift), has_relu);
      });
    });
  });
}

template <class T>
void backward_planes(const NormGeometry& g, const ConstView& dy, const ConstView& x, const T* y, const ConstView& gamma, const ConstView& mean,
                     const ConstView& invstd, const View& dx, const View& dresidual, const View& dgamma, const View& dbeta) {
  const hn::ScalableTag<T> d;
  const Units units{g.n, g.channels, g.spatial};
  const double count = static_cast<double>(g.n * g.spatial);
  for_each_channel(g, units, [&](int64_t c, bool is_split) HWY_ATTR {
    const T center = mean.as<T>()[c];
    const double inverse = static_cast<double>(invstd.as<T>()[c]);
    const GradientSums sums = sum_units<GradientSums>(units.count(), is_split, [&](int64_t begin, int64_t end) HWY_ATTR {
      GradientSums total;
      units.walk(c, begin, end, [&](int64_t offset, int64_t length) HWY_ATTR {
        total.add(gradient_sums(d, dy.as<T>() + offset, x.as<T>() + offset, at_offset(y, offset), length, center));
      });
      return total;
    });
    if (dgamma) dgamma.as<T>()[c] = static_cast<T>(sums.dy_deviation * inverse);
    if (dbeta) dbeta.as<T>()[c] = static_cast<T>(sums.dy);
    if (!dx && !dresidual) return;
    const T scale = static_cast<T>(inverse * static_cast<double>(value_or<T>(gamma, c, 1)));
    const T mean_g = static_cast<T>(sums.dy / count), slope = static_cast<T>(sums.dy_deviation * inverse * inverse / count);
    apply_units(units.count(), is_split, [&](int64_t begin, int64_t end) HWY_ATTR {
      units.walk(c, begin, end, [&](int64_t offset, int64_t length) HWY_ATTR {
        gradient_run(d, dy.as<T>() + offset, x.as<T>() + offset, at_offset(y, offset), at_offset(dx.as<T>(), offset), at_offset(dresidual.as<T>(), offset), length, center,
                     scale, mean_g, slope);
      });
    });
  });
}

// --- columns: spatial == 1, x [n, channels], which a channels-last x is too, with a row for each place. A block of columns is walked row by row; sums in float64, of deviations from the first row. ---

template <class F>
void for_each_column_block(const NormGeometry& g, const F& f) {
  const int64_t blocks = (g.channels + column_block - 1) / column_block;
  parallel_for(blocks, std::max<int64_t>(1, 256 / std::max<int64_t>(g.n, 1)), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) f(b * column_block, std::min(column_block, g.channels - b * column_block));
  });
}

template <class T>
void train_columns(const NormGeometry& g, bool has_relu, const ConstView& x, const ConstView& residual, const ConstView& gamma, const ConstView& beta, const View& y, const View& mean,
                   const View& invstd, const Running<T>& running) {
  for_each_column_block(g, [&](int64_t first, int64_t width) HWY_ATTR {
    double sum[column_block] = {}, squares[column_block] = {}, scale[column_block], center[column_block], shift[column_block];
    const T* origin = x.as<T>() + first;
    for (int64_t i = 0; i < g.n; ++i) {
      const T* row = origin + i * g.channels;
      for (int64_t j = 0; j < width; ++j) {
        const double deviation = static_cast<double>(row[j]) - static_cast<double>(origin[j]);
        sum[j] += deviation;
        squares[j] += deviation * deviation;
      }
    }
    const double count = static_cast<double>(g.n);
    for (int64_t j = 0; j < width; ++j) {
      const double drift = g.n > 0 ? sum[j] / count : 0, variance = g.n > 0 ? squares[j] / count - drift * drift : 0;
      const double inverse = 1.0 / std::sqrt((variance < 0 ? 0 : variance) + g.eps);
      center[j] = g.n > 0 ? static_cast<double>(origin[j]) + drift : 0;
      mean.as<T>()[first + j] = static_cast<T>(center[j]);
      invstd.as<T>()[first + j] = static_cast<T>(inverse);
      running.update(first + j, center[j], variance < 0 ? 0 : variance);
      scale[j] = inverse * static_cast<double>(value_or<T>(gamma, first + j, 1));
      shift[j] = static_cast<double>(value_or<T>(beta, first + j, 0));
    }
    for (int64_t i = 0; i < g.n; ++i) {
      const T* row = origin + i * g.channels;
      const T* carried = at_offset(residual.as<T>(), i * g.channels + first);
      T* out = y.as<T>() + i * g.channels + first;
      for (int64_t j = 0; j < width; ++j) {
        const double normal = (static_cast<double>(row[j]) - center[j]) * scale[j] + shift[j];
        const T v = static_cast<T>(carried ? normal + static_cast<double>(carried[j]) : normal);
        out[j] = has_relu && v < 0 ? T(0) : v;
      }
    }
  });
}

template <class T>
void backward_columns(const NormGeometry& g, const ConstView& dy, const ConstView& x, const T* y, const ConstView& gamma, const ConstView& mean,
                      const ConstView& invstd, const View& dx, const View& dresidual, const View& dgamma, const View& dbeta) {
  const hn::ScalableTag<T> d;
  for_each_column_block(g, [&](int64_t first, int64_t width) HWY_ATTR {
    double sum[column_block] = {}, product[column_block] = {}, scale[column_block];
    T upstream[column_block];                                                // a row of the gradient, stopped where the ReLU stopped it
    const T* center = mean.as<T>() + first;
    const T* inverse = invstd.as<T>() + first;
    const auto read_row = [&](int64_t at) HWY_ATTR {
      for_each_vector(d, width, [&](int64_t j, int64_t count) HWY_ATTR {
        store_some(d, load_gradient(d, dy.as<T>() + at, at_offset(y, at), j, count), upstream + j, count);
      });
    };
    for (int64_t i = 0; i < g.n; ++i) {
      const T* row = x.as<T>() + i * g.channels + first;
      read_row(i * g.channels + first);
      for (int64_t j = 0; j < width; ++j) {
        const double v = static_cast<double>(upstream[j]);
        sum[j] += v;
        product[j] += v * (static_cast<double>(row[j]) - static_cast<double>(center[j]));
      }
    }
    const double count = static_cast<double>(std::max<int64_t>(g.n, 1));
    for (int64_t j = 0; j < width; ++j) {
      const double k = static_cast<double>(inverse[j]);
      if (dgamma) dgamma.as<T>()[first + j] = static_cast<T>(product[j] * k);
      if (dbeta) dbeta.as<T>()[first + j] = static_cast<T>(sum[j]);
      scale[j] = k * static_cast<double>(value_or<T>(gamma, first + j, 1));
      sum[j] /= count;
      product[j] *= k * k / count;
    }
    for (int64_t i = 0; (dx || dresidual) && i < g.n; ++i) {
      const int64_t at = i * g.channels + first;
      const T* row = x.as<T>() + at;
      read_row(at);
      if (dresidual) std::copy(upstream, upstream + width, dresidual.as<T>() + at);
      T* out = at_offset(dx.as<T>(), at);
      for (int64_t j = 0; out && j < width; ++j) {
        const double deviation = static_cast<double>(row[j]) - static_cast<double>(center[j]);
        out[j] = static_cast<T>(scale[j] * (static_cast<double>(upstream[j]) - sum[j] - deviation * product[j]));
      }
    }
  });
}

template <class T>
void eval_planes(const NormGeometry& g, bool has_relu, const ConstView& x, const ConstView& residual, const ConstView& gamma, const ConstView& beta, const ConstView& mean,
                 const ConstView& variance, const View& y) {
  const hn::ScalableTag<T> d;
  parallel_for(g.n * g.channels, std::max<int64_t>(1, 16384 / std::max<int64_t>(g.spatial, 1)), [&](int64_t begin, int64_t end) HWY_ATTR {
    for (int64_t plane = begin; plane < end; ++plane) {
      const int64_t c = plane % g.channels;
      const double inverse = 1.0 / std::sqrt(static_cast<double>(variance.as<T>()[c]) + g.eps);
      const T scale = static_cast<T>(inverse * static_cast<double>(value_or<T>(gamma, c, 1)));
      affine_run(d, x.as<T>() + plane * g.spatial, at_offset(residual.as<T>(), plane * g.spatial), y.as<T>() + plane * g.spatial, g.spatial, mean.as<T>()[c], scale, value_or<T>(beta, c, 0), has_relu);
    }
  });
}

template <class T>
void eval_columns(const NormGeometry& g, bool has_relu, const ConstView& x, const ConstView& residual, const ConstView& gamma, const ConstView& beta, const ConstView& mean,
                  const ConstView& variance, const View& y) {
  for_each_column_block(g, [&](int64_t first, int64_t width) HWY_ATTR {
    T scale[column_block], shift[column_block];
    const T* center = mean.as<T>() + first;
    for (int64_t j = 0; j < width; ++j) {
      const double inverse = 1.0 / std::sqrt(static_cast<double>(variance.as<T>()[first + j]) + g.eps);
      scale[j] = static_cast<T>(inverse * static_cast<double>(value_or<T>(gamma, first + j, 1)));
      shift[j] = value_or<T>(beta, first + j, 0);
    }
    for (int64_t i = 0; i < g.n; ++i) {
      const T* row = x.as<T>() + i * g.channels + first;
      const T* carried = at_offset(residual.as<T>(), i * g.channels + first);
      T* out = y.as<T>() + i * g.channels + first;
      for (int64_t j = 0; j < width; ++j) {
        const T normal = (row[j] - center[j]) * scale[j] + shift[j], v = carried ? normal + carried[j] : normal;
        out[j] = has_relu && v < 0 ? T(0) : v;
      }
    }
  });
}

// Calls f(geometry, whether x is walked by columns).
template <class F>
void by_layout(const NormGeometry& g, const ConstView& x, const F& f) {
  const bool is_channels_last = !x.is_contiguous();
  if (is_channels_last) f(NormGeometry{g.n * g.spatial, g.channels, 1, 1, g.eps}, true);
  else f(g, g.spatial == 1);
}

void batch_norm_train(Queue, const NormGeometry& geometry, bool has_relu, const ConstView& x, const ConstView& residual, const ConstView& gamma, const ConstView& beta,
                      const View& y, const View& mean, const View& invstd, const RunningUpdate& update) {
  dispatch_real(x.dtype, "batch_norm", [&](auto zero) {
    using T = decltype(zero);
    const Running<T> running(update, geometry.n * geometry.spatial);
    by_layout(geometry, x, [&](const NormGeometry& g, bool is_columns) {
      (is_columns ? train_columns<T> : train_planes<T>)(g, has_relu, x, residual, gamma, beta, y, mean, invstd, running);
    });
  });
  if (update.batches) ++*update.batches.as<int64_t>();
}

void batch_norm_eval(Queue, const NormGeometry& geometry, bool has_relu, const ConstView& x, const ConstView& residual, const ConstView& gamma, const ConstView& beta,
                     const ConstView& mean, const ConstView& variance, const View& y) {
  dispatch_real(x.dtype, "batch_norm", [&](auto zero) {
    using T = decltype(zero);
    by_layout(geometry, x, [&](const NormGeometry& g, bool is_columns) {
      (is_columns ? eval_columns<T> : eval_planes<T>)(g, has_relu, x, residual, gamma, beta, mean, variance, y);
    });
  });
}

void batch_norm_backward(Queue, const NormGeometry& geometry, bool has_relu, const ConstView& dy, const ConstView& x, const ConstView& y, const ConstView& gamma,
                         const ConstView& mean, const ConstView& invstd, const View& dx, const View& dresidual, const View& dgamma, const View& dbeta) {
  dispatch_real(x.dtype, "batch_norm_backward", [&](auto zero) {
    using T = decltype(zero);
    const T* mask = has_relu ? y.as<T>() : nullptr;
    by_layout(geometry, x, [&](const NormGeometry& g, bool is_columns) {
      (is_columns ? backward_columns<T> : backward_planes<T>)(g, dy, x, mask, gamma, mean, invstd, dx, dresidual, dgamma, dbeta);
    });
  });
}

}  // namespace
}  // namespace fovea::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fovea::kernels {
void add_batch_norm(KernelTable& t) {
  t.batch_norm_train = FOVEA_BEST(batch_norm_train);
  t.batch_norm_eval = FOVEA_BEST(batch_norm_eval);
  t.batch_norm_backward = FOVEA_BEST(batch_norm_backward);
}
}  // namespace fovea::kernels
#endif
