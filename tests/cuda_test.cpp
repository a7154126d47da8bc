// CUDA's devices through the public interface: streams, events, memory, copies, and a module trained there. The same tests run on a GPU and over the model of CUDA
// (tests/host_cuda); in a build or on a machine without a device they check that everything says so, and that nothing else minds.
#include <doctest/doctest.h>

#include <cmath>
#include <functional>
#include <memory>
#include <optional>
#include <thread>

#include <fovea/fovea.h>

#include "messages.h"
#include "temporary_folder.h"

using namespace fovea;
using fovea::testing::contains;

namespace {

bool has_device() { return cuda::device_count() > 0; }
const Device gpu = Device::cuda(0), cpu = Device::cpu();

// Allocator tests look at the cache, which the poisoning of fresh memory goes around.
class RealAllocator {
 public:
  RealAllocator() { cuda::allocator::set_debug(false); cuda::allocator::clear(); }
  ~RealAllocator() {
    cuda::allocator::set_limit(0);
    cuda::allocator::clear();
    cuda::allocator::set_debug(true);
  }
};

const void* memory_of(const Tensor& x) { return x.view().data; }

}  // namespace

namespace {

const char* const late = " (found on cuda:0 by work queued earlier)";

// The error that waiting for the device brings.
std::string found_late() { return testing::error_of<IndexError>([] { cuda::synchronize(0); }); }

Tensor on_gpu(std::vector<int64_t> values, const Shape& shape) { return to(from_vector(values, shape, cpu), gpu); }

}  // namespace

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

// --- values out of range ---

TEST_CASE("cuda: an index out of range is an error of the next wait, with the CPU's sentence, and the device works on") {
  if (!has_device()) return;
  struct Case {
    const char* name;
    std::function<Tensor(Device)> run;
  };
  const auto index = [](Device device, std::vector<int64_t> values, const Shape& shape) { return to(from_vector(values, shape, cpu), device); };
  const auto x = [](Device device) { return to(tensor({{1, 2, 3}, {4, 5, 6}}, cpu), device); };
  const std::vector<Case> cases = {
      {"gather", [&](Device d) { return gather(x(d), 1, index(d, {0, 1, 3, 0}, {2, 2})); }},
      {"take_along", [&](Device d) { return take_along(x(d), index(d, {7}, {1, 1}), 0); }},
      {"scatter_add", [&](Device d) { return scatter_add(x(d), 0, index(d, {0, -1}, {1, 2}), ones({1, 2}, d)); }},
      {"index_select", [&](Device d) { return index_select(x(d), 0, index(d, {0, 2}, {2})); }},
      {"index_add", [&](Device d) { return index_add(x(d), 0, index(d, {5}, {1}), ones({1, 3}, d)); }},
      {"embedding", [&](Device d) { return embedding(index(d, {1, 5}, {2}), x(d)); }},
      {"one_hot", [&](Device d) { return to(one_hot(index(d, {4, 1}, {2}), 4), DType::float32); }},
      {"cross_entropy", [&](Device d) { return cross_entropy(x(d), index(d, {3, 0}, {2})); }},
      {"NLLLoss", [&](Device d) { return layers::NLLLoss()(x(d), index(d, {0, 8}, {2})); }},
      {"MulticlassHingeLoss", [&](Device d) { return layers::MulticlassHingeLoss()(x(d), index(d, {0, -1}, {2})); }},
  };
  for (const Case& c : cases) {
    CAPTURE(c.name);
    const std::string want = testing::error_of<IndexError>([&] { c.run(cpu); });
    CHECK_FALSE(want.empty());
    Tensor y;
    CHECK_NOTHROW(y = c.run(gpu));                           // nobody has looked yet
    CHECK(found_late() == want + late);
    CHECK(found_late().empty());                             // told once
    CHECK(sum(full({10}, 2, gpu)).item() == 20);
  }
}

