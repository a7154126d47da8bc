// The engine: nodes are popped from a heap by sequence number, newest first (see note [Sequence numbers are a topological order]).
#include <fovea/autograd/backward.h>

#include <algorithm>
#include <queue>
#include <unordered_map>

#include <fovea/autograd/autocast.h>
#include <fovea/tensor/creation.h>

namespace fovea {
namespace {

bool has_nan(const Tensor& x) {
  const kernels::KernelTable& table = table_of(x);
  Tensor is_nan = empty_like(x, DType::boolean), any = empty(Shape::filled(x.rank(), 1), {DType::boolean, x.device()});
  table.unary(queue_of(x), kernels::Unary::is_nan, {}, x.view(), is_nan.mutable_view());
  table.reduce(queue_of(x), kernels::Reduce::any, is_nan.view(), any.mutable_view());
  return any.item<bool>();
}

// a + b of one shape: gradients that meet. (The engine stands below the operations, so it does not call theirs.)
Tensor sum_of(const Tensor& a, const Tensor& b) {
  Tensor y = empty_like(a);
  table_of(a).binary(queue_of(a), kernels::Binary::add, {}, a.view(), b.view(), y.mutable_view());
  return record("add", y, {a, b}, saving(), [](const Saved&, const Tensor& g) { return grads(g, g); });
}

// A leaf may keep the gradient itself, rather than a copy, only if nobody else holds it.
bool is_unshared(const Tensor& g) { return g.is_contiguous() && g.impl_pointer().use_count() == 1 && g.storage().use_count() == 1; }

// The gradient that a hook leaves; `what` says whose it is, in messages.
Tensor hooked(const Hook& hook, Tensor gradient, const char* what) {
  const Tensor changed = hook(gradient);
  if (!changed) return gradient;
  check<ShapeError>(changed.shape() == gradient.shape(), "backward: a hook on ", what, " turned a gradient of shape ", gradient.shape(), " into ", changed.shape());
  check<DTypeError>(changed.dtype() == gradient.dtype(), "backward: a hook on ", what, " turned a gradient of ", gradient.dtype(), " into ", changed.dtype());
  check<DeviceError>(changed.device() == gradient.device(), "backward: a hook on ", what, " moved a gradient from ", gradient.device(), " to ", changed.device());
  return changed;
}

void accumulate_into_leaf(const Tensor& leaf, Tensor gradient, bool create_graph) {
  const cuda::Range range("accumulate");
  AutogradMeta& meta = *autograd_meta(leaf);
  check<AutogradError>(gradient.device() == leaf.device() && gradient.dtype() == leaf.dtype(), "backward: a leaf of shape ", leaf.shape(), " was ", gradient.dtype(), " on ",
                       gradient.device(), " in the forward pass and is ", leaf.dtype(), " on ", leaf.device(), " now; compute the output anew after moving a module");
  std::unique_lock lock(meta.accumulating);
  if (create_graph) {
    meta.grad = meta.grad ? sum_of(meta.grad, gradient) : gradient;
  } else if (meta.grad) {
    meta.grad.storage()->bump_version();
    table_of(leaf).binary(queue_of(leaf), kernels::Binary::add, {}, meta.grad.view(), gradient.view(), meta.grad.mutable_view());
  } else if (is_unshared(gradient)) {
    meta.grad = std::move(gradient);
    meta.grad.impl().autograd = nullptr;
  } else {
    meta.grad = empty_like(gradient);
    table_of(leaf).copy(queue_of(leaf), gradient.view(), meta.grad.mutable_view());
  }
  lock.unlock();                             // a hook may run a backward pass of its own
  for (const auto& hook : meta.accumulate_hooks) hook(leaf);
}

class Engine {
 public:
  explicit Engine(GradOptions options) : options_(options) { options_.retain_graph |= options_.create_graph; }

