// launch(): what it refuses, what it says, and what it leaves behind.
#include <doctest/doctest.h>
#include <fovea/kernels/cuda/core/launch.h>
#include <fovea/kernels/cuda/graph.h>
#include <fovea/kernels/cuda/runtime.h>

#include <cstdlib>
#include <filesystem>

#include "cuda_kernels.h"
#include "messages.h"

using namespace fovea;
using namespace fovea::kernels::cuda;

namespace {

// y[i] = the number of the block that i belongs to
__global__ void number_blocks(float* y) { y[blockIdx.x * blockDim.x + threadIdx.x] = static_cast<float>(blockIdx.x); }

struct Large {
  float values[20000];                       // more than the 48 KiB that a kernel has without asking
};
__global__ void reverse_through_shared(float* y) {
  Large& memory = shared<Large>();
  const int last = static_cast<int>(blockDim.x) - 1, i = static_cast<int>(threadIdx.x);
  memory.values[19999 - i] = y[i];
  __syncthreads();
  y[i] = memory.values[19999 - (last - i)];
}

// Writes where no memory is.
__global__ void write_nowhere(float* y) { y[threadIdx.x] = 1; }
float* nowhere() { return reinterpret_cast<float*>(uintptr_t{4096}); }

// A failed kernel may cost the process its device, so such cases run in a process of their own, of which only the status is seen.
int status_of_own_process(const std::string& test_case, const std::string& environment = "") {
  const std::string program = std::filesystem::read_symlink("/proc/self/exe").string();
  return std::system((environment + " '" + program + "' --no-skip --test-case='" + test_case + "' > /dev/null 2>&1").c_str());
}

// The address sanitizer ends the program before the model of CUDA can report a bad address.
bool can_see_bad_addresses() {
#ifdef FOVEA_HOST_CUDA
  return !host_cuda::has_address_sanitizer();
#else
  return true;
#endif
}

const std::string shape_of_failure = "kernel write_nowhere (3x1x1 blocks of 32x1x1 threads, 0 bytes of shared memory)";

// After a failed kernel: a launch and a copy either work, or say that the device is lost.
void check_later_calls(const testing::DeviceTensor& y) {
  std::string later;
  try {
    launch(fovea::cuda::queue_on(0), "number_blocks", {blocks_of(3), dim3(2)}, number_blocks, static_cast<float*>(y.view().data));
    CHECK(y.to_host().to_vector<float>() == std::vector<float>{0, 0, 1, 1, 2, 2});
  } catch (const DeviceError& error) {
    later = error.what();
  }
  CHECK((later.empty() || testing::contains(later, "the device is lost to the process: every later call fails the same way")));
}

}  // namespace

TEST_CASE("own process: a kernel that fails late" * doctest::skip()) {
  const testing::DeviceTensor y = testing::DeviceTensor::poisoned({6}, DType::float32);
  float* data = static_cast<float*>(y.view().data);
  fovea::cuda::Graph graph([&] { launch(fovea::cuda::queue_on(0), "number_blocks", {blocks_of(3), dim3(2)}, number_blocks, data); });
  launch(fovea::cuda::queue_on(0), "write_nowhere", {blocks_of(3), dim3(32)}, write_nowhere, nowhere());
  const std::string message = testing::error_of<DeviceError>([] { fovea::cuda::synchronize(); });
  CHECK(testing::contains(message, "cuda:0: while waiting for the device (the latest that this thread launched is " + shape_of_failure + "): "));
  CHECK(testing::contains(message, "(cudaError"));
  CHECK(testing::contains(message, "the device is lost to the process"));
  // A graph recorded before runs, or says the same.
  std::string of_graph;
  try {
    graph.replay();
    fovea::cuda::synchronize();
  } catch (const DeviceError& error) {
    of_graph = error.what();
  }
  CHECK((of_graph.empty() || testing::contains(of_graph, "the device is lost to the process")));
  check_later_calls(y);
}