TEST_CASE("cuda: whatever waits brings the error: item, copies to the host, streams, events, and each call while launches are synchronous") {
  if (!has_device()) return;
  const Tensor weight = ones({4, 2}, gpu), bad = on_gpu({9}, {1});
  const std::string want = std::string("embedding: indices[0] is 9, out of range [0, 4) for weight [4,2]") + late;
  const auto waiting = [&](const std::function<void()>& wait) {
    embedding(bad, weight);
    return testing::error_of<IndexError>(wait);
  };
  const Tensor other = full({3}, 2, gpu);
  CHECK(waiting([&] { sum(other).item(); }) == want);
  CHECK(waiting([&] { other.to_vector<float>(); }) == want);
  CHECK(waiting([&] { to(other, cpu); }) == want);
  CHECK(waiting([&] { cuda::current_stream().synchronize(); }) == want);
  CHECK(waiting([&] {
          cuda::Event event;
          event.record();
          event.synchronize();
        }) == want);
  CHECK(waiting([&] {
          while (!cuda::current_stream().is_idle()) {}
        }) == want);
  cuda::set_synchronous(true);
  CHECK(testing::error_of<IndexError>([&] { embedding(bad, weight); }) == want);
  cuda::set_synchronous(false);
  CHECK(found_late().empty());
  CHECK(sum(other).item() == 6);
}

TEST_CASE("cuda: a bad label spoils the loss that it belongs to and no weight") {
  if (!has_device()) return;
  Tensor logits = to(tensor({{1, 2, 3}, {3, 1, 0}}, cpu), gpu);
  logits.set_requires_grad();
  const Tensor loss = cross_entropy(logits, on_gpu({1, 3}, {2}));
  loss.backward();
  CHECK(contains(found_late(), "cross_entropy: labels[1] is 3, out of range [0, 3) for 3 classes"));
  CHECK(std::isnan(loss.item()));
  const std::vector<float> gradient = logits.grad().to_vector<float>();
  for (size_t i = 0; i < 6; ++i) CHECK((i < 3 ? gradient[i] != 0 && std::isfinite(gradient[i]) : gradient[i] == 0));
  CHECK(cross_entropy(logits, on_gpu({1, -100}, {2})).item() == doctest::Approx(1.407606));          // ignored, not bad
  CHECK(found_late().empty());
}

TEST_CASE("cuda: ctc_loss looks at labels and lengths without waiting, and says what the CPU says") {
  if (!has_device()) return;
  const Tensor scores = rand({5, 3, 4}, cpu);
  struct Arguments {
    std::vector<int64_t> targets, input_lengths, target_lengths;
  };
  const auto loss = [&](const Arguments& a, Device device, Tensor& logits) {
    const auto there = [&](const std::vector<int64_t>& v, const Shape& shape) { return to(from_vector(v, shape, cpu), device); };
    logits = to(scores, device).detach();
    logits.set_requires_grad();
    return ctc_loss(logits, there(a.targets, {3, 2}), there(a.input_lengths, {3}), there(a.target_lengths, {3}), {.reduction = Reduction::none});
  };
  const Arguments good{{1, 1, 2, 3, 3, -7}, {5, 4, 3}, {2, 2, 1}};           // -7 stands past the end of its target
  const std::vector<Arguments> bad = {
      {{1, 1, 2, 4, 3, 0}, {5, 4, 3}, {2, 2, 1}}, {{1, 1, 2, 0, 3, 0}, {5, 4, 3}, {2, 2, 1}}, {{1, 1, 2, 3, -1, 0}, {5, 4, 3}, {2, 2, 1}},
      {{1, 1, 2, 3, 3, 0}, {5, 6, 3}, {2, 2, 1}}, {{1, 1, 2, 3, 3, 0}, {5, 4, -1}, {2, 2, 1}}, {{1, 1, 2, 3, 3, 0}, {5, 4, 3}, {2, 3, 1}},
  };
  Tensor logits, logits_there;
  const Tensor here = loss(good, cpu, logits), there = loss(good, gpu, logits_there);
  CHECK(compare(to(there.detach(), cpu), here.detach(), {.rtol = 1e-5}));
  sum(here).backward(), sum(there).backward();
  CHECK(compare(to(logits_there.grad(), cpu), logits.grad(), {.rtol = 1e-4, .atol = 1e-6}));
  for (const Arguments& a : bad) {
    const std::string want = testing::error_of<IndexError>([&] { loss(a, cpu, logits); });
    CHECK_FALSE(want.empty());
    const Tensor losses = loss(a, gpu, logits_there);
    sum(losses).backward();
    CHECK(found_late() == want + late);
    const std::vector<double> of_samples = losses.to_vector<double>(), good_ones = here.to_vector<double>();
    int spoiled = 0;
    for (size_t i = 0; i < 3; ++i) {
      if (std::isnan(of_samples[i])) ++spoiled;
      else CHECK(of_samples[i] == doctest::Approx(good_ones[i]).epsilon(1e-5));
    }
    CHECK(spoiled == 1);
    CHECK(all(isfinite(logits_there.grad())).item<bool>());
  }
}

