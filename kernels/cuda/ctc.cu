// Connectionist temporal classification on the GPU: the losses and, in the same call, their gradient by the logits. What is computed: kernels/cpu/ctc.cpp; here in log space:
//   l' = the labels with blanks around each (2L + 1 states), e_t(s) = log softmax(logits_t)(l'_s),
//   alpha_t(s) = e_t(s) + ln( exp alpha(s) + exp alpha(s-1) + exp alpha(s-2) [if l'_s is a label and not l'_(s-2)] ), of step t - 1;  beta the same from the end,
//   d loss / d logit_t(k) = softmax_t(k) - sum over s with l'_s = k of gamma_t(s),   gamma_t(s) ~ exp( alpha_t(s) + beta_t(s) - e_t(s) ), divided by its sum over s.
// Layout: logits [time,batch,classes] contiguous. Overwrites losses and dlogits. Sums in the element type, for logits of a half type in float32 (and losses too); the
// division by gamma's own sum takes out the rounding that alpha and beta have gathered on the way. Deterministic: repeated labels are added up by one thread in their order.
// Nothing waits for the host: a sample with a length or a label out of range, or with a blank among its labels (check_range has reported it), has a loss of NaN and a
// gradient of zero.
//
//   ctc_emissions  a block a row: log-sum-exp, the scores of the sample's own labels side by side, and softmax where the gradient will be
//   ctc_states     a warp a sample and direction, states in registers (a block and memory for more than 255 labels); alpha and beta run at the same time
//   ctc_gradient   a block a row: gamma, taken off the entries of blank and labels
// Floor: reading logits twice (the second time from L2), writing dlogits once; time * (about 100 ns) for the chain of steps.
//
// Note [beta is alpha of the mirrored sample]
// With time and states counted from the end, beta obeys alpha's recursion for the reversed labels. So one kernel does both, and only maps indices.
//
// Note [Rows of alpha are relative]
// ln p falls by some units a step, and a float near -2000 has lost four digits. So every few steps the largest state is taken off all of them and added to `offset`,
// which only the loss needs: gamma is divided by its own sum, whatever was taken off alpha and beta.
#include <cmath>
#include <limits>

#include <fovea/kernels/cpu/arena.h>
#include <fovea/kernels/cuda/core/launch.h>
#include <fovea/kernels/cuda/core/numeric.h>
#include <fovea/kernels/cuda/core/warp.h>

namespace fovea::kernels::cuda {
namespace {

template <class T>
__device__ constexpr T infinity() { return std::numeric_limits<T>::infinity(); }

// Logits or their gradient, [time][batch][classes], of L: what is computed with here is T.
template <class L>
struct Scores {
  const L* logits;
  L* dlogits;                                // null when no gradient is asked for
};

// A row of logits, widened as it is read.
template <class L>
struct WidenedRow {
  const L* data;
  __device__ Accumulate<L> operator[](int64_t i) const { return widen(data[i]); }
};

// What a sample is, and where its parts of the workspace are.
template <class T>
struct Samples {
  CtcGeometry g;
  const int64_t *targets, *input_lengths, *target_lengths;
  T* losses;
  bool has_gradient;
  T *emissions;                              // [batch][time][1 + max_target]: of blank, then of each label
  T *paths[2];                               // [batch][time][states]: alpha and beta
  T *raw_losses;                             // before zero_infinity
  int *next_same;                            // [batch][max_target]: the next place of the same label, or -1
  bool *is_first;                            // [batch][max_target]: no earlier place has the same label

