#include <doctest/doctest.h>

#include <cmath>
#include <functional>
#include <limits>

#include <fovea/fovea.h>

#include "devices.h"
#include "messages.h"
#include "source_folder.h"

using namespace fovea;
using namespace fovea::testing;
using namespace fovea::layers;

namespace {

const NamedTensors& values() {
  static const NamedTensors tensors =
      on_default_device(load_safetensors(testing::source_folder() + "/tests/golden/layers/losses.values.safetensors").tensors);
  return tensors;
}

// The loss and its gradient to x are what PyTorch wrote under `name`.
void check_golden(const std::string& name, const Tensor& value, const std::function<Tensor(const Tensor&)>& loss) {
  CAPTURE(name);
  Tensor x = clone(value);
  x.set_requires_grad(true);
  const Tensor y = loss(x);
  CHECK(compare(y, values()[name], {.rtol = 2e-5, .atol = 1e-6}));
  sum(y).backward();
  CHECK(compare(x.grad(), values()["grad." + name], {.rtol = 1e-4, .atol = 1e-6}));
}

void check_golden(const std::string& name, Loss&& loss, const std::string& x, const std::string& target) {
  check_golden(name, values()[x], [&](const Tensor& prediction) { return loss(prediction, values()[target]); });
}

Tensor labels(std::vector<int64_t> list) { return from_vector(list); }

}  // namespace

TEST_CASE("loss: cross-entropy and negative log-likelihood, with weights, smoothing and ignored labels, are PyTorch's") {
  const Tensor weights = values()["weights"];
  check_golden("cross_entropy", CrossEntropyLoss(), "logits", "targets");
  check_golden("cross_entropy_none", CrossEntropyLoss({.reduction = Reduction::none}), "logits", "targets");
  check_golden("cross_entropy_all", CrossEntropyLoss({.weight = weights, .label_smoothing = 0.1}), "logits", "with_ignored");
  check_golden("cross_entropy_smooth", CrossEntropyLoss({.reduction = Reduction::sum, .label_smoothing = 0.2}), "logits", "targets");
  check_golden("cross_entropy_image", CrossEntropyLoss(), "image_logits", "image_targets");
  NLLLoss nll({.weight = weights});
  check_golden("nll", values()["logits"], [&](const Tensor& x) { return nll(log_softmax(x, 1), values()["with_ignored"]); });
}

TEST_CASE("loss: a label of 8 bits is not taken for the ignored one") {
  const Tensor x = log_softmax(reshape(linspace(0, 4, 400), {2, 200}), 1);
  const Tensor wide = labels({156, 3}), narrow = to(wide, DType::uint8);       // 156 is -100 modulo 256
  CHECK(equal(NLLLoss()(x, narrow), NLLLoss()(x, wide)));
  CHECK(equal(CrossEntropyLoss()(x, narrow), CrossEntropyLoss()(x, wide)));
}

TEST_CASE("loss: distances are PyTorch's") {
  check_golden("mse", MSELoss(), "a", "b");
  check_golden("l1", L1Loss(), "a", "b");
  check_golden("smooth_l1", SmoothL1Loss({.beta = 0.7}), "a", "b");
}

TEST_CASE("loss: binary cross-entropy from logits is PyTorch's") {
  check_golden("bce", BCEWithLogitsLoss(), "a", "binary");
  check_golden("bce_weighted", BCEWithLogitsLoss({.positive_weight = tensor({2.0, 1.0, 0.5})}), "a", "binary");
}

TEST_CASE("loss: Kullback-Leibler divergence is PyTorch's") {
  const Tensor b = values()["b"];
  check_golden("kl", values()["a"], [&](const Tensor& x) { return KLDivLoss({.batch_mean = true})(log_softmax(x, 1), softmax(b, 1)); });
  check_golden("kl_log", values()["a"], [&](const Tensor& x) {
    return KLDivLoss({.log_target = true, .reduction = Reduction::sum})(log_softmax(x, 1), log_softmax(b, 1));
  });
}

TEST_CASE("loss: CTC is PyTorch's, from logits as from log-probabilities") {
  const NamedTensors& v = values();
  auto loss = [&](Reduction reduction, bool is_normalised) {
    return [&v, reduction, is_normalised](const Tensor& x) {
      return CTCLoss({.reduction = reduction})(is_normalised ? log_softmax(x, 2) : x, v["labels"], v["lengths"], v["label_lengths"]);
    };
  };
  check_golden("ctc", v["scores"], loss(Reduction::mean, false));
  check_golden("ctc", v["scores"], loss(Reduction::mean, true));
  check_golden("ctc_none", v["scores"], loss(Reduction::none, false));
}

