// The runtime where several streams, threads or recorded graphs share a device: who may have which memory when, and what is left after an error. On a GPU and over
// the model of CUDA; cuda_test.cpp has what one stream does.
#include <doctest/doctest.h>
#include <fovea/kernels/cuda/streams.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <set>
#include <stdexcept>
#include <thread>

#include "cuda_device.h"

using namespace fovea;
using namespace fovea::testing;

namespace {

bool is_all(const Tensor& x, double value) { return all(eq(x, value)).item<bool>(); }

constexpr int64_t elements = 30000;          // of the tensors below: one size class

// The addresses of so many blocks of that class, held at once.
std::set<const void*> addresses(int count) {
  std::vector<Tensor> held;
  std::set<const void*> all;
  for (int i = 0; i < count; ++i) {
    held.push_back(empty({elements}, gpu));
    all.insert(memory_of(held.back()));
  }
  return all;
}

}  // namespace

// --- memory between streams ---

TEST_CASE("cuda: memory freed on one stream is not written by another before the first is done with it") {
  if (!has_device()) return;
  const RealAllocator real;
  const cuda::Stream first, second;
  for (int round = 0; round < 10; ++round) {
    Tensor y, other;
    {
      const cuda::StreamScope scope(first);
      Tensor x = full({elements}, round, gpu);
      for (int i = 0; i < 3; ++i) x = x + 1;                 // each frees the one before
      y = x * 2;
    }                                                        // the last x is free, and y perhaps not yet computed from it
    {
      const cuda::StreamScope scope(second);
      other = full({elements}, -1, gpu);
      CHECK(is_all(other, -1));
    }
    const cuda::StreamScope scope(first);
    CHECK(is_all(y, 2 * (round + 3)));
  }
}

TEST_CASE("cuda: memory announced to a second stream stays until that has read it, wherever it is freed") {
  if (!has_device()) return;
  const RealAllocator real;
  const cuda::Stream first, second;
  for (int round = 0; round < 10; ++round) {
    Tensor x, y, other;
    {
      const cuda::StreamScope scope(first);
      x = full({elements}, round, gpu);
      cuda::Event is_made;
      is_made.record();
      second.wait(is_made);
    }
    {
      const cuda::StreamScope scope(second);
      cuda::record_use(memory_of(x), second);
      y = x + 5;
    }
    {
      const cuda::StreamScope scope(first);
      x = {};                                                // on its own stream, while the second may not have begun
      other = full({elements}, -1, gpu);
      CHECK(is_all(other, -1));
    }
    const cuda::StreamScope scope(second);
    CHECK(is_all(y, round + 5));
  }
  CHECK_THROWS_WITH_AS(cuda::record_use(&first, second), doctest::Contains("no memory that a tensor on cuda:0 holds"), ValueError);
}

TEST_CASE("cuda: two threads on streams of their own allocate, compute, exchange tensors and free what the other made") {
  if (!has_device()) return;
  const RealAllocator real;
  constexpr int rounds = 12;
  const int64_t before = cuda::allocator::stats().active_bytes;
  struct Handover {
    Tensor tensor;
    std::optional<cuda::Event> is_made;
    std::atomic<bool> is_there{false};
  };
  std::vector<Handover> to_first(rounds), to_second(rounds);
  std::atomic<int> wrong{0}, failed{0};
  const auto work = [&](std::vector<Handover>& out, std::vector<Handover>& in, int sign) {
    try {
      const cuda::Stream stream;
      const cuda::StreamScope scope(stream);
      for (int i = 0; i < rounds; ++i) {
        Tensor made = full({elements}, sign * i, gpu) + 1;
        out[static_cast<size_t>(i)].tensor = made;
        out[static_cast<size_t>(i)].is_made.emplace().record();
        out[static_cast<size_t>(i)].is_there = true;
        Handover& next = in[static_cast<size_t>(i)];
        while (!next.is_there) std::this_thread::yield();
        stream.wait(*next.is_made);
        Tensor theirs = std::move(next.tensor);
        cuda::record_use(memory_of(theirs), stream);
        const Tensor sum_of_both = made + theirs;            // sign * i + 1 - sign * i + 1
        made = {}, theirs = {};
        const Tensor junk = full({elements}, 1000 + i, gpu); // in whatever memory is free
        if (!is_all(sum_of_both, 2) || !is_all(junk, 1000 + i)) ++wrong;
      }
      stream.synchronize();
    } catch (...) {
      ++failed;
      for (Handover& each : out) each.is_there = true;       // the other must not wait for ever
    }
  };
  std::thread first([&] { work(to_second, to_first, 1); }), second([&] { work(to_first, to_second, -1); });
  first.join(), second.join();
  CHECK(failed == 0);
  CHECK(wrong == 0);
  to_first.clear(), to_second.clear();
  CHECK(cuda::allocator::stats().active_bytes == before);
  cuda::allocator::clear();
  CHECK(cuda::allocator::stats().cached_bytes == 0);
}

