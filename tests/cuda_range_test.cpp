// Values out of range on a device (labels, indices, lengths) through the public interface: nothing waits for them, and the next wait says what the CPU says.
#include <doctest/doctest.h>

#include <cmath>
#include <functional>
#include <memory>

#include "cuda_device.h"

using namespace fovea;
using namespace fovea::testing;

TEST_CASE("cuda: an index out of range is an error of the next wait, with the CPU's sentence, and the device works on") {
  if (!has_device()) return;
  struct Case {
    const char* name;
    std::function<Tensor(Device)> run;
  };
  const auto index = [](Device device, std::vector<int64_t> values, const Shape& shape) { return to(from_vector(values, shape, cpu), device); };
  const auto x = [](Device device) { return to(tensor({{1, 2, 3}, {4, 5, 6}}, cpu), device); };
  const std::vector<Case> cases = {
      {"gather", [&](Device d) { return gather(x(d), 1, index(d, {0, 1, 3, 0}, {2, 2})); }},
      {"take_along", [&](Device d) { return take_along(x(d), index(d, {7}, {1, 1}), 0); }},
      {"scatter_add", [&](Device d) { return scatter_add(x(d), 0, index(d, {0, -1}, {1, 2}), ones({1, 2}, d)); }},
      {"index_select", [&](Device d) { return index_select(x(d), 0, index(d, {0, 2}, {2})); }},
      {"index_add", [&](Device d) { return index_add(x(d), 0, index(d, {5}, {1}), ones({1, 3}, d)); }},
      {"embedding", [&](Device d) { return embedding(index(d, {1, 5}, {2}), x(d)); }},
      {"one_hot", [&](Device d) { return to(one_hot(index(d, {4, 1}, {2}), 4), DType::float32); }},
      {"cross_entropy", [&](Device d) { return cross_entropy(x(d), index(d, {3, 0}, {2})); }},
      {"NLLLoss", [&](Device d) { return layers::NLLLoss()(x(d), index(d, {0, 8}, {2})); }},
      {"MulticlassHingeLoss", [&](Device d) { return layers::MulticlassHingeLoss()(x(d), index(d, {0, -1}, {2})); }},
  };
  for (const Case& c : cases) {
    CAPTURE(c.name);
    const std::string want = testing::error_of<IndexError>([&] { c.run(cpu); });
    CHECK_FALSE(want.empty());
    Tensor y;
    CHECK_NOTHROW(y = c.run(gpu));                           // nobody has looked yet
    CHECK(found_late() == want + late);
    CHECK(found_late().empty());                             // told once
    CHECK(sum(full({10}, 2, gpu)).item() == 20);
  }
}

TEST_CASE("cuda: whatever waits brings the error: item, copies to the host, streams, events, and each call while launches are synchronous") {
  if (!has_device()) return;
  const Tensor weight = ones({4, 2}, gpu), bad = on_gpu({9}, {1});
  const std::string want = std::string("embedding: indices[0] is 9, out of range [0, 4) for weight [4,2]") + late;
  const auto waiting = [&](const std::function<void()>& wait) {
    embedding(bad, weight);
    return testing::error_of<IndexError>(wait);
  };
  const Tensor other = full({3}, 2, gpu);
  CHECK(waiting([&] { sum(other).item(); }) == want);
  CHECK(waiting([&] { other.to_vector<float>(); }) == want);
  CHECK(waiting([&] { to(other, cpu); }) == want);
  CHECK(waiting([&] { cuda::current_stream().synchronize(); }) == want);
  CHECK(waiting([&] {
          cuda::Event event;
          event.record();
          event.synchronize();
        }) == want);
  CHECK(waiting([&] {
          while (!cuda::current_stream().is_idle()) {}
        }) == want);
  cuda::set_synchronous(true);
  CHECK(testing::error_of<IndexError>([&] { embedding(bad, weight); }) == want);
  cuda::set_synchronous(false);
  CHECK(found_late().empty());
  CHECK(sum(other).item() == 6);
}