TEST_CASE("loss: hinge in both forms") {
  check_golden("hinge", HingeLoss(), "a", "signs");
  check_golden("hinge_squared", HingeLoss({.margin = 0.5, .squared = true}), "a", "signs");
  check_golden("multi_margin", MulticlassHingeLoss(), "logits", "targets");
  check_golden("multi_margin_squared", MulticlassHingeLoss({.margin = 0.5, .squared = true}), "logits", "targets");
  // by hand: 1 + 1 - 3 < 0 counts nothing, 1 + 2.5 - 3 = 0.5
  CHECK(MulticlassHingeLoss()(tensor({{3, 1, 2.5}}), labels({0})).item() == 0.5);
  CHECK(MulticlassHingeLoss({.squared = true})(tensor({{3, 1, 2.5}}), labels({0})).item() == 0.25);
  CHECK(HingeLoss({.reduction = Reduction::none})(tensor({2, 0.5, -1}), tensor({1, 1, 1})).to_vector<float>() ==
        std::vector<float>{0, 0.5, 2});
}

TEST_CASE("loss: scores that would overflow give finite losses and gradients") {
  Tensor x = tensor({1e4, -1e4, 0});
  x.set_requires_grad(true);
  const Tensor loss = BCEWithLogitsLoss({.reduction = Reduction::none})(x, tensor({0, 1, 0.5}));
  CHECK(loss.to_vector<double>()[0] == 1e4);
  CHECK(loss.to_vector<double>()[1] == 1e4);
  CHECK(loss.to_vector<double>()[2] == doctest::Approx(std::log(2.0)));
  sum(loss).backward();
  CHECK(x.grad().to_vector<double>() == std::vector<double>{1, -1, 0});
  const Tensor target = tensor({{1, 0}});                                    // 0 log 0 is 0
  CHECK(KLDivLoss({.reduction = Reduction::sum})(tensor({{-2, -100}}), target).item() == 2);
}

TEST_CASE("loss: gradients are the limits of differences") {
  manual_seed(4);
  const Tensor scores = randn({3, 4}, DType::float64), target = rand({3, 4}, DType::float64), y = labels({1, 3, -100}),
               all = labels({1, 3, 0});
  auto ok = [&](const char* name, const std::function<Tensor(const Tensor&)>& loss) {
    CAPTURE(name);
    Tensor x = clone(scores);
    x.set_requires_grad(true);
    CHECK(gradcheck([&](const std::vector<Tensor>& in) { return loss(in[0]); }, {x}) == "");
    CHECK(gradgradcheck([&](const std::vector<Tensor>& in) { return loss(in[0]); }, {x}) == "");
  };
  ok("cross entropy", [&](const Tensor& x) { return CrossEntropyLoss({.label_smoothing = 0.1})(x, y); });
  ok("nll", [&](const Tensor& x) { return NLLLoss()(x, y); });
  ok("mse", [&](const Tensor& x) { return MSELoss()(x, target); });
  ok("smooth l1", [&](const Tensor& x) { return SmoothL1Loss()(x, target); });
  ok("bce", [&](const Tensor& x) { return BCEWithLogitsLoss()(x, target); });
  ok("kl", [&](const Tensor& x) { return KLDivLoss()(x, target); });
  ok("hinge", [&](const Tensor& x) { return HingeLoss({.squared = true})(x, sign(target - 0.5)); });
  ok("multi-class hinge", [&](const Tensor& x) { return MulticlassHingeLoss({.squared = true})(x, all); });
}

TEST_CASE("loss: shapes that do not fit and labels out of range are named") {
  CHECK(error_of([] { MSELoss()(zeros({2, 3}), zeros({3})); }) == "MSELoss: the prediction is [2,3], the target [3]; they must agree");
  CHECK(contains(error_of<IndexError>([] { CrossEntropyLoss()(zeros({2, 3}), labels({0, 3})); }), "out of range [0, 3) for 3 classes"));
  CHECK(contains(error_of<IndexError>([] { NLLLoss()(zeros({2, 3}), labels({0, 3})); }), "out of range [0, 3) for 3 classes"));
  CHECK(contains(error_of<IndexError>([] { MulticlassHingeLoss()(zeros({2, 3}), labels({0, -1})); }), "out of range [0, 3) for 3 classes"));
  CHECK_THROWS_AS(NLLLoss({.weight = ones({4})})(zeros({2, 3}), labels({0, 1})), ShapeError);
  CHECK_THROWS_AS(SmoothL1Loss({.beta = 0}), ValueError);
}

TEST_CASE("loss: class weights are a buffer that follows the module") {
  CrossEntropyLoss loss({.weight = tensor({1, 2, 3})});
  CHECK(state_dict(loss).contains("weight"));
  loss.to(DType::float64);
  CHECK(loss(zeros({2, 3}, DType::float64), labels({0, 2})).item() == doctest::Approx(std::log(3.0)));
}
