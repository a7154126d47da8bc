// CUDA's recurrent layers: which kernel a step gets, and that outputs, states and all gradients are the CPU's, for every cell, dtype and
// tile, over lengths in any order.
#include <doctest/doctest.h>

#include <algorithm>
#include <string>

#include <fovea/autograd/backward.h>
#include <fovea/autograd/rnn.h>
#include <fovea/autograd/shape.h>
#include <fovea/kernels/cuda/core/launch_log.h>
#include <fovea/kernels/cuda/rnn_plan.h>
#include <fovea/kernels/cuda/runtime.h>

#include "cuda_sequences.h"
#include "cuda_tf32.h"

using namespace fovea;
using namespace fovea::testing;
using kernels::cuda::choose_rnn_kernel;
using kernels::cuda::RnnPass;

namespace {

struct RnnCase {
  RnnGeometry g;
  bool has_lengths = true, has_states = true, has_biases = true;
  int64_t offset = 0;                        // of all memory, in elements: 1 leaves nothing aligned to more than an element
};

// A dtype, and how it is computed with.
struct Mode {
  DType dtype;
  bool has_tf32 = false;
};
constexpr Mode all_modes[] = {{DType::float32}, {DType::float64}, {DType::float16}, {DType::bfloat16}, {DType::float32, true}};
constexpr RnnCell all_cells[] = {RnnCell::lstm, RnnCell::gru, RnnCell::rnn_tanh, RnnCell::rnn_relu};

std::string name_for(const RnnGeometry& g, DType dtype, RnnPass pass, bool has_tf32 = false) {
  return choose_rnn_kernel(g, dtype, pass, has_tf32).name;
}

// The names of the kernels that a piece of work launches.
template <class F>
std::vector<std::string> launches_of(const F& f) {
  std::vector<std::string> names;
  kernels::cuda::log_launches(&names);
  f();
  kernels::cuda::log_launches(nullptr);
  return names;
}

int64_t count_of(const std::vector<std::string>& names, const std::string& name) { return std::count(names.begin(), names.end(), name); }

// Arguments by role: x, h0, c0, dy, dh_n, dc_n, then w_ih, w_hh, b_ih, b_hh of each direction.
std::vector<Tensor> rnn_inputs(const RnnCase& c, DType dtype) {
  const RnnGeometry& g = c.g;
  const Shape states{g.directions, g.batch, g.hidden_size};
  const int64_t rows = g.gates() * g.hidden_size;
  const double scale = 1 / std::sqrt(static_cast<double>(g.hidden_size));
  std::vector<Tensor> list = {numbers({g.time, g.batch, g.input_size}, dtype, 1),
                              numbers(states, dtype, 2),
                              numbers(states, dtype, 3),
                              numbers({g.time, g.batch, g.directions * g.hidden_size}, dtype, 4),
                              numbers(states, dtype, 5),
                              numbers(states, dtype, 6)};
  for (unsigned d = 0; d < 2; ++d) {
    list.push_back(numbers({rows, g.input_size}, dtype, 10 + d, scale));
    list.push_back(numbers({rows, g.hidden_size}, dtype, 20 + d, scale));
    list.push_back(numbers({rows}, dtype, 30 + d, scale));
    list.push_back(numbers({rows}, dtype, 40 + d, scale));
  }
  return list;
}

Tensor rnn_lengths(const RnnGeometry& g) {
  Tensor lengths = empty({g.batch}, DType::int64);
  for (int64_t b = 0; b < g.batch; ++b)
    lengths.mutable_data<int64_t>()[b] = b == 1 ? g.time : (b * 5 + 2) % (g.time + 1);  // one of them may be 0
  return lengths;
}

// Runs forward and backward of `table` on memory that `place` puts an input into and `make` an output; returns the views of all outputs.
template <class Memory, class Bytes, class Place, class Make>
std::vector<Memory> run_rnn(const kernels::KernelTable& table, const RnnCase& c, const std::vector<Tensor>& inputs, const Place& place,
                            const Make& make) {
  const RnnGeometry& g = c.g;
  const DType dtype = inputs[0].dtype();
  std::vector<Memory> in;
  for (const Tensor& t : inputs) in.push_back(place(t));
  const Memory length_memory = place(rnn_lengths(g));
  const ConstView lengths = c.has_lengths ? ConstView(length_memory.view()) : absent();
  const auto state = [&](size_t i) { return c.has_states && (i % 3 != 2 || g.has_cell_state()) ? ConstView(in[i].view()) : absent(); };
  kernels::KernelTable::RnnWeights weights;
  for (size_t d = 0; d < static_cast<size_t>(g.directions); ++d) {
    weights.w_ih[d] = in[6 + 4 * d].view();
    weights.w_hh[d] = in[7 + 4 * d].view();
    if (!c.has_biases) continue;
    weights.b_ih[d] = in[8 + 4 * d].view();
    weights.b_hh[d] = in[9 + 4 * d].view();
  }
  std::vector<Memory> out;
  const auto add = [&](const Shape& shape) {
    out.push_back(make(shape, dtype));
    return out.back().view();
  };
  out.reserve(20);
  const Shape states{g.directions, g.batch, g.hidden_size};
  const View y = add({g.time, g.batch, g.directions * g.hidden_size}), h_n = add(states), c_n = g.has_cell_state() ? add(states) : View();
  Bytes reserve(table.rnn_reserve(g, dtype)), workspace(table.rnn_workspace(g, dtype));
  table.rnn_forward(nullptr, g, in[0].view(), lengths, state(1), state(2), weights, y, h_n, c_n, reserve, workspace);
  const View dx = add({g.time, g.batch, g.input_size}), dh0 = add(states), dc0 = g.has_cell_state() ? add(states) : View();
  kernels::KernelTable::RnnGradients gradients;
  const int64_t rows = g.gates() * g.hidden_size;
  for (int64_t d = 0; d < g.directions; ++d) {
    gradients.w_ih[d] = add({rows, g.input_size});
    gradients.w_hh[d] = add({rows, g.hidden_size});
    gradients.b_ih[d] = add({rows});
    gradients.b_hh[d] = add({rows});
  }
  table.rnn_backward(nullptr, g, in[0].view(), lengths, state(1), state(2), weights, y, reserve, in[3].view(), in[4].view(),
                     g.has_cell_state() ? ConstView(in[5].view()) : absent(), dx, dh0, dc0, gradients, workspace);
  reserve.check_guards();
  workspace.check_guards();
  return out;
}

struct HostTensor {
  Tensor tensor;
  View view() const { return tensor.mutable_view(); }
};

std::vector<Tensor> rnn_on_cpu(const RnnCase& c, const std::vector<Tensor>& inputs) {
  const auto out = run_rnn<HostTensor, HostBytes>(
      cpu(), c, inputs, [](const Tensor& t) { return HostTensor{t}; }, [](const Shape& s, DType d) { return HostTensor{empty(s, d)}; });
  std::vector<Tensor> list;
  for (const HostTensor& t : out) list.push_back(t.tensor);
  return list;
}

std::vector<Tensor> rnn_on_cuda(const RnnCase& c, const std::vector<Tensor>& inputs) {
  const auto out = run_rnn<DeviceTensor, DeviceBytes>(
      fovea::testing::cuda(), c, inputs, [&](const Tensor& t) { return DeviceTensor(t, c.offset); },
      [&](const Shape& s, DType d) { return DeviceTensor::poisoned(s, d, c.offset); });
  std::vector<Tensor> list;
  for (const DeviceTensor& t : out) list.push_back(t.to_host());
  return list;
}

// How far an output may be from the exact one. Rounding h in every step, and dgates, makes errors of one rounding that pass through weights
// with rows of about length one, so that they add up over the steps; gradients of weights are sums of independent terms over all steps and
// samples.
double absolute_tolerance(const RnnGeometry& g, const Mode& mode, bool is_of_weights) {
  if (mode.dtype == DType::float64) return 1e-11;
  const double unit = mode.has_tf32 ? 0x1p-11 : is_half(mode.dtype) ? rounding(mode.dtype) : 1e-5;
  const double terms = is_of_weights ? std::sqrt(static_cast<double>(g.time * g.batch)) : 1;
  return unit * (4 + static_cast<double>(g.time)) * terms;
}

void check_rnn(const RnnCase& c, const Mode& mode, bool runs_twice = true) {
  CAPTURE(static_cast<int>(c.g.cell));
  CAPTURE(c.g.time);
  CAPTURE(c.g.batch);
  CAPTURE(c.g.input_size);
  CAPTURE(c.g.hidden_size);
  CAPTURE(c.g.directions);
  CAPTURE(std::string(name_of(mode.dtype))); CAPTURE(mode.has_tf32);
  const Tf32Scope scope(mode.has_tf32);
  const std::vector<Tensor> inputs = rnn_inputs(c, mode.dtype);
  std::vector<Tensor> wide, got;
  for (const Tensor& t : inputs) wide.push_back(widened(t));
  const std::vector<std::string> names = launches_of([&] { got = rnn_on_cuda(c, inputs); });
  const std::vector<Tensor> again = runs_twice ? rnn_on_cuda(c, inputs) : got, want = rnn_on_cpu(c, wide);
  REQUIRE(got.size() == want.size());
  const size_t first_of_weights = c.g.has_cell_state() ? 6 : 4;
  for (size_t i = 0; i < got.size(); ++i) {
    CAPTURE(i);
    const double absolute = absolute_tolerance(c.g, mode, i >= first_of_weights);
    CHECK(difference(got[i], want[i], absolute, absolute) == "");
    CHECK(same_bits(got[i], again[i]));
  }
  if (c.g.batch == 0) return;
  CHECK(count_of(names, name_for(c.g, mode.dtype, RnnPass::forward, mode.has_tf32)) == c.g.time);
  CHECK(count_of(names, name_for(c.g, mode.dtype, RnnPass::backward, mode.has_tf32)) == c.g.time + 1);
}

}  // namespace

