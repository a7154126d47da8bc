// CTC. The kernel: against the definition (every path enumerated), against plain log-space recursion in long double, against PyTorch, and at the edges. Then the
// operation ctc_loss() and reading by the best path.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include <fovea/autograd/ctc.h>
#include <fovea/autograd/elementwise.h>
#include <fovea/autograd/gradcheck.h>
#include <fovea/autograd/shape.h>
#include <fovea/kernels/cpu/parallel.h>
#include <fovea/tensor/allocator.h>
#include <fovea/tensor/creation.h>
#include <fovea/tensor/npy.h>

#include "devices.h"
#include "messages.h"
#include "source_folder.h"

using namespace fovea;
using namespace fovea::testing;

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

struct Batch {
  CtcGeometry g;
  std::vector<double> logits;                       // [time, batch, classes]
  std::vector<int64_t> targets, input_lengths, target_lengths;
};

struct Result {
  std::vector<double> losses, gradient;
};

// Runs the kernel; outputs are poisoned first.
template <class T>
Result run_kernel(const Batch& b, bool has_gradient = true) {
  const DType dtype = dtype_of<T>;
  const Tensor logits = from_vector(std::vector<T>(b.logits.begin(), b.logits.end()), {b.g.time, b.g.batch, b.g.classes});
  const Tensor targets = from_vector(b.targets, {b.g.batch, b.g.max_target}), inputs = from_vector(b.input_lengths), lengths = from_vector(b.target_lengths);
  const Tensor losses = from_vector(std::vector<T>(static_cast<size_t>(b.g.batch), std::numeric_limits<T>::quiet_NaN()));
  const Tensor gradient = from_vector(std::vector<T>(b.logits.size(), std::numeric_limits<T>::quiet_NaN()), logits.shape());
  const auto& table = kernels::for_device(Device::cpu());
  const Scratch scratch(table.ctc_workspace(b.g, dtype), Device::cpu());
  table.ctc_loss(nullptr, b.g, logits.view(), targets.view(), inputs.view(), lengths.view(), losses.mutable_view(), {},
                 has_gradient ? gradient.mutable_view() : View(), scratch);
  return {losses.to_vector<double>(), gradient.to_vector<double>()};
}

// One sample whose every step counts.
Batch one_sample(int64_t time, int64_t classes, std::vector<double> logits, std::vector<int64_t> target, int64_t blank) {
  const int64_t length = static_cast<int64_t>(target.size());
  return {{time, 1, classes, length, blank, false}, std::move(logits), std::move(target), {time}, {length}};
}

// The rows [0, input length) of sample b: log-softmax of its logits.
std::vector<std::vector<long double>> log_softmax_of(const Batch& batch, int64_t b) {
  std::vector<std::vector<long double>> rows;
  const int64_t c = batch.g.classes;
  for (int64_t t = 0; t < batch.input_lengths[static_cast<size_t>(b)]; ++t) {
    const double* x = batch.logits.data() + (t * batch.g.batch + b) * c;
    const long double top = *std::max_element(x, x + c);
    long double total = 0;
    for (int64_t k = 0; k < c; ++k) total += std::exp(x[k] - top);
    std::vector<long double> row;
    for (int64_t k = 0; k < c; ++k) row.push_back(x[k] - top - std::log(total));
    rows.push_back(row);
  }
  return rows;
}

std::vector<int64_t> target_of(const Batch& batch, int64_t b) {
  const auto start = batch.targets.begin() + b * batch.g.max_target;
  return {start, start + batch.target_lengths[static_cast<size_t>(b)]};
}

std::vector<int64_t> collapse(const std::vector<int64_t>& path, int64_t blank) {
  std::vector<int64_t> labels;
  for (size_t t = 0; t < path.size(); ++t)
    if (path[t] != blank && (t == 0 || path[t] != path[t - 1])) labels.push_back(path[t]);
  return labels;
}

