// One recurrent layer (LSTM, GRU, RNN with tanh or relu; one or both directions) over a whole sequence, forward and backward. The cells: rnn_cells.cpp.
// Layout: x [time,batch,input], y [time,batch,directions * hidden], weights as PyTorch's; all contiguous. Overwrites its outputs. Sums in the element type.
//
//   forward   gates = x W_ih^T + b_ih for all steps as one product; then step by step gates += h W_hh^T + b_hh and the cell's arithmetic
//   backward  step by step dgates and dh = dgates W_hh; then over all steps as one product each dx = dgates W_ih, dW_ih = dgates^T x, dW_hh = dgates^T h_previous
//
// The recurrent weights are packed once a sequence and stay in the second-level cache. Directions, and blocks of samples, are independent of each other: they run
// on threads of their own, without waiting for each other at every step. Deterministic, whatever the number of threads (gemm.h, note on the order of a sum).
// Floor: 2 time batch directions gates hidden (input + hidden) FLOPs forward, twice that backward.
//
// Note [Lengths]
// At step t only samples with length > t are touched, and their rows go through the product in runs of neighbours: sorted lengths make one run, any other order
// gives the same numbers in more pieces. A finished sample's y is zero and its state stays, which is the final state; the reverse direction takes up a sample at
// its last step, from its initial state. Rows of dgates past the end are zero, so the products over all steps need not know of lengths; x must be finite there.
#include <algorithm>
#include <cstring>

#include <fovea/kernels/cpu/arena.h>
#include <fovea/kernels/cpu/gemm.h>
#include <fovea/kernels/cpu/rnn_cells.h>