TEST_CASE("own process: a kernel that fails while launches are synchronous" * doctest::skip()) {
  const testing::DeviceTensor y = testing::DeviceTensor::poisoned({6}, DType::float32);
  fovea::cuda::set_synchronous(true);
  const std::string message = testing::error_of<DeviceError>(
      [] { launch(fovea::cuda::queue_on(0), "write_nowhere", {blocks_of(3), dim3(32)}, write_nowhere, nowhere()); });
  CHECK(testing::contains(message, "cuda: " + shape_of_failure + " failed: "));
  CHECK(testing::contains(message, "(cudaError"));
  CHECK(testing::contains(message, "the device is lost to the process"));
  fovea::cuda::set_synchronous(false);
  check_later_calls(y);
}

TEST_CASE("launch: a kernel that fails is named with its shape and CUDA's error, by the wait that finds it or by the launch itself; later calls work or say that the device is lost") {
  if (!can_see_bad_addresses()) return;
  CHECK(status_of_own_process("own process: a kernel that fails late") == 0);
  CHECK(status_of_own_process("own process: a kernel that fails while*") == 0);
}

TEST_CASE("launch: FOVEA_CUDA_SYNC=1 in the environment makes launches synchronous from the start") {
  CHECK_FALSE(is_synchronous());
  CHECK(status_of_own_process("own process: launches are synchronous", "FOVEA_CUDA_SYNC=1") == 0);
  CHECK(status_of_own_process("own process: launches are synchronous", "FOVEA_CUDA_SYNC=0") != 0);
}
TEST_CASE("own process: launches are synchronous" * doctest::skip()) { CHECK(is_synchronous()); }

TEST_CASE("launch: the latest tells its shape, and what the kernel takes of a multiprocessor") {
  const testing::DeviceTensor y = testing::DeviceTensor::poisoned({4}, DType::float32);
  float* data = static_cast<float*>(y.view().data);
  launch(fovea::cuda::queue_on(0), "number_blocks", {blocks_of(4), dim3(1)}, number_blocks, data);
  const fovea::cuda::LaunchInfo small = fovea::cuda::last_launch();
  CHECK(small.name == "number_blocks");
  CHECK(small.blocks == std::array<int64_t, 3>{4, 1, 1});
  CHECK(small.threads == std::array<int64_t, 3>{1, 1, 1});
  CHECK(small.shared_bytes <= 1024);                         // what a GPU of compute capability 9.0 keeps for itself in each block, if CUDA counts it
  CHECK(small.local_bytes == 0);
  CHECK(small.registers >= 1);
  CHECK(small.blocks_per_multiprocessor >= 16);              // as many blocks as a multiprocessor has, of one warp each
  CHECK(small.occupancy >= 0.25);
  launch(fovea::cuda::queue_on(0), "reverse", {blocks_of(1), dim3(2, 2), sizeof(Large)}, reverse_through_shared, data);
  const fovea::cuda::LaunchInfo large = fovea::cuda::last_launch();
  CHECK(large.threads == std::array<int64_t, 3>{2, 2, 1});
  CHECK(large.shared_bytes >= static_cast<int64_t>(sizeof(Large)));
  CHECK(large.blocks_per_multiprocessor >= 1);
  CHECK(large.blocks_per_multiprocessor <= 3);               // 80000 bytes each
  CHECK(large.occupancy < small.occupancy);
  fovea::cuda::synchronize();
}

TEST_CASE("launch: runs every block, and remembers the name") {
  const Tensor expected = from_vector(std::vector<float>{0, 0, 1, 1, 2, 2}, Shape{6}, Device::cpu());
  const testing::DeviceTensor y = testing::DeviceTensor::poisoned({6}, DType::float32);
  launch(fovea::cuda::queue_on(0), "number_blocks", {blocks_of(3), dim3(2)}, number_blocks, static_cast<float*>(y.view().data));
  CHECK(std::string(last_kernel()) == "number_blocks");
  CHECK(y.to_host().to_vector<float>() == expected.to_vector<float>());
}

TEST_CASE("launch: a grid without blocks is no launch") {
  const testing::DeviceTensor y = testing::DeviceTensor::poisoned({1}, DType::float32);
  float* data = static_cast<float*>(y.view().data);
  launch(fovea::cuda::queue_on(0), "one", {blocks_of(1), dim3(1)}, number_blocks, data);
  launch(fovea::cuda::queue_on(0), "none", {blocks_of(0), dim3(1)}, number_blocks, data);
  CHECK(std::string(last_kernel()) == "one");
}

