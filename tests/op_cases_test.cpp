// Drives the rows of op_cases.h.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <set>

#include <fovea/autograd/autocast.h>
#include <fovea/autograd/elementwise.h>
#include <fovea/autograd/reduce.h>
#include <fovea/autograd/shape.h>
#include <fovea/kernels/cpu/parallel.h>
#include <fovea/kernels/table_entries.h>
#include <fovea/tensor/npz.h>

#include "devices.h"
#include "messages.h"
#include "op_cases.h"
#include "source_folder.h"

using namespace fovea;
using namespace fovea::op_cases;
using fovea::testing::contains;
using fovea::testing::error_of;

namespace {

const Rows& rows() {
  static const Rows all = operations();
  return all;
}

// Runs f on every sample of every row, so that what fails says where.
template <class F>
void for_each_sample(const F& f) {
  for (const Operation& row : rows())
    for (size_t i = 0; i < row.samples.size(); ++i) {
      const Sample& sample = row.samples[i];
      std::string shapes;
      for (const Input& input : sample.inputs) shapes += str(" ", input.shape);
      INFO(row.name, ", sample ", i, ":", shapes);
      try {
        f(row, sample, i);
      } catch (const Error& error) {
        FAIL_CHECK(std::string(error.what()));
      }
    }
}

// The inputs with their floating-point values rounded to `dtype`, kept in it or widened again.
std::vector<Tensor> rounded(std::vector<Tensor> inputs, DType dtype, bool is_widened) {
  for (Tensor& x : inputs)
    if (is_floating(x.dtype())) x = is_widened ? to(to(x, dtype), x.dtype()) : to(x, dtype);
  return inputs;
}

bool has_special(const Sample& sample) {
  for (const Input& input : sample.inputs)
    if (input.kind == Kind::special) return true;
  return false;
}

bool is_differentiable(const Operation& row, const Sample& sample) { return row.gradient != Gradient::none && !has_special(sample); }

void require_gradients(const Sample& sample, std::vector<Tensor>& inputs) {
  for (size_t i = 0; i < inputs.size(); ++i)
    if (sample.inputs[i].kind == Kind::values) inputs[i].set_requires_grad();
}

// The result and, where there are any, the gradients of its sum.
std::vector<Tensor> run_with_gradients(const Operation& row, const Sample& sample, std::vector<Tensor> inputs) {
  manual_seed(9);
  if (!is_differentiable(row, sample)) return {row.call(inputs)};
  std::vector<Tensor> leaves, results;
  for (Tensor& x : inputs) x = x.detach();                // leaves of their own, in the layout given
  require_gradients(sample, inputs);
  for (const Tensor& x : inputs)
    if (x.requires_grad()) leaves.push_back(x);
  const Tensor y = row.call(inputs);
  results.push_back(y.detach());
  if (!y.requires_grad()) return results;
  for (const Tensor& g : grad({y}, leaves, {make_input({y.shape()}, 99, y.dtype())}, {.allow_unused = true}))
    if (g) results.push_back(g);
  return results;
}

// "" or where two lists of values differ by more than `tolerance` of their largest.
std::string difference(const std::vector<double>& got, const std::vector<double>& expected, double tolerance) {
  if (got.size() != expected.size()) return str(got.size(), " elements, expected ", expected.size());
  double largest = 1;
  for (double v : expected)
    if (std::isfinite(v)) largest = std::max(largest, std::abs(v));
  for (size_t i = 0; i < got.size(); ++i) {
    const bool is_equal = got[i] == expected[i] || (std::isnan(got[i]) && std::isnan(expected[i])) || std::abs(got[i] - expected[i]) <= tolerance * largest;
    if (!is_equal) return str("element ", i, " is ", got[i], ", expected ", expected[i]);
  }
  return "";
}

bool is_bitwise_equal(const Tensor& a, const Tensor& b) {
  if (a.shape() != b.shape() || a.dtype() != b.dtype()) return false;
  const Tensor x = testing::on_cpu(a), y = testing::on_cpu(b);
  return x.numel() == 0 || std::memcmp(x.view().data, y.view().data, static_cast<size_t>(x.nbytes())) == 0;
}

// The same values in another layout: axes stored in the opposite order; every third element of a larger memory, counted from behind.
Tensor stored_backwards(const Tensor& x) {
  std::vector<int64_t> order;
  for (int axis = x.rank() - 1; axis >= 0; --axis) order.push_back(axis);
  return permute(clone(permute(x, order)), order);
}

Tensor stored_apart(const Tensor& x) {
  if (x.rank() == 0) return select(stack({x, x, x}), 0, 1);
  const int last = x.rank() - 1;
  Shape wide = x.shape();
  wide[last] = 3 * wide[last] + 2;
  Tensor memory = full(wide, 1, x.dtype());
  Tensor part = flip(slice(memory, last, 1, 1 + 3 * x.shape()[last], 3), {last});
  if (x.numel() > 0) table_of(x).copy(queue_of(x), x.view(), part.mutable_view());
  return part;
}

// The operation that a row is a variant of.
std::string operation_of(const Operation& row) { return row.name.substr(0, row.name.find('/')); }

// How many times a result is rounded on its way: once, but a recurrent layer on a device that computes in half types (x is [time, batch, input]) rounds its state in
// every step. These errors are independent of each other.
double roundings(const Operation& row, const Tensor& x) {
  const std::string op = operation_of(row);
  return op == "lstm" || op == "gru" || op == "rnn" ? std::sqrt(static_cast<double>(std::max<int64_t>(1, x.size(0)))) : 1;
}

struct Threads {
  explicit Threads(int n) : before(num_threads()) { set_num_threads(n); }
  ~Threads() { set_num_threads(before); }
  int before;
};

}  // namespace

