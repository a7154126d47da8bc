// One recurrent layer (LSTM, GRU, RNN with tanh or relu; one or both directions) over a whole sequence on the GPU, forward and backward.
// What is computed, layouts and the meaning of lengths: kernels/cpu/rnn.cpp. Overwrites its outputs. Sums in the element type, in a fixed order: deterministic.
//
//   forward   gates = x W_ih^T + b_ih for all steps as one product; then a kernel a step, both directions at once: gates += h W_hh^T + b_hh and the cell
//   backward  a kernel a step: dh = what came from the step after + dgates W_hh, and the cell; then over all steps as one product each
//             dx = dgates W_ih, dW_ih = dgates^T x, dW_hh = dgates^T h_previous, and the biases' sums
// Floor of a step: reading W_hh once (from L2, where it stays), or 2 batch gates hidden^2 FLOPs.
//
// Note [No length is read on the host]
// All `time` steps are run, and a sample whose sequence has ended rests: forward hands its state on and writes zeros to y; backward adds what arrives to dh and
// writes zeros to dgates. So the products over all steps need not know of lengths, and nothing waits for the device.
#include <cmath>

#include <fovea/kernels/cpu/arena.h>
#include <fovea/kernels/cuda/core/launch.h>

namespace fovea::kernels::cuda {
namespace {

using RnnWeights = KernelTable::RnnWeights;
using RnnGradients = KernelTable::RnnGradients;

constexpr int step_threads = 256, depth = 32;      // depth: of a tile along the sum

// The hidden size and what goes with it, for kernels; pointers come in pairs, one for each direction.
struct Sizes {
  int64_t time, batch, hidden, directions;
  __device__ int64_t step(int direction, int64_t i) const { return direction == 0 ? i : time - 1 - i; }       // of the i-th in the forward order
};

template <class T>
struct State {
  T* of[2];
};

template <class T>
__device__ T sigmoid(T x) { return T(1) / (T(1) + std::exp(-x)); }

// --- forward ---

constexpr int forward_units = 16, forward_samples = 32;      // of a block; a thread has one unit, all its gates, and two samples

template <class T>
struct ForwardStep {
  Sizes sizes;
  const int64_t* lengths;
  const T *w_hh[2], *b_hh[2];
  T *gates[2], *kept[2];                     // kept: c of every step (LSTM), or the recurrent share of n (GRU); null when no backward follows
  T *c[2], *y;
  int64_t i;                                 // of the step
  State<const T> h;
  State<T> h_next;
};

template <class T, int gates>
struct ForwardTile {
  T h[depth][forward_samples + 1];
  T w[depth][gates * forward_units + 1];
};

template <RnnCell cell> constexpr int gates_of = cell == RnnCell::lstm ? 4 : cell == RnnCell::gru ? 3 : 1;

// The new state of one unit. `gate` holds what x gives and receives the activations; `recurrent` is the share of h, biases included.
template <RnnCell cell, class T>
__device__ T run_cell(const T* recurrent, T* gate, int64_t hidden, T h, T* c, T* kept) {
  if constexpr (cell == RnnCell::lstm) {
    const T in = sigmoid(gate[0] + recurrent[0]), forget = sigmoid(gate[hidden] + recurrent[1]), candidate = std::tanh(gate[2 * hidden] + recurrent[2]);
    const T out = sigmoid(gate[3 * hidden] + recurrent[3]);
    const T state = forget * *c + in * candidate;
    gate[0] = in;
    gate[hidden] = forget;
    gate[2 * hidden] = candidate;
    gate[3 * hidden] = out;
    *c = state;
    if (kept) *kept = state;
    return out * std::tanh(state);
  } else if constexpr (cell == RnnCell::gru) {
    const T reset = sigmoid(gate[0] + recurrent[0]), update = sigmoid(gate[hidden] + recurrent[1]), candidate = std::tanh(gate[2 * hidden] + reset * recurrent[2]);
    gate[0] = reset;
    gate[hidden] = update;
    gate[2 * hidden] = candidate;
    if (kept) *kept = recurrent[2];
    return (T(1) - update) * candidate + update * h;
  } else {
    const T sum = gate[0] + recurrent[0];
    return cell == RnnCell::rnn_tanh ? std::tanh(sum) : sum > T(0) || sum != sum ? sum : T(0);
  }
}

template <class T, RnnCell cell>
__global__ void __launch_bounds__(step_threads, 1) forward_step(ForwardStep<T> s) {
  constexpr int gates = gates_of<cell>;
  ForwardTile<T, gates>& tile = shared<ForwardTile<T, gates>>();
  const int thread = static_cast<int>(threadIdx.x), d = static_cast<int>(blockIdx.z);
  const int64_t hidden = s.sizes.hidden, batch = s.sizes.batch;
  const int64_t first_unit = static_cast<int64_t>(blockIdx.x) * forward_units, first_sample = static_cast<int64_t>(blockIdx.y) * forward_samples;
  const int unit = thread % forward_units, pair = thread / forward_units;
  T sum[2][gates] = {};
  for (int64_t k0 = 0; k0 < hidden; k0 += depth) {
    for (int e = thread; e < forward_samples * depth; e += step_threads) {
      const int64_t sample = first_sample + e / depth, k = k0 + e % depth;
      tile.h[e % depth][e / depth] = sample < batch && k < hidden ? s.h.of[d][sample * hidden + k] : T(0);
    }
    for (int e = thread; e < gates * forward_units * depth; e += step_threads) {
      const int column = e / depth;
      const int64_t u = first_unit + column % forward_units, k = k0 + e % depth;
      tile.w[e % depth][column] = u < hidden && k < hidden ? s.w_hh[d][(column / forward_units * hidden + u) * hidden + k] : T(0);
    }
    __syncthreads();
#pragma unroll 8
    for (int k = 0; k < depth; ++k) {
      const T h0 = tile.h[k][2 * pair], h1 = tile.h[k][2 * pair + 1];
#pragma unroll
      for (int gate = 0; gate < gates; ++gate) {
        const T w = tile.w[k][gate * forward_units + unit];
        sum[0][gate] += h0 * w;
        sum[1][gate] += h1 * w;
      }
    }
    __syncthreads();
  }
  const int64_t u = first_unit + unit, t = s.sizes.step(d, s.i);
  if (u >= hidden) return;
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const int64_t sample = first_sample + 2 * pair + e, row = t * batch + sample, at = sample * hidden + u;
    if (sample >= batch) break;
    const T h = s.h.of[d][at];
    T &next = s.h_next.of[d][at], &y = s.y[(row * s.sizes.directions + d) * hidden + u];
    if (s.lengths && s.lengths[sample] <= t) {
      next = h;
      y = T(0);
      continue;
    }
#pragma unroll
    for (int gate = 0; gate < gates; ++gate) sum[e][gate] += s.b_hh[d] ? s.b_hh[d][gate * hidden + u] : T(0);
    next = run_cell<cell>(sum[e], s.gates[d] + row * gates * hidden + u, hidden, h, s.c[d] ? s.c[d] + at : nullptr, s.kept[d] ? s.kept[d] + row * hidden + u : nullptr);
    y = next;
  }
}

// --- backward ---

constexpr int backward_units = 32, backward_samples = 32;    // of a block; a thread has one unit and four samples
constexpr int samples_of_thread = backward_samples * backward_units / step_threads;

template <class T>
struct BackwardStep {
  Sizes sizes;
  const int64_t* lengths;
  const T* w_hh[2];
  const T *gates[2], *kept[2], *h0[2], *c0[2], *y, *dy;      // h0, c0, dy may be null
  T *dgates[2], *dgates_hidden[2];           // the second: what meets h (the GRU's n differs), else the same memory
  T *dh[2], *dc[2];
  int64_t i;                                 // of the step, counted from the end; `time`: only dh of the initial state is wanted
};

template <class T>
struct BackwardTile {
  T dgates[depth][backward_samples + 1];
  T w[depth][backward_units];
};

// The gradients of one unit's gates before their activations; returns the share of dh that goes to the step before by itself.
template <RnnCell cell, class T>
__device__ T run_cell_backward(const T* gate, int64_t hidden, T kept, T c_previous, T h_previous, T h, T dh, T* dc, T* dgate, T* dgate_hidden) {
  if constexpr (cell == RnnCell::lstm) {
    const T in = gate[0], forget = gate[hidden], candidate = gate[2 * hidden], out = gate[3 * hidden], squashed = std::tanh(kept);
    const T dstate = *dc + dh * out * (T(1) - squashed * squashed);
    dgate[0] = dstate * candidate * in * (T(1) - in);
    dgate[hidden] = dstate * c_previous * forget * (T(1) - forget);
    dgate[2 * hidden] = dstate * in * (T(1) - candidate * candidate);
    dgate[3 * hidden] = dh * squashed * out * (T(1) - out);
    *dc = dstate * forget;
    return T(0);
  } else if constexpr (cell == RnnCell::gru) {
    const T reset = gate[0], update = gate[hidden], candidate = gate[2 * hidden];
    const T dcandidate = dh * (T(1) - update) * (T(1) - candidate * candidate);
    dgate[0] = dgate_hidden[0] = dcandidate * kept * reset * (T(1) - reset);
    dgate[hidden] = dgate_hidden[hidden] = dh * (h_previous - candidate) * update * (T(1) - update);
    dgate[2 * hidden] = dcandidate;
    dgate_hidden[2 * hidden] = dcandidate * reset;
    return dh * update;
  } else {
    dgate[0] = cell == RnnCell::rnn_tanh ? dh * (T(1) - h * h) : h > T(0) ? dh : T(0);
    return T(0);
  }
}

template <class T, RnnCell cell>
__global__ void __launch_bounds__(step_threads, 1) backward_step(BackwardStep<T> s) {
  constexpr int gates = gates_of<cell>;
  BackwardTile<T>& tile = shared<BackwardTile<T>>();
  const int thread = static_cast<int>(threadIdx.x), d = static_cast<int>(blockIdx.z);
  const int64_t hidden = s.sizes.hidden, batch = s.sizes.batch, time = s.sizes.time, rows = gates * hidden;
  const int64_t first_unit = static_cast<int64_t>(blockIdx.x) * backward_units, first_sample = static_cast<int64_t>(blockIdx.y) * backward_samples;
  const int unit = thread % backward_units, group = thread / backward_units * samples_of_thread;
  const int64_t t = s.sizes.step(d, time - 1 - s.i), after = d == 0 ? t + 1 : t - 1, before = d == 0 ? t - 1 : t + 1;

  T dh[samples_of_thread] = {};
  for (int64_t k0 = 0; s.i > 0 && k0 < rows; k0 += depth) {
    for (int e = thread; e < backward_samples * depth; e += step_threads) {
      const int64_t sample = first_sample + e / depth, k = k0 + e % depth;
      tile.dgates[e % depth][e / depth] = sample < batch && k < rows ? s.dgates_hidden[d][(after * batch + sample) * rows + k] : T(0);
    }
    for (int e = thread; e < backward_units * depth; e += step_threads) {
      const int64_t u = first_unit + e % backward_units, k = k0 + e / backward_units;
      tile.w[e / backward_units][e % backward_units] = u < hidden && k < rows ? s.w_hh[d][k * hidden + u] : T(0);
    }
    __syncthreads();
#pragma unroll 8
    for (int k = 0; k < depth; ++k) {
      const T w = tile.w[k][unit];
#pragma unroll
      for (int e = 0; e < samples_of_thread; ++e) dh[e] += tile.dgates[k][group + e] * w;
    }
    __syncthreads();
  }

  const int64_t u = first_unit + unit;
  if (u >= hidden) return;
#pragma unroll
  for (int e = 0; e < samples_of_thread; ++e) {
    const int64_t sample = first_sample + group + e, row = t * batch + sample, at = sample * hidden + u;
    if (sample >= batch) break;
    T total = s.dh[d][at] + dh[e];
    if (s.i == time) {                       // past the first step: this is the gradient of the initial state
      s.dh[d][at] = total;
      continue;
    }
    T *dgate = s.dgates[d] + row * rows + u, *dgate_hidden = s.dgates_hidden[d] + row * rows + u;
    const int64_t length = s.lengths ? s.lengths[sample] : time;
    if (length <= t) {
      s.dh[d][at] = total;
#pragma unroll
      for (int gate = 0; gate < gates; ++gate) dgate[gate * hidden] = dgate_hidden[gate * hidden] = T(0);
      continue;
    }
    const auto output = [&](const T* p, int64_t step) { return p[((step * batch + sample) * s.sizes.directions + d) * hidden + u]; };
    const auto initial = [&](const T* p) { return p ? p[at] : T(0); };
    const bool is_first = d == 0 ? t == 0 : t == length - 1;
    T kept = 0, c_previous = 0, h_previous = 0, h = 0;
    if constexpr (gates > 1) kept = s.kept[d][row * hidden + u];
    if constexpr (cell == RnnCell::lstm) c_previous = is_first ? initial(s.c0[d]) : s.kept[d][(before * batch + sample) * hidden + u];
    if constexpr (cell == RnnCell::gru) h_previous = is_first ? initial(s.h0[d]) : output(s.y, before);
    if constexpr (gates == 1) h = output(s.y, t);
    if (s.dy) total += output(s.dy, t);
    const T* gate = s.gates[d] ? s.gates[d] + row * rows + u : nullptr;
    s.dh[d][at] = run_cell_backward<cell>(gate, hidden, kept, c_previous, h_previous, h, total, s.dc[d] ? s.dc[d] + at : nullptr, dgate, dgate_hidden);
  }
}

// to[i] = from[i], or zero where there is no `from`.
template <class T>
__global__ void __launch_bounds__(256) copy_or_zero(const T* from, T* to, int64_t count) {
  for (int64_t i = global_thread(); i < count; i += global_threads()) to[i] = from ? from[i] : T(0);
}

// to[b, :] = dgates of the step that sample b of direction d begins with.
template <class T>
__global__ void __launch_bounds__(256) gather_first(const T* dgates, const int64_t* lengths, int direction, int64_t time, int64_t batch, int64_t rows, T* to) {
  for (int64_t i = global_thread(); i < batch * rows; i += global_threads()) {
    const int64_t sample = i / rows, length = lengths ? lengths[sample] : time;
    const int64_t t = direction == 0 ? 0 : length - 1;
    to[i] = length > 0 ? dgates[(t * batch + sample) * rows + i % rows] : T(0);
  }
}

constexpr int sum_columns = 32, sum_groups = 8;

template <class T>
struct SumTile {
  T sums[sum_groups][sum_columns];
};

// sums[j] = sum over rows of x[rows, columns]: eight groups of every eighth row, then the groups in order.
template <class T>
__global__ void __launch_bounds__(sum_columns* sum_groups) column_sums(const T* x, int64_t rows, int64_t columns, T* sums) {
  SumTile<T>& tile = shared<SumTile<T>>();
  const int lane = static_cast<int>(threadIdx.x) % sum_columns, group = static_cast<int>(threadIdx.x) / sum_columns;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * sum_columns + lane;
  T sum = 0;
  for (int64_t row = group; column < columns && row < rows; row += sum_groups) sum += x[row * columns + column];
  tile.sums[group][lane] = sum;
  __syncthreads();
  if (group > 0 || column >= columns) return;
  for (int other = 1; other < sum_groups; ++other) sum += tile.sums[other][lane];
  sums[column] = sum;
}

// --- host ---

// What forward leaves for backward: the gates' activations, and c or the recurrent share of n, for every step. The plain RNN needs y alone.
template <class T>
struct Reserve {
  T *gates[2] = {}, *kept[2] = {};
  Reserve(const RnnGeometry& g, Arena& memory) {
    for (int64_t d = 0; d < g.directions && g.gates() > 1; ++d) {
      gates[d] = memory.take<T>(g.time * g.batch * g.gates() * g.hidden_size);
      kept[d] = memory.take<T>(g.time * g.batch * g.hidden_size);
    }
  }
};

template <class T>
struct ForwardScratch {
  T *gates[2] = {}, *h[2][2] = {}, *c[2] = {};               // h: of even and odd steps
  ForwardScratch(const RnnGeometry& g, Arena& memory) {
    for (int64_t d = 0; d < g.directions; ++d) {
      gates[d] = memory.take<T>(g.time * g.batch * g.gates() * g.hidden_size);
      for (auto& parity : h) parity[d] = memory.take<T>(g.batch * g.hidden_size);
      if (g.has_cell_state()) c[d] = memory.take<T>(g.batch * g.hidden_size);
    }
  }
};

template <class T>
struct BackwardScratch {
  T *dgates[2] = {}, *dgates_hidden[2] = {}, *dh[2] = {}, *dc[2] = {}, *first = nullptr;
  BackwardScratch(const RnnGeometry& g, Arena& memory) {
    const int64_t rows = g.gates() * g.hidden_size;
    for (int64_t d = 0; d < g.directions; ++d) {
      dgates[d] = memory.take<T>(g.time * g.batch * rows);
      dgates_hidden[d] = g.cell == RnnCell::gru ? memory.take<T>(g.time * g.batch * rows) : dgates[d];
      dh[d] = memory.take<T>(g.batch * g.hidden_size);
      if (g.has_cell_state()) dc[d] = memory.take<T>(g.batch * g.hidden_size);
    }
    first = memory.take<T>(g.batch * rows);
  }
};

template <class AnyView>
AnyView matrix(const AnyView& like, decltype(AnyView::data) data, int64_t rows, int64_t columns, int64_t row_stride, int64_t column_stride) {
  AnyView v;
  v.data = data;
  v.dtype = like.dtype;
  v.shape = {rows, columns};
  v.strides = {row_stride, column_stride};
  return v;
}

void product(Queue queue, const ConstView& a, const ConstView& b, const ConstView& bias, bool accumulates, const View& y, Workspace scratch) {
  if (a.size(1) == 0 && accumulates) return;
  const MatmulGeometry g{1, a.size(0), b.size(1), a.size(1)};
  cuda_table(0).matmul(queue, g, {1, accumulates ? 1.0 : 0.0}, a, b, bias, y, scratch);
}

// The largest of the products below.
int64_t product_workspace(const RnnGeometry& g, DType dtype) {
  const int64_t rows = g.gates() * g.hidden_size, steps = g.time * g.batch;
  int64_t bytes = 0;
  for (const MatmulGeometry& m : {MatmulGeometry{1, steps, rows, g.input_size}, MatmulGeometry{1, steps, g.input_size, rows},
                                  MatmulGeometry{1, rows, g.input_size, steps}, MatmulGeometry{1, rows, g.hidden_size, steps},
                                  MatmulGeometry{1, rows, g.hidden_size, g.batch}})
    bytes = std::max(bytes, cuda_table(0).matmul_workspace(m, dtype));
  return bytes;
}

template <class T>
void copy_state(Queue queue, const T* from, T* to, int64_t count) {
  if (to && count > 0) launch(queue, "rnn_copy_state", grid_for(count), copy_or_zero<T>, from, to, count);
}

// Direction d of a state [directions, batch, hidden] that may not be there.
template <class T, class AnyView>
auto state_of(const AnyView& v, const RnnGeometry& g, int64_t d) {
  auto* p = v.template as<T>();
  return p ? p + d * g.batch * g.hidden_size : nullptr;
}

Sizes sizes_of(const RnnGeometry& g) { return {g.time, g.batch, g.hidden_size, g.directions}; }

dim3 step_blocks(const RnnGeometry& g, int units, int samples) {
  return dim3(static_cast<unsigned>(ceil_div<int64_t>(g.hidden_size, units)), static_cast<unsigned>(ceil_div<int64_t>(g.batch, samples)),
              static_cast<unsigned>(g.directions));
}

// Calls f with the cell as a compile-time constant.
template <class F>
void with_cell(RnnCell cell, const F& f) {
  switch (cell) {
    case RnnCell::lstm: return f(std::integral_constant<RnnCell, RnnCell::lstm>());
    case RnnCell::gru: return f(std::integral_constant<RnnCell, RnnCell::gru>());
    case RnnCell::rnn_tanh: return f(std::integral_constant<RnnCell, RnnCell::rnn_tanh>());
    case RnnCell::rnn_relu: return f(std::integral_constant<RnnCell, RnnCell::rnn_relu>());
  }
}

template <class T>
void forward_typed(Queue queue, const RnnGeometry& g, const ConstView& x, const ConstView& lengths, const ConstView& h0, const ConstView& c0, const RnnWeights& weights,
                   const View& y, const View& h_n, const View& c_n, Workspace reserve, Workspace workspace) {
  if (g.batch == 0) return;
  Arena scratch_memory(workspace.data), reserve_memory(reserve.data);
  const ForwardScratch<T> scratch(g, scratch_memory);
  const Reserve<T> kept(g, reserve_memory);
  const int64_t rows = g.gates() * g.hidden_size, steps = g.time * g.batch, count = g.batch * g.hidden_size;
  ForwardStep<T> s{.sizes = sizes_of(g), .lengths = lengths.as<int64_t>(), .w_hh = {}, .b_hh = {}, .gates = {}, .kept = {}, .c = {}, .y = y.as<T>(), .i = 0, .h = {}, .h_next = {}};
  for (int64_t d = 0; d < g.directions; ++d) {
    s.w_hh[d] = weights.w_hh[d].template as<T>();
    s.b_hh[d] = weights.b_hh[d].template as<T>();
    s.gates[d] = kept.gates[d] ? kept.gates[d] : scratch.gates[d];
    s.kept[d] = kept.kept[d];
    s.c[d] = scratch.c[d];
    if (steps > 0)
      product(queue, matrix(x, x.data, steps, g.input_size, g.input_size, 1), matrix(x, weights.w_ih[d].data, g.input_size, rows, 1, g.input_size), weights.b_ih[d],
              false, matrix(y, s.gates[d], steps, rows, rows, 1), scratch_memory.rest(workspace));
    copy_state(queue, state_of<T>(h0, g, d), scratch.h[0][d], count);
    if (g.has_cell_state()) copy_state(queue, state_of<T>(c0, g, d), scratch.c[d], count);
  }
  with_cell(g.cell, [&](auto cell) {
    const Grid grid{step_blocks(g, forward_units, forward_samples), dim3(step_threads), sizeof(ForwardTile<T, gates_of<cell>>)};
    for (s.i = 0; s.i < g.time; ++s.i) {
      for (int64_t d = 0; d < g.directions; ++d) {
        s.h.of[d] = scratch.h[s.i % 2][d];
        s.h_next.of[d] = scratch.h[(s.i + 1) % 2][d];
      }
      launch(queue, "rnn_forward_step", grid, forward_step<T, cell>, s);
    }
  });
  for (int64_t d = 0; d < g.directions; ++d) {
    copy_state<T>(queue, scratch.h[g.time % 2][d], state_of<T>(h_n, g, d), count);
    if (g.has_cell_state()) copy_state<T>(queue, scratch.c[d], state_of<T>(c_n, g, d), count);
  }
}

template <class T>
void weight_gradients(Queue queue, const RnnGeometry& g, int64_t d, const ConstView& x, const ConstView& lengths, const ConstView& h0, const ConstView& y,
                      const BackwardScratch<T>& scratch, const RnnGradients& gradients, Workspace rest) {
  const int64_t hidden = g.hidden_size, rows = g.gates() * hidden, steps = g.time * g.batch, width = g.directions * hidden;
  const auto sums = [&](const T* dgates, const View& to) {
    if (to) launch(queue, "rnn_column_sums", {dim3(static_cast<unsigned>(ceil_div<int64_t>(rows, sum_columns))), dim3(sum_columns * sum_groups), sizeof(SumTile<T>)},
                   column_sums<T>, dgates, steps, rows, to.as<T>());
  };
  sums(scratch.dgates[d], gradients.b_ih[d]);
  sums(scratch.dgates_hidden[d], gradients.b_hh[d]);
  if (const View& dw = gradients.w_ih[d])
    product(queue, matrix(x, scratch.dgates[d], rows, steps, 1, rows), matrix(x, x.data, steps, g.input_size, g.input_size, 1), {}, false,
            matrix(dw, dw.data, rows, g.input_size, g.input_size, 1), rest);
  const View& dw = gradients.w_hh[d];
  if (!dw) return;
  // h_previous is y of the neighbouring step, which is zero past a sequence's end; and h0 at the step that a sample begins with.
  const View target = matrix(dw, dw.data, rows, hidden, hidden, 1);
  const int64_t inner = std::max<int64_t>(0, steps - g.batch), first_dgates = d == 0 ? g.batch : 0, first_y = d == 0 ? 0 : g.batch;
  product(queue, matrix(x, scratch.dgates_hidden[d] + first_dgates * rows, rows, inner, 1, rows), matrix(y, y.as<T>() + first_y * width + d * hidden, inner, hidden, width, 1),
          {}, false, target, rest);
  const T* initial = state_of<T>(h0, g, d);
  if (!initial || g.time == 0) return;
  launch(queue, "rnn_gather_first", grid_for(g.batch * rows), gather_first<T>, scratch.dgates_hidden[d], lengths.as<int64_t>(), static_cast<int>(d), g.time, g.batch, rows,
         scratch.first);
  product(queue, matrix(x, scratch.first, rows, g.batch, 1, rows), matrix(x, initial, g.batch, hidden, hidden, 1), {}, true, target, rest);
}

template <class T>
void backward_typed(Queue queue, const RnnGeometry& g, const ConstView& x, const ConstView& lengths, const ConstView& h0, const ConstView& c0, const RnnWeights& weights,
                    const ConstView& y, Workspace reserve, const ConstView& dy, const ConstView& dh_n, const ConstView& dc_n, const View& dx, const View& dh0,
                    const View& dc0, const RnnGradients& gradients, Workspace workspace) {
  Arena scratch_memory(workspace.data), reserve_memory(reserve.data);
  const BackwardScratch<T> scratch(g, scratch_memory);
  const Reserve<T> kept(g, reserve_memory);
  const int64_t rows = g.gates() * g.hidden_size, steps = g.time * g.batch, count = g.batch * g.hidden_size;
  BackwardStep<T> s{.sizes = sizes_of(g), .lengths = lengths.as<int64_t>(), .w_hh = {}, .gates = {}, .kept = {}, .h0 = {}, .c0 = {}, .y = y.as<T>(), .dy = dy.as<T>(),
                    .dgates = {}, .dgates_hidden = {}, .dh = {}, .dc = {}, .i = 0};
  for (int64_t d = 0; d < g.directions; ++d) {
    s.w_hh[d] = weights.w_hh[d].template as<T>();
    s.gates[d] = kept.gates[d];
    s.kept[d] = kept.kept[d];
    s.h0[d] = state_of<T>(h0, g, d);
    s.c0[d] = state_of<T>(c0, g, d);
    s.dgates[d] = scratch.dgates[d];
    s.dgates_hidden[d] = scratch.dgates_hidden[d];
    s.dh[d] = scratch.dh[d];
    s.dc[d] = scratch.dc[d];
    copy_state(queue, state_of<T>(dh_n, g, d), s.dh[d], count);
    if (g.has_cell_state()) copy_state(queue, state_of<T>(dc_n, g, d), s.dc[d], count);
  }
  with_cell(g.cell, [&](auto cell) {
    const Grid grid{step_blocks(g, backward_units, backward_samples), dim3(step_threads), sizeof(BackwardTile<T>)};
    for (s.i = 0; s.i < g.time + (dh0 ? 1 : 0); ++s.i) launch(queue, "rnn_backward_step", grid, backward_step<T, cell>, s);
  });
  const Workspace rest = scratch_memory.rest(workspace);
  for (int64_t d = 0; d < g.directions; ++d) {
    copy_state<T>(queue, s.dh[d], state_of<T>(dh0, g, d), count);
    if (g.has_cell_state()) copy_state<T>(queue, s.dc[d], state_of<T>(dc0, g, d), count);
    if (dx && steps > 0)
      product(queue, matrix(x, s.dgates[d], steps, rows, rows, 1), matrix(x, weights.w_ih[d].data, rows, g.input_size, g.input_size, 1), {}, d > 0,
              matrix(dx, dx.data, steps, g.input_size, g.input_size, 1), rest);
    weight_gradients(queue, g, d, x, lengths, h0, y, scratch, gradients, rest);
  }
}

int64_t rnn_reserve(const RnnGeometry& g, DType dtype) {
  return dispatch_real(dtype, "rnn", [&](auto zero) {
    Arena memory(nullptr);
    Reserve<decltype(zero)>(g, memory);
    return memory.used();
  });
}

int64_t rnn_workspace(const RnnGeometry& g, DType dtype) {
  return dispatch_real(dtype, "rnn", [&](auto zero) {
    using T = decltype(zero);
    Arena forward(nullptr), backward(nullptr);
    const ForwardScratch<T> forward_scratch(g, forward);
    const BackwardScratch<T> backward_scratch(g, backward);
    return std::max(forward.used(), backward.used()) + product_workspace(g, dtype);
  });
}

void rnn_forward(Queue queue, const RnnGeometry& g, const ConstView& x, const ConstView& lengths, const ConstView& h0, const ConstView& c0, const RnnWeights& weights,
                 const View& y, const View& h_n, const View& c_n, Workspace reserve, Workspace workspace) {
  dispatch_real(y.dtype, "rnn", [&](auto zero) { forward_typed<decltype(zero)>(queue, g, x, lengths, h0, c0, weights, y, h_n, c_n, reserve, workspace); });
}

void rnn_backward(Queue queue, const RnnGeometry& g, const ConstView& x, const ConstView& lengths, const ConstView& h0, const ConstView& c0, const RnnWeights& weights,
                  const ConstView& y, Workspace reserve, const ConstView& dy, const ConstView& dh_n, const ConstView& dc_n, const View& dx, const View& dh0,
                  const View& dc0, const RnnGradients& gradients, Workspace workspace) {
  dispatch_real(x.dtype, "rnn_backward", [&](auto zero) {
    backward_typed<decltype(zero)>(queue, g, x, lengths, h0, c0, weights, y, reserve, dy, dh_n, dc_n, dx, dh0, dc0, gradients, workspace);
  });
}

}  // namespace

void add_rnn(KernelTable& t) {
  t.rnn_reserve = rnn_reserve;
  t.rnn_workspace = rnn_workspace;
  t.rnn_forward = rnn_forward;
  t.rnn_backward = rnn_backward;
}

}  // namespace fovea::kernels::cuda
