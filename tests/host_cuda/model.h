// What the parts of the model tell each other; kernels and their host code never see this.
#pragma once

#include <signal.h>

#include <cstdint>
#include <functional>
#include <sstream>
#include <stdexcept>
#include <string>

#include "cuda_runtime.h"

namespace host_cuda {

// ---- chance (schedule.cpp) ----

// xorshift64* (Vigna 2016): a schedule must be repeatable from its seed, and chosen in a nanosecond.
class Chance {
 public:
  explicit Chance(uint64_t seed);
  uint64_t next();
  uint32_t below(uint32_t n) { return static_cast<uint32_t>((next() >> 32) * n >> 32); }
  bool one_in(uint32_t n) { return below(n) == 0; }

 private:
  uint64_t state_;
};
Chance& chance();
std::string seed_note();                 // " (FOVEA_HOST_CUDA_SEED=3)", for the end of a message

// ---- failures ----

struct Failure : std::runtime_error {
  Failure(cudaError_t code, const std::string& text) : std::runtime_error(text), code(code) {}
  cudaError_t code;
};

template <class... Args>
std::string text(const Args&... args) {
  std::ostringstream out;
  (out << ... << args);
  return out.str();
}

// ---- running a kernel (block.cpp) ----

constexpr int most_cluster_blocks = 16;
constexpr int most_resident_blocks = most_cluster_blocks, most_resident_threads = most_resident_blocks * 1024;

struct Launch {
  std::string name;                      // "": that of the function
  const void* kernel = nullptr;
  dim3 blocks, threads;
  dim3 cluster;                          // blocks of a cluster
  size_t shared_bytes = 0;
  std::function<void()> thread;          // runs the kernel for the thread that threadIdx and blockIdx name
};
void run_grid(const Launch& launch);     // throws Failure
std::string name_of_kernel(const void* kernel);
std::string describe(const Launch& launch);

// An instruction of PTX that the 32 lanes of a warp carry out together: `run` gets what each of them brought, when all have come.
struct Collective {
  const char* name;
  void (*run)(void* const (&lanes)[32]);
};
void arrive_together(const Collective& collective, void* operands, Site site);
int current_thread();                    // its number among all that are resident; that of a block's first is a multiple of 128
struct SharedRange {
  char* begin;
  size_t bytes;
};
SharedRange shared_range();              // of the block whose thread runs
int current_block();                     // its number among those that are resident; -1: no thread runs
std::string name_of_block(int block);
std::string state_of_block(int block);   // ", which has not begun", ", which has ended" or ""
int block_of_rank(int rank, const char* name, Site site);      // its number; fails where the cluster has no such block
std::string at_site(Site site);          // " at file.cu:12"
std::string called(const char* name, Site site);      // how a sentence about an instruction begins
std::string hex(uint32_t value);
void begin_copies(int threads);          // ptx.cpp: blocks begin, and have no asynchronous copies under way

// The same for the instructions of sm_90 (ptx_hopper.cpp).
void begin_transfers(int threads);
bool land_transfer();                    // one of the copies of boxes, at random; false when none is under way
std::string left_undone(int thread);     // by a thread that returns: the rest of a sentence, or ""
void begin_products(int threads);        // ptx_products.cpp
std::string products_left_undone(int thread);
std::string products_left_undone_by_block(int first, int threads);
std::string left_undone_by_block(int first, int threads);      // the same when all threads of a block have returned
// The current thread waits until another wakes it. `what` stands in messages about a deadlock.
void park(const char* what, Site site);
void wake(int thread);

bool in_kernel();                        // whether a thread of a kernel runs now
// Ends the kernel that runs: run_grid throws a Failure that begins with the kernel, block and thread.
[[noreturn]] void fail_kernel(const std::string& what, cudaError_t code = cudaErrorLaunchFailure);
// For the handler of SIGSEGV: where to continue, and on which stack.
void* fault_entry();
void* fault_stack_top();
void note_fault(const void* address, bool is_known, int is_write);

// ---- memory (memory.cpp) ----

struct Allocation {
  char* begin;
  size_t bytes;
  int device;
};
char* allocate_device(size_t bytes, int device);                    // nullptr when it does not fit
bool free_device(void* pointer);                                    // false: not the beginning of an allocation
void* allocate_pinned(size_t bytes);
bool free_pinned(void* pointer);
const Allocation* find_device(const void* address);                 // the allocation that contains it, or nullptr
const Allocation* find_pinned(const void* address);
bool is_device_range(const void* address);                          // anywhere in the arena, allocated or not
size_t device_memory_size();
size_t device_memory_used(int device);
std::string describe_address(const void* address);

// While one is alive, the thread that made it may touch the memory of the device that it shows: of none at first.
class Window {
 public:
  static constexpr int none = -2, all = -1;
  Window();
  ~Window();
  Window(const Window&) = delete;
  void show(int device);
};
// While one is alive, this thread handles signals on a stack of their own: a fiber's may be what has overflowed.
class SignalStack {
 public:
  SignalStack();
  ~SignalStack();
  SignalStack(const SignalStack&) = delete;

 private:
  stack_t previous_;
};
// Looks beside the allocations that were touched since the Window shows what it shows. Throws Failure.
void check_guards(const std::function<std::string()>& culprit);

// The shared memory of each resident block ends at a page that may not be touched.
void begin_shared(size_t bytes);                                    // for a launch: so many bytes for each
char* shared_of(int block);
void poison_shared(int block);                                      // before it begins
void close_shared(int block);                                       // nobody may touch it
void open_shared(int block);
const char* damaged_shared(int block);                              // what was overwritten beside it, or nullptr
int block_of_shared(const void* address);                           // whose shared memory (or what lies beside it) this is; -1: nobody's

// ---- streams (stream.cpp) ----

cudaError_t remember(cudaError_t error, const std::string& sentence = {});      // for cudaGetLastError and cudaGetErrorString
int current_device();
int device_count();

}  // namespace host_cuda
