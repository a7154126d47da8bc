// CUDA's devices through the public interface: streams, events, memory, copies and products. The same tests run on a GPU and over the model of CUDA
// (tests/host_cuda); in a build or on a machine without a device they check that everything says so, and that nothing else minds.
#include <doctest/doctest.h>

#include <cmath>
#include <functional>
#include <memory>
#include <optional>
#include <thread>

#include "cuda_device.h"
#include "temporary_folder.h"

using namespace fovea;
using namespace fovea::testing;

TEST_CASE("cuda: without a device everything says so, and the CPU works on") {
  if (has_device()) return;
  CHECK(cuda::device_count() == 0);
  const char* remedy = cuda::is_built() ? "this machine has no CUDA device" : "cmake --preset cuda";
  CHECK_THROWS_WITH_AS(zeros({2}, gpu), doctest::Contains(remedy), DeviceError);
  CHECK_THROWS_WITH_AS(kernels::for_device(gpu), doctest::Contains(remedy), DeviceError);
  CHECK_THROWS_WITH_AS(to(ones({2}), gpu), doctest::Contains("cuda:0"), DeviceError);
  CHECK_THROWS_AS(set_default_device(gpu), DeviceError);
  CHECK_THROWS_AS(cuda::Stream(), DeviceError);
  CHECK_THROWS_AS(cuda::Event(), DeviceError);
  CHECK_THROWS_AS(pinned(ones({2})), DeviceError);
  layers::Linear model(3, 2);
  CHECK_THROWS_AS(model.to(gpu), DeviceError);
  CHECK(model.weight.device() == cpu);                       // as it was
  CHECK(model(ones({1, 3})).shape() == Shape{1, 2});
  CHECK(default_device() == cpu);
}

TEST_CASE("cuda: a device that is not there is named") {
  if (!has_device()) return;
  const int count = cuda::device_count();
  const std::string name = "cuda:" + std::to_string(count);
  CHECK_THROWS_WITH_AS(zeros({2}, Device::cuda(count)), doctest::Contains(name.c_str()), DeviceError);
  CHECK_THROWS_AS(cuda::set_device(-1), DeviceError);
  CHECK(cuda::current_device() == 0);
}

TEST_CASE("cuda: values travel to the device and back, whatever their dtype and strides") {
  if (!has_device()) return;
  for (const DType dtype : {DType::float32, DType::float64, DType::float16, DType::bfloat16, DType::int32, DType::int64, DType::uint8, DType::boolean}) {
    CAPTURE(dtype);
    const Tensor x = to(randint(0, 2, {3, 5, 7}, {DType::int64, cpu}), dtype);
    const Tensor there = to(x, gpu);
    CHECK(there.device() == gpu);
    CHECK(compare(to(there, cpu), x));
    const Tensor view = transpose(slice(x, 1, 1, 5, 2), 0, 2);
    CHECK(compare(to(to(view, gpu), cpu), contiguous(view)));
    CHECK(compare(to(transpose(slice(there, 1, 1, 5, 2), 0, 2), cpu), contiguous(view)));
    CHECK(compare(to(to(there, DType::float32), cpu), to(x, DType::float32)));
  }
  CHECK(to(to(zeros({0, 3}, cpu), gpu), cpu).shape() == Shape{0, 3});
  CHECK(to(scalar(2.5, cpu), gpu).item() == 2.5);
}

TEST_CASE("cuda: a tensor on the device is read, printed, compared and saved like any other") {
  if (!has_device()) return;
  const Tensor x = to(tensor({{1, 2, 3}, {4, 5, 6}}), gpu);
  CHECK(x[{1, 2}].item() == 6);
  CHECK(transpose(x).to_vector<int64_t>() == std::vector<int64_t>{1, 4, 2, 5, 3, 6});
  CHECK(to_string(x) == to_string(to(x, cpu)) + " cuda:0");
  CHECK(allclose(x, to(x, cpu)));
  CHECK_FALSE(equal(x, to(x, cpu) + 1));
  CHECK_THROWS_WITH_AS(x.data<float>(), doctest::Contains("copy it with to(x, Device::cpu())"), DeviceError);
  const TemporaryFolder folder;
  const std::string path = folder / "x.safetensors";
  save_safetensors(path, NamedTensors{{"x", transpose(x)}});
  CHECK(equal(load_safetensors(path).tensors["x"], to(contiguous(transpose(x)), cpu)));
}