// -ln of the sum over all classes^time paths that collapse to the target, and its gradient: softmax minus the share of paths through each class.
void enumerate_paths(const Batch& batch, int64_t b, double& loss, std::vector<double>& gradient) {
  const auto rows = log_softmax_of(batch, b);
  const auto target = target_of(batch, b);
  const int64_t time = static_cast<int64_t>(rows.size()), c = batch.g.classes;
  std::vector<int64_t> path(rows.size(), 0);
  std::vector<long double> through(static_cast<size_t>(time * c), 0);
  long double total = 0;
  for (bool has_next = true; has_next;) {
    if (collapse(path, batch.g.blank) == target) {
      long double log_p = 0;
      for (size_t t = 0; t < rows.size(); ++t) log_p += rows[t][static_cast<size_t>(path[t])];
      total += std::exp(log_p);
      for (size_t t = 0; t < rows.size(); ++t) through[t * static_cast<size_t>(c) + static_cast<size_t>(path[t])] += std::exp(log_p);
    }
    has_next = false;
    for (size_t t = 0; t < path.size() && !has_next; ++t) {
      path[t] = (path[t] + 1) % c;
      has_next = path[t] != 0;
    }
  }
  loss = total > 0 ? static_cast<double>(-std::log(total)) : infinity;
  gradient.assign(static_cast<size_t>(batch.g.time * c), 0);
  if (!(total > 0)) return;
  for (size_t i = 0; i < through.size(); ++i)
    gradient[i] = static_cast<double>(std::exp(rows[i / static_cast<size_t>(c)][i % static_cast<size_t>(c)]) - through[i] / total);
}

long double log_add(long double a, long double b) {
  const long double top = std::max(a, b);
  return top == -infinity ? top : top + std::log(std::exp(a - top) + std::exp(b - top));
}

// The textbook recursion over 2L + 1 states, in log space and long double.
void recursion(const Batch& batch, int64_t b, double& loss, std::vector<double>& gradient) {
  const auto rows = log_softmax_of(batch, b);
  const auto target = target_of(batch, b);
  const size_t time = rows.size(), states = 2 * target.size() + 1;
  const auto label = [&](size_t s) { return static_cast<size_t>(s % 2 ? target[s / 2] : batch.g.blank); };
  const auto may_skip = [&](size_t s) { return s % 2 == 1 && s >= 3 && target[s / 2] != target[s / 2 - 1]; };
  const std::vector<long double> nothing(states, -infinity);
  std::vector<std::vector<long double>> alpha(time, nothing), beta(time, nothing);
  for (size_t t = 0; t < time; ++t)
    for (size_t s = 0; s < states; ++s) {
      long double from = t == 0 ? (s < 2 ? 0 : -infinity) : alpha[t - 1][s];
      if (t > 0 && s >= 1) from = log_add(from, alpha[t - 1][s - 1]);
      if (t > 0 && may_skip(s)) from = log_add(from, alpha[t - 1][s - 2]);
      alpha[t][s] = from + rows[t][label(s)];
    }
  for (size_t t = time; t-- > 0;)
    for (size_t s = 0; s < states; ++s) {
      if (t + 1 == time) {
        beta[t][s] = s + 2 >= states ? 0 : -infinity;
        continue;
      }
      long double to = beta[t + 1][s] + rows[t + 1][label(s)];
      if (s + 1 < states) to = log_add(to, beta[t + 1][s + 1] + rows[t + 1][label(s + 1)]);
      if (s + 2 < states && may_skip(s + 2)) to = log_add(to, beta[t + 1][s + 2] + rows[t + 1][label(s + 2)]);
      beta[t][s] = to;
    }
  long double log_p = alpha[time - 1][states - 1];
  if (states > 1) log_p = log_add(log_p, alpha[time - 1][states - 2]);
  loss = static_cast<double>(-log_p);
  const size_t c = static_cast<size_t>(batch.g.classes);
  gradient.assign(static_cast<size_t>(batch.g.time) * c, 0);
  if (log_p == -infinity) return;
  for (size_t t = 0; t < time; ++t) {
    for (size_t k = 0; k < c; ++k) gradient[t * c + k] = static_cast<double>(std::exp(rows[t][k]));
    for (size_t s = 0; s < states; ++s) gradient[t * c + label(s)] -= static_cast<double>(std::exp(alpha[t][s] + beta[t][s] - log_p));
  }
}

std::vector<double> gradient_of(const Batch& batch, const Result& result, int64_t b) {
  std::vector<double> rows;
  for (int64_t t = 0; t < batch.g.time; ++t) {
    const auto start = result.gradient.begin() + (t * batch.g.batch + b) * batch.g.classes;
    rows.insert(rows.end(), start, start + batch.g.classes);
  }
  return rows;
}

double worst_difference(const std::vector<double>& a, const std::vector<double>& b) {
  REQUIRE(a.size() == b.size());
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double difference = std::abs(a[i] - b[i]);
    if (std::isnan(difference)) return difference;
    worst = std::max(worst, difference);
  }
  return worst;
}

