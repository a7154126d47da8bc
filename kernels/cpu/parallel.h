// One way to use threads: parallel_for, on a pool of our own (parallel.cpp).
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <type_traits>

namespace fovea {

int num_threads();                           // at most this many threads work at once; FOVEA_NUM_THREADS, else OMP_NUM_THREADS, else the number of cores
void set_num_threads(int threads);           // ValueError below 1 and above 1024

// While one is alive, parallel_for of this thread runs on this thread alone (for worker threads that already run beside each other).
class SerialScope {
 public:
  SerialScope();
  ~SerialScope();
  SerialScope(const SerialScope&) = delete;
  SerialScope& operator=(const SerialScope&) = delete;

 private:
  bool was_serial_;
};

namespace kernels {

// Runs task(context, i) for i in [0, count), spread over the threads. An exception of a task is thrown again here.
void parallel_tasks(int64_t count, void (*task)(const void* context, int64_t i), const void* context);

// Calls f(begin, end) on pieces of [0, n) of `grain` elements (the last one may be shorter). Pieces do not depend on the number of threads, so neither does a
// sum that f makes of a piece.
template <class F>
void parallel_for(int64_t n, int64_t grain, const F& f) {
  grain = std::max<int64_t>(grain, 1);
  if (n <= grain) {
    if (n > 0) f(int64_t{0}, n);
    return;
  }
  struct Context { const F& f; int64_t n, grain; } context{f, n, grain};
  parallel_tasks((n + grain - 1) / grain, [](const void* c, int64_t i) {
    const Context& x = *static_cast<const Context*>(c);
    x.f(i * x.grain, std::min(x.n, (i + 1) * x.grain));
  }, &context);
}

// Runs f(worker, task) for every task in [0, tasks), each on one of at most `workers` threads: whoever is free takes the next task. worker < workers names the
// thread's own scratch memory.
template <class F>
void parallel_workers(int64_t workers, int64_t tasks, const F& f) {
  std::atomic<int64_t> next{0};
  parallel_for(std::min(workers, tasks), 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker)
      for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) f(worker, task);
  });
}

}  // namespace kernels
}  // namespace fovea
