// An ordered list of tensors with names: what .npz and .safetensors files hold, and what a state dict is made of.
#pragma once

#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include <fovea/tensor/tensor.h>

namespace fovea {

class NamedTensors {
 public:
  using Entry = std::pair<std::string, Tensor>;

  NamedTensors() = default;
  NamedTensors(std::initializer_list<Entry> entries) { for (const Entry& e : entries) add(e.first, e.second); }

  void add(std::string name, Tensor tensor);             // at the end; ValueError if the name is taken
  const Tensor& operator[](std::string_view name) const; // ValueError if there is none, which says what name comes nearest
  const Tensor* find(std::string_view name) const;       // null if there is none
  bool contains(std::string_view name) const { return find(name) != nullptr; }
  size_t size() const { return entries_.size(); }
  bool empty() const { return entries_.empty(); }
  std::vector<Entry>::const_iterator begin() const { return entries_.begin(); }
  std::vector<Entry>::const_iterator end() const { return entries_.end(); }

 private:
  std::vector<Entry> entries_;
  std::unordered_map<std::string, size_t> position_;
};

// The candidate that takes the fewest edits to become `name`, if that is less than half of its letters; else "". For messages: did you mean ...?
std::string nearest_name(std::string_view name, const std::vector<std::string>& candidates);

}  // namespace fovea