TEST_CASE("cuda: ctc_loss of targets longer than there are steps, padded and one after the other, is the CPU's") {
  if (!has_device()) return;
  const Tensor scores = rand({3, 2, 4}, cpu);
  const auto losses = [&](Device device, bool is_padded) {
    const Tensor targets = is_padded ? from_vector<int64_t>({1, 2, 3, 1, 2, 3, 2, 0, 0, 0, 0, 0}, {2, 6}, cpu) : from_vector<int64_t>({1, 2, 3, 1, 2, 3, 2}, {7}, cpu);
    const Tensor times = from_vector<int64_t>({3, 3}, {2}, cpu), lengths = from_vector<int64_t>({6, 1}, {2}, cpu);
    return to(ctc_loss(to(scores, device), to(targets, device), to(times, device), to(lengths, device), {.reduction = Reduction::none}), cpu);
  };
  for (const bool is_padded : {true, false}) CHECK(compare(losses(gpu, is_padded), losses(cpu, is_padded), {.rtol = 1e-5}));
  CHECK(std::isinf(losses(gpu, true).to_vector<double>()[0]));
  // A length that the labels given cannot have is an error, though more would not be needed.
  const Tensor too_long = ctc_loss(to(scores, gpu), on_gpu({1, 2, 3, 1, 2, 3, 2, 0, 0, 0, 0, 0}, {2, 6}), on_gpu({3, 3}, {2}), on_gpu({7, 1}, {2}), {.reduction = Reduction::none});
  CHECK(found_late() == std::string("ctc_loss: target_lengths[0] is 7, out of range [0, 7) for the 6 columns of targets") + late);
  CHECK(std::isnan(too_long.to_vector<double>()[0]));
}

TEST_CASE("cuda: lengths of recurrent layers out of range are found late, and lead nowhere") {
  if (!has_device()) return;
  layers::LSTM lstm({.input = 3, .hidden = 4, .bidirectional = true});
  lstm.to(gpu);
  const Tensor x = to(rand({5, 2, 3}, cpu), gpu);
  const auto output = [&](std::vector<int64_t> lengths) { return lstm(x, {.lengths = on_gpu(lengths, {2})}).output; };
  const Tensor wrong = output({3, 9});
  sum(square(wrong)).backward();
  CHECK(found_late() == std::string("lstm: lengths[1] is 9, out of range [0, 6) for the 5 steps of x") + late);
  CHECK(equal(wrong.detach(), output({3, 5}).detach()));
  CHECK_THROWS_WITH_AS(lstm(x, {.lengths = from_vector<int64_t>({3, 3}, {2}, cpu)}), doctest::Contains("lengths are on cpu but x is on cuda:0"), DeviceError);
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
    const Tensor a = random({6, 10}), b = random({10, 8});
    both([&](Device device) { return matmul(transpose(to(b, device)), transpose(to(a, device))); });
    both([&](Device device) { return matmul(slice(to(a, device), 0, 0, 6, 2), slice(to(b, device), 1, 0, 8, 3)); });
    both([&](Device device) { return matmul(flip(to(a, device), {1}), expand(slice(to(b, device), 1, 0, 1), {10, 4})); });
    const Tensor x = random({5, 10}), bias = random({8});
    both([&](Device device) { return linear(to(x, device), transpose(to(b, device)), to(bias, device)); });
  }
}

// --- training ---