  __device__ int64_t row(int64_t b, int64_t t) const { return b * g.time + t; }
  __device__ T* emission(int64_t b, int64_t t) const { return emissions + row(b, t) * (1 + g.max_target); }
  __device__ T* path(int direction, int64_t b, int64_t t) const { return paths[direction] + row(b, t) * (2 * g.max_target + 1); }
  __device__ int64_t target(int64_t b, int64_t i) const { return targets[b * g.max_target + i]; }
  // Lengths that lead nowhere out of memory.
  __device__ int64_t time(int64_t b) const { return max(int64_t{0}, min(g.time, input_lengths[b])); }
  __device__ int64_t length(int64_t b) const { return max(int64_t{0}, min(g.max_target, target_lengths[b])); }
  __device__ bool has_bad_length(int64_t b) const { return time(b) != input_lengths[b] || length(b) != target_lengths[b]; }
  __device__ bool is_bad_label(int64_t label) const { return label < 0 || label >= g.classes || label == g.blank; }
};

constexpr int row_threads = 128;
constexpr int64_t steps_between_offsets = 8;

template <class T>
struct RowMemory {
  T scratch[warp_size];
};

// ln(exp a + exp b), of numbers that may be -infinity; a NaN stays one.
template <class T>
__device__ T log_add(T a, T b) {
  const T top = Max()(a, b);
  if (top == -infinity<T>()) return top;
  return top + std::log(std::exp(a - top) + std::exp(b - top));
}

template <class T>
__device__ T log_add(T a, T b, T c) {
  const T top = Max()(Max()(a, b), c);
  if (top == -infinity<T>()) return top;
  return top + std::log(std::exp(a - top) + std::exp(b - top) + std::exp(c - top));
}

struct LogAdd {
  template <class T> __device__ T operator()(T a, T b) const { return log_add(a, b); }
};

template <class T>
__global__ void __launch_bounds__(row_threads) find_repeats(Samples<T> s) {
  const int64_t b = blockIdx.x, length = s.length(b);
  for (int64_t i = threadIdx.x; i < length; i += blockDim.x) {
    const int64_t label = s.target(b, i);
    int64_t next = i + 1, before = 0;
    while (next < length && s.target(b, next) != label) ++next;
    while (s.target(b, before) != label) ++before;
    s.next_same[b * s.g.max_target + i] = next < length ? static_cast<int>(next) : -1;
    s.is_first[b * s.g.max_target + i] = before == i;
  }
}

template <class T, class L>
__global__ void __launch_bounds__(row_threads) emissions(Samples<T> s, Scores<L> scores) {
  RowMemory<T>& memory = shared<RowMemory<T>>();
  const int64_t t = blockIdx.x, b = blockIdx.y, classes = s.g.classes;
  const WidenedRow<L> logits{scores.logits + (t * s.g.batch + b) * classes};
  L* dlogits = scores.dlogits ? scores.dlogits + (t * s.g.batch + b) * classes : nullptr;
  if (t >= s.time(b)) {                      // the same for the whole block
    for (int64_t k = threadIdx.x; dlogits && k < classes; k += blockDim.x) dlogits[k] = narrow<L>(T(0));
    return;
  }
  T top = -infinity<T>();
  for (int64_t k = threadIdx.x; k < classes; k += blockDim.x) top = Max()(top, logits[k]);
  top = block_reduce(top, Max(), -infinity<T>(), memory.scratch);
  T sum = 0;
  for (int64_t k = threadIdx.x; k < classes; k += blockDim.x) sum += std::exp(logits[k] - top);
  sum = block_reduce(sum, Sum(), T(0), memory.scratch);
  const T log_sum = top + std::log(sum);
  for (int64_t k = threadIdx.x; dlogits && k < classes; k += blockDim.x) dlogits[k] = narrow<L>(std::exp(logits[k] - top) / sum);
  T* emission = s.emission(b, t);
  const int64_t length = s.length(b);
  for (int64_t i = threadIdx.x; i <= length; i += blockDim.x) {
    const int64_t label = i == 0 ? s.g.blank : s.target(b, i - 1);
    emission[i] = i > 0 && s.is_bad_label(label) ? std::numeric_limits<T>::quiet_NaN() : logits[label] - log_sum;
  }
}

// A sample as one of the two directions sees it.
template <class T>
struct Mirror {
  const Samples<T>& s;
  int direction;
  int64_t b, time, length;