// Random logits of the given spread, lengths anywhere from 0 to their maximum.
Batch random_batch(unsigned seed, CtcGeometry g, double spread) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal(0, spread);
  Batch b{g, {}, {}, {}, {}};
  for (int64_t i = 0; i < g.time * g.batch * g.classes; ++i) b.logits.push_back(static_cast<float>(normal(random)));
  for (int64_t i = 0; i < g.batch * g.max_target; ++i) {
    const int64_t label = static_cast<int64_t>(random() % static_cast<unsigned>(g.classes - 1));
    b.targets.push_back(label + (label >= g.blank));
  }
  for (int64_t i = 0; i < g.batch; ++i) {
    b.input_lengths.push_back(g.time - static_cast<int64_t>(random() % static_cast<unsigned>(g.time / 3 + 1)));
    b.target_lengths.push_back(static_cast<int64_t>(random() % static_cast<unsigned>(g.max_target + 1)));
  }
  return b;
}

template <class T>
void check_against(const Batch& batch, void (*reference)(const Batch&, int64_t, double&, std::vector<double>&), double relative, double absolute) {
  const Result result = run_kernel<T>(batch);
  for (int64_t b = 0; b < batch.g.batch; ++b) {
    double loss = 0;
    std::vector<double> gradient;
    reference(batch, b, loss, gradient);
    CAPTURE(b);
    const double got = result.losses[static_cast<size_t>(b)];
    if (std::isinf(loss)) {
      CHECK(got == infinity);
    } else {
      CHECK(std::abs(got - loss) <= relative * (1 + std::abs(loss)));
    }
    CHECK(worst_difference(gradient_of(batch, result, b), gradient) <= absolute);
  }
}

}  // namespace

TEST_CASE_TEMPLATE("ctc: the loss is the sum over every path, for every blank and target" * of_the_cpu(), T, float, double) {
  const double tolerance = sizeof(T) == 4 ? 2e-6 : 1e-13;
  for (int64_t time = 1; time <= 5; ++time)
    for (int64_t classes = 2; classes <= 4; ++classes)
      for (int64_t blank = 0; blank < classes; ++blank)
        for (int64_t max_target = 0; max_target <= 3; ++max_target) {
          Batch batch = random_batch(static_cast<unsigned>(time * 100 + classes * 10 + blank), {time, 6, classes, max_target, blank, false}, 2.0);
          CAPTURE(time);
          CAPTURE(classes);
          CAPTURE(blank);
          CAPTURE(max_target);
          check_against<T>(batch, enumerate_paths, tolerance, tolerance);
        }
}

TEST_CASE_TEMPLATE("ctc: published probabilities" * of_the_cpu(), T, float, double) {
  const double tolerance = sizeof(T) == 4 ? 1e-6 : 1e-14;
  // Columns a, b, blank; p(a) = .64 (Scheidl's example). ln 0 = -infinity is a valid score.
  const std::vector<double> row = {std::log(0.4), -infinity, std::log(0.6), std::log(0.4), -infinity, std::log(0.6)};
  CHECK(std::exp(-run_kernel<T>(one_sample(2, 3, row, {0}, 2)).losses[0]) == doctest::Approx(0.64).epsilon(tolerance));
  CHECK(run_kernel<T>(one_sample(2, 3, row, {1}, 2)).losses[0] == infinity);
  const std::vector<double> uniform(9, 0.0);
  CHECK(std::exp(-run_kernel<T>(one_sample(3, 3, uniform, {1}, 0)).losses[0]) == doctest::Approx(6.0 / 27).epsilon(tolerance));
  CHECK(std::exp(-run_kernel<T>(one_sample(3, 3, uniform, {1, 2}, 0)).losses[0]) == doctest::Approx(5.0 / 27).epsilon(tolerance));
  CHECK(std::exp(-run_kernel<T>(one_sample(3, 3, uniform, {1, 1}, 0)).losses[0]) == doctest::Approx(1.0 / 27).epsilon(tolerance));
}