TEST_CASE("cuda rnn: the layers of well-known networks get the kernels that were meant for them") {
  struct Row {
    const char* network;
    RnnGeometry g;
    // The half types' after "rnn_forward_step_tensor_" and so on, float32's after "rnn_forward_step_" and so on.
    std::string half_forward, half_backward, forward, backward;
  };
  const auto layer = [](RnnCell cell, int64_t hidden, int64_t batch, int64_t directions) {
    return RnnGeometry{cell, 25, batch, hidden, hidden, directions};
  };
  const Row rows[] = {
      {"crnn", layer(RnnCell::lstm, 256, 64, 2), "small", "slim", "small", "slim"},
      {"crnn, batch 32", layer(RnnCell::lstm, 256, 32, 2), "slim", "slim", "slim", "slim"},
      {"crnn, batch 16", layer(RnnCell::lstm, 256, 16, 2), "slim", "slim", "slim", "slim"},
      {"crnn, batch 256", layer(RnnCell::lstm, 256, 256, 2), "medium", "medium", "medium", "small"},
      {"crnn, one line", layer(RnnCell::lstm, 256, 1, 2), "slim", "slim", "tiny", "tiny"},
      {"speech", layer(RnnCell::lstm, 512, 32, 2), "small", "slim", "small", "slim"},
      {"speech, 1024", layer(RnnCell::lstm, 1024, 32, 2), "small", "small", "small", "small"},
      {"deepbench 512, 16", layer(RnnCell::lstm, 512, 16, 1), "slim", "slim", "slim", "slim"},
      {"deepbench 512, 128", layer(RnnCell::lstm, 512, 128, 1), "small", "small", "small", "small"},
      {"deepbench 1536, 8", layer(RnnCell::lstm, 1536, 8, 1), "slim", "slim", "tiny", "tiny"},
      {"deepbench 2048, 128", layer(RnnCell::lstm, 2048, 128, 1), "wide", "medium", "wide", "medium"},
      {"deepbench 4096, 16", layer(RnnCell::lstm, 4096, 16, 1), "slim", "slim", "slim", "slim"},
      {"gru 1024, 32", layer(RnnCell::gru, 1024, 32, 1), "small", "slim", "small", "slim"},
  };
  for (const Row& row : rows) {
    INFO(std::string(row.network));
    for (const DType half : {DType::bfloat16, DType::float16}) {
      CHECK(name_for(row.g, half, RnnPass::forward) == "rnn_forward_step_tensor_" + row.half_forward);
      CHECK(name_for(row.g, half, RnnPass::backward) == "rnn_backward_step_tensor_" + row.half_backward);
    }
    CHECK(name_for(row.g, DType::float32, RnnPass::forward) == "rnn_forward_step_" + row.forward);
    CHECK(name_for(row.g, DType::float32, RnnPass::backward) == "rnn_backward_step_" + row.backward);
    CHECK(name_for(row.g, DType::float32, RnnPass::forward, true).find("rnn_forward_step_tensor_") == 0);
    CHECK(name_for(row.g, DType::float64, RnnPass::forward, true) == "rnn_forward_step_slim");
  }
}

