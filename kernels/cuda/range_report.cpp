#include <fovea/kernels/cuda/range_report.h>

#include <array>
#include <atomic>
#include <mutex>
#include <new>

#include <fovea/kernels/cuda/core/check.h>
#include <fovea/kernels/cuda/streams.h>

namespace fovea::kernels::cuda {
namespace {

// Null until a check has been launched there. The reports are never freed: kernels may write to them until the process ends.
std::array<std::atomic<RangeReport*>, fovea::cuda::detail::max_devices> reports{};

std::mutex& taking() {
  static std::mutex& mutex = *new std::mutex;
  return mutex;
}

}  // namespace

RangeReport* range_report_of(int device) {
  std::atomic<RangeReport*>& report = reports[static_cast<size_t>(device)];
  if (RangeReport* made = report.load(std::memory_order_acquire)) return made;
  const std::lock_guard lock(taking());
  if (RangeReport* made = report.load(std::memory_order_acquire)) return made;
  void* memory = nullptr;
  check_cuda(cudaMallocHost(&memory, sizeof(RangeReport)), "cuda:", device, ": pinned memory for reports of values out of range");
  RangeReport* made = new (memory) RangeReport{RangeReport::empty, 0, 0, RangeCheck("", "", 0, 0, ""), {}};
  report.store(made, std::memory_order_release);
  return made;
}

void throw_reported(int device) {
  RangeReport* report = reports[static_cast<size_t>(device)].load(std::memory_order_acquire);
  if (!report) return;
  const std::atomic_ref<unsigned> state(report->state);
  if (state.load(std::memory_order_acquire) != RangeReport::complete) [[likely]] return;
  std::string sentence;
  {
    const std::lock_guard lock(taking());                     // another thread may have waited too: one of them throws
    if (state.load(std::memory_order_acquire) != RangeReport::complete) return;
    sentence = sentence_of(report->check, report->position, report->value, report->shape);
    state.store(RangeReport::empty, std::memory_order_release);
  }
  fail<IndexError>(sentence, " (found on cuda:", device, " by work queued earlier)");
}

}  // namespace fovea::kernels::cuda