TEST_CASE("cuda: gradients flow through a copy between devices") {
  if (!has_device()) return;
  Tensor x = tensor({1, 2, 3}, cpu);
  x.set_requires_grad();
  sum(square(to(x, gpu))).backward();
  CHECK(x.grad().device() == cpu);
  CHECK(x.grad().to_vector<float>() == std::vector<float>{2, 4, 6});
}

TEST_CASE("cuda: tensors of two devices in one call are an error that names both") {
  if (!has_device()) return;
  const Tensor here = ones({2, 2}, cpu), there = ones({2, 2}, gpu);
  CHECK_THROWS_WITH_AS(here + there, doctest::Contains("a is on cpu but b is on cuda:0"), DeviceError);
  CHECK_THROWS_WITH_AS(matmul(there, here), doctest::Contains("on cuda:0 but b is on cpu"), DeviceError);
  CHECK_THROWS_AS(where(gt(there, 0), there, here), DeviceError);
  CHECK_THROWS_AS(concat({here, there}), DeviceError);
  CHECK_THROWS_AS(gather(there, 0, zeros({2, 2}, {DType::int64, cpu})), DeviceError);
}

TEST_CASE("cuda: the default device is where tensors are made, in this thread alone") {
  if (!has_device()) return;
  const Device before = default_device();
  set_default_device(gpu);
  CHECK(tensor({1, 2}).device() == gpu);
  CHECK(from_vector(std::vector<float>{1, 2}).device() == gpu);
  CHECK(randperm(5).device() == gpu);
  CHECK(zeros({2}, DType::int64).device() == gpu);
  CHECK(layers::Linear(2, 2).weight.device() == gpu);
  Device elsewhere = gpu;
  std::thread([&] { elsewhere = default_device(); }).join();
  CHECK(elsewhere == cpu);
  set_default_device(before);
}

TEST_CASE("cuda: one seed draws the same numbers on every device") {
  if (!has_device()) return;
  const auto draw = [](Device device) {
    Generator generator(11);
    return std::vector<Tensor>{rand({1001}, device, generator), randint(-5, 100, {77}, {DType::int64, device}, generator)};
  };
  const std::vector<Tensor> here = draw(cpu), there = draw(gpu);
  for (size_t i = 0; i < here.size(); ++i) CHECK(compare(to(there[i], cpu), here[i], {.rtol = 0, .atol = 0}));
}

// --- streams and events ---

TEST_CASE("cuda: a stream's scope begins and ends") {
  if (!has_device()) return;
  CHECK(cuda::current_stream() == cuda::Stream::default_of(0));
  CHECK(cuda::queue_on(0) == nullptr);
  {
    const cuda::Stream stream;
    const cuda::StreamScope scope(stream);
    CHECK(cuda::current_stream() == stream);
    CHECK(cuda::queue_on(0) == stream.handle());
    {
      const cuda::StreamScope inner{cuda::Stream()};
      CHECK_FALSE(cuda::current_stream() == stream);
    }
    CHECK(cuda::current_stream() == stream);
    void* elsewhere = stream.handle();
    std::thread([&] { elsewhere = cuda::queue_on(0); }).join();
    CHECK(elsewhere == nullptr);                             // each thread has its own
  }
  CHECK(cuda::current_stream() == cuda::Stream::default_of(0));
}

TEST_CASE("cuda: work on two streams meets at an event") {
  if (!has_device()) return;
  const cuda::Stream first, second;
  Tensor x, y;
  cuda::Event is_ready;
  {
    const cuda::StreamScope scope(first);
    x = full({10000}, 3, gpu);
    for (int i = 0; i < 5; ++i) x = x + 1;
    is_ready.record();
  }
  {
    const cuda::StreamScope scope(second);
    second.wait(is_ready);
    cuda::record_use(memory_of(x), second);
    y = x * 2;
    CHECK(sum(y).item() == 160000);
  }
  second.synchronize();
  CHECK(second.is_idle());
}

TEST_CASE("cuda: events pass in order, and the time between them is not negative") {
  if (!has_device()) return;
  cuda::Event begin, end, unused;
  CHECK(unused.has_passed());
  begin.record();
  const Tensor x = full({1000}, 1, gpu) + 1;
  end.record();
  end.synchronize();
  CHECK(begin.has_passed());
  CHECK(end.has_passed());
  CHECK(cuda::seconds_between(begin, end) >= 0);
  CHECK(sum(x).item() == 2000);
}

