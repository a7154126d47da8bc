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

Arguments::Arguments(const std::vector<std::string>& words, const std::vector<std::string>& names, const std::vector<std::string>& flags, bool takes_files) {
  for (size_t i = 0; i < words.size(); ++i) {
    if (!words[i].starts_with("--")) {
      check<ValueError>(!words[i].starts_with("-"), "unknown option ", words[i], "; known are", joined(names, flags));
      check<ValueError>(takes_files, "unexpected \"", words[i], "\"; this command takes options only:", joined(names, flags));
      files_.push_back(words[i]);
      continue;
    }
    const std::string name = words[i].substr(2);
    if (contains(flags, name)) {
      values_[name] = "";
      continue;
    }
    check<ValueError>(contains(names, name), "unknown option --", name, "; known are", joined(names, flags));
    check<ValueError>(i + 1 < words.size() && !words[i + 1].empty() && !words[i + 1].starts_with("--"), "option --", name, " needs a value");
    values_[name] = words[++i];
  }
}

std::string Arguments::text(const std::string& name, const std::string& otherwise) const {
  const auto found = values_.find(name);
  return found == values_.end() ? otherwise : found->second;
}

int64_t Arguments::integer(const std::string& name, int64_t otherwise, int64_t least, int64_t most) const {
  if (!has(name)) return otherwise;
  const std::string& word = values_.at(name);
  const std::optional<int64_t> value = fovea::number_in<int64_t>(word);
  const bool is_whole = !word.empty() && word.find_first_not_of("0123456789", word[0] == '-' ? 1 : 0) == std::string::npos && word != "-";
  check<ValueError>(is_whole, "option --", name, " takes a whole number, got \"", word, "\"");
  check<ValueError>(value && *value >= least && *value <= most, "option --", name, " must be ", least, " to ", most, ", got ", word);
  return *value;
}

double Arguments::number(const std::string& name, double otherwise) const {
  if (!has(name)) return otherwise;
  const std::string& word = values_.at(name);
  const std::optional<double> value = fovea::number_in<double>(word);
  check<ValueError>(value && std::isfinite(*value) && *value >= 0, "option --", name, " takes a number that is not negative, got \"", word, "\"");
  return *value;
}
