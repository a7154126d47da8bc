// Runs the rows of cases.csv through Fovea (and matmul through OpenBLAS, where found) as Google Benchmark cases named ROW/fovea and ROW/openblas; row -1 is the
// machine itself: its copy rate and its rate of fused multiply-adds. report.py puts the results beside PyTorch's.
#include <benchmark/benchmark.h>

#include <cstring>
#include <fstream>
#include <functional>
#include <iostream>
#include <map>
#include <sstream>

#include <fovea/fovea.h>

#include "../examples/handwriting/recognizer.h"

#ifdef FOVEA_HAS_OPENBLAS
#include <cblas.h>
#endif

using namespace fovea;

namespace {

struct Case {
  int row = 0;
  std::string family, op, direction;
  std::map<std::string, int64_t> shape;

  int64_t operator[](const std::string& key) const {
    const auto found = shape.find(key);
    check<ValueError>(found != shape.end(), "cases.csv: row ", row, " (", op, ") needs ", key);
    return found->second;
  }
  bool has_backward() const { return direction != "forward"; }
  ConvGeometry conv() const {
    const Case& c = *this;
    return {.n = c["n"], .c = c["c"], .h = c["h"], .w = c["w"], .k = c["k"], .r = c["r"], .s = c["r"], .stride_h = c["stride"], .stride_w = c["stride"],
            .pad_h = c["pad"], .pad_w = c["pad"], .groups = c["groups"]};
  }
};

// What a case does once, and what it costs at least.
struct Work {
  std::function<void()> run;
  double flops = 0, bytes = 0;
};

Tensor leaf(const Shape& shape, bool requires_grad) { return randn(shape).set_requires_grad(requires_grad); }

// A forward, and the gradients of `leaves` for an output gradient of ones.
void forward_backward(const std::function<Tensor()>& forward, const std::vector<Tensor>& leaves, bool has_backward) {
  if (!has_backward) {
    NoGrad no_grad;
    benchmark::DoNotOptimize(forward());
    return;
  }
  const Tensor y = forward();
  benchmark::DoNotOptimize(grad({y}, leaves, {ones_like(y)}));
}

Work matmul_work(const Case& c) {
  const MatmulGeometry g{.m = c["m"], .n = c["n"], .k = c["k"]};
  const Tensor a = randn({g.m, g.k}), b = randn({g.k, g.n});
  return {[=] { benchmark::DoNotOptimize(matmul(a, b)); }, 2.0 * static_cast<double>(g.macs()), static_cast<double>(g.cost().bytes)};
}

Work conv_work(const Case& c) {
  const ConvGeometry g = c.conv();
  const Tensor x = leaf({g.n, g.c, g.h, g.w}, c.has_backward()), w = leaf({g.k, g.group_c(), g.r, g.s}, c.has_backward());
  const double passes = c.has_backward() ? 3 : 1;
  return {[=, backward = c.has_backward()] {
            forward_backward([&] { return conv2d(x, w, {}, {.stride = {g.stride_h, g.stride_w}, .padding = {g.pad_h, g.pad_w}, .groups = g.groups}); }, {x, w}, backward);
          },
          passes * 2.0 * static_cast<double>(g.macs()), passes * static_cast<double>(g.cost(false).bytes)};
}

Work lstm_work(const Case& c) {
  auto net = std::make_shared<layers::LSTM>(
      layers::LSTM::Options{.input = c["input"], .hidden = c["hidden"], .layers = c["layers"], .bidirectional = c["directions"] == 2});
  const Tensor x = leaf({c["time"], c["batch"], c["input"]}, true);
  std::vector<Tensor> leaves{x};
  for (const auto& [name, parameter] : net->named_parameters()) leaves.push_back(parameter);
  const Cost cost = net->cost(x.shape());
  return {[=] { forward_backward([&] { return (*net)(x); }, leaves, true); }, 3.0 * static_cast<double>(cost.flops), 3.0 * static_cast<double>(cost.bytes)};
}

Work ctc_work(const Case& c) {
  const Tensor logits = leaf({c["time"], c["batch"], c["classes"]}, true), targets = randint(1, c["classes"], {c["batch"], c["target"]});
  const Tensor times = full({c["batch"]}, static_cast<double>(c["time"]), DType::int64), lengths = full({c["batch"]}, static_cast<double>(c["target"]), DType::int64);
  return {[=] { benchmark::DoNotOptimize(grad({ctc_loss(logits, targets, times, lengths)}, {logits})); }, 0, 2.0 * static_cast<double>(logits.nbytes())};
}

Work batch_norm_work(const Case& c) {
  const int64_t channels = c["c"];
  const Tensor x = leaf({c["n"], channels, c["h"], c["w"]}, true), gamma = ones({channels}).set_requires_grad(), beta = zeros({channels}).set_requires_grad();
  const Tensor mean = zeros({channels}), variance = ones({channels});
  return {[=] { forward_backward([&] { return batch_norm_relu(x, gamma, beta, mean, variance, true); }, {x, gamma, beta}, true); }, 0,
          7.0 * static_cast<double>(x.nbytes())};                      // forward reads x twice and writes y; backward reads dy, x, y and writes dx
}

Work elementwise_work(const Case& c) {
  NoGrad no_grad;
  const Tensor a = randn({c["n"]}), b = randn({c["n"]});
  const double bytes = static_cast<double>(a.nbytes());
  if (c.op == "add") return {[=] { benchmark::DoNotOptimize(a + b); }, 0, 3 * bytes};
  if (c.op == "relu") return {[=] { benchmark::DoNotOptimize(relu(a)); }, 0, 2 * bytes};
  if (c.op == "tanh") return {[=] { benchmark::DoNotOptimize(tanh(a)); }, 0, 2 * bytes};
  return {[=] { benchmark::DoNotOptimize(sum(a)); }, 0, bytes};
}

Work small_work(const Case& c) {
  const Tensor a = leaf({4, 4}, c.op == "add_small_recorded"), b = randn({4, 4});
  return {[=] { benchmark::DoNotOptimize(a + b); }, 0, 0};
}

Work recognizer_work(const Case& c) {
  auto net = std::make_shared<Recognizer>(RecognizerOptions{.height = c["height"], .classes = c["classes"], .channels = {32, 64, 128, 128}, .hidden = 128});
  auto adam = std::make_shared<optim::Adam>(net->named_parameters(), optim::AdamOptions{.lr = 1e-3});
  const Tensor x = randn({c["batch"], 1, c["height"], c["width"]}), targets = randint(1, c["classes"], {c["batch"], c["target"]});
  const Tensor lengths = full({c["batch"]}, static_cast<double>(c["target"]), DType::int64);
  const Cost cost = net->cost(x.shape());
  return {[=] {
            const Tensor logits = (*net)(x);
            const Tensor times = full({x.size(0)}, static_cast<double>(logits.size(0)), DType::int64);
            const Tensor loss = ctc_loss(logits, targets, times, lengths);
            net->zero_grad();
            loss.backward();
            optim::clip_grad_norm(net->named_parameters(), 5.0);
            adam->step();
          },
          3.0 * static_cast<double>(cost.flops), 0};
}

Work work_of(const Case& c) {
  if (c.op == "matmul") return matmul_work(c);
  if (c.op == "conv2d") return conv_work(c);
  if (c.op == "lstm") return lstm_work(c);
  if (c.op == "ctc_loss") return ctc_work(c);
  if (c.op == "batch_norm_relu") return batch_norm_work(c);
  if (c.op == "add_small" || c.op == "add_small_recorded") return small_work(c);
  if (c.op == "crnn_step") return recognizer_work(c);
  return elementwise_work(c);
}

std::vector<Case> read_cases(const std::string& path) {
  std::ifstream file(path);
  check<FileError>(file.good(), path, ": cannot be read");
  std::vector<Case> cases;
  std::string line;
  std::getline(file, line);                                        // the heading
  while (std::getline(file, line)) {
    Case c;
    c.row = static_cast<int>(cases.size());
    std::istringstream fields(line);
    std::string shape, pair;
    std::getline(fields, c.family, ',');
    std::getline(fields, c.op, ',');
    std::getline(fields, c.direction, ',');
    std::getline(fields, shape, ',');
    for (std::istringstream pairs(shape); pairs >> pair;) c.shape[pair.substr(0, pair.find('='))] = std::stoll(pair.substr(pair.find('=') + 1));
    cases.push_back(std::move(c));
  }
  return cases;
}

void register_work(const std::string& name, const std::function<Work()>& make) {
  benchmark::RegisterBenchmark(name.c_str(), [make](benchmark::State& state) {
    const Work work = make();
    work.run();
    for (auto _ : state) work.run();
    state.counters["flops"] = work.flops;
    state.counters["bytes"] = work.bytes;
  })->UseRealTime()->Unit(benchmark::kMicrosecond);
}

// 64 MB there and back; and our own matmul of a size that all engineers tune for.
Work copy_ceiling() {
  const Tensor a = randn({16 << 20}), b = empty_like(a);
  return {[=] { table_of(a).copy(nullptr, a.view(), b.mutable_view()); }, 0, 2.0 * static_cast<double>(a.nbytes())};
}

Work fma_ceiling() {
  const Tensor a = randn({1024, 1024}), b = randn({1024, 1024});
  return {[=] { benchmark::DoNotOptimize(matmul(a, b)); }, 2.0 * 1024 * 1024 * 1024, 0};
}

#ifdef FOVEA_HAS_OPENBLAS
Work openblas_work(const Case& c) {
  const int m = static_cast<int>(c["m"]), n = static_cast<int>(c["n"]), k = static_cast<int>(c["k"]);
  const Tensor a = randn({m, k}), b = randn({k, n}), y = empty({m, n});
  return {[=, a = a.data<float>(), b = b.data<float>(), y = static_cast<float*>(y.mutable_view().data), keep = std::vector<Tensor>{a, b, y}] {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, m, n, k, 1.0f, a, k, b, n, 0.0f, y, n);
  }};
}
#endif

}  // namespace

int main(int argc, char** argv) {
  std::string path = "cases.csv", family;
  std::vector<char*> rest;
  for (int i = 0; i < argc; ++i) {
    if (std::strncmp(argv[i], "--cases=", 8) == 0) path = argv[i] + 8;
    else if (std::strncmp(argv[i], "--family=", 9) == 0) family = argv[i] + 9;
    else rest.push_back(argv[i]);
  }
  try {
    manual_seed(1);
    register_work("-1/copy", copy_ceiling);
    register_work("-1/fma", fma_ceiling);
    for (const Case& c : read_cases(path)) {
      if (c.family.find(family) == std::string::npos) continue;
      register_work(str(c.row, "/fovea"), [c] { return work_of(c); });
#ifdef FOVEA_HAS_OPENBLAS
      if (c.op == "matmul") register_work(str(c.row, "/openblas"), [c] { return openblas_work(c); });
#endif
    }
    int count = static_cast<int>(rest.size());
    benchmark::Initialize(&count, rest.data());
    benchmark::RunSpecifiedBenchmarks();
  } catch (const std::exception& error) {
    std::cerr << "fovea_bench: " << error.what() << "\n";
    return 1;
  }
  return 0;
}