TEST_CASE("cuda: a bad label spoils the loss that it belongs to and no weight") {
  if (!has_device()) return;
  Tensor logits = to(tensor({{1, 2, 3}, {3, 1, 0}}, cpu), gpu);
  logits.set_requires_grad();
  const Tensor loss = cross_entropy(logits, on_gpu({1, 3}, {2}));
  loss.backward();
  CHECK(contains(found_late(), "cross_entropy: labels[1] is 3, out of range [0, 3) for 3 classes"));
  CHECK(std::isnan(loss.item()));
  const std::vector<float> gradient = logits.grad().to_vector<float>();
  for (size_t i = 0; i < 6; ++i) CHECK((i < 3 ? gradient[i] != 0 && std::isfinite(gradient[i]) : gradient[i] == 0));
  CHECK(cross_entropy(logits, on_gpu({1, -100}, {2})).item() == doctest::Approx(1.407606));          // ignored, not bad
  CHECK(found_late().empty());
}

TEST_CASE("cuda: ctc_loss looks at labels and lengths without waiting, and says what the CPU says") {
  if (!has_device()) return;
  const Tensor scores = rand({5, 3, 4}, cpu);
  struct Arguments {
    std::vector<int64_t> targets, input_lengths, target_lengths;
  };
  const auto loss = [&](const Arguments& a, Device device, Tensor& logits) {
    const auto there = [&](const std::vector<int64_t>& v, const Shape& shape) { return to(from_vector(v, shape, cpu), device); };
    logits = to(scores, device).detach();
    logits.set_requires_grad();
    return ctc_loss(logits, there(a.targets, {3, 2}), there(a.input_lengths, {3}), there(a.target_lengths, {3}), {.reduction = Reduction::none});
  };
  const Arguments good{{1, 1, 2, 3, 3, -7}, {5, 4, 3}, {2, 2, 1}};           // -7 stands past the end of its target
  const std::vector<Arguments> bad = {
      {{1, 1, 2, 4, 3, 0}, {5, 4, 3}, {2, 2, 1}}, {{1, 1, 2, 0, 3, 0}, {5, 4, 3}, {2, 2, 1}}, {{1, 1, 2, 3, -1, 0}, {5, 4, 3}, {2, 2, 1}},
      {{1, 1, 2, 3, 3, 0}, {5, 6, 3}, {2, 2, 1}}, {{1, 1, 2, 3, 3, 0}, {5, 4, -1}, {2, 2, 1}}, {{1, 1, 2, 3, 3, 0}, {5, 4, 3}, {2, 3, 1}},
  };
  Tensor logits, logits_there;
  const Tensor here = loss(good, cpu, logits), there = loss(good, gpu, logits_there);
  CHECK(compare(to(there.detach(), cpu), here.detach(), {.rtol = 1e-5}));
  sum(here).backward(), sum(there).backward();
  CHECK(compare(to(logits_there.grad(), cpu), logits.grad(), {.rtol = 1e-4, .atol = 1e-6}));
  for (const Arguments& a : bad) {
    const std::string want = testing::error_of<IndexError>([&] { loss(a, cpu, logits); });
    CHECK_FALSE(want.empty());
    const Tensor losses = loss(a, gpu, logits_there);
    sum(losses).backward();
    CHECK(found_late() == want + late);
    const std::vector<double> of_samples = losses.to_vector<double>(), good_ones = here.to_vector<double>();
    int spoiled = 0;
    for (size_t i = 0; i < 3; ++i) {
      if (std::isnan(of_samples[i])) ++spoiled;
      else CHECK(of_samples[i] == doctest::Approx(good_ones[i]).epsilon(1e-5));
    }
    CHECK(spoiled == 1);
    CHECK(all(isfinite(logits_there.grad())).item<bool>());
  }
}

