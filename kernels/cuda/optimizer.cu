// Steps of an optimizer over all parameters, in place, with the arithmetic of kernels/cpu/optimizer.cpp: sgd, adam (and AdamW), rmsprop, adagrad; the norm of all
// gradients, clipping, and dynamic loss scaling (Micikevicius et al. 2018).
// Layout: contiguous float32 or float64; gradients and rounded parameters may be of a half type. Each parameter and state is read and written once, a gradient is
// read. Deterministic; the norm's sums are joined in an order that the gradients' sizes alone decide.
// Sources: Kingma & Ba 2015 (adam), Loshchilov & Hutter 2019 (is_decoupled), Tieleman & Hinton 2012 (rmsprop), Duchi et al. 2011 (adagrad).
// Floor, bytes a float32 parameter: sgd 12, with momentum 20; adam 28; rmsprop 20 to 36; adagrad 20; 4 more with a rounded copy. Norm 4, clipping 8.
//
// Note [Lists of parameters]
// One launch steps as many parameters as its arguments can name, several hundred; there is no table in device memory to keep up to date, and a recorded launch
// (cuda::Graph) has its list within it. Each block takes one piece of one parameter, and finds the parameter by a binary search over their first blocks.
//
// Note [Numbers of a step]
// What a step multiplies and adds with (Adam's corrections, say) is worked out once for each group: by the host, which passes it along; or, where lr and step counts
// live on the device, by a kernel that goes before and counts the step. Both go through the same functions, and round each operation by itself.
#include <fovea/kernels/cuda/core/launch.h>
#include <fovea/kernels/cuda/core/numeric.h>
#include <fovea/kernels/cuda/core/pack.h>
#include <fovea/kernels/cuda/core/scratch.h>
#include <fovea/kernels/cuda/core/warp.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>

