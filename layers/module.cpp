#include <fovea/layers/module.h>

#include <cxxabi.h>

#include <algorithm>
#include <cstdlib>
#include <sstream>
#include <typeinfo>
#include <unordered_set>

#include <fovea/autograd/shape.h>
#include <fovea/autograd/tape.h>
#include <fovea/tensor/creation.h>

namespace fovea::layers {
namespace {

std::string join(const std::string& prefix, const std::string& name) { return prefix.empty() ? name : prefix + "." + name; }

// While costs are counted: the calls met so far. One a thread.
using Trace = std::vector<LayerCost>;
thread_local Trace* current_trace = nullptr;

struct Tracing {
  explicit Tracing(Trace& trace) : before(current_trace) { current_trace = &trace; }
  ~Tracing() { current_trace = before; }
  Tracing(const Tracing&) = delete;
  Tracing& operator=(const Tracing&) = delete;
  Trace* before;
};

// Note [Handles follow a module's move to another dtype or device]
// A parameter is held by the module's list, by the layer's member and perhaps by an optimizer. All of them share one Impl, so its contents
// are replaced rather than the handles. The accumulating node on the tape was made for the old dtype and device, and is made anew; the
// gradient becomes what the parameter becomes.
void replace_contents(const Tensor& handle, const Tensor& value, const Tensor& gradient) {
  Tensor::Impl& impl = handle.impl();
  impl.storage = value.storage();
  impl.strides = value.strides();
  impl.offset = value.offset();
  impl.dtype = value.dtype();
  if (AutogradMeta* meta = autograd_meta(handle)) {
    if (meta->requires_grad) make_leaf_node(handle);
    meta->grad = gradient;
  }
}

void collect(const Module& module, const std::string& prefix, const NamedTensors& (Module::*own)() const, NamedTensors& out) {
  for (const auto& [name, tensor] : (module.*own)()) out.add(join(prefix, name), tensor);
  for (const auto& [name, child] : module.children()) collect(*child, join(prefix, name), own, out);
}

std::string with_separators(int64_t value) {
  const std::string digits = std::to_string(value < 0 ? -value : value);
  std::string text(value < 0 ? 1 : 0, '-');
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) text += ',';
    text += digits[i];
  }
  return text;
}

}  // namespace

Tensor Module::forward(const Tensor&) {
  fail(type_name(), ": has no forward of its own for one tensor, and so cannot stand in a Sequential; call it with all of its inputs, or its children one by one");
}

// --- building ---

void Module::check_new_name(const std::string& name) const {
  check<ValueError>(!name.empty() && name.find('.') == std::string::npos, type_name(), ": a name cannot be empty or contain a dot, got \"",
                    name, "\"");
  const bool is_child = std::any_of(children_.begin(), children_.end(), [&](const auto& entry) { return entry.first == name; });
  check<ValueError>(!is_child && !parameters_.contains(name) && !buffers_.contains(name), type_name(), ": the name \"", name,
                    "\" is taken");
}

Module& Module::add_child(const std::string& name, std::unique_ptr<Module> child) {
  check_new_name(name);
  child->name_ = name;
  children_.emplace_back(name, std::move(child));
  return *children_.back().second;
}

Tensor Module::param(const std::string& name, Tensor value) {
  check_new_name(name);
  if (!value) return value;
  check<DTypeError>(is_floating(value.dtype()), type_name(), ": parameter \"", name, "\" is ", value.dtype(), "; parameters are floating-point tensors, see buffer()");
  check<AutogradError>(value.is_leaf(), type_name(), ": parameter \"", name, "\" was made by a recorded operation; detach() it first");
  value.set_requires_grad(true);
  parameters_.add(name, value);
  return value;
}

Tensor Module::buffer(const std::string& name, Tensor value) {
  check_new_name(name);
  if (value) buffers_.add(name, value);
  return value;
}

// --- names ---

std::string Module::type_name() const {
  int status = 0;
  char* demangled = abi::__cxa_demangle(typeid(*this).name(), nullptr, nullptr, &status);
  std::string name = status == 0 ? demangled : typeid(*this).name();
  std::free(demangled);
  const size_t scope = name.substr(0, name.find('<')).rfind("::");
  return scope == std::string::npos ? name : name.substr(scope + 2);
}

NamedTensors Module::named_parameters(const std::string& prefix) const {
  NamedTensors list;
  collect(*this, prefix, &Module::parameters, list);
  return list;
}

NamedTensors Module::named_buffers(const std::string& prefix) const {
  NamedTensors list;
  collect(*this, prefix, &Module::buffers, list);
  return list;
}

std::vector<std::pair<std::string, Module*>> Module::named_modules(const std::string& prefix) {
  std::vector<std::pair<std::string, Module*>> list{{prefix, this}};
  for (const auto& [name, child] : children_) {
    auto below = child->named_modules(join(prefix, name));
    list.insert(list.end(), below.begin(), below.end());
  }
  return list;
}

Module& Module::layer(const std::string& path) {
  std::vector<std::string> names;
  for (const auto& [name, module] : named_modules()) {
    if (name == path) return *module;
    if (!name.empty()) names.push_back(name);
  }
  const std::string nearest = nearest_name(path, names);
  fail<IndexError>("no layer \"", path, "\"", nearest.empty() ? "" : "; did you mean \"" + nearest + "\"?");
}

void Module::fail_layer_type(const std::string& path) {
  fail<IndexError>("layer \"", path, "\" is ", layer(path).type_name(), ", not of the type asked for");
}

int64_t Module::parameter_count() const {
  std::unordered_set<const Tensor::Impl*> seen;
  int64_t count = 0;
  for (const auto& [name, parameter] : named_parameters())
    if (seen.insert(&parameter.impl()).second) count += parameter.numel();
  return count;
}