TEST_CASE("every operation takes half types as storage: its result is float32's, rounded") {
  for (const auto& [dtype, epsilon] : {std::pair{DType::float16, 0x1p-10}, std::pair{DType::bfloat16, 0x1p-7}})
    for_each_sample([&, dtype = dtype, epsilon = epsilon](const Operation& row, const Sample& sample, size_t) {
      if (has_special(sample)) return;
      const std::vector<Tensor> inputs = make_inputs(sample, DType::float32);
      const Tensor half = row.call(rounded(inputs, dtype, false)), full = row.call(rounded(inputs, dtype, true));
      CHECK(half.shape() == full.shape());
      if (!is_floating(full.dtype()) || full.numel() == 0) return;
      const double difference = amax(abs(to(half, DType::float32) - full)).item(), largest = amax(abs(full)).item();
      INFO(name_of(dtype));
      CHECK(difference <= roundings(row, inputs[0]) * epsilon * largest + 0x1p-24);       // the smallest float16
    });
}

TEST_CASE("gradients in half types are float32's, rounded on the way") {
  for (const auto& [dtype, epsilon] : {std::pair{DType::float16, 0x1p-10}, std::pair{DType::bfloat16, 0x1p-7}})
    for_each_sample([&, dtype = dtype, epsilon = epsilon](const Operation& row, const Sample& sample, size_t) {
      if (sample.is_large || !is_differentiable(row, sample)) return;
      const std::vector<Tensor> inputs = make_inputs(sample, DType::float32);
      const std::vector<Tensor> half = run_with_gradients(row, sample, rounded(inputs, dtype, false)), full = run_with_gradients(row, sample, rounded(inputs, dtype, true));
      REQUIRE(half.size() == full.size());
      for (size_t i = 1; i < half.size(); ++i) {
        INFO(name_of(dtype), ", gradient ", i - 1);
        CHECK(half[i].dtype() == dtype);
        // A backward pass of several operations rounds after each, and starts from a rounded y.
        CHECK(difference(half[i].to_vector<double>(), full[i].to_vector<double>(), 8 * epsilon) == "");
      }
    });
}

namespace {

// What the rule makes of floating-point arguments, done by hand.
std::vector<Tensor> converted(std::vector<Tensor> inputs, DType dtype) {
  for (Tensor& x : inputs)
    if (is_floating(x.dtype())) x = to(x, dtype);
  return inputs;
}

}  // namespace

TEST_CASE("in an autocast scope every operation computes in the dtype that its rule says") {
  std::set<std::string> met;
  for_each_sample([&](const Operation& row, const Sample& sample, size_t) {
    if (sample.is_large || has_special(sample)) return;
    const AutocastPrecision precision = autocast_precision(operation_of(row));
    for (const DType given : {DType::float32, DType::bfloat16}) {
      const std::vector<Tensor> inputs = converted(make_inputs(sample, DType::float32), given);
      const DType computed = precision == AutocastPrecision::half ? DType::bfloat16 : precision == AutocastPrecision::single ? DType::float32 : given;
      manual_seed(9);
      const Tensor expected = row.call(converted(inputs, computed));
      manual_seed(9);
      Autocast scope(DType::bfloat16);
      const Tensor y = row.call(inputs);
      INFO("given ", name_of(given));
      met.insert(operation_of(row));
      CHECK(y.dtype() == expected.dtype());
      CHECK(is_bitwise_equal(to(y, Device::cpu()), to(expected, Device::cpu())));
    }
  });
  const std::set<std::string_view> have_no_row = {"Loss", "lstm_cell", "gru_cell", "rnn_cell"};       // tests/autocast_test.cpp
  for (const AutocastRule& rule : autocast_rules())
    if (have_no_row.count(rule.operation) == 0) CHECK_MESSAGE(met.count(std::string(rule.operation)) == 1, "no row of op_cases.h for ", rule.operation);
}

