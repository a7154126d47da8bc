// launch(): what it refuses, what it says, and what it leaves behind.
#include <doctest/doctest.h>
#include <fovea/kernels/cuda/core/launch.h>
#include <fovea/kernels/cuda/runtime.h>

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

}  // namespace

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
