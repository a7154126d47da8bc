// For tests/golden/ops.py: op_cases_tool --write-inputs FILE.npz (the inputs of every row), op_cases_tool --write-table FILE.md (docs/operations.md).
#include <cstdio>
#include <fstream>
#include <iostream>
#include <string>

#include <fovea/autograd/autocast.h>
#include <fovea/tensor/npz.h>

#include "../op_cases.h"

using namespace fovea;
using namespace fovea::op_cases;

namespace {

void write_inputs(const std::string& path) {
  NamedTensors inputs;
  for (const Operation& row : operations())
    for (size_t i = 0; i < row.samples.size(); ++i) {
      if (row.samples[i].is_large) continue;
      const std::vector<Tensor> tensors = make_inputs(row.samples[i], DType::float64);
      for (size_t k = 0; k < tensors.size(); ++k) inputs.add(str(row.name, ":", i, ":", k), tensors[k]);
    }
  save_npz(path, inputs);
}

// Found out by trying: a dtype is taken where the first sample runs.
bool takes(const Operation& row, DType dtype) {
  try {
    row.call(make_inputs(row.samples[0], dtype));
    return true;
  } catch (const Error&) {
    return false;
  }
}

const char* autocast_of(const Operation& row) {
  switch (autocast_precision(std::string_view(row.name).substr(0, row.name.find('/')))) {
    case AutocastPrecision::half: return "half";
    case AutocastPrecision::single: return "float32";
    case AutocastPrecision::widest: return "widest";
    case AutocastPrecision::as_given: break;
  }
  return "";
}

void write_table(const std::string& path) {
  std::ofstream out(path);
  out << "# Operations\n\nMade from the rows of `tests/op_cases.h` by `tests/golden/ops.py`; do not edit. Every row is tested against PyTorch on the CPU and on meta tensors.\n"
         "A name after a slash is a variant that has a row of its own. Gradients: *twice* means that the gradient can be differentiated again.\n"
         "Dtypes: those of the inputs that are neither indices nor truth values. float16 and bfloat16 are storage on the CPU: an operation that needs more widens its arguments\n"
         "to float32 and rounds the result. On CUDA kernels compute on them, with sums in float32. Autocast: what an `Autocast` scope makes of the\n"
         "arguments: *half*, the scope's dtype; *float32*; *widest*, the widest dtype among them; empty, nothing.\n";
  const DType dtypes[] = {DType::float32, DType::float64, DType::float16, DType::bfloat16, DType::int32, DType::int64, DType::uint8, DType::boolean};
  std::string family;
  for (const Operation& row : operations()) {
    if (row.family != family) out << "\n## " << row.family << "\n\n| operation | gradient | autocast | dtypes |\n|---|---|---|---|\n";
    family = row.family;
    out << "| " << row.name << " | " << (row.gradient == Gradient::none ? "none" : row.gradient == Gradient::once ? "once" : "twice") << " | " << autocast_of(row) << " |";
    for (const DType dtype : dtypes)
      if (takes(row, dtype)) out << " " << dtype;
    out << " |\n";
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc == 3 ? argv[1] : "";
  try {
    if (mode == "--write-inputs") write_inputs(argv[2]);
    else if (mode == "--write-table") write_table(argv[2]);
    else std::cerr << "usage: op_cases_tool --write-inputs FILE.npz | --write-table FILE.md\n";
  } catch (const Error& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
  return mode.empty() ? 2 : 0;
}