TEST_CASE("cuda: threads have their own current stream, latest kernel and current device") {
  if (!has_device()) return;
  const cuda::Stream stream;
  const cuda::StreamScope scope(stream);
  softmax(ones({3, 4}, gpu), 1);
  const std::string here = cuda::last_kernel();
  std::thread([&] {
    CHECK(std::string(cuda::last_kernel()).empty());
    CHECK(cuda::last_launch().name.empty());
    CHECK(cuda::last_launch().registers == 0);
    CHECK(cuda::current_stream() == cuda::Stream::default_of());
    exp(ones({3}, gpu));
    CHECK(cuda::last_kernel() != here);
    cuda::synchronize();
  }).join();
  CHECK(cuda::last_kernel() == here);
  CHECK(cuda::current_stream() == stream);
}

// --- events ---

TEST_CASE("cuda: events measure the work between them, and say so when they can't") {
  if (!has_device()) return;
  cuda::Event begin, end, never;
  begin.record();
  Tensor x = full({1 << 18}, 1, gpu);
  for (int i = 0; i < 20; ++i) x = x + 1;
  end.record();
  end.synchronize();
  CHECK(cuda::seconds_between(begin, end) > 0);
  CHECK(cuda::seconds_between(begin, end) < 60);
  CHECK_THROWS_WITH_AS(cuda::seconds_between(begin, never), doctest::Contains("must be recorded and have passed"), DeviceError);
  CHECK(is_all(x, 21));
}

// --- copies ---

TEST_CASE("cuda: a copy from pinned memory that is not to wait doesn't, and one that is to wait does") {
  if (!has_device()) return;
  Tensor staged = pinned(full({elements}, 1, cpu)), there;
  cuda::synchronize();
  cuda::Graph graph([&] { there = to(staged, gpu, true); }); // what waits can't be recorded
  graph.replay();
  CHECK(is_all(there, 1));
  fill_(staged, 2);
  graph.replay();                                            // it reads the memory as it is when the stream comes that far
  CHECK(is_all(there, 2));
  CHECK_THROWS_AS(cuda::Graph([&] { to(staged, gpu); }), DeviceError);
  CHECK(is_all(to(staged, gpu), 2));
}

TEST_CASE("cuda: a copy to pinned memory arrives by the time of an event after it") {
  if (!has_device()) return;
  const Tensor x = full({elements}, 3, gpu) + 1;
  void* memory = cuda::allocate_pinned(x.nbytes());
  cuda::copy_bytes(memory, cpu, memory_of(x), gpu, x.nbytes(), true);
  cuda::Event has_arrived;
  has_arrived.record();
  has_arrived.synchronize();
  const float* values = static_cast<const float*>(memory);
  CHECK(std::all_of(values, values + elements, [](float v) { return v == 4; }));
  cuda::release_pinned(memory, x.nbytes());
}

