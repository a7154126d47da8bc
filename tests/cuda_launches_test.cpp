// How many kernels an operation and a step of training launch, and that nothing in between waits for the device: on small tensors a launch costs more than the work.
#include <doctest/doctest.h>

#include <fovea/kernels/cuda/core/launch_log.h>

#include <algorithm>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cuda_device.h"

using namespace fovea;
using namespace fovea::testing;

namespace {

using Names = std::vector<std::string>;

Names launches_of(const std::function<void()>& work) {
  Names names;
  kernels::cuda::log_launches(&names);
  work();
  kernels::cuda::log_launches(nullptr);
  return names;
}

// "batch_norm, 3 x copy", the most frequent first.
std::string counted(const Names& names) {
  std::map<std::string, int> counts;
  for (const std::string& name : names) ++counts[name];
  std::vector<std::pair<std::string, int>> sorted(counts.begin(), counts.end());
  std::stable_sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
  std::string text = str(names.size(), ":");
  for (const auto& [name, count] : sorted) text += str(" ", count, "x", name);
  return text;
}

Tensor on_device(const Tensor& x, bool requires_grad = true) {
  Tensor y = to(x, gpu).detach();
  y.set_requires_grad(requires_grad);
  return y;
}

// A device that records what a graph is made of refuses to be waited for.
void check_waits_for_nothing(const std::function<void()>& work) {
  work();
  cuda::synchronize();
  CHECK_NOTHROW(cuda::Graph graph(work));
}

}  // namespace

TEST_CASE("cuda launches: batch norm in training finds statistics, moves the running ones and normalises in three kernels at most") {
  if (!has_device()) return;
  layers::BatchNorm2d norm(8), mean_of_all(8, {.momentum = std::nullopt});
  norm.to(gpu);
  mean_of_all.to(gpu);
  const Tensor x = on_device(rand({4, 8, 9, 9}, cpu)), large = on_device(rand({8, 8, 100, 90}, cpu), false);
  CHECK(launches_of([&] { norm(x); }) == Names{"batch_norm"});
  CHECK(launches_of([&] { norm.forward_relu(large); }) == Names{"batch_norm_moments", "batch_norm"});
  CHECK(launches_of([&] { norm(channels_last(large)); }).size() == 4);       // one of them turns x
  CHECK(launches_of([&] { mean_of_all(x); }) == Names{"batch_norm", "count_batch"});
  CHECK(norm.num_batches_tracked.item<int64_t>() == 3);
  CHECK(mean_of_all.num_batches_tracked.item<int64_t>() == 1);
  CHECK(compare(to(mean_of_all.running_mean, cpu), to(mean(x.detach(), {0, 2, 3}), cpu), {.rtol = 1e-5}));
  check_waits_for_nothing([&] { mean_of_all(x); });
  const Tensor loss = sum(norm(x));
  CHECK(counted(launches_of([&] { loss.backward(); })) == "3: 1xbatch_norm_backward 1xcopy 1xfill");         // copy: the gradient of a sum, written out
}

TEST_CASE("cuda launches: cross_entropy and nll_loss look at the labels, find the losses and join them; one kernel leads back") {
  if (!has_device()) return;
  const Tensor labels = on_gpu({1, 0, 4, -100, 2, 3}, {6}), weight = on_device(rand({5}, cpu), false);
  for (const Reduction reduction : {Reduction::mean, Reduction::sum, Reduction::none})
    for (const bool is_nll : {false, true})
      for (const bool has_weight : {false, true}) {
        const Tensor x = on_device(rand({6, 5}, cpu));
        const CrossEntropyOptions options{.weight = has_weight ? weight : Tensor(), .reduction = reduction};
        Tensor loss;
        Names want{"check_range", is_nll ? "nll_loss" : "cross_entropy"};
        if (reduction != Reduction::none) want.push_back("finish_losses");
        CHECK(launches_of([&] { loss = (is_nll ? nll_loss : cross_entropy)(x, labels, options); }) == want);
        const Tensor upstream = ones_like(loss);
        CHECK(launches_of([&] { grad({loss}, {x}, {upstream}); }) == Names{is_nll ? "nll_loss_backward" : "cross_entropy_backward"});
      }
}