  void seed(const Tensor& output, Tensor gradient) {
    const Edge edge = gradient_edge(output);
    check<AutogradError>(edge.node != nullptr, "backward: the output of shape ", output.shape(),
                         " does not depend on any tensor that requires a gradient (or was computed in a NoGrad scope)");
    if (!gradient) {
      check<AutogradError>(output.numel() == 1, "backward: the output has shape ", output.shape(), "; give its gradient, or reduce it to one element (sum, mean)");
      gradient = ones_like(output);
    }
    check<ShapeError>(gradient.shape() == output.shape(), "backward: the gradient has shape ", gradient.shape(), ", the output ", output.shape());
    check<DTypeError>(gradient.dtype() == output.dtype(), "backward: the gradient is ", gradient.dtype(), ", the output ", output.dtype(), "; convert one with to()");
    check<DeviceError>(gradient.device() == output.device(), "backward: the gradient is on ", gradient.device(), ", the output on ", output.device(),
                       "; move one with to()");
    add_gradient(edge, std::move(gradient));
  }

  // Was there a way from the seeded outputs to the edge, of those captured?
  bool reaches(const Edge& edge) const { return wanted_.count(edge.node.get()) > 0; }

  // Collects gradients of these edges instead of accumulating into leaves.
  void capture(const std::vector<Edge>& edges, Grads& results) {
    results.assign(edges.size(), {});
    results_ = &results;
    for (size_t i = 0; i < edges.size(); ++i) captures_[edges[i].node.get()].push_back({edges[i].output, i});
    find_wanted();
  }

  void run() {
    GradMode mode(options_.create_graph);
    Autocast off = Autocast::disabled();     // the forward pass has decided on the dtypes
    while (!heap_.empty()) {
      std::shared_ptr<Node> node = heap_.top().node;
      heap_.pop();
      auto found = pending_.find(node.get());
      Grads gradients = std::move(found->second);
      pending_.erase(found);
      run_hooks(*node, gradients);
      if (results_) deliver(*node, gradients);
      if (node->is_leaf) {
        if (!results_)
          if (auto impl = node->leaf.lock()) accumulate_into_leaf(Tensor::from_impl(std::move(impl)), std::move(gradients[0]), options_.create_graph);
      } else {
        step(node, gradients);
      }
    }
  }

 private:
  struct Entry {
    std::shared_ptr<Node> node;
    bool operator<(const Entry& other) const { return node->sequence < other.node->sequence; }
  };
  struct Capture {
    int output;
    size_t result;
  };

  static void run_hooks(const Node& node, Grads& gradients) {
    if (auto leaf = node.leaf.lock())
      for (const Hook& hook : static_cast<AutogradMeta*>(leaf->autograd.get())->hooks) gradients[0] = hooked(hook, std::move(gradients[0]), "a leaf");
    for (const auto& [output, hook] : node.hooks) {
      Tensor& g = gradients[static_cast<size_t>(output)];
      if (g) g = hooked(hook, std::move(g), node.name);
    }
  }

  void deliver(const Node& node, const Grads& gradients) {
    auto found = captures_.find(&node);
    if (found == captures_.end()) return;
    for (const Capture& c : found->second) (*results_)[c.result] = gradients[static_cast<size_t>(c.output)];
  }

  void step(const std::shared_ptr<Node>& node, Grads& gradients) {
    if (results_ && !leads_on(*node)) return;
    const cuda::Range range(node->name, " backward");
    check<AutogradError>(!node->was_freed, "backward: the graph of '", node->name, "' was already freed by an earlier backward pass; pass retain_graph = true to the first");
    Grads input_grads = node->backward(Saved(node, results_ ? &wanted_ : nullptr), gradients);
    check<AutogradError>(input_grads.size() == node->inputs.size(), "backward: '", node->name, "' returned ", input_grads.size(), " gradients for ",
                         node->inputs.size(), " inputs");
    if (!options_.retain_graph) {
      node->was_freed = true;
      node->saved.clear();
      node->backward = nullptr;
    }
    gradients.clear();
    for (size_t i = 0; i < input_grads.size(); ++i) {
      const Edge& edge = node->inputs[i];
      if (!edge.node || !input_grads[i] || (results_ && !wanted_.count(edge.node.get()))) continue;
      check_gradient(*node, i, input_grads[i]);
      add_gradient(edge, std::move(input_grads[i]));
    }
  }

