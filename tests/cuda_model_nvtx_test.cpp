// Ranges of NVTX, as the model of CUDA writes them down: which there are, and what lies within what.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <set>
#include <thread>

#include <fovea/kernels/cuda/core/launch_log.h>

#include "cuda_device.h"
#include "host_cuda.h"
#include "op_cases.h"

using namespace fovea;
using namespace fovea::testing;

namespace {

using Ranges = std::vector<std::vector<std::string>>;

// The ranges of work(), while the switch is on.
template <class Work>
Ranges ranges_of(const Work& work) {
  Ranges ranges;
  cuda::set_ranges(true);
  host_cuda::record_ranges(&ranges);
  work();
  host_cuda::record_ranges(nullptr);
  cuda::set_ranges(false);
  CHECK(host_cuda::open_ranges() == 0);
  return ranges;
}

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : " > ") + name;
  return text;
}

// Is there one whose names end so?
bool has(const Ranges& ranges, const std::string& end) {
  return std::any_of(ranges.begin(), ranges.end(), [&](const auto& names) { return joined(names).ends_with(end); });
}

}  // namespace

TEST_CASE("ranges: off, nothing is written down; a range that began before the switch was turned ends all the same") {
  Ranges ranges;
  host_cuda::record_ranges(&ranges);
  CHECK_FALSE(cuda::has_ranges());
  {
    const cuda::Range range("nobody sees this");
    relu(ones({3}, gpu));
    cuda::set_ranges(true);
    const cuda::Range seen("seen");
    cuda::set_ranges(false);
    CHECK(host_cuda::open_ranges() == 1);
  }
  host_cuda::record_ranges(nullptr);
  CHECK(host_cuda::open_ranges() == 0);
  CHECK(ranges == Ranges{{"seen"}});
}

TEST_CASE("own process: ranges are on" * doctest::skip()) { CHECK(cuda::has_ranges()); }
TEST_CASE("ranges: FOVEA_NVTX=1 in the environment turns them on, 0 and nothing don't") {
  const std::string program = std::filesystem::read_symlink("/proc/self/exe").string();
  const auto are_on = [&](const std::string& environment) {
    return std::system((environment + " '" + program + "' --no-skip --test-case='own process: ranges are on' > /dev/null 2>&1").c_str()) == 0;
  };
  CHECK(are_on("FOVEA_NVTX=1"));
  CHECK_FALSE(are_on("FOVEA_NVTX=0"));
  CHECK_FALSE(are_on("FOVEA_NVTX="));
}

TEST_CASE("ranges: each thread has its own, and an exception closes what it leaves") {
  const Ranges ranges = ranges_of([] {
    const cuda::Range outer("outer");
    std::thread([] {
      CHECK(host_cuda::open_ranges() == 0);
      const cuda::Range other(std::string("of another thread"));
      CHECK(host_cuda::open_ranges() == 1);
    }).join();
    CHECK_THROWS_AS(matmul(ones({2, 3}, gpu), ones({2, 3}, gpu)), ShapeError);
    const cuda::Range inner("inner");
  });
  CHECK(ranges.front() == std::vector<std::string>{"outer"});
  CHECK(ranges.back() == std::vector<std::string>{"outer", "inner"});
  CHECK(has(ranges, "outer > matmul"));
  CHECK_FALSE(has(ranges, "of another thread"));
}

TEST_CASE("ranges: a network shows its modules, their operations, these operations' kernels, and the way back") {
  layers::Sequential model(layers::Linear(4, 3), layers::ReLU());
  model.to(gpu);
  const Tensor x = rand({2, 4}, gpu);
  std::vector<std::string> kernels;
  const Ranges ranges = ranges_of([&] {
    const Tensor y = model(x);
    kernels::cuda::log_launches(&kernels);
    sum(y).backward();
    kernels::cuda::log_launches(nullptr);
  });
  CHECK(has(ranges, "Sequential > 0: Linear > linear > gemm"));
  CHECK(has(ranges, "Sequential > 1: ReLU > relu"));
  CHECK(std::none_of(ranges.begin(), ranges.end(), [](const auto& names) { return names.size() > 5; }));
  const auto begin_of = [&](const char* name) {
    return std::find_if(ranges.begin(), ranges.end(), [&](const auto& names) { return names.front() == name; }) - ranges.begin();
  };
  CHECK(begin_of("sum backward") < begin_of("relu backward"));
  CHECK(begin_of("relu backward") < begin_of("linear backward"));
  CHECK(has(ranges, "linear backward > matmul > gemm"));
  REQUIRE_FALSE(kernels.empty());
  for (const std::string& kernel : kernels) {
    CAPTURE(kernel);
    CHECK(std::any_of(ranges.begin(), ranges.end(), [&](const auto& names) { return names.back() == kernel && (names.size() > 1 || kernel == "fill"); }));
  }
}