TEST_CASE("cuda launches: ctc_loss, and targets one after the other that nobody waits for") {
  if (!has_device()) return;
  const Tensor x = on_device(rand({7, 2, 5}, cpu)), padded = on_gpu({1, 1, 2, 3, 0, 0}, {2, 3}), joined = on_gpu({1, 1, 2, 3}, {4}), times = on_gpu({7, 6}, {2}),
               lengths = on_gpu({3, 1}, {2});
  Tensor loss;
  CHECK(counted(launches_of([&] { loss = ctc_loss(x, padded, times, lengths); })) == "6: 3xcheck_range 1xctc_emissions 1xctc_gradient 1xctc_states");
  const Tensor upstream = ones_like(loss);
  CHECK(launches_of([&] { grad({loss}, {x}, {upstream}); }).size() == 2);
  CHECK(ctc_loss(x, joined, times, lengths).item() == loss.item());
  check_waits_for_nothing([&] { ctc_loss(x, joined, times, lengths); });
}

TEST_CASE("cuda launches: to divide by a power of two is to multiply") {
  if (!has_device()) return;
  const Tensor x = on_device(rand({40}, cpu), false);
  CHECK(launches_of([&] { x / -0.125; }) == Names{"unary"});
  CHECK(launches_of([&] { x / 3.0; }).size() == 2);
  for (const double divisor : {4.0, -0.125, 3.0, 0x1p63, 0x1p100}) CHECK(equal(to(x / divisor, cpu), to(x, cpu) / scalar(divisor, {DType::float32, cpu})));
}

TEST_CASE("cuda launches: half numbers are read as they are, also where Autocast wants a result in float32") {
  if (!has_device()) return;
  const Tensor labels = on_gpu({1, 0, 4}, {3}), targets = on_gpu({1, 2}, {1, 2}), times = on_gpu({3}, {1}), lengths = on_gpu({2}, {1});
  for (const DType dtype : {DType::float16, DType::bfloat16})
    for (const bool is_autocast : {false, true}) {
      const Tensor x = on_device(to(rand({3, 5}, cpu), dtype)), wide = on_device(to(x.detach(), DType::float32));
      const Autocast scope(is_autocast ? std::optional(dtype) : std::nullopt);
      const auto check = [&](const char* name, size_t most, const std::function<Tensor(const Tensor&)>& f) {
        CAPTURE(name);
        Tensor y;
        CHECK(launches_of([&] { y = f(x); }).size() == most);
        CHECK(y.dtype() == (is_autocast ? DType::float32 : dtype));
        const Tensor want = f(wide), upstream = ones_like(y);
        CHECK(compare(to(to(y.detach(), DType::float32), cpu), to(want.detach(), cpu), {.rtol = is_autocast ? 1e-5 : 0x1p-7, .atol = 1e-6}));
        const Tensor dx = grad({y}, {x}, {upstream})[0], want_dx = grad({want}, {wide})[0];
        CHECK(dx.dtype() == dtype);
        CHECK(compare(to(to(dx, DType::float32), cpu), to(want_dx, cpu), {.rtol = 0x1p-6, .atol = 1e-2}));
      };
      check("sum", 1, [](const Tensor& t) { return sum(t); });
      check("mean", 1, [](const Tensor& t) { return mean(t); });
      check("var", 1, [](const Tensor& t) { return var(t); });
      check("logsumexp", 1, [](const Tensor& t) { return logsumexp(t); });
      check("norm", 2, [](const Tensor& t) { return norm(t); });                   // a sum of squares and its root
      CHECK(launches_of([&] { CHECK(prod(x.detach()).dtype() == (is_autocast ? DType::float32 : dtype)); }).size() == 1);
      const size_t cast_back = is_autocast ? 0 : 1;          // losses are found in float32
      check("cross_entropy", 3 + cast_back, [&](const Tensor& t) { return cross_entropy(t, labels); });
      check("CrossEntropyLoss", 3 + cast_back, [&](const Tensor& t) { return layers::CrossEntropyLoss()(t, labels); });
      check("ctc_loss", 6 + cast_back, [&](const Tensor& t) { return ctc_loss(unsqueeze(t, 1), targets, times, lengths); });
      CHECK(launches_of([&] { softmax(x); }).size() == 1);
      CHECK(launches_of([&] { log_softmax(x, 0); }).size() == 1);
      CHECK(softmax(x).dtype() == (is_autocast ? DType::float32 : dtype));
      const Tensor y = log_softmax(x), weights = on_device(rand({3, 5}, cpu), false);
      const Tensor dx = grad({y}, {x}, {to(weights, y.dtype())})[0];
      CHECK(dx.dtype() == dtype);
      CHECK(compare(to(to(dx, DType::float32), cpu), to(grad({log_softmax(wide)}, {wide}, {weights})[0], cpu), {.rtol = 0x1p-5, .atol = 2e-2}));
    }
}