TEST_CASE_TEMPLATE("ctc: losses and gradients are PyTorch's" * of_the_cpu(), T, float, double) {
  const double tolerance = sizeof(T) == 4 ? 2e-6 : 1e-9;
  Batch batch{{5, 3, 4, 2, 0, false}, {}, {1, 1, 2, 3, 3, 0}, {5, 4, 3}, {2, 2, 1}};
  for (int i = 0; i < 60; ++i) batch.logits.push_back(3 * std::sin(0.7 * i + 0.1 * (i % 4)));
  const Result result = run_kernel<T>(batch);
  CHECK(worst_difference(result.losses, {6.050485814684299, 4.9017573448419665, 1.926958448979383}) <= tolerance);
  const std::vector<double> gradient = {
      0.0176567664, -0.7598620083, 0.5385321924, 0.2036730494, 0.3154697044, 0.0848359555, -0.4229049122, 0.0225992523, -0.0047226427, 0.0445540553,
      0.3396987365, -0.3795301491, -0.0632398667, 0.0468918458, 0.0128763201, 0.0034717008, 0.0004402991, 0.0129667775, -0.4377613463, 0.4243542697,
      -0.3673714079, 0.3357136409, 0.0435871897, -0.0119294227, -0.5394954148, -0.4205686291, 0.0848455009, 0.8752185430, -0.2691483636, 0.5392050884,
      0.1181850493, -0.3882417741, -0.6047487960, 0.0750868551, 0.0820673434, 0.4475945975, -0.0202804179, -0.6835178453, 0.5297302627, 0.1740680005,
      0.0836979177, 0.0850814548, 0.0208772446, -0.1896566171, 0.0, 0.0, 0.0, 0.0, -0.0105914511, -0.0055294326,
      0.0123252139, 0.0037956697, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0};
  CHECK(worst_difference(result.gradient, gradient) <= std::max(tolerance, 1e-10));
}

TEST_CASE_TEMPLATE("ctc: agrees with log-space recursion in long double, long and peaky alike" * of_the_cpu(), T, float, double) {
  const bool is_float = sizeof(T) == 4;
  for (const double spread : {0.5, 5.0, 60.0}) {
    CAPTURE(spread);
    check_against<T>(random_batch(1, {64, 5, 80, 20, 0, false}, spread), recursion, is_float ? 1e-6 : 1e-13, is_float ? 2e-5 : 1e-11);
    check_against<T>(random_batch(2, {2000, 2, 11, 150, 10, false}, spread), recursion, is_float ? 1e-6 : 1e-13, is_float ? 1e-4 : 1e-11);
    check_against<T>(random_batch(3, {40, 4, 3, 17, 1, false}, spread), recursion, is_float ? 1e-6 : 1e-13, is_float ? 2e-5 : 1e-11);
  }
}

TEST_CASE("ctc: a path that looks hopeless for a long time is not lost" * of_the_cpu()) {
  // For 300 steps the label is e^-200 a step; then it has to be there. Its probability leaves the range of both float32 and float64.
  std::vector<double> logits;
  for (int t = 0; t < 600; ++t) {
    logits.push_back(t < 300 ? 200 : 0);                       // blank
    logits.push_back(t < 300 ? 0 : 200);
  }
  const Batch batch = one_sample(600, 2, logits, std::vector<int64_t>(250, 1), 0);
  check_against<float>(batch, recursion, 1e-6, 1e-4);
  check_against<double>(batch, recursion, 1e-13, 1e-10);
  CHECK(run_kernel<float>(batch).losses[0] > 30000);
}

TEST_CASE("ctc: targets longer than the input allows cost infinity and give no gradient" * of_the_cpu()) {
  Batch batch = random_batch(4, {5, 3, 6, 4, 0, false}, 1.0);
  batch.targets = {1, 1, 2, 2, 1, 2, 3, 4, 1, 2, 3, 3};
  batch.input_lengths = {5, 4, 5};
  batch.target_lengths = {4, 4, 4};                            // 4 + 2 repeats > 5; 4 <= 4; 4 + 1 <= 5
  for (const bool zero_infinity : {false, true}) {
    batch.g.zero_infinity = zero_infinity;
    const Result result = run_kernel<float>(batch);
    CHECK(result.losses[0] == (zero_infinity ? 0 : infinity));
    CHECK(worst_difference(gradient_of(batch, result, 0), std::vector<double>(30, 0.0)) == 0);
    CHECK(std::isfinite(result.losses[1]));
    CHECK(std::isfinite(result.losses[2]));
    CHECK(worst_difference(gradient_of(batch, result, 2), std::vector<double>(30, 0.0)) > 0.01);
  }
}