TEST_CASE("launch: shared memory beyond 48 KiB is asked for") {
  const Tensor x = from_vector(std::vector<float>{1, 2, 3, 4}, Shape{4}, Device::cpu());
  const testing::DeviceTensor y(x);
  launch(fovea::cuda::queue_on(0), "reverse", {blocks_of(1), dim3(4), sizeof(Large)}, reverse_through_shared, static_cast<float*>(y.view().data));
  CHECK(y.to_host().to_vector<float>() == std::vector<float>{4, 3, 2, 1});
}

TEST_CASE("launch: synchronous launches can be recorded, and run when the graph does") {
  const testing::DeviceTensor y = testing::DeviceTensor::poisoned({6}, DType::float32);
  float* data = static_cast<float*>(y.view().data);
  fovea::cuda::set_synchronous(true);
  fovea::cuda::Graph graph([&] { launch(fovea::cuda::queue_on(0), "number_blocks", {blocks_of(3), dim3(2)}, number_blocks, data); });
  CHECK(std::isnan(y.to_host().to_vector<float>()[0]));      // recorded, not run
  graph.replay();
  fovea::cuda::set_synchronous(false);
  CHECK(y.to_host().to_vector<float>() == std::vector<float>{0, 0, 1, 1, 2, 2});
}

TEST_CASE("launch: to ask whether work is done leaves no error behind") {
  const testing::DeviceTensor y = testing::DeviceTensor::poisoned({6}, DType::float32);
  fovea::cuda::Event end;
  for (int i = 0; i < 200; ++i) launch(fovea::cuda::queue_on(0), "number_blocks", {blocks_of(3), dim3(2)}, number_blocks, static_cast<float*>(y.view().data));
  end.record();
  [[maybe_unused]] int asked = 0;
  for (; !fovea::cuda::current_stream().is_idle() && !end.has_passed(); ++asked) {
    CHECK(cudaPeekAtLastError() == cudaSuccess);
  }
  end.synchronize();
  CHECK(cudaPeekAtLastError() == cudaSuccess);
#ifdef FOVEA_HOST_CUDA
  CHECK(asked > 0);                                          // a GPU may be faster than the host
#endif
}

TEST_CASE("launch: where CUDA itself finds no memory it is a MemoryError that tells how to make room") {
  const std::string message = testing::error_of<MemoryError>([] { check_cuda(cudaErrorMemoryAllocation, "kernel ", "k", " failed"); });
  CHECK(testing::contains(message, "kernel k failed: "));
  CHECK(testing::contains(message, "cuda::allocator::clear() gives back what is cached"));
  CHECK_THROWS_AS(check_cuda(cudaErrorInvalidValue, "kernel"), DeviceError);
}

TEST_CASE("launch: what no device can run is an error that says so, and later launches work") {
  const testing::DeviceTensor y = testing::DeviceTensor::poisoned({2}, DType::float32);
  float* data = static_cast<float*>(y.view().data);
  const auto start = [&](dim3 blocks, dim3 threads, size_t bytes = 0) { launch(fovea::cuda::queue_on(0), "wrong", {blocks, threads, bytes}, number_blocks, data); };
  CHECK(testing::error_of([&] { start(blocks_of(int64_t{1} << 32), dim3(1)); }) == "cuda: a grid of 4294967296x1x1 blocks cannot be launched: it has at most 2147483647x65535x65535; cut the tensors into parts");
  CHECK(testing::error_of([&] { start(blocks_of(1, 65536), dim3(1)); }).find("1x65536x1 blocks cannot be launched") != std::string::npos);
  CHECK(testing::error_of([&] { start(blocks_of(1), dim3(2048)); }).find("cuda: kernel wrong (1x1x1 blocks of 2048x1x1 threads, 0 bytes of shared memory) cannot be launched") == 0);
  CHECK(testing::error_of([&] { start(blocks_of(1), dim3(1), size_t{1} << 30); }).find("wants more shared memory than a block can have") != std::string::npos);
  start(blocks_of(1), dim3(2));
  CHECK(y.to_host().to_vector<float>() == std::vector<float>{0, 0});
}