namespace {

struct Run {
  std::vector<double> losses;
  Tensor weight;
};

Run train(Device device) {
  manual_seed(5);
  const Device before = default_device();
  set_default_device(cpu);                                   // the first values are the same on every device
  layers::Sequential model(layers::Linear(6, 16), layers::Tanh(), layers::Linear(16, 3));
  const Tensor x = to(randn({32, 6}), device), labels = to(randint(0, 3, {32}), device);
  set_default_device(before);
  model.to(device);
  optim::Adam adam(model.named_parameters(), {.lr = 1e-2});
  Run run;
  for (int step = 0; step < 20; ++step) {
    const Tensor loss = cross_entropy(model(x), labels);
    model.zero_grad();
    loss.backward();
    optim::clip_grad_norm(model.named_parameters(), 1.0);
    adam.step();
    run.losses.push_back(loss.item());
  }
  run.weight = to(model.layer<layers::Linear>("0").weight.detach(), cpu);
  return run;
}

}  // namespace

TEST_CASE("cuda: training there agrees with the CPU over twenty steps, and with itself bit for bit") {
  if (!has_device()) return;
  const Run here = train(cpu), there = train(gpu), again = train(gpu);
  CHECK(here.losses.back() < here.losses.front());
  for (size_t i = 0; i < here.losses.size(); ++i) CHECK(there.losses[i] == doctest::Approx(here.losses[i]).epsilon(1e-5));
  CHECK(compare(there.weight, here.weight, {.rtol = 1e-4, .atol = 1e-5}));
  CHECK(equal(there.weight, again.weight));
  CHECK(there.losses == again.losses);
}

TEST_CASE("cuda: an optimizer's state follows its parameters to another device, and through a file") {
  if (!has_device()) return;
  const auto make = [] { return std::make_unique<layers::Linear>(3, 2); };
  const auto step = [](layers::Linear& model, optim::Adam& adam, Device device) {
    model.zero_grad();
    sum(square(model(full({4, 3}, 0.5, device)))).backward();
    adam.step();
  };
  manual_seed(1);
  const auto moved = make();
  manual_seed(1);
  const auto stays = make();
  moved->to(cpu), stays->to(cpu);
  optim::Adam of_moved(moved->named_parameters(), {.lr = 0.1}), of_stays(stays->named_parameters(), {.lr = 0.1});
  step(*moved, of_moved, cpu), step(*stays, of_stays, cpu);
  moved->to(gpu);
  for (int i = 0; i < 3; ++i) step(*moved, of_moved, gpu), step(*stays, of_stays, cpu);
  CHECK(compare(to(moved->weight.detach(), cpu), stays->weight.detach(), {.rtol = 1e-5, .atol = 1e-6}));

  stays->to(gpu);
  optim::Adam fresh(stays->named_parameters(), {.lr = 0.1});
  fresh.load_state(of_moved.state());
  step(*stays, fresh, gpu);
  CHECK(fresh.state()["state.weight.exp_avg"].device() == gpu);
}

// --- graphs ---

TEST_CASE("cuda: a recorded training step, run again, does what the step does") {
  if (!has_device()) return;
  const auto start = [](layers::Linear& model) {
    layers::init::constant_(model.weight, 0.1);
    layers::init::constant_(model.bias, 0);
    model.to(gpu);
  };
  layers::Linear recorded(4, 3), stepped(4, 3);
  start(recorded), start(stepped);
  const Tensor x = to(rand({8, 4}, cpu), gpu), target = to(rand({8, 3}, cpu), gpu);
  const auto step_of = [&](layers::Linear& model, optim::Optimizer& optimizer) {
    model.zero_grad();
    const Tensor loss = sum(square(model(x) - target));
    loss.backward();
    optimizer.step();
    return loss.detach();
  };
  optim::SGD sgd_recorded(recorded.named_parameters(), {.lr = 0.01, .momentum = 0.9}), sgd_stepped(stepped.named_parameters(), {.lr = 0.01, .momentum = 0.9});
  step_of(recorded, sgd_recorded), step_of(stepped, sgd_stepped);
  cuda::synchronize();
  Tensor loss;
  cuda::Graph graph([&] { loss = step_of(recorded, sgd_recorded); });
  CHECK(equal(recorded.weight.detach(), stepped.weight.detach()));           // recording computes nothing
  for (int i = 0; i < 3; ++i) {
    graph.replay();
    const Tensor between = full({1000}, 5, gpu);                             // memory asked for meanwhile is not the graph's
    CHECK(loss.item() == step_of(stepped, sgd_stepped).item());
    CHECK(sum(between).item() == 5000);
  }
  CHECK(equal(recorded.weight.detach(), stepped.weight.detach()));
}

