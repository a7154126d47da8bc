#include <fovea/autograd/gradcheck.h>

#include <algorithm>
#include <cmath>

#include <fovea/autograd/shape.h>
#include <fovea/tensor/creation.h>

namespace fovea {
namespace {

// sum(y * weights) as a plain number.
double weighted_sum(const Tensor& y, const std::vector<double>& weights) {
  const std::vector<double> values = y.to_vector<double>();
  double sum = 0;
  for (size_t i = 0; i < values.size(); ++i) sum += values[i] * weights[i];
  return sum;
}

double evaluate(const TensorFunction& fn, const std::vector<Tensor>& inputs, const std::vector<double>& weights) {
  return weighted_sum(fn(inputs).detach(), weights);
}

// x[i] = value, on whatever device; x is contiguous.
void set_element(const Tensor& x, int64_t i, double value) {
  View element = x.mutable_view();
  element.data = element.as<double>() + i;
  element.shape = element.strides = {};
  table_of(x).fill(queue_of(x), value, element);
  x.storage()->bump_version();
}

// The inputs as leaves of their own: fn sees the same values (and, made contiguous, memory nobody else writes to).
std::vector<Tensor> as_leaves(const std::vector<Tensor>& inputs) {
  std::vector<Tensor> leaves;
  for (const Tensor& x : inputs) {
    if (!x) {
      leaves.push_back(x);
      continue;
    }
    leaves.push_back(clone(x.detach()));
    leaves.back().set_requires_grad(x.requires_grad());
  }
  return leaves;
}

}  // namespace

std::string gradcheck(const TensorFunction& fn, std::vector<Tensor> inputs, GradcheckOptions options) {
  check<ValueError>(fn != nullptr, "gradcheck: the function is empty");
  for (const Tensor& x : inputs)
    check<DTypeError>(!x || !x.requires_grad() || x.dtype() == DType::float64, "gradcheck: inputs that require a gradient must be float64");
  GradMode recording(true);
  std::vector<Tensor> leaves = as_leaves(inputs);
  const Tensor y = fn(leaves);
  Generator generator(20);
  const Tensor weights = rand(y.shape(), {y.dtype(), y.device()}, generator);
  const std::vector<double> weight_values = weights.to_vector<double>();
  std::vector<Tensor> wanted;
  for (const Tensor& x : leaves)
    if (x && x.requires_grad()) wanted.push_back(x);
  check<AutogradError>(!wanted.empty(), "gradcheck: no input requires a gradient");
  // A result that was not recorded at all claims to be constant; the differences will tell.
  const std::vector<Tensor> analytic =
      y.requires_grad() ? grad({y}, wanted, {weights}, {.retain_graph = true, .allow_unused = true}) : std::vector<Tensor>(wanted.size());

  for (size_t k = 0; k < wanted.size(); ++k) {
    Tensor x = wanted[k];
    const std::vector<double> values = x.to_vector<double>();
    const std::vector<double> found = analytic[k] ? analytic[k].to_vector<double>() : std::vector<double>(static_cast<size_t>(x.numel()), 0.0);
    const int64_t every = std::max<int64_t>(1, x.numel() / options.max_elements);
    for (int64_t i = 0; i < x.numel(); i += every) {
      NoGrad no_grad;
      const double value = values[static_cast<size_t>(i)];
      set_element(x, i, value + options.step);
      const double above = evaluate(fn, leaves, weight_values);
      set_element(x, i, value - options.step);
      const double below = evaluate(fn, leaves, weight_values);
      set_element(x, i, value);
      const double numeric = (above - below) / (2 * options.step), got = found[static_cast<size_t>(i)];
      if (!(std::abs(got - numeric) <= options.absolute + options.relative * std::abs(numeric)))
        return str("gradcheck: element ", i, " of differentiable input ", k, " ", x.shape(), ": backward gives ", got, ", differences give ", numeric);
    }
  }
  return "";
}

std::string gradgradcheck(const TensorFunction& fn, std::vector<Tensor> inputs, GradcheckOptions options) {
  check<ValueError>(fn != nullptr, "gradgradcheck: the function is empty");
  GradMode recording(true);
  Generator generator(21);
  const Tensor y = fn(inputs);
  Tensor output_gradient = rand(y.shape(), {y.dtype(), y.device()}, generator);
  inputs.push_back(output_gradient.set_requires_grad());

  // All first gradients, each weighted, as one long vector: a function whose gradient is the second derivative.
  auto first_gradients = [&fn](const std::vector<Tensor>& all) {
    GradMode recording(true);
    const std::vector<Tensor> arguments(all.begin(), all.end() - 1);
    std::vector<Tensor> wanted;
    for (const Tensor& x : arguments)
      if (x && x.requires_grad()) wanted.push_back(x);
    const Tensor result = fn(arguments);
    const std::vector<Tensor> gradients =
        result.requires_grad() ? grad({result}, wanted, {all.back()}, {.create_graph = true, .allow_unused = true}) : std::vector<Tensor>(wanted.size());
    std::vector<Tensor> parts;
    for (size_t i = 0; i < gradients.size(); ++i) parts.push_back(flatten(gradients[i] ? gradients[i] : zeros_like(wanted[i])));
    return concat(parts);
  };
  return gradcheck(first_gradients, inputs, options);
}

}  // namespace fovea
