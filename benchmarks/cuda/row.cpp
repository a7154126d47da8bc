#include "row.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>

#include <fovea/kernels/error.h>

namespace fovea::benchmarks {

namespace {

std::vector<std::string> split(const std::string& line, char separator) {
  std::vector<std::string> parts;
  std::istringstream stream(line);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  return parts;
}

std::string joined(const std::vector<std::string>& cells) {
  std::ostringstream line;
  for (size_t i = 0; i < cells.size(); ++i) line << (i > 0 ? "," : "") << cells[i];
  return line.str();
}

// The first five cells: op,direction,dtype,layout,dims.
std::string key_of(std::vector<std::string> cells) {
  cells.resize(std::min<size_t>(cells.size(), 5));
  return joined(cells);
}

Row parse(const std::string& line, const std::string& family, const std::string& where) {
  const std::vector<std::string> cells = split(line, ',');
  check<ValueError>(cells.size() == 7, where, ": ", cells.size(), " cells, expected op,direction,dtype,layout,dims,tier,what");
  Row row{.family = family, .op = cells[0], .direction = cells[1], .dtype = cells[2], .layout = cells[3], .dims = cells[4], .what = cells[6], .values = {}};
  row.tier = std::atoi(cells[5].c_str());
  for (const std::string& pair : split(row.dims, ' ')) {
    const size_t equals = pair.find('=');
    check<ValueError>(equals != std::string::npos, where, ": \"", pair, "\" is no pair name=value");
    row.values[pair.substr(0, equals)] = pair.substr(equals + 1);
  }
  return row;
}

}  // namespace

const std::string& Row::text(const std::string& name) const {
  const auto found = values.find(name);
  check<ValueError>(found != values.end(), "shapes: ", op, " ", direction, " (", dims, ") needs ", name);
  return found->second;
}

int64_t Row::operator[](const std::string& name) const {
  const std::string& value = text(name);
  char* end = nullptr;
  const long long number = std::strtoll(value.c_str(), &end, 10);
  check<ValueError>(end != value.c_str() && *end == 0, "shapes: ", op, " ", direction, ": ", name, " is \"", value, "\", expected a number");
  return number;
}

DType Row::element() const {
  if (dtype == "float32" || dtype == "tf32") return DType::float32;
  if (dtype == "float16") return DType::float16;
  if (dtype == "bfloat16") return DType::bfloat16;
  fail<ValueError>("shapes: ", op, " (", dims, ") has dtype \"", dtype, "\", expected float32, tf32, float16 or bfloat16");
}

std::string Row::key() const { return key_of({op, direction, dtype, layout, dims}); }

ConvGeometry Row::conv() const {
  const Row& row = *this;
  return {.n = row["n"], .c = row["c"], .h = row["h"], .w = row["w"], .k = row["k"], .r = row["r"], .s = row["s"], .stride_h = row["stride"],
          .stride_w = row["stride"], .pad_h = row["pad"], .pad_w = row["pad"], .dilation_h = row["dilation"], .dilation_w = row["dilation"],
          .groups = row["groups"]};
}

PoolGeometry Row::pool() const {
  const Row& row = *this;
  return {.n = row["n"], .c = row["c"], .h = row["h"], .w = row["w"], .kernel_h = row["kernel"], .kernel_w = row["kernel"], .stride_h = row["stride"],
          .stride_w = row["stride"], .pad_h = row["pad"], .pad_w = row["pad"]};
}

std::vector<Row> read_rows(const std::string& path, const std::string& family, int largest_tier) {
  std::ifstream file(path);
  check<FileError>(file.good(), path, ": cannot be read");
  std::vector<Row> rows;
  std::string line;
  std::getline(file, line);                                        // the heading
  for (int number = 2; std::getline(file, line); ++number) {
    Row row = parse(line, family, str(path, ":", number));
    if (row.tier <= largest_tier) rows.push_back(std::move(row));
  }
  std::stable_sort(rows.begin(), rows.end(), [](const Row& a, const Row& b) { return a.tier < b.tier; });
  return rows;
}

const std::vector<std::string>& columns() {
  static const std::vector<std::string> names{
      "op", "direction", "dtype", "layout", "dims", "family", "tier", "what", "kernel", "ours_us", "ours_p10", "ours_p90", "vendor", "vendor_algorithm", "vendor_us",
      "vendor_p10", "vendor_p90", "ratio", "gflop", "mb", "tflops", "tbs", "roof_us", "roof_percent", "bound", "error_ours", "error_vendor", "workspace_mb",
      "vendor_workspace_mb", "deterministic", "cache", "timing", "sm_mhz", "device", "driver", "commit", "note"};
  return names;
}

Result::Result(const Row& row) {
  set("op", row.op);
  set("direction", row.direction);
  set("dtype", row.dtype);
  set("layout", row.layout);
  set("dims", row.dims);
  set("family", row.family);
  set("tier", std::to_string(row.tier));
  set("what", row.what);
}

void Result::set(const std::string& column, const std::string& value) {
  std::string& cell = cells_[column];
  cell = value;
  std::replace_if(cell.begin(), cell.end(), [](char c) { return c == ',' || c == '\n' || c == '\r' || c == '"'; }, ' ');
}

void Result::set(const std::string& column, double value) {
  if (std::isnan(value)) return;
  char text[32];
  std::snprintf(text, sizeof text, "%.4g", value);
  set(column, std::string(text));
}

void Result::note(const std::string& text) {
  const std::string before = get("note");
  set("note", before.empty() ? text : str(before, "; ", text));
}

std::string Result::get(const std::string& column) const {
  const auto found = cells_.find(column);
  return found == cells_.end() ? "" : found->second;
}

std::string Result::line() const {
  std::vector<std::string> cells;
  for (const std::string& column : columns()) cells.push_back(get(column));
  return joined(cells);
}

void append(const std::string& path, const Result& result) {
  const bool is_new = !std::ifstream(path).good();
  std::ofstream file(path, std::ios::app);
  check<FileError>(file.good(), path, ": cannot be written");
  if (is_new) file << joined(columns()) << "\n";
  file << result.line() << "\n" << std::flush;
}

std::set<std::string> keys_in(const std::string& path) {
  std::set<std::string> keys;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) keys.insert(key_of(split(line, ',')));
  return keys;
}

}  // namespace fovea::benchmarks