namespace {

// The reader of lines that everybody trains: convolutions with batch norm, pooling, recurrent layers over the columns, CTC.
class Crnn : public layers::Module {
 public:
  Crnn()
      : features(add("features", layers::Sequential(layers::Conv2d({.in = 1, .out = 8, .kernel = 3, .padding = 1, .bias = false}), layers::BatchNorm2d(8), layers::ReLU(),
                                                    layers::MaxPool2d(2), layers::Conv2d({.in = 8, .out = 8, .kernel = 3, .padding = 1, .bias = false}),
                                                    layers::BatchNorm2d(8), layers::ReLU(), layers::MaxPool2d(2)))),
        rnn(add("rnn", layers::LSTM({.input = 16, .hidden = 8, .layers = 2, .bidirectional = true}))),
        head(add("head", layers::Linear(16, 6))) {}
  Tensor forward(const Tensor& x) override {
    const Tensor seen = features(x);                                         // [batch, 8, 2, columns]
    return log_softmax(head(rnn.forward(reshape(permute(seen, {3, 0, 1, 2}), {seen.size(3), seen.size(0), 16}))));
  }

 private:
  layers::Sequential& features;
  layers::LSTM& rnn;
  layers::Linear& head;
};

// Two convolutions around which x goes as well; with a stride it takes a convolution of its own.
class Block : public layers::Module {
 public:
  Block(int64_t in, int64_t out, int64_t stride)
      : body(add("body", layers::Sequential(layers::Conv2d({.in = in, .out = out, .kernel = 3, .stride = stride, .padding = 1, .bias = false}), layers::BatchNorm2d(out),
                                            layers::ReLU(), layers::Conv2d({.in = out, .out = out, .kernel = 3, .padding = 1, .bias = false})))),
        norm(add("norm", layers::BatchNorm2d(out))), shortcut(add("shortcut", layers::Sequential())) {
    if (in == out && stride == 1) return;
    shortcut.append(layers::Conv2d({.in = in, .out = out, .stride = stride, .bias = false}));
    shortcut.append(layers::BatchNorm2d(out));
  }
  Tensor forward(const Tensor& x) override { return norm.forward_add_relu(body(x), shortcut.size() == 0 ? x : shortcut(x)); }

 private:
  layers::Sequential& body;
  layers::BatchNorm2d& norm;
  layers::Sequential& shortcut;
};

// What the parts of a step launch, once what is made on first use is there.
struct StepLaunches {
  Names forward, backward, update;
  size_t size() const { return forward.size() + backward.size() + update.size(); }
  std::string text() const { return str("forward ", counted(forward), "\nbackward ", counted(backward), "\nupdate ", counted(update)); }
};

StepLaunches launches_of_step(layers::Module& model, const std::function<Tensor()>& loss_of) {
  model.to(gpu);
  optim::Adam adam(model.named_parameters(), {.lr = 1e-3});
  StepLaunches result;
  for (int step = 0; step < 2; ++step) {
    Tensor loss;
    model.zero_grad();
    result.forward = launches_of([&] { loss = loss_of(); });
    result.backward = launches_of([&] { loss.backward(); });
    result.update = launches_of([&] {
      optim::clip_grad_norm_async(model.named_parameters(), 1.0);
      adam.step();
    });
  }
  cuda::synchronize();
  return result;
}

}  // namespace

TEST_CASE("cuda launches: a training step of a reader of lines") {
  if (!has_device()) return;
  Crnn model;
  const Tensor x = to(rand({2, 1, 8, 24}, cpu), gpu), targets = on_gpu({1, 2, 3, 4}, {2, 2}), times = on_gpu({6, 5}, {2}), lengths = on_gpu({2, 1}, {2});
  const StepLaunches got = launches_of_step(model, [&] { return ctc_loss(model(x), targets, times, lengths); });
  INFO(got.text());
  CHECK(got.size() <= 71);
}

TEST_CASE("cuda launches: a training step of a small ResNet") {
  if (!has_device()) return;
  layers::Sequential model(layers::Conv2d({.in = 3, .out = 8, .kernel = 3, .padding = 1, .bias = false}), layers::BatchNorm2d(8), layers::ReLU(), Block(8, 8, 1), Block(8, 16, 2),
                           layers::GlobalAvgPool(), layers::Linear(16, 5));
  const Tensor x = to(rand({2, 3, 8, 8}, cpu), gpu), labels = on_gpu({1, 4}, {2});
  const StepLaunches got = launches_of_step(model, [&] { return cross_entropy(model(x), labels); });
  INFO(got.text());
  CHECK(got.size() <= 45);
}