TEST_CASE("cuda rnn: outputs, states and all gradients are the CPU's, for every cell") {
  for (const RnnCell cell : all_cells)
    for (const Mode& mode : all_modes)
      for (const int64_t directions : {1, 2}) {
        check_rnn({{.cell = cell, .time = 5, .batch = 3, .input_size = 4, .hidden_size = 6, .directions = directions}}, mode);
        // Several blocks of units and samples.
        check_rnn({{.cell = cell, .time = 3, .batch = 35, .input_size = 7, .hidden_size = 37, .directions = directions}}, mode);
      }
}

TEST_CASE("cuda rnn: without lengths, states or biases; one step; nothing") {
  for (const RnnCell cell : {RnnCell::lstm, RnnCell::gru, RnnCell::rnn_tanh})
    for (const Mode& mode : all_modes) {
      const RnnGeometry g{.cell = cell, .time = 4, .batch = 3, .input_size = 2, .hidden_size = 5, .directions = 2};
      check_rnn({g, false, true, true}, mode);
      check_rnn({g, true, false, true}, mode);
      check_rnn({g, true, true, false}, mode);
      check_rnn({{.cell = cell, .time = 1, .batch = 1, .input_size = 1, .hidden_size = 1, .directions = 2}}, mode);
      check_rnn({{.cell = cell, .time = 0, .batch = 2, .input_size = 3, .hidden_size = 4, .directions = 2}}, mode);
      check_rnn({{.cell = cell, .time = 3, .batch = 0, .input_size = 3, .hidden_size = 4, .directions = 1}}, mode);
    }
}

