// The code of docs/gpu.md and of the guide's chapter on CUDA devices, compiled and run. The first test sees to it that it is the same code.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdio>
#include <fstream>

#include "cuda_device.h"
#include "source_folder.h"

using namespace fovea;
using namespace fovea::testing;

namespace {

std::string trimmed(const std::string& line) {
  const size_t first = line.find_first_not_of(" \t");
  return first == std::string::npos ? "" : line.substr(first, line.find_last_not_of(" \t") - first + 1);
}

std::vector<std::string> lines_of(const std::string& file) {
  std::ifstream in(testing::source_folder() + "/" + file);
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(trimmed(line));
  return lines;
}

// The C++ of a page; of one chapter of it, if that has a name.
std::vector<std::vector<std::string>> code_of(const std::string& file, const std::string& chapter = "") {
  std::vector<std::vector<std::string>> blocks;
  bool is_in_chapter = chapter.empty(), is_code = false;
  for (const std::string& line : lines_of(file)) {
    if (line.starts_with("## ") && !chapter.empty()) is_in_chapter = line == "## " + chapter;
    if (line == "```") is_code = false;
    if (is_code) blocks.back().push_back(line);
    if (line == "```cpp" && is_in_chapter) is_code = true, blocks.emplace_back();
  }
  return blocks;
}

}  // namespace

TEST_CASE("guide: the code of the documentation is the code below") {
  const std::vector<std::string> here = lines_of("tests/cuda_guide_test.cpp");
  std::vector<std::vector<std::string>> blocks = code_of("docs/gpu.md");
  CHECK(blocks.size() >= 9);
  for (const auto& block : code_of("docs/guide.md", "CUDA devices")) blocks.push_back(block);
  CHECK(blocks.size() >= 11);
  for (const std::vector<std::string>& block : blocks) {
    REQUIRE_FALSE(block.empty());
    CAPTURE(block.front());
    CHECK(std::search(here.begin(), here.end(), block.begin(), block.end()) != here.end());
  }
}

namespace {

class Classifier : public layers::Module {
 public:
  Classifier() : body(add("body", layers::Sequential(layers::Flatten(), layers::Linear(12, 3)))) {}
  Tensor forward(const Tensor& x) override { return body(x); }

 private:
  layers::Sequential& body;
};

}  // namespace

TEST_CASE("guide: a module on the device") {
  if (!has_device()) return;
  const Tensor images = rand({5, 3, 4}, cpu), labels = randint(0, 3, {5}, {DType::int64, cpu});
  const Device device = cuda::device_count() > 0 ? Device::cuda() : Device::cpu();      // device_named("cuda:1") takes what a user typed
  Classifier net;
  net.to(device);
  Tensor loss = cross_entropy(net(to(images, device)), to(labels, device));
  CHECK(loss.device() == gpu);
  CHECK(loss.item() > 0);
}

TEST_CASE("guide: a training step that is recorded") {
  if (!has_device()) return;
  Classifier net;
  net.to(gpu);
  const Tensor images = to(rand({5, 3, 4}, cpu), gpu), labels = on_gpu({0, 1, 2, 1, 0}, {5});
  const Tensor next_images = to(rand({5, 3, 4}, cpu), gpu), next_labels = on_gpu({2, 2, 1, 0, 0}, {5});
  const int steps = 5;
  const auto schedule = [](int step) { return 1e-3 / step; };
  const Tensor before = clone(net.named_parameters()["body.1.weight"]).detach();
  optim::AdamW adam(net.named_parameters(), {.lr = 1e-3});
  adam.set_capturable();
  const auto train = [&] {
    Tensor loss = cross_entropy(net(images), labels);
    net.zero_grad();
    loss.backward();
    optim::clip_grad_norm_async(net.named_parameters(), 1.0);
    adam.step();
  };
  train();                                             // once before, so that what is made on first use is there
  cuda::Graph graph(train);
  for (int step = 1; step < steps; ++step) {
    adam.set_lr(schedule(step));                       // between replays
    copy_(images, next_images), copy_(labels, next_labels);                             // into the tensors that were recorded
    graph.replay();
  }
  CHECK_FALSE(equal(net.named_parameters()["body.1.weight"].detach(), before));
  CHECK(adam.state()["state.body.1.weight.step"].item() == 5);
}

