#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include <fovea/autograd/elementwise.h>
#include <fovea/autograd/reduce.h>
#include <fovea/autograd/shape.h>
#include <fovea/kernels/cuda/runtime.h>
#include <fovea/layers/linear.h>
#include <fovea/optim/checkpoint.h>
#include <fovea/optim/clip.h>
#include <fovea/optim/grad_scaler.h>
#include <fovea/optim/optimizers.h>
#include <fovea/optim/schedule.h>
#include <fovea/tensor/npz.h>

#include "devices.h"
#include "file_cases.h"
#include "source_folder.h"
#include "temporary_folder.h"

using namespace fovea;
using namespace fovea::optim;

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();

const NamedTensors& golden() {
  static const NamedTensors arrays = testing::on_default_device(load_npz(testing::source_folder() + "/tests/golden/optim.npz"));
  return arrays;
}

using Make = std::function<std::unique_ptr<Optimizer>(const NamedTensors&)>;
template <class O, class Options>
Make maker(Options options) {
  return [=](const NamedTensors& parameters) { return std::make_unique<O>(parameters, options); };
}

// As in tests/golden/make_optim.py.
const std::pair<std::string, Make> cases[] = {
    {"sgd", maker<SGD>(SGDOptions{.lr = 0.1})},
    {"sgd_decay", maker<SGD>(SGDOptions{.lr = 0.1, .weight_decay = 0.05})},
    {"sgd_momentum", maker<SGD>(SGDOptions{.lr = 0.1, .momentum = 0.9, .dampening = 0.3, .weight_decay = 0.05})},
    {"sgd_nesterov", maker<SGD>(SGDOptions{.lr = 0.1, .momentum = 0.9, .weight_decay = 0.05, .nesterov = true})},
    {"adam", maker<Adam>(AdamOptions{.lr = 0.01})},
    {"adam_decay", maker<Adam>(AdamOptions{.lr = 0.02, .beta1 = 0.8, .beta2 = 0.95, .eps = 1e-3, .weight_decay = 0.1})},
    {"adamw", maker<AdamW>(AdamWOptions{.lr = 0.02, .beta1 = 0.8, .beta2 = 0.95, .weight_decay = 0.1})},
    {"rmsprop", maker<RMSprop>(RMSpropOptions{.lr = 0.01})},
    {"rmsprop_all", maker<RMSprop>(RMSpropOptions{.lr = 0.01, .alpha = 0.9, .eps = 1e-4, .weight_decay = 0.1, .momentum = 0.7, .centered = true})},
    {"rmsprop_centered", maker<RMSprop>(RMSpropOptions{.lr = 0.01, .centered = true})},
    {"adagrad", maker<Adagrad>(AdagradOptions{.lr = 0.1})},
    {"adagrad_all", maker<Adagrad>(AdagradOptions{.lr = 0.1, .lr_decay = 0.1, .weight_decay = 0.1, .initial_accumulator_value = 0.5, .eps = 1e-6})},
};

Tensor leaf(const Tensor& value) { return clone(value).set_requires_grad(); }

NamedTensors start(DType dtype) { return {{"weight", leaf(to(golden()["weight"], dtype))}, {"bias", leaf(to(golden()["bias"], dtype))}}; }

// The second parameter has no gradient in the first two steps.
void give_gradients(const NamedTensors& parameters, int step) {
  const DType dtype = parameters["weight"].dtype();
  parameters["weight"].set_grad(clone(to(golden()[str("gradient", step, "/weight")], dtype)));
  parameters["bias"].set_grad(step < 2 ? Tensor() : clone(to(golden()[str("gradient", step, "/bias")], dtype)));
}

void run(Optimizer& optimizer, const NamedTensors& parameters, int from, int to) {
  for (int step = from; step < to; ++step) {
    give_gradients(parameters, step);
    optimizer.step();
  }
}

void check_close(const Tensor& x, const Tensor& expected, double tolerance) {
  REQUIRE(x.shape() == expected.shape());
  REQUIRE(x.dtype() == expected.dtype());
  const auto a = x.to_vector<double>(), b = expected.to_vector<double>();
  for (size_t i = 0; i < a.size(); ++i) CHECK(std::abs(a[i] - b[i]) <= tolerance * std::max(1.0, std::abs(b[i])));
}

}  // namespace

TEST_CASE("optimizers: six steps give PyTorch's parameters and state, in float32 and float64") {
  for (const auto& [name, make] : cases) {
    for (const DType dtype : {DType::float32, DType::float64}) {
      const std::string label = name;
      CAPTURE(label);
      const NamedTensors parameters = start(dtype);
      const std::unique_ptr<Optimizer> optimizer = make(parameters);
      run(*optimizer, parameters, 0, 6);
      const std::string prefix = name + (dtype == DType::float64 ? "64/" : "/");
      const double tolerance = dtype == DType::float64 ? 1e-14 : 1e-6;
      for (const auto& [key, parameter] : parameters) check_close(parameter, golden()[prefix + key], tolerance);
      const NamedTensors state = optimizer->state();
      size_t compared = 0;
      for (const auto& [key, expected] : golden()) {
        if (!key.starts_with(prefix + "state.")) continue;
        const std::string ours = key.substr(prefix.size());
        CAPTURE(ours);
        check_close(state[ours], expected, tolerance);
        ++compared;
      }
      const bool has_state = name != "sgd" && name != "sgd_decay";
      CHECK((compared > 0) == has_state);
    }
  }
}

