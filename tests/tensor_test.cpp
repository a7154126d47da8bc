// The tensor handle, its storage and the allocator behind it.
#include <doctest/doctest.h>

#include <cmath>
#include <string>
#include <thread>
#include <vector>

#include <fovea/autograd/inplace.h>
#include <fovea/autograd/shape.h>
#include <fovea/tensor/allocator.h>
#include <fovea/tensor/creation.h>

#include "devices.h"
#include "messages.h"

using namespace fovea;
using namespace fovea::testing;

namespace {

// The allocator as users have it: with its cache, without the debug mode that test programs run in.
struct PlainAllocator {
  PlainAllocator() {
    allocator::set_debug(false);
    allocator::clear();
  }
  ~PlainAllocator() {
    allocator::set_limit(0);
    allocator::set_debug(true);
  }
};

}  // namespace

TEST_CASE("a freed block is handed out again for a request of its class" * of_the_cpu()) {
  PlainAllocator plain;
  void* first = allocator::allocate(1000);
  allocator::release(first, 1000);
  const int64_t hits = allocator::stats().cache_hits;
  void* second = allocator::allocate(1010);              // 1000 and 1010 bytes share the class of 1024
  CHECK(second == first);
  CHECK(allocator::stats().cache_hits == hits + 1);
  void* other = allocator::allocate(3000);
  CHECK(other != first);
  allocator::release(second, 1010);
  allocator::release(other, 3000);
}

TEST_CASE("blocks waste at most an eighth, are aligned, and 0 bytes are an address too" * of_the_cpu()) {
  PlainAllocator plain;
  for (int64_t bytes : {0, 1, 63, 64, 65, 100, 1023, 1025, 4097, 100000, 1234567, (1 << 24) + 1}) {
    const int64_t before = allocator::stats().active_bytes;
    void* block = allocator::allocate(bytes);
    REQUIRE(block != nullptr);
    CHECK(reinterpret_cast<uintptr_t>(block) % 64 == 0);
    const int64_t taken = allocator::stats().active_bytes - before;
    CHECK(taken >= bytes);
    CHECK(taken <= std::max<int64_t>(64, bytes + bytes / 8 + 1));
    allocator::release(block, bytes);
    CHECK(allocator::stats().active_bytes == before);
  }
}

TEST_CASE("statistics: active, peak and cached bytes follow what tensors hold" * of_the_cpu()) {
  PlainAllocator plain;
  const AllocatorStats start = allocator::stats();
  CHECK(start.cached_bytes == 0);
  allocator::reset_peak();
  {
    const Tensor a = empty({1024});                      // 4096 bytes
    const Tensor b = empty({1024});
    CHECK(allocator::stats().active_bytes == start.active_bytes + 8192);
  }
  const AllocatorStats after = allocator::stats();
  CHECK(after.active_bytes == start.active_bytes);
  CHECK(after.peak_bytes == start.active_bytes + 8192);
  CHECK(after.cached_bytes == 8192);
  CHECK(after.allocations == start.allocations + 2);
  allocator::clear();
  CHECK(allocator::stats().cached_bytes == 0);
  allocator::reset_peak();
  CHECK(allocator::stats().peak_bytes == start.active_bytes);
}

TEST_CASE("the limit: the cache gives way first, then an error says how much is held, and afterwards all works as before" * of_the_cpu()) {
  PlainAllocator plain;
  const int64_t held = allocator::stats().active_bytes;
  allocator::set_limit(held + (1 << 20));
  { const Tensor cached = empty({200, 1024}); }          // 800 KiB go to the cache
  const Tensor other = empty({100, 1024}, DType::float64);   // another class: does not fit beside the cached block
  CHECK(allocator::stats().cached_bytes == 0);
  const std::string text = error_of<MemoryError>([] { empty({1024, 1024}); });
  CHECK(contains(text, "out of memory"));
  CHECK(contains(text, "4194304"));
  CHECK(contains(text, "set_limit"));
  CHECK(empty({16}).numel() == 16);
  CHECK_THROWS_AS(allocator::set_limit(-1), ValueError);
}