  __device__ Mirror(const Samples<T>& samples, int d, int64_t sample)
      : s(samples), direction(d), b(sample), time(samples.time(sample)), length(samples.length(sample)) {}
  __device__ int64_t states() const { return 2 * length + 1; }
  __device__ int64_t step(int64_t t) const { return direction == 0 ? t : time - 1 - t; }
  __device__ int64_t state(int64_t i) const { return direction == 0 ? i : states() - 1 - i; }
  __device__ int64_t label(int64_t i) const { return direction == 0 ? i : length - 1 - i; }
  // Where the score of a state stands in a row of emissions.
  __device__ int64_t emission_of(int64_t state) const { return state % 2 == 0 ? 0 : 1 + label(state / 2); }
  // Whether a label may follow the one before it without a blank between them.
  __device__ bool may_skip(int64_t state) const { return state % 2 == 1 && state >= 3 && s.target(b, label(state / 2)) != s.target(b, label(state / 2 - 1)); }
};

template <class T>
__device__ void store_loss(const Samples<T>& s, int64_t b, T log_probability) {
  const T loss = s.has_bad_length(b) ? std::numeric_limits<T>::quiet_NaN() : log_probability == T(0) ? T(0) : -log_probability;
  s.raw_losses[b] = loss;
  s.losses[b] = s.g.zero_infinity && loss == infinity<T>() ? T(0) : loss;
}

// A lane keeps `each` neighbouring states; each is even, so that a lane's first state is a blank.
template <class T, int each>
__global__ void __launch_bounds__(warp_size) states_in_warp(Samples<T> s) {
  const int lane = static_cast<int>(threadIdx.x);
  const Mirror<T> m(s, static_cast<int>(blockIdx.y), blockIdx.x);
  T value[each], score[each];
  double offset = 0;
  int64_t place[each];
  bool skips[each], is_there[each];
#pragma unroll
  for (int i = 0; i < each; ++i) {
    const int64_t state = lane * each + i;
    is_there[i] = state < m.states();
    place[i] = is_there[i] ? m.emission_of(state) : 0;
    skips[i] = is_there[i] && m.may_skip(state);
    value[i] = state == 0 ? T(0) : -infinity<T>();             // step -1
    score[i] = is_there[i] && m.time > 0 ? s.emission(m.b, m.step(0))[place[i]] : T(0);
  }
  for (int64_t t = 0; t < m.time; ++t) {
    const T *next_row = t + 1 < m.time ? s.emission(m.b, m.step(t + 1)) : nullptr;
    T next_score[each] = {};
#pragma unroll
    for (int i = 0; i < each; ++i)
      if (next_row && is_there[i]) next_score[i] = next_row[place[i]];         // on its way while this step is computed
    T last = __shfl_up_sync(all_lanes, value[each - 1], 1);
    if (lane == 0) last = -infinity<T>();
    T next[each];
#pragma unroll
    for (int i = 0; i < each; ++i) {
      const T before = i == 0 ? last : value[i - 1];
      if (i % 2 == 0) {
        next[i] = log_add(value[i], before);
      } else {
        const T two_before = i == 1 ? last : value[i - 2];
        next[i] = log_add(value[i], before, skips[i] ? two_before : -infinity<T>());
      }
    }
    if (t % steps_between_offsets == 0 && t > 0) {
      T top = -infinity<T>();
#pragma unroll
      for (int i = 0; i < each; ++i) top = Max()(top, next[i]);
      top = warp_reduce(top, Max());
      if (top != -infinity<T>()) {
        offset += top;
#pragma unroll
        for (int i = 0; i < each; ++i) next[i] -= top;
      }
    }
    T* row = s.path(m.direction, m.b, m.step(t));
#pragma unroll
    for (int i = 0; i < each; ++i) {
      value[i] = is_there[i] ? next[i] + score[i] : -infinity<T>();
      score[i] = next_score[i];
      if (is_there[i] && s.has_gradient) row[m.state(lane * each + i)] = value[i];
    }
  }
  T ends = -infinity<T>();
#pragma unroll
  for (int i = 0; i < each; ++i)
    if (is_there[i] && lane * each + i >= m.states() - 2) ends = log_add(ends, value[i]);
  ends = warp_reduce(ends, LogAdd());
  if (m.direction == 0 && lane == 0) store_loss(s, m.b, static_cast<T>(ends + offset));
}

// Any number of states: a step reads the row of the step before it from memory.
template <class T>
__global__ void __launch_bounds__(512, 1) states_in_block(Samples<T> s) {
  RowMemory<T>& memory = shared<RowMemory<T>>();
  const Mirror<T> m(s, static_cast<int>(blockIdx.y), blockIdx.x);
  const int64_t states = m.states();
  double offset = 0;
  for (int64_t t = 0; t < m.time; ++t) {
    const T *emission = s.emission(m.b, m.step(t)), *before = t > 0 ? s.path(m.direction, m.b, m.step(t - 1)) : nullptr;
    T* row = s.path(m.direction, m.b, m.step(t));
    const auto previous = [&](int64_t state) {
      if (state < 0) return -infinity<T>();
      return before ? before[m.state(state)] : state == 0 ? T(0) : -infinity<T>();
    };
    T shift = 0;
    if (t % steps_between_offsets == 0 && t > 0) {
      T top = -infinity<T>();
      for (int64_t state = threadIdx.x; state < states; state += blockDim.x) top = Max()(top, previous(state));
      top = block_reduce(top, Max(), -infinity<T>(), memory.scratch);
      if (top != -infinity<T>()) shift = top;
      offset += shift;
    }
    for (int64_t state = threadIdx.x; state < states; state += blockDim.x) {
      const T before_state = log_add(previous(state), previous(state - 1), m.may_skip(state) ? previous(state - 2) : -infinity<T>());
      row[m.state(state)] = before_state - shift + emission[m.emission_of(state)];
    }
    __syncthreads();
  }
  T ends = -infinity<T>();
  for (int64_t state = threadIdx.x; state < states; state += blockDim.x) {
    if (state < states - 2) continue;
    const T value = m.time > 0 ? s.path(m.direction, m.b, m.step(m.time - 1))[m.state(state)] : state == 0 ? T(0) : -infinity<T>();
    ends = log_add(ends, value);
  }
  ends = block_reduce(ends, LogAdd(), -infinity<T>(), memory.scratch);
  if (m.direction == 0 && threadIdx.x == 0) store_loss(s, m.b, static_cast<T>(ends + offset));
}

// Takes gamma off the softmax that stands at `place`; where that was rounded to a half type, off the one that the emission tells.
template <class T, class L>
__device__ void take_off(L& place, T gamma, T emission) {
  if constexpr (is_half<L>) place = narrow<L>(std::exp(emission) - gamma);
  else place -= gamma;
}

template <class T, class L>
__global__ void __launch_bounds__(row_threads, 1) gradient(Samples<T> s, L* all_dlogits) {
  RowMemory<T>& memory = shared<RowMemory<T>>();
  const int64_t t = blockIdx.x, b = blockIdx.y, length = s.length(b), states = 2 * length + 1;
  if (t >= s.time(b)) return;                // the same for the whole block
  L* dlogits = all_dlogits + (t * s.g.batch + b) * s.g.classes;
  const T loss = s.raw_losses[b];
  if (loss == infinity<T>() || loss != loss) {
    bool is_bad = s.has_bad_length(b);
    for (int64_t i = threadIdx.x; i < length; i += blockDim.x) is_bad |= s.is_bad_label(s.target(b, i));
    is_bad = __syncthreads_or(is_bad) != 0;
    const T value = loss == loss || is_bad ? T(0) : std::numeric_limits<T>::quiet_NaN();
    for (int64_t k = threadIdx.x; k < s.g.classes; k += blockDim.x) dlogits[k] = narrow<L>(value);
    return;
  }
  const T *alpha = s.path(0, b, t), *beta = s.path(1, b, t), *emission = s.emission(b, t);
  const auto log_gamma = [&](int64_t state) {
    const T a = alpha[state], z = beta[state];
    if (a == -infinity<T>() || z == -infinity<T>()) return -infinity<T>();
    return a + z - emission[state % 2 == 0 ? 0 : 1 + state / 2];
  };
  T top = -infinity<T>();
  for (int64_t state = threadIdx.x; state < states; state += blockDim.x) top = Max()(top, log_gamma(state));
  top = block_reduce(top, Max(), -infinity<T>(), memory.scratch);
  T blanks = 0, labels = 0;
  for (int64_t i = threadIdx.x; i <= length; i += blockDim.x) {
    blanks += std::exp(log_gamma(2 * i) - top);
    if (i < length) labels += std::exp(log_gamma(2 * i + 1) - top);
  }
  blanks = block_reduce(blanks, Sum(), T(0), memory.scratch);
  labels = block_reduce(labels, Sum(), T(0), memory.scratch);
  const T share = T(1) / (blanks + labels);
  if (threadIdx.x == 0) take_off(dlogits[s.g.blank], blanks * share, emission[0]);
  for (int64_t i = threadIdx.x; i < length; i += blockDim.x) {
    if (!s.is_first[b * s.g.max_target + i]) continue;
    T sum = 0;
    for (int64_t place = i; place >= 0; place = s.next_same[b * s.g.max_target + place]) sum += std::exp(log_gamma(2 * place + 1) - top);
    take_off(dlogits[s.target(b, i)], sum * share, emission[1 + i]);
  }
}

// --- host ---

// Cuts up the workspace, or with no memory counts its bytes.
template <class T>
int64_t lay_out(const CtcGeometry& g, void* memory, Samples<T>& s) {
  Arena arena(memory);
  const int64_t rows = g.batch * g.time;
  s.emissions = arena.take<T>(rows * (1 + g.max_target));
  for (T*& path : s.paths) path = arena.take<T>(rows * g.states());
  s.raw_losses = arena.take<T>(g.batch);
  s.next_same = arena.take<int>(g.batch * g.max_target);
  s.is_first = arena.take<bool>(g.batch * g.max_target);
  return arena.used();
}

template <class T>
void run_states(Queue queue, const Samples<T>& s) {
  const dim3 blocks = blocks_of(s.g.batch, s.has_gradient ? 2 : 1);          // an utterance and direction each
  const int64_t states = s.g.states();
  const Grid grid{blocks, dim3(warp_size)};
  if (states <= 2 * warp_size) return launch(queue, "ctc_states_warp_2", grid, states_in_warp<T, 2>, s);
  if (states <= 4 * warp_size) return launch(queue, "ctc_states_warp_4", grid, states_in_warp<T, 4>, s);
  if (states <= 8 * warp_size) return launch(queue, "ctc_states_warp_8", grid, states_in_warp<T, 8>, s);
  if (states <= 16 * warp_size) return launch(queue, "ctc_states_warp_16", grid, states_in_warp<T, 16>, s);
  launch(queue, "ctc_states_block", {blocks, dim3(512), sizeof(RowMemory<T>)}, states_in_block<T>, s);
}

template <class L>
void ctc_typed(Queue queue, const CtcGeometry& g, const ConstView& logits, const ConstView& targets, const ConstView& input_lengths,
               const ConstView& target_lengths, const View& losses, const View& dlogits, Workspace workspace) {
  using T = Accumulate<L>;
  if (g.batch == 0) return;
  Samples<T> s{};
  s.g = g;
  s.targets = targets.as<int64_t>();
  s.input_lengths = input_lengths.as<int64_t>();
  s.target_lengths = target_lengths.as<int64_t>();
  s.losses = losses.as<T>();
  s.has_gradient = dlogits.data != nullptr;
  lay_out(g, workspace.data, s);
  const size_t bytes = sizeof(RowMemory<T>);
  const dim3 rows(static_cast<unsigned>(g.time), static_cast<unsigned>(g.batch)), threads(row_threads);
  if (g.time > 0) launch(queue, "ctc_emissions", {rows, threads, bytes}, emissions<T, L>, s, Scores<L>{logits.as<L>(), dlogits.as<L>()});
  run_states(queue, s);
  if (!s.has_gradient || g.time == 0) return;
  if (g.max_target > 0) launch(queue, "ctc_find_repeats", {dim3(static_cast<unsigned>(g.batch)), threads}, find_repeats<T>, s);
  launch(queue, "ctc_gradient", {rows, threads, bytes}, gradient<T, L>, s, dlogits.as<L>());
}

int64_t ctc_workspace(const CtcGeometry& g, DType dtype) {
  return dispatch_floating(dtype, "ctc_loss", [&](auto zero) {
    Samples<Accumulate<decltype(zero)>> s{};
    return lay_out(g, nullptr, s);
  });
}

void ctc_loss(Queue queue, const CtcGeometry& g, const ConstView& logits, const ConstView& targets, const ConstView& input_lengths, const ConstView& target_lengths,
              const View& losses, const View& dlogits, Workspace workspace) {
  dispatch_floating(logits.dtype, "ctc_loss", [&](auto zero) {
    ctc_typed<decltype(zero)>(queue, g, logits, targets, input_lengths, target_lengths, losses, dlogits, workspace);
  });
}

}  // namespace

void add_ctc(KernelTable& t) {
  t.computes_half.add(Family::ctc);
  t.ctc_workspace = ctc_workspace;
  t.ctc_loss = ctc_loss;
}

}  // namespace fovea::kernels::cuda
