// One step of an optimizer over one parameter, in place, with the arithmetic of kernels/cpu/optimizer.cpp: sgd, adam (and AdamW), rmsprop, adagrad.
// Layout: contiguous float32 or float64, one dtype. Each parameter and state is read and written once, a gradient is read. Deterministic.
// Sources: Kingma & Ba 2015 (adam), Loshchilov & Hutter 2019 (is_decoupled), Tieleman & Hinton 2012 (rmsprop), Duchi et al. 2011 (adagrad).
// Floor, bytes a float32 parameter: sgd 12, with momentum 20; adam 28; rmsprop 20 to 36; adagrad 20.
#include <fovea/kernels/cuda/core/launch.h>
#include <fovea/kernels/cuda/core/numeric.h>
#include <fovea/kernels/cuda/core/pack.h>

#include <cmath>

namespace fovea::kernels::cuda {
namespace {

constexpr int step_threads = 256;

// Up to three state tensors beside parameter and gradient; a null one is not touched.
template <class T>
struct Memory {
  T* parameter;
  const T* gradient;
  T* state[3];
  int64_t numel;
};

template <class T>
Memory<T> memory_of(const View& parameter, const ConstView& gradient, const View& a, const View& b = {}, const View& c = {}) {
  return {parameter.as<T>(), gradient.as<T>(), {a.as<T>(), b.as<T>(), c.as<T>()}, parameter.numel()};
}

template <class T>
bool is_packable(const Memory<T>& m) {
  return is_aligned(m.parameter) && is_aligned(m.gradient) && is_aligned(m.state[0]) && is_aligned(m.state[1]) && is_aligned(m.state[2]);
}

// a + weight * (b - a), from the nearer end
template <class T>
struct Lerp {
  T weight, rest;                              // they add up to 1, each rounded from float64
  bool is_near_a;
  explicit Lerp(double w) : weight(static_cast<T>(w)), rest(static_cast<T>(1 - w)), is_near_a(w < 0.5) {}
  __device__ T operator()(T a, T b) const {
    const T difference = b - a;
    return is_near_a ? std::fma(weight, difference, a) : std::fma(-difference, rest, b);
  }
};

// average * a + (1 - a) * g^2
template <class T>
struct Squares {
  T kept, added;
  explicit Squares(double a) : kept(static_cast<T>(a)), added(static_cast<T>(1 - a)) {}
  __device__ T operator()(T average, T g) const { return std::fma(added * g, g, average * kept); }
};

// g + weight_decay * p, where there is weight decay
template <class T>
__device__ T decayed(T g, T p, T weight_decay) { return weight_decay != 0 ? std::fma(p, weight_decay, g) : g; }

// Each step changes one parameter p and its states, given its gradient.
template <class T>
struct Sgd {
  T minus_lr, momentum, added, weight_decay;
  bool nesterov, is_first;
  explicit Sgd(const SgdStep& o)
      : minus_lr(static_cast<T>(-o.lr)), momentum(static_cast<T>(o.momentum)), added(static_cast<T>(1 - o.dampening)),
        weight_decay(static_cast<T>(o.weight_decay)), nesterov(o.nesterov), is_first(o.is_first) {}
  __device__ void operator()(T& p, T g, T& buffer, T&, T&) const {
    g = decayed(g, p, weight_decay);
    if (momentum != 0) {
      buffer = is_first ? g : std::fma(g, added, buffer * momentum);
      g = nesterov ? std::fma(buffer, momentum, g) : buffer;
    }
    p = std::fma(g, minus_lr, p);
  }
};

template <class T>
struct Adam {
  Lerp<T> mean_of;
  Squares<T> square_of;
  T minus_step_size, correction2, eps, weight_decay, kept;
  bool is_decoupled;
  explicit Adam(const AdamStep& o)
      : mean_of(1 - o.beta1), square_of(o.beta2),
        minus_step_size(static_cast<T>(-(o.lr / (1 - std::pow(o.beta1, static_cast<double>(o.step)))))),
        correction2(static_cast<T>(std::sqrt(1 - std::pow(o.beta2, static_cast<double>(o.step))))), eps(static_cast<T>(o.eps)),
        weight_decay(static_cast<T>(o.weight_decay)), kept(static_cast<T>(1 - o.lr * o.weight_decay)), is_decoupled(o.is_decoupled) {}
  __device__ void operator()(T& p, T g, T& mean, T& square, T&) const {
    if (is_decoupled) p *= kept;
    else g = decayed(g, p, weight_decay);
    mean = mean_of(mean, g);
    square = square_of(square, g);
    p += minus_step_size * mean / (std::sqrt(square) / correction2 + eps);
  }
};

template <class T>
struct Rmsprop {
  Squares<T> square_of;
  Lerp<T> mean_of;
  T minus_lr, momentum, eps, weight_decay;
  bool is_centered;
  explicit Rmsprop(const RmspropStep& o)
      : square_of(o.alpha), mean_of(1 - o.alpha), minus_lr(static_cast<T>(-o.lr)), momentum(static_cast<T>(o.momentum)), eps(static_cast<T>(o.eps)),
        weight_decay(static_cast<T>(o.weight_decay)), is_centered(o.is_centered) {}
  __device__ void operator()(T& p, T g, T& square, T& buffer, T& mean) const {
    g = decayed(g, p, weight_decay);
    square = square_of(square, g);
    T spread = square;
    if (is_centered) {
      mean = mean_of(mean, g);
      spread = std::fma(-mean, mean, square);
    }
    const T denominator = std::sqrt(spread) + eps;
    if (momentum > 0) {
      buffer = buffer * momentum + g / denominator;
      p = std::fma(buffer, minus_lr, p);
    } else {
      p += minus_lr * g / denominator;
    }
  }
};

template <class T>
struct Adagrad {
  T minus_rate, eps, weight_decay;
  explicit Adagrad(const AdagradStep& o)
      : minus_rate(static_cast<T>(-(o.lr / (1 + static_cast<double>(o.step - 1) * o.lr_decay)))), eps(static_cast<T>(o.eps)),
        weight_decay(static_cast<T>(o.weight_decay)) {}
  __device__ void operator()(T& p, T g, T& total, T&, T&) const {
    g = decayed(g, p, weight_decay);
    total = std::fma(g, g, total);
    p += minus_rate * g / (std::sqrt(total) + eps);
  }
};

// n elements from `first` on: whole packs, or one by one (n = 1).
template <int n, class T, class Step>
__device__ void step_elements(const Memory<T>& m, int64_t i, const Step& step) {
  Pack<T, n> p = load_pack<T, n>(m.parameter, i), state[3] = {};
  const Pack<T, n> g = load_pack<T, n>(m.gradient, i);
#pragma unroll
  for (int k = 0; k < 3; ++k)
    if (m.state[k]) state[k] = load_pack<T, n>(m.state[k], i);
#pragma unroll
  for (int j = 0; j < n; ++j) step(p[j], g[j], state[0][j], state[1][j], state[2][j]);
  store_pack<T, n>(m.parameter, i, p);
#pragma unroll
  for (int k = 0; k < 3; ++k)
    if (m.state[k]) store_pack<T, n>(m.state[k], i, state[k]);
}

// The first `packs` packs are taken whole, what is left one by one.
template <class T, class Step>
__global__ void __launch_bounds__(step_threads) step_all(Memory<T> m, int64_t packs, Step step) {
  for (int64_t i = global_thread(); i < packs; i += global_threads()) step_elements<full_pack<T>>(m, i, step);
  for (int64_t i = packs * full_pack<T> + global_thread(); i < m.numel; i += global_threads()) step_elements<1>(m, i, step);
}

template <class T, class Step>
void apply(Queue queue, const char* name, const Memory<T>& m, const Step& step) {
  const int64_t packs = is_packable(m) ? m.numel / full_pack<T> : 0;
  const int64_t pieces = packs > 0 ? packs : m.numel;
  launch(queue, name, grid_for(pieces, step_threads), step_all<T, Step>, m, packs, step);
}

void sgd(Queue queue, const SgdStep& o, const View& parameter, const ConstView& gradient, const View& momentum_buffer) {
  dispatch_real(parameter.dtype, "sgd", [&](auto zero) {
    using T = decltype(zero);
    apply(queue, "sgd", memory_of<T>(parameter, gradient, momentum_buffer), Sgd<T>(o));
  });
}

void adam(Queue queue, const AdamStep& o, const View& parameter, const ConstView& gradient, const View& exp_avg, const View& exp_avg_sq) {
  dispatch_real(parameter.dtype, "adam", [&](auto zero) {
    using T = decltype(zero);
    apply(queue, "adam", memory_of<T>(parameter, gradient, exp_avg, exp_avg_sq), Adam<T>(o));
  });
}

void rmsprop(Queue queue, const RmspropStep& o, const View& parameter, const ConstView& gradient, const View& square_avg, const View& momentum_buffer,
             const View& grad_avg) {
  dispatch_real(parameter.dtype, "rmsprop", [&](auto zero) {
    using T = decltype(zero);
    apply(queue, "rmsprop", memory_of<T>(parameter, gradient, square_avg, momentum_buffer, grad_avg), Rmsprop<T>(o));
  });
}

void adagrad(Queue queue, const AdagradStep& o, const View& parameter, const ConstView& gradient, const View& sum) {
  dispatch_real(parameter.dtype, "adagrad", [&](auto zero) {
    using T = decltype(zero);
    apply(queue, "adagrad", memory_of<T>(parameter, gradient, sum), Adagrad<T>(o));
  });
}

}  // namespace

void add_optimizer(KernelTable& t) {
  t.sgd = sgd;
  t.adam = adam;
  t.rmsprop = rmsprop;
  t.adagrad = adagrad;
}

}  // namespace fovea::kernels::cuda
