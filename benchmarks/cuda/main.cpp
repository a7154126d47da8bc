// Measures rows of shapes/*.csv on the first CUDA device, ours and cuDNN's or cuBLAS's in turn, and adds a line to a CSV after each of them.
// run_gpu.sh calls it once for every family; report.py reads what it writes.
#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <mutex>
#include <thread>

#include <fovea/fovea.h>
#include <fovea/kernels/cuda/core/launch_log.h>

#include "machine.h"
#include "measure.h"
#include "problem.h"

namespace fovea::benchmarks {

namespace {

struct Options {
  std::string family, filter, shapes, out = "results.csv", machine, commit = "unknown", vendor = "auto";
  int tier = 2;
  double minutes = 10, seconds = 0.3, search = 2.0, row_seconds = 60;
  bool only_ceilings = false, skips_done = false, checks_vendor = false;
};

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// --- vendors ---

// The module's vendor, or null with the reason in `missing`. It stays loaded.
std::unique_ptr<Vendor> load_vendor(const std::string& file, bool has_device, std::string& missing) {
  const std::string path = std::filesystem::read_symlink("/proc/self/exe").parent_path() / file;
  void* module = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  const auto make = module ? reinterpret_cast<MakeVendor>(dlsym(module, make_vendor_symbol)) : nullptr;
  if (!make) {
    const char* why = dlerror();
    missing = why ? why : str("no symbol ", make_vendor_symbol);
    return nullptr;
  }
  try {
    return std::unique_ptr<Vendor>(make(has_device));
  } catch (const std::exception& error) {
    missing = error.what();
    return nullptr;
  }
}

const char* module_of(const std::string& family) { return family == "gemm" ? "fovea_vendor_cublas.so" : "fovea_vendor_cudnn.so"; }

bool is_wanted(const Row& row, const Options& options) { return str(row.key(), ",", row.what).find(options.filter) != std::string::npos; }

// What can be tried of the vendor's side on a machine without a GPU: descriptors, and for convolutions plans for a GPU that is only described. Prints a line a row.
int check_vendor(const Options& options) {
  std::string missing;
  const std::unique_ptr<Vendor> vendor = load_vendor(module_of(options.family), false, missing);
  check<Error>(vendor != nullptr, "the vendor's library cannot be loaded: ", missing);
  int refused = 0, rows = 0;
  for (const Row& row : read_rows(options.shapes + "/" + options.family + ".csv", options.family, options.tier)) {
    if (!is_wanted(row, options)) continue;
    ++rows;
    std::string answer;
    try {
      answer = vendor->check_without_device(described_task(row), options.search);
    } catch (const Error& error) {
      answer = str("REFUSED: ", error.what());
      ++refused;
    }
    std::printf("%s: %s\n", row.key().c_str(), answer.c_str());
    std::fflush(stdout);
  }
  std::printf("%s: %d of %d rows refused\n", options.family.c_str(), refused, rows);
  return refused > 0 ? 1 : 0;
}

// --- whether a result is right ---

// The inputs' part on the CPU, floating point in the problem's reference dtype.
Tensors on_cpu(const Tensors& tensors, DType dtype) {
  Tensors copies;
  for (const Tensor& t : tensors) {
    const Tensor copy = t.defined() ? to(contiguous(t.detach()), Device::cpu()) : Tensor();
    copies.push_back(copy.defined() && is_floating(copy.dtype()) ? to(copy, dtype) : copy);
  }
  return copies;
}

// The largest over the outputs of ||got - expected|| / ||expected||; equal infinities are no error, an unwritten (NaN) element is an infinite one.
double relative_error(const Tensors& got, const Tensors& expected) {
  double worst = 0;
  for (size_t i = 0; i < got.size() && i < expected.size(); ++i) {
    if (!got[i].defined()) continue;
    const std::vector<double> a = on_cpu({got[i]}, DType::float64)[0].to_vector<double>(), b = on_cpu({expected[i]}, DType::float64)[0].to_vector<double>();
    check<ShapeError>(a.size() == b.size(), "output ", i, " has ", a.size(), " elements to compare, its reference ", b.size());
    double difference = 0, norm = 0;
    for (size_t j = 0; j < a.size(); ++j) {
      if (a[j] == b[j] && std::isinf(a[j])) continue;
      difference += (a[j] - b[j]) * (a[j] - b[j]);
      norm += b[j] * b[j];
    }
    const double error = std::sqrt(difference) / std::max(std::sqrt(norm), 1e-30);
    if (std::isnan(error)) return HUGE_VAL;
    worst = std::max(worst, error);
  }
  return worst;
}

double largest_error(const std::string& dtype) { return dtype == "float32" ? 2e-4 : dtype == "tf32" ? 5e-3 : dtype == "float16" ? 5e-3 : 4e-2; }

// NaN into every floating-point output, so that the next computation, which finds the same memory in the allocator's cache, does not profit from this one.
void poison(const Tensors& outputs) {
  for (const Tensor& t : outputs)
    if (t.defined() && is_floating(t.dtype())) table_of(t).fill(queue_of(t), std::nan(""), t.mutable_view());
}

bool are_identical(const Tensors& a, const Tensors& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (!any(ne(a[i], b[i])).item<bool>()) continue;
    // NaN differs from itself: only what is no NaN counts.
    if (any(logical_and(ne(a[i], b[i]), logical_and(eq(a[i], a[i]), eq(b[i], b[i])))).item<bool>()) return false;
  }
  return true;
}

// "copy conv2d_forward 2xbias": the kernels of a run in order, repeated ones counted; of a long list the beginning.
std::string kernels_of(const Run& run, Tensors& outputs) {
  std::vector<std::string> names;
  kernels::cuda::log_launches(&names);
  try {
    outputs = run();
  } catch (...) {
    kernels::cuda::log_launches(nullptr);
    throw;
  }
  kernels::cuda::log_launches(nullptr);
  std::ostringstream list;
  constexpr size_t most_kinds = 10;
  size_t kinds = 0;
  for (size_t i = 0, same = 1; i < names.size(); i += same, same = 1) {
    while (i + same < names.size() && names[i + same] == names[i]) ++same;
    if (++kinds > most_kinds) continue;
    if (i > 0) list << " ";
    if (same > 1) list << same << "x";
    list << names[i];
  }
  if (kinds > most_kinds) list << " ... (" << names.size() << " launches)";
  return list.str();
}

class Tf32Scope {
 public:
  explicit Tf32Scope(bool is_on) : before_(cuda::allow_tf32()) { cuda::set_allow_tf32(is_on); }
  ~Tf32Scope() { cuda::set_allow_tf32(before_); }