namespace {

// A small recognizer: convolution, normalisation, pooling, a recurrent layer over the columns.
class Reader : public layers::Module {
 public:
  Reader()
      : features(add("features", layers::Sequential(layers::Conv2d({.in = 1, .out = 4, .kernel = 3, .padding = 1}), layers::BatchNorm2d(4), layers::ReLU(),
                                                    layers::MaxPool2d(2), layers::Dropout(0.25)))),
        rnn(add("rnn", layers::LSTM({.input = 16, .hidden = 5, .bidirectional = true}))),
        head(add("head", layers::Linear(10, 6))) {}
  Tensor forward(const Tensor& x) override {
    const Tensor seen = features(x);                                         // [batch, 4, 4, columns]
    const Tensor columns = reshape(permute(seen, {3, 0, 1, 2}), {seen.size(3), seen.size(0), 16});
    return head(rnn.forward(columns));
  }

 private:
  layers::Sequential& features;
  layers::LSTM& rnn;
  layers::Linear& head;
};

struct Batch {
  Tensor x, targets, times, lengths;
};

Batch line_batch(unsigned seed) {
  Generator generator(seed);
  const TensorOptions integers(DType::int64, cpu);
  return {rand({3, 1, 8, 16}, cpu, generator), randint(1, 6, {3, 3}, integers, generator), randint(6, 9, {3}, integers, generator), randint(1, 4, {3}, integers, generator)};
}

// Steps of training, each call with other values in the same tensors; the losses and all that has been learned.
struct Trained {
  std::vector<float> losses;
  NamedTensors state;
};

// One step as a function of a model and the tensors that hold its batch.
using Step = std::function<Tensor(layers::Module&, optim::Optimizer&, const Batch&)>;

template <class Model, class MakeBatch>
Trained train_steps(bool is_recorded, const MakeBatch& batch_of, const Step& step) {
  manual_seed(3);
  const Device before = default_device();
  set_default_device(cpu);
  Model model;
  set_default_device(before);
  model.to(gpu);
  optim::SGD sgd(model.named_parameters(), {.lr = 0.05});
  const Batch first = batch_of(0);
  const auto there = [](const Tensor& x) { return x ? to(x, gpu) : x; };
  const Batch fixed{there(first.x), there(first.targets), there(first.times), there(first.lengths)};
  step(model, sgd, fixed);                                                   // what is made on first use is there now
  std::optional<cuda::Graph> graph;
  Tensor loss;
  if (is_recorded) graph.emplace([&] { loss = step(model, sgd, fixed); });
  Trained trained;
  for (unsigned i = 1; i <= 4; ++i) {
    const Batch next = batch_of(i);
    for (const auto& [to, from] : {std::pair{fixed.x, next.x}, {fixed.targets, next.targets}, {fixed.times, next.times}, {fixed.lengths, next.lengths}})
      if (to) copy_(to, fovea::to(from, gpu));
    if (is_recorded) graph->replay();
    else loss = step(model, sgd, fixed);
    trained.losses.push_back(loss.item<float>());
  }
  for (const NamedTensors& list : {model.named_parameters(), model.named_buffers()})
    for (const auto& [name, x] : list) trained.state.add(name, to(x.detach(), cpu));
  return trained;
}

void check_same(const Trained& a, const Trained& b) {
  CHECK(a.losses == b.losses);
  for (const float loss : a.losses) CHECK(std::isfinite(loss));
  CHECK(a.losses.front() != a.losses.back());
  for (const auto& entry : a.state) {                        // no structured binding: clang 14 cannot capture one
    CAPTURE(entry.first);
    CHECK(equal(entry.second, b.state[entry.first]));
  }
}

}  // namespace

TEST_CASE("cuda: a recognizer's training step with dropout and ctc_loss, recorded and run again, is the step itself bit for bit") {
  if (!has_device()) return;
  const Step step = [](layers::Module& model, optim::Optimizer& optimizer, const Batch& b) {
    model.zero_grad();
    const Tensor loss = ctc_loss(model(b.x), b.targets, b.times, b.lengths);
    loss.backward();
    optim::clip_grad_value(model.named_parameters(), 0.5);
    optimizer.step();
    return loss.detach();
  };
  check_same(train_steps<Reader>(true, line_batch, step), train_steps<Reader>(false, line_batch, step));
}

