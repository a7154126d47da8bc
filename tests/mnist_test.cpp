// Learns real digits: >= 98.5 % of MNIST's test set after two epochs. Skipped, with a notice, where the data set is not beside the project.
#include <doctest/doctest.h>

#include <filesystem>
#include <iostream>

#include <fovea/fovea.h>

#include "devices.h"
#include "source_folder.h"

using namespace fovea;

namespace {

const std::string folder = testing::source_folder() + "/../shared/data/mnist";

layers::Sequential make_net() {
  using namespace layers;
  return Sequential(Conv2d({.in = 1, .out = 16, .kernel = 5, .padding = 2, .bias = false}), BatchNorm2d(16), ReLU(), MaxPool2d(2),
                    Conv2d({.in = 16, .out = 32, .kernel = 5, .padding = 2, .bias = false}), BatchNorm2d(32), ReLU(), MaxPool2d(2), Flatten(),
                    Linear(32 * 7 * 7, 128), ReLU(), Linear(128, 10));
}

double accuracy(layers::Sequential& net, const data::DatasetPtr& digits, const data::Transform& normalised) {
  NoGrad no_grad;
  net.eval();
  data::DataLoader loader(digits, {.batch_size = 250, .transform = normalised});
  int64_t right = 0;
  while (auto batch = loader.next()) {
    const std::vector<int64_t> guesses = argmax(net(testing::on_default_device(batch->images)), 1).to_vector<int64_t>(), labels = batch->labels.to_vector<int64_t>();
    for (size_t i = 0; i < guesses.size(); ++i) right += guesses[i] == labels[i];
  }
  net.train();
  return static_cast<double>(right) / static_cast<double>(digits->size());
}

}  // namespace

TEST_CASE("mnist: a small convolutional network reads at least 98.5 % of the test digits after two epochs") {
  if (!std::filesystem::exists(folder)) {
    std::cout << "skipped: " << folder << " is not there\n";
    return;
  }
  const data::DatasetPtr training = data::read_mnist(folder, true);
  const data::DatasetPtr test = data::read_mnist(folder, false);
  REQUIRE(training->size() == 60000);
  REQUIRE(test->size() == 10000);
  manual_seed(1);
  layers::Sequential net = make_net();
  const data::Transform normalised = data::normalise({0.1307f}, {0.3081f});
  data::DataLoader loader(training, {.batch_size = 64, .shuffle = true, .drop_last = true, .seed = 1, .transform = normalised});
  const int64_t steps = 2 * loader.batches_per_epoch();
  optim::Adam adam(net.named_parameters(), {.lr = 2e-3});
  const optim::Schedule schedule = optim::cosine(2e-3, steps);
  for (int64_t step = 0; step < steps; ++step) {
    auto batch = loader.next();
    if (!batch) batch = loader.next();                       // the next epoch
    const Tensor loss = cross_entropy(net(testing::on_default_device(batch->images)), testing::on_default_device(batch->labels));
    adam.zero_grad();
    loss.backward();
    adam.set_lr(schedule(step));
    adam.step();
  }
  const double found = accuracy(net, test, normalised);
  MESSAGE("accuracy after two epochs: ", found);
  CHECK(found >= 0.985);
}
