// CUDA's optimizer steps against the CPU's: several steps of every variant, float32 and float64, aligned and not.
#include <doctest/doctest.h>

#include <fovea/autograd/shape.h>
#include <fovea/kernels/cuda/core/launch_log.h>
#include <fovea/kernels/cuda/graph.h>
#include <fovea/optim/clip.h>
#include <fovea/optim/grad_scaler.h>
#include <fovea/optim/optimizers.h>

#include <functional>
#include <memory>

#include "cuda_kernels.h"

using namespace fovea;
using namespace fovea::testing;

namespace {

// Parameter, gradient and three states.
using Views = std::vector<View>;
using Step = std::function<void(const kernels::KernelTable&, const Views&, int64_t step)>;

template <class Options>
using Entry = void (*)(kernels::Queue, std::span<const Options>, std::span<const kernels::StepSlot>, const kernels::StepControl&);

kernels::StepSlot slot_of(const Views& v) {
  kernels::StepSlot slot;
  slot.parameter = v[0].data;
  slot.gradient = v[1].data;
  for (size_t k = 0; k < 3; ++k) slot.state[k] = v[2 + k].data;
  slot.numel = v[0].numel();
  slot.dtype = v[0].dtype;
  slot.gradient_dtype = v[1].dtype;
  return slot;
}

template <class Options>
void step_one(Entry<Options> entry, const Options& options, const kernels::StepSlot& slot) {
  entry(nullptr, {&options, 1}, {&slot, 1}, {});
}

Tensor wave(int64_t n, DType dtype, double phase, double scale) {
  std::vector<double> values;
  for (int64_t i = 0; i < n; ++i) values.push_back(scale * std::sin(phase + 0.7 * static_cast<double>(i)));
  Tensor y = empty({n}, dtype);
  cpu().copy(nullptr, from_vector(values).view(), y.mutable_view());
  return y;
}

// Three steps with another gradient each; `states` of the three states are there. Parameters and states must agree at the end, the gradient
// be as it was.
void check_steps(const std::string& name, const Step& step, int states) {
  for (const DType dtype : {DType::float32, DType::float64})
    for (const int64_t n : {0, 1, 3, 8, 1023, 5001})
      for (const int64_t offset : {0, 1}) {
        CAPTURE(name);
        CAPTURE(dtype);
        CAPTURE(n);
        CAPTURE(offset);
        std::vector<Tensor> host = {wave(n, dtype, 0, 2)};
        for (int k = 0; k < 1 + states; ++k) host.push_back(full({n}, 0, dtype));  // the gradient and the states
        std::vector<DeviceTensor> device;
        for (const Tensor& x : host) device.emplace_back(x, offset);
        for (int64_t k = 1; k <= 3; ++k) {
          host[1] = wave(n, dtype, static_cast<double>(k), 0.5);
          const DeviceTensor gradient(host[1], offset);
          Views host_views, device_views;
          for (size_t i = 0; i < 5; ++i) {
            host_views.push_back(i < host.size() ? host[i].mutable_view() : View());
            device_views.push_back(i == 1 ? gradient.view() : i < device.size() ? device[i].view() : View());
          }
          step(cpu(), host_views, k);
          step(testing::cuda(), device_views, k);
          CHECK(same_bits(gradient.to_host(), host[1]));
        }
        const double relative = dtype == DType::float64 ? 1e-13 : 2e-6, absolute = dtype == DType::float64 ? 1e-15 : 3e-7;
        for (size_t i = 0; i < host.size(); ++i)
          if (i != 1) CHECK(difference(device[i].to_host(), host[i], relative, absolute) == "");
      }
}

}  // namespace

TEST_CASE("sgd: plain, with momentum, dampening, weight decay and Nesterov's, is the CPU's") {
  struct Case {
    double momentum, dampening, weight_decay;
    bool nesterov;
  };
  for (const Case& c : {Case{0, 0, 0, false}, {0, 0, 0.1, false}, {0.9, 0, 0, false}, {0.9, 0.2, 0.1, false}, {0.9, 0, 0.1, true}}) {
    const Step step = [=](const kernels::KernelTable& t, const Views& v, int64_t k) {
      step_one(t.sgd, kernels::SgdStep{0.1, c.momentum, c.dampening, c.weight_decay, c.nesterov, k}, slot_of(v));
    };
    check_steps("sgd", step, c.momentum != 0 ? 1 : 0);
  }
}