 private:
  bool before_;
};

// --- rows that end the program ---

// What a row was doing: a device that is lost or a row that never ends is the vendor's if it happens in the vendor's stage.
enum class Stage { reference, ours, vendor, timing };
constexpr const char* stage_names[] = {"computing the reference", "our own runs", "the vendor's runs", "timing"};

// A kernel failed in a way that only a new process gets over.
struct DeviceLost : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Throws DeviceLost where no work gets through any more. An error that was waiting to be reported is not one: it comes once.
void check_device() {
  try {
    cuda::synchronize(0);
  } catch (const std::exception&) {
    try {
      cuda::synchronize(0);
    } catch (const std::exception& error) {
      throw DeviceLost(error.what());
    }
  }
}

// Calls `expired`, which ends the program, where it lives longer than it may: nothing else stops a kernel that does not end.
class Watchdog {
 public:
  Watchdog(double seconds, std::function<void()> expired)
      : thread_([this, seconds, expired = std::move(expired)] {
          std::unique_lock lock(mutex_);
          if (!over_.wait_for(lock, std::chrono::duration<double>(seconds), [this] { return is_over_; })) expired();
        }) {}
  ~Watchdog() {
    {
      const std::lock_guard lock(mutex_);
      is_over_ = true;
    }
    over_.notify_one();
    thread_.join();
  }

 private:
  std::mutex mutex_;
  std::condition_variable over_;
  bool is_over_ = false;
  std::thread thread_;                                             // last: it uses what stands above
};

// Beside the results lies a note of the row that is being measured. Who finds one at the start (--skip-done) knows where the run before ended: that row is measured without
// the vendor, and left out if the program ended in it again.
class RowNote {
 public:
  explicit RowNote(const std::string& results) : path_(results + ".row") {}
  void write(const std::string& key, bool has_vendor) const { std::ofstream(path_) << (has_vendor ? "with " : "without ") << key << "\n"; }
  void remove() const { std::filesystem::remove(path_); }
  std::string read() const {
    std::string line;
    std::ifstream file(path_);
    std::getline(file, line);
    return line;
  }