TEST_CASE("cuda: an asynchronous copy from pinned memory arrives, though the memory is released at once") {
  if (!has_device()) return;
  const Tensor source = rand({5000}, cpu);
  Tensor there;
  for (int i = 0; i < 4; ++i) {
    Tensor staged = pinned(source + i);
    there = to(staged, gpu, true);
    staged = {};                                             // reused by the next round, once the copy is done
    CHECK(compare(to(there, cpu), source + i));
  }
}

// --- memory ---

TEST_CASE("cuda: a freed block serves the next request of its size on the same stream") {
  if (!has_device()) return;
  const RealAllocator real;
  Tensor x = empty({1000}, gpu);
  const void* memory = memory_of(x);
  const AllocatorStats before = cuda::allocator::stats();
  x = {};
  CHECK(cuda::allocator::stats().cached_bytes > before.cached_bytes);
  CHECK(memory_of(empty({990}, gpu)) == memory);             // of the same size class
  CHECK(cuda::allocator::stats().cache_hits == before.cache_hits + 1);
  cuda::allocator::clear();
  CHECK(cuda::allocator::stats().cached_bytes == 0);
}

TEST_CASE("cuda: a freed block reaches another stream only when its work is done") {
  if (!has_device()) return;
  const RealAllocator real;
  const cuda::Stream first, second;
  const void* memory = nullptr;
  {
    const cuda::StreamScope scope(first);
    Tensor x = full({100000}, 1, gpu);
    memory = memory_of(x);
  }
  first.synchronize();
  {
    const cuda::StreamScope scope(second);
    CHECK(memory_of(empty({100000}, gpu)) == memory);        // the event has passed
  }
  // Used on a second stream without its being current when the tensor goes: the block waits for both.
  {
    const cuda::StreamScope scope(first);
    Tensor x = full({100000}, 1, gpu);
    cuda::Event is_ready;
    is_ready.record();
    second.wait(is_ready);
    cuda::record_use(memory_of(x), second);
    cuda::StreamScope on_second(second);
    const Tensor doubled = x * 2;
    x = {};
    const Tensor other = full({100000}, 7, gpu);             // on second, in whatever memory
    CHECK(sum(doubled).item() == 200000);
    CHECK(sum(other).item() == 700000);
  }
}

TEST_CASE("cuda: a block outlives the stream that it was made on") {
  if (!has_device()) return;
  const RealAllocator real;
  Tensor x;
  {
    const cuda::Stream stream;
    const cuda::StreamScope scope(stream);
    x = full({3000}, 2, gpu);
  }
  CHECK(sum(x).item() == 6000);
  const void* memory = memory_of(x);
  x = {};
  cuda::synchronize();
  CHECK(memory_of(empty({3000}, gpu)) == memory);
}

TEST_CASE("cuda: over the limit there is an error that says what is held, and work goes on after it") {
  if (!has_device()) return;
  const RealAllocator real;
  const int64_t held = cuda::allocator::stats().active_bytes;
  cuda::allocator::set_limit(held + (8 << 20));
  Tensor x = full({1 << 20}, 1, gpu);                        // 4 MiB
  CHECK_THROWS_WITH_AS(empty({2 << 20}, gpu), doctest::Contains("limit"), MemoryError);
  CHECK_THROWS_WITH_AS(empty({2 << 20}, gpu), doctest::Contains("1 of 4.0 MiB"), MemoryError);
  CHECK(sum(x).item() == 1 << 20);
  x = {};
  CHECK(empty({2 << 20}, gpu).defined());                    // the cached 4 MiB made room
  CHECK_THROWS_AS(cuda::allocator::set_limit(-1), ValueError);
}

TEST_CASE("cuda: out of memory is an error like any other, and the cache is emptied before it") {
  if (!has_device()) return;
  const RealAllocator real;
  const Tensor kept = full({1000}, 1, gpu);
  { const Tensor cached = empty({100000}, gpu); }
  CHECK_THROWS_WITH_AS(empty({int64_t{1} << 46}, gpu), doctest::Contains("out of memory: cannot allocate 256.0 TiB; tensors hold"), MemoryError);
  CHECK(cuda::allocator::stats().cached_bytes == 0);
  CHECK(sum(kept + 1).item() == 2000);
}

TEST_CASE("cuda: the peak is the most that was held") {
  if (!has_device()) return;
  const RealAllocator real;
  cuda::allocator::reset_peak();
  const int64_t before = cuda::allocator::stats().active_bytes;
  { const Tensor x = empty({1 << 18}, gpu); }
  CHECK(cuda::allocator::stats().active_bytes == before);
  CHECK(cuda::allocator::stats().peak_bytes >= before + (1 << 20));
  cuda::allocator::reset_peak();
  CHECK(cuda::allocator::stats().peak_bytes == before);
}

