// parallel_for and the threads behind it.
#include <doctest/doctest.h>

#include <atomic>
#include <stdexcept>
#include <thread>
#include <vector>

#include <fovea/kernels/cpu/parallel.h>
#include <fovea/kernels/error.h>

#include "tensor_helpers.h"

using namespace fovea;
using namespace fovea::testing;
using kernels::parallel_for;

namespace {

// How often each of n elements was met; pieces that are empty, or longer than the grain, count as a mistake.
std::vector<int> visits(int64_t n, int64_t grain) {
  std::vector<std::atomic<int>> met(static_cast<size_t>(n));
  std::atomic<int> mistakes{0};
  parallel_for(n, grain, [&](int64_t begin, int64_t end) {
    if (begin >= end || end - begin > std::max<int64_t>(grain, 1) || begin % std::max<int64_t>(grain, 1) != 0) ++mistakes;
    for (int64_t i = begin; i < end; ++i) ++met[static_cast<size_t>(i)];
  });
  CHECK(mistakes == 0);
  return {met.begin(), met.end()};
}

}  // namespace

TEST_CASE("parallel_for: every element is met once, in the same pieces for every number of threads") {
  for (const int threads : {1, 2, 5})
    for (const int64_t n : {0, 1, 7, 1000})
      for (const int64_t grain : {0, 1, 3, 64, 5000}) {
        const Threads several(threads);
        CAPTURE(threads);
        CAPTURE(n);
        CAPTURE(grain);
        CHECK(visits(n, grain) == std::vector<int>(static_cast<size_t>(n), 1));
      }
}

TEST_CASE("parallel_for: what a task throws is thrown to the caller, and the next job runs as ever") {
  const Threads several(4);
  for (int time = 0; time < 50; ++time) {
    CHECK_THROWS_AS(parallel_for(100, 1, [](int64_t i, int64_t) { if (i == 57) throw std::out_of_range("57"); }), std::out_of_range);
    CHECK(visits(100, 1) == std::vector<int>(100, 1));
  }
}

TEST_CASE("parallel_for: one inside a task, and one under a SerialScope, runs on the thread that calls it") {
  const Threads several(4);
  const auto stays_here = [] {
    const std::thread::id here = std::this_thread::get_id();
    std::atomic<bool> stays{true};
    parallel_for(64, 1, [&](int64_t, int64_t) {
      if (std::this_thread::get_id() != here) stays = false;
    });
    return stays.load();
  };
  std::atomic<int> inside{0};
  parallel_for(32, 1, [&](int64_t, int64_t) { inside += stays_here(); });
  CHECK(inside == 32);
  const SerialScope serial;
  CHECK(stays_here());
}

TEST_CASE("parallel_for: several threads may call it at once") {
  const Threads several(3);
  std::atomic<int> right{0};
  std::vector<std::thread> callers;
  for (int c = 0; c < 4; ++c)
    callers.emplace_back([&] {
      for (int time = 0; time < 200; ++time) {
        std::atomic<int64_t> sum{0};
        parallel_for(100, 3, [&](int64_t begin, int64_t end) { sum += end - begin; });
        right += sum == 100;
      }
    });
  for (std::thread& caller : callers) caller.join();
  CHECK(right == 4 * 200);
}

TEST_CASE("set_num_threads refuses what is not a number of threads") {
  const int before = num_threads();
  CHECK(contains(error_of<ValueError>([] { set_num_threads(0); }), "takes 1 to 1024, got 0"));
  CHECK(contains(error_of<ValueError>([] { set_num_threads(1025); }), "takes 1 to 1024, got 1025"));
  CHECK(num_threads() == before);
}