TEST_CASE("adam and AdamW are the CPU's") {
  for (const bool is_decoupled : {false, true})
    for (const double weight_decay : {0.0, 0.05})
      for (const double beta1 : {0.9, 0.3}) {
        const Step step = [=](const kernels::KernelTable& t, const Views& v, int64_t k) {
          step_one(t.adam, kernels::AdamStep{0.01, beta1, 0.999, 1e-8, weight_decay, is_decoupled, k}, slot_of(v));
        };
        check_steps("adam", step, 2);
      }
}

TEST_CASE("rmsprop, plain, centred and with momentum, is the CPU's") {
  for (const double momentum : {0.0, 0.9})
    for (const bool is_centered : {false, true}) {
      const Step step = [=](const kernels::KernelTable& t, const Views& v, int64_t k) {
        kernels::StepSlot slot = slot_of(v);
        if (momentum == 0) slot.state[1] = nullptr;
        if (!is_centered) slot.state[2] = nullptr;
        step_one(t.rmsprop, kernels::RmspropStep{0.01, 0.9, 1e-3, 0.01, momentum, is_centered, k}, slot);
      };
      check_steps("rmsprop", step, 3);
    }
}

TEST_CASE("adagrad is the CPU's") {
  const Step step = [](const kernels::KernelTable& t, const Views& v, int64_t k) {
    step_one(t.adagrad, kernels::AdagradStep{0.1, 0.1, 0.01, 1e-10, k}, slot_of(v));
  };
  check_steps("adagrad", step, 1);
}

TEST_CASE("optimizers refuse half types without a float32 copy, with the CPU's words") {
  Tensor host = full({4}, 1, DType::bfloat16);
  const DeviceTensor x(host), g(host);
  const auto words = [](const kernels::KernelTable& t, const View& parameter, const View& gradient) -> std::string {
    try {
      step_one(t.sgd, kernels::SgdStep{}, slot_of({parameter, gradient, View(), View(), View()}));
    } catch (const DTypeError& e) {
      return e.what();
    }
    return "";
  };
  const std::string want = words(cpu(), host.mutable_view(), host.mutable_view());
  CHECK(want != "");
  CHECK(words(testing::cuda(), x.view(), g.view()) == want);
}

// --- whole optimizers ---

namespace {

const Device cpu_device = Device::cpu(), gpu = Device::cuda(0);

// As many tensors as ResNet-50 has, or fewer, of small sizes, on a device.
NamedTensors many_parameters(Device device, DType dtype = DType::float32, int64_t count = 161) {
  NamedTensors list;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t n = i == 7 ? 0 : i == 3 ? 9001 : 1 + i % 13;
    list.add(str("p", i), to(to(wave(n, DType::float32, static_cast<double>(i), 2), dtype), device).set_requires_grad());
  }
  return list;
}

void give_gradients(const NamedTensors& parameters, double phase) {
  for (const auto& [name, parameter] : parameters)
    parameter.set_grad(to(to(wave(parameter.numel(), DType::float32, phase + 3, 0.5), parameter.dtype()), parameter.device()));
}

void check_close(const NamedTensors& got, const NamedTensors& want, double relative, double absolute) {
  REQUIRE(got.size() == want.size());
  for (const auto& [name, tensor] : want) {
    const std::string label = name;
    CAPTURE(label);
    CHECK(difference(to(got[name].detach(), cpu_device), tensor.detach(), relative, absolute) == "");
  }
}

void check_same(const NamedTensors& got, const NamedTensors& want) {
  REQUIRE(got.size() == want.size());
  for (const auto& [name, tensor] : want) {
    const std::string label = name;
    CAPTURE(label);
    CHECK(same_bits(to(got[name].detach(), cpu_device), to(tensor.detach(), cpu_device)));
  }
}

}  // namespace