TEST_CASE("optimizers: a state saved and loaded goes on bit for bit") {
  for (const auto& [name, make] : cases) {
    for (const int at : {0, 1, 3}) {                                 // before anything, while one parameter has no state yet, and after
      const std::string label = name;
      CAPTURE(label);
      const NamedTensors straight = start(DType::float32);
      const auto whole = make(straight);
      run(*whole, straight, 0, 6);

      const NamedTensors before = start(DType::float32);
      const auto first = make(before);
      run(*first, before, 0, at);
      const NamedTensors after = {{"weight", leaf(before["weight"].detach())}, {"bias", leaf(before["bias"].detach())}};
      const auto second = make(after);
      second->load_state(first->state());
      run(*second, after, at, 6);
      for (const auto& [key, parameter] : straight) check_identical(after[key], parameter);
      const NamedTensors expected = whole->state(), resumed = second->state();
      REQUIRE(expected.size() == resumed.size());
      for (const auto& [key, value] : expected) check_identical(resumed[key], value);
    }
  }
}

TEST_CASE("optimizers: what was loaded does not share memory with what was saved") {
  const NamedTensors parameters = start(DType::float32);
  Adam first(parameters), second(parameters);
  run(first, parameters, 0, 3);
  const NamedTensors state = first.state();
  second.load_state(state);
  const Tensor before = clone(state["state.weight.exp_avg"]);
  run(second, parameters, 3, 4);
  check_identical(state["state.weight.exp_avg"], before);
}

TEST_CASE("optimizers: options are part of the state, and a failed load changes nothing") {
  const NamedTensors parameters = start(DType::float32);
  SGD saved(parameters, {.lr = 0.25, .momentum = 0.5, .nesterov = true});
  saved.set_lr(0.125);
  run(saved, parameters, 0, 3);
  SGD other(parameters, {.lr = 1});
  other.load_state(saved.state());
  CHECK(other.lr() == 0.125);
  other.scale_lr(2);
  CHECK(other.lr() == 0.5);                                          // twice the initial 0.25
  CHECK(other.state()["param_groups.default.momentum"].item() == 0.5);
  CHECK(other.state()["param_groups.default.nesterov"].item() == 1);

  const NamedTensors before = other.state();
  const auto with = [&](const std::string& key, const Tensor& value) {
    NamedTensors state;
    for (const auto& [name, tensor] : saved.state())
      if (name != key) state.add(name, tensor);
    if (value.defined()) state.add(key, value);
    return state;
  };
  const auto check_refused = [&](const NamedTensors& state, const char* reason) {
    CHECK_THROWS_WITH_AS(other.load_state(state), doctest::Contains(reason), ValueError);
    const NamedTensors now = other.state();
    for (const auto& [name, tensor] : before) check_identical(now[name], tensor);
  };
  check_refused(with("param_groups.default.lr", {}), "SGD: load_state: missing \"param_groups.default.lr\"");
  check_refused(with("param_groups.default.momentum", scalar(-1, DType::float64)), "momentum must be");
  check_refused(with("state.weight.momentum_buffer", {}), "missing \"state.weight.momentum_buffer\"");
  check_refused(with("state.weight.momentum_buffer", zeros({3})), "state.weight.momentum_buffer: float32[3], expected float32[4,5]");
  check_refused(with("state.weight.momentum_buffer", zeros({4, 5}, DType::float64)), "float64[4,5], expected float32[4,5]");
  check_refused(with("state.weight.step", from_vector(std::vector<int64_t>{-1}, {})), "must be positive");
  check_refused(with("state.head.step", zeros({})), "unexpected \"state.head.step\"");
  check_refused(Adam(parameters).state(), "missing \"param_groups.default.momentum\", \"param_groups.default.dampening\"");
}

TEST_CASE("optimizers: groups have options of their own") {
  const Tensor a = leaf(ones({3})), b = leaf(ones({3}));
  SGD optimizer({{"fast", {{"a", a}}, {.lr = 0.5}}, {"slow", {{"b", b}}, {.lr = 0.25, .weight_decay = 1}}});
  a.set_grad(ones({3}));
  b.set_grad(ones({3}));
  optimizer.step();
  CHECK(a.to_vector<float>() == std::vector<float>{0.5, 0.5, 0.5});
  CHECK(b.to_vector<float>() == std::vector<float>{0.5, 0.5, 0.5});  // 1 - 0.25 * (1 + 1)
  optimizer.scale_lr(0.5);
  CHECK(optimizer.lr(0) == 0.25);
  CHECK(optimizer.lr(1) == 0.125);
  optimizer.set_lr(1, 2);
  CHECK(optimizer.lr(0) == 0.25);
  CHECK(optimizer.lr(1) == 2);
  CHECK(optimizer.groups() == std::vector<std::string>{"fast", "slow"});
}

