// A step of a recurrent layer, backward: dh = what came from the step after + dgates W_hh, and the cell. rnn.cu says what is computed, rnn_step.h how the product is.
// Reads the step's gates, dy and dgates of the step after; overwrites dgates of its own, dh and dc, past the first step dh0 and dc0. Deterministic.
// Floor of a step: reading W_hh once (from L2, where it stays), or 2 batch gates hidden^2 FLOPs.
#include <fovea/kernels/cuda/rnn_step.h>

namespace fovea::kernels::cuda {
namespace {

// What one unit's cell knows of the step when its gradient comes.
template <class A, int gates>
struct CellValues {
  A gate[gates] = {};
  A kept = 0, c_previous = 0, h_previous = 0, h = 0;
};

// The gradients of one unit's gates before their activations; returns the share of dh that goes to the step before by itself. dgate_hidden is the GRU's last gradient
// as h has it.
template <RnnCell cell, class A>
__device__ A run_cell_backward(const CellValues<A, gates_of<cell>>& of, A dh, A& dc, A* dgate, A& dgate_hidden) {
  if constexpr (cell == RnnCell::lstm) {
    const A in = of.gate[0], forget = of.gate[1], candidate = of.gate[2], out = of.gate[3], squashed = std::tanh(of.kept);
    const A dstate = dc + dh * out * (A(1) - squashed * squashed);
    dgate[0] = dstate * candidate * in * (A(1) - in);
    dgate[1] = dstate * of.c_previous * forget * (A(1) - forget);
    dgate[2] = dstate * in * (A(1) - candidate * candidate);
    dgate[3] = dh * squashed * out * (A(1) - out);
    dc = dstate * forget;
    return A(0);
  } else if constexpr (cell == RnnCell::gru) {
    const A reset = of.gate[0], update = of.gate[1], candidate = of.gate[2];
    const A dcandidate = dh * (A(1) - update) * (A(1) - candidate * candidate);
    dgate[0] = dcandidate * of.kept * reset * (A(1) - reset);
    dgate[1] = dh * (of.h_previous - candidate) * update * (A(1) - update);
    dgate[2] = dcandidate;
    dgate_hidden = dcandidate * reset;
    return dh * update;
  } else {
    dgate[0] = cell == RnnCell::rnn_tanh ? dh * (A(1) - of.h * of.h) : of.h > A(0) ? dh : A(0);
    return A(0);
  }
}

template <class T, RnnCell kind>
struct BackwardCell {
  using Step = BackwardStep<T>;
  using A = Accumulate<T>;
  static constexpr int sums = 1, gates = gates_of<kind>;
  CellValues<A, gates> values;
  A dh = 0, dy = 0, dc = 0;
  bool is_over = false;                                 // the sample's sequence has ended

  __device__ void load(const Step& s, int d, int64_t sample, int64_t unit) {
    const int64_t hidden = s.sizes.hidden, batch = s.sizes.batch, at = sample * hidden + unit, t = s.step(d), before = d == 0 ? t - 1 : t + 1, row = t * batch + sample;
    const auto arriving = [&](const A* between_steps, const T* last) { return s.i > 0 ? between_steps[at] : last ? widen(last[at]) : A(0); };
    dh = arriving(s.dh[d], s.dh_n[d]);
    if constexpr (kind == RnnCell::lstm) dc = arriving(s.dc[d], s.dc_n[d]);
    if (s.i == s.sizes.time) return;
    const int64_t length = s.lengths ? s.lengths[sample] : s.sizes.time;
    is_over = length <= t;
    if (is_over) return;
    const auto output = [&](const T* p, int64_t step) { return widen(p[((step * batch + sample) * s.sizes.directions + d) * hidden + unit]); };
    const auto initial = [&](const T* p) { return p ? widen(p[at]) : A(0); };
    const bool is_first = d == 0 ? t == 0 : t == length - 1;
    if constexpr (gates > 1) {
      values.kept = s.kept[d][row * hidden + unit];
#pragma unroll
      for (int i = 0; i < gates; ++i) values.gate[i] = s.gates[d][(row * gates + i) * hidden + unit];
    }
    if constexpr (kind == RnnCell::lstm) values.c_previous = is_first ? initial(s.c0[d]) : s.kept[d][(before * batch + sample) * hidden + unit];
    if constexpr (kind == RnnCell::gru) values.h_previous = is_first ? initial(s.h0[d]) : output(s.y, before);
    if constexpr (gates == 1) values.h = output(s.y, t);
    if (s.dy) dy = output(s.dy, t);
  }

  __device__ void finish(const Step& s, int d, int64_t sample, int64_t unit, const A* product) {
    const int64_t hidden = s.sizes.hidden, at = sample * hidden + unit;
    const A total = dh + product[0];
    if (s.i == s.sizes.time) {                          // past the first step: these are the gradients of the initial state
      if (s.dh0[d]) s.dh0[d][at] = narrow<T>(total);
      if (s.dc0[d]) s.dc0[d][at] = narrow<T>(dc);
      return;
    }
    const int64_t row = (s.step(d) * s.sizes.batch + sample) * s.dgates_pitch;
    T *to = s.dgates[d] + row, *to_hidden = s.dgates_hidden[d] + row;
    for (int64_t i = s.rows; unit == hidden - 1 && i < s.dgates_pitch; ++i) to_hidden[i] = T{};
    A dgate[gates] = {}, dgate_hidden = A(0);
    s.dh[d][at] = is_over ? total : run_cell_backward<kind>(values, total + dy, dc, dgate, dgate_hidden);
    if constexpr (kind == RnnCell::lstm) s.dc[d][at] = dc;
#pragma unroll
    for (int i = 0; i < gates; ++i) {
      to[i * hidden + unit] = narrow<T>(dgate[i]);
      if constexpr (kind == RnnCell::gru) to_hidden[i * hidden + unit] = narrow<T>(i == gates - 1 ? dgate_hidden : dgate[i]);
    }
  }
};

}  // namespace

template <class T>
void launch_backward_step(Queue queue, const RnnPlan& plan, RnnCell cell, const BackwardStep<T>& s) {
  with_cell(cell, [&](auto kind) { launch_step<T, 2, BackwardCell<T, kind>>(queue, plan, s); });
}

template void launch_backward_step(Queue, const RnnPlan&, RnnCell, const BackwardStep<float>&);
template void launch_backward_step(Queue, const RnnPlan&, RnnCell, const BackwardStep<double>&);
template void launch_backward_step(Queue, const RnnPlan&, RnnCell, const BackwardStep<float16>&);
template void launch_backward_step(Queue, const RnnPlan&, RnnCell, const BackwardStep<bfloat16>&);

}  // namespace fovea::kernels::cuda
