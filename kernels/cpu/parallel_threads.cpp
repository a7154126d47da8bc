// parallel_for on a pool of our own threads: where OpenMP is missing, and under the thread sanitizer, which cannot see into OpenMP's runtime.
#include <fovea/kernels/cpu/parallel.h>

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include <fovea/kernels/error.h>

namespace fovea {
namespace {

thread_local bool is_serial = false;

struct Job {
  int64_t count;
  void (*task)(const void*, int64_t);
  const void* context;
  std::atomic<int64_t> next{0};
  std::exception_ptr error;
  std::mutex error_mutex;

  void run() {
    for (int64_t i; (i = next.fetch_add(1)) < count;) {
      try {
        task(context, i);
      } catch (...) {
        std::lock_guard lock(error_mutex);
        if (!error) error = std::current_exception();
      }
    }
  }
};

class Pool {
 public:
  ~Pool() {
    {
      std::lock_guard lock(mutex_);
      is_stopping_ = true;
    }
    wake_.notify_all();
    for (std::thread& t : threads_) t.join();
  }

  void run(Job& job, int helpers) {
    std::unique_lock caller(callers_);                     // one job at a time
    {
      std::lock_guard lock(mutex_);
      while (static_cast<int>(threads_.size()) < helpers) threads_.emplace_back([this] { work(); });
      job_ = &job;
      wanted_ = helpers;
    }
    wake_.notify_all();
    job.run();
    std::unique_lock lock(mutex_);
    wanted_ = 0;
    done_.wait(lock, [&] { return active_ == 0; });
    job_ = nullptr;
  }

 private:
  void work() {
    is_serial = true;
    std::unique_lock lock(mutex_);
    while (true) {
      wake_.wait(lock, [&] { return is_stopping_ || wanted_ > 0; });
      if (is_stopping_) return;
      --wanted_;
      ++active_;
      Job* job = job_;
      lock.unlock();
      job->run();
      lock.lock();
      if (--active_ == 0) done_.notify_all();
    }
  }

  std::mutex callers_, mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> threads_;
  Job* job_ = nullptr;
  int wanted_ = 0, active_ = 0;
  bool is_stopping_ = false;
};

Pool& pool() {
  static Pool instance;
  return instance;
}

std::atomic<int>& thread_limit() {
  static std::atomic<int> limit{[] {
    const char* wish = std::getenv("OMP_NUM_THREADS");
    const int threads = wish ? std::atoi(wish) : static_cast<int>(std::thread::hardware_concurrency());
    return threads > 0 ? threads : 1;
  }()};
  return limit;
}

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
  if (threads == 1 || is_serial) {
    for (int64_t i = 0; i < count; ++i) task(context, i);
    return;
  }
  Job job{count, task, context, {}, {}, {}};
  SerialScope no_nesting;
  pool().run(job, threads - 1);
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace fovea
