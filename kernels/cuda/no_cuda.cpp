// Stands in for the CUDA backend in a build without one: no device is there, and asking for one says how to get it.
#include <fovea/kernels/cuda/allocator.h>
#include <fovea/kernels/cuda/graph.h>
#include <fovea/kernels/cuda/nvtx.h>
#include <fovea/kernels/cuda/runtime.h>
#include <fovea/kernels/table.h>

namespace fovea {
namespace {

[[noreturn]] void fail_without_cuda(const std::string& what) {
  fail<DeviceError>(what, ": this build of Fovea has no CUDA; configure with `cmake --preset cuda` on a machine that has nvcc");
}

}  // namespace

namespace kernels {

const KernelTable& cuda_table(int index) { fail_without_cuda(str("cuda:", index)); }

}  // namespace kernels

namespace cuda {

int device_count() noexcept { return 0; }
bool is_built() noexcept { return false; }
void check_device(int index) { fail_without_cuda(str("cuda:", index)); }
int current_device() noexcept { return 0; }
void set_device(int index) { check_device(index); }

Stream::Stream(int device) { check_device(device); }
Stream Stream::default_of(int device) { return Stream(device); }
int Stream::device() const { return 0; }
void* Stream::handle() const { return nullptr; }
void Stream::synchronize() const {}
bool Stream::is_idle() const { return true; }
void Stream::wait(const Event&) const {}
Stream current_stream(int device) { return Stream(device); }
StreamScope::StreamScope(const Stream&) {}
StreamScope::~StreamScope() = default;

Event::Event(int device) { check_device(device); }
void Event::record(const Stream&) {}
void Event::synchronize() const {}
bool Event::has_passed() const { return true; }
int Event::device() const { return 0; }
double seconds_between(const Event&, const Event&) { return 0; }

void synchronize(int device) { check_device(device); }
kernels::Queue queue_on(int device) { fail_without_cuda(str("cuda:", device)); }
void record_use(const void*, const Stream&) {}
void copy_bytes(void*, Device to, const void*, Device from, int64_t, bool) { fail_without_cuda(str("copying from ", from, " to ", to)); }
void* allocate_pinned(int64_t bytes) { fail_without_cuda(str("allocate_pinned of ", bytes, " bytes")); }
void release_pinned(void*, int64_t) {}
void set_synchronous(bool) {}
const char* last_kernel() { return ""; }
LaunchInfo last_launch() { return {}; }
void set_allow_tf32(bool) {}
bool allow_tf32() { return false; }

namespace detail {
constinit std::atomic<int> range_switch{0};
bool read_range_switch() { return false; }
}  // namespace detail
void set_ranges(bool) {}
void Range::open(const char*, const char*) {}
void Range::close() noexcept {}

Graph::Graph(const std::function<void()>&, int device) { check_device(device); }
void Graph::replay() {}
uint64_t recording() noexcept { return 0; }

namespace allocator {

void* allocate(int64_t, int device) { fail_without_cuda(str("cuda:", device)); }
void release(void*, int64_t, int) noexcept {}
AllocatorStats stats(int device) { fail_without_cuda(str("cuda:", device)); }
void reset_peak(int device) { check_device(device); }
void set_limit(int64_t, int device) { check_device(device); }
void clear(int device) { check_device(device); }
AllocatorStats pinned_stats() { return {}; }
void clear_pinned() {}
void set_debug(bool) {}
int64_t damaged_blocks() { return 0; }

}  // namespace allocator
}  // namespace cuda
}  // namespace fovea