TEST_CASE("cuda rnn: where rows are whole copies, forward launches its products, one kernel a step for both directions, and nothing else") {
  const RnnCase c{{.cell = RnnCell::lstm, .time = 4, .batch = 3, .input_size = 8, .hidden_size = 16, .directions = 2}, true, false, true};
  for (const Mode& mode : all_modes) {
    const Tf32Scope scope(mode.has_tf32);
    const std::vector<Tensor> inputs = rnn_inputs(c, mode.dtype);
    const std::vector<std::string> names = launches_of([&] { rnn_on_cuda(c, inputs); });
    const std::string name = name_for(c.g, mode.dtype, RnnPass::forward, mode.has_tf32);
    CHECK(std::vector<std::string>(names.begin(), names.begin() + 4) == std::vector<std::string>(4, name));
    CHECK(count_of(names, name) == 4);
    CHECK(count_of(names, name_for(c.g, mode.dtype, RnnPass::backward, mode.has_tf32)) == 5);
    check_rnn(c, mode);
  }
}

TEST_CASE("cuda rnn: memory that is aligned to nothing but its elements") {
  for (const Mode& mode : all_modes)
    for (const int64_t hidden : {16, 18})
      check_rnn(
          {{.cell = RnnCell::gru, .time = 3, .batch = 2, .input_size = 8, .hidden_size = hidden, .directions = 2}, true, true, true, 1},
          mode);
}