TEST_CASE("cuda: pinned memory is counted and cached, given back by clear_pinned(), and running out of it is an error like any other") {
  if (!has_device()) return;
  cuda::allocator::clear_pinned();
  CHECK(cuda::allocator::pinned_stats().cached_bytes == 0);
  const AllocatorStats before = cuda::allocator::pinned_stats();
  constexpr int64_t bytes = 100000;
  void* block = cuda::allocate_pinned(bytes);
  CHECK(cuda::allocator::pinned_stats().active_bytes >= before.active_bytes + bytes);
  CHECK(contains(testing::error_of<MemoryError>([] { cuda::allocate_pinned(int64_t{1} << 50); }), "no 1024.0 TiB that can be pinned, beside the"));
  cuda::release_pinned(block, bytes);
  CHECK(cuda::allocator::pinned_stats().active_bytes == before.active_bytes);
  CHECK(cuda::allocator::pinned_stats().cached_bytes >= bytes);
  CHECK(cuda::allocate_pinned(bytes) == block);
  CHECK(cuda::allocator::pinned_stats().cache_hits == before.cache_hits + 1);
  const Tensor there = full({bytes / 4}, 7, gpu);
  cuda::copy_bytes(block, cpu, memory_of(there), gpu, bytes, true);
  cuda::release_pinned(block, bytes);                        // while the copy may be under way
  cuda::allocator::clear_pinned();
  CHECK(cuda::allocator::pinned_stats().cached_bytes == 0);
  CHECK(is_all(there, 7));
}

// --- graphs: memory ---

TEST_CASE("cuda: what was freed while a graph was recorded is nobody else's while the graph lives, and everybody's afterwards") {
  if (!has_device()) return;
  const RealAllocator real;
  Tensor x = full({elements}, 3, gpu);
  const Tensor result = full({elements}, 0, gpu);
  cuda::synchronize();
  std::set<const void*> recorded;
  std::optional<cuda::Graph> graph(std::in_place, [&] {
    const Tensor y = x + 1;
    const Tensor z = y * 2;
    recorded = {memory_of(x), memory_of(y), memory_of(z)};
    copy_(result, z);
    x = {};                                                  // made before on another stream, and read by every run
  });
  for (const void* address : addresses(20)) CHECK_FALSE(recorded.contains(address));
  cuda::allocator::clear();                                  // gives back what is not the graph's
  CHECK(cuda::allocator::stats().cached_bytes > 0);
  const std::vector<Tensor> others = {full({elements}, -1, gpu), full({elements}, -2, gpu), full({elements}, -3, gpu)};
  graph->replay();
  CHECK(is_all(result, 8));
  for (int i = 0; i < 3; ++i) CHECK(is_all(others[static_cast<size_t>(i)], -1 - i));
  graph.reset();
  const std::set<const void*> after = addresses(20);
  for (const void* address : recorded) CHECK(after.contains(address));
  cuda::allocator::clear();
  CHECK(cuda::allocator::stats().cached_bytes == 0);
}

TEST_CASE("cuda: pinned memory that a graph copies from is nobody else's while the graph lives, whenever it is freed") {
  if (!has_device()) return;
  const Tensor there = full({elements}, 0, gpu);
  cuda::synchronize();
  for (const bool is_freed_inside : {true, false}) {
    cuda::allocator::clear_pinned();
    float* const block = static_cast<float*>(cuda::allocate_pinned(there.nbytes()));
    std::fill(block, block + elements, 5.0f);
    std::optional<cuda::Graph> graph(std::in_place, [&] {
      cuda::copy_bytes(there.mutable_view().data, gpu, block, cpu, there.nbytes(), true);
      if (is_freed_inside) cuda::release_pinned(block, there.nbytes());
    });
    if (!is_freed_inside) cuda::release_pinned(block, there.nbytes());
    cuda::allocator::clear_pinned();                         // gives back what is not the graph's
    CHECK(cuda::allocator::pinned_stats().cached_bytes >= there.nbytes());
    void* const other = cuda::allocate_pinned(there.nbytes());
    CHECK(other != block);
    cuda::release_pinned(other, there.nbytes());
    fill_(there, 0);
    graph->replay();
    CHECK(is_all(there, 5));
    graph.reset();
    cuda::allocator::clear_pinned();
    CHECK(cuda::allocator::pinned_stats().cached_bytes == 0);
  }
}

TEST_CASE("cuda: a tensor made while a graph was recorded outlives the graph") {
  if (!has_device()) return;
  const RealAllocator real;
  const Tensor x = full({elements}, 3, gpu);
  cuda::synchronize();
  Tensor y;
  {
    cuda::Graph graph([&] { y = x + 1; });
    graph.replay();
  }
  CHECK(is_all(y, 4));
  const void* memory = memory_of(y);
  y = {};
  cuda::synchronize();
  CHECK(addresses(20).contains(memory));
}