 private:
  std::string path_;
};

// --- one row ---

class Measurement {
 public:
  Measurement(const Row& row, const Options& options, const Machine& machine, const Ceilings& ceilings, Vendor* vendor, std::atomic<Stage>& stage)
      : row_(row), options_(options), machine_(machine), ceilings_(ceilings), vendor_(vendor), stage_(stage), problem_(problem_of(row)), result_(row) {}

  Result run() {
    const Tf32Scope tf32(row_.allows_tf32());
    result_.set("device", is_model ? "model of CUDA" : machine_.device);
    result_.set("driver", machine_.driver);
    result_.set("commit", options_.commit);
    manual_seed(1);
    inputs_.push_back(problem_.make_inputs());
    const Tensors part = problem_.sample_inputs(inputs_[0]);
    const Run expected = problem_.bind(on_cpu(part, problem_.reference_dtype));
    Tensors reference = expected();
    for (int i = 1; i < problem_.compared_runs; ++i) reference = expected();
    stage_ = Stage::ours;
    run_ours_once(reference);
    make_sets();
    std::optional<Shot> ours(std::in_place, our_work(), row_.direction == "eager");
    stage_ = Stage::vendor;
    std::optional<Shot> vendors = vendor_shot(reference);
    stage_ = Stage::timing;
    Times our_times, vendor_times;
    const Budget budget{.warm_up = is_model ? 0 : 0.1, .seconds = options_.seconds, .least_samples = is_model ? 2 : 10, .most_samples = is_model ? 2 : 100};
    measure_in_turn(*ours, vendors ? &*vendors : nullptr, budget, our_times, vendor_times);
    result_.set("sm_mhz", sm_clock_mhz());
    result_.set("timing", vendors && vendors->how() != ours->how() ? str(ours->how(), " | ", vendors->how()) : ours->how());
    fill(our_times, vendor_times);
    return result_;
  }

 private:
  // The first run, the one that is compared. Outputs are poisoned before the second, whose memory they are.
  void run_ours_once(const Tensors& reference) {
    const Tensors compared = problem_.compares_samples ? problem_.sample_inputs(inputs_[0]) : inputs_[0];
    Run run = problem_.bind(compared);
    Tensors outputs;
    result_.set("kernel", kernels_of(run, outputs));
    for (int i = 1; i < problem_.compared_runs; ++i) outputs = run();
    if (!problem_.works_in_place) {
      const int64_t before = cuda::allocator::stats().active_bytes;
      cuda::allocator::reset_peak();
      poison(outputs);
      outputs.clear();
      outputs = run();
      // What was active at most, less what the outputs take; the memory of the first outputs was given back just before.
      const double scratch = static_cast<double>(cuda::allocator::stats().peak_bytes - std::max(before, cuda::allocator::stats().active_bytes));
      result_.set("workspace_mb", std::max(0.0, scratch) / 1e6);
      result_.set("deterministic", are_identical(outputs, run()) ? "yes" : "no");
    }
    const double error = relative_error(problem_.compares_samples ? outputs : problem_.sample_outputs(outputs), reference);
    result_.set("error_ours", error);
    if (!(error <= largest_error(row_.dtype))) result_.note(str("OURS IS WRONG: error ", error));
    for (const Tensor& t : outputs) output_bytes_ += t.defined() ? static_cast<double>(t.nbytes()) : 0;
    outputs_ = outputs;
  }

  // So many sets that all of them together are twice as large as the L2 cache, as far as 24 do and a third of the memory holds them.
  void make_sets() {
    const double bytes = bytes_of(inputs_[0]) + 2 * output_bytes_;
    const double wanted = std::ceil(2 * machine_.l2_bytes / std::max(bytes, 1.0)) + 1, room = std::floor(machine_.memory_bytes / 3 / std::max(bytes, 1.0));
    const size_t sets = row_.family == "steps" ? 1 : static_cast<size_t>(std::clamp(std::min(wanted, room), 1.0, is_model ? 2.0 : 24.0));
    while (inputs_.size() < sets) inputs_.push_back(problem_.make_inputs());
    const bool is_cold = static_cast<double>(sets) * bytes >= 2 * machine_.l2_bytes;
    result_.set("cache", str(is_cold ? "cold" : "warm", " (", sets, " sets of ", std::ceil(bytes / 1e4) / 100, " MB)"));
  }

