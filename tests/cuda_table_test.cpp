// What the table of CUDA devices holds, and what an entry says that no kernel stands behind.
#include <doctest/doctest.h>

#include <fovea/kernels/cuda/core/check.h>
#include <fovea/kernels/cuda/table.h>
#include <fovea/kernels/table_entries.h>

using namespace fovea;
using namespace fovea::kernels;

TEST_CASE("cuda table: an entry without a kernel throws an error with its name") {
  KernelTable table{};
  kernels::cuda::fill_with_missing(table);
  CHECK_THROWS_WITH_AS(table.conv2d_workspace({}, DType::float32), doctest::Contains("cuda: no kernel `conv2d_workspace` in this build"), DeviceError);
  CHECK_THROWS_WITH_AS(table.softmax(nullptr, {}, false, {}, {}), doctest::Contains("`softmax`"), DeviceError);
  CHECK_THROWS_WITH_AS(table.max_pool(nullptr, {}, {}, {}, {}), doctest::Contains("`max_pool`"), DeviceError);
  CHECK_THROWS_WITH_AS(table.avg_pool(nullptr, {}, {}, {}), doctest::Contains("`avg_pool`"), DeviceError);
  CHECK_THROWS_WITH_AS(table.avg_pool_backward(nullptr, {}, {}, {}), doctest::Contains("`avg_pool_backward`"), DeviceError);   // of the same signature
}

TEST_CASE("cuda table: every entry has a kernel") {
  if (fovea::cuda::device_count() == 0) return;
  for (const std::string& name : kernels::cuda::missing_entries()) FAIL_CHECK("no kernel `", name, "`");
  int entries = 0;
  for_each_entry(cuda_table(0), [&](const char* name, const auto& entry) {
    CAPTURE(name);
    CHECK((entry != nullptr));
    ++entries;
  });
  CHECK(entries == num_entries);
}

TEST_CASE("cuda: an error that outlives its call says that the device is lost, others don't") {
  CHECK_THROWS_WITH_AS(kernels::cuda::check_cuda(cudaErrorIllegalAddress, "cuda: kernel f failed"), doctest::Contains("the device is lost to the process"), DeviceError);
  CHECK_THROWS_WITH_AS(kernels::cuda::check_cuda(cudaErrorInvalidValue, "cuda: kernel f failed"), doctest::Contains("(cudaErrorInvalidValue)"), DeviceError);
  try {
    kernels::cuda::check_cuda(cudaErrorInvalidValue, "cuda: kernel f failed");
  } catch (const DeviceError& error) {
    CHECK(std::string(error.what()).ends_with("(cudaErrorInvalidValue)"));
  }
}
