#include "machine.h"

#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>

#include <fovea/fovea.h>
#include <fovea/kernels/cuda/core/check.h>

#include "problem.h"

namespace fovea::benchmarks {

namespace {

using kernels::cuda::check_cuda;

// NVIDIA's management library, which comes with the driver. Its header is not needed for three functions, whose types have been the same for ten years.
class Nvml {
 public:
  static Nvml& instance() {
    static Nvml nvml;
    return nvml;
  }
  std::string driver() const {
    char text[96] = "";
    const auto version = symbol<int(char*, unsigned)>("nvmlSystemGetDriverVersion");
    return device_ && version && version(text, sizeof text) == 0 ? text : "";
  }
  double sm_clock_mhz() const {
    constexpr int sm_clock = 1;
    unsigned mhz = 0;
    const auto clock = symbol<int(void*, int, unsigned*)>("nvmlDeviceGetClockInfo");
    return device_ && clock && clock(device_, sm_clock, &mhz) == 0 ? mhz : std::nan("");
  }

 private:
  Nvml() : library_(is_model ? nullptr : dlopen("libnvidia-ml.so.1", RTLD_NOW)) {
    const auto init = symbol<int()>("nvmlInit_v2");
    const auto handle = symbol<int(unsigned, void**)>("nvmlDeviceGetHandleByIndex_v2");
    if (!init || !handle || init() != 0 || handle(0, &device_) != 0) device_ = nullptr;
  }
  template <class F>
  F* symbol(const char* name) const {
    return library_ ? reinterpret_cast<F*>(dlsym(library_, name)) : nullptr;
  }

  void* library_;
  void* device_ = nullptr;
};

std::string version_text(int version) { return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10); }

// The best of several runs, each of them long enough for events.
double seconds_of(const std::function<void()>& run) {
  cuda::Event begin(0), end(0);
  double best = HUGE_VAL;
  for (int i = 0; i < 8; ++i) {
    begin.record();
    run();
    end.record();
    end.synchronize();
    if (i > 1) best = std::min(best, cuda::seconds_between(begin, end));
  }
  return best;
}

double copy_rate() {
  const int64_t bytes = is_model ? 1 << 16 : int64_t{1} << 30;
  const Tensor a = randn({bytes / 4}), b = empty_like(a);
  const double driver = seconds_of([&] { cuda::copy_bytes(b.mutable_view().data, b.device(), a.view().data, a.device(), bytes); });
  const double kernel = seconds_of([&] { table_of(a).copy(queue_of(a), a.view(), b.mutable_view()); });
  return 2.0 * static_cast<double>(bytes) / std::min(driver, kernel);
}

double fma_rate(int multiprocessors) {
  const int64_t threads = int64_t{multiprocessors} * (is_model ? 32 : 2048 * 8);
  const Tensor y = empty({threads});
  double operations = 0;
  const double seconds = seconds_of([&] { operations = run_fused_multiply_adds(queue_of(y), threads, is_model ? 1 : 64, static_cast<float*>(y.mutable_view().data)); });
  return operations / seconds;
}

// By cuBLAS, with the fastest of its algorithms; by our own product where it is not there.
double product_rate(Vendor* cublas, DType dtype, bool allows_tf32) {
  const int64_t n = is_model ? 16 : 8192;
  const Tensor a = to(randn({n, n}), dtype), b = to(randn({n, n}), dtype), y = empty({n, n}, dtype);
  const double operations = 2.0 * static_cast<double>(n) * static_cast<double>(n) * static_cast<double>(n);
  double best = 0;
  if (cublas) {
    const Task task{.op = "matmul", .direction = "forward", .allows_tf32 = allows_tf32, .values = {}, .inputs = {array_of(a), array_of(b)}, .outputs = {array_of(y)}};
    for (const auto& make : cublas->algorithms(task)) {
      try {
        const Algorithm algorithm = make();
        const Tensor workspace = empty({std::max<int64_t>(algorithm.workspace_bytes, 1)}, DType::uint8);
        best = std::max(best, operations / seconds_of([&] { algorithm.run(queue_of(a), task.inputs, task.outputs, workspace.mutable_view().data); }));
      } catch (const Error& error) {                              // one that its library refuses after all
        std::printf("%s\n", error.what());
      }
    }
    if (best > 0) return best;
  }
  cuda::set_allow_tf32(allows_tf32);
  best = operations / seconds_of([&] { matmul(a, b); });
  cuda::set_allow_tf32(false);
  return best;
}

}  // namespace