  std::vector<Work> our_work() {
    std::vector<Work> work;
    for (const Tensors& in : inputs_) work.push_back(problem_.bind(in));
    return work;
  }

  // In memory of its own, in the row's layout.
  Tensor copy_of(const Tensor& x) const {
    if (x.rank() != 4 || !row_.is_channels_last()) return clone(x);
    NoGrad no_grad;
    Tensor copy = empty_channels_last(x.shape(), {x.dtype(), x.device()});
    copy_(copy, x);
    return copy;
  }

  // Of all algorithms that the vendor has and that compute the right thing, the fastest.
  std::optional<Shot> vendor_shot(const Tensors& reference) {
    if (options_.vendor == "self") {                              // both sides are ours: the ratio tells how far this machine's ratios can be trusted
      result_.set("vendor", "fovea");
      return Shot(our_work(), row_.direction == "eager");
    }
    if (!vendor_ || problem_.works_in_place) return {};
    Tensors first;
    for (const Tensor& t : outputs_) {
      if (!t.defined()) first.emplace_back();
      else first.push_back(copy_of(t));
    }
    Task task{.op = row_.op, .direction = row_.direction, .allows_tf32 = row_.allows_tf32(), .values = row_.values, .inputs = arrays_of(inputs_[0]),
              .outputs = arrays_of(first)};
    std::vector<std::function<Algorithm()>> makers;
    try {
      makers = vendor_->algorithms(task);
    } catch (const std::exception& error) {
      result_.note(str(vendor_->name(), ": ", error.what()));
      return {};
    }
    if (makers.empty()) return {};
    result_.set("vendor", vendor_->name());
    std::optional<Algorithm> best;
    Tensor best_workspace;
    double best_seconds = HUGE_VAL, best_error = 0;
    size_t tried = 0, wrong = 0;
    std::string refusal;
    for (const double end = now() + options_.search; tried < makers.size() && (tried == 0 || now() < end); ++tried) {
      try {
        Algorithm algorithm = makers[tried]();
        const Tensor workspace = empty({std::max<int64_t>(algorithm.workspace_bytes, 1)}, DType::uint8);
        const auto run = [&] { algorithm.run(cuda::queue_on(0), task.inputs, task.outputs, workspace.mutable_view().data); };
        poison(first);
        run();
        const double error = relative_error(problem_.sample_outputs(first), reference);
        if (!(error <= largest_error(row_.dtype))) {
          ++wrong;
          best_error = best ? best_error : error;
          continue;
        }
        double seconds = HUGE_VAL;
        for (int i = 0; i < 3; ++i) {
          cuda::Event begin(0), stop(0);
          begin.record();
          run();
          stop.record();
          stop.synchronize();
          seconds = std::min(seconds, cuda::seconds_between(begin, stop));
        }
        if (seconds >= best_seconds) continue;
        best_seconds = seconds;
        best_error = error;
        best = std::move(algorithm);
        best_workspace = workspace;
      } catch (const std::exception& error) {
        refusal = error.what();
        check_device();
      }
    }
    if (wrong > 0) result_.note(str(wrong, " of the vendor's algorithms were wrong or wrote not everything (error ", best_error, ")"));
    if (!best) {
      result_.set("vendor_algorithm", refusal.empty() ? "none fits" : str("none: ", refusal.substr(0, 100)));
      return {};
    }
    result_.set("vendor_algorithm", str(best->name, ", best of ", tried, tried < makers.size() ? str(" (of ", makers.size(), ", time was up)") : ""));
    result_.set("error_vendor", best_error);
    result_.set("vendor_workspace_mb", static_cast<double>(best->workspace_bytes) / 1e6);
    std::vector<Work> work;
    for (size_t i = 0; i < inputs_.size(); ++i) {
      Tensors out;
      for (const Tensor& t : first) out.push_back(t.defined() ? copy_of(t) : Tensor());
      const std::vector<Array> in = arrays_of(inputs_[i]), to_fill = arrays_of(out);
      out.push_back(best_workspace);
      work.push_back([run = best->run, in, to_fill, out, workspace = best_workspace.mutable_view().data] {
        run(cuda::queue_on(0), in, to_fill, workspace);
        return out;
      });
    }
    return Shot(std::move(work), false);
  }