TEST_CASE("optimizers: tied weights are stepped once") {
  const Tensor tied = leaf(ones({2}));
  SGD optimizer({{"embedding", tied}, {"head", tied}, {"absent", Tensor()}}, {.lr = 0.5});
  CHECK(optimizer.parameters().size() == 1);
  tied.set_grad(ones({2}));
  optimizer.step();
  CHECK(tied.to_vector<float>() == std::vector<float>{0.5, 0.5});
}

TEST_CASE("optimizers: a step notices tensors that a backward pass has saved") {
  const Tensor w = leaf(ones({2}));
  const uint32_t version = w.version();
  SGD optimizer({{"w", w}});
  w.set_grad(ones({2}));
  optimizer.step();
  CHECK(w.version() > version);
  optimizer.zero_grad();
  CHECK(!w.grad().defined());
}

TEST_CASE("optimizers: empty parameters and strided gradients work") {
  const Tensor nothing = leaf(zeros({0, 3})), w = leaf(zeros({2, 3}));
  Adam adam({{"nothing", nothing}, {"w", w}});
  nothing.set_grad(zeros({0, 3}));
  w.set_grad(transpose(counting({3, 2}, DType::float32)));
  adam.step();
  const std::vector<float> stepped = w.to_vector<float>();           // the gradient is -3 -1 1 / -2 0 2; a first step goes lr against its sign
  const std::vector<float> expected = {1e-3f, 1e-3f, -1e-3f, 1e-3f, 0, -1e-3f};
  for (size_t i = 0; i < 6; ++i) CHECK(stepped[i] == doctest::Approx(expected[i]).epsilon(1e-4));
}

TEST_CASE("optimizers: bad options, parameters and gradients are refused before anything changes") {
  const NamedTensors p = {{"w", leaf(ones({2}))}};
  CHECK_THROWS_WITH_AS(SGD(p, {.lr = -1}), "SGD: lr must be a finite number that is not negative, got -1", ValueError);
  CHECK_THROWS_AS(SGD(p, {.lr = not_a_number}), ValueError);
  CHECK_THROWS_AS(SGD(p, {.nesterov = true}), ValueError);
  CHECK_THROWS_AS(SGD(p, {.momentum = 0.9, .dampening = 0.1, .nesterov = true}), ValueError);
  CHECK_THROWS_WITH_AS(AdamW(p, {.beta2 = 1}), "AdamW: beta2 must be in [0, 1), got 1", ValueError);
  CHECK_THROWS_AS(RMSprop(p, {.eps = -1}), ValueError);
  CHECK_THROWS_AS(Adagrad(p, {.lr_decay = -1}), ValueError);
  CHECK_THROWS_WITH_AS(SGD({{"w", zeros({2}, DType::int32)}}), doctest::Contains("\"w\" is int32"), DTypeError);
  CHECK_THROWS_WITH_AS(SGD({{"w", transpose(zeros({2, 3}))}}), doctest::Contains("not contiguous"), ShapeError);
  const std::vector<Group<SGDOptions>> twice = {{"a", p}, {"b", p}}, same_name = {{"a", p}, {"a", {{"v", ones({1})}}}}, one_name = {{"a", p}, {"b", {{"w", ones({1})}}}};
  CHECK_THROWS_WITH_AS(SGD{twice}, doctest::Contains("\"w\" is in two groups, \"a\" and \"b\""), ValueError);
  CHECK_THROWS_WITH_AS(SGD{same_name}, doctest::Contains("two groups are named \"a\""), ValueError);
  CHECK_THROWS_WITH_AS(SGD{one_name}, doctest::Contains("two parameters are named \"w\""), ValueError);

  const Tensor w = leaf(ones({2}));
  Tensor late = leaf(ones({2}));
  SGD optimizer({{"w", w}, {"late", late}}, {.lr = 1, .momentum = 0.9});
  CHECK_THROWS_AS(optimizer.set_lr(not_a_number), ValueError);
  CHECK_THROWS_AS(optimizer.set_lr(0, -1), ValueError);
  CHECK_THROWS_AS(optimizer.lr(2), IndexError);
  w.set_grad(zeros({2}));
  late.set_grad(zeros({2}));
  optimizer.step();
  w.set_grad(ones({2}));
  {
    NoGrad no_grad;
    late.set_grad({});
    late.impl().storage = to(late, DType::float16).storage();          // as Module::to() does
    late.impl().dtype = DType::float16;
  }
  late.set_grad(ones({2}, DType::float16));
  CHECK_THROWS_WITH_AS(optimizer.step(), doctest::Contains("\"late\" became float16"), DTypeError);
  CHECK(w.to_vector<float>() == std::vector<float>{1, 1});
}

TEST_CASE("clipping: norms and gradients are PyTorch's") {
  for (const auto& [key, norm_type] : {std::pair{"clip2", 2.0}, {"clip_inf", infinity}}) {
    const NamedTensors parameters = start(DType::float32);
    parameters["weight"].set_grad(clone(golden()["gradient0/weight"]));
    parameters["bias"].set_grad(clone(golden()["gradient0/bias"]));
    CHECK(clip_grad_norm(parameters, 1.5, {.norm_type = norm_type}) == doctest::Approx(golden()[str(key, "/norm")].item()).epsilon(1e-6));
    for (const auto& [name, parameter] : parameters) check_close(parameter.grad(), golden()[str(key, "/", name)], 1e-6);
  }
}