namespace fovea::kernels::cuda {
namespace {

constexpr int threads = 256;
constexpr int64_t step_piece = 4096, gradient_piece = 8192;          // elements of a block
constexpr int most_steps = 16;                                       // different numbers in one launch
constexpr int most_gradients = 512;

// Two factors and a product that is rounded by itself, where nvcc would fuse it with an addition and the host would not.
__host__ __device__ inline double product(double a, double b) {
#ifdef __CUDA_ARCH__
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

// By repeated squaring: the same bits on the host and on the device, which the two pow() do not promise.
__host__ __device__ inline double power(double base, int64_t exponent) {
  double result = 1;
  for (; exponent > 0; exponent /= 2) {
    if (exponent % 2 == 1) result = product(result, base);
    base = product(base, base);
  }
  return result;
}

// a + weight * (b - a), from the nearer end
template <class T>
struct Lerp {
  T weight, rest;                              // they add up to 1, each rounded from float64
  bool is_near_a;
  Lerp() = default;
  __host__ __device__ explicit Lerp(double w) : weight(static_cast<T>(w)), rest(static_cast<T>(1 - w)), is_near_a(w < 0.5) {}
  __device__ T operator()(T a, T b) const {
    const T difference = b - a;
    return is_near_a ? std::fma(weight, difference, a) : std::fma(-difference, rest, b);
  }
};

// average * a + (1 - a) * g^2
template <class T>
struct Squares {
  T kept, added;
  Squares() = default;
  __host__ __device__ explicit Squares(double a) : kept(static_cast<T>(a)), added(static_cast<T>(1 - a)) {}
  __device__ T operator()(T average, T g) const { return std::fma(added * g, g, average * kept); }
};

// g + weight_decay * p, where there is weight decay
template <class T>
__device__ T decayed(T g, T p, T weight_decay) { return weight_decay != 0 ? std::fma(p, weight_decay, g) : g; }

// Each step changes one parameter p and its states, given its gradient.
template <class T>
struct Sgd {
  using Options = SgdStep;
  T minus_lr, momentum, added, weight_decay;
  bool nesterov, is_first;
  Sgd() = default;
  __host__ __device__ explicit Sgd(const SgdStep& o)
      : minus_lr(static_cast<T>(-o.lr)), momentum(static_cast<T>(o.momentum)), added(static_cast<T>(1 - o.dampening)),
        weight_decay(static_cast<T>(o.weight_decay)), nesterov(o.nesterov), is_first(o.step == 1) {}
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
  using Options = AdamStep;
  Lerp<T> mean_of;
  Squares<T> square_of;
  T minus_step_size, correction2, eps, weight_decay, kept;
  bool is_decoupled;
  Adam() = default;
  __host__ __device__ explicit Adam(const AdamStep& o)
      : mean_of(1 - o.beta1), square_of(o.beta2), minus_step_size(static_cast<T>(-(o.lr / (1 - power(o.beta1, o.step))))),
        correction2(static_cast<T>(std::sqrt(1 - power(o.beta2, o.step)))), eps(static_cast<T>(o.eps)), weight_decay(static_cast<T>(o.weight_decay)),
        kept(static_cast<T>(1 - product(o.lr, o.weight_decay))), is_decoupled(o.is_decoupled) {}
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
  using Options = RmspropStep;
  Squares<T> square_of;
  Lerp<T> mean_of;
  T minus_lr, momentum, eps, weight_decay;
  bool is_centered;
  Rmsprop() = default;
  __host__ __device__ explicit Rmsprop(const RmspropStep& o)
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
  using Options = AdagradStep;
  T minus_rate, eps, weight_decay;
  Adagrad() = default;
  __host__ __device__ explicit Adagrad(const AdagradStep& o)
      : minus_rate(static_cast<T>(-(o.lr / (1 + product(static_cast<double>(o.step - 1), o.lr_decay))))), eps(static_cast<T>(o.eps)),
        weight_decay(static_cast<T>(o.weight_decay)) {}
  __device__ void operator()(T& p, T g, T& total, T&, T&) const {
    g = decayed(g, p, weight_decay);
    total = std::fma(g, g, total);
    p += minus_rate * g / (std::sqrt(total) + eps);
  }
};

// A parameter in a launch's list.
struct StepEntry {
  void* parameter;
  const void* gradient;
  void* state[3];
  void* rounded;
  int64_t numel;
  uint32_t first_block;
  uint8_t step;                              // which of the list's numbers
  DType gradient_dtype, rounded_dtype;
  bool is_packable;
};

template <class Step>
struct StepList {
  static constexpr int most_slots = static_cast<int>((most_parameter_bytes - most_steps * sizeof(Step) - 48) / sizeof(StepEntry));
  StepEntry entries[most_slots];
  Step steps[most_steps];
  const Step* counted;                       // one for each entry, in the place of `steps`; null: none
  StepControl control;
  int slots;
};

// The entry that a block works for. One of no elements has the first block of its successor, and is never the last that begins at or before a block.
template <class Entry>
__device__ int entry_of(const Entry* entries, int slots, uint32_t block) {
  int low = 0, high = slots;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (entries[middle].first_block <= block) low = middle;
    else high = middle;
  }
  return low;
}

// n elements from the i-th run of n on, as numbers that are computed with. All threads of a block take the same branch.
template <class C, int n, class T>
__device__ Pack<C, n> load_widened(const void* from, int64_t i) {
  const Pack<T, n> values = load_pack<T, n>(static_cast<const T*>(from), i);
  Pack<C, n> result;
#pragma unroll
  for (int j = 0; j < n; ++j) result[j] = widen(values[j]);
  return result;
}
template <class C, int n>
__device__ Pack<C, n> load_as(DType dtype, const void* from, int64_t i) {
  if constexpr (std::is_same_v<C, float>) {
    if (dtype == DType::float16) return load_widened<C, n, float16>(from, i);
    if (dtype == DType::bfloat16) return load_widened<C, n, bfloat16>(from, i);
  }
  return load_pack<C, n>(static_cast<const C*>(from), i);
}

// Note [Master copies] in table.h: elements that are not the copy rounded become the copy.
template <class H, int n>
__device__ void take_changed(const void* rounded, int64_t i, Pack<float, n>& copy) {
  const Pack<H, n> values = load_pack<H, n>(static_cast<const H*>(rounded), i);
#pragma unroll
  for (int j = 0; j < n; ++j)
    if (narrow<H>(copy[j]).bits != values[j].bits) copy[j] = widen(values[j]);
}
template <class H, int n>
__device__ void store_rounded(void* rounded, int64_t i, const Pack<float, n>& copy) {
  Pack<H, n> values;
#pragma unroll
  for (int j = 0; j < n; ++j) values[j] = narrow<H>(copy[j]);
  store_pack<H, n>(static_cast<H*>(rounded), i, values);
}

// The i-th run of n elements: whole packs, or one by one (n = 1).
template <int n, class T, class Step>
__device__ void step_elements(const StepEntry& e, int64_t i, const Step& step, T gradient_factor) {
  T* const parameter = static_cast<T*>(e.parameter);
  Pack<T, n> p = load_pack<T, n>(parameter, i), state[3] = {};
  const Pack<T, n> g = load_as<T, n>(e.gradient_dtype, e.gradient, i);
#pragma unroll
  for (int k = 0; k < 3; ++k)
    if (e.state[k]) state[k] = load_pack<T, n>(static_cast<const T*>(e.state[k]), i);
  if constexpr (std::is_same_v<T, float>) {
    if (e.rounded) e.rounded_dtype == DType::float16 ? take_changed<float16>(e.rounded, i, p) : take_changed<bfloat16>(e.rounded, i, p);
  }
#pragma unroll
  for (int j = 0; j < n; ++j) step(p[j], g[j] * gradient_factor, state[0][j], state[1][j], state[2][j]);
  store_pack<T, n>(parameter, i, p);
#pragma unroll
  for (int k = 0; k < 3; ++k)
    if (e.state[k]) store_pack<T, n>(static_cast<T*>(e.state[k]), i, state[k]);
  if constexpr (std::is_same_v<T, float>) {
    if (e.rounded) e.rounded_dtype == DType::float16 ? store_rounded<float16>(e.rounded, i, p) : store_rounded<bfloat16>(e.rounded, i, p);
  }
}

// Whole packs of the block's piece, then what is left one by one.
template <class T, class Step>
__global__ void __launch_bounds__(threads) step_all(const __grid_constant__ StepList<Step> list) {
  if (list.control.found_inf && *list.control.found_inf != 0) return;
  const int slot = entry_of(list.entries, list.slots, blockIdx.x);
  const StepEntry& e = list.entries[slot];
  const Step step = list.counted ? list.counted[slot] : list.steps[e.step];
  const T factor = list.control.grad_scale ? static_cast<T>(1 / *list.control.grad_scale) : T(1);
  const int64_t begin = static_cast<int64_t>(blockIdx.x - e.first_block) * step_piece, end = min(e.numel, begin + step_piece);
  constexpr int n = full_pack<T>;
  const int64_t packs_end = e.is_packable ? end / n : begin / n;
  for (int64_t i = begin / n + threadIdx.x; i < packs_end; i += threads) step_elements<n>(e, i, step, factor);
  for (int64_t i = packs_end * n + threadIdx.x; i < end; i += threads) step_elements<1>(e, i, step, factor);
}

// The step counts of a list, and where its numbers go.
template <class Options>
struct CountList {
  struct Entry {
    int64_t* count;
    const double* lr;
    int64_t step;
  };
  static constexpr int most_slots = static_cast<int>((most_parameter_bytes - most_steps * sizeof(Options) - 48) / sizeof(Entry));
  Entry entries[most_slots];
  Options steps[most_steps];
  const int32_t* found_inf;
  int slots;
};

// A thread a parameter. Where an infinity was found the numbers are not read, and nothing is counted.
template <class Step>
__global__ void __launch_bounds__(threads) count_steps(const __grid_constant__ CountList<typename Step::Options> list, Step* counted) {
  const int64_t i = global_thread();
  if (i >= list.slots || (list.found_inf && *list.found_inf != 0)) return;
  const auto& e = list.entries[i];
  typename Step::Options options = list.steps[e.step];
  options.lr = *e.lr;
  options.step = ++*e.count;
  counted[i] = Step(options);
}

// --- the host's side of a step ---

bool is_aligned_for(const void* p, int64_t bytes) { return is_aligned(p, static_cast<size_t>(bytes)); }

StepEntry entry_for(const StepSlot& s, uint32_t first_block, size_t step) {
  const int64_t pack = 16 / size_of(s.dtype);
  bool is_packable = is_aligned_for(s.parameter, 16) && is_aligned_for(s.gradient, pack * size_of(s.gradient_dtype)) &&
                     is_aligned_for(s.rounded, pack * size_of(s.rounded_dtype));
  for (const void* state : s.state) is_packable = is_packable && is_aligned_for(state, 16);
  return {s.parameter, s.gradient, {s.state[0], s.state[1], s.state[2]}, s.rounded, s.numel, first_block, static_cast<uint8_t>(step),
          s.gradient_dtype, s.rounded_dtype, is_packable};
}

// Collects parameters, and launches when a list is full.
template <class T, class Step>
class Stepping {
 public:
  using Options = typename Step::Options;
  Stepping(Queue queue, const char* name, std::span<const Options> steps, const StepControl& control, bool is_counted)
      : queue_(queue), name_(name), steps_(steps), is_counted_(is_counted), list_(std::make_unique<StepList<Step>>()) {
    list_->control = control;
    if (is_counted) counts_ = std::make_unique<CountList<Options>>();
  }