TEST_CASE("ctc: inputs and targets of no length" * of_the_cpu()) {
  Batch batch = random_batch(5, {3, 4, 4, 2, 0, false}, 1.0);
  batch.input_lengths = {0, 0, 3, 3};
  batch.target_lengths = {0, 1, 0, 1};
  const Result result = run_kernel<double>(batch);
  CHECK(result.losses[0] == 0);
  CHECK(result.losses[1] == infinity);
  double blanks = 0;
  for (const auto& row : log_softmax_of(batch, 2)) blanks -= static_cast<double>(row[0]);
  CHECK(result.losses[2] == doctest::Approx(blanks));
  CHECK(worst_difference(gradient_of(batch, result, 0), std::vector<double>(12, 0.0)) == 0);

  CHECK(run_kernel<float>({{4, 0, 3, 2, 0, false}, {}, {}, {}, {}}).losses.empty());
  const Result no_time = run_kernel<float>({{0, 2, 3, 1, 0, false}, {}, {1, 1}, {0, 0}, {0, 1}});
  CHECK(no_time.losses == std::vector<double>{0, infinity});
}

TEST_CASE("ctc: a gradient row sums to zero, steps past the end have none, and the loss alone is the same loss" * of_the_cpu()) {
  const Batch batch = random_batch(6, {50, 7, 23, 12, 22, false}, 3.0);
  const Result result = run_kernel<float>(batch);
  for (int64_t b = 0; b < batch.g.batch; ++b) {
    const auto gradient = gradient_of(batch, result, b);
    for (int64_t t = 0; t < batch.g.time; ++t) {
      double total = 0, magnitude = 0;
      for (int64_t k = 0; k < batch.g.classes; ++k) {
        total += gradient[static_cast<size_t>(t * batch.g.classes + k)];
        magnitude += std::abs(gradient[static_cast<size_t>(t * batch.g.classes + k)]);
      }
      CHECK(std::abs(total) < 1e-5);
      CHECK((magnitude == 0) == (t >= batch.input_lengths[static_cast<size_t>(b)] || std::isinf(result.losses[static_cast<size_t>(b)])));
    }
  }
  CHECK(run_kernel<float>(batch, false).losses == result.losses);
}

TEST_CASE("ctc: a sample's result does not depend on the batch around it nor on the number of threads" * of_the_cpu()) {
  const Batch batch = random_batch(7, {40, 9, 30, 10, 3, false}, 2.0);
  const Result together = run_kernel<float>(batch);
  for (int64_t b = 0; b < batch.g.batch; ++b) {
    const int64_t time = batch.input_lengths[static_cast<size_t>(b)], c = batch.g.classes;
    std::vector<double> logits;
    for (int64_t t = 0; t < time; ++t)
      for (int64_t k = 0; k < c; ++k) logits.push_back(batch.logits[static_cast<size_t>((t * batch.g.batch + b) * c + k)]);
    const Result alone = run_kernel<float>(one_sample(time, c, logits, target_of(batch, b), batch.g.blank));
    CHECK(alone.losses[0] == together.losses[static_cast<size_t>(b)]);
    auto rows = gradient_of(batch, together, b);
    rows.resize(alone.gradient.size());
    CHECK(rows == alone.gradient);
  }
  const int threads = num_threads();
  for (const int n : {1, 2, 5}) {
    set_num_threads(n);
    const Result again = run_kernel<float>(batch);
    CHECK(again.losses == together.losses);
    CHECK(again.gradient == together.gradient);
  }
  set_num_threads(threads);
}

TEST_CASE_TEMPLATE("ctc: a NaN reaches the loss of its sample and no other" * of_the_cpu(), T, float, double) {
  Batch batch = random_batch(8, {6, 3, 19, 2, 0, false}, 1.0);
  batch.input_lengths = {6, 6, 4};
  batch.target_lengths = {2, 2, 2};
  batch.logits[static_cast<size_t>((2 * 3 + 1) * 19 + 18)] = std::nan("");    // sample 1, step 2
  batch.logits[static_cast<size_t>((5 * 3 + 2) * 19)] = std::nan("");         // sample 2, past its end
  const Result result = run_kernel<T>(batch);
  CHECK(std::isfinite(result.losses[0]));
  CHECK(std::isnan(result.losses[1]));
  CHECK(std::isfinite(result.losses[2]));
  CHECK(std::isnan(gradient_of(batch, result, 1)[0]));
  CHECK(std::isfinite(worst_difference(gradient_of(batch, result, 2), std::vector<double>(6 * 19, 0.0))));
}

