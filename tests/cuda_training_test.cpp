// Training on a device, step by step and as a recorded graph, against the CPU and against itself.
#include <doctest/doctest.h>

#include <cmath>
#include <functional>
#include <memory>

#include "cuda_device.h"
#include "temporary_folder.h"

using namespace fovea;
using namespace fovea::testing;

// --- training ---

namespace {

struct Run {
  std::vector<double> losses;
  Tensor weight;
};

Run train(Device device) {
  manual_seed(5);
  const Device before = default_device();
  set_default_device(cpu);                                   // the first values are the same on every device
  layers::Sequential model(layers::Linear(6, 16), layers::Tanh(), layers::Linear(16, 3));
  const Tensor x = to(randn({32, 6}), device), labels = to(randint(0, 3, {32}), device);
  set_default_device(before);
  model.to(device);
  optim::Adam adam(model.named_parameters(), {.lr = 1e-2});
  Run run;
  for (int step = 0; step < 20; ++step) {
    const Tensor loss = cross_entropy(model(x), labels);
    model.zero_grad();
    loss.backward();
    optim::clip_grad_norm(model.named_parameters(), 1.0);
    adam.step();
    run.losses.push_back(loss.item());
  }
  run.weight = to(model.layer<layers::Linear>("0").weight.detach(), cpu);
  return run;
}

}  // namespace

TEST_CASE("cuda: training there agrees with the CPU over twenty steps, and with itself bit for bit") {
  if (!has_device()) return;
  const Run here = train(cpu), there = train(gpu), again = train(gpu);
  CHECK(here.losses.back() < here.losses.front());
  for (size_t i = 0; i < here.losses.size(); ++i) CHECK(there.losses[i] == doctest::Approx(here.losses[i]).epsilon(1e-5));
  CHECK(compare(there.weight, here.weight, {.rtol = 1e-4, .atol = 1e-5}));
  CHECK(equal(there.weight, again.weight));
  CHECK(there.losses == again.losses);
}

TEST_CASE("cuda: an optimizer's state follows its parameters to another device, and through a file") {
  if (!has_device()) return;
  const auto make = [] { return std::make_unique<layers::Linear>(3, 2); };
  const auto step = [](layers::Linear& model, optim::Adam& adam, Device device) {
    model.zero_grad();
    sum(square(model(full({4, 3}, 0.5, device)))).backward();
    adam.step();
  };
  manual_seed(1);
  const auto moved = make();
  manual_seed(1);
  const auto stays = make();
  moved->to(cpu), stays->to(cpu);
  optim::Adam of_moved(moved->named_parameters(), {.lr = 0.1}), of_stays(stays->named_parameters(), {.lr = 0.1});
  step(*moved, of_moved, cpu), step(*stays, of_stays, cpu);
  moved->to(gpu);
  for (int i = 0; i < 3; ++i) step(*moved, of_moved, gpu), step(*stays, of_stays, cpu);
  CHECK(compare(to(moved->weight.detach(), cpu), stays->weight.detach(), {.rtol = 1e-5, .atol = 1e-6}));

  stays->to(gpu);
  optim::Adam fresh(stays->named_parameters(), {.lr = 0.1});
  fresh.load_state(of_moved.state());
  step(*stays, fresh, gpu);
  CHECK(fresh.state()["state.weight.exp_avg"].device() == gpu);
}

// --- graphs ---