TEST_CASE("guide: two streams that meet at an event, and the time between two events") {
  if (!has_device()) return;
  const Tensor a = full({40, 50}, 1, gpu), b = full({50, 30}, 2, gpu);
  cuda::synchronize();
  const cuda::Stream side;                             // on the current device
  cuda::Event is_ready;
  Tensor y;
  {
    const cuda::StreamScope scope(side);
    y = matmul(a, b);
    is_ready.record();                                 // on the current stream
  }
  const cuda::Stream main_stream = cuda::current_stream();
  main_stream.wait(is_ready);                          // the stream waits, the thread goes on
  cuda::record_use(y.view().data, main_stream);        // or y's memory could be given away too early
  Tensor z = y + 1;
  CHECK(all(eq(z, 101)).item<bool>());

  cuda::Event begin, end;
  begin.record();
  Tensor product = matmul(a, b);
  end.record();
  end.synchronize();                                   // the thread waits
  double seconds = cuda::seconds_between(begin, end);
  CHECK(seconds >= 0);
  CHECK(equal(product, y));
}

TEST_CASE("guide: memory") {
  if (!has_device()) return;
  AllocatorStats stats = cuda::allocator::stats();     // active_bytes, peak_bytes, cached_bytes, allocations, cache_hits
  cuda::allocator::set_limit(int64_t{8} << 30);        // of active and cached bytes; 0: the device's memory
  cuda::allocator::clear();                            // gives the cache back to CUDA
  CHECK(cuda::allocator::stats().active_bytes == stats.active_bytes);
  CHECK(cuda::allocator::stats().cached_bytes == 0);
  const int64_t small_batch = 10, large_batch = int64_t{1} << 40;
  int64_t done = 0;
  const auto step = [&](int64_t batch) {
    sum(full({batch}, 1, gpu)).item();
    done = batch;
  };
  try {
    step(large_batch);
  } catch (const MemoryError&) {
    step(small_batch);
  }
  CHECK(done == small_batch);
  cuda::allocator::set_limit(0);

  const Tensor batch = rand({1000}, cpu);
  Tensor staged = pinned(batch);                       // in host memory
  Tensor there = to(staged, Device::cuda(), true);     // returns at once; leave staged's values alone until the stream has come that far
  staged = {};                                         // its memory is not reused before the copy is done
  CHECK(equal(to(there, cpu), batch));
}

TEST_CASE("guide: a graph") {
  if (!has_device()) return;
  layers::Linear net(10, 4);
  net.to(gpu);
  const Tensor batch_there = to(rand({64, 10}, cpu), gpu);
  const NoGrad no_grad;
  Tensor input = zeros({64, 10}, Device::cuda()), output;
  const auto work = [&] { output = softmax(net(input), 1); };
  work();                                              // once before: some things are made on first use
  cuda::Graph graph(work);
  copy_(input, batch_there);                           // values change, the tensors stay
  graph.replay();                                      // after what is on the current stream, before what comes
  CHECK(equal(output, softmax(net(batch_there), 1)));
}

TEST_CASE("guide: launches that wait, and what a profiler shows") {
  if (!has_device()) return;
  cuda::set_synchronous(true);
  CHECK(sum(ones({3}, gpu)).item() == 3);
  cuda::set_synchronous(false);
  int epochs = 0;
  const auto train_epoch = [&] { ++epochs; };
  for (int epoch = 0; epoch < 2; ++epoch) {
    const cuda::Range range("epoch " + std::to_string(epoch));
    train_epoch();
  }
  CHECK(epochs == 2);
  const Tensor x = ones({100}, gpu);
  Tensor squashed = tanh(x);
  cuda::LaunchInfo info = cuda::last_launch();
  std::printf("%s: %d registers, %lld bytes spilled, %d blocks a multiprocessor, occupancy %.2f\n", info.name.c_str(), info.registers,
              static_cast<long long>(info.local_bytes), info.blocks_per_multiprocessor, info.occupancy);
  CHECK(info.registers > 0);
}
