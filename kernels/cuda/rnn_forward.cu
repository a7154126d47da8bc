// A step of a recurrent layer, forward: gates += b_ih + h W_hh^T + b_hh, and the cell. rnn.cu says what is computed, rnn_step.h how the product is.
// Reads and overwrites the step's gates and c, reads h, overwrites h_next and y, in the last step h_n and c_n. Deterministic.
// Floor of a step: reading W_hh once (from L2, where it stays), or 2 batch gates hidden^2 FLOPs.
#include <fovea/kernels/cuda/rnn_step.h>

namespace fovea::kernels::cuda {
namespace {

template <class A>
__device__ A sigmoid(A x) { return A(1) / (A(1) + std::exp(-x)); }

// The new state of one unit. `gate` holds what x gives and receives the activations, `c` the state's own memory (LSTM); `recurrent` is the share of h, biases included.
template <RnnCell cell, class A>
__device__ A run_cell(const A* recurrent, A* gate, A h, A& c) {
  if constexpr (cell == RnnCell::lstm) {
    const A in = sigmoid(gate[0] + recurrent[0]), forget = sigmoid(gate[1] + recurrent[1]), candidate = std::tanh(gate[2] + recurrent[2]);
    const A out = sigmoid(gate[3] + recurrent[3]);
    c = forget * c + in * candidate;
    gate[0] = in;
    gate[1] = forget;
    gate[2] = candidate;
    gate[3] = out;
    return out * std::tanh(c);
  } else if constexpr (cell == RnnCell::gru) {
    const A reset = sigmoid(gate[0] + recurrent[0]), update = sigmoid(gate[1] + recurrent[1]), candidate = std::tanh(gate[2] + reset * recurrent[2]);
    gate[0] = reset;
    gate[1] = update;
    gate[2] = candidate;
    return (A(1) - update) * candidate + update * h;
  } else {
    const A sum = gate[0] + recurrent[0];
    return cell == RnnCell::rnn_tanh ? std::tanh(sum) : sum > A(0) || sum != sum ? sum : A(0);
  }
}

template <class T, RnnCell kind>
struct ForwardCell {
  using Step = ForwardStep<T>;
  using A = Accumulate<T>;
  static constexpr int sums = gates_of<kind>;
  A gate[sums] = {}, bias[sums] = {}, c = 0;
  T h{};
  bool is_over = false;                                 // the sample's sequence has ended

  __device__ void load(const Step& s, int d, int64_t sample, int64_t unit) {
    const int64_t hidden = s.sizes.hidden, t = s.sizes.step(d, s.i), row = t * s.sizes.batch + sample, at = sample * hidden + unit;
    is_over = s.lengths && s.lengths[sample] <= t;
    h = s.h[d] ? s.h[d][sample * s.h_pitch + unit] : T{};
    if constexpr (kind == RnnCell::lstm) c = s.i > 0 ? s.c[d][at] : s.c0[d] ? widen(s.c0[d][at]) : A(0);
#pragma unroll
    for (int i = 0; i < sums; ++i) {
      gate[i] = s.gates[d][(row * sums + i) * hidden + unit];
      if (s.b_ih[d]) gate[i] += widen(s.b_ih[d][i * hidden + unit]);
      bias[i] = s.b_hh[d] ? widen(s.b_hh[d][i * hidden + unit]) : A(0);
    }
  }

  __device__ void finish(const Step& s, int d, int64_t sample, int64_t unit, A* recurrent) {
    const int64_t hidden = s.sizes.hidden, row = s.sizes.step(d, s.i) * s.sizes.batch + sample, at = sample * hidden + unit;
    const bool is_last = s.i == s.sizes.time - 1;
    if (!is_over) {
#pragma unroll
      for (int i = 0; i < sums; ++i) recurrent[i] += bias[i];
      h = narrow<T>(run_cell<kind>(recurrent, gate, widen(h), c));
    }
    T* next = s.h_next[d] + sample * s.h_pitch;
    next[unit] = h;
    for (int64_t i = hidden; unit == hidden - 1 && i < s.h_pitch; ++i) next[i] = T{};
    s.y[(row * s.sizes.directions + d) * hidden + unit] = is_over ? T{} : h;
    if (is_last) s.h_n[d][at] = h;
    if constexpr (kind == RnnCell::lstm) {
      s.c[d][at] = c;
      if (is_last) s.c_n[d][at] = narrow<T>(c);
    }
    if (is_over || !s.kept[d]) return;
    s.kept[d][row * hidden + unit] = kind == RnnCell::lstm ? c : recurrent[sums - 1];
#pragma unroll
    for (int i = 0; i < sums; ++i) s.gates[d][(row * sums + i) * hidden + unit] = gate[i];
  }
};

}  // namespace

template <class T>
void launch_forward_step(Queue queue, const RnnPlan& plan, RnnCell cell, const ForwardStep<T>& s) {
  with_cell(cell, [&](auto kind) { launch_step<T, gates_of<kind>, ForwardCell<T, kind>>(queue, plan, s); });
}

template void launch_forward_step(Queue, const RnnPlan&, RnnCell, const ForwardStep<float>&);
template void launch_forward_step(Queue, const RnnPlan&, RnnCell, const ForwardStep<double>&);
template void launch_forward_step(Queue, const RnnPlan&, RnnCell, const ForwardStep<float16>&);
template void launch_forward_step(Queue, const RnnPlan&, RnnCell, const ForwardStep<bfloat16>&);

}  // namespace fovea::kernels::cuda
