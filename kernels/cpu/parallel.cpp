// parallel_for on a pool of our own threads.
//
// Note [A caller waits for tasks, not for threads]
// Tasks are handed out one at a time, and the caller takes its share. Once none is left it waits for the helpers that are inside one, and for nobody else: a helper
// that the system has not given a core yet (another program, a data loader's worker) misses the job instead of holding it up.
//
// Note [Helpers stay awake for a while]
// The next job mostly follows within a millisecond, and a thread that has slept is slow to come: the system may wake it on its caller's core, where the two share
// the time of one (seen to halve the speed of a whole run). So helpers look for work for some milliseconds before they sleep, and soon offer their core to
// whoever else wants it between two looks.
#include <fovea/kernels/cpu/parallel.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include <fovea/kernels/error.h>

namespace fovea {
namespace {

thread_local bool is_serial = false;

constexpr int most_threads = 1024;
constexpr int spins_before_yield = 500;                    // of about 40 cycles: some 6 microseconds
constexpr std::chrono::milliseconds awake_time{3};         // after the last job

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

void relax_or_yield(int spins) {
  if (spins < spins_before_yield) relax();
  else std::this_thread::yield();
}

class Pool {
 public:
  ~Pool() {
    is_stopping_ = true;
    ++generation_;
    generation_.notify_all();
    for (std::thread& t : threads_) t.join();
  }

  void run(int64_t count, void (*task)(const void*, int64_t), const void* context, int helpers) {
    std::unique_lock one_at_a_time(callers_, std::try_to_lock);
    if (!one_at_a_time) {                                  // another thread has the helpers: do without them
      for (int64_t i = 0; i < count; ++i) task(context, i);
      return;
    }
    start_helpers(helpers);
    count_ = count;
    task_ = task;
    context_ = context;
    helpers_ = helpers;
    error_ = nullptr;
    next_ = 0;
    is_open_ = true;
    ++generation_;
    generation_.notify_all();
    take_tasks();
    is_open_ = false;                                      // from here on nobody joins; see help()
    for (int spins = 0; inside_ != 0; ++spins) relax_or_yield(spins);
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

 private:
  void start_helpers(int wanted) {
    try {
      while (static_cast<int>(threads_.size()) < wanted) threads_.emplace_back([this, id = static_cast<int>(threads_.size())] { help(id); });
    } catch (const std::system_error&) {}                  // the system has no more threads: those that are there do the work
  }

  void take_tasks() {
    for (int64_t i; (i = next_.fetch_add(1)) < count_;) {
      try {
        task_(context_, i);
      } catch (...) {
        std::lock_guard lock(error_mutex_);
        if (!error_) error_ = std::current_exception();
      }
    }
  }

  void help(int id) {
    is_serial = true;                                      // a parallel_for inside a task runs on its own thread
    uint32_t seen = 0;
    while (!is_stopping_) {
      wait_for_change(seen);
      seen = generation_;
      // Joining comes before looking whether the job is open, closing before looking whether anyone has joined: so either the caller sees us or we see it closed.
      ++inside_;
      if (is_open_ && id < helpers_) take_tasks();
      --inside_;
    }
  }

  void wait_for_change(uint32_t seen) {
    const auto bedtime = std::chrono::steady_clock::now() + awake_time;
    for (int spins = 0; spins < spins_before_yield || std::chrono::steady_clock::now() < bedtime; ++spins) {
      if (generation_ != seen) return;
      relax_or_yield(spins);
    }
    generation_.wait(seen);
  }

  std::mutex callers_, error_mutex_;
  std::vector<std::thread> threads_;
  std::atomic<uint32_t> generation_{0};
  std::atomic<bool> is_open_{false}, is_stopping_{false};
  std::atomic<int> inside_{0};
  std::atomic<int64_t> next_{0};
  std::exception_ptr error_;

  // The job; written while it is closed and nobody is inside.
  int64_t count_ = 0;
  void (*task_)(const void*, int64_t) = nullptr;
  const void* context_ = nullptr;
  int helpers_ = 0;
};

Pool& pool() {
  static Pool instance;
  return instance;
}

std::atomic<int>& thread_limit() {
  static std::atomic<int> limit{[] {
    const char* wish = std::getenv("FOVEA_NUM_THREADS");
    if (!wish) wish = std::getenv("OMP_NUM_THREADS");      // the name that many programs share
    const int threads = wish ? std::atoi(wish) : static_cast<int>(std::thread::hardware_concurrency());
    return std::clamp(threads, 1, most_threads);
  }()};
  return limit;
}

}  // namespace

int num_threads() { return thread_limit(); }

void set_num_threads(int threads) {
  check<ValueError>(threads >= 1 && threads <= most_threads, "set_num_threads: takes 1 to ", most_threads, ", got ", threads);
  thread_limit() = threads;
}

SerialScope::SerialScope() : was_serial_(is_serial) { is_serial = true; }
SerialScope::~SerialScope() { is_serial = was_serial_; }

void kernels::parallel_tasks(int64_t count, void (*task)(const void*, int64_t), const void* context) {
  const int threads = static_cast<int>(std::min<int64_t>(num_threads(), count));
  if (threads == 1 || is_serial) {
    for (int64_t i = 0; i < count; ++i) task(context, i);
    return;
  }
  SerialScope no_nesting;
  pool().run(count, task, context, threads - 1);
}

}  // namespace fovea
