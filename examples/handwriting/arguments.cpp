#include "arguments.h"

#include <algorithm>
#include <cmath>

#include <fovea/kernels/error.h>
#include <fovea/tensor/number.h>

using fovea::check;
using fovea::ValueError;

namespace {

bool contains(const std::vector<std::string>& list, const std::string& word) { return std::find(list.begin(), list.end(), word) != list.end(); }

std::string joined(const std::vector<std::string>& names, const std::vector<std::string>& flags) {
  std::string text;
  for (const auto* list : {&names, &flags})
    for (const std::string& word : *list) text += " --" + word;
  return text;
}

}  // namespace

Arguments::Arguments(const std::vector<std::string>& words, const std::vector<std::string>& names, const std::vector<std::string>& flags) {
  for (size_t i = 0; i < words.size(); ++i) {
    if (words[i].rfind("--", 0) != 0) {
      files_.push_back(words[i]);
      continue;
    }
    const std::string name = words[i].substr(2);
    if (contains(flags, name)) {
      values_[name] = "";
      continue;
    }
    check<ValueError>(contains(names, name), "unknown option --", name, "; known are", joined(names, flags));
    check<ValueError>(i + 1 < words.size(), "option --", name, " needs a value");
    values_[name] = words[++i];
  }
}

std::string Arguments::text(const std::string& name, const std::string& otherwise) const {
  const auto found = values_.find(name);
  return found == values_.end() ? otherwise : found->second;
}

long Arguments::integer(const std::string& name, long otherwise, long least) const {
  if (!has(name)) return otherwise;
  const std::string& word = values_.at(name);
  const std::optional<long> value = fovea::number_in<long>(word);
  check<ValueError>(value.has_value(), "option --", name, " takes a whole number, got \"", word, "\"");
  check<ValueError>(*value >= least, "option --", name, " must be at least ", least, ", got ", *value);
  return *value;
}

double Arguments::number(const std::string& name, double otherwise) const {
  if (!has(name)) return otherwise;
  const std::string& word = values_.at(name);
  const std::optional<double> value = fovea::number_in<double>(word);
  check<ValueError>(value && std::isfinite(*value) && *value >= 0, "option --", name, " takes a number that is not negative, got \"", word, "\"");
  return *value;
}