TEST_CASE("clipping: small gradients stay bit for bit, large ones end at the limit") {
  const Tensor w = leaf(zeros({2})), v = leaf(zeros({1})), unused = leaf(zeros({1})), nothing = leaf(zeros({0}));
  const NamedTensors parameters = {{"w", w}, {"v", v}, {"unused", unused}, {"nothing", nothing}, {"absent", Tensor()}};
  w.set_grad(tensor({3, 0}));
  v.set_grad(tensor({-4}));
  nothing.set_grad(zeros({0}));
  CHECK(clip_grad_norm(parameters, 6) == 5);
  CHECK(w.grad().to_vector<float>() == std::vector<float>{3, 0});
  CHECK(clip_grad_norm(parameters, 1) == 5);
  CHECK(clip_grad_norm(parameters, 10) == doctest::Approx(1).epsilon(1e-5));
  CHECK(w.grad().to_vector<float>()[0] == doctest::Approx(0.6));
  clip_grad_value(parameters, 0.5);
  CHECK(w.grad().to_vector<float>() == std::vector<float>{0.5, 0});
  CHECK(v.grad().to_vector<float>() == std::vector<float>{-0.5});
  CHECK(clip_grad_norm({}, 1) == 0);
}

TEST_CASE("clipping: gradients that are not finite give an error where that is asked for, and keep their values") {
  for (const double bad : {not_a_number, infinity}) {
    const Tensor w = leaf(zeros({2})), v = leaf(zeros({1}));
    w.set_grad(tensor({1, 2}));
    v.set_grad(tensor({bad}));
    for (const double norm_type : {2.0, infinity}) {
      CHECK_THROWS_WITH_AS(clip_grad_norm({{"w", w}, {"v", v}}, 1, {.norm_type = norm_type, .error_if_nonfinite = true}), "clip_grad_norm: the gradient of \"v\" is not finite", ValueError);
      CHECK(w.grad().to_vector<float>() == std::vector<float>{1, 2});
    }
    CHECK(!std::isfinite(clip_grad_norm({{"w", w}, {"v", v}}, 1)));
  }
  CHECK_THROWS_AS(clip_grad_norm({}, 1, {.norm_type = 1}), ValueError);
  CHECK_THROWS_AS(clip_grad_norm({}, -1), ValueError);
  CHECK_THROWS_AS(clip_grad_norm({}, not_a_number), ValueError);
  CHECK_THROWS_AS(clip_grad_value({}, -1), ValueError);
}

TEST_CASE("schedules: PyTorch's learning rates over thirty steps") {
  const std::pair<const char*, Schedule> schedules[] = {
      {"step", step_decay(0.4, 7, 0.5)},
      {"multi_step", multi_step(0.4, {25, 3, 11}, 0.2)},
      {"exponential", exponential(0.4, 0.9)},
      {"linear", linear(0.1, 0.4, 12)},
      {"cosine", cosine(0.4, 20, 0.05)},
      {"sequence", sequence({{linear_warmup(0.4, 5, 0.04), 5}}, exponential(0.4, 0.95))},
  };
  for (const auto& [name, schedule] : schedules) {
    const std::string label = name;
    CAPTURE(label);
    const std::vector<double> expected = golden()[str("schedule/", name)].to_vector<double>();
    REQUIRE(expected.size() == 30);
    for (int64_t step = 29; step >= 0; --step) CHECK(schedule(step) == doctest::Approx(expected[static_cast<size_t>(step)]).epsilon(1e-12));   // in any order
  }
}

TEST_CASE("schedules: ends are met exactly") {
  CHECK(constant(0.1)(1000000) == 0.1);
  CHECK(cosine(0.4, 20, 0.05)(0) == 0.4);
  CHECK(cosine(0.4, 20, 0.05)(20) == 0.05);
  CHECK(cosine(0.4, 20, 0.05)(1000000) == 0.05);
  CHECK(linear_warmup(0.3, 7)(0) == 0);
  CHECK(linear_warmup(0.3, 7)(7) == 0.3);
  CHECK(linear_warmup(0.3, 7)(8) == 0.3);
  const Schedule warmup = exponential_warmup(1, 10, 0.01);
  CHECK(warmup(0) == 0.01);
  CHECK(warmup(5) == doctest::Approx(0.1));
  CHECK(warmup(10) == 1);
  const Schedule chain = sequence({{constant(1), 2}, {constant(2), 3}}, linear(0, 1, 1));
  CHECK(chain(1) == 1);
  CHECK(chain(2) == 2);
  CHECK(chain(4) == 2);
  CHECK(chain(5) == 0);
  CHECK(chain(6) == 1);
}

