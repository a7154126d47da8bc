// A row of shapes/*.csv: one thing to measure. And the line that is written about it.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include <fovea/kernels/geometry.h>
#include <fovea/kernels/view.h>

namespace fovea::benchmarks {

// `op,direction,dtype,layout,dims,tier,what`. dtype is float32, tf32 (float32 tensors, products on tensor cores), float16 or bfloat16. dims are pairs such as "n=256 c=64".
// Rows of tier 1 are measured first: they are what a short run has time for.
struct Row {
  std::string family, op, direction, dtype, layout, dims, what;
  int tier = 1;
  std::map<std::string, std::string> values;                     // dims, taken apart

  int64_t operator[](const std::string& name) const;              // ValueError that names the row where it has no such number
  const std::string& text(const std::string& name) const;
  DType element() const;                                          // of the tensors
  bool allows_tf32() const { return dtype == "tf32"; }
  bool is_channels_last() const { return layout == "nhwc"; }
  bool has_backward() const { return direction == "forward+backward"; }
  std::string key() const;                                        // what tells it from all others
  ConvGeometry conv() const;
  PoolGeometry pool() const;
};

// The rows of one file in order of their tier, as far as `largest_tier`. FileError or ValueError naming the line that cannot be read.
std::vector<Row> read_rows(const std::string& path, const std::string& family, int largest_tier);

// The columns of every result, also those of pytorch_peer.py; report.py puts lines with equal keys together.
const std::vector<std::string>& columns();

// One measured row. Cells that were not set are empty.
class Result {
 public:
  explicit Result(const Row& row);
  void set(const std::string& column, const std::string& value);  // commas and line breaks become spaces
  void set(const std::string& column, const char* value) { set(column, std::string(value)); }
  void set(const std::string& column, double value);              // four digits; empty for NaN
  void note(const std::string& text);                             // added to what is noted already
  std::string get(const std::string& column) const;
  std::string line() const;

 private:
  std::map<std::string, std::string> cells_;
};

// Adds the line to the file and leaves it on the disk at once, so that a run that dies loses one row. The heading comes first where the file is new.
void append(const std::string& path, const Result& result);
// Keys of the rows that a file holds already.
std::set<std::string> keys_in(const std::string& path);

}  // namespace fovea::benchmarks