TEST_CASE("golden values: PyTorch gives the same, in float64 and in float32") {
  const NamedTensors golden = load_npz(testing::source_folder() + "/tests/golden/ops.npz");
  std::map<std::string, std::vector<double>> values;
  std::map<std::string, size_t> position;
  for (const auto& [name, tensor] : golden) values[name] = tensor.to_vector<double>();
  for_each_sample([&](const Operation& row, const Sample& sample, size_t) {
    if (sample.is_large) return;
    const std::vector<double>& of_row = values[row.name];
    size_t& at = position[row.name];
    REQUIRE_MESSAGE(at < of_row.size(), "no golden values: run tests/golden/ops.py");
    Shape shape;
    const auto rank = static_cast<int>(of_row[at++]);
    for (int i = 0; i < rank; ++i) shape.push_back(static_cast<int64_t>(of_row[at++]));
    const std::vector<double> expected(of_row.begin() + static_cast<int64_t>(at), of_row.begin() + static_cast<int64_t>(at) + shape.numel());
    at += expected.size();
    for (const DType dtype : {DType::float64, DType::float32}) {
      const Tensor y = row.call(make_inputs(sample, dtype));
      CHECK(y.shape() == shape);
      CHECK(difference(y.to_vector<double>(), expected, dtype == DType::float64 ? 1e-10 : row.tolerance) == "");
    }
  });
}

TEST_CASE("gradients are the limit of differences") {
  for_each_sample([&](const Operation& row, const Sample& sample, size_t) {
    if (sample.is_large || !is_differentiable(row, sample)) return;
    std::vector<Tensor> inputs = make_inputs(sample, DType::float64);
    require_gradients(sample, inputs);
    CHECK(gradcheck(row.call, inputs) == "");
  });
}

TEST_CASE("gradients of gradients are the limit of differences, or the operation says that it has none") {
  for_each_sample([&](const Operation& row, const Sample& sample, size_t) {
    if (sample.is_large || !is_differentiable(row, sample)) return;
    std::vector<Tensor> inputs = make_inputs(sample, DType::float64);
    require_gradients(sample, inputs);
    if (row.gradient == Gradient::twice) CHECK(gradgradcheck(row.call, inputs, {.max_elements = testing::less_over_the_model(60, 8)}) == "");
    else CHECK_THROWS_AS(gradgradcheck(row.call, inputs, {.max_elements = 1}), AutogradError);
  });
}

TEST_CASE("a meta tensor gets the shape and the dtype of the real result") {
  for_each_sample([](const Operation& row, const Sample& sample, size_t) {
    const std::vector<Tensor> inputs = make_inputs(sample, DType::float32);
    std::vector<Tensor> meta;
    for (const Tensor& x : inputs) meta.push_back(empty(x.shape(), {x.dtype(), Device::meta()}));
    const Tensor y = row.call(inputs), m = row.call(meta);
    CHECK(m.is_meta());
    CHECK(m.shape() == y.shape());
    CHECK(m.dtype() == y.dtype());
  });
}

TEST_CASE("float32 gives what float64 gives, in value and gradient") {
  for_each_sample([](const Operation& row, const Sample& sample, size_t) {
    const std::vector<Tensor> exact = run_with_gradients(row, sample, make_inputs(sample, DType::float64));
    const std::vector<Tensor> single = run_with_gradients(row, sample, make_inputs(sample, DType::float32));
    REQUIRE(exact.size() == single.size());
    for (size_t i = 0; i < exact.size(); ++i) CHECK(difference(single[i].to_vector<double>(), exact[i].to_vector<double>(), row.tolerance) == "");
  });
}

TEST_CASE("one thread and several give the same bits") {
  for_each_sample([](const Operation& row, const Sample& sample, size_t) {
    const std::vector<Tensor> inputs = make_inputs(sample, DType::float32);
    std::vector<Tensor> one, several;
    {
      Threads threads(1);
      one = run_with_gradients(row, sample, inputs);
    }
    {
      Threads threads(2);
      several = run_with_gradients(row, sample, inputs);
    }
    REQUIRE(one.size() == several.size());
    for (size_t i = 0; i < one.size(); ++i) CHECK(is_bitwise_equal(one[i], several[i]));
  });
}