TEST_CASE("schedules: bad arguments are refused when the schedule is made") {
  CHECK_THROWS_AS(step_decay(0.1, 0), ValueError);
  CHECK_THROWS_AS(cosine(not_a_number, 10), ValueError);
  CHECK_THROWS_AS(cosine(0.1, 0), ValueError);
  CHECK_THROWS_AS(linear(0, infinity, 5), ValueError);
  CHECK_THROWS_AS(exponential_warmup(1, 10, 0), ValueError);
  CHECK_THROWS_AS(sequence({{constant(1), 0}}, constant(1)), ValueError);
  CHECK_THROWS_AS(sequence({{nullptr, 1}}, constant(1)), ValueError);
  CHECK_THROWS_AS(sequence({}, nullptr), ValueError);
}

// --- loss scaling ---

namespace {

void give_gradient(const Tensor& parameter, const std::vector<double>& values) {
  parameter.set_grad(to(from_vector(values, parameter.shape()), parameter.dtype()));
}

std::vector<float> values_of(const Tensor& x) { return x.detach().to_vector<float>(); }

}  // namespace

TEST_CASE("GradScaler: scale() multiplies the loss and every gradient, a loss of a half type in float32") {
  GradScaler scaler({.init_scale = 1024});
  const Tensor w = leaf(tensor({1, 2}));
  scaler.scale(sum(w * w)).backward();
  CHECK(values_of(w.grad()) == std::vector<float>{2048, 4096});
  const Tensor half = full(Shape{}, 300, DType::float16);                    // times the scale it would be infinite in float16
  CHECK(scaler.scale(half).dtype() == DType::float32);
  CHECK(scaler.scale(half).item() == 300 * 1024);
  CHECK(scaler.scale(full(Shape{}, 0.5, DType::float64)).dtype() == DType::float64);
  CHECK_THROWS_WITH_AS(scaler.scale(full(Shape{}, 1, DType::int64)), "GradScaler: the loss is int64, expected a floating-point type", DTypeError);
}

TEST_CASE("GradScaler: a step divides gradients by the scale, in unscale() or within, in every type") {
  for (const bool is_capturable : {false, true})
    for (const bool is_unscaled : {false, true})
      for (const DType dtype : {DType::float32, DType::float64, DType::float16, DType::bfloat16}) {
        if (is_unscaled && dtype == DType::float16) continue;                // refused, see below
        CAPTURE(is_capturable);
        CAPTURE(is_unscaled);
        CAPTURE(dtype);
        const Tensor w = leaf(zeros({2}, dtype)), unused = leaf(ones({1}, dtype)), nothing = leaf(zeros({0, 3}, dtype));
        SGD optimizer({{"w", w}, {"unused", unused}, {"nothing", nothing}}, {.lr = 1});
        optimizer.set_capturable(is_capturable);
        GradScaler scaler({.init_scale = 16});
        scaler.scale(ones({}));
        give_gradient(w, {8, -32});
        nothing.set_grad(zeros({0, 3}, dtype));
        if (is_unscaled) scaler.unscale(optimizer);
        CHECK(values_of(w.grad()) == (is_unscaled ? std::vector<float>{0.5, -2} : std::vector<float>{8, -32}));
        scaler.step(optimizer);
        CHECK(values_of(w) == std::vector<float>{-0.5, 2});
        CHECK(values_of(unused) == std::vector<float>{1});
        scaler.update();
        CHECK(scaler.current_scale() == 16);
        CHECK(scaler.state()["good_steps"].item() == 1);
      }
}

TEST_CASE("GradScaler: unscale() keeps the strides of a gradient") {
  const Tensor w = leaf(zeros({2, 3}));
  SGD optimizer({{"w", w}}, {.lr = 1});
  GradScaler scaler({.init_scale = 2});
  scaler.scale(ones({}));
  w.set_grad(transpose(counting({3, 2}, DType::float32)));
  scaler.unscale(optimizer);
  CHECK(!w.grad().is_contiguous());
  CHECK(contiguous(w.grad()).to_vector<float>() == std::vector<float>{-1.5, -0.5, 0.5, -1, 0, 1});
}

TEST_CASE("GradScaler: a step is left out where one gradient is infinite or NaN, and leaves no trace in the optimizer") {
  for (const bool is_capturable : {false, true})
    for (const bool is_unscaled : {false, true})
      for (const double bad : {infinity, -infinity, not_a_number}) {
        CAPTURE(is_capturable);
        CAPTURE(is_unscaled);
        CAPTURE(bad);
        const Tensor w = leaf(ones({2})), v = leaf(ones({3}));
        Adam optimizer({{"w", w}, {"v", v}}, {.lr = 0.5});
        optimizer.set_capturable(is_capturable);
        GradScaler scaler({.init_scale = 16});
        const auto step = [&](double last) {
          scaler.scale(ones({}));
          give_gradient(w, {1, 1});
          give_gradient(v, {1, 1, last});
          if (is_unscaled) scaler.unscale(optimizer);
          scaler.step(optimizer);
          scaler.update();
        };
        step(bad);
        CHECK(values_of(w) == std::vector<float>{1, 1});
        CHECK(values_of(v) == std::vector<float>{1, 1, 1});
        CHECK(!optimizer.state().contains("state.w.step"));
        CHECK(scaler.current_scale() == 8);
        step(1);
        CHECK(values_of(w)[0] == doctest::Approx(0.5));
        CHECK(optimizer.state()["state.w.step"].item() == 1);
        CHECK(scaler.current_scale() == 8);
      }
}