Machine this_machine() {
  cudaDeviceProp properties{};
  check_cuda(cudaGetDeviceProperties(&properties, 0), "asking for the properties of the first device");
  int runtime = 0, driver = 0;
  cudaRuntimeGetVersion(&runtime);
  cudaDriverGetVersion(&driver);
  const std::string nvml_driver = Nvml::instance().driver();
  return {.device = properties.name, .driver = nvml_driver.empty() ? "CUDA " + version_text(driver) : nvml_driver, .runtime = version_text(runtime),
          .multiprocessors = properties.multiProcessorCount, .l2_bytes = static_cast<double>(properties.l2CacheSize),
          .memory_bytes = static_cast<double>(properties.totalGlobalMem)};
}

double sm_clock_mhz() { return Nvml::instance().sm_clock_mhz(); }

double Ceilings::of(const std::string& dtype) const {
  if (dtype == "tf32") return tf32;
  if (dtype == "float16") return float16;
  if (dtype == "bfloat16") return bfloat16;
  return float32;
}

Ceilings measure_ceilings(Vendor* cublas) {
  NoGrad no_grad;
  Ceilings c;
  c.copy = copy_rate();
  c.float32 = fma_rate(this_machine().multiprocessors);
  c.tf32 = product_rate(cublas, DType::float32, true);
  c.float16 = product_rate(cublas, DType::float16, false);
  c.bfloat16 = product_rate(cublas, DType::bfloat16, false);
  c.products_by = cublas ? cublas->name() : "fovea";
  return c;
}

void write_ceilings(const std::string& path, const Machine& machine, const Ceilings& ceilings, const std::string& commit) {
  std::ofstream file(path);
  check<FileError>(file.good(), path, ": cannot be written");
  file << "name,value\ndevice," << machine.device << "\ndriver," << machine.driver << "\nruntime," << machine.runtime << "\nmultiprocessors,"
       << machine.multiprocessors << "\nl2_mb," << machine.l2_bytes / 1e6 << "\nmemory_gb," << machine.memory_bytes / 1e9 << "\ncommit," << commit
       << "\nproducts_by," << ceilings.products_by << "\n";
  const std::pair<const char*, double> rates[] = {{"copy", ceilings.copy}, {"float32", ceilings.float32}, {"tf32", ceilings.tf32},
                                                  {"float16", ceilings.float16}, {"bfloat16", ceilings.bfloat16}};
  for (const auto& [name, rate] : rates) {
    if (is_model) file << name << ",model\n";
    else file << name << "," << rate << "\n";
  }
}

bool read_ceilings(const std::string& path, Ceilings& ceilings) {
  std::ifstream file(path);
  if (!file.good()) return false;
  for (std::string line; std::getline(file, line);) {
    const size_t comma = line.find(',');
    if (comma == std::string::npos) continue;
    const std::string name = line.substr(0, comma), value = line.substr(comma + 1);
    const double number = std::atof(value.c_str());
    if (name == "copy") ceilings.copy = number;
    if (name == "float32") ceilings.float32 = number;
    if (name == "tf32") ceilings.tf32 = number;
    if (name == "float16") ceilings.float16 = number;
    if (name == "bfloat16") ceilings.bfloat16 = number;
    if (name == "products_by") ceilings.products_by = value;
  }
  return true;
}

}  // namespace fovea::benchmarks
