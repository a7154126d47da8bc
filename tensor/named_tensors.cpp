#include <fovea/tensor/named_tensors.h>

#include <algorithm>

#include <fovea/tensor/edit_distance.h>

namespace fovea {
void NamedTensors::add(std::string name, Tensor tensor) {
  const auto [place, is_new] = position_.try_emplace(name, entries_.size());
  check<ValueError>(is_new, "NamedTensors: \"", name, "\" is there already");
  entries_.emplace_back(std::move(name), std::move(tensor));
}

const Tensor* NamedTensors::find(std::string_view name) const {
  const auto place = position_.find(std::string(name));
  return place == position_.end() ? nullptr : &entries_[place->second].second;
}

const Tensor& NamedTensors::operator[](std::string_view name) const {
  if (const Tensor* tensor = find(name)) return *tensor;
  std::vector<std::string> names;
  for (const Entry& entry : entries_) names.push_back(entry.first);
  const std::string nearest = nearest_name(name, names);
  fail<ValueError>("no tensor \"", name, "\" among ", size(), nearest.empty() ? "" : "; did you mean \"" + nearest + "\"?");
}

std::string nearest_name(std::string_view name, const std::vector<std::string>& candidates) {
  std::string nearest;
  int64_t fewest = static_cast<int64_t>(name.size() + 1) / 2;
  for (const std::string& candidate : candidates) {
    if (std::max(candidate.size(), name.size()) > 512) continue;          // the distance takes quadratic time
    const int64_t edits = edit_distance_of<std::string_view>(name, candidate);
    if (edits < fewest) {
      fewest = edits;
      nearest = candidate;
    }
  }
  return nearest;
}

}  // namespace fovea