  static void check_gradient(const Node& node, size_t i, const Tensor& g) {
    const Edge& edge = node.inputs[i];
    const OutputInfo& expected = edge.node->outputs[static_cast<size_t>(edge.output)];
    check<AutogradError>(g.shape() == expected.shape && g.dtype() == expected.dtype, "backward: '", node.name, "' returned a gradient ", g.dtype(), g.shape(), " for input ", i,
                         ", which is ", expected.dtype, expected.shape);
    check<DeviceError>(g.device() == expected.device, "backward: '", node.name, "' returned a gradient on ", g.device(), " for input ", i, ", which is on ", expected.device);
    if (AnomalyMode::is_on())
      check<AutogradError>(!has_nan(g), "backward: the gradient of '", node.name, "' with respect to its input ", i, " of shape ", g.shape(), " has become NaN");
  }

  void add_gradient(const Edge& edge, Tensor gradient) {
    auto [found, is_new] = pending_.try_emplace(edge.node.get());
    if (is_new) {
      found->second.resize(edge.node->outputs.size());
      heap_.push({edge.node});
    }
    Tensor& slot = found->second[static_cast<size_t>(edge.output)];
    slot = slot ? sum_of(slot, gradient) : std::move(gradient);
  }

  bool leads_on(const Node& node) const {
    return std::any_of(node.inputs.begin(), node.inputs.end(), [&](const Edge& e) { return e.node && wanted_.count(e.node.get()) > 0; });
  }

  // Which nodes lead to a captured edge: oldest first, so that a node's inputs are known before the node.
  void find_wanted() {
    std::vector<const Node*> reachable, stack;
    std::unordered_set<const Node*> seen;
    auto visit = [&](const Node* node) {
      if (seen.insert(node).second) stack.push_back(node);
    };
    for (const auto& [node, gradients] : pending_) visit(node);
    while (!stack.empty()) {
      const Node* node = stack.back();
      stack.pop_back();
      reachable.push_back(node);
      for (const Edge& e : node->inputs)
        if (e.node) visit(e.node.get());
    }
    std::sort(reachable.begin(), reachable.end(), [](const Node* a, const Node* b) { return a->sequence < b->sequence; });
    for (const Node* node : reachable)
      if (captures_.count(node) || leads_on(*node)) wanted_.insert(node);
  }

