#include <fovea/autograd/tape.h>

#include <atomic>

namespace fovea {
namespace {

thread_local bool is_grad_enabled = true;
thread_local bool is_anomaly_mode = false;

uint64_t next_sequence() {
  static std::atomic<uint64_t> counter{1};
  return counter.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace

bool grad_mode() { return is_grad_enabled; }
GradMode::GradMode(bool enabled) : was_enabled_(is_grad_enabled) { is_grad_enabled = enabled; }
GradMode::~GradMode() { is_grad_enabled = was_enabled_; }

AnomalyMode::AnomalyMode() : was_on_(is_anomaly_mode) { is_anomaly_mode = true; }
AnomalyMode::~AnomalyMode() { is_anomaly_mode = was_on_; }
bool AnomalyMode::is_on() { return is_anomaly_mode; }

Tensor Saved::operator[](int i) const {
  check<AutogradError>(!node_->was_freed, "backward: what '", node_->name, "' saved was already freed by an earlier backward pass; pass retain_graph = true to the first");
  const SavedTensor& s = node_->saved[static_cast<size_t>(i)];
  if (!s.tensor) return {};
  check<AutogradError>(s.tensor.version() == s.version, "backward: a tensor of shape ", s.tensor.shape(), " that '", node_->name,
                       "' saved was changed in place since (version ", s.version, ", now ", s.tensor.version(), "); change a clone() instead");
  if (s.output < 0) return s.tensor;
  Tensor output = s.tensor.detach();
  AutogradMeta& meta = make_autograd_meta(output);
  meta.edge = {node_, s.output};
  meta.is_leaf = false;
  meta.requires_grad = true;
  return output;
}

bool Saved::needs(int input) const {
  const Node* node = node_->inputs[static_cast<size_t>(input)].node.get();
  return node != nullptr && (!wanted_ || wanted_->count(node) > 0);
}

// Note [Graphs are freed without recursion]
// A node owns its inputs' nodes, directly and through saved tensors, so freeing the last node of a long chain would recurse as deep as the chain. Instead
// the outermost destructor collects what the nodes that die under it leave behind, and frees that in a loop.
Node::~Node() {
  struct Remains {
    std::vector<Edge> inputs;
    std::vector<SavedTensor> saved;
    Backward backward;
    std::vector<std::pair<int, Hook>> hooks;
  };
  thread_local std::vector<Remains>* collecting = nullptr;
  if (collecting) {
    collecting->push_back({std::move(inputs), std::move(saved), std::move(backward), std::move(hooks)});
    return;
  }
  std::vector<Remains> remains;
  collecting = &remains;
  remains.push_back({std::move(inputs), std::move(saved), std::move(backward), std::move(hooks)});
  while (!remains.empty()) {
    Remains last = std::move(remains.back());
    remains.pop_back();
  }
  collecting = nullptr;
}

AutogradMeta* autograd_meta(const Tensor& x) { return static_cast<AutogradMeta*>(x.impl().autograd.get()); }

AutogradMeta& make_autograd_meta(const Tensor& x) {
  if (!x.impl().autograd) x.impl().autograd = std::make_shared<AutogradMeta>();
  return *autograd_meta(x);
}

Edge gradient_edge(const Tensor& x) {
  AutogradMeta* meta = x ? autograd_meta(x) : nullptr;
  if (!meta || !meta->requires_grad) return {};
  return meta->edge;
}

void make_leaf_node(const Tensor& x) {
  auto node = std::make_shared<Node>();
  node->name = "leaf";
  node->is_leaf = true;
  node->leaf = x.impl_pointer();
  node->sequence = next_sequence();
  node->outputs = {{x.shape(), x.dtype(), x.device()}};
  make_autograd_meta(x).edge = {std::move(node), 0};
}

bool should_record(const TensorRefs& inputs) {
  if (!is_grad_enabled) return false;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const Tensor& x = inputs[i];
    if (!x) continue;
    const AutogradMeta* meta = autograd_meta(x);
    if (meta && meta->requires_grad) return true;
  }
  return false;
}

void attach(const char* name, std::vector<Tensor*> outputs, const TensorRefs& inputs, const Tensor* const* saved, size_t num_saved, Backward backward) {
  auto node = std::make_shared<Node>();
  node->name = name;
  node->backward = std::move(backward);
  node->inputs.reserve(inputs.size());
  for (size_t i = 0; i < inputs.size(); ++i) node->inputs.push_back(gradient_edge(inputs[i]));
  node->sequence = next_sequence();          // after the inputs' leaf nodes were numbered
  node->saved.reserve(num_saved);
  for (size_t i = 0; i < num_saved; ++i) {
    const Tensor& x = *saved[i];
    SavedTensor s;
    for (size_t k = 0; x && k < outputs.size(); ++k)
      if (outputs[k]->is_same(x)) s.output = static_cast<int>(k);
    if (x) {
      s.tensor = s.output >= 0 ? x.detach() : x;
      s.version = x.version();
    }
    node->saved.push_back(std::move(s));
  }
  node->outputs.reserve(outputs.size());
  for (size_t k = 0; k < outputs.size(); ++k) {
    const Tensor& y = *outputs[k];
    check<AutogradError>(is_floating(y.dtype()), name, ": an output of dtype ", y.dtype(), " cannot have a gradient");
    node->outputs.push_back({y.shape(), y.dtype(), y.device()});
    AutogradMeta& meta = make_autograd_meta(y);
    meta.edge = {node, static_cast<int>(k)};
    meta.is_leaf = false;
    meta.requires_grad = true;
  }
}

void register_hook(const Tensor& x, Hook hook) {
  check<ValueError>(hook != nullptr, "register_hook: the hook is an empty function");
  const Edge edge = gradient_edge(x);
  check<AutogradError>(edge.node != nullptr, "register_hook: the tensor does not require a gradient");
  if (edge.node->is_leaf) autograd_meta(x)->hooks.push_back(std::move(hook));
  else edge.node->hooks.emplace_back(edge.output, std::move(hook));
}

void register_accumulate_hook(const Tensor& leaf, std::function<void(const Tensor&)> hook) {
  check<ValueError>(hook != nullptr, "register_accumulate_hook: the hook is an empty function");
  check<AutogradError>(leaf.requires_grad() && leaf.is_leaf(), "register_accumulate_hook: takes a leaf that requires a gradient");
  autograd_meta(leaf)->accumulate_hooks.push_back(std::move(hook));
}

void change_in_place(const char* op, const Tensor& x, const TensorRefs& others, const std::function<void()>& write, const std::function<Tensor()>& value) {
  if (!should_record({x}) && !should_record(others)) {
    x.storage()->bump_version();
    write();
    return;
  }
  check<AutogradError>(!(x.is_leaf() && x.requires_grad()), op, ": a leaf that requires a gradient cannot be changed in place while operations are recorded; ",
                       "use a NoGrad scope to update parameters");
  check<AutogradError>(x.storage().use_count() == 1, op, ": the tensor shares memory with other tensors (it is a view, or has views, or its value was saved), which ",
                       "would not learn of the change; compute a new tensor instead");
  const Tensor result = value();
  check<ShapeError>(result.shape() == x.shape(), op, ": the result of shape ", result.shape(), " does not fit into x of shape ", x.shape());
  {
    NoGrad no_grad;
    x.storage()->bump_version();
    table_of(x).copy(queue_of(x), result.view(), x.mutable_view());
  }
  AutogradMeta& meta = make_autograd_meta(x);
  meta.edge = gradient_edge(result);
  meta.requires_grad = result.requires_grad();         // a constant written over x ends its history
  meta.is_leaf = !meta.requires_grad;
}

std::string made_by(const Tensor& x) {
  const AutogradMeta* meta = x ? autograd_meta(x) : nullptr;
  if (!meta || !meta->requires_grad) return "";
  return meta->is_leaf ? "leaf" : meta->edge.node->name;
}

// --- autograd's members of Tensor ---

bool Tensor::requires_grad() const {
  const AutogradMeta* meta = autograd_meta(*this);
  return meta && meta->requires_grad;
}

Tensor& Tensor::set_requires_grad(bool requires_grad) & {
  if (!requires_grad && !autograd_meta(*this)) return *this;
  check<DTypeError>(!requires_grad || is_floating(dtype()), "set_requires_grad: only floating-point tensors have gradients, this one is ", dtype());
  check<AutogradError>(is_leaf(), "set_requires_grad: the tensor was made by '", made_by(*this), "'; only leaves can be switched, detach() it first");
  AutogradMeta& meta = make_autograd_meta(*this);
  if (!requires_grad) meta.edge = {};
  else if (!meta.edge.node) make_leaf_node(*this);
  meta.requires_grad = requires_grad;
  return *this;
}

bool Tensor::is_leaf() const {
  const AutogradMeta* meta = autograd_meta(*this);
  return !meta || meta->is_leaf;
}

Tensor Tensor::grad() const {
  const AutogradMeta* meta = autograd_meta(*this);
  return meta ? meta->grad : Tensor();
}

void Tensor::set_grad(const Tensor& gradient) const {
  if (gradient) {
    check<ShapeError>(gradient.shape() == shape() && gradient.dtype() == dtype(), "set_grad: the gradient is ", gradient.dtype(), gradient.shape(),
                      ", the tensor is ", dtype(), shape());
    check<DeviceError>(gradient.device() == device(), "set_grad: the gradient is on ", gradient.device(), ", the tensor on ", device(), "; move one with to()");
  } else if (!autograd_meta(*this)) {
    return;
  }
  make_autograd_meta(*this).grad = gradient;
}

}  // namespace fovea
