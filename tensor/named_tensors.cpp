#include <fovea/tensor/named_tensors.h>

#include <algorithm>
#include <numeric>

namespace fovea {
namespace {

// Levenshtein's distance: insertions, deletions and replacements.
size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, replaced});
    }
  }
  return row.back();
}

}  // namespace

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
  size_t fewest = (name.size() + 1) / 2;
  for (const std::string& candidate : candidates) {
    if (std::max(candidate.size(), name.size()) > 512) continue;          // the distance takes quadratic time
    const size_t edits = edit_distance(name, candidate);
    if (edits < fewest) {
      fewest = edits;
      nearest = candidate;
    }
  }
  return nearest;
}

}  // namespace fovea