TEST_CASE("cuda: the latest kernel has a name, with and without waiting for each launch") {
  if (!has_device()) return;
  const Tensor x = full({100}, 2, gpu);
  const Tensor y = exp(x);
  const std::string name = cuda::last_kernel();
  CHECK_FALSE(name.empty());
  const Tensor z = softmax(reshape(x, {10, 10}), 1);
  CHECK(cuda::last_kernel() != name);
  cuda::set_synchronous(true);
  CHECK(sum(x + y).item() == doctest::Approx(100 * (2 + std::exp(2.0))).epsilon(1e-5));
  cuda::set_synchronous(false);
}

TEST_CASE("cuda: out of memory in the middle of training is caught, and training goes on once memory is freed") {
  if (!has_device()) return;
  const RealAllocator real;
  layers::Linear model(64, 64);
  model.to(gpu);
  optim::SGD sgd(model.named_parameters(), {.lr = 1e-5});
  const auto step = [&](const Tensor& x) {
    model.zero_grad();
    const Tensor loss = sum(square(model(x)));
    loss.backward();
    sgd.step();
    return loss.item();
  };
  const Tensor x = to(rand({32, 64}, cpu), gpu);
  const double first = step(x);
  Tensor hoard = full({1 << 20}, 1, gpu);
  cuda::allocator::clear();
  cuda::allocator::set_limit(cuda::allocator::stats().active_bytes + (1 << 16));
  const std::string message = testing::error_of<MemoryError>([&] { step(to(rand({4096, 64}, cpu), gpu)); });
  CHECK(contains(message, "cuda:0: out of memory"));
  CHECK(contains(message, "tensors hold"));
  CHECK(contains(message, "1 of 4.0 MiB"));
  hoard = {};
  CHECK(step(x) < first);
}

TEST_CASE("cuda: two devices hold their own tensors, copy to each other, and are named together when they meet") {
  if (cuda::device_count() < 2) return;
  const Device other = Device::cuda(1);
  const Tensor x = rand({1000}, cpu), here = to(x, gpu), there = to(here, other);
  CHECK(there.device() == other);
  CHECK(equal(to(there, cpu), x));
  CHECK(equal(to(there + 1, cpu), x + 1));
  CHECK(equal(to(to(there * 2, gpu), cpu), x * 2));
  CHECK_THROWS_WITH_AS(here + there, doctest::Contains("a is on cuda:0 but b is on cuda:1"), DeviceError);
  CHECK_THROWS_WITH_AS(matmul(reshape(there, {10, 100}), reshape(here, {100, 10})), doctest::Contains("cuda:1"), DeviceError);
  const cuda::Stream stream(1);
  {
    const cuda::StreamScope scope(stream);
    CHECK(cuda::current_stream(0) == cuda::Stream::default_of(0));           // a scope is of its stream's device
    CHECK(equal(to(to(here, other) + 3, cpu), x + 3));
  }
  CHECK(cuda::allocator::stats(1).active_bytes >= there.nbytes());
  embedding(to(on_gpu({9}, {1}), other), ones({4, 2}, other));               // each device has its own report
  CHECK_NOTHROW(cuda::synchronize(0));
  CHECK(contains(testing::error_of<IndexError>([] { cuda::synchronize(1); }), "(found on cuda:1 by work queued earlier)"));
  CHECK_THROWS_AS(cuda::Stream(2 + cuda::device_count()), DeviceError);
}

TEST_CASE("cuda: two devices share pinned memory, which is not given away while one of them still copies from it") {
  if (cuda::device_count() < 2) return;
  constexpr int64_t count = 1024, bytes = count * int64_t{sizeof(float)};
  std::vector<void*> held;                                 // so that the cache has no other block to give away
  for (const Device device : {gpu, Device::cuda(1), gpu, Device::cuda(1)}) {
    Tensor target = zeros({count}, device);
    const auto block_of = [&](float value) {
      auto* block = static_cast<float*>(cuda::allocate_pinned(bytes));
      std::fill_n(block, count, value);
      return block;
    };
    float* const block = block_of(1);
    cuda::copy_bytes(target.mutable_view().data, device, block, cpu, bytes, true);
    cuda::release_pinned(block, bytes);
    float* const next = block_of(2);                       // another block, or the same one once it has been read
    CHECK(equal(to(target, cpu), ones({count}, cpu)));
    held.push_back(next);
  }
  for (void* block : held) cuda::release_pinned(block, bytes);
}