namespace {

// The batch of "losses and gradients are PyTorch's" as tensors.
struct Example {
  Tensor logits, targets = from_vector<int64_t>({1, 1, 2, 3, 3, 0}, {3, 2}), input_lengths = from_vector<int64_t>({5, 4, 3}), target_lengths = from_vector<int64_t>({2, 2, 1});
  Example() {
    std::vector<double> values;
    for (int i = 0; i < 60; ++i) values.push_back(3 * std::sin(0.7 * i + 0.1 * (i % 4)));
    logits = from_vector(values, {5, 3, 4});
    logits.set_requires_grad();
  }
  Tensor loss(const CtcOptions& options = {}) const { return ctc_loss(logits, targets, input_lengths, target_lengths, options); }
};

// Rows of numbers, each number ended by a semicolon: [rows, 1, columns].
Tensor load_matrix(const std::string& path, int64_t rows, int64_t columns) {
  std::ifstream file(path);
  std::vector<double> values(static_cast<size_t>(rows * columns));
  char semicolon = 0;
  for (double& v : values) file >> v >> semicolon;
  REQUIRE(file.good());
  return from_vector(values, {rows, 1, columns});
}

}  // namespace

TEST_CASE("ctc_loss: reductions are PyTorch's") {
  const Example e;
  CHECK(worst_difference(e.loss({.reduction = Reduction::none}).to_vector<double>(), {6.050485814684299, 4.9017573448419665, 1.926958448979383}) <= 1e-13);
  CHECK(e.loss().item() == doctest::Approx(2.467693342914172).epsilon(1e-13));
  CHECK(e.loss({.reduction = Reduction::sum}).item() == doctest::Approx(12.879201608505648).epsilon(1e-13));
}

TEST_CASE("ctc_loss: the gradient is the limit of differences, for scores and for log-probabilities") {
  const Example e;
  for (const Reduction reduction : {Reduction::none, Reduction::mean, Reduction::sum}) {
    const CtcOptions options{.reduction = reduction};
    const auto of_logits = [&](const std::vector<Tensor>& in) { return ctc_loss(in[0], e.targets, e.input_lengths, e.target_lengths, options); };
    const auto of_logs = [&](const std::vector<Tensor>& in) { return ctc_loss(log_softmax(in[0], 2), e.targets, e.input_lengths, e.target_lengths, options); };
    CHECK(gradcheck(of_logits, {e.logits}) == "");
    CHECK(gradcheck(of_logs, {e.logits}) == "");
  }
  CHECK(contains(error_of([&] { grad({e.loss()}, {e.logits}, {}, {.create_graph = true}); }), "cannot be differentiated again"));
}

TEST_CASE("ctc_loss: targets one after the other, other integers, strided scores and other blanks give the same") {
  const Example e;
  const Tensor joined = from_vector<int64_t>({1, 1, 2, 3, 3});
  CHECK(ctc_loss(e.logits, joined, e.input_lengths, e.target_lengths).item() == e.loss().item());
  CHECK(ctc_loss(e.logits, to(e.targets, DType::int32), to(e.input_lengths, DType::uint8), to(e.target_lengths, DType::int32)).item() == e.loss().item());
  const Tensor batch_first = clone(transpose(e.logits, 0, 1));
  CHECK(ctc_loss(transpose(batch_first, 0, 1), e.targets, e.input_lengths, e.target_lengths).item() == e.loss().item());
  const Tensor moved = roll(e.logits, -1, 2);                // class 0 becomes class 3
  CHECK(ctc_loss(moved, e.targets - 1, e.input_lengths, e.target_lengths, {.blank = 3}).item() == doctest::Approx(e.loss().item()).epsilon(1e-14));
}

TEST_CASE("ctc_loss: an infeasible sample makes the loss infinite or counts for nothing") {
  Example e;
  e.input_lengths = from_vector<int64_t>({2, 4, 3});         // 1 1 needs three steps
  CHECK(e.loss().item() == infinity);
  const Tensor gradient = grad({e.loss()}, {e.logits})[0], without = grad({e.loss({.zero_infinity = true})}, {e.logits})[0];
  CHECK(e.loss({.zero_infinity = true}).item() == doctest::Approx((4.9017573448419665 / 2 + 1.926958448979383) / 3).epsilon(1e-13));
  CHECK(gradient.to_vector<double>() == without.to_vector<double>());
  for (const double v : select(gradient, 1, 0).to_vector<double>()) CHECK(v == 0);
}