TEST_CASE("GradScaler: many good steps in a row raise the scale, a bad one lowers it and counts anew") {
  const Tensor w = leaf(ones({1})), v = leaf(ones({1}));
  SGD first({{"w", w}}), second({{"v", v}});
  GradScaler scaler({.init_scale = 64, .growth_factor = 4, .backoff_factor = 0.25, .growth_interval = 3});
  const auto scale_after = [&](double of_first, double of_second) {
    scaler.scale(ones({}));
    give_gradient(w, {of_first});
    give_gradient(v, {of_second});
    scaler.step(first);
    scaler.step(second);
    scaler.update();
    return scaler.current_scale();
  };
  CHECK(scale_after(1, 1) == 64);
  CHECK(scale_after(1, 1) == 64);
  CHECK(scale_after(1, 1) == 256);
  CHECK(scale_after(1, 1) == 256);
  CHECK(scale_after(1, infinity) == 64);                                     // one of two optimizers is enough
  CHECK(scale_after(1, 1) == 64);
  CHECK(scale_after(not_a_number, 1) == 16);
  for (int k = 0; k < 2; ++k) CHECK(scale_after(1, 1) == 16);
  CHECK(scale_after(1, 1) == 64);

  GradScaler large({.init_scale = 0x1p127, .growth_interval = 1});           // twice that is infinite in float32
  large.scale(ones({}));
  give_gradient(w, {1});
  large.step(first);
  large.update();
  CHECK(large.current_scale() == 0x1p127);

  GradScaler small({.init_scale = 0x1p-125, .growth_interval = 1});          // a quarter of that is no normal number, and at zero nothing would raise it again
  for (const double expected : {0x1p-126, 0x1p-126, 0x1p-126}) {
    small.scale(ones({}));
    give_gradient(w, {infinity});
    small.step(first);
    small.update();
    CHECK(small.current_scale() == expected);
  }
  give_gradient(w, {0});
  small.scale(ones({}));
  small.step(first);
  small.update();
  CHECK(small.current_scale() == 0x1p-125);
}

TEST_CASE("an undefined tensor in a saved state, or as a loss, is named") {
  GradScaler scaler;
  CHECK_THROWS_WITH_AS(scaler.scale({}), "GradScaler: the loss is an undefined tensor", ValueError);
  NamedTensors state;
  for (const auto& [name, tensor] : scaler.state()) state.add(name, name == "scale" ? Tensor() : tensor);
  CHECK_THROWS_WITH_AS(scaler.load_state(state), "GradScaler: load_state: scale is an undefined tensor", ValueError);
  optim::Adam adam({{"w", leaf(ones({1}))}});
  NamedTensors of_adam;
  for (const auto& [name, tensor] : adam.state()) of_adam.add(name, Tensor());
  CHECK_THROWS_WITH_AS(adam.load_state(of_adam), doctest::Contains("param_groups.default.lr: an undefined tensor"), ValueError);
}

TEST_CASE("GradScaler: what comes in the wrong order is refused") {
  const Tensor w = leaf(ones({1})), half = leaf(ones({1}, DType::float16));
  SGD optimizer({{"w", w}}), of_half({{"half", half}});
  GradScaler scaler;
  scaler.scale(ones({}));
  CHECK_THROWS_WITH_AS(scaler.update(), "GradScaler: update() comes after a step()", ValueError);
  give_gradient(w, {1});
  scaler.unscale(optimizer);
  CHECK_THROWS_WITH_AS(scaler.unscale(optimizer), doctest::Contains("were unscaled already since the last update()"), ValueError);
  scaler.step(optimizer);
  CHECK_THROWS_WITH_AS(scaler.step(optimizer), doctest::Contains("this SGD has stepped already since the last update()"), ValueError);
  scaler.update();
  scaler.step(optimizer);
  CHECK_THROWS_WITH_AS(scaler.unscale(optimizer), doctest::Contains("unscale() comes after step()"), ValueError);
  scaler.update();
  give_gradient(half, {1});
  CHECK_THROWS_WITH_AS(scaler.unscale(of_half), doctest::Contains("the gradient of \"half\" is float16"), DTypeError);
  CHECK(values_of(half.grad()) == std::vector<float>{1});

  CHECK_THROWS_AS(GradScaler({.init_scale = 0}), ValueError);
  CHECK_THROWS_AS(GradScaler({.init_scale = infinity}), ValueError);
  CHECK_THROWS_AS(GradScaler({.init_scale = 1e39}), ValueError);             // infinite in float32
  CHECK_THROWS_AS(GradScaler({.init_scale = 1e-50}), ValueError);            // zero in float32
  CHECK_THROWS_AS(GradScaler({.growth_factor = 1}), ValueError);
  CHECK_THROWS_AS(GradScaler({.growth_factor = not_a_number}), ValueError);
  CHECK_THROWS_AS(GradScaler({.backoff_factor = 1}), ValueError);
  CHECK_THROWS_AS(GradScaler({.backoff_factor = not_a_number}), ValueError);
  CHECK_THROWS_AS(GradScaler({.growth_interval = 0}), ValueError);
}

