// One recurrent layer (LSTM, GRU, RNN with tanh or relu; one or both directions) over a whole sequence on the GPU, forward and backward.
// What is computed, layouts and the meaning of lengths: kernels/cpu/rnn.cpp. float32, float64, float16, bfloat16. Overwrites its outputs. Deterministic.
//
//   forward   gates = x W_ih^T for all steps as one product; then a kernel a step, both directions at once: gates += b_ih + h W_hh^T + b_hh and the cell
//   backward  a kernel a step: dh = what came from the step after + dgates W_hh, and the cell; then over all steps as one product each
//             dx = dgates W_ih, dW_ih = dgates^T x, dW_hh = dgates^T h_previous, and the biases' sums
// Floor of a step: reading W_hh once (from L2, where it stays), or 2 batch gates hidden^2 FLOPs. Which kernel computes a step: rnn_plan.h; how: rnn_step.h.
//
// Sums in float32 for the half types (in TF32's products for float32 where that is allowed), else in the element type, in an order that the shape alone decides. Of a
// half type, x, weights, y, h and dgates are in it; gates, c, dh and dc are float32 between the steps, and so is what backward is left in the reserve: an activation
// near 1 rounded to a half type would leave nothing of the gradient through it. Both directions' shares of dx, and the two of dW_hh with h0, are rounded in between.
//
// Note [No length is read on the host]
// All `time` steps are run, and a sample whose sequence has ended rests: forward hands its state on and writes zeros to y; backward adds what arrives to dh and
// writes zeros to dgates. So the products over all steps need not know of lengths, and nothing waits for the device.
//
// Note [Rows of whole copies]
// A step's kernel copies 16 bytes of a row at a time. So rows of h and dgates, which are memory of our own, are padded with zeros to whole copies, by whichever thread
// writes their last element. W_hh is read as it lies where that will do, and else copied so first; backward reads it transposed, a copy in any case.
#include <fovea/kernels/cpu/arena.h>
#include <fovea/kernels/cuda/core/launch.h>
#include <fovea/kernels/cuda/rnn_step.h>
#include <fovea/kernels/cuda/runtime.h>