TEST_CASE("cuda: a recorded training step, run again, does what the step does") {
  if (!has_device()) return;
  const auto start = [](layers::Linear& model) {
    layers::init::constant_(model.weight, 0.1);
    layers::init::constant_(model.bias, 0);
    model.to(gpu);
  };
  layers::Linear recorded(4, 3), stepped(4, 3);
  start(recorded), start(stepped);
  const Tensor x = to(rand({8, 4}, cpu), gpu), target = to(rand({8, 3}, cpu), gpu);
  const auto step_of = [&](layers::Linear& model, optim::Optimizer& optimizer) {
    model.zero_grad();
    const Tensor loss = sum(square(model(x) - target));
    loss.backward();
    optimizer.step();
    return loss.detach();
  };
  optim::SGD sgd_recorded(recorded.named_parameters(), {.lr = 0.01, .momentum = 0.9}), sgd_stepped(stepped.named_parameters(), {.lr = 0.01, .momentum = 0.9});
  step_of(recorded, sgd_recorded), step_of(stepped, sgd_stepped);
  cuda::synchronize();
  Tensor loss;
  cuda::Graph graph([&] { loss = step_of(recorded, sgd_recorded); });
  CHECK(equal(recorded.weight.detach(), stepped.weight.detach()));           // recording computes nothing
  for (int i = 0; i < 3; ++i) {
    graph.replay();
    const Tensor between = full({1000}, 5, gpu);                             // memory asked for meanwhile is not the graph's
    CHECK(loss.item() == step_of(stepped, sgd_stepped).item());
    CHECK(sum(between).item() == 5000);
  }
  CHECK(equal(recorded.weight.detach(), stepped.weight.detach()));
}

namespace {

// A small recognizer: convolution, normalisation, pooling, a recurrent layer over the columns.
class Reader : public layers::Module {
 public:
  Reader()
      : features(add("features", layers::Sequential(layers::Conv2d({.in = 1, .out = 4, .kernel = 3, .padding = 1}), layers::BatchNorm2d(4), layers::ReLU(),
                                                    layers::MaxPool2d(2), layers::Dropout(0.25)))),
        rnn(add("rnn", layers::LSTM({.input = 16, .hidden = 5, .bidirectional = true}))),
        head(add("head", layers::Linear(10, 6))) {}
  Tensor forward(const Tensor& x) override {
    const Tensor seen = features(x);                                         // [batch, 4, 4, columns]
    const Tensor columns = reshape(permute(seen, {3, 0, 1, 2}), {seen.size(3), seen.size(0), 16});
    return head(rnn.forward(columns));
  }

 private:
  layers::Sequential& features;
  layers::LSTM& rnn;
  layers::Linear& head;
};

struct Batch {
  Tensor x, targets, times, lengths;
};

Batch line_batch(unsigned seed) {
  Generator generator(seed);
  const TensorOptions integers(DType::int64, cpu);
  return {rand({3, 1, 8, 16}, cpu, generator), randint(1, 6, {3, 3}, integers, generator), randint(6, 9, {3}, integers, generator), randint(1, 4, {3}, integers, generator)};
}

// Steps of training, each call with other values in the same tensors; the losses and all that has been learned.
struct Trained {
  std::vector<float> losses;
  NamedTensors state;
};

// One step as a function of a model and the tensors that hold its batch.
using Step = std::function<Tensor(layers::Module&, optim::Optimizer&, const Batch&)>;

template <class Model, class MakeBatch>
Trained train_steps(bool is_recorded, const MakeBatch& batch_of, const Step& step) {
  manual_seed(3);
  const Device before = default_device();
  set_default_device(cpu);
  Model model;
  set_default_device(before);
  model.to(gpu);
  optim::SGD sgd(model.named_parameters(), {.lr = 0.05});
  const Batch first = batch_of(0);
  const auto there = [](const Tensor& x) { return x ? to(x, gpu) : x; };
  const Batch fixed{there(first.x), there(first.targets), there(first.times), there(first.lengths)};
  step(model, sgd, fixed);                                                   // what is made on first use is there now
  std::optional<cuda::Graph> graph;
  Tensor loss;
  if (is_recorded) graph.emplace([&] { loss = step(model, sgd, fixed); });
  Trained trained;
  for (unsigned i = 1; i <= 4; ++i) {
    const Batch next = batch_of(i);
    for (const auto& [to, from] : {std::pair{fixed.x, next.x}, {fixed.targets, next.targets}, {fixed.times, next.times}, {fixed.lengths, next.lengths}})
      if (to) copy_(to, fovea::to(from, gpu));
    if (is_recorded) graph->replay();
    else loss = step(model, sgd, fixed);
    trained.losses.push_back(loss.item<float>());
  }
  for (const NamedTensors& list : {model.named_parameters(), model.named_buffers()})
    for (const auto& [name, x] : list) trained.state.add(name, to(x.detach(), cpu));
  return trained;
}

void check_same(const Trained& a, const Trained& b) {
  CHECK(a.losses == b.losses);
  for (const float loss : a.losses) CHECK(std::isfinite(loss));
  CHECK(a.losses.front() != a.losses.back());
  for (const auto& entry : a.state) {                        // no structured binding: clang 14 cannot capture one
    CAPTURE(entry.first);
    CHECK(equal(entry.second, b.state[entry.first]));
  }
}

}  // namespace