  void fill(const Times& ours, const Times& vendors) {
    result_.set("gflop", problem_.flops / 1e9);
    result_.set("mb", problem_.bytes / 1e6);
    if (is_model) {
      for (const char* column : {"ours_us", "ours_p10", "ours_p90", "roof_us", "roof_percent", "tflops", "tbs"}) result_.set(column, "model");
      if (!vendors.samples.empty())
        for (const char* column : {"vendor_us", "vendor_p10", "vendor_p90", "ratio"}) result_.set(column, "model");
      return;
    }
    const double seconds = ours.median();
    result_.set("ours_us", seconds * 1e6);
    result_.set("ours_p10", ours.percentile(0.1) * 1e6);
    result_.set("ours_p90", ours.percentile(0.9) * 1e6);
    result_.set("vendor_us", vendors.median() * 1e6);
    result_.set("vendor_p10", vendors.percentile(0.1) * 1e6);
    result_.set("vendor_p90", vendors.percentile(0.9) * 1e6);
    result_.set("ratio", vendors.median() / seconds);
    if (problem_.flops > 0) result_.set("tflops", problem_.flops / seconds / 1e12);
    if (problem_.bytes > 0) result_.set("tbs", problem_.bytes / seconds / 1e12);
    const double by_flops = problem_.flops / ceilings_.of(row_.dtype), by_bytes = problem_.bytes / ceilings_.copy;
    const double roof = std::max(by_flops, by_bytes);
    result_.set("roof_us", roof * 1e6);
    result_.set("roof_percent", 100 * roof / seconds);
    result_.set("bound", by_flops > by_bytes ? "operations" : "memory");
  }

  const Row& row_;
  const Options& options_;
  const Machine& machine_;
  const Ceilings& ceilings_;
  Vendor* vendor_;
  std::atomic<Stage>& stage_;
  Problem problem_;
  Result result_;
  std::vector<Tensors> inputs_;
  Tensors outputs_;
  double output_bytes_ = 0;
};

constexpr int good = 0, bad_row = 1, start_again = 3;                // also what the program ends with

// The row ends the program, which has to be started again. In the vendor's stage its note is left: the next run measures the row without the vendor.
int give_up(const Row& row, const Options& options, const RowNote& note, Stage stage, const std::string& why) {
  const std::string sentence = str(why, " (in ", stage_names[static_cast<int>(stage)], ")");
  std::printf("%s: %s\n", row.key().c_str(), sentence.c_str());
  std::fflush(stdout);
  if (stage == Stage::vendor) return start_again;
  Result result(row);
  result.set("commit", options.commit);
  result.note(str("ours: ", sentence));
  append(options.out, result);
  note.remove();
  return start_again;
}

// A line for the row whatever happens: an error is noted in it. Says `good`, `bad_row` or `start_again`.
int measure(const Row& row, const Options& options, const Machine& machine, const Ceilings& ceilings, Vendor* vendor) {
  const RowNote note(options.out);
  note.write(row.key(), vendor != nullptr);
  std::atomic<Stage> stage = Stage::reference;
  Result result(row);
  bool is_good = true;
  try {
    const Watchdog watchdog(options.row_seconds, [&] {
      std::_Exit(give_up(row, options, note, stage, str("not finished after ", options.row_seconds, " s")));
    });
    result = Measurement(row, options, machine, ceilings, vendor, stage).run();
    is_good = result.get("note").find("OURS IS WRONG") == std::string::npos;
  } catch (const DeviceLost& error) {
    return give_up(row, options, note, stage, str("the device is lost: ", error.what()));
  } catch (const std::exception& error) {
    result.set("commit", options.commit);
    result.note(str("ours: ", error.what()));
    is_good = false;
  }
  try {
    check_device();
  } catch (const DeviceLost& error) {
    return give_up(row, options, note, stage, str("the device is lost: ", result.get("note").empty() ? error.what() : result.get("note")));
  }
  append(options.out, result);
  note.remove();
  std::printf("%s %s %s %s %s: ours %s us, %s %s us, ratio %s, %s %% of the roof, error %s, %s%s%s\n", row.op.c_str(), row.direction.c_str(), row.dtype.c_str(),
              row.layout.c_str(), row.dims.c_str(), result.get("ours_us").c_str(), result.get("vendor").c_str(), result.get("vendor_us").c_str(),
              result.get("ratio").c_str(), result.get("roof_percent").c_str(), result.get("error_ours").c_str(), result.get("kernel").c_str(),
              result.get("note").empty() ? "" : "; ", result.get("note").c_str());
  std::fflush(stdout);
  return is_good ? good : bad_row;
}

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    const auto value = [&]() -> std::string {
      check<ValueError>(i + 1 < argc, name, " needs a value");
      return argv[++i];
    };
    if (name == "--family") options.family = value();
    else if (name == "--filter") options.filter = value();
    else if (name == "--shapes") options.shapes = value();
    else if (name == "--out") options.out = value();
    else if (name == "--machine") options.machine = value();
    else if (name == "--commit") options.commit = value();
    else if (name == "--vendor") options.vendor = value();
    else if (name == "--tier") options.tier = std::stoi(value());
    else if (name == "--minutes") options.minutes = std::stod(value());
    else if (name == "--seconds") options.seconds = std::stod(value());
    else if (name == "--search") options.search = std::stod(value());
    else if (name == "--row-seconds") options.row_seconds = std::stod(value());
    else if (name == "--ceilings") options.only_ceilings = true;
    else if (name == "--skip-done") options.skips_done = true;
    else if (name == "--check-vendor") options.checks_vendor = true;
    else fail<ValueError>("unknown option ", name, "\nusage: fovea_cuda_bench --shapes DIR --family NAME [--filter TEXT] [--tier 1|2|3] [--minutes M] [--out results.csv]\n"
                          "       [--machine machine.csv] [--vendor auto|none|self] [--seconds per row and side] [--search seconds for a vendor's algorithms]\n"
                          "       [--skip-done] [--row-seconds at most for one row] [--commit C], or --ceilings --machine machine.csv,\n"
                          "       or --check-vendor --shapes DIR --family NAME [--filter TEXT] [--tier T] [--search seconds]");
  }
  return options;
}