TEST_CASE("ctc_loss: one target of many labels among many samples costs infinity, and no memory to speak of") {
  constexpr int64_t batch = 4096, longest = 1 << 20;         // as rows of the longest: 32 GB
  const Tensor logits = zeros({3, batch, 3}), steps = full({batch}, 3, DType::int64);
  std::vector<int64_t> lengths(batch, 1);
  lengths[5] = longest;
  const Tensor targets = ones({longest + batch - 1}, DType::int64), target_lengths = from_vector(lengths);
  allocator::clear();
  const int64_t before = allocator::stats().active_bytes;
  allocator::reset_peak();
  const std::vector<double> losses = ctc_loss(logits, targets, steps, target_lengths, {.reduction = Reduction::none}).to_vector<double>();
  CHECK(allocator::stats().peak_bytes - before < (64 << 20));
  const double expected = -std::log(6.0 / 27);               // six ways to say one label in three steps of three equal classes
  CHECK(losses[5] == infinity);
  for (size_t b = 0; b < losses.size(); ++b)
    if (b != 5) CHECK(losses[b] == doctest::Approx(expected));
  // mean divides by the whole length, not by what was kept of the target; a wrong label far behind is still found
  CHECK(ctc_loss(logits, targets, steps, target_lengths, {.zero_infinity = true}).item() == doctest::Approx(expected * (batch - 1) / batch));
  Tensor wrong = testing::on_cpu(targets);
  wrong.mutable_data<int64_t>()[longest] = 7;
  wrong = testing::on_default_device(wrong);
  CHECK(contains(error_of([&] { ctc_loss(logits, wrong, steps, target_lengths); }), str("targets[", longest, "] is 7, out of range [0, 3) for 3 classes")));
}

TEST_CASE("ctc_loss: bad labels and lengths are errors that name the sample") {
  const Example e;
  const auto with = [&](const Tensor& targets, const Tensor& inputs, const Tensor& lengths) { return error_of([&] { ctc_loss(e.logits, targets, inputs, lengths); }); };
  const auto labels = [](std::vector<int64_t> v) { return from_vector(v, {3, 2}); };
  CHECK(contains(with(labels({1, 1, 2, 4, 3, 0}), e.input_lengths, e.target_lengths), "targets[1,1] is 4, out of range [0, 4) for 4 classes"));
  CHECK(contains(with(labels({1, 1, 2, 3, -1, 0}), e.input_lengths, e.target_lengths), "targets[2,0] is -1"));
  CHECK(contains(with(labels({1, 0, 2, 3, 3, 0}), e.input_lengths, e.target_lengths), "targets[0,1] is 0, the blank; targets must not hold blanks"));
  CHECK(contains(with(e.targets, from_vector<int64_t>({5, 6, 3}), e.target_lengths), "input_lengths[1] is 6, out of range [0, 6) for the 5 steps of logits"));
  CHECK(contains(with(e.targets, e.input_lengths, from_vector<int64_t>({2, 2, 3})), "target_lengths[2] is 3, out of range [0, 3) for the 2 columns of targets"));
  CHECK(contains(with(e.targets, e.input_lengths, from_vector<int64_t>({2, -2, 1})), "target_lengths[1] is -2"));
  CHECK(contains(with(e.targets, e.input_lengths, from_vector<int64_t>({2, 2})), "target_lengths has shape [2], expected [3]"));
  const std::string uneven = with(from_vector<int64_t>({1, 1, 2, 3}), e.input_lengths, e.target_lengths);
  CHECK((contains(uneven, "targets hold 4 labels but target_lengths add up to 5") ||
         contains(uneven, "the sum of target_lengths is 5, out of range [4, 5) for the 4 labels that targets hold")));             // found late, on a device
  CHECK(contains(with(e.logits, e.input_lengths, e.target_lengths), "targets must be int64, got float64"));
  CHECK(contains(error_of([&] { e.loss({.blank = 4}); }), "blank is 4"));
  CHECK(contains(error_of([&] { ctc_loss(select(e.logits, 0, 0), e.targets, e.input_lengths, e.target_lengths); }), "[time, batch, classes]"));
}

TEST_CASE("ctc_loss: shapes without data, and batches without samples") {
  const Tensor meta = empty({7, 2, 5}, {DType::float32, Device::meta()}), lengths = empty({2}, {DType::int64, Device::meta()});
  CHECK(ctc_loss(meta, empty({2, 3}, {DType::int64, Device::meta()}), lengths, lengths, {.reduction = Reduction::none}).shape() == Shape{2});
  const Tensor none = empty({0}, DType::int64);
  CHECK(ctc_loss(empty({4, 0, 3}), empty({0, 2}, DType::int64), none, none, {.reduction = Reduction::sum}).item() == 0);
}