  void add(const StepSlot& s) {
    if (list_->slots == StepList<Step>::most_slots) launch_list();
    size_t place = place_of(s.step);
    if (place == most_steps) {
      launch_list();
      place = place_of(s.step);
    }
    list_->entries[list_->slots] = entry_for(s, blocks_, place);
    if (is_counted_) counts_->entries[list_->slots] = {s.count, s.lr, static_cast<int64_t>(place)};
    blocks_ += static_cast<uint32_t>(ceil_div(s.numel, step_piece));
    ++list_->slots;
  }

  void launch_list() {
    if (list_->slots == 0) return;
    std::optional<DeviceScratch> counted;
    if (is_counted_) {
      counted.emplace(list_->slots * static_cast<int64_t>(sizeof(Step)), queue_);
      list_->counted = counted->template as<Step>();
      counts_->found_inf = list_->control.found_inf;
      counts_->slots = list_->slots;
      launch(queue_, "count_steps", grid_for(list_->slots, threads), count_steps<Step>, *counts_, counted->template as<Step>());
    }
    launch(queue_, name_, Grid{dim3(blocks_), dim3(threads)}, step_all<T, Step>, *list_);
    list_->slots = 0;
    blocks_ = 0;
    num_places_ = 0;
  }

 private:
  // Where the numbers of a step stand in the list; most_steps when it is full.
  size_t place_of(int64_t step) {
    for (size_t i = 0; i < num_places_; ++i)
      if (places_[i] == step) return i;
    if (num_places_ == most_steps) return most_steps;
    const Options& options = steps_[static_cast<size_t>(step)];
    if (is_counted_) counts_->steps[num_places_] = options;
    else list_->steps[num_places_] = Step(options);
    places_[num_places_] = step;
    return num_places_++;
  }

