// CUDA's optimizer steps against the CPU's: several steps of every variant, float32 and float64, aligned and not.
#include <doctest/doctest.h>

#include <functional>

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
