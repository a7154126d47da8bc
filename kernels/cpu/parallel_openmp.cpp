// parallel_for on OpenMP.
#include <fovea/kernels/cpu/parallel.h>

#include <omp.h>

#include <atomic>
#include <exception>

#include <fovea/kernels/error.h>

namespace fovea {
namespace {

std::atomic<int>& thread_limit() {
  static std::atomic<int> limit{omp_get_max_threads()};
  return limit;
}

thread_local bool is_serial = false;

}  // namespace

int num_threads() { return thread_limit(); }

void set_num_threads(int threads) {
  check<ValueError>(threads >= 1, "set_num_threads: takes at least 1, got ", threads);
  thread_limit() = threads;
}

SerialScope::SerialScope() : was_serial_(is_serial) { is_serial = true; }
SerialScope::~SerialScope() { is_serial = was_serial_; }

void kernels::parallel_tasks(int64_t count, void (*task)(const void*, int64_t), const void* context) {
  const int threads = static_cast<int>(std::min<int64_t>(num_threads(), count));
  if (threads == 1 || is_serial || omp_in_parallel()) {
    for (int64_t i = 0; i < count; ++i) task(context, i);
    return;
  }
  std::exception_ptr error;                  // an exception must not leave an OpenMP region
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (int64_t i = 0; i < count; ++i) {
    try {
      task(context, i);
    } catch (...) {
#pragma omp critical(fovea_parallel_error)
      if (!error) error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace fovea