TEST_CASE("cuda: a copy of a graph keeps it, and the last one frees its memory") {
  if (!has_device()) return;
  const RealAllocator real;
  const Tensor x = full({elements}, 3, gpu), result = full({elements}, 0, gpu);
  cuda::synchronize();
  std::optional<cuda::Graph> graph(std::in_place, [&] { copy_(result, x + 1); });
  std::optional<cuda::Graph> copy = graph;
  graph.reset();
  copy->replay();
  CHECK(is_all(result, 4));
  copy.reset();
  cuda::allocator::clear();
  CHECK(cuda::allocator::stats().cached_bytes == 0);
}

// --- graphs: errors ---

TEST_CASE("cuda: an exception out of the work that is recorded leaves everything as it was") {
  if (!has_device()) return;
  const RealAllocator real;
  const cuda::Stream stream;
  const cuda::StreamScope scope(stream);
  const Tensor x = full({elements}, 3, gpu);
  cuda::synchronize();
  manual_seed(4);
  const AllocatorStats before = cuda::allocator::stats();
  const auto record = [&](bool fails, Tensor& result) {
    return cuda::Graph([&] {
      const Tensor y = x + rand({elements}, gpu);
      if (fails) throw std::runtime_error("in the middle");
      result = y - y + x;
    });
  };
  Tensor result;
  CHECK_THROWS_WITH_AS(record(true, result), "in the middle", std::runtime_error);
  CHECK(cuda::current_stream() == stream);
  CHECK(default_generator().offset() == 0);
  CHECK(cuda::allocator::stats().active_bytes == before.active_bytes);
  CHECK(is_all(x + 1, 4));                                   // the stream works
  cuda::Graph graph = record(false, result);                 // and so does recording
  graph.replay();
  CHECK(is_all(result, 3));
  CHECK_THROWS_WITH_AS(cuda::Graph(nullptr), doctest::Contains("the function to record is empty"), ValueError);
}

TEST_CASE("cuda: running out of memory while a graph is recorded is a MemoryError, and a smaller one can be recorded afterwards") {
  if (!has_device()) return;
  const RealAllocator real;
  const Tensor x = full({elements}, 3, gpu);
  { const Tensor cached = empty({1 << 20}, gpu); }           // which can't be given back while a graph is recorded
  cuda::synchronize();
  const AllocatorStats before = cuda::allocator::stats();
  const auto record = [&](int64_t size, Tensor& y) { return cuda::Graph([&, size] { y = sum(full({size}, 1, gpu)) + x; }); };
  Tensor y;
  const std::string message = testing::error_of<MemoryError>([&] { record(int64_t{1} << 46, y); });
  CHECK(contains(message, "cuda:0: out of memory: cannot allocate 256.0 TiB; tensors hold"));
  CHECK(contains(message, "which it cannot give back while a graph is recorded"));
  CHECK(cuda::allocator::stats().cached_bytes >= before.cached_bytes);
  cuda::allocator::set_limit(before.active_bytes + before.cached_bytes + (1 << 20));
  CHECK(contains(testing::error_of<MemoryError>([&] { record(2 << 20, y); }), "set by cuda::allocator::set_limit; tensors hold"));
  cuda::Graph graph = record(10, y);
  graph.replay();
  CHECK(is_all(y, 13));
  // An error between two runs takes nothing from them.
  CHECK_THROWS_AS(empty({8 << 20}, gpu), MemoryError);
  graph.replay();
  CHECK(is_all(y, 13));
}

TEST_CASE("cuda: room for somebody else is made of what is cached, but not while a graph is recorded") {
  if (!has_device()) return;
  const RealAllocator real;
  { const Tensor cached = empty({1 << 20}, gpu); }
  const int64_t before = cuda::allocator::stats().cached_bytes;
  CHECK(before >= 4 << 20);
  int64_t within = 0;
  const cuda::Graph graph([&] {
    cuda::detail::make_room(0);
    within = cuda::allocator::stats().cached_bytes;
  });
  CHECK(within >= before);
  cuda::detail::make_room(0);
  CHECK(cuda::allocator::stats().cached_bytes < 4 << 20);
}