TEST_CASE("GradScaler: a state saved and loaded goes on, and a failed load changes nothing") {
  const Tensor w = leaf(ones({1}));
  SGD optimizer({{"w", w}});
  const auto step = [&](GradScaler& scaler, double gradient) {
    scaler.scale(ones({}));
    give_gradient(w, {gradient});
    scaler.step(optimizer);
    scaler.update();
  };
  GradScaler saved({.init_scale = 64, .growth_factor = 8, .backoff_factor = 0.25, .growth_interval = 3}), loaded;
  for (const double gradient : {infinity, 1.0, 1.0}) step(saved, gradient);
  const NamedTensors state = saved.state();
  loaded.load_state(state);
  CHECK(loaded.current_scale() == 16);
  for (const auto& [name, tensor] : state) check_identical(loaded.state()[name], tensor);
  step(saved, 1), step(loaded, 1);
  CHECK(saved.current_scale() == 128);
  CHECK(loaded.current_scale() == 128);
  CHECK(state["scale"].item() == 16);                                        // a copy

  const NamedTensors before = loaded.state();
  const auto check_refused = [&](const std::string& key, const Tensor& value, const char* reason) {
    NamedTensors changed;
    for (const auto& [name, tensor] : state)
      if (name != key) changed.add(name, tensor);
    if (value.defined()) changed.add(key, value);
    CHECK_THROWS_WITH_AS(loaded.load_state(changed), doctest::Contains(reason), ValueError);
    const NamedTensors now = loaded.state();
    for (const auto& [name, tensor] : before) check_identical(now[name], tensor);
  };
  check_refused("scale", {}, "GradScaler: load_state: missing \"scale\"");
  check_refused("scale", zeros({}), "scale must be positive and finite, got 0");
  check_refused("scale", scalar(2, DType::float64), "scale: float64[], expected float32[]");
  check_refused("good_steps", zeros({1}, DType::int32), "good_steps: int32[1], expected int32[]");
  check_refused("good_steps", full(Shape{}, -1, DType::int32), "good_steps must not be negative");
  check_refused("growth_factor", scalar(0.5, DType::float64), "growth_factor must be above 1, got 0.5");
  check_refused("backoff_factor", scalar(2, DType::float64), "backoff_factor must be between 0 and 1");
  for (const double bad : {0.0, 1e30, infinity, not_a_number}) check_refused("growth_interval", scalar(bad, DType::float64), "growth_interval must be");
}

TEST_CASE("GradScaler: one that is off leaves everything to the optimizer") {
  const Tensor w = leaf(ones({2}));
  SGD optimizer({{"w", w}}, {.lr = 0.5});
  GradScaler scaler({.enabled = false});
  const Tensor loss = sum(w);
  CHECK(scaler.scale(loss).is_same(loss));
  give_gradient(w, {2, infinity});
  scaler.unscale(optimizer);
  CHECK(values_of(w.grad())[0] == 2);
  scaler.step(optimizer);
  CHECK(values_of(w) == std::vector<float>{0, -static_cast<float>(infinity)});
  scaler.update();
  CHECK(scaler.current_scale() == 1);
  CHECK(scaler.state()["scale"].item() == 65536);                            // what one that is on would start from
}

// --- half types, devices, tensors with nothing in them ---

TEST_CASE("optimizers: parameters of half types resume bit for bit from a checkpoint file") {
  const TemporaryFolder folder;
  for (const DType dtype : {DType::float16, DType::bfloat16})
    for (const bool is_capturable : {false, true}) {
      CAPTURE(dtype);
      CAPTURE(is_capturable);
      const std::string path = folder / "half.safetensors";
      const auto step = [](layers::Linear& net, Optimizer& optimizer, int k) {
        for (const auto& [name, parameter] : net.named_parameters())
          parameter.set_grad(to(testing::filled<float>(parameter.shape(), [k](int64_t i) { return std::sin(0.3 * static_cast<double>(i) + k); }), parameter.dtype()));
        optimizer.step();
      };
      layers::Linear straight(5, 3), resumed(5, 3);
      straight.to(dtype), resumed.to(dtype);
      Adam first(straight.named_parameters(), {.lr = 1e-4}), second(resumed.named_parameters());      // one step is less than a rounding
      first.set_capturable(is_capturable), second.set_capturable(is_capturable);
      for (int k = 0; k < 3; ++k) step(straight, first, k);
      GradScaler scaler({.init_scale = 32});
      save_checkpoint(path, straight, first, {.step = 3, .tensors = scaler.state()});
      const TrainingState at = load_checkpoint(path, resumed, second);
      GradScaler again;
      again.load_state(at.tensors);
      CHECK(again.current_scale() == 32);
      check_identical(second.state()["state.weight.master"], first.state()["state.weight.master"]);
      CHECK(second.state()["state.weight.master"].dtype() == DType::float32);
      for (int k = 3; k < 8; ++k) step(straight, first, k), step(resumed, second, k);
      for (const auto& [name, parameter] : straight.named_parameters()) check_identical(resumed.named_parameters()[name].detach(), parameter.detach());
      const NamedTensors expected = first.state(), state = second.state();
      REQUIRE(state.size() == expected.size());
      for (const auto& [name, tensor] : expected) check_identical(state[name], tensor);
    }
}