TEST_CASE("cuda rnn: a pass that nothing is kept of gives the same bits") {
  for (const RnnCell cell : all_cells)
    for (const DType dtype : {DType::float32, DType::bfloat16}) {
      const RnnGeometry g{.cell = cell, .time = 4, .batch = 3, .input_size = 5, .hidden_size = 9, .directions = 1};
      const auto place = [&](const Shape& shape, unsigned seed) { return copied_to(numbers(shape, dtype, seed), Device::cuda(0)); };
      const int64_t rows = g.gates() * g.hidden_size;
      const std::vector<Tensor> weights = {place({rows, g.input_size}, 1), place({rows, g.hidden_size}, 2), place({rows}, 3),
                                           place({rows}, 4)};
      Tensor x = place({g.time, g.batch, g.input_size}, 5);
      const auto run = [&] {
        switch (cell) {
          case RnnCell::lstm: return lstm(x, weights, {}).output;
          case RnnCell::gru: return gru(x, weights, {}).output;
          default: return rnn(x, weights, cell == RnnCell::rnn_relu ? RnnActivation::relu : RnnActivation::tanh, {}).output;
        }
      };
      const Tensor alone = copied_to(run(), Device::cpu());
      x.set_requires_grad();
      CHECK(same_bits(copied_to(run(), Device::cpu()), alone));
    }
}

TEST_CASE("cuda rnn: large tiles, where the last units and samples of the last tile are missing") {
  struct Row {
    RnnCell cell;
    int64_t hidden, batch;
    std::string forward, backward;
    std::vector<Mode> modes;
  };
  const Mode single{DType::float32}, half{DType::float16}, brain{DType::bfloat16}, tf32{DType::float32, true};
  for (const Row& row : {Row{RnnCell::lstm, 13, 1050, "small", "slim", {single, half, brain, tf32}},
                         {RnnCell::gru, 29, 2100, "medium", "medium", {half, brain, tf32}},
                         {RnnCell::lstm, 61, 2100, "wide", "medium", {single}},
                         {RnnCell::rnn_tanh, 61, 4200, "wide", "wide", {single, tf32}},
                         {RnnCell::lstm, 61, 4200, "wide", "wide", {brain}}})
    for (const Mode& mode : row.modes) {
      const RnnGeometry g{.cell = row.cell, .time = 2, .batch = row.batch, .input_size = 1, .hidden_size = row.hidden, .directions = 2};
      const std::string infix = mode.dtype == DType::float32 && !mode.has_tf32 ? "" : "tensor_";
      CHECK(name_for(g, mode.dtype, RnnPass::forward, mode.has_tf32) == "rnn_forward_step_" + infix + row.forward);
      CHECK(name_for(g, mode.dtype, RnnPass::backward, mode.has_tf32) == "rnn_backward_step_" + infix + row.backward);
      check_rnn({g}, mode, false);
    }
}