int64_t Module::trainable_count() const {
  std::unordered_set<const Tensor::Impl*> seen;
  int64_t count = 0;
  for (const auto& [name, parameter] : named_parameters())
    if (parameter.requires_grad() && seen.insert(&parameter.impl()).second) count += parameter.numel();
  return count;
}

void Module::print(std::ostream& out, const std::string& indent) const {
  out << type_name() << "(" << options();
  if (!children_.empty()) {
    out << "\n";
    for (const auto& [name, child] : children_) {
      out << indent << "  (" << name << "): ";
      child->print(out, indent + "  ");
      out << "\n";
    }
    out << indent;
  }
  out << ")";
}

std::string Module::tree() const {
  std::ostringstream out;
  print(out, "");
  return out.str();
}

// --- changing ---

Module& Module::apply(const std::function<void(Module&)>& fn) {
  check<ValueError>(fn != nullptr, type_name(), ": apply takes a function, got an empty one");
  for (const auto& [name, child] : children_) child->apply(fn);
  fn(*this);
  return *this;
}

Module& Module::train(bool is_training) {
  return apply([is_training](Module& module) { module.is_training_ = is_training; });
}

Module& Module::freeze(bool is_frozen) {
  for (const auto& [name, parameter] : named_parameters()) Tensor(parameter).set_requires_grad(!is_frozen);
  return *this;
}

Module& Module::zero_grad() {
  for (const auto& [name, parameter] : named_parameters()) parameter.set_grad({});
  return *this;
}

void Module::replace_tensors(const std::function<Tensor(const Tensor&)>& convert) {
  NoGrad no_grad;
  struct Replacement {
    Tensor handle, value, gradient;
  };
  std::vector<Replacement> replacements;                                     // all are made before any is put in place
  for (const NamedTensors& list : {named_parameters(), named_buffers()})
    for (const auto& [name, tensor] : list) replacements.push_back({tensor, convert(tensor), tensor.grad() ? convert(tensor.grad()) : Tensor()});
  for (const Replacement& r : replacements)
    if (!r.value.is_same(r.handle)) replace_contents(r.handle, r.value, r.gradient);
}

Module& Module::to(DType dtype) {
  check<DTypeError>(is_floating(dtype), type_name(), ": parameters are floating-point numbers, cannot become ", dtype);
  replace_tensors([dtype](const Tensor& x) { return is_floating(x.dtype()) ? fovea::to(x, dtype) : x; });
  return *this;
}

Module& Module::to(Device device) {
  replace_tensors([device](const Tensor& x) { return fovea::to(x, device); });
  return *this;
}

// --- looking ---

Module::Call::Call(const Module& module, const Tensor& x)
    : range_(cuda::has_ranges() ? (module.name_.empty() ? "" : module.name_ + ": ") + module.type_name() : std::string()) {
  if (!current_trace) return;
  const std::optional<Cost> cost = module.own_cost(x.shape());
  if (!cost) return;
  current_trace->push_back({&module, "", x.shape(), *cost});
  suspended_ = current_trace;  // what a layer with a formula of its own calls is in that formula
  current_trace = nullptr;
}

Module::Call::~Call() {
  if (suspended_) current_trace = static_cast<Trace*>(suspended_);
}

Tensor Module::meta_input(const Shape& input) const {
  for (const auto& [name, parameter] : named_parameters())
    if (is_floating(parameter.dtype())) return empty(input, {parameter.dtype(), Device::meta()});
  return empty(input, Device::meta());
}

void Module::check_cost_input(const Shape& input) { forward(meta_input(input)); }

std::vector<LayerCost> Module::layer_costs(const Shape& input) {
  checked_numel(input, (type_name() + ": cost").c_str());
  Trace trace;
  if (const std::optional<Cost> cost = own_cost(input)) {
    NoGrad no_grad;
    check_cost_input(input);
    trace.push_back({this, "", input, *cost});
  } else {
    NoGrad no_grad;
    Tracing tracing(trace);
    (*this)(meta_input(input));
  }
  const auto modules = named_modules();
  for (LayerCost& row : trace) {
    const auto found = std::find_if(modules.begin(), modules.end(), [&](const auto& entry) { return entry.second == row.layer; });
    if (found != modules.end()) row.path = found->first;
  }
  return trace;
}

Cost Module::cost(const Shape& input) {
  Cost total;
  for (const LayerCost& row : layer_costs(input)) total += row.cost;
  total.parameters = parameter_count();                                     // a layer that is called twice has them once
  return total;
}

Shape Module::output_shape(const Shape& input) {
  NoGrad no_grad;
  return (*this)(meta_input(input)).shape();
}

ReceptiveField Module::receptive_field() const {
  if (const std::optional<ReceptiveField> field = own_field()) return *field;
  ReceptiveField field;
  for (const auto& [name, child] : children_) field = field.then(child->receptive_field());
  return field;
}

std::ostream& operator<<(std::ostream& out, const Module& module) { return out << module.tree(); }

Tensor alongside(const Tensor& x, const Tensor& parameter) {
  if (!x.is_meta() || !parameter || parameter.is_meta()) return parameter;
  return empty(parameter.shape(), {parameter.dtype(), Device::meta()});
}

}  // namespace fovea::layers

namespace fovea {

std::ostream& operator<<(std::ostream& out, const Cost& cost) {
  using layers::with_separators;
  return out << with_separators(cost.macs) << " MACs; " << with_separators(cost.flops) << " FLOPs (a multiply-add counts as two); "
             << with_separators(cost.bytes) << " bytes moved; " << with_separators(cost.parameters) << " parameters";
}

}  // namespace fovea