TEST_CASE("optimizers: parameters with no elements or no gradient are left as they are, capturable or not, of every optimizer and type") {
  for (const auto& [name, make] : cases)
    for (const bool is_capturable : {false, true})
      for (const DType dtype : {DType::float32, DType::float16}) {
        const std::string label = name;
        CAPTURE(label);
        CAPTURE(is_capturable);
        CAPTURE(dtype);
        const Tensor nothing = leaf(zeros({3, 0}, dtype)), unused = leaf(ones({2}, dtype)), w = leaf(ones({2}, dtype));
        const auto optimizer = make({{"nothing", nothing}, {"unused", unused}, {"w", w}});
        optimizer->set_capturable(is_capturable);
        optimizer->step();                                                   // nothing has a gradient
        CHECK(!optimizer->state().contains("state.w.step"));
        nothing.set_grad(zeros({3, 0}, dtype));
        optimizer->step();                                                   // only what is empty has one
        give_gradient(w, {1, -1});
        CHECK(clip_grad_norm(optimizer->parameters(), 10) == doctest::Approx(std::sqrt(2)));
        optimizer->step();
        CHECK(values_of(unused) == std::vector<float>{1, 1});
        CHECK(values_of(w)[0] < 1);
        CHECK(nothing.shape() == Shape{3, 0});
        const NamedTensors state = optimizer->state();
        CHECK(state["state.nothing.step"].item() == 2);
        CHECK(state["state.w.step"].item() == 1);
        CHECK(!state.contains("state.unused.step"));
        const auto second = make({{"nothing", leaf(nothing.detach())}, {"unused", leaf(unused.detach())}, {"w", leaf(w.detach())}});
        second->load_state(state);
        CHECK(second->state().size() == state.size());
      }
}

TEST_CASE("optimizers: parameters on the CPU and on a CUDA device are stepped as on one device; a scaler wants them on one") {
  if (cuda::device_count() == 0) return;
  for (const auto& [name, make] : cases)
    for (const bool is_capturable : {false, true}) {
      const std::string label = name;
      CAPTURE(label);
      CAPTURE(is_capturable);
      const auto on = [&](const char* key, Device device) { return copied_to(golden()[key], device).set_requires_grad(); };
      const NamedTensors here = {{"weight", on("weight", Device::cpu())}, {"bias", on("bias", Device::cpu())}};
      const NamedTensors mixed = {{"weight", on("weight", Device::cpu())}, {"bias", on("bias", Device::cuda())}};
      const auto of_here = make(here), of_mixed = make(mixed);
      of_here->set_capturable(is_capturable), of_mixed->set_capturable(is_capturable);
      for (int k = 2; k < 5; ++k) {
        for (const NamedTensors& parameters : {here, mixed})
          for (const auto& [key, parameter] : parameters) parameter.set_grad(copied_to(golden()[str("gradient", k, "/", key)], parameter.device()));
        CHECK(clip_grad_norm(mixed, 1) == doctest::Approx(clip_grad_norm(here, 1)).epsilon(1e-6));
        of_here->step(), of_mixed->step();
      }
      for (const auto& [key, parameter] : here) check_close(mixed[key].detach(), parameter.detach(), 1e-6);
      CHECK(mixed["bias"].device() == Device::cuda());
      const auto again = make(mixed);
      again->load_state(of_mixed->state());
      for (const auto& [key, tensor] : of_mixed->state()) check_identical(again->state()[key], tensor);
    }

  const Tensor w = ones({1}, Device::cpu()).set_requires_grad(), v = ones({1}, Device::cuda()).set_requires_grad();
  SGD optimizer({{"w", w}, {"v", v}}, {.lr = 0.5});
  w.set_grad(full({1}, 8, Device::cpu())), v.set_grad(full({1}, 8, Device::cuda()));
  GradScaler scaler({.init_scale = 8});
  scaler.scale(ones({}, Device::cuda()));
  for (int k = 0; k < 2; ++k) {                                              // an error leaves nothing behind
    CHECK_THROWS_WITH_AS(scaler.step(optimizer), doctest::Contains("SGD has gradients on cpu, the scale is on cuda:0"), DeviceError);
    CHECK_THROWS_AS(scaler.unscale(optimizer), DeviceError);
  }
  scaler.scale(ones({}, Device::cpu()));
  w.set_grad(full({1}, 8, Device::cpu())), v.set_grad({});
  scaler.step(optimizer);
  CHECK(w.item() == 0.5);
  CHECK(v.item() == 1);
  CHECK_THROWS_WITH_AS(scaler.scale(ones({}, Device::cuda())), doctest::Contains("the loss is on cuda:0, gradients since the last update() were on cpu"), DeviceError);
  scaler.update();
  CHECK(scaler.scale(ones({}, Device::cuda())).item() == 8);                 // the scale moves, and keeps its value
}