TEST_CASE("cuda: a classifier's training step with cross_entropy, recorded and run again, is the step itself bit for bit") {
  if (!has_device()) return;
  class Classifier : public layers::Module {
   public:
    Classifier()
        : body(add("body", layers::Sequential(layers::Conv2d({.in = 1, .out = 4, .kernel = 3}), layers::BatchNorm2d(4), layers::ReLU(), layers::MaxPool2d(2),
                                              layers::Flatten(), layers::Dropout(0.5), layers::Linear(36, 5)))) {}
    Tensor forward(const Tensor& x) override { return body(x); }

   private:
    layers::Sequential& body;
  };
  const auto batch = [](unsigned seed) {
    Generator generator(seed);
    return Batch{rand({6, 1, 8, 8}, cpu, generator), randint(0, 5, {6}, {DType::int64, cpu}, generator), {}, {}};
  };
  const Step step = [](layers::Module& model, optim::Optimizer& optimizer, const Batch& b) {
    model.zero_grad();
    const Tensor loss = cross_entropy(model(b.x), b.targets, {.label_smoothing = 0.1});
    loss.backward();
    optimizer.step();
    return loss.detach();
  };
  check_same(train_steps<Classifier>(true, batch, step), train_steps<Classifier>(false, batch, step));
}

TEST_CASE("cuda: each run of a graph draws new numbers of the default generator, those that the work itself would draw") {
  if (!has_device()) return;
  const Tensor x = ones({1000}, gpu);
  Generator other(5);
  Tensor dropped, drawn, fixed;
  manual_seed(9);
  const std::unique_ptr<cuda::Graph> graph = std::make_unique<cuda::Graph>([&] {
    dropped = dropout(x, 0.5);
    drawn = rand({100}, gpu);
    fixed = rand({100}, gpu, other);
  });
  CHECK(default_generator().offset() == 0);                                  // recording draws nothing
  std::vector<Tensor> seen;
  const Tensor always = rand({100}, cpu, *std::make_unique<Generator>(5));
  for (int run = 0; run < 3; ++run) {
    graph->replay();
    seen.push_back(to(dropped, cpu));
    seen.push_back(to(drawn, cpu));
    CHECK(equal(to(fixed, cpu), always));
  }
  manual_seed(9);
  for (size_t run = 0; run < 3; ++run) {
    CHECK(equal(seen[2 * run], dropout(ones({1000}, cpu), 0.5)));
    CHECK(equal(seen[2 * run + 1], rand({100}, cpu)));
  }
  manual_seed(9);                                                            // and after a new seed from the beginning
  graph->replay();
  CHECK(equal(to(dropped, cpu), seen[0]));
  CHECK_THROWS_WITH_AS(cuda::Graph([&] { manual_seed(1); }), doctest::Contains("must not seed the default generator"), ValueError);
  CHECK(default_generator().seed() == 9);
}

TEST_CASE("cuda: a label out of range that a graph meets is an error of the wait after that run") {
  if (!has_device()) return;
  const Tensor weight = rand({4, 2}, gpu), indices = on_gpu({1, 2}, {2});
  Tensor y;
  cuda::Graph graph([&] { y = embedding(indices, weight); });
  const auto run = [&](std::vector<int64_t> values) {
    copy_(indices, on_gpu(values, {2}));
    graph.replay();
    return found_late();
  };
  CHECK(run({0, 3}).empty());
  CHECK(run({0, 4}) == std::string("embedding: indices[1] is 4, out of range [0, 4) for weight [4,2]") + late);
  CHECK(run({3, 3}).empty());
  CHECK(equal(y, index_select(weight, 0, indices)));
}

TEST_CASE("cuda: work that waits for the device cannot be recorded, and work goes on afterwards") {
  if (!has_device()) return;
  const Tensor x = full({10}, 2, gpu);
  cuda::synchronize();
  CHECK_THROWS_AS(cuda::Graph([&] { sum(x).item(); }), DeviceError);
  CHECK(sum(x).item() == 20);
}