  GradOptions options_;
  std::priority_queue<Entry> heap_;
  std::unordered_map<const Node*, Grads> pending_;
  std::unordered_map<const Node*, std::vector<Capture>> captures_;
  std::unordered_set<const Node*> wanted_;
  Grads* results_ = nullptr;
};

void seed_all(Engine& engine, const char* function, const std::vector<Tensor>& outputs, const std::vector<Tensor>& output_grads) {
  check<ValueError>(output_grads.empty() || output_grads.size() == outputs.size(), function, ": ", output_grads.size(), " output gradients for ", outputs.size(), " outputs");
  for (size_t i = 0; i < outputs.size(); ++i) {
    check<ValueError>(outputs[i].defined(), function, ": output ", i, " is an undefined tensor");
    engine.seed(outputs[i], output_grads.empty() ? Tensor() : output_grads[i]);
  }
}

}  // namespace

void backward(const std::vector<Tensor>& outputs, const std::vector<Tensor>& output_grads, GradOptions options) {
  Engine engine(options);
  seed_all(engine, "backward", outputs, output_grads);
  engine.run();
}

void Tensor::backward(const Tensor& gradient, bool retain_graph, bool create_graph) const {
  fovea::backward({*this}, {gradient}, {.retain_graph = retain_graph, .create_graph = create_graph});
}

std::vector<Tensor> grad(const std::vector<Tensor>& outputs, const std::vector<Tensor>& inputs, const std::vector<Tensor>& output_grads, GradOptions options) {
  Engine engine(options);
  seed_all(engine, "grad", outputs, output_grads);
  std::vector<Edge> edges;
  for (size_t i = 0; i < inputs.size(); ++i) {
    edges.push_back(gradient_edge(inputs[i]));
    check<AutogradError>(edges.back().node != nullptr, "grad: input ", i, " does not require a gradient; call set_requires_grad() on it before the forward pass");
  }
  Grads results;
  engine.capture(edges, results);
  engine.run();
  for (size_t i = 0; i < results.size(); ++i)              // there is a way, but every gradient on it was known to be zero
    if (!results[i] && !options.allow_unused && engine.reaches(edges[i])) results[i] = zeros_like(inputs[i]);
  for (size_t i = 0; i < results.size(); ++i)
    check<AutogradError>(results[i].defined() || options.allow_unused, "grad: the outputs do not depend on input ", i, " of shape ", inputs[i].shape(),
                         "; pass allow_unused = true to get an undefined gradient");
  return results;
}

namespace {

// While one is alive, the default generator draws what it drew from `state` on; then it goes on where it was.
class GeneratorScope {
 public:
  explicit GeneratorScope(const Generator& state) : before_(default_generator()) { default_generator() = state; }
  ~GeneratorScope() { default_generator() = before_; }
  GeneratorScope(const GeneratorScope&) = delete;
  GeneratorScope& operator=(const GeneratorScope&) = delete;

 private:
  Generator before_;
};

}  // namespace

Tensor checkpoint(std::function<Tensor(const std::vector<Tensor>&)> fn, const std::vector<Tensor>& inputs) {
  check<ValueError>(fn != nullptr, "checkpoint: the function is empty");
  const Generator before = default_generator();
  const std::optional<DType> autocast = Autocast::dtype();
  Tensor y;
  {
    NoGrad no_grad;
    y = fn(inputs);
    check<ValueError>(y.defined(), "checkpoint: the function returned an undefined tensor");
    y = y.detach();
  }
  if (!should_record(inputs)) return y;
  std::vector<const Tensor*> saved;
  for (const Tensor& x : inputs) saved.push_back(&x);
  const size_t count = inputs.size();
  auto run_again = [fn = std::move(fn), before, autocast, count](const Saved& s, const Grads& g) -> Grads {
    check<AutogradError>(!grad_mode(), "checkpoint: second derivatives are not offered; call the function without checkpoint");
    std::vector<Tensor> again, wanted;
    std::vector<size_t> places;
    for (size_t i = 0; i < count; ++i) {
      again.push_back(s[static_cast<int>(i)].detach());
      if (!s.needs(static_cast<int>(i))) continue;
      wanted.push_back(again.back().set_requires_grad());
      places.push_back(i);
    }
    GeneratorScope same_numbers(before);
    GradMode recording(true);
    Autocast same_dtypes(autocast);
    const Tensor output = fn(again);
    check<ValueError>(output.defined() && output.shape() == g[0].shape() && output.dtype() == g[0].dtype(),
                      "checkpoint: run again, the function returned another shape or dtype than the first time; it must depend on its inputs alone");
    Grads result(count);
    if (!output.requires_grad()) return result;
    if (s.is_for_leaves()) {                   // the leaves that fn uses besides its inputs get their share too
      fovea::backward({output}, {g[0]});
      for (const size_t i : places) result[i] = again[i].grad();
    } else {
      const std::vector<Tensor> found = fovea::grad({output}, wanted, {g[0]}, {.allow_unused = true});
      for (size_t i = 0; i < places.size(); ++i) result[places[i]] = found[i];
    }
    return result;
  };
  attach("checkpoint", {&y}, inputs, saved.data(), saved.size(), run_again);
  return y;
}

}  // namespace fovea
