// Optimizer steps against torch.optim in float64: three steps of a gradient that depends on the parameter.
#include <doctest/doctest.h>

#include <cmath>
#include <functional>
#include <vector>

#include <fovea/kernels/table.h>
#include <fovea/tensor/creation.h>

#include "tensor_helpers.h"

using namespace fovea;

namespace {

const kernels::KernelTable& cpu() { return kernels::cpu_table(); }

// `copies` times the four values that the golden ones were made of, so that whole vectors, rests and several pieces of work occur.
template <class T>
Tensor repeated(const std::vector<double>& values, int64_t copies) {
  std::vector<T> all;
  for (int64_t i = 0; i < copies; ++i)
    for (double v : values) all.push_back(static_cast<T>(v));
  return from_vector(all);
}

struct State {
  Tensor parameter, gradient, a, b, c;
};

using Step = std::function<void(const State&, int64_t step)>;

void* data_of(Tensor& x) { return x.defined() ? x.mutable_view().data : nullptr; }

// The whole of it as one parameter of a step.
kernels::StepSlot slot_of(State s, bool has_a, bool has_b, bool has_c) {
  kernels::StepSlot slot;
  slot.parameter = data_of(s.parameter);
  slot.gradient = data_of(s.gradient);
  slot.state[0] = has_a ? data_of(s.a) : nullptr;
  slot.state[1] = has_b ? data_of(s.b) : nullptr;
  slot.state[2] = has_c ? data_of(s.c) : nullptr;
  slot.numel = s.parameter.numel();
  slot.dtype = s.parameter.dtype();
  slot.gradient_dtype = s.gradient.dtype();
  return slot;
}

template <class Options>
void step_one(void (*entry)(kernels::Queue, std::span<const Options>, std::span<const kernels::StepSlot>, const kernels::StepControl&), const Options& options,
              const kernels::StepSlot& slot) {
  entry(nullptr, {&options, 1}, {&slot, 1}, {});
}

template <class T>
void check_steps(const Step& step, const std::vector<double>& want, int64_t copies, double tolerance) {
  const std::vector<double> slope = {0.1, -0.2, 0.3, 1.0};
  State s{repeated<T>({1, -2, 3, 0.5}, copies),
          {},
          zeros({4 * copies}, dtype_of<T>),
          zeros({4 * copies}, dtype_of<T>),
          zeros({4 * copies}, dtype_of<T>)};
  for (int64_t k = 1; k <= 3; ++k) {
    std::vector<T> gradient;
    const std::vector<T> p = s.parameter.to_vector<T>();
    for (size_t i = 0; i < p.size(); ++i)
      gradient.push_back(static_cast<T>(slope[i % 4] * static_cast<double>(k)) - static_cast<T>(0.05) * p[i] * p[i]);
    s.gradient = from_vector(gradient);
    step(s, k);
  }
  const std::vector<double> got = s.parameter.to_vector<double>();
  double worst = 0;
  for (size_t i = 0; i < got.size(); ++i) worst = std::max(worst, std::abs(got[i] - want[i % 4]));
  CHECK(worst <= tolerance);
}

Step sgd(double momentum, double dampening, double weight_decay, bool nesterov) {
  return [=](const State& s, int64_t step) {
    step_one(cpu().sgd, kernels::SgdStep{0.1, momentum, dampening, weight_decay, nesterov, step}, slot_of(s, momentum != 0, false, false));
  };
}
Step adam(double beta1, double beta2, double weight_decay, bool is_decoupled) {
  return [=](const State& s, int64_t step) {
    step_one(cpu().adam, kernels::AdamStep{0.1, beta1, beta2, 1e-8, weight_decay, is_decoupled, step}, slot_of(s, true, true, false));
  };
}
Step rmsprop(double momentum, bool is_centered, double weight_decay) {
  return [=](const State& s, int64_t step) {
    step_one(cpu().rmsprop, kernels::RmspropStep{0.1, 0.99, 1e-8, weight_decay, momentum, is_centered, step}, slot_of(s, true, momentum > 0, is_centered));
  };
}
void adagrad(const State& s, int64_t step) { step_one(cpu().adagrad, kernels::AdagradStep{0.1, 0.1, 0.01, 1e-10, step}, slot_of(s, true, false, false)); }

}  // namespace