TEST_CASE("cuda: a recognizer's training step with dropout and ctc_loss, recorded and run again, is the step itself bit for bit") {
  if (!has_device()) return;
  const Step step = [](layers::Module& model, optim::Optimizer& optimizer, const Batch& b) {
    model.zero_grad();
    const Tensor loss = ctc_loss(model(b.x), b.targets, b.times, b.lengths);
    loss.backward();
    optim::clip_grad_value(model.named_parameters(), 0.5);
    optimizer.step();
    return loss.detach();
  };
  check_same(train_steps<Reader>(true, line_batch, step), train_steps<Reader>(false, line_batch, step));
}

TEST_CASE("cuda: a classifier's training step with cross_entropy, recorded and run again, is the step itself bit for bit") {
  if (!has_device()) return;
  class Classifier : public layers::Module {
   public:
    Classifier()
        : body(add("body", layers::Sequential(layers::Conv2d({.in = 1, .out = 4, .kernel = 3}), layers::BatchNorm2d(4), layers::ReLU(), layers::MaxPool2d(2),
                                              layers::Flatten(), layers::Dropout(0.5), layers::Linear(36, 5)))) {}
    Tensor forward(const Tensor& x) override { return body(x); }

   private:
    layers::Sequential& body;
  };
  const auto batch = [](unsigned seed) {
    Generator generator(seed);
    return Batch{rand({6, 1, 8, 8}, cpu, generator), randint(0, 5, {6}, {DType::int64, cpu}, generator), {}, {}};
  };
  const Step step = [](layers::Module& model, optim::Optimizer& optimizer, const Batch& b) {
    model.zero_grad();
    const Tensor loss = cross_entropy(model(b.x), b.targets, {.label_smoothing = 0.1});
    loss.backward();
    optimizer.step();
    return loss.detach();
  };
  check_same(train_steps<Classifier>(true, batch, step), train_steps<Classifier>(false, batch, step));
}

TEST_CASE("cuda: each run of a graph draws new numbers of the default generator, those that the work itself would draw") {
  if (!has_device()) return;
  const Tensor x = ones({1000}, gpu);
  Generator other(5);
  Tensor dropped, drawn, fixed;
  manual_seed(9);
  const std::unique_ptr<cuda::Graph> graph = std::make_unique<cuda::Graph>([&] {
    dropped = dropout(x, 0.5);
    drawn = rand({100}, gpu);
    fixed = rand({100}, gpu, other);
  });
  CHECK(default_generator().offset() == 0);                                  // recording draws nothing
  std::vector<Tensor> seen;
  const Tensor always = rand({100}, cpu, *std::make_unique<Generator>(5));
  for (int run = 0; run < 3; ++run) {
    graph->replay();
    seen.push_back(to(dropped, cpu));
    seen.push_back(to(drawn, cpu));
    CHECK(equal(to(fixed, cpu), always));
  }
  manual_seed(9);
  for (size_t run = 0; run < 3; ++run) {
    CHECK(equal(seen[2 * run], dropout(ones({1000}, cpu), 0.5)));
    CHECK(equal(seen[2 * run + 1], rand({100}, cpu)));
  }
  manual_seed(9);                                                            // and after a new seed from the beginning
  graph->replay();
  CHECK(equal(to(dropped, cpu), seen[0]));
  CHECK_THROWS_WITH_AS(cuda::Graph([&] { manual_seed(1); }), doctest::Contains("must not seed the default generator"), ValueError);
  CHECK(default_generator().seed() == 9);
}