  Queue queue_;
  const char* name_;
  std::span<const Options> steps_;
  bool is_counted_;
  std::unique_ptr<StepList<Step>> list_;
  std::unique_ptr<CountList<Options>> counts_;
  int64_t places_[most_steps] = {};          // which of the call's steps
  size_t num_places_ = 0;
  uint32_t blocks_ = 0;
};

template <template <class> class Step, class Options>
void step_slots(Queue queue, const char* name, std::span<const Options> steps, std::span<const StepSlot> slots, const StepControl& control) {
  for (const StepSlot& s : slots) dispatch_real(s.dtype, name, [](auto) {});
  const auto step_type = [&](auto zero) {
    using T = decltype(zero);
    Stepping<T, Step<T>> stepping(queue, name, steps, control, slots[0].count != nullptr);
    for (const StepSlot& s : slots)
      if (s.dtype == dtype_of<T>) stepping.add(s);
    stepping.launch_list();
  };
  const auto has_type = [&](DType dtype) { return std::any_of(slots.begin(), slots.end(), [&](const StepSlot& s) { return s.dtype == dtype; }); };
  if (has_type(DType::float32)) step_type(float{});
  if (has_type(DType::float64)) step_type(double{});
}

void sgd(Queue queue, std::span<const SgdStep> steps, std::span<const StepSlot> slots, const StepControl& control) {
  step_slots<Sgd>(queue, "sgd", steps, slots, control);
}
void adam(Queue queue, std::span<const AdamStep> steps, std::span<const StepSlot> slots, const StepControl& control) {
  step_slots<Adam>(queue, "adam", steps, slots, control);
}
void rmsprop(Queue queue, std::span<const RmspropStep> steps, std::span<const StepSlot> slots, const StepControl& control) {
  step_slots<Rmsprop>(queue, "rmsprop", steps, slots, control);
}
void adagrad(Queue queue, std::span<const AdagradStep> steps, std::span<const StepSlot> slots, const StepControl& control) {
  step_slots<Adagrad>(queue, "adagrad", steps, slots, control);
}

// --- all gradients at once ---

struct GradientEntry {
  void* data;
  int64_t numel;
  uint32_t first_block;
  DType dtype;
  bool is_packable;
};
struct GradientList {
  static constexpr int most_slots = std::min<int>(most_gradients, (most_parameter_bytes - 64) / sizeof(GradientEntry));
  GradientEntry entries[most_slots];
  int slots;
};

// Calls each(values, i, n) for the runs of 1 or more elements of the block's piece: `values` is a Pack of T that lies at data[n * i].
template <class T, class Each>
__device__ void for_piece(const GradientEntry& e, uint32_t block, const Each& each) {
  T* const data = static_cast<T*>(e.data);
  const int64_t begin = static_cast<int64_t>(block - e.first_block) * gradient_piece, end = min(e.numel, begin + gradient_piece);
  constexpr int n = full_pack<T>;
  const int64_t packs_end = e.is_packable ? end / n : begin / n;
  for (int64_t i = begin / n + threadIdx.x; i < packs_end; i += threads) each(load_pack<T, n>(data, i), data, i);
  for (int64_t i = packs_end * n + threadIdx.x; i < end; i += threads) each(load_pack<T, 1>(data, i), data, i);
}

// each(zero of the gradient's type)
template <class Call>
__device__ void with_type(DType dtype, const Call& call) {
  switch (dtype) {
    case DType::float32: call(float{}); return;
    case DType::float64: call(double{}); return;
    case DType::float16: call(float16{}); return;
    default: call(bfloat16{}); return;
  }
}

// Squares of up to 16 bytes are added as they are computed, everything else in float64.
template <bool is_infinity>
struct NormOf {
  double total = 0;
  template <class T, int n>
  __device__ void operator()(const Pack<T, n>& values, const T*, int64_t) {
    Accumulate<T> part = 0;
#pragma unroll
    for (int j = 0; j < n; ++j) {
      const Accumulate<T> v = widen(values[j]);
      part = is_infinity ? Max()(part, static_cast<Accumulate<T>>(std::abs(v))) : part + v * v;
    }
    join(static_cast<double>(part));
  }
  __device__ void join(double part) { total = is_infinity ? Max()(total, part) : total + part; }
};

struct NormScratch {
  double warps[warp_size];
};
template <bool is_infinity>
__device__ double block_norm(double value, NormScratch& scratch) {
  if constexpr (is_infinity) return block_reduce(value, Max(), 0.0, scratch.warps);
  else return block_reduce(value, Sum(), 0.0, scratch.warps);
}

// The partial norms of all blocks, and how many of these are done.
struct NormParts {
  double* partial;
  unsigned* done;
  unsigned first, total;                     // of this launch's blocks among those of all launches; how many there are
};

// The block that comes last joins what the others left, in the order of the blocks.
template <bool is_infinity>
__global__ void __launch_bounds__(threads) norm_all(const __grid_constant__ GradientList list, NormParts parts, double* norm) {
  auto& scratch = shared<NormScratch>();
  const GradientEntry& e = list.entries[entry_of(list.entries, list.slots, blockIdx.x)];
  NormOf<is_infinity> mine;
  with_type(e.dtype, [&](auto zero) {
    for_piece<decltype(zero)>(e, blockIdx.x, [&](const auto& values, const auto* data, int64_t i) { mine(values, data, i); });
  });
  const double part = block_norm<is_infinity>(mine.total, scratch);
  bool is_last = false;
  if (threadIdx.x == 0) {
    parts.partial[parts.first + blockIdx.x] = part;
    __threadfence();                         // the part is there before it is counted
    is_last = atomicAdd(parts.done, 1u) == parts.total - 1;
  }
  if (!__syncthreads_or(is_last)) return;
  __threadfence();
  const volatile double* const all = parts.partial;
  NormOf<is_infinity> joined;
  for (unsigned i = threadIdx.x; i < parts.total; i += threads) joined.join(all[i]);
  const double total = block_norm<is_infinity>(joined.total, scratch);
  if (threadIdx.x == 0) *norm = is_infinity ? total : std::sqrt(total);
}

__global__ __launch_bounds__(1) void set_zero(double* value) { *value = 0; }

template <class T, int n>
__device__ void multiply_pack(Pack<T, n> values, T* data, int64_t i, Accumulate<T> factor) {
#pragma unroll
  for (int j = 0; j < n; ++j) values[j] = narrow<T>(widen(values[j]) * factor);
  store_pack<T, n>(data, i, values);
}

// A factor of 1 or more leaves all gradients as they are, bit for bit; NaN makes all of them NaN, which cannot be overlooked.
__global__ void __launch_bounds__(threads) clip_all(const __grid_constant__ GradientList list, double max_norm, const double* norm) {
  const double factor = max_norm / (*norm + 1e-6);
  if (factor >= 1) return;
  const GradientEntry& e = list.entries[entry_of(list.entries, list.slots, blockIdx.x)];
  with_type(e.dtype, [&](auto zero) {
    using T = decltype(zero);
    for_piece<T>(e, blockIdx.x, [&](const auto& values, T* data, int64_t i) { multiply_pack(values, data, i, static_cast<Accumulate<T>>(factor)); });
  });
}

template <class C>
__device__ bool is_finite(C x) { return x - x == 0; }

__global__ void __launch_bounds__(threads) unscale_all(const __grid_constant__ GradientList list, bool is_written, const float* scale, int32_t* found_inf) {
  const float factor = 1 / *scale;
  const GradientEntry& e = list.entries[entry_of(list.entries, list.slots, blockIdx.x)];
  bool is_bad = false;
  with_type(e.dtype, [&](auto zero) {
    using T = decltype(zero);
    for_piece<T>(e, blockIdx.x, [&]<int n>(const Pack<T, n>& values, T* data, int64_t i) {
#pragma unroll
      for (int j = 0; j < n; ++j) is_bad |= !is_finite(widen(values[j]) * static_cast<Accumulate<T>>(factor));
      if (is_written) multiply_pack(values, data, i, static_cast<Accumulate<T>>(factor));
    });
  });
  if (__syncthreads_or(is_bad) && threadIdx.x == 0) atomicOr(found_inf, 1);
}

__global__ __launch_bounds__(1) void advance_scale(ScaleGrowth growth, float* scale, int32_t* good_steps, int32_t* found_inf, int64_t count) {
  bool has_found = false;
  for (int64_t i = 0; i < count; ++i) {
    has_found |= found_inf[i] != 0;
    found_inf[i] = 0;
  }
  float next_scale = *scale;
  int32_t next_steps = *good_steps;
  growth.advance(has_found, next_scale, next_steps);
  *scale = next_scale;
  *good_steps = next_steps;
}

unsigned blocks_of(const GradientSlot& s) { return static_cast<unsigned>(ceil_div(s.numel, gradient_piece)); }

// Calls launch_list(list, blocks) with as many gradients at a time as fit. Those of no elements are left out.
template <class Launch>
void for_lists(std::span<const GradientSlot> slots, const Launch& launch_list) {
  GradientList list{};
  unsigned blocks = 0;
  for (const GradientSlot& s : slots) {
    if (s.numel == 0) continue;
    if (list.slots == GradientList::most_slots) {
      launch_list(list, blocks);
      list.slots = 0;
      blocks = 0;
    }
    list.entries[list.slots++] = {s.data, s.numel, blocks, s.dtype, is_aligned(s.data)};
    blocks += blocks_of(s);
  }
  if (list.slots > 0) launch_list(list, blocks);
}

Grid grid_of(unsigned blocks, size_t shared_bytes = 0) { return {dim3(blocks), dim3(threads), shared_bytes}; }

void gradient_norm(Queue queue, bool is_infinity, std::span<const GradientSlot> slots, double* norm) {
  unsigned total = 0, first = 0;
  for (const GradientSlot& s : slots) total += blocks_of(s);
  if (total == 0) return launch(queue, "gradient_norm", Grid{dim3(1), dim3(1)}, set_zero, norm);
  const DeviceScratch scratch(static_cast<int64_t>((total + 1) * sizeof(double)), queue);
  double* const partial = scratch.as<double>() + 1;
  unsigned* const done = scratch.as<unsigned>();
  check_cuda(cudaMemsetAsync(done, 0, sizeof(double), stream_of(queue)), "cuda: beginning the norm of gradients");
  for_lists(slots, [&](const GradientList& list, unsigned blocks) {
    const NormParts parts{partial, done, first, total};
    launch(queue, "gradient_norm", grid_of(blocks, sizeof(NormScratch)), is_infinity ? norm_all<true> : norm_all<false>, list, parts, norm);
    first += blocks;
  });
}

void clip_gradients(Queue queue, double max_norm, const double* norm, std::span<const GradientSlot> slots) {
  for_lists(slots, [&](const GradientList& list, unsigned blocks) { launch(queue, "clip_gradients", grid_of(blocks), clip_all, list, max_norm, norm); });
}

void unscale_gradients(Queue queue, bool is_written, const float* scale, std::span<const GradientSlot> slots, int32_t* found_inf) {
  for_lists(slots, [&](const GradientList& list, unsigned blocks) {
    launch(queue, "unscale_gradients", grid_of(blocks), unscale_all, list, is_written, scale, found_inf);
  });
}

void update_scale(Queue queue, const ScaleGrowth& growth, float* scale, int32_t* good_steps, int32_t* found_inf, int64_t count) {
  launch(queue, "update_scale", Grid{dim3(1), dim3(1)}, advance_scale, growth, scale, good_steps, found_inf, count);
}

}  // namespace

void add_optimizer(KernelTable& t) {
  t.sgd = sgd;
  t.adam = adam;
  t.rmsprop = rmsprop;
  t.adagrad = adagrad;
  t.gradient_norm = gradient_norm;
  t.clip_gradients = clip_gradients;
  t.unscale_gradients = unscale_gradients;
  t.update_scale = update_scale;
}

}  // namespace fovea::kernels::cuda