TEST_CASE("three steps are torch.optim's, in vectors, rests and several pieces") {
  struct Case {
    const char* name;
    Step step;
    std::vector<double> want;
  };
  const Case cases[] = {
      {"sgd", sgd(0, 0, 0, false), {0.95475163623743753, -1.8227269488636799, 2.9554646597675691, -0.097740861056589523}},
      {"sgd momentum dampening decay",
       sgd(0.9, 0.2, 0.01, false),
       {0.93836599449985691, -1.7297631618016938, 2.9674917079416976, -0.31238536479882767}},
      {"sgd nesterov", sgd(0.9, 0, 0, true), {0.89361335143342924, -1.5597664850288411, 2.9285504468410131, -0.95007465813202407}},
      {"adam", adam(0.9, 0.999, 0.01, false), {0.71488608469847947, -1.7014597410991288, 3.0197761897932232, 0.20779481539133296}},
      {"adamw", adam(0.8, 0.95, 0.05, true), {0.69933201084489061, -1.67134413147553, 2.9886068852409351, 0.19855249839237504}},
      {"rmsprop", rmsprop(0, false, 0), {-1.7471864115719131, 0.45934901869224398, 5.5147234657553383, -2.1925882266291534}},
      {"rmsprop centered momentum",
       rmsprop(0.9, true, 0.01),
       {-4.0167554576573679, 2.8591984097742418, 8.2362916360658112, -4.7258984028194897}},
      {"adagrad", adagrad, {0.74450246005673448, -1.764601197350915, 2.9517662544641592, 0.25172467336088317}},
  };
  for (const Case& c : cases) {
    CAPTURE(c.name);
    for (int64_t copies : {1, 5, 9001}) {
      check_steps<double>(c.step, c.want, copies, 1e-14);
      check_steps<float>(c.step, c.want, copies, 2e-6);
    }
  }
}

TEST_CASE("a list of parameters steps each as it would step alone, whatever the number of threads") {
  const std::vector<int64_t> sizes = {1, 0, 7, 16384, 3, 40000, 0, 5, 16379};
  std::vector<Tensor> alone, together, gradients, means[2], squares[2];
  for (const int64_t n : sizes) {
    alone.push_back(testing::random_tensor({n}, DType::float32, static_cast<unsigned>(n)));
    together.push_back(copied_to(alone.back(), Device::cpu()));
    gradients.push_back(testing::random_tensor({n}, DType::float32, static_cast<unsigned>(n) + 1));
    for (int k : {0, 1}) {
      means[k].push_back(zeros({n}));
      squares[k].push_back(zeros({n}));
    }
  }
  const std::vector<kernels::AdamStep> steps = {{0.1, 0.9, 0.99, 1e-8, 0, false, 1}, {0.2, 0.8, 0.9, 1e-6, 0.1, true, 4}};
  std::vector<kernels::StepSlot> slots;
  for (size_t i = 0; i < sizes.size(); ++i) {
    step_one(cpu().adam, steps[i % 2], slot_of({alone[i], gradients[i], means[0][i], squares[0][i], {}}, true, true, false));
    slots.push_back(slot_of({together[i], gradients[i], means[1][i], squares[1][i], {}}, true, true, false));
    slots.back().step = static_cast<int64_t>(i % 2);
  }
  const testing::Threads threads(3);
  cpu().adam(nullptr, steps, slots, {});
  for (size_t i = 0; i < sizes.size(); ++i) {
    CAPTURE(i);
    CHECK(together[i].to_vector<float>() == alone[i].to_vector<float>());
    CHECK(means[1][i].to_vector<float>() == means[0][i].to_vector<float>());
    CHECK(squares[1][i].to_vector<float>() == squares[0][i].to_vector<float>());
  }
}

TEST_CASE("the scale of gradients grows after `interval` good steps, backs off at an infinity, and never overflows") {
  const kernels::ScaleGrowth growth{2, 0.5, 3};
  float scale = 4;
  int32_t good = 0, found[2] = {0, 0};
  const auto after = [&](bool has_found) {
    found[1] = has_found;
    cpu().update_scale(nullptr, growth, &scale, &good, found, 2);
    CHECK(found[1] == 0);
    return scale;
  };
  CHECK(after(false) == 4);
  CHECK(after(false) == 4);
  CHECK(after(false) == 8);
  CHECK(after(false) == 8);
  CHECK(after(true) == 4);
  CHECK(after(false) == 4);                  // counting begins anew
  CHECK(after(false) == 4);
  CHECK(after(false) == 8);
  scale = 0x1p127f;
  for (int i = 0; i < 3; ++i) after(false);
  CHECK(scale == 0x1p127f);
  CHECK(good == 0);
}