TEST_CASE("cuda: a label out of range that a graph meets is an error of the wait after that run") {
  if (!has_device()) return;
  const Tensor weight = rand({4, 2}, gpu), indices = on_gpu({1, 2}, {2});
  Tensor y;
  cuda::Graph graph([&] { y = embedding(indices, weight); });
  const auto run = [&](std::vector<int64_t> values) {
    copy_(indices, on_gpu(values, {2}));
    graph.replay();
    return found_late();
  };
  CHECK(run({0, 3}).empty());
  CHECK(run({0, 4}) == std::string("embedding: indices[1] is 4, out of range [0, 4) for weight [4,2]") + late);
  CHECK(run({3, 3}).empty());
  CHECK(equal(y, index_select(weight, 0, indices)));
}

TEST_CASE("cuda: work can be recorded while launches are synchronous, and a graph that was moved says so") {
  if (!has_device()) return;
  const Tensor x = full({10}, 2, gpu);
  Tensor y;
  cuda::set_synchronous(true);
  std::unique_ptr<cuda::Graph> graph;
  CHECK_NOTHROW(graph = std::make_unique<cuda::Graph>([&] { y = x * 3; }));
  cuda::set_synchronous(false);
  graph->replay();
  CHECK(sum(y).item() == 60);
  cuda::Graph moved = std::move(*graph);
  CHECK_THROWS_WITH_AS(graph->replay(), doctest::Contains("this graph was moved to another"), ValueError);
  CHECK_NOTHROW(moved.replay());
}

TEST_CASE("cuda: a graph converts parameters in each run, whatever an autocast scope around it kept, and leaves nothing in the scope") {
  if (!has_device()) return;
  layers::Linear layer(4, 2);
  layer.to(gpu);
  const Tensor x = ones({1, 4}, gpu);
  const auto set_to = [&](double value) {
    NoGrad no_grad;
    fill_(layer.weight, value), fill_(layer.bias, 0);
  };
  set_to(1);
  const Autocast scope(DType::bfloat16);
  Tensor y = layer(x);                                       // the scope keeps a copy of the weight
  cuda::Graph graph([&] { y = layer(x); });
  CHECK(layer(x).to_vector<float>() == std::vector<float>{4, 4});            // nothing has run yet of what was recorded
  set_to(2);
  graph.replay();
  CHECK(y.to_vector<float>() == std::vector<float>{8, 8});
  set_to(3);
  graph.replay();
  CHECK(y.to_vector<float>() == std::vector<float>{12, 12});
}

TEST_CASE("cuda: a module that moves to a device takes its gradients along, and a pass over the old memory is refused") {
  if (!has_device()) return;
  layers::Linear layer(2, 2);
  layer.to(cpu);
  const Tensor before = sum(layer(ones({1, 2}, cpu)));
  sum(layer(ones({1, 2}, cpu))).backward();
  layer.to(gpu);
  CHECK(layer.weight.grad().device() == gpu);
  CHECK_THROWS_WITH_AS(before.backward(), doctest::Contains("compute the output anew after moving a module"), AutogradError);
  layer.zero_grad();
  sum(layer(ones({1, 2}, gpu))).backward();
  CHECK(sum(layer.weight.grad()).item() == 4);
}

TEST_CASE("cuda: work that waits for the device cannot be recorded, and work goes on afterwards") {
  if (!has_device()) return;
  const Tensor x = full({10}, 2, gpu);
  cuda::synchronize();
  const char* const sentence = "while a graph is recorded nothing can be copied between host and device";
  CHECK_THROWS_WITH_AS(cuda::Graph([&] { sum(x).item(); }), doctest::Contains(sentence), DeviceError);
  CHECK(sum(x).item() == 20);
  const Tensor host = ones({10}, cpu);
  CHECK_THROWS_WITH_AS(cuda::Graph([&] { to(host, gpu); }), doctest::Contains(sentence), DeviceError);       // it would be read again in every run
  const Tensor kept = pinned(host);
  Tensor y = zeros({10}, gpu);
  cuda::Graph graph([&] { y = copied_to(kept, gpu, true) + x; });
  graph.replay();
  CHECK(sum(y).item() == 30);
}