TEST_CASE("cuda: ctc_loss of targets longer than there are steps, padded and one after the other, is the CPU's") {
  if (!has_device()) return;
  const Tensor scores = rand({3, 2, 4}, cpu);
  const auto losses = [&](Device device, bool is_padded) {
    const Tensor targets = is_padded ? from_vector<int64_t>({1, 2, 3, 1, 2, 3, 2, 0, 0, 0, 0, 0}, {2, 6}, cpu) : from_vector<int64_t>({1, 2, 3, 1, 2, 3, 2}, {7}, cpu);
    const Tensor times = from_vector<int64_t>({3, 3}, {2}, cpu), lengths = from_vector<int64_t>({6, 1}, {2}, cpu);
    return to(ctc_loss(to(scores, device), to(targets, device), to(times, device), to(lengths, device), {.reduction = Reduction::none}), cpu);
  };
  for (const bool is_padded : {true, false}) CHECK(compare(losses(gpu, is_padded), losses(cpu, is_padded), {.rtol = 1e-5}));
  CHECK(std::isinf(losses(gpu, true).to_vector<double>()[0]));
  // A length that the labels given cannot have is an error, though more would not be needed.
  const Tensor too_long = ctc_loss(to(scores, gpu), on_gpu({1, 2, 3, 1, 2, 3, 2, 0, 0, 0, 0, 0}, {2, 6}), on_gpu({3, 3}, {2}), on_gpu({7, 1}, {2}), {.reduction = Reduction::none});
  CHECK(found_late() == std::string("ctc_loss: target_lengths[0] is 7, out of range [0, 7) for the 6 columns of targets") + late);
  CHECK(std::isnan(too_long.to_vector<double>()[0]));
}

TEST_CASE("cuda: ctc_loss looks at targets one after the other, and at the sum of their lengths, without waiting") {
  if (!has_device()) return;
  const Tensor scores = to(rand({5, 2, 4}, cpu), gpu), times = on_gpu({5, 4}, {2});
  const auto found = [&](const std::vector<int64_t>& targets, const std::vector<int64_t>& lengths) {
    Tensor loss;
    CHECK_NOTHROW(loss = ctc_loss(scores, on_gpu(targets, {static_cast<int64_t>(targets.size())}), times, on_gpu(lengths, {2})));
    return found_late();
  };
  CHECK(found({1, 3, 2}, {2, 1}).empty());
  CHECK(found({1, 4, 2}, {2, 1}) == std::string("ctc_loss: targets[1] is 4, out of range [0, 4) for 4 classes") + late);
  CHECK(found({1, 3, 2}, {2, 2}) == std::string("ctc_loss: the sum of target_lengths is 4, out of range [3, 4) for the 3 labels that targets hold") + late);
  CHECK(found({1, 3, 2}, {1, 1}) == std::string("ctc_loss: the sum of target_lengths is 2, out of range [3, 4) for the 3 labels that targets hold") + late);
}

TEST_CASE("cuda: lengths of recurrent layers out of range are found late, and lead nowhere") {
  if (!has_device()) return;
  layers::LSTM lstm({.input = 3, .hidden = 4, .bidirectional = true});
  lstm.to(gpu);
  const Tensor x = to(rand({5, 2, 3}, cpu), gpu);
  const auto output = [&](std::vector<int64_t> lengths) { return lstm(x, {.lengths = on_gpu(lengths, {2})}).output; };
  const Tensor wrong = output({3, 9});
  sum(square(wrong)).backward();
  CHECK(found_late() == std::string("lstm: lengths[1] is 9, out of range [0, 6) for the 5 steps of x") + late);
  CHECK(equal(wrong.detach(), output({3, 5}).detach()));
  CHECK_THROWS_WITH_AS(lstm(x, {.lengths = from_vector<int64_t>({3, 3}, {2}, cpu)}), doctest::Contains("lengths are on cpu but x is on cuda:0"), DeviceError);
}