TEST_CASE("a CUDA device gives what the CPU gives, in value and gradient") {
  if (default_device() == Device::cpu()) return;
  for_each_sample([](const Operation& row, const Sample& sample, size_t) {
    const std::vector<Tensor> got = run_with_gradients(row, sample, make_inputs(sample, DType::float64));
    const testing::DefaultDevice cpu(Device::cpu());
    const std::vector<Tensor> expected = run_with_gradients(row, sample, make_inputs(sample, DType::float64));
    REQUIRE(got.size() == expected.size());
    for (size_t i = 0; i < got.size(); ++i) {
      CHECK(got[i].shape() == expected[i].shape());
      CHECK(got[i].dtype() == expected[i].dtype());
      CHECK(difference(got[i].to_vector<double>(), expected[i].to_vector<double>(), 1e-12) == "");
    }
  });
}

TEST_CASE("how the inputs lie in memory changes nothing, and inputs stay as they were") {
  for_each_sample([](const Operation& row, const Sample& sample, size_t) {
    const std::vector<Tensor> inputs = make_inputs(sample, DType::float64);
    const std::vector<Tensor> expected = run_with_gradients(row, sample, inputs);
    for (Tensor (*layout)(const Tensor&) : {stored_backwards, stored_apart}) {
      std::vector<Tensor> moved;
      for (const Tensor& x : inputs) moved.push_back(layout(x));
      const std::vector<Tensor> got = run_with_gradients(row, sample, moved);
      REQUIRE(got.size() == expected.size());
      for (size_t i = 0; i < got.size(); ++i) {
        CHECK(got[i].shape() == expected[i].shape());
        CHECK(difference(got[i].to_vector<double>(), expected[i].to_vector<double>(), 1e-12) == "");
      }
      for (size_t i = 0; i < inputs.size(); ++i) CHECK(is_bitwise_equal(moved[i], make_input(sample.inputs[i], i, DType::float64)));
    }
  });
}

// Rows whose call asks something of its inputs before it comes to the operation.
const std::set<std::string> asks_first = {"contiguous", "concat/last axis", "where/number", "conv2d/depthwise", "layer_norm", "layer_norm/plain",
                                          "batch_norm_add_relu/channels last"};

TEST_CASE("an undefined tensor is an error that names the operation and the argument, or an argument left out") {
  for_each_sample([](const Operation& row, const Sample& sample, size_t) {
    if (sample.is_large || asks_first.count(row.name)) return;
    const std::string name = row.name == "max_pool2d/indices" ? "max_pool2d_with_indices" : row.name.substr(0, row.name.find('/'));
    for (size_t k = 0; k < sample.inputs.size(); ++k) {
      INFO("input ", k);
      std::vector<Tensor> inputs = make_inputs(sample, DType::float32);
      inputs[k] = Tensor();
      bool is_left_out = false;
      const std::string text = error_of<Error>([&] { is_left_out = row.call(inputs).defined(); });
      const bool is_named = text.starts_with(name + ": ") && !contains(text, "an undefined tensor was used");
      CHECK_MESSAGE((is_named || is_left_out), text);
      CHECK((k > 0 || !is_left_out));                      // no operation does without its first input
    }
  });
}

TEST_CASE("every kernel of the table is there on the CPU and on meta") {
  for (const kernels::KernelTable* table : {&kernels::cpu_table(), &kernels::meta_table()})
    kernels::for_each_entry(*table, [&](const char* name, auto& entry) {
      const bool is_there = entry != nullptr;
      INFO(std::string(table->name), " has no kernel ", std::string(name));
      CHECK(is_there);
    });
}

// An axis of size 0 in one input, or in all of them: a result (and gradients), or an error of ours that says which operation it was.
TEST_CASE("empty tensors: every operation gives a result or an error that names it") {
  const auto run = [](const Operation& row, const Sample& sample) {
    std::vector<Tensor> inputs;
    for (size_t i = 0; i < sample.inputs.size(); ++i) inputs.push_back(make_input(sample.inputs[i], i + 1, DType::float32));
    try {
      run_with_gradients(row, sample, inputs);
    } catch (const Error& error) {
      CAPTURE(std::string(error.what()));
      CHECK(std::string(error.what()).find(": ") != std::string::npos);
    }
  };
  for_each_sample([&](const Operation& row, const Sample& sample, size_t) {
    if (sample.is_large) return;
    for (int axis = 0; axis < max_rank; ++axis) {
      Sample all = sample;
      bool is_changed = false;
      for (size_t i = 0; i < sample.inputs.size(); ++i) {
        if (axis >= sample.inputs[i].shape.rank()) continue;
        Sample one = sample;
        one.inputs[i].shape[axis] = all.inputs[i].shape[axis] = 0;
        is_changed = true;
        run(row, one);
      }
      if (is_changed) run(row, all);
    }
  });
}