TEST_CASE("more memory than any machine has is an error, not a crash") {
  CHECK_THROWS_AS(allocator::allocate(int64_t{1} << 61), MemoryError);
  CHECK_THROWS_AS(allocator::allocate(-1), MemoryError);
  CHECK_THROWS_AS(empty({int64_t{1} << 40, int64_t{1} << 40}), Error);
  CHECK_THROWS_AS(empty({int64_t{1} << 62, 2, 2}), Error);
  CHECK_THROWS_AS(empty({-1, 3}), Error);
  CHECK_NOTHROW(empty({int64_t{1} << 40, 0}));          // no element: nothing to allocate
}

TEST_CASE("debug mode: fresh memory is NaN, and a write beside a block is noticed when it is released" * of_the_cpu()) {
  Tensor x = empty({5});
  for (float value : std::vector<float>(x.data<float>(), x.data<float>() + 5)) CHECK(std::isnan(value));
  const int64_t damaged = allocator::damaged_blocks();
  auto* block = static_cast<unsigned char*>(allocator::allocate(10));
  block[9] = 1;
  allocator::release(block, 10);
  CHECK(allocator::damaged_blocks() == damaged);
}

TEST_CASE("threads allocate and release beside each other" * of_the_cpu()) {
  PlainAllocator plain;
  const int64_t before = allocator::stats().active_bytes;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([t] {
      for (int i = 0; i < 500; ++i) {
        Tensor x = empty({(i * 37 + t) % 300 + 1});
        x.mutable_data<float>()[0] = static_cast<float>(i);
        if (i % 100 == 0) allocator::clear();
      }
    });
  for (std::thread& t : threads) t.join();
  CHECK(allocator::stats().active_bytes == before);
}

TEST_CASE("views share storage and its version; a copy of a tensor is the same tensor") {
  Tensor x = from_vector<float>({1, 2, 3, 4, 5, 6}, {2, 3});
  const Tensor row = select(x, 0, 1), turned = transpose(x), part = slice(x, 1, 0, 3, 2);
  CHECK(row.storage() == x.storage());
  CHECK(turned.storage() == x.storage());
  CHECK(part.storage() == x.storage());
  const uint32_t version = x.version();
  copy_(select(select(x, 0, 1), 0, 1), scalar(50));
  CHECK(x.version() == version + 1);
  CHECK(row.version() == version + 1);
  CHECK(row.to_vector<float>() == std::vector<float>{4, 50, 6});
  CHECK(turned.to_vector<float>() == std::vector<float>{1, 4, 2, 50, 3, 6});
  CHECK(part.to_vector<float>() == std::vector<float>{1, 3, 4, 6});
  const Tensor copy = x;
  CHECK(copy.is_same(x));
  CHECK_FALSE(x.detach().is_same(x));
  CHECK(x.detach().storage() == x.storage());
}

TEST_CASE("reading a tensor the wrong way says what it is and what to do") {
  const Tensor x = zeros({2, 3}, Device::cpu());
  CHECK(contains(error_of<DTypeError>([&] { x.data<double>(); }), "float32"));
  CHECK(contains(error_of<ShapeError>([&] { transpose(x).data<float>(); }), "contiguous(x)"));
  CHECK(contains(error_of<ShapeError>([&] { x.item(); }), "[2,3]"));
  CHECK(contains(error_of<DeviceError>([] { empty({2}, Device::meta()).to_vector<float>(); }), "meta"));
  CHECK(contains(error_of<ValueError>([] { Tensor().shape(); }), "undefined"));
  CHECK(contains(error_of<DeviceError>([] { empty({2}, Device::cuda(99)); }), "CUDA"));
  CHECK_THROWS_AS(x.size(2), IndexError);
  CHECK_THROWS_AS(x.size(-3), IndexError);
  CHECK(x.size(-1) == 3);
}

TEST_CASE("item and to_vector convert; int64 keeps its 63 bits") {
  const int64_t large = (int64_t{1} << 60) + 1;
  CHECK(from_vector<int64_t>({large}).item<int64_t>() == large);
  CHECK(from_vector<double>({2.5}).item<float>() == 2.5f);
  CHECK(from_vector<int32_t>({-3, 7}).to_vector<double>() == std::vector<double>{-3, 7});
  CHECK(zeros({0, 4}).to_vector<float>().empty());
  CHECK(scalar(4).item() == 4);
}

TEST_CASE("a meta tensor has a shape and no memory, however large") {
  const Tensor x = empty({1 << 20, 1 << 20}, Device::meta());
  CHECK(x.numel() == int64_t{1} << 40);
  CHECK(x.is_meta());
  CHECK(transpose(x).is_meta());
  CHECK(zeros({3}, Device::meta()).shape() == Shape{3});
}