namespace fovea::kernels::cuda {
namespace {

using RnnWeights = KernelTable::RnnWeights;
using RnnGradients = KernelTable::RnnGradients;

// to[b, :] = dgates [time, batch, pitch] of the step that sample b of direction d begins with.
template <class T>
__global__ void __launch_bounds__(256) gather_first(const T* dgates, const int64_t* lengths, int direction, int64_t time, int64_t batch, int64_t pitch, T* to) {
  for (int64_t i = global_thread(); i < batch * pitch; i += global_threads()) {
    const int64_t sample = i / pitch, length = lengths ? lengths[sample] : time;
    const int64_t t = direction == 0 ? 0 : length - 1;
    to[i] = length > 0 ? dgates[(t * batch + sample) * pitch + i % pitch] : T{};
  }
}

// --- host ---

// What forward leaves for backward: the gates' activations, and c or the recurrent share of n, for every step. The plain RNN needs y alone.
template <class T>
struct Reserve {
  using A = Accumulate<T>;
  A *gates[2] = {}, *kept[2] = {};
  Reserve(const RnnGeometry& g, Arena& memory) {
    for (int64_t d = 0; d < g.directions && g.gates() > 1; ++d) {
      gates[d] = memory.take<A>(g.time * g.batch * g.gates() * g.hidden_size);
      kept[d] = memory.take<A>(g.time * g.batch * g.hidden_size);
    }
  }
};

template <class T>
struct ForwardScratch {
  using A = Accumulate<T>;
  A *gates[2] = {}, *c[2] = {};
  T *h[2][2] = {}, *w_hh[2] = {};                            // h: of even and odd steps; w_hh: with rows of whole copies
  ForwardScratch(const RnnGeometry& g, Arena& memory) {
    const int64_t rows = g.gates() * g.hidden_size, pitch = whole_chunks<T>(g.hidden_size);
    for (int64_t d = 0; d < g.directions; ++d) {
      gates[d] = memory.take<A>(g.time * g.batch * rows);
      for (auto& parity : h) parity[d] = memory.take<T>(g.batch * pitch);
      if (g.has_cell_state()) c[d] = memory.take<A>(g.batch * g.hidden_size);
      w_hh[d] = memory.take<T>(rows * pitch);
    }
  }
};

template <class T>
struct BackwardScratch {
  using A = Accumulate<T>;
  T *dgates[2] = {}, *dgates_hidden[2] = {}, *w_hh[2] = {}, *first = nullptr;          // w_hh: transposed
  A *dh[2] = {}, *dc[2] = {};
  BackwardScratch(const RnnGeometry& g, Arena& memory) {
    const int64_t pitch = whole_chunks<T>(g.gates() * g.hidden_size);
    for (int64_t d = 0; d < g.directions; ++d) {
      dgates[d] = memory.take<T>(g.time * g.batch * pitch);
      dgates_hidden[d] = g.cell == RnnCell::gru ? memory.take<T>(g.time * g.batch * pitch) : dgates[d];
      w_hh[d] = memory.take<T>(g.hidden_size * pitch);
      dh[d] = memory.take<A>(g.batch * g.hidden_size);
      if (g.has_cell_state()) dc[d] = memory.take<A>(g.batch * g.hidden_size);
    }
    first = memory.take<T>(g.batch * pitch);
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

void product(Queue queue, const ConstView& a, const ConstView& b, bool accumulates, const View& y, Workspace scratch) {
  if (a.size(1) == 0 && accumulates) return;
  const MatmulGeometry g{1, a.size(0), b.size(1), a.size(1)};
  cuda_table(0).matmul(queue, g, {1, accumulates ? 1.0 : 0.0}, a, b, {}, y, scratch);
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

// A matrix into rows of `pitch` elements, what is left of them zero.
template <class T>
void copy_padded(Queue queue, const ConstView& from, T* to, int64_t pitch) {
  View target;
  target.data = to;
  target.dtype = from.dtype;
  target.shape = {from.size(0), pitch};
  target.strides = {pitch, 1};
  if (from.size(1) < pitch) cuda_table(0).fill(queue, 0, target);
  target.shape = from.shape;
  cuda_table(0).copy(queue, from, target);
}

void copy_or_clear(Queue queue, const ConstView& from, const View& to) {
  if (from) cuda_table(0).copy(queue, from, to);
  else cuda_table(0).fill(queue, 0, to);
}

// Direction d of a state [directions, batch, hidden] that may not be there.
template <class T, class AnyView>
auto* state_of(const AnyView& v, const RnnGeometry& g, int64_t d) {
  auto* p = v.template as<T>();
  return p ? p + d * g.batch * g.hidden_size : nullptr;
}

RnnSizes sizes_of(const RnnGeometry& g) { return {g.time, g.batch, g.hidden_size, g.directions}; }

template <class T>
void forward_typed(Queue queue, const RnnGeometry& g, const ConstView& x, const ConstView& lengths, const ConstView& h0, const ConstView& c0, const RnnWeights& weights,
                   const View& y, const View& h_n, const View& c_n, Workspace reserve, Workspace workspace) {
  if (g.batch == 0) return;
  if (g.time == 0) {
    copy_or_clear(queue, h0, h_n);
    if (g.has_cell_state()) copy_or_clear(queue, c0, c_n);
    return;
  }
  Arena scratch_memory(workspace.data), reserve_memory(reserve.data);
  const ForwardScratch<T> scratch(g, scratch_memory);
  const Reserve<T> kept(g, reserve_memory);
  const RnnPlan plan = choose_rnn_kernel(g, y.dtype, RnnPass::forward, fovea::cuda::allow_tf32());
  const int64_t hidden = g.hidden_size, rows = g.gates() * hidden, steps = g.time * g.batch;
  ForwardStep<T> s;
  s.sizes = sizes_of(g);
  s.lengths = lengths.as<int64_t>();
  s.w_pitch = s.h_pitch = whole_chunks<T>(hidden);
  s.y = y.as<T>();
  for (int64_t d = 0; d < g.directions; ++d) {
    s.w_hh[d] = weights.w_hh[d].template as<T>();
    if (s.w_pitch != hidden || !is_aligned(s.w_hh[d])) {
      copy_padded(queue, weights.w_hh[d], scratch.w_hh[d], s.w_pitch);
      s.w_hh[d] = scratch.w_hh[d];
    }
    s.b_ih[d] = weights.b_ih[d].template as<T>();
    s.b_hh[d] = weights.b_hh[d].template as<T>();
    s.gates[d] = kept.gates[d] ? kept.gates[d] : scratch.gates[d];
    s.kept[d] = kept.kept[d];
    s.c[d] = scratch.c[d];
    s.c0[d] = state_of<T>(c0, g, d);
    s.h_n[d] = state_of<T>(h_n, g, d);
    s.c_n[d] = state_of<T>(c_n, g, d);
    View gates = matrix(y, s.gates[d], steps, rows, rows, 1);
    gates.dtype = dtype_of<Accumulate<T>>;
    product(queue, matrix(x, x.data, steps, g.input_size, g.input_size, 1), matrix(x, weights.w_ih[d].data, g.input_size, rows, 1, g.input_size), false, gates,
            scratch_memory.rest(workspace));
    s.h[d] = state_of<T>(h0, g, d);
    if (s.h[d] && (s.h_pitch != hidden || !is_aligned(s.h[d]))) {
      copy_padded(queue, matrix(h0, s.h[d], g.batch, hidden, hidden, 1), scratch.h[0][d], s.h_pitch);
      s.h[d] = scratch.h[0][d];
    }
  }
  for (s.i = 0; s.i < g.time; ++s.i) {
    for (int64_t d = 0; d < g.directions; ++d) {
      if (s.i > 0) s.h[d] = scratch.h[s.i % 2][d];
      s.h_next[d] = scratch.h[(s.i + 1) % 2][d];
    }
    launch_forward_step(queue, plan, g.cell, s);
  }
}

template <class T>
void weight_gradients(Queue queue, const RnnGeometry& g, int64_t d, const ConstView& x, const ConstView& lengths, const ConstView& h0, const ConstView& y,
                      const BackwardScratch<T>& scratch, const RnnGradients& gradients, Workspace rest) {
  const int64_t hidden = g.hidden_size, rows = g.gates() * hidden, pitch = whole_chunks<T>(rows), steps = g.time * g.batch, width = g.directions * hidden;
  const auto sums = [&](const T* dgates, const View& to) {
    if (to) cuda_table(0).reduce(queue, Reduce::sum, matrix(x, dgates, steps, rows, pitch, 1), matrix(to, to.data, 1, rows, rows, 1));
  };
  sums(scratch.dgates[d], gradients.b_ih[d]);
  if (gradients.b_ih[d] && gradients.b_hh[d] && scratch.dgates_hidden[d] == scratch.dgates[d]) cuda_table(0).copy(queue, gradients.b_ih[d], gradients.b_hh[d]);
  else sums(scratch.dgates_hidden[d], gradients.b_hh[d]);
  if (const View& dw = gradients.w_ih[d])
    product(queue, matrix(x, scratch.dgates[d], rows, steps, 1, pitch), matrix(x, x.data, steps, g.input_size, g.input_size, 1), false,
            matrix(dw, dw.data, rows, g.input_size, g.input_size, 1), rest);
  const View& dw = gradients.w_hh[d];
  if (!dw) return;
  // h_previous is y of the neighbouring step, which is zero past a sequence's end; and h0 at the step that a sample begins with.
  const View target = matrix(dw, dw.data, rows, hidden, hidden, 1);
  const int64_t inner = std::max<int64_t>(0, steps - g.batch), first_dgates = d == 0 ? g.batch : 0, first_y = d == 0 ? 0 : g.batch;
  product(queue, matrix(x, scratch.dgates_hidden[d] + first_dgates * pitch, rows, inner, 1, pitch), matrix(y, y.as<T>() + first_y * width + d * hidden, inner, hidden, width, 1),
          false, target, rest);
  const T* initial = state_of<T>(h0, g, d);
  if (!initial || g.time == 0) return;
  launch(queue, "rnn_gather_first", grid_for(g.batch * pitch), gather_first<T>, scratch.dgates_hidden[d], lengths.as<int64_t>(), static_cast<int>(d), g.time, g.batch, pitch,
         scratch.first);
  product(queue, matrix(x, scratch.first, rows, g.batch, 1, pitch), matrix(x, initial, g.batch, hidden, hidden, 1), true, target, rest);
}

template <class T>
void backward_typed(Queue queue, const RnnGeometry& g, const ConstView& x, const ConstView& lengths, const ConstView& h0, const ConstView& c0, const RnnWeights& weights,
                    const ConstView& y, Workspace reserve, const ConstView& dy, const ConstView& dh_n, const ConstView& dc_n, const View& dx, const View& dh0,
                    const View& dc0, const RnnGradients& gradients, Workspace workspace) {
  Arena scratch_memory(workspace.data), reserve_memory(reserve.data);
  const BackwardScratch<T> scratch(g, scratch_memory);
  const Reserve<T> kept(g, reserve_memory);
  const RnnPlan plan = choose_rnn_kernel(g, x.dtype, RnnPass::backward, fovea::cuda::allow_tf32());
  const int64_t hidden = g.hidden_size, rows = g.gates() * hidden, steps = g.time * g.batch;
  BackwardStep<T> s;
  s.sizes = sizes_of(g);
  s.lengths = lengths.as<int64_t>();
  s.rows = rows;
  s.w_pitch = s.dgates_pitch = whole_chunks<T>(rows);
  s.y = y.as<T>();
  s.dy = dy.as<T>();
  for (int64_t d = 0; d < g.directions; ++d) {
    copy_padded(queue, matrix(x, weights.w_hh[d].data, hidden, rows, 1, hidden), scratch.w_hh[d], s.w_pitch);
    s.w_hh[d] = scratch.w_hh[d];
    s.gates[d] = kept.gates[d];
    s.kept[d] = kept.kept[d];
    s.h0[d] = state_of<T>(h0, g, d);
    s.c0[d] = state_of<T>(c0, g, d);
    s.dgates[d] = scratch.dgates[d];
    s.dgates_hidden[d] = scratch.dgates_hidden[d];
    s.dh[d] = scratch.dh[d];
    s.dc[d] = scratch.dc[d];
    s.dh_n[d] = state_of<T>(dh_n, g, d);
    s.dc_n[d] = state_of<T>(dc_n, g, d);
    s.dh0[d] = state_of<T>(dh0, g, d);
    s.dc0[d] = state_of<T>(dc0, g, d);
  }
  for (s.i = 0; s.i < g.time + (dh0 || dc0 ? 1 : 0); ++s.i) launch_backward_step(queue, plan, g.cell, s);
  const Workspace rest = scratch_memory.rest(workspace);
  for (int64_t d = 0; d < g.directions; ++d) {
    if (dx && steps > 0)
      product(queue, matrix(x, s.dgates[d], steps, rows, s.dgates_pitch, 1), matrix(x, weights.w_ih[d].data, rows, g.input_size, g.input_size, 1), d > 0,
              matrix(dx, dx.data, steps, g.input_size, g.input_size, 1), rest);
    weight_gradients(queue, g, d, x, lengths, h0, y, scratch, gradients, rest);
  }
}

int64_t rnn_reserve(const RnnGeometry& g, DType dtype) {
  return dispatch_floating(dtype, "rnn", [&](auto zero) {
    Arena memory(nullptr);
    Reserve<decltype(zero)>(g, memory);
    return memory.used();
  });
}

int64_t rnn_workspace(const RnnGeometry& g, DType dtype) {
  return dispatch_floating(dtype, "rnn", [&](auto zero) {
    using T = decltype(zero);
    Arena forward(nullptr), backward(nullptr);
    const ForwardScratch<T> forward_scratch(g, forward);
    const BackwardScratch<T> backward_scratch(g, backward);
    return std::max(forward.used(), backward.used()) + product_workspace(g, dtype);
  });
}

void rnn_forward(Queue queue, const RnnGeometry& g, const ConstView& x, const ConstView& lengths, const ConstView& h0, const ConstView& c0, const RnnWeights& weights,
                 const View& y, const View& h_n, const View& c_n, Workspace reserve, Workspace workspace) {
  dispatch_floating(y.dtype, "rnn", [&](auto zero) { forward_typed<decltype(zero)>(queue, g, x, lengths, h0, c0, weights, y, h_n, c_n, reserve, workspace); });
}

void rnn_backward(Queue queue, const RnnGeometry& g, const ConstView& x, const ConstView& lengths, const ConstView& h0, const ConstView& c0, const RnnWeights& weights,
                  const ConstView& y, Workspace reserve, const ConstView& dy, const ConstView& dh_n, const ConstView& dc_n, const View& dx, const View& dh0,
                  const View& dc0, const RnnGradients& gradients, Workspace workspace) {
  dispatch_floating(x.dtype, "rnn_backward", [&](auto zero) {
    backward_typed<decltype(zero)>(queue, g, x, lengths, h0, c0, weights, y, reserve, dy, dh_n, dc_n, dx, dh0, dc0, gradients, workspace);
  });
}

}  // namespace

void add_rnn(KernelTable& t) {
  t.computes_half.add(Family::rnn);
  t.rnn_reserve = rnn_reserve;
  t.rnn_workspace = rnn_workspace;
  t.rnn_forward = rnn_forward;
  t.rnn_backward = rnn_backward;
}

}  // namespace fovea::kernels::cuda
