// What the two ways of batch norm share: norm.cu walks planes, norm_columns.cu rows of channels. The arguments of a pass, and what is worked out
// for a channel from its statistics, which is the same in both.
#pragma once

#include <fovea/kernels/cuda/norm_walk.h>

namespace fovea::kernels::cuda {

// y = (x - center) * scale + shift
template <class A>
struct Affine {
  A center, scale, shift;
  __device__ A operator()(A x) const { return (x - center) * scale + shift; }
};

// A forward pass but for its statistics.
template <class T>
struct NormForward {
  using A = Accumulate<T>;
  bool has_relu;
  const T *x, *residual;                     // the residual and the parameters may be null
  const A *gamma, *beta;
  T* y;

  NormForward(const char* op, bool relu, const ConstView& values, const ConstView& added, const ConstView& weight, const ConstView& bias, const View& result)
      : has_relu(relu), x(values.as<T>()), residual(added.as<T>()), gamma(weight.as<A>()), beta(bias.as<A>()),
        y(result.as<T>()) {
    check_of_channels<T>(op, {weight, bias});
  }

  __device__ T result(A normal, T carried) const {
    const A sum = residual ? normal + widen(carried) : normal;
    return narrow<T>(has_relu && sum < 0 ? A(0) : sum);
  }
};

// Statistics of the batch, and where they are kept. The thread that keeps a channel's also moves its running ones.
template <class T>
struct BatchStatistics {
  using A = Accumulate<T>;
  double eps;
  A *mean, *invstd;
  Running<A> running;
  int64_t* uncounted;                        // the number of batches, where the first channel's keeper is to add this one; may be null

  BatchStatistics(const char* op, const NormGeometry& g, const View& center, const View& inverse, const RunningUpdate& update)
      : eps(g.eps), mean(center.as<A>()), invstd(inverse.as<A>()), running(update, g.n * g.spatial), uncounted(update.is_cumulative ? nullptr : update.batches.as<int64_t>()) {
    check_of_channels<T>(op, {center, inverse, update.mean, update.variance});
  }
  __device__ Affine<A> affine(const NormForward<T>& f, int64_t channel, double center, double variance, bool keeps) const {
    const double inverse = 1.0 / sqrt(variance + eps), scale = inverse * static_cast<double>(value_or(f.gamma, channel, A(1)));
    const A rounded = static_cast<A>(center);
    if (keeps) {
      mean[channel] = rounded;
      invstd[channel] = static_cast<A>(inverse);
      running.update(channel, center, variance);
      if (uncounted && channel == 0) ++*uncounted;
    }
    const double shift = static_cast<double>(value_or(f.beta, channel, A(0))) + (static_cast<double>(rounded) - center) * scale;   // makes up for the center's rounding
    return {rounded, static_cast<A>(scale), static_cast<A>(shift)};
  }
};

template <class T>
struct KnownStatistics {
  using A = Accumulate<T>;
  double eps;
  const A *mean, *variance;

  KnownStatistics(const char* op, double epsilon, const ConstView& center, const ConstView& spread)
      : eps(epsilon), mean(center.as<A>()), variance(spread.as<A>()) {
    check_of_channels<T>(op, {center, spread});
  }
  __device__ Affine<A> affine(const NormForward<T>& f, int64_t channel) const {
    const double scale = 1.0 / sqrt(static_cast<double>(variance[channel]) + eps) * static_cast<double>(value_or(f.gamma, channel, A(1)));
    return {mean[channel], static_cast<A>(scale), value_or(f.beta, channel, A(0))};
  }
};

// dx = scale * (g - mean_g - (x - center) * slope)
template <class A>
struct Slope {
  A center, scale, mean_g, slope;
  __device__ A operator()(A g, A x) const { return scale * (g - mean_g - (x - center) * slope); }
};

template <class T>
struct NormBackward {
  using A = Accumulate<T>;
  double share;                              // 1 / the elements of a channel
  const T *dy, *x, *y;                       // y: null without a ReLU
  const A *gamma, *mean, *invstd;            // gamma: may be null
  T *dx, *dresidual;                         // each gradient may be null
  A *dgamma, *dbeta;

  NormBackward(const NormGeometry& g, const ConstView& gradient, const ConstView& values, const ConstView& mask, const ConstView& weight, const ConstView& center,
               const ConstView& inverse, const View& dvalues, const View& dadded, const View& dweight, const View& dbias)
      : share(1 / static_cast<double>(g.n * g.spatial)), dy(gradient.as<T>()), x(values.as<T>()), y(mask.as<T>()), gamma(weight.as<A>()), mean(center.as<A>()),
        invstd(inverse.as<A>()), dx(dvalues.as<T>()), dresidual(dadded.as<T>()), dgamma(dweight.as<A>()), dbeta(dbias.as<A>()) {
    check_of_channels<T>("batch_norm_backward", {weight, center, inverse, dweight, dbias});
  }

  __device__ A gradient(T upstream, T result) const { return y && widen(result) <= 0 ? A(0) : widen(upstream); }
  // From the sums over a channel of the gradient and of its product with the deviation.
  __device__ Slope<A> slope(int64_t channel, const GradientSums& sums, bool keeps) const {
    const double inverse = static_cast<double>(invstd[channel]);
    if (keeps) {
      if (dgamma) dgamma[channel] = static_cast<A>(sums.product * inverse);
      if (dbeta) dbeta[channel] = static_cast<A>(sums.gradient);
    }
    return {mean[channel], static_cast<A>(inverse * static_cast<double>(value_or(gamma, channel, A(1)))), static_cast<A>(sums.gradient * share),
            static_cast<A>(sums.product * inverse * inverse * share)};
  }
};

template <int pack, class T>
__device__ GradientPacks<T, pack> load_gradients(const NormBackward<T>& b, int64_t offset) {
  GradientPacks<T, pack> packs = {};
  packs.dy = load_pack<T, pack>(b.dy + offset, 0);
  packs.x = load_pack<T, pack>(b.x + offset, 0);
  if (b.y) packs.y = load_pack<T, pack>(b.y + offset, 0);
  return packs;
}

// norm_columns.cu: x is channels-last, or has one element a channel in each row.
void batch_norm_train_columns(Queue, const NormGeometry&, bool has_relu, const ConstView& x, const ConstView& residual, const ConstView& gamma,
                              const ConstView& beta, const View& y, const View& mean, const View& invstd, const RunningUpdate& update);
void batch_norm_eval_columns(Queue, const NormGeometry&, bool has_relu, const ConstView& x, const ConstView& residual, const ConstView& gamma,
                             const ConstView& beta, const ConstView& mean, const ConstView& variance, const View& y);
// y is absent without a ReLU.
void batch_norm_backward_columns(Queue, const NormGeometry&, const ConstView& dy, const ConstView& x, const ConstView& y, const ConstView& gamma,
                                 const ConstView& mean, const ConstView& invstd, const View& dx, const View& dresidual, const View& dgamma, const View& dbeta);

}  // namespace fovea::kernels::cuda