int run(const Options& options) {
  if (options.checks_vendor) return check_vendor(options);
  check<DeviceError>(cuda::device_count() > 0, "no CUDA device on this machine; what can be tried without one: benchmarks/run_gpu.sh --dry-run");
  set_default_device(Device::cuda(0));
  const bool has_vendor = options.vendor == "auto" && !is_model;
  std::string missing;
  const bool is_product = options.only_ceilings || options.family == "gemm";
  std::unique_ptr<Vendor> vendor = has_vendor ? load_vendor(module_of(is_product ? "gemm" : options.family), true, missing) : nullptr;
  if (has_vendor && !vendor) std::printf("no vendor to compare with: %s\n", missing.c_str());
  const Machine machine = this_machine();
  Ceilings ceilings;
  if (options.only_ceilings || options.machine.empty() || !read_ceilings(options.machine, ceilings)) {
    ceilings = measure_ceilings(is_product ? vendor.get() : nullptr);
    if (!options.machine.empty()) write_ceilings(options.machine, machine, ceilings, options.commit);
  }
  if (options.only_ceilings) return 0;
  const std::set<std::string> done = options.skips_done ? keys_in(options.out) : std::set<std::string>();
  const std::string ended_in = options.skips_done ? RowNote(options.out).read() : "";
  const double end = now() + 60 * options.minutes;
  int bad = 0, left = 0;
  for (const Row& row : read_rows(options.shapes + "/" + options.family + ".csv", options.family, options.tier)) {
    if (done.count(row.key()) || !is_wanted(row, options)) continue;
    if (now() > end) {
      ++left;
      continue;
    }
    if (ended_in == "without " + row.key()) {
      give_up(row, options, RowNote(options.out), Stage::ours, "the program ended in this row, also without a vendor");
      ++bad;
      continue;
    }
    const int status = measure(row, options, machine, ceilings, ended_in == "with " + row.key() ? nullptr : vendor.get());
    if (status == start_again) std::_Exit(start_again);            // nothing can be freed on a device that is lost
    bad += status == bad_row;
    cuda::allocator::clear();
  }
  if (left > 0) std::printf("%s: time was up, %d rows were not measured\n", options.family.c_str(), left);
  return bad > 0 ? bad_row : good;
}

}  // namespace
}  // namespace fovea::benchmarks

int main(int argc, char** argv) {
  try {
    return fovea::benchmarks::run(fovea::benchmarks::parse(argc, argv));
  } catch (const std::exception& error) {
    std::cerr << "fovea_cuda_bench: " << error.what() << "\n";
    return 2;
  }
}
