// Devices, memory, copies and launches of the runtime API.
#include <algorithm>
#include <cstring>
#include <map>
#include <set>
#include <utility>

#include "stream.h"

using namespace host_cuda;

#define HOST_CUDA_LOCK const std::lock_guard lock(api_lock())

namespace {

constexpr int sm_count = 4;                        // few, so that loops over a grid that is too small for its work are run through
constexpr int shared_default = 48 << 10, shared_most = 227 << 10, shared_of_sm = 228 << 10, shared_reserved = 1 << 10;
constexpr int threads_of_sm = 2048, blocks_of_sm = 32;
constexpr int portable_cluster_blocks = 8;         // more have to be asked for
constexpr size_t address_space = size_t{1} << 47;  // to drivers more is no size at all

thread_local const char* next_name = nullptr;

std::map<const void*, int>& shared_limits() {      // of kernels that asked for more than 48 KiB
  static auto& limits = *new std::map<const void*, int>;
  return limits;
}
std::set<const void*>& large_clusters() {          // kernels that asked for more blocks in a cluster
  static auto& kernels = *new std::set<const void*>;
  return kernels;
}
int shared_limit(const void* kernel) {
  const auto found = shared_limits().find(kernel);
  return found == shared_limits().end() ? shared_default : found->second;
}

std::string describe(const void* pointer, size_t bytes) { return text(bytes, " bytes at ", pointer, " (", describe_address(pointer), ")"); }

// Whether all of the range lies in one allocation, of the device or pinned.
bool holds(const Allocation* a, const void* pointer, size_t bytes) {
  return a && bytes <= a->bytes && static_cast<const char*>(pointer) - a->begin <= static_cast<ptrdiff_t>(a->bytes - bytes);
}

enum class Place { device, pinned, pageable };
Place place_of(const void* p) { return is_device_range(p) ? Place::device : find_pinned(p) ? Place::pinned : Place::pageable; }

// What is wrong with one end of a copy; "" when nothing is.
std::string find_fault(const char* end, const void* pointer, size_t bytes, bool must_be_device, bool must_be_host) {
  const Place place = place_of(pointer);
  if (must_be_device && place != Place::device) return text("the ", end, " is not device memory: ", pointer);
  if (must_be_host && place == Place::device) return text("the ", end, " is device memory: ", describe(pointer, bytes));
  if (place == Place::device && !holds(find_device(pointer), pointer, bytes)) return text("the ", end, " does not lie in one allocation: ", describe(pointer, bytes));
  if (place == Place::pinned && !holds(find_pinned(pointer), pointer, bytes))
    return text("the ", end, " does not lie in one pinned allocation: ", bytes, " bytes at ", pointer);
  return {};
}

bool is_capturing(const Stream& s) { return s.capture != nullptr; }

cudaError_t refuse(const std::string& sentence, cudaError_t code = cudaErrorInvalidValue) { return remember(code, sentence + seed_note()); }

// Memory may have been freed since the work on it was queued.
void require_allocated(const char* call, const void* p, size_t bytes) {
  if (!holds(find_device(p), p, bytes)) throw Failure(cudaErrorIllegalAddress, text(call, ": at its turn, ", describe(p, bytes), " was not allocated", seed_note()));
}

void copy_now(void* to, const void* from, size_t bytes) {
  for (const void* p : {const_cast<const void*>(to), from})
    if (is_device_range(p)) require_allocated("cudaMemcpyAsync", p, bytes);
  std::memmove(to, from, bytes);
}

}  // namespace

// ---- devices ----