TEST_CASE("from_blob uses the owner's memory and keeps the owner alive") {
  auto owner = std::make_shared<std::vector<float>>(std::vector<float>{1, 2, 3, 4});
  std::weak_ptr<std::vector<float>> watch = owner;
  float* memory = owner->data();
  {
    Tensor x = from_blob(memory, {2, 2}, DType::float32, owner);
    owner.reset();
    CHECK_FALSE(watch.expired());
    CHECK(x.data<float>() == memory);
    const Tensor view = select(x, 0, 1);
    x = Tensor();
    CHECK(view.to_vector<float>() == std::vector<float>{3, 4});
  }
  CHECK(watch.expired());
  CHECK_THROWS_AS(from_blob(memory, {2}, DType::float32, nullptr), ValueError);
}

TEST_CASE("creation") {
  CHECK(arange(5).to_vector<int64_t>() == std::vector<int64_t>{0, 1, 2, 3, 4});
  CHECK(arange(1, 2, 0.25, DType::float64).to_vector<double>() == std::vector<double>{1, 1.25, 1.5, 1.75});
  CHECK(arange(3, 0, -1).to_vector<float>() == std::vector<float>{3, 2, 1});
  CHECK(arange(1, 0).numel() == 0);
  CHECK(linspace(0, 1, 5).to_vector<float>() == std::vector<float>{0, 0.25, 0.5, 0.75, 1});
  CHECK(linspace(2, 9, 1).to_vector<float>() == std::vector<float>{2});
  CHECK(eye(2).to_vector<float>() == std::vector<float>{1, 0, 0, 1});
  CHECK(tensor({{1, 2}, {3, 4}}).shape() == Shape{2, 2});
  CHECK(tensor({{0}, {1}}).shape() == Shape{2, 1});
  CHECK(tensor({{0}, {1}}, DType::int64).to_vector<int64_t>() == std::vector<int64_t>{0, 1});
  CHECK(tensor({{0}, {1}, {2}}).shape() == Shape{3, 1});
  CHECK(tensor({{0.5}}).shape() == Shape{1, 1});
  CHECK(tensor({{1, 2, 3}}).shape() == Shape{1, 3});
  CHECK(tensor({{}, {}}).shape() == Shape{2, 0});
  CHECK(tensor({5}).shape() == Shape{1});
  const int count = 3;
  CHECK(tensor({count, 2.5}).to_vector<float>() == std::vector<float>{3, 2.5});
  CHECK(full({2}, 7, DType::int32).to_vector<int32_t>() == std::vector<int32_t>{7, 7});
  CHECK_THROWS_AS(tensor({{1, 2}, {3}}), ShapeError);
  CHECK_THROWS_AS(tensor({{1}, {2, 3}}), ShapeError);
  CHECK_THROWS_AS(from_vector<float>({1, 2, 3}, {2, 2}), ShapeError);
  CHECK_THROWS_AS(arange(0, 1, 0), ValueError);
  CHECK_THROWS_AS(linspace(0, 1, -1), ValueError);
  CHECK_THROWS_AS(randint(3, 3, {2}), ValueError);
  CHECK_THROWS_AS(bernoulli(1.5, {2}), ValueError);
}

TEST_CASE("device_named reads what a user typed") {
  CHECK(device_named("cpu") == Device::cpu());
  for (const char* name : {"", "gpu", "cuda:", "cuda:-1", "cuda:1x", "cuda1", "CPU", "cuda:99999999999"}) CHECK_THROWS_AS(device_named(name), ValueError);
  CHECK_THROWS_AS(device_named("cuda:4096"), DeviceError);
}

TEST_CASE("randperm holds every number once, and the same seed gives the same order") {
  Generator a(5), b(5);
  const std::vector<int64_t> order = randperm(100, a).to_vector<int64_t>();
  CHECK(order == randperm(100, b).to_vector<int64_t>());
  CHECK(order != randperm(100, b).to_vector<int64_t>());
  std::vector<bool> seen(100);
  for (int64_t i : order) seen[static_cast<size_t>(i)] = true;
  for (bool s : seen) CHECK(s);
  CHECK(randperm(0).numel() == 0);
  CHECK(randperm(1).item<int64_t>() == 0);
}
