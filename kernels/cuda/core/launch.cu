#include <fovea/kernels/cuda/core/launch.h>
#include <fovea/kernels/cuda/core/launch_log.h>

#include <atomic>
#include <cstdlib>
#include <cstring>

namespace fovea::kernels::cuda {
namespace {

thread_local std::vector<std::string>* launch_log = nullptr;

constexpr size_t default_shared_limit = 48 << 10;          // more has to be asked for
constexpr unsigned most_threads = 1024, most_blocks_yz = 65535;
constexpr int64_t most_blocks_x = (int64_t{1} << 31) - 1;
constexpr uint64_t portable_cluster_blocks = 8, most_cluster_blocks = 16;      // more than 8 have to be asked for, and not every GPU has them

std::atomic<bool>& synchronous() {
  static std::atomic<bool> is_on{[] {
    const char* wish = std::getenv("FOVEA_CUDA_SYNC");
    return wish && std::strcmp(wish, "0") != 0;
  }()};
  return is_on;
}

std::string describe(const char* name, const Grid& g) {
  return "cuda: " + describe(LaunchRecord{name, nullptr, g.blocks, g.threads, g.cluster, g.shared_bytes, 0});
}

void prepare_cluster(const char* name, const Grid& g, const void* kernel) {
  const uint64_t blocks = cluster_blocks(g);
  if (blocks < 1 || blocks > most_cluster_blocks) [[unlikely]]
    fail<DeviceError>(describe(name, g), " cannot be launched: a cluster has 1 to ", most_cluster_blocks, " blocks");
  if (g.blocks.x % g.cluster.x != 0 || g.blocks.y % g.cluster.y != 0 || g.blocks.z % g.cluster.z != 0) [[unlikely]]
    fail<DeviceError>(describe(name, g), " cannot be launched: its blocks are not a multiple of the cluster's along each dimension");
  int device = 0, has_clusters = 0;
  check_cuda(cudaGetDevice(&device), "asking for the device");
  check_cuda(cudaDeviceGetAttribute(&has_clusters, cudaDevAttrClusterLaunch, device), "asking whether the device has clusters");
  if (!has_clusters) [[unlikely]] fail<DeviceError>(describe(name, g), " cannot be launched: clusters need a GPU of compute capability 9.0 or later");
  if (blocks > portable_cluster_blocks)
    if (const cudaError_t result = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1); result != cudaSuccess)
      fail_cuda(result, describe(name, g) + " wants larger clusters than the device has");
}

// Errors after which CUDA answers every call of the process with the same error.
bool loses_device(cudaError_t error) {
  switch (static_cast<int>(error)) {
    case 214: case 220: case 226:                          // memory or a link that can't be corrected, contained
    case 700: case 702:                                    // illegal address, time-out
    case 710: case 714: case 715: case 716: case 717: case 718: case 719:    // assert, hardware stack, illegal instruction, misaligned, address space, program counter, launch
    case 721: return true;                                 // memory of tensor cores not given back
    default: return false;
  }
}

}  // namespace

void fail_cuda(cudaError_t result, const std::string& what) {
  cudaGetLastError();                                      // an error that does not outlive its call is forgotten, so that later calls are not blamed for it
  fail<DeviceError>(what, ": ", cudaGetErrorString(result), " (", cudaGetErrorName(result), ")",
                    loses_device(result) ? "; with this error the device is lost to the process: every later call fails the same way, and the program must be started again" : "");
}

void set_synchronous(bool is_on) { synchronous() = is_on; }
bool is_synchronous() { return synchronous(); }

LaunchRecord& latest_launch() {
  thread_local LaunchRecord latest;
  return latest;
}
const char* last_kernel() { return latest_launch().name; }

std::string describe(const LaunchRecord& l) {
  const bool has_clusters = l.cluster.x != 1 || l.cluster.y != 1 || l.cluster.z != 1;
  const std::string clusters = has_clusters ? str(" in clusters of ", l.cluster.x, "x", l.cluster.y, "x", l.cluster.z) : "";
  return str("kernel ", l.name, " (", l.blocks.x, "x", l.blocks.y, "x", l.blocks.z, " blocks of ", l.threads.x, "x", l.threads.y, "x", l.threads.z, " threads", clusters, ", ",
             l.shared_bytes, " bytes of shared memory)");
}

void log_launches(std::vector<std::string>* names) { launch_log = names; }

dim3 blocks_of(int64_t x, int64_t y, int64_t z) {
  check<DeviceError>(x <= most_blocks_x && y <= most_blocks_yz && z <= most_blocks_yz, "cuda: a grid of ", x, "x", y, "x", z, " blocks cannot be launched: it has at most ",
                     most_blocks_x, "x", most_blocks_yz, "x", most_blocks_yz, "; cut the tensors into parts");
  return dim3(static_cast<unsigned>(x), static_cast<unsigned>(y), static_cast<unsigned>(z));
}

bool prepare_launch(const char* name, const Grid& g, const void* kernel) {
  if (g.blocks.x == 0 || g.blocks.y == 0 || g.blocks.z == 0) return false;
  const uint64_t threads = uint64_t{g.threads.x} * g.threads.y * g.threads.z;
  if (threads < 1 || threads > most_threads || g.blocks.y > most_blocks_yz || g.blocks.z > most_blocks_yz) [[unlikely]]
    fail<DeviceError>(describe(name, g), " cannot be launched: a block has 1 to ", most_threads, " threads, a grid at most ", most_blocks_yz, " blocks along y and z");
  if (cluster_blocks(g) != 1) prepare_cluster(name, g, kernel);
  if (g.shared_bytes > default_shared_limit)
    if (const cudaError_t result = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(g.shared_bytes)); result != cudaSuccess)
      fail_cuda(result, describe(name, g) + " wants more shared memory than a block can have");
  LaunchRecord& latest = latest_launch();
  latest = {name, kernel, g.blocks, g.threads, g.cluster, g.shared_bytes, 0};
  cudaGetDevice(&latest.device);
  return true;
}

namespace {

// What is recorded runs later; there is nothing to wait for.
bool is_recorded(Queue queue) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  return queue && cudaStreamIsCapturing(stream_of(queue), &status) == cudaSuccess && status != cudaStreamCaptureStatusNone;
}

}  // namespace

void finish_launch(const char* name, const Grid& g, Queue queue, cudaError_t result) {
  if (launch_log) [[unlikely]] launch_log->push_back(name);
  if (result == cudaSuccess && is_synchronous() && !is_recorded(queue)) result = cudaStreamSynchronize(stream_of(queue));
  if (result != cudaSuccess) [[unlikely]] fail_cuda(result, describe(name, g) + " failed");
}

}  // namespace fovea::kernels::cuda
