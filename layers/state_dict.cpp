#include <fovea/layers/state_dict.h>

#include <fovea/autograd/shape.h>
#include <fovea/autograd/tape.h>

namespace fovea::layers {
namespace {

void collect_state(const Module& module, const std::string& prefix, NamedTensors& out) {
  const std::string path = prefix.empty() ? "" : prefix + ".";
  for (const NamedTensors* own : {&module.parameters(), &module.buffers()})
    for (const auto& [name, tensor] : *own) out.add(path + name, tensor.detach());
  for (const auto& [name, child] : module.children()) collect_state(*child, path + name, out);
}

std::string listed(const char* what, const std::vector<std::string>& names) {
  std::string text = what;
  for (size_t i = 0; i < names.size(); ++i) text += (i ? ", " : " ") + names[i];
  return text;
}

std::string quoted(const std::string& name) { return "\"" + name + "\""; }

std::string last_part(const std::string& path) { return path.substr(path.rfind('.') + 1); }

// What an unexpected name was meant to be: the nearest of the missing ones, or the only one with the same last part ("fc.bias" for
// "head.bias").
std::string meant(const std::string& name, const std::vector<std::string>& missing) {
  const std::string nearest = nearest_name(name, missing);
  if (!nearest.empty()) return nearest;
  std::vector<std::string> alike;
  for (const std::string& candidate : missing)
    if (last_part(candidate) == last_part(name)) alike.push_back(candidate);
  return alike.size() == 1 ? alike[0] : "";
}

void copy_value(const Tensor& from, const Tensor& target) {
  const bool is_same_memory = from.storage() == target.storage();
  if (is_same_memory && from.offset() == target.offset() && from.strides() == target.strides() && from.dtype() == target.dtype()) return;
  const Tensor source = is_same_memory ? clone(from) : to(from, target.device());
  target.storage()->bump_version();
  if (source.numel() > 0) table_of(target).copy(queue_of(target), source.view(), target.mutable_view());
}

}  // namespace

StateDict state_dict(const Module& module, const std::string& prefix) {
  StateDict state;
  collect_state(module, prefix, state);
  return state;
}

LoadReport load_state_dict(Module& module, const StateDict& state, LoadOptions options) {
  NoGrad no_grad;
  LoadReport report;
  std::vector<std::string> missing, unexpected, unfit;                       // as the error names them
  std::vector<std::pair<Tensor, Tensor>> copies;
  const StateDict own = state_dict(module);
  for (const auto& [name, target] : own) {
    const Tensor* source = state.find(name);
    if (!source) {
      report.missing.push_back(name);
      missing.push_back(quoted(name));
    } else if (!source->defined()) {
      unfit.push_back(quoted(name) + " is an undefined tensor");
    } else if (source->shape() != target.shape()) {
      unfit.push_back(str(quoted(name), " is ", source->shape(), " where the module has ", target.shape()));
    } else if (source->is_meta() && !target.is_meta()) {
      unfit.push_back(quoted(name) + " has no data (it is on meta)");
    } else {
      report.loaded.push_back(name);
      copies.emplace_back(*source, target);
    }
  }
  for (const auto& [name, tensor] : state) {
    if (own.contains(name)) continue;
    report.unexpected.push_back(name);
    const std::string nearest = meant(name, report.missing);
    unexpected.push_back(quoted(name) + (nearest.empty() ? "" : " (did you mean \"" + nearest + "\"?)"));
  }

  std::vector<std::string> problems;
  if (options.strict && !missing.empty()) problems.push_back(listed("missing", missing));
  if (options.strict && !unexpected.empty()) problems.push_back(listed("unexpected", unexpected));
  if (!unfit.empty()) problems.push_back(listed("wrongly shaped:", unfit));
  if (!problems.empty()) {
    std::string text;
    for (const std::string& problem : problems) text += problem + "; ";
    fail<ValueError>("load_state_dict: ", text, report.loaded.size(), report.loaded.size() == 1 ? " other matches" : " others match");
  }
  for (const auto& [source, target] : copies) copy_value(source, target);
  return report;
}

}  // namespace fovea::layers
