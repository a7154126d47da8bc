// What the program asks of a vendor's library. The libraries are loaded when the program runs, as modules of their own (vendor_cublas.cpp, cudnn_*.cpp), so that it
// measures ours also where they are not installed. Of fovea's headers only what is inline is used here and in the modules.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <fovea/kernels/view.h>

namespace fovea::benchmarks {

// A tensor in device memory. Integers (labels, lengths) come with their values.
struct Array {
  void* data = nullptr;
  DType dtype = DType::float32;
  std::vector<int64_t> shape, strides;                           // in elements
  std::vector<int64_t> values;                                   // of an integer tensor
  int64_t numel() const {
    int64_t count = 1;
    for (int64_t size : shape) count *= size;
    return count;
  }
};

// A row of shapes/*.csv. Inputs and outputs are in the order that problem.h's problems give them.
struct Task {
  std::string op, direction;
  bool allows_tf32 = false;
  std::map<std::string, std::string> values;                     // the dims
  std::vector<Array> inputs, outputs;                            // of the first set; those of the others have the same shapes and strides
  int64_t operator[](const std::string& name) const { return std::stoll(values.at(name)); }
};

// One algorithm, ready to run. What `run` puts on the stream may be recorded in a graph. It throws fovea::Error where the library refuses.
struct Algorithm {
  std::string name;
  int64_t workspace_bytes = 0;
  std::function<void(void* stream, const std::vector<Array>& inputs, const std::vector<Array>& outputs, void* workspace)> run;
};

class Vendor {
 public:
  virtual ~Vendor() = default;
  virtual std::string name() const = 0;                          // "cuDNN 9.19.0"
  // Makers of the algorithms the library has for the task, the most promising first; none for what it does not compute. A maker may take long (code is compiled for it),
  // and throws where its algorithm does not fit.
  virtual std::vector<std::function<Algorithm()>> algorithms(const Task& task) = 0;
  // On a machine without a GPU: makes every descriptor that `algorithms` would, and as many plans as fit into `seconds`, for a GPU that is only described. Data pointers may
  // be null. Says what was made; throws fovea::Error where the library refuses what the task cannot do without.
  virtual std::string check_without_device(const Task& task, double seconds) = 0;
};

// The one symbol of a module. The caller owns the result. Without a device only check_without_device may be called.
using MakeVendor = Vendor* (*)(bool has_device);
inline constexpr const char* make_vendor_symbol = "fovea_make_vendor";

}  // namespace fovea::benchmarks