TEST_CASE("cuda: an error for want of memory tells what recorded graphs keep") {
  if (!has_device()) return;
  const RealAllocator real;
  const Tensor x = full({1 << 20}, 3, gpu);
  cuda::synchronize();
  Tensor y;
  std::optional<cuda::Graph> graph(std::in_place, [&] { y = sum(x + 1); });  // x + 1, 4 MiB, stays with the graph
  const int64_t active = cuda::allocator::stats().active_bytes;
  cuda::allocator::clear();
  cuda::allocator::set_limit(active + cuda::allocator::stats().cached_bytes + (1 << 20));
  CHECK(contains(testing::error_of<MemoryError>([] { empty({1 << 20}, gpu); }), ", recorded graphs 4."));
  graph.reset();
  CHECK(empty({1 << 20}, gpu).defined());                    // what it kept made room
}

TEST_CASE("cuda: the cache can't be cleared while a graph is recorded, which costs neither the work nor other threads their success") {
  if (!has_device()) return;
  const RealAllocator real;
  const Tensor x = full({elements}, 3, gpu);
  cuda::synchronize();
  Tensor y;
  std::string message, message_elsewhere;
  bool is_right_elsewhere = false;
  cuda::Graph graph([&] {
    y = x + 1;
    message = testing::error_of<DeviceError>([] { cuda::allocator::clear(); });
    std::thread([&] {                                        // works on its own default stream, allocates and frees
      message_elsewhere = testing::error_of<DeviceError>([] { cuda::allocator::clear(); });
      Tensor z = full({elements}, 1, gpu);
      for (int i = 0; i < 5; ++i) z = z + 1;
      is_right_elsewhere = is_all(z, 6);
    }).join();
    y = y * 2;
  });
  CHECK(message == "cuda::allocator::clear: a graph is being recorded on cuda:0, which waiting for the device would spoil; clear before or afterwards");
  CHECK(message_elsewhere == message);
  CHECK(is_right_elsewhere);
  graph.replay();
  CHECK(is_all(y, 8));
  CHECK_NOTHROW(cuda::allocator::clear());
}

TEST_CASE("cuda: two threads record and run graphs of their own at the same time") {
  if (!has_device()) return;
  const RealAllocator real;
  std::atomic<int> wrong{0}, failed{0};
  const auto work = [&](int number) {
    try {
      const cuda::Stream stream;
      const cuda::StreamScope scope(stream);
      const Tensor x = full({elements}, number, gpu);
      stream.synchronize();
      Tensor y;
      cuda::Graph graph([&] {
        y = x;
        for (int i = 0; i < 4; ++i) y = y + number;
      });
      for (int run = 0; run < 4; ++run) {
        graph.replay();
        const Tensor other = full({elements}, -1, gpu);
        if (!is_all(y, (5 + run) * number) || !is_all(other, -1)) ++wrong;
        add_(x, number);                                     // the next run comes after this
      }
    } catch (...) {
      ++failed;
    }
  };
  std::thread first(work, 1), second(work, 2);
  first.join(), second.join();
  CHECK(failed == 0);
  CHECK(wrong == 0);
}

// --- launches ---

TEST_CASE("cuda: the latest launch tells what its kernel takes of the device, also after a run of a graph") {
  if (!has_device()) return;
  const Tensor x = full({3000}, 2, gpu);
  exp(x);
  const cuda::LaunchInfo info = cuda::last_launch();
  CHECK(info.name == cuda::last_kernel());
  CHECK(info.device == 0);
  CHECK(info.blocks[0] >= 1);
  CHECK(info.threads[0] >= 32);
  CHECK(info.registers >= 1);
  CHECK(info.registers <= 255);
  CHECK(info.local_bytes >= 0);
  CHECK(info.blocks_per_multiprocessor >= 1);
  CHECK(info.occupancy > 0);
  CHECK(info.occupancy <= 1);
  cuda::synchronize();
  Tensor y;
  cuda::Graph graph([&] { y = softmax(reshape(x, {30, 100}), 1); });
  const std::string recorded = cuda::last_launch().name;
  cumsum(x, 0);
  CHECK(cuda::last_launch().name != recorded);
  graph.replay();
  CHECK(cuda::last_launch().name == recorded);
  CHECK(cuda::last_launch().blocks_per_multiprocessor >= 1);
  CHECK(std::string(cuda::last_kernel()) == recorded);
  cuda::Graph nothing([] {});
  nothing.replay();
  CHECK(cuda::last_launch().name == recorded);               // nothing was launched
}