TEST_CASE("ranges: changes in place and optimizers have theirs") {
  layers::Linear model(3, 2);
  model.to(gpu);
  optim::SGD sgd(model.named_parameters(), {.lr = 0.1});
  sum(model(ones({1, 3}, gpu))).backward();
  const Tensor x = ones({4}, gpu);
  const Ranges ranges = ranges_of([&] {
    optim::clip_grad_norm(model.named_parameters(), 1);
    sgd.step();
    add_(x, x), sub_(x, x), addcmul_(x, x, x, 2.0), fill_(x, 3), copy_(x, ones({4}, gpu)), relu_(x);
  });
  for (const char* name : {"clip_grad_norm", "SGD::step", "add_", "sub_", "addcmul_", "fill_", "copy_", "relu_"}) {
    CAPTURE(name);
    CHECK(std::any_of(ranges.begin(), ranges.end(), [&](const auto& names) { return names.size() == 2 && names.front() == name; }));
  }
}

TEST_CASE("ranges: a run of a graph is one, and what was recorded has its names at the time of recording") {
  const Tensor x = ones({8}, gpu);
  std::optional<cuda::Graph> graph;
  const Ranges recording = ranges_of([&] { graph.emplace([&] { relu(x); }); });
  CHECK(has(recording, "relu > unary"));
  const Ranges run = ranges_of([&] { graph->replay(); });
  CHECK(run == Ranges{{"cuda::Graph"}});
}

TEST_CASE("ranges: every operation has its name around its kernels, and no kernel but those that make constants is without an operation") {
  const std::set<std::string> of_others = {"split", "contiguous"};           // views, and what clone() computes
  size_t seen = 0;
  for (const op_cases::Operation& row : op_cases::operations()) {
    const std::string name = row.name.substr(0, row.name.find('/'));
    CAPTURE(row.name);
    std::vector<Tensor> inputs;
    for (const Tensor& x : op_cases::make_inputs(row.samples.front(), DType::float32)) {
      inputs.push_back(to(x, gpu));
      if (is_floating(x.dtype())) inputs.back().set_requires_grad();
    }
    std::vector<std::string> kernels;
    Tensor y;
    const Ranges forward = ranges_of([&] {
      kernels::cuda::log_launches(&kernels);
      y = row.call(inputs);
      kernels::cuda::log_launches(nullptr);
    });
    size_t launches = 0, own_launches = 0;
    for (const auto& names : forward) {
      if (std::find(kernels.begin(), kernels.end(), names.back()) == kernels.end()) continue;
      ++launches;
      own_launches += static_cast<size_t>(std::any_of(names.begin(), names.end() - 1, [&](const std::string& n) { return n.starts_with(name); }));
      CHECK_MESSAGE((names.size() > 1 || names.back() == "fill" || names.back() == name), joined(names));       // a kernel may have its operation's name
    }
    CHECK(launches >= kernels.size());
    CHECK((own_launches > 0 || kernels.empty() || of_others.contains(name)));
    seen += own_launches > 0;
    if (!y.requires_grad()) continue;
    kernels.clear();
    const Ranges backward = ranges_of([&] {
      kernels::cuda::log_launches(&kernels);
      y.backward(ones_like(y));
      kernels::cuda::log_launches(nullptr);
    });
    for (const auto& names : backward) {
      const std::string& outermost = names.front();
      const bool is_of_engine = outermost.ends_with(" backward") || outermost == "accumulate" || outermost == "add";
      CHECK_MESSAGE((is_of_engine || outermost == "fill"), joined(names));
    }
  }
  CHECK(seen > 100);
}