TEST_CASE("cuda: operations of many kinds name both devices when their arguments lie on two") {
  if (!has_device()) return;
  const Tensor x = ones({2, 3, 4, 4}, gpu), w = ones({3, 3, 1, 1}, cpu), rows = ones({2, 3}, gpu);
  const auto names_both = [](const std::function<void()>& f) {
    const std::string message = testing::error_of<DeviceError>(f);
    CAPTURE(message);
    CHECK(contains(message, "cpu"));
    CHECK(contains(message, "cuda:0"));
  };
  const Tensor labels = zeros({2}, {DType::int64, cpu});
  names_both([&] { conv2d(x, w); });
  names_both([&] { linear(rows, ones({5, 3}, cpu)); });
  names_both([&] { cross_entropy(rows, labels); });
  names_both([&] { embedding(labels, rows); });
  names_both([&] { index_select(rows, 0, labels); });
  names_both([&] { concat({rows, ones({2, 3}, cpu)}); });
  names_both([&] { layer_norm(rows, {3}, ones({3}, cpu)); });
  names_both([&] { where(gt(rows, 0), rows, ones({2, 3}, cpu)); });
  names_both([&] { ctc_loss(ones({4, 2, 3}, gpu), ones({2, 1}, {DType::int64, cpu}), labels, labels); });
}

TEST_CASE("cuda: operations made of others name themselves when their arguments lie on two devices") {
  if (!has_device()) return;
  const Tensor x = ones({3}, gpu), mask = ones({3}, {DType::boolean, cpu});
  const auto begins = [](const char* name, const std::function<void()>& f) { CHECK(testing::error_of<DeviceError>(f).rfind(std::string(name) + ": ", 0) == 0); };
  for (const auto& [one, other] : {std::pair{x, mask}, {to(x, cpu), to(mask, gpu)}}) {
    const Tensor there = one, elsewhere = other, numbers = to(elsewhere, DType::float32);
    begins("masked_select", [&] { masked_select(there, elsewhere); });
    begins("masked_fill", [&] { masked_fill(there, elsewhere, 1); });
    begins("dot", [&] { dot(there, numbers); });
    begins("outer", [&] { outer(there, numbers); });
    begins("MSELoss", [&] { layers::MSELoss()(there, numbers); });
    begins("ctc_best_path", [&] { ctc_best_path(reshape(there, {3, 1, 1}), ones({1}, {DType::int64, elsewhere.device()})); });
  }
}

// --- products ---

TEST_CASE("cuda: matmul takes any strides, batches that are broadcast, a bias and empty sizes") {
  if (!has_device()) return;
  Generator generator(3);
  const auto both = [](const auto& f) {
    const Tensor here = f(cpu), there = f(gpu);
    CHECK(there.device() == gpu);
    CHECK(compare(to(there, cpu), here, {.rtol = 1e-5, .atol = 1e-5}));
  };
  const auto product = [&](const Tensor& a, const Tensor& b) {
    both([&](Device device) { return matmul(to(a, device), to(b, device)); });
  };
  for (const DType dtype : {DType::float32, DType::float64}) {
    const auto random = [&](const Shape& shape) { return rand(shape, {dtype, cpu}, generator); };
    product(random({5, 7}), random({7, 3}));
    product(random({1, 7}), random({7, 1}));
    product(random({7}), random({7, 3}));
    product(random({4, 5, 7}), random({4, 7, 3}));
    product(random({4, 1, 5, 7}), random({6, 7, 3}));        // broadcast along different axes
    product(random({0, 7}), random({7, 3}));
    product(random({5, 0}), random({0, 3}));
    const Tensor many = random({5, 3, 4, 7}), others = random({3, 7, 2});
    for (const std::vector<int64_t>& axes : {std::vector<int64_t>{0}, {1}, {0, 1}})          // matrices in the opposite order
      both([&](Device device) { return matmul(flip(to(many, device), axes), to(others, device)); });
    const Tensor a = random({6, 10}), b = random({10, 8});
    both([&](Device device) { return matmul(transpose(to(b, device)), transpose(to(a, device))); });
    both([&](Device device) { return matmul(slice(to(a, device), 0, 0, 6, 2), slice(to(b, device), 1, 0, 8, 3)); });
    both([&](Device device) { return matmul(flip(to(a, device), {1}), expand(slice(to(b, device), 1, 0, 1), {10, 4})); });
    const Tensor x = random({5, 10}), bias = random({8});
    both([&](Device device) { return linear(to(x, device), transpose(to(b, device)), to(bias, device)); });
  }
}