cudaError_t cudaGetDeviceCount(int* count) {
  *count = device_count();
  return *count ? cudaSuccess : remember(cudaErrorNoDevice);
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device < 0 || device >= device_count()) return remember(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: case cudaDevAttrMaxBlockDimX: case cudaDevAttrMaxBlockDimY: *value = 1024; break;
    case cudaDevAttrMaxBlockDimZ: *value = 64; break;
    case cudaDevAttrMaxGridDimX: *value = 2147483647; break;
    case cudaDevAttrMaxGridDimY: case cudaDevAttrMaxGridDimZ: *value = 65535; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = shared_default; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = shared_most; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = shared_of_sm; break;
    case cudaDevAttrReservedSharedMemoryPerBlock: *value = shared_reserved; break;
    case cudaDevAttrTotalConstantMemory: case cudaDevAttrMaxRegistersPerBlock: *value = 65536; break;
    case cudaDevAttrWarpSize: *value = warpSize; break;
    case cudaDevAttrClockRate: case cudaDevAttrMemoryClockRate: *value = 1000000; break;
    case cudaDevAttrGlobalMemoryBusWidth: *value = 64; break;
    case cudaDevAttrMultiProcessorCount: *value = sm_count; break;
    case cudaDevAttrConcurrentKernels: case cudaDevAttrClusterLaunch: case cudaDevAttrUnifiedAddressing: *value = 1; break;
    case cudaDevAttrCooperativeLaunch: case cudaDevAttrPageableMemoryAccess: *value = 0; break;
    case cudaDevAttrL2CacheSize: *value = 1 << 20; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = threads_of_sm; break;
    case cudaDevAttrMaxBlocksPerMultiprocessor: *value = blocks_of_sm; break;
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    default: return remember(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
  if (device < 0 || device >= device_count()) return remember(cudaErrorInvalidDevice);
  *p = {};
  std::strcpy(p->name, "model of CUDA on the host");
  p->totalGlobalMem = device_memory_size();
  p->sharedMemPerBlock = shared_default, p->sharedMemPerBlockOptin = shared_most, p->sharedMemPerMultiprocessor = shared_of_sm;
  p->major = 9, p->multiProcessorCount = sm_count, p->warpSize = warpSize, p->maxThreadsPerBlock = 1024;
  p->maxThreadsPerMultiProcessor = threads_of_sm, p->l2CacheSize = 1 << 20, p->regsPerBlock = 65536;
  return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* version) { return *version = device_count() ? CUDART_VERSION : 0, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }

// ---- memory ----

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  HOST_CUDA_LOCK;
  *pointer = nullptr;
  if (device_count() == 0) return remember(cudaErrorNoDevice);
  if (bytes == 0) return cudaSuccess;
  if (bytes >= address_space) return remember(cudaErrorInvalidValue);
  *pointer = allocate_device(bytes, current_device());
  return *pointer ? cudaSuccess : remember(cudaErrorMemoryAllocation);
}

cudaError_t cudaFree(void* pointer) {
  HOST_CUDA_LOCK;
  if (!pointer) return cudaSuccess;
  const cudaError_t result = run_all();
  if (!free_device(pointer)) return refuse(text("cudaFree: ", pointer, " is not the beginning of an allocation (", describe_address(pointer), ")"));
  return result;
}

cudaError_t cudaMallocHost(void** pointer, size_t bytes) {
  HOST_CUDA_LOCK;
  *pointer = nullptr;
  if (bytes >= address_space) return remember(cudaErrorInvalidValue);
  *pointer = allocate_pinned(bytes);
  return *pointer ? cudaSuccess : remember(cudaErrorMemoryAllocation);
}
cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) { return cudaMallocHost(pointer, bytes); }

cudaError_t cudaFreeHost(void* pointer) {
  HOST_CUDA_LOCK;
  if (!pointer) return cudaSuccess;
  const cudaError_t result = run_all();
  if (!free_pinned(pointer)) return refuse(text("cudaFreeHost: ", pointer, " does not come from cudaMallocHost"));
  return result;
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  HOST_CUDA_LOCK;
  *total = device_memory_size();
  *free = *total - std::min(*total, device_memory_used(current_device()));
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  HOST_CUDA_LOCK;
  void* p = const_cast<void*>(pointer);
  if (const Allocation* a = find_device(pointer)) *attributes = {cudaMemoryTypeDevice, a->device, p, nullptr};
  else if (find_pinned(pointer)) *attributes = {cudaMemoryTypeHost, 0, p, p};
  else *attributes = {cudaMemoryTypeUnregistered, -2, nullptr, p};
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  HOST_CUDA_LOCK;
  Stream* s = resolve(stream);
  if (!s) return remember(cudaErrorInvalidResourceHandle);
  if (bytes == 0) return cudaSuccess;
  const bool to_host = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyHostToHost, from_host = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyHostToHost;
  const bool is_told = kind != cudaMemcpyDefault;
  std::string fault = find_fault("destination", to, bytes, is_told && !to_host, is_told && to_host);
  if (fault.empty()) fault = find_fault("source", from, bytes, is_told && !from_host, is_told && from_host);
  if (!fault.empty()) return refuse("cudaMemcpyAsync: " + fault);

  const Place source = place_of(from), destination = place_of(to);
  if (is_capturing(*s) && (source == Place::pageable || destination == Place::pageable)) {
    s->capture->is_broken = true;
    return remember(cudaErrorStreamCaptureUnsupported);
  }
  Operation copy{[] { return std::string("cudaMemcpyAsync"); }, {}, {}, {}, true, false, 0};
  if (source == Place::pageable) {                 // taken now: the caller may change it as soon as this returns
    const char* bytes_from = static_cast<const char*>(from);
    auto taken = std::make_shared<std::vector<char>>(bytes_from, bytes_from + bytes);
    copy.run = [=] { copy_now(to, taken->data(), bytes); };
  } else {
    copy.run = [=] { copy_now(to, from, bytes); };
  }
  if (const cudaError_t result = enqueue(*s, std::move(copy))) return result;
  if (destination != Place::pageable) return cudaSuccess;
  return run_until([&] { return s->queue.empty(); });
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  HOST_CUDA_LOCK;
  Stream* s = resolve(stream);
  if (!s) return remember(cudaErrorInvalidResourceHandle);
  if (bytes == 0) return cudaSuccess;
  const std::string fault = find_fault("destination", to, bytes, true, false);
  if (!fault.empty()) return refuse("cudaMemsetAsync: " + fault);
  return enqueue(*s, {[] { return std::string("cudaMemsetAsync"); }, [=] {
                        require_allocated("cudaMemsetAsync", to, bytes);
                        std::memset(to, value, bytes);
                      }, {}, {}, true, false, 0});
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  HOST_CUDA_LOCK;
  const cudaError_t result = cudaMemcpyAsync(to, from, bytes, kind, nullptr);
  return result ? result : cudaStreamSynchronize(nullptr);
}
cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  HOST_CUDA_LOCK;
  const cudaError_t result = cudaMemsetAsync(to, value, bytes, nullptr);
  return result ? result : cudaStreamSynchronize(nullptr);
}