TEST_CASE("161 parameters are clipped and stepped in three launches, as on the CPU") {
  const NamedTensors here = many_parameters(cpu_device), there = many_parameters(gpu);
  optim::AdamW host(here, {.lr = 0.01}), device(there, {.lr = 0.01});
  for (int k = 0; k < 3; ++k) {
    give_gradients(here, k), give_gradients(there, k);
    const double want = optim::clip_grad_norm(here, 1.5);
    host.step();
    std::vector<std::string> clipping, stepping;
    kernels::cuda::log_launches(&clipping);
    const Tensor norm = optim::clip_grad_norm_async(there, 1.5);
    kernels::cuda::log_launches(&stepping);
    device.step();
    kernels::cuda::log_launches(nullptr);
    CHECK(clipping.size() == 2);
    if (k > 0) CHECK(stepping.size() == 1);                                  // the first step makes buffers
    CHECK(norm.item() == doctest::Approx(want).epsilon(1e-6));
  }
  check_close(there, here, 2e-6, 1e-6);
}

TEST_CASE("norms and clipping of every type are the CPU's") {
  for (const DType dtype : {DType::float32, DType::float64, DType::float16, DType::bfloat16})
    for (const double norm_type : {2.0, std::numeric_limits<double>::infinity()})
      for (const double bad : {0.0, std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
        CAPTURE(dtype);
        CAPTURE(norm_type);
        CAPTURE(bad);
        const NamedTensors here = many_parameters(cpu_device, dtype, 9), there = many_parameters(gpu, dtype, 9);
        give_gradients(here, 1), give_gradients(there, 1);
        if (bad != 0) here["p8"].set_grad(full(here["p8"].shape(), bad, dtype)), there["p8"].set_grad(full(here["p8"].shape(), bad, {dtype, gpu}));
        const double want = optim::clip_grad_norm(here, 1, {.norm_type = norm_type}), got = optim::clip_grad_norm(there, 1, {.norm_type = norm_type});
        CHECK((got == want || (std::isnan(got) && std::isnan(want)) || got == doctest::Approx(want).epsilon(1e-6)));
        const double relative = dtype == DType::float64 ? 1e-6 : dtype == DType::float32 ? 2e-6 : dtype == DType::float16 ? 1e-3 : 8e-3;
        for (const auto& [name, parameter] : here) CHECK(difference(to(there[name].grad(), cpu_device), parameter.grad(), relative, 1e-7) == "");
        CHECK_THROWS_AS(optim::clip_grad_norm(bad != 0 ? there : NamedTensors(), bad != 0 ? 1 : -1, {.norm_type = norm_type, .error_if_nonfinite = true}), ValueError);
      }
  CHECK(optim::clip_grad_norm({{"p", full({2}, 1, gpu)}}, 1) == 0);
}

TEST_CASE("parameters of half types are stepped in float32 and rounded, on the device as on the CPU, and resume bit for bit") {
  for (const DType dtype : {DType::float16, DType::bfloat16}) {
    CAPTURE(dtype);
    const NamedTensors here = many_parameters(cpu_device, dtype, 9), there = many_parameters(gpu, dtype, 9);
    optim::Adam host(here, {.lr = 1e-4}), device(there, {.lr = 1e-4});       // too small for one step to show
    for (int k = 0; k < 4; ++k) {
      give_gradients(here, 0), give_gradients(there, 0);
      host.step(), device.step();
    }
    const Tensor master = to(device.state()["state.p3.master"], cpu_device);
    CHECK(master.dtype() == DType::float32);
    CHECK(difference(master, host.state()["state.p3.master"], 2e-6, 3e-7) == "");
    CHECK(same_bits(to(master, dtype), to(there["p3"].detach(), cpu_device)));
    const double moved = static_cast<double>(std::abs(master.to_vector<double>()[1] - to(wave(9001, DType::float32, 3, 2), dtype).to_vector<double>()[1]));
    CHECK(moved > 3e-4);
    NamedTensors again;
    for (const auto& [name, parameter] : there) again.add(name, copied_to(parameter.detach(), gpu).set_requires_grad());
    optim::Adam resumed(again);
    resumed.load_state(device.state());
    give_gradients(there, 2), give_gradients(again, 2);
    device.step(), resumed.step();
    check_same(again, there);
    check_same(resumed.state(), device.state());
    there["p3"].detach().storage()->bump_version();
    kernels::cuda_table(0).fill(nullptr, 3, there["p3"].detach().mutable_view());                // somebody loads other weights
    give_gradients(there, 2);
    device.step();
    CHECK(std::abs(to(there["p3"].detach(), cpu_device).to_vector<double>()[0] - 3) < 0.02);
  }
}

TEST_CASE("a recorded step, clipped and scaled, counts and follows the learning rate: five replays are five steps") {
  const auto with = [](const auto& make) {
    const NamedTensors recorded = many_parameters(gpu, DType::float32, 9), stepped = many_parameters(gpu, DType::float32, 9);
    const auto of_recorded = make(recorded), of_stepped = make(stepped);
    of_recorded->set_capturable(), of_stepped->set_capturable();
    optim::GradScaler recorded_scaler({.init_scale = 8, .growth_interval = 2}), stepped_scaler({.init_scale = 8, .growth_interval = 2});
    give_gradients(recorded, 1), give_gradients(stepped, 1);
    const Tensor one = full(Shape{}, 1, gpu);
    recorded_scaler.scale(one), stepped_scaler.scale(one);
    const auto step = [](const NamedTensors& parameters, optim::Optimizer& optimizer, optim::GradScaler& scaler) {
      optim::clip_grad_norm_async(parameters, 2);
      scaler.step(optimizer);
      scaler.update();
    };
    step(recorded, *of_recorded, recorded_scaler), step(stepped, *of_stepped, stepped_scaler);
    const NamedTensors saved = of_stepped->state();
    fovea::cuda::synchronize();
    fovea::cuda::Graph graph([&] { step(recorded, *of_recorded, recorded_scaler); });
    for (int k = 0; k < 5; ++k) {
      for (const auto& [name, parameter] : recorded) {                       // the second brings an infinity
        const double value = k == 1 && name == "p4" ? std::numeric_limits<double>::infinity() : 0.1 * (k + 1);
        kernels::cuda_table(0).fill(nullptr, value, parameter.grad().mutable_view());
        kernels::cuda_table(0).fill(nullptr, value, stepped[name].grad().mutable_view());
      }
      of_recorded->set_lr(0.1 / (k + 1)), of_stepped->set_lr(0.1 / (k + 1));
      graph.replay();
      step(stepped, *of_stepped, stepped_scaler);
    }
    check_same(recorded, stepped);
    check_same(of_recorded->state(), of_stepped->state());
    CHECK(of_recorded->state()["state.p0.step"].item() == 5);                // six tries
    CHECK(recorded_scaler.current_scale() == stepped_scaler.current_scale());
    check_same(recorded_scaler.state(), stepped_scaler.state());
  };
  using Optimizers = std::unique_ptr<optim::Optimizer>;
  with([](const NamedTensors& p) -> Optimizers { return std::make_unique<optim::Adam>(p); });
  with([](const NamedTensors& p) -> Optimizers { return std::make_unique<optim::SGD>(p, optim::SGDOptions{.lr = 0.1, .momentum = 0.9}); });
  with([](const NamedTensors& p) -> Optimizers { return std::make_unique<optim::Adagrad>(p, optim::AdagradOptions{.lr_decay = 0.1}); });
  with([](const NamedTensors& p) -> Optimizers { return std::make_unique<optim::RMSprop>(p, optim::RMSpropOptions{.centered = true}); });
}

TEST_CASE("a capturable optimizer steps as any other does, and loads a state into the memory it has") {
  for (const Device where : {cpu_device, gpu}) {
    const NamedTensors plain = many_parameters(where, DType::float32, 9), counted = many_parameters(where, DType::float32, 9);
    optim::Adam of_plain(plain, {.lr = 0.02, .weight_decay = 0.1}), of_counted(counted, {.lr = 0.02, .weight_decay = 0.1});
    of_counted.set_capturable();
    const auto step = [&](int k) {
      give_gradients(plain, k), give_gradients(counted, k);
      of_plain.step(), of_counted.step();
    };
    for (int k = 0; k < 3; ++k) step(k);
    check_close(of_counted.state(), [&] {
      NamedTensors state;
      for (const auto& [name, tensor] : of_plain.state()) state.add(name, to(tensor, cpu_device));
      return state;
    }(), 1e-6, 1e-7);
    const void* before = of_counted.state()["state.p3.exp_avg"].view().data;
    of_counted.load_state(of_plain.state());
    CHECK(of_counted.state()["state.p3.exp_avg"].view().data == before);
    check_same(of_counted.state(), of_plain.state());
    of_counted.set_capturable(false);
    check_same(of_counted.state(), of_plain.state());
  }
}
