#include <fovea/data/text_table.h>

#include <algorithm>
#include <cmath>
#include <string_view>

#include <fovea/kernels/error.h>
#include <fovea/tensor/file.h>
#include <fovea/tensor/number.h>

namespace fovea::data {
namespace {

std::vector<std::string> split_fields(std::string_view line, char divider) {
  std::vector<std::string> fields;
  while (true) {
    const size_t length = line.find(divider);
    fields.emplace_back(line.substr(0, length));
    if (length == std::string_view::npos) return fields;
    line.remove_prefix(length + 1);
  }
}

// For messages: a file that is no table may have a heading of megabytes.
std::string shortened(std::string text) {
  constexpr size_t longest = 200;
  if (text.size() <= longest) return text;
  size_t end = longest;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;      // not within a character of UTF-8
  return text.substr(0, end) + " ...";
}

std::string join(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text.append(text.empty() ? "" : ", ").append(name);
  return shortened(std::move(text));
}

}  // namespace

TextTable TextTable::read(const std::string& path, char divider) {
  constexpr int64_t largest = int64_t{1} << 30;
  constexpr std::string_view byte_order_mark = "\xEF\xBB\xBF";
  const std::vector<uint8_t> bytes = read_file(path, "read a table", largest);
  std::string_view rest(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (rest.starts_with(byte_order_mark)) rest.remove_prefix(byte_order_mark.size());
  TextTable table;
  table.path_ = path;
  for (int64_t line_number = 1; !rest.empty(); ++line_number) {
    const size_t length = std::min(rest.find('\n'), rest.size());
    std::string_view line = rest.substr(0, length);
    rest.remove_prefix(std::min(length + 1, rest.size()));
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty()) continue;
    std::vector<std::string> fields = split_fields(line, divider);
    if (table.heading_.empty()) {
      table.heading_ = std::move(fields);
      continue;
    }
    check<FileError>(fields.size() == table.heading_.size(), path, ", line ", line_number, ": has ", fields.size(), " fields, expected ",
                     table.heading_.size(), " (", join(table.heading_), ")");
    table.rows_.push_back({line_number, std::move(fields)});
  }
  check<FileError>(!table.heading_.empty(), path, ": is empty, expected a heading line");
  return table;
}

size_t TextTable::column(const std::string& name) const {
  const auto found = std::find(heading_.begin(), heading_.end(), name);
  check<FileError>(found != heading_.end(), path_, ": has no column \"", name, "\", only ", join(heading_));
  return static_cast<size_t>(found - heading_.begin());
}

double TextTable::number(int64_t row, size_t column) const {
  const std::string& field = at(row, column);
  const std::optional<double> value = number_in<double>(field);
  check<FileError>(value && std::isfinite(*value), place(row), ": ", shortened(heading_[column]), " is \"", shortened(field), "\", expected a number");
  return *value;
}

std::string TextTable::place(int64_t row) const { return str(path_, ", line ", rows_[static_cast<size_t>(row)].line); }

}  // namespace fovea::data