TEST_CASE("cuda rnn: lstm() of a half type, two layers in both directions, is the CPU's in float32") {
  for (const DType dtype : {DType::float16, DType::bfloat16}) {
    CAPTURE(std::string(name_of(dtype)));
    const int64_t time = 6, batch = 5, input = 7, hidden = 11;
    const RnnGeometry first{.time = time, .batch = batch, .input_size = input, .hidden_size = hidden, .directions = 2};
    const Shape states{4, batch, hidden};
    std::vector<Tensor> host = {numbers({time, batch, input}, dtype, 1), numbers(states, dtype, 2), numbers(states, dtype, 3)};
    for (unsigned unit = 0; unit < 4; ++unit)
      for (const Shape& shape : {Shape{4 * hidden, unit < 2 ? input : 2 * hidden}, {4 * hidden, hidden}, {4 * hidden}, {4 * hidden}})
        host.push_back(numbers(shape, dtype, 10 + static_cast<unsigned>(host.size()), 0.3));
    const Tensor dy = numbers({time, batch, 2 * hidden}, dtype, 5), lengths = rnn_lengths(first);

    // Outputs, and the gradients of everything.
    const auto run = [&](const auto& place) {
      std::vector<Tensor> in;
      for (const Tensor& t : host) {
        in.push_back(place(t));
        in.back().set_requires_grad();
      }
      RnnOptions options{.layers = 2, .bidirectional = true, .lengths = copied_to(lengths, in[0].device()), .h0 = in[1], .c0 = in[2]};
      const RnnResult r = lstm(in[0], {in.begin() + 3, in.end()}, options);
      std::vector<Tensor> all = grad({r.output}, in, {place(dy)});
      all.insert(all.end(), {r.output, r.h_n, r.c_n});
      for (Tensor& t : all) t = copied_to(t, Device::cpu());
      return all;
    };
    std::vector<Tensor> got;
    const std::vector<std::string> names = launches_of([&] { got = run([](const Tensor& t) { return copied_to(t, Device::cuda(0)); }); });
    const std::vector<Tensor> want = run([](const Tensor& t) { return to(t, DType::float32); });
    for (const RnnPass pass : {RnnPass::forward, RnnPass::backward})           // a step after the last one gives the gradient of h0
      CHECK(count_of(names, name_for(first, dtype, pass)) == 2 * (time + (pass == RnnPass::backward ? 1 : 0)));
    REQUIRE(got.size() == want.size());
    for (size_t i = 0; i < got.size(); ++i) {
      CAPTURE(i);
      CHECK(got[i].dtype() == dtype);
      const double absolute = 2 * absolute_tolerance(first, {dtype}, i >= 3 && i < host.size());      // of two layers
      CHECK(difference(got[i], want[i], absolute, absolute) == "");
    }
  }
}

TEST_CASE("cuda rnn: in half types a gate close to one still lets its gradient through") {
  // All weights zero, so that biases alone decide: a forget gate of sigmoid(7) = 0.9991, which rounds to 1 in bfloat16, whose gradient has
  // a factor of 1 - 0.9991.
  for (const DType dtype : {DType::float16, DType::bfloat16}) {
    CAPTURE(std::string(name_of(dtype)));
    const auto bias_gradient = [&](Device device, DType computed) {
      const auto place = [&](const Tensor& t) { return copied_to(to(t, computed), device); };
      Tensor bias = place(from_vector<double>({1, 7, 1, 1}));
      bias.set_requires_grad();
      const std::vector<Tensor> weights = {place(zeros({4, 1})), place(zeros({4, 1})), bias, place(zeros({4}))};
      RnnOptions options;
      options.c0 = place(ones({1, 1, 1}));
      options.h0 = place(zeros({1, 1, 1}));
      const RnnResult r = lstm(place(zeros({3, 1, 1})), weights, options);
      return copied_to(grad({r.output}, {bias}, {place(ones({3, 1, 1}))})[0], Device::cpu());
    };
    const Tensor got = bias_gradient(Device::cuda(0), dtype), want = bias_gradient(Device::cpu(), DType::float32);
    CHECK(std::abs(want.to_vector<double>()[1]) > 1e-4);
    CHECK(difference(got, want, 4 * rounding(dtype), 0) == "");
  }
}

TEST_CASE("cuda matmul: a product of half operands that is written in float32 is not rounded to theirs") {
  for (const DType dtype : {DType::float16, DType::bfloat16}) {
    const Tensor a = numbers({5, 9}, dtype, 1), b = numbers({9, 7}, dtype, 2);
    const DeviceTensor on_a(a), on_b(b), y = DeviceTensor::poisoned({5, 7}, DType::float32);
    fovea::testing::cuda().matmul(nullptr, {1, 5, 7, 9}, {1, 0}, on_a.view(), on_b.view(), absent(), y.view(), {});
    Tensor want = empty({5, 7}, DType::float64);
    cpu().matmul(nullptr, {1, 5, 7, 9}, {1, 0}, widened(a).view(), widened(b).view(), absent(), want.mutable_view(),
                 HostBytes(cpu().matmul_workspace({1, 5, 7, 9}, DType::float64)));
    CHECK(difference(y.to_host(), want, 1e-6, 1e-6) == "");
  }
}