TEST_CASE("ctc_best_path: merges repeats, drops blanks, keeps letters that a blank parts, and knows where each stands") {
  // Classes: blank, a, b. Most probable: a a - a b b
  const std::vector<int64_t> path = {1, 1, 0, 1, 2, 2};
  const std::vector<double> probability = {0.5, 0.9, 0.6, 0.7, 0.8, 0.4};
  std::vector<double> logits;
  for (size_t t = 0; t < path.size(); ++t)
    for (int64_t k = 0; k < 3; ++k) logits.push_back(5 + std::log(k == path[t] ? probability[t] : (1 - probability[t]) / 2));
  const Tensor scores = from_vector(logits, {6, 1, 3});
  const CtcReading reading = ctc_best_path(scores)[0];
  CHECK(reading.labels() == std::vector<int64_t>{1, 1, 2});
  const double confidences[] = {0.9, 0.7, 0.8};
  const int64_t first[] = {0, 3, 4}, last[] = {1, 3, 5};
  for (size_t i = 0; i < 3; ++i) {
    CHECK(reading.characters[i].confidence == doctest::Approx(confidences[i]));
    CHECK(reading.characters[i].first_step == first[i]);
    CHECK(reading.characters[i].last_step == last[i]);
  }
  CHECK(reading.confidence == doctest::Approx(std::pow(0.5 * 0.9 * 0.6 * 0.7 * 0.8 * 0.4, 1.0 / 6)));
  CHECK(ctc_best_path(scores, from_vector<int64_t>({3}))[0].labels() == std::vector<int64_t>{1});
  CHECK(ctc_best_path(scores, from_vector<int64_t>({0}))[0].confidence == 1);
  CHECK(ctc_best_path(scores, {}, 2)[0].labels() == std::vector<int64_t>{1, 0, 1});
  for (const DType half : {DType::float16, DType::bfloat16}) CHECK(ctc_best_path(to(scores, half))[0].labels() == std::vector<int64_t>{1, 1, 2});
}

TEST_CASE("ctc: published losses, gradients and readings of handwriting recognisers") {
  const std::string folder = testing::source_folder() + "/../shared/data/ctc_decoding";
  if (!std::filesystem::is_directory(folder)) {
    MESSAGE("skipped: ", folder, " is not there");
    return;
  }
  struct Case {
    const char* name;
    int64_t time, classes;
    bool is_probabilities;
    std::vector<int64_t> target, best_path;
    double loss;
  };
  const Case cases[] = {
      {"mini_2x3", 2, 3, true, {0}, {}, 0.4462871026284194},
      {"wbs_test_3x4", 3, 4, true, {1, 0}, {0, 0}, 2.8134107167600364},
      {"bentham_0", 100, 94, false, {59, 75, 58, 66, 71, 12}, {59, 75, 58, 66, 71, 12}, 0.5532476395423244},
      {"iam_line", 100, 80, false,
       {72, 60, 57, 0, 58, 53, 63, 57, 0, 58, 70, 61, 57, 66, 56, 0, 67, 58, 0, 72, 60, 57, 0, 58, 53, 65, 61, 64, 77, 10, 0, 64, 61, 63, 57, 0, 72, 60, 57},
       {72, 60, 57, 0, 58, 53, 63, 0, 58, 70, 61, 57, 66, 56, 0, 67, 58, 0, 72, 60, 57, 0, 58, 67, 65, 64, 77, 0, 60, 53, 57, 0, 72, 29},
       28.090721774903226},
  };
  for (const Case& c : cases) {
    CAPTURE(c.name);
    const std::string path = folder + "/" + c.name;
    const Tensor matrix = load_matrix(path + "/matrix.csv", c.time, c.classes);
    for (const DType dtype : {DType::float64, DType::float32}) {
      const bool is_float = dtype == DType::float32;
      Tensor logits = to(c.is_probabilities ? log(matrix) : matrix, dtype).detach();
      logits.set_requires_grad();
      const Tensor loss = ctc_loss(logits, from_vector(c.target), from_vector<int64_t>({c.time}), from_vector<int64_t>({static_cast<int64_t>(c.target.size())}),
                                   {.blank = c.classes - 1, .reduction = Reduction::sum});
      CHECK(loss.item() == doctest::Approx(c.loss).epsilon(is_float ? 1e-5 : 1e-12));
      CHECK(ctc_best_path(logits, {}, c.classes - 1)[0].labels() == c.best_path);
      if (c.is_probabilities) continue;
      const Tensor gradient = load_npy(path + "/ctc_grad_wrt_logits.npy");
      CHECK(worst_difference(grad({loss}, {logits})[0].to_vector<double>(), gradient.to_vector<double>()) <= (is_float ? 1e-5 : 1e-12));
    }
  }
}