namespace fovea::kernels {
namespace {

using RnnWeights = KernelTable::RnnWeights;
using RnnGradients = KernelTable::RnnGradients;

constexpr int64_t round_up(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

// Rows a power of two apart would share few sets of the first-level cache, so rows of our own memory are a line longer than that.
int64_t row_pitch(int64_t columns) { return round_up(columns, 16) + 16; }

// What forward leaves for backward, for each direction: the gates' activations and the cell states (LSTM) or the recurrent share of n (GRU), for every step.
// The plain RNN needs y alone.
template <class T>
struct Reserve {
  T* gates[2] = {};
  T* state[2] = {};

  Reserve(const RnnGeometry& g, Arena& memory) {
    if (g.gates() == 1) return;
    for (int64_t d = 0; d < g.directions; ++d) {
      gates[d] = memory.take<T>(g.time * g.batch * row_pitch(g.gates() * g.hidden_size));
      state[d] = memory.take<T>(g.time * g.batch * g.hidden_size);
    }
  }
};

// The recurrent weights packed for gates += h W_hh^T; the GRU's n separately, since r stands between its product and the rest.
template <class T>
struct ForwardScratch {
  T *gates[2] = {}, *h[2] = {}, *c[2] = {}, *packed[2] = {}, *packed_n[2] = {}, *hidden_n[2] = {};

  ForwardScratch(const RnnGeometry& g, Arena& memory) {
    const int64_t hidden = g.hidden_size, rows = g.gates() * hidden;
    for (int64_t d = 0; d < g.directions; ++d) {
      gates[d] = memory.take<T>(g.time * g.batch * row_pitch(rows));
      h[d] = memory.take<T>(g.batch * row_pitch(hidden));
      c[d] = memory.take<T>(g.batch * hidden);
      packed[d] = memory.take<T>(gemm<T>().packed_size(hidden, g.cell == RnnCell::gru ? 2 * hidden : rows));
      if (g.cell != RnnCell::gru) continue;
      packed_n[d] = memory.take<T>(gemm<T>().packed_size(hidden, hidden));
      hidden_n[d] = memory.take<T>(g.batch * hidden);
    }
  }
};

template <class T>
struct BackwardScratch {
  T *dgates[2] = {}, *dgates_hidden[2] = {}, *dh[2] = {}, *dc[2] = {}, *packed[2] = {}, *zeros = nullptr, *first_dgates = nullptr;

  BackwardScratch(const RnnGeometry& g, Arena& memory) {
    const int64_t hidden = g.hidden_size, rows = g.gates() * hidden;
    for (int64_t d = 0; d < g.directions; ++d) {
      dgates[d] = memory.take<T>(g.time * g.batch * row_pitch(rows));
      dgates_hidden[d] = g.cell == RnnCell::gru ? memory.take<T>(g.time * g.batch * row_pitch(rows)) : dgates[d];
      dh[d] = memory.take<T>(g.batch * row_pitch(hidden));
      dc[d] = memory.take<T>(g.batch * hidden);
      packed[d] = memory.take<T>(gemm<T>().packed_size(rows, hidden));
    }
    zeros = memory.take<T>(hidden);
    first_dgates = memory.take<T>(g.batch * row_pitch(rows));
  }
};

ConstView matrix(const void* data, DType dtype, int64_t rows, int64_t columns, int64_t row_stride, int64_t column_stride) {
  ConstView v;
  v.data = data;
  v.dtype = dtype;
  v.shape = {rows, columns};
  v.strides = {row_stride, column_stride};
  return v;
}

View mutable_matrix(void* data, DType dtype, int64_t rows, int64_t columns, int64_t row_stride) {
  View v;
  v.data = data;
  v.dtype = dtype;
  v.shape = {rows, columns};
  v.strides = {row_stride, 1};
  return v;
}

void product(const ConstView& a, const ConstView& b, const ConstView& bias, bool accumulates, const View& y, Workspace scratch) {
  const MatmulGeometry g{1, a.size(0), b.size(1), a.size(1)};
  cpu_table().matmul(nullptr, g, {1, accumulates ? 1.0 : 0.0}, a, b, bias, y, scratch);
}

// The largest of the products below.
int64_t product_workspace(const RnnGeometry& g, DType dtype) {
  const int64_t rows = g.gates() * g.hidden_size, steps = g.time * g.batch;
  int64_t bytes = 0;
  for (const MatmulGeometry& m : {MatmulGeometry{1, steps, rows, g.input_size}, MatmulGeometry{1, steps, g.input_size, rows},
                                  MatmulGeometry{1, rows, g.input_size, steps}, MatmulGeometry{1, rows, g.hidden_size, steps},
                                  MatmulGeometry{1, rows, g.hidden_size, g.batch}})
    bytes = std::max(bytes, cpu_table().matmul_workspace(m, dtype));
  return bytes;
}

struct Lengths {
  const int64_t* data;                         // null: all are `time`
  int64_t time, batch;

  int64_t operator[](int64_t b) const { return data ? data[b] : time; }
  int64_t longest() const {
    if (!data) return time;
    return batch == 0 ? 0 : *std::max_element(data, data + batch);
  }
};

// Calls f(first, end) for each run of neighbouring samples in [begin, end) that are longer than t.
template <class F>
void for_active_runs(const Lengths& lengths, int64_t t, int64_t begin, int64_t end, const F& f) {
  for (int64_t b = begin; b < end;) {
    if (lengths[b] <= t) {
      ++b;
      continue;
    }
    const int64_t first = b;
    while (b < end && lengths[b] > t) ++b;
    f(first, b);
  }
}

// Calls f(direction, first, end) for every direction and block of samples, in parallel. Results do not depend on the blocks.
template <class F>
void for_sample_blocks(const RnnGeometry& g, const F& f) {
  constexpr int64_t unit = 8;                  // rows of a tile: thinner blocks only read the weights more often
  const int64_t wanted = std::max<int64_t>(1, num_threads() / g.directions);
  const int64_t size = std::max(unit, round_up((g.batch + wanted - 1) / wanted, unit)), blocks = (g.batch + size - 1) / size;
  parallel_for(g.directions * blocks, 1, [&](int64_t task, int64_t) {
    const int64_t block = task % blocks;
    f(task / blocks, block * size, std::min(g.batch, (block + 1) * size));
  });
}

// Row [direction][b] of an initial or final state, or null if the state was not given.
template <class T, class AnyView>
auto state_row(const AnyView& state, const RnnGeometry& g, int64_t direction, int64_t b) {
  auto* p = state.template as<T>();
  return p ? p + (direction * g.batch + b) * g.hidden_size : nullptr;
}

template <class T>
void copy_or_zero(T* to, const T* from, int64_t count) {
  if (from) std::memcpy(to, from, static_cast<size_t>(count) * sizeof(T));
  else std::fill(to, to + count, T(0));
}

template <class T>
struct Forward {
  const RnnGeometry& g;
  Lengths lengths;
  const RnnWeights& weights;
  T *gates[2], *saved[2];                      // saved: null when no backward follows
  const ForwardScratch<T>& scratch;
  T* y;

  int64_t hidden() const { return g.hidden_size; }
  int64_t pitch() const { return row_pitch(g.gates() * g.hidden_size); }

  void pack(int64_t d) const {
    const T* w = weights.w_hh[d].template as<T>();
    const bool is_gru = g.cell == RnnCell::gru;
    gemm<T>().pack(w, 1, hidden(), hidden(), (is_gru ? 2 : g.gates()) * hidden(), scratch.packed[d]);
    if (is_gru) gemm<T>().pack(w + 2 * hidden() * hidden(), 1, hidden(), hidden(), hidden(), scratch.packed_n[d]);
  }

  // gates += h W_hh^T + b_hh for samples [first, end).
  void recurrent_share(int64_t d, int64_t t, int64_t first, int64_t end) const {
    const int64_t h_pitch = row_pitch(hidden()), row = t * g.batch + first;
    const T *h = scratch.h[d] + first * h_pitch, *bias = weights.b_hh[d].template as<T>();
    const bool is_gru = g.cell == RnnCell::gru;
    gemm<T>().run_packed(end - first, (is_gru ? 2 : g.gates()) * hidden(), hidden(), h, h_pitch, scratch.packed[d], bias, true, gates[d] + row * pitch(), pitch());
    if (is_gru)
      gemm<T>().run_packed(end - first, hidden(), hidden(), h, h_pitch, scratch.packed_n[d], bias ? bias + 2 * hidden() : nullptr, false,
                           hidden_n(d, t, first), hidden());
  }

  T* hidden_n(int64_t d, int64_t t, int64_t b) const { return saved[d] ? saved[d] + (t * g.batch + b) * hidden() : scratch.hidden_n[d] + b * hidden(); }

  void cell(int64_t d, int64_t t, int64_t b) const {
    const int64_t row = t * g.batch + b;
    T *gate = gates[d] + row * pitch(), *h = scratch.h[d] + b * row_pitch(hidden()), *out = y + (row * g.directions + d) * hidden();
    switch (g.cell) {
      case RnnCell::lstm:
        return rnn_cells<T>().lstm_forward(hidden(), gate, scratch.c[d] + b * hidden(), saved[d] ? saved[d] + row * hidden() : nullptr, h, out);
      case RnnCell::gru: return rnn_cells<T>().gru_forward(hidden(), gate, hidden_n(d, t, b), h, out);
      default: return rnn_cells<T>().rnn_forward(hidden(), g.cell == RnnCell::rnn_relu, gate, h, out);
    }
  }

  void run(int64_t d, int64_t begin, int64_t end) const {
    for (int64_t i = 0; i < g.time; ++i) {
      const int64_t t = d == 0 ? i : g.time - 1 - i;
      for_active_runs(lengths, t, begin, end, [&](int64_t first, int64_t last) {
        recurrent_share(d, t, first, last);
        for (int64_t b = first; b < last; ++b) cell(d, t, b);
      });
      for (int64_t b = begin; b < end; ++b)
        if (lengths[b] <= t) copy_or_zero<T>(y + ((t * g.batch + b) * g.directions + d) * hidden(), nullptr, hidden());
    }
  }
};

template <class T>
void forward_typed(const RnnGeometry& g, const ConstView& x, const ConstView& lengths, const ConstView& h0, const ConstView& c0, const RnnWeights& weights,
                   const View& y, const View& h_n, const View& c_n, Workspace reserve, Workspace workspace) {
  Arena scratch_memory(workspace.data), reserve_memory(reserve.data);
  const ForwardScratch<T> scratch(g, scratch_memory);
  const Reserve<T> kept(g, reserve_memory);
  Forward<T> run{g, {lengths.as<int64_t>(), g.time, g.batch}, weights, {}, {}, scratch, y.as<T>()};
  const int64_t hidden = g.hidden_size, rows = g.gates() * hidden, steps = run.lengths.longest() * g.batch;
  for (int64_t d = 0; d < g.directions; ++d) {
    run.gates[d] = kept.gates[d] ? kept.gates[d] : scratch.gates[d];
    run.saved[d] = kept.state[d];
    ConstView bias = weights.b_ih[d];
    product(matrix(x.data, x.dtype, steps, g.input_size, g.input_size, 1), matrix(weights.w_ih[d].data, x.dtype, g.input_size, rows, 1, g.input_size), bias,
            false, mutable_matrix(run.gates[d], x.dtype, steps, rows, run.pitch()), scratch_memory.rest(workspace));
  }
  parallel_for(g.directions, 1, [&](int64_t d, int64_t) { run.pack(d); });
  for_sample_blocks(g, [&](int64_t d, int64_t begin, int64_t end) {
    const int64_t h_pitch = row_pitch(hidden);
    for (int64_t b = begin; b < end; ++b) {
      copy_or_zero<T>(scratch.h[d] + b * h_pitch, state_row<T>(h0, g, d, b), hidden);
      if (g.has_cell_state()) copy_or_zero<T>(scratch.c[d] + b * hidden, state_row<T>(c0, g, d, b), hidden);
    }
    run.run(d, begin, end);
    for (int64_t b = begin; b < end; ++b) {
      copy_or_zero<T>(state_row<T>(h_n, g, d, b), scratch.h[d] + b * h_pitch, hidden);
      if (g.has_cell_state()) copy_or_zero<T>(state_row<T>(c_n, g, d, b), scratch.c[d] + b * hidden, hidden);
    }
  });
}

template <class T>
struct Backward {
  const RnnGeometry& g;
  Lengths lengths;
  const Reserve<T>& kept;
  const BackwardScratch<T>& scratch;
  const ConstView &h0, &c0;
  const T *y, *dy;

  int64_t hidden() const { return g.hidden_size; }
  int64_t rows() const { return g.gates() * g.hidden_size; }
  int64_t pitch() const { return row_pitch(rows()); }
  const T* output(const T* p, int64_t d, int64_t t, int64_t b) const { return p ? p + ((t * g.batch + b) * g.directions + d) * hidden() : nullptr; }
  const T* or_zeros(const T* p) const { return p ? p : scratch.zeros; }

  void cell(int64_t d, int64_t t, int64_t b) const {
    const bool is_first = d == 0 ? t == 0 : t == lengths[b] - 1;
    const int64_t row = t * g.batch + b, previous = d == 0 ? t - 1 : t + 1;
    const T *gates = kept.gates[d] ? kept.gates[d] + row * pitch() : nullptr, *dout = output(dy, d, t, b);      // a plain RNN keeps none
    T *dh = scratch.dh[d] + b * row_pitch(hidden()), *dgates = scratch.dgates[d] + row * pitch();
    switch (g.cell) {
      case RnnCell::lstm: {
        const T* c_previous = is_first ? or_zeros(state_row<T>(c0, g, d, b)) : kept.state[d] + (previous * g.batch + b) * hidden();
        return rnn_cells<T>().lstm_backward(hidden(), gates, c_previous, kept.state[d] + row * hidden(), dout, dh, scratch.dc[d] + b * hidden(), dgates);
      }
      case RnnCell::gru: {
        const T* h_previous = is_first ? or_zeros(state_row<T>(h0, g, d, b)) : output(y, d, previous, b);
        return rnn_cells<T>().gru_backward(hidden(), gates, kept.state[d] + row * hidden(), h_previous, dout, dh, dgates, scratch.dgates_hidden[d] + row * pitch());
      }
      default: return rnn_cells<T>().rnn_backward(hidden(), g.cell == RnnCell::rnn_relu, output(y, d, t, b), dout, dh, dgates);
    }
  }

  void clear(int64_t d, int64_t t, int64_t b) const {
    const int64_t row = t * g.batch + b;
    copy_or_zero<T>(scratch.dgates[d] + row * pitch(), nullptr, rows());
    if (g.cell == RnnCell::gru) copy_or_zero<T>(scratch.dgates_hidden[d] + row * pitch(), nullptr, rows());
  }

  void run(int64_t d, int64_t steps, int64_t begin, int64_t end) const {
    const int64_t h_pitch = row_pitch(hidden());
    for (int64_t i = 0; i < steps; ++i) {
      const int64_t t = d == 0 ? steps - 1 - i : i;
      for_active_runs(lengths, t, begin, end, [&](int64_t first, int64_t last) {
        for (int64_t b = first; b < last; ++b) cell(d, t, b);
        const T* dgates = scratch.dgates_hidden[d] + (t * g.batch + first) * pitch();
        gemm<T>().run_packed(last - first, hidden(), rows(), dgates, pitch(), scratch.packed[d], nullptr, g.cell == RnnCell::gru, scratch.dh[d] + first * h_pitch,
                             h_pitch);
      });
      for (int64_t b = begin; b < end; ++b)
        if (lengths[b] <= t) clear(d, t, b);
    }
  }

  // dW_hh = dgates^T h_previous: h_previous is y one step earlier (in the direction's order), and h0 for each sample's first step. Where that first step follows
  // on padding, y is zero there and adds nothing.
  void weight_hh(int64_t d, int64_t steps, const View& dw, Workspace products) const {
    const DType dtype = dw.dtype;
    const int64_t later = std::max<int64_t>(0, steps - 1), dgates_from = d == 0 ? std::min<int64_t>(1, steps) : 0, y_from = d == 0 ? 0 : std::min<int64_t>(1, steps);
    const T* dgates = scratch.dgates_hidden[d];
    product(matrix(dgates + dgates_from * g.batch * pitch(), dtype, rows(), later * g.batch, 1, pitch()),
            matrix(y + (y_from * g.batch * g.directions + d) * hidden(), dtype, later * g.batch, hidden(), g.directions * hidden(), 1), {}, false, dw, products);
    if (!h0 || steps == 0) return;
    for (int64_t b = 0; b < g.batch; ++b) {
      const int64_t t = d == 0 || lengths[b] == 0 ? 0 : lengths[b] - 1;
      copy_or_zero<T>(scratch.first_dgates + b * pitch(), dgates + (t * g.batch + b) * pitch(), rows());
    }
    product(matrix(scratch.first_dgates, dtype, rows(), g.batch, 1, pitch()), matrix(state_row<T>(h0, g, d, 0), dtype, g.batch, hidden(), hidden(), 1), {}, true,
            dw, products);
  }
};

template <class T>
void backward_typed(const RnnGeometry& g, const ConstView& x, const ConstView& lengths, const ConstView& h0, const ConstView& c0, const RnnWeights& weights,
                    const ConstView& y, Workspace reserve, const ConstView& dy, const ConstView& dh_n, const ConstView& dc_n, const View& dx, const View& dh0,
                    const View& dc0, const RnnGradients& gradients, Workspace workspace) {
  Arena scratch_memory(workspace.data), reserve_memory(reserve.data);
  const BackwardScratch<T> scratch(g, scratch_memory);
  const Reserve<T> kept(g, reserve_memory);
  const Workspace products = scratch_memory.rest(workspace);
  const Backward<T> run{g, {lengths.as<int64_t>(), g.time, g.batch}, kept, scratch, h0, c0, y.as<T>(), dy.as<T>()};
  const int64_t hidden = g.hidden_size, rows = run.rows(), pitch = run.pitch(), longest = run.lengths.longest(), steps = longest * g.batch;
  std::fill(scratch.zeros, scratch.zeros + hidden, T(0));
  parallel_for(g.directions, 1, [&](int64_t d, int64_t) { gemm<T>().pack(weights.w_hh[d].template as<T>(), hidden, 1, rows, hidden, scratch.packed[d]); });
  for_sample_blocks(g, [&](int64_t d, int64_t begin, int64_t end) {
    const int64_t h_pitch = row_pitch(hidden);
    for (int64_t b = begin; b < end; ++b) {
      copy_or_zero<T>(scratch.dh[d] + b * h_pitch, state_row<T>(dh_n, g, d, b), hidden);
      copy_or_zero<T>(scratch.dc[d] + b * hidden, state_row<T>(dc_n, g, d, b), hidden);
    }
    run.run(d, longest, begin, end);
    for (int64_t b = begin; b < end; ++b) {
      if (dh0) copy_or_zero<T>(state_row<T>(dh0, g, d, b), scratch.dh[d] + b * h_pitch, hidden);
      if (dc0) copy_or_zero<T>(state_row<T>(dc0, g, d, b), scratch.dc[d] + b * hidden, hidden);
    }
  });
  const ConstView all_x = matrix(x.data, x.dtype, steps, g.input_size, g.input_size, 1);
  for (int64_t d = 0; d < g.directions; ++d) {
    const ConstView w_ih = matrix(weights.w_ih[d].data, x.dtype, rows, g.input_size, g.input_size, 1);
    if (dx) product(matrix(scratch.dgates[d], x.dtype, steps, rows, pitch, 1), w_ih, {}, d > 0, mutable_matrix(dx.data, x.dtype, steps, g.input_size, g.input_size), products);
    if (gradients.w_ih[d]) product(matrix(scratch.dgates[d], x.dtype, rows, steps, 1, pitch), all_x, {}, false, gradients.w_ih[d], products);
    if (gradients.w_hh[d]) run.weight_hh(d, longest, gradients.w_hh[d], products);
    if (gradients.b_ih[d]) rnn_cells<T>().column_sums(steps, rows, scratch.dgates[d], pitch, gradients.b_ih[d].template as<T>());
    if (gradients.b_hh[d]) rnn_cells<T>().column_sums(steps, rows, scratch.dgates_hidden[d], pitch, gradients.b_hh[d].template as<T>());
  }
  if (dx) std::fill(dx.as<T>() + steps * g.input_size, dx.as<T>() + g.time * g.batch * g.input_size, T(0));
}

int64_t rnn_reserve(const RnnGeometry& g, DType dtype) {
  return dispatch_real(dtype, "rnn", [&](auto zero) {
    Arena memory(nullptr);
    const Reserve<decltype(zero)> reserve(g, memory);
    return memory.used();
  });
}

int64_t rnn_workspace(const RnnGeometry& g, DType dtype) {
  return dispatch_real(dtype, "rnn", [&](auto zero) {
    Arena forward(nullptr), backward(nullptr);
    const ForwardScratch<decltype(zero)> forward_scratch(g, forward);
    const BackwardScratch<decltype(zero)> backward_scratch(g, backward);
    return std::max(forward.used(), backward.used()) + product_workspace(g, dtype);
  });
}

void rnn_forward(Queue, const RnnGeometry& g, const ConstView& x, const ConstView& lengths, const ConstView& h0, const ConstView& c0, const RnnWeights& weights,
                 const View& y, const View& h_n, const View& c_n, Workspace reserve, Workspace workspace) {
  dispatch_real(x.dtype, "rnn", [&](auto zero) { forward_typed<decltype(zero)>(g, x, lengths, h0, c0, weights, y, h_n, c_n, reserve, workspace); });
}

void rnn_backward(Queue, const RnnGeometry& g, const ConstView& x, const ConstView& lengths, const ConstView& h0, const ConstView& c0, const RnnWeights& weights,
                  const ConstView& y, Workspace reserve, const ConstView& dy, const ConstView& dh_n, const ConstView& dc_n, const View& dx, const View& dh0,
                  const View& dc0, const RnnGradients& gradients, Workspace workspace) {
  dispatch_real(x.dtype, "rnn", [&](auto zero) {
    backward_typed<decltype(zero)>(g, x, lengths, h0, c0, weights, y, reserve, dy, dh_n, dc_n, dx, dh0, dc0, gradients, workspace);
  });
}

}  // namespace

void add_rnn(KernelTable& t) {
  t.rnn_reserve = rnn_reserve;
  t.rnn_workspace = rnn_workspace;
  t.rnn_forward = rnn_forward;
  t.rnn_backward = rnn_backward;
}

}  // namespace fovea::kernels