// ---- kernels ----

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  HOST_CUDA_LOCK;
  if (!kernel) return remember(cudaErrorInvalidValue);
  if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) return cudaSuccess;
  if (attribute == cudaFuncAttributeNonPortableClusterSizeAllowed) {
    if (value) large_clusters().insert(kernel);
    else large_clusters().erase(kernel);
    return cudaSuccess;
  }
  if (value < 0 || value > shared_most) return remember(cudaErrorInvalidValue);
  shared_limits()[kernel] = value;
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel) {
  HOST_CUDA_LOCK;
  if (!kernel) return remember(cudaErrorInvalidValue);
  *attributes = {0, 0, 0, 1024, 32, 90, 90, shared_limit(kernel)};
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* kernel, int threads, size_t shared_bytes) {
  if (!kernel || threads < 1 || threads > 1024) return remember(cudaErrorInvalidValue);
  const int whole_warps = (threads + warpSize - 1) / warpSize * warpSize;
  *blocks = std::min({threads_of_sm / whole_warps, blocks_of_sm, shared_of_sm / (static_cast<int>(shared_bytes) + shared_reserved)});
  return cudaSuccess;
}

namespace host_cuda {

namespace {

cudaError_t enqueue_launch(Stream& stream, Launch launch) {
  auto kept = std::make_shared<const Launch>(std::move(launch));
  return enqueue(stream, {[kept] { return describe(*kept); }, [kept] { run_grid(*kept); }, {}, {}, false, false, 0});
}

}  // namespace

void name_next_launch(const char* name) { next_name = name; }

cudaError_t enqueue_kernel(const cudaLaunchConfig_t& config, const void* kernel, std::function<void()> thread) {
  HOST_CUDA_LOCK;
  const char* name = std::exchange(next_name, nullptr);
  Stream* s = resolve(config.stream);
  if (!s) return remember(cudaErrorInvalidResourceHandle);
  dim3 cluster;
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    if (config.attrs[i].id != cudaLaunchAttributeClusterDimension) return remember(cudaErrorNotSupported);
    const auto& wish = config.attrs[i].val.clusterDim;
    cluster = dim3(wish.x, wish.y, wish.z);
  }
  const dim3 b = config.gridDim, t = config.blockDim;
  const bool is_shaped = b.x >= 1 && b.x <= 2147483647u && b.y >= 1 && b.y <= 65535 && b.z >= 1 && b.z <= 65535 && t.x >= 1 && t.y >= 1 && t.z >= 1 && t.z <= 64 &&
                         uint64_t{t.x} * t.y * t.z <= 1024;
  if (!is_shaped) return remember(cudaErrorInvalidConfiguration);
  const uint64_t together = uint64_t{cluster.x} * cluster.y * cluster.z;
  const bool may_be_large = large_clusters().count(kernel) != 0;
  if (together < 1 || together > static_cast<uint64_t>(may_be_large ? most_cluster_blocks : portable_cluster_blocks)) return remember(cudaErrorInvalidClusterSize);
  if (b.x % cluster.x || b.y % cluster.y || b.z % cluster.z) return remember(cudaErrorInvalidConfiguration);
  if (config.dynamicSmemBytes > static_cast<size_t>(shared_limit(kernel))) return remember(cudaErrorInvalidValue);
  return enqueue_launch(*s, {name ? name : "", kernel, b, t, cluster, config.dynamicSmemBytes, std::move(thread)});
}

// As a kernel of one thread, so that a bad address in it is reported like a kernel's.
cudaError_t enqueue_work(cudaStream_t stream, const char* name, std::function<void()> work) {
  HOST_CUDA_LOCK;
  Stream* s = resolve(stream);
  if (!s) return remember(cudaErrorInvalidResourceHandle);
  return enqueue_launch(*s, {name, nullptr, 1, 1, 1, 0, std::move(work)});
}

}  // namespace host_cuda
