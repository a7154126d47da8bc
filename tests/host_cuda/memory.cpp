// Device memory is a range of addresses that nobody may touch. While a Window shows a device, the first access to an allocation of it is a fault that opens the
// allocation, and the access is tried again: work pays for what it touches, however much is allocated. Without one, host code that follows a device pointer gets a
// SIGSEGV and a sentence. An allocation lies at the end of its pages, as near as CUDA's alignment of 256 bytes allows, and pages that are never opened stand
// around it; what is left over of its own pages holds a pattern that is checked after every kernel. Fresh memory is filled with 0xff (NaN, -1). A freed range of
// addresses is not used again before the whole arena has been, so that a stale pointer is caught too.
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <utility>
#include <vector>

#include "model.h"
#include "sanitizers.h"

namespace host_cuda {
namespace {

constexpr size_t alignment = 256;
constexpr uint64_t guard_pattern = 0xfff5fff5fff5fff5;      // a NaN in every floating-point type, and unlike fresh memory

size_t page_bytes() {
  static const size_t bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}
size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

// ---- guards ----

// Filled in whole words from an address that is a multiple of two.
NO_SANITIZE void fill_guard(char* begin, char* end) {
  char* p = begin;
  for (; p < end && reinterpret_cast<uintptr_t>(p) % 8; ++p) *p = static_cast<char>(guard_pattern >> (8 * (reinterpret_cast<uintptr_t>(p) % 8)));
  for (; p + 8 <= end; p += 8) *reinterpret_cast<uint64_t*>(p) = guard_pattern;
  for (; p < end; ++p) *p = static_cast<char>(guard_pattern >> (8 * (reinterpret_cast<uintptr_t>(p) % 8)));
}
// The first byte that was changed, or nullptr.
NO_SANITIZE const char* find_damage(const char* begin, const char* end) {
  const char* p = begin;
  for (; p < end && reinterpret_cast<uintptr_t>(p) % 8; ++p)
    if (*p != static_cast<char>(guard_pattern >> (8 * (reinterpret_cast<uintptr_t>(p) % 8)))) return p;
  for (; p + 64 <= end; p += 64) {       // eight words at a time: most of the pages of a small allocation are guards
    uint64_t difference = 0;
    for (int i = 0; i < 8; ++i) difference |= reinterpret_cast<const uint64_t*>(p)[i] ^ guard_pattern;
    if (difference) break;
  }
  for (; p < end; ++p)
    if (*p != static_cast<char>(guard_pattern >> (8 * (reinterpret_cast<uintptr_t>(p) % 8)))) return p;
  return nullptr;
}

// ---- the arena ----

struct Block {
  Allocation allocation;
  char *pages, *pages_end;               // that may be opened
  bool is_open = false, is_filled = false;
  Block* next_open = nullptr;
};

struct Freed {
  char* begin;
  size_t bytes;
};

struct Arena {
  char *begin = nullptr, *end = nullptr, *next = nullptr;
  std::map<char*, Block> blocks;         // by their pages
  std::vector<Freed> freed;              // the latest few, for messages
  std::map<char*, Allocation> pinned;
  Block* open = nullptr;                 // a list through the blocks: the handler of SIGSEGV adds to it, and must not allocate
  int window = Window::none;             // the device whose memory `user` may touch
  pthread_t user = {};
  size_t used[16] = {};
};
// Never destroyed: the destructors of other statics may still free device memory.
Arena& arena() {
  static Arena& a = *new Arena;
  return a;
}

size_t memory_size = 0;

size_t wished_memory() {
  const char* wish = std::getenv("FOVEA_HOST_CUDA_MEMORY");
  char* unit = nullptr;
  const double number = wish ? std::strtod(wish, &unit) : 0;
  if (!(number > 0)) return size_t{2} << 30;
  const double scale = *unit == 'G' ? 1 << 30 : *unit == 'M' ? 1 << 20 : *unit == 'K' ? 1 << 10 : 1;
  return static_cast<size_t>(number * scale);
}

void reserve(Arena& a) {
  for (size_t bytes = size_t{64} << 30; bytes >= size_t{1} << 30; bytes /= 2) {
    void* p = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) continue;
    a.begin = a.next = static_cast<char*>(p);
    a.end = a.begin + bytes;
    return;
  }
  throw std::runtime_error("host_cuda: no range of addresses for device memory");
}

// Where `bytes` of pages with an untouchable page before and behind them fit, searching from where the last search ended.
char* find_place(Arena& a, size_t bytes) {
  for (int round = 0; round < 2; ++round) {
    char* place = a.next + page_bytes();
    auto after = a.blocks.lower_bound(a.next);
    if (after != a.blocks.begin()) place = std::max(place, std::prev(after)->second.pages_end + page_bytes());
    for (; after != a.blocks.end() && place + bytes + page_bytes() > after->first; ++after) place = after->second.pages_end + page_bytes();
    if (place + bytes + page_bytes() <= a.end) return place;
    a.next = a.begin;
  }
  return nullptr;
}

void set_access(Block& b, bool open) {
  mprotect(b.pages, static_cast<size_t>(b.pages_end - b.pages), open ? PROT_READ | PROT_WRITE : PROT_NONE);
  b.is_open = open;
}

// What nobody has touched yet costs nothing: memory is filled when it is opened for the first time. Volatile, so that it does not become a call of memset, which the
// thread sanitizer would take for an access of the kernel's thread that has come first.
NO_SANITIZE void fill(Block& b) {
  char *begin = b.allocation.begin, *end = begin + b.allocation.bytes, *p = begin;
  fill_guard(b.pages, begin);
  for (; p + 8 <= end; p += 8) *reinterpret_cast<volatile uint64_t*>(p) = ~uint64_t{0};
  for (; p < end; ++p) *static_cast<volatile char*>(p) = static_cast<char>(0xff);
  fill_guard(end, b.pages_end);
  b.is_filled = true;
}

// The allocation in whose pages an address is, or nullptr.
Block* block_of(const void* address) {
  Arena& a = arena();
  char* p = static_cast<char*>(const_cast<void*>(address));
  auto it = a.blocks.upper_bound(p);
  if (it == a.blocks.begin()) return nullptr;
  Block& found = std::prev(it)->second;
  return p < found.pages_end ? &found : nullptr;
}

bool is_shown(int window, const Block& b) { return window == Window::all || window == b.allocation.device; }

// Whether an access that failed may be tried again now. Called by the handler of SIGSEGV.
bool open_for_access(const void* address) {
  Arena& a = arena();
  if (a.window == Window::none || !pthread_equal(a.user, pthread_self())) return false;
  Block* b = block_of(address);
  if (!b || b->is_open || !is_shown(a.window, *b)) return false;
  set_access(*b, true);
  if (!b->is_filled) fill(*b);
  b->next_open = a.open;
  a.open = b;
  return true;
}

// ---- SIGSEGV ----

struct sigaction previous_action[2];
constexpr int fault_signals[2] = {SIGSEGV, SIGBUS};
alignas(16) char signal_stack[64 << 10];

void handle_fault(int signal, siginfo_t* info, void* context) {
  ucontext_t* c = static_cast<ucontext_t*>(context);
  if (open_for_access(info->si_addr)) return;
  if (in_kernel()) {
    int is_write = -1;
#if defined(__x86_64__)
    is_write = static_cast<int>(c->uc_mcontext.gregs[REG_ERR] >> 1 & 1);
    c->uc_mcontext.gregs[REG_RIP] = reinterpret_cast<greg_t>(fault_entry());
    c->uc_mcontext.gregs[REG_RSP] = reinterpret_cast<greg_t>(fault_stack_top()) - 8;      // as after a call
#else
    c->uc_mcontext.pc = reinterpret_cast<uintptr_t>(fault_entry());
    c->uc_mcontext.sp = reinterpret_cast<uintptr_t>(fault_stack_top());
#endif
    note_fault(info->si_addr, info->si_code > 0 && info->si_code != SI_KERNEL, is_write);
    return;                              // goes on in fault_entry
  }
  if (is_device_range(info->si_addr)) {
    const std::string sentence =
        "host_cuda: host code touched device memory: " + describe_address(info->si_addr) + "; copy it with cudaMemcpyAsync, or give the work to a kernel\n";
    [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, sentence.data(), sentence.size());
  }
  // The instruction is tried again, and meets whoever handled the signal before.
  sigaction(signal, &previous_action[signal == SIGSEGV ? 0 : 1], nullptr);
}

// Test frameworks put their own handlers in place for each test, so this is looked after whenever a window is opened.
void install_handler() {
  for (int i = 0; i < 2; ++i) {
    struct sigaction now;
    sigaction(fault_signals[i], nullptr, &now);
    if ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == handle_fault) continue;
    previous_action[i] = now;
    struct sigaction ours = {};
    ours.sa_sigaction = handle_fault;
    ours.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigemptyset(&ours.sa_mask);
    sigaction(fault_signals[i], &ours, nullptr);
  }
}

// ---- shared memory ----

constexpr size_t most_shared = 232448;   // what a block can have on Hopper
struct Shared {
  char *pages = nullptr, *end = nullptr; // `end` is the beginning of a page that may not be touched
  char* begin = nullptr;
  uint64_t launch = 0;                   // for which its guards were filled
  bool is_closed = false;
};
Shared shared[most_resident_blocks];     // of each block that may be resident
size_t shared_bytes = 0;                 // that the launch gives to each of them
uint64_t shared_launch = 0;

void reserve(Shared& s) {
  const size_t bytes = round_up(most_shared, page_bytes()) + 2 * page_bytes();
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::runtime_error("host_cuda: no memory for what a block shares");
  char* p = static_cast<char*>(memory);
  mprotect(p, page_bytes(), PROT_NONE);
  mprotect(p + bytes - page_bytes(), page_bytes(), PROT_NONE);
  s.pages = p + page_bytes(), s.end = p + bytes - page_bytes();
}
char* front_guard(const Shared& s) { return std::max(s.pages, s.begin - 256); }

// Where the launch's blocks have their shared memory, and what stands around it.
void lay_out(Shared& s) {
  if (s.launch == shared_launch) return;
  if (!s.pages) reserve(s);
  s.launch = shared_launch;
  s.begin = s.end - round_up(shared_bytes, 16);
  unpoison(s.pages, static_cast<size_t>(s.end - s.pages));
  fill_guard(front_guard(s), s.begin);
  fill_guard(s.begin + shared_bytes, s.end);
  poison(s.pages, static_cast<size_t>(s.begin - s.pages));
  poison(s.begin + shared_bytes, static_cast<size_t>(s.end - s.begin) - shared_bytes);
}

void set_access(Shared& s, bool is_closed) {
  if (s.is_closed == is_closed) return;
  mprotect(s.pages, static_cast<size_t>(s.end - s.pages), is_closed ? PROT_NONE : PROT_READ | PROT_WRITE);
  s.is_closed = is_closed;
}

}  // namespace

// ---- device memory ----

#ifdef HOST_CUDA_ASAN
bool has_address_sanitizer() { return true; }
#else
bool has_address_sanitizer() { return false; }
#endif
bool has_thread_sanitizer() { return sanitize_threads; }

void set_memory_size(size_t bytes) { memory_size = bytes; }

size_t device_memory_size() {
  if (memory_size == 0) memory_size = wished_memory();
  return memory_size;
}

size_t device_memory_used(int device) { return arena().used[device]; }

char* allocate_device(size_t bytes, int device) {
  Arena& a = arena();
  if (!a.begin) reserve(a);
  const size_t rounded = round_up(bytes, alignment), pages = round_up(rounded, page_bytes());
  if (bytes > device_memory_size() || a.used[device] + rounded > device_memory_size()) return nullptr;
  char* place = find_place(a, pages);
  if (!place) return nullptr;
  const Block b{{place + pages - rounded, bytes, device}, place, place + pages};
  char* end = b.allocation.begin + bytes;
  poison(b.pages, static_cast<size_t>(b.allocation.begin - b.pages));
  poison(end, static_cast<size_t>(b.pages_end - end));
  a.blocks.emplace(b.pages, b);
  a.next = b.pages_end;
  a.used[device] += rounded;
  install_handler();
  return b.allocation.begin;
}

bool free_device(void* pointer) {
  Arena& a = arena();
  const Allocation* found = find_device(pointer);
  if (!found || found->begin != pointer) return false;
  auto it = std::prev(a.blocks.upper_bound(found->begin));
  const Block b = it->second;
  if (b.is_open) throw std::logic_error("host_cuda: memory is freed while work that touches it runs");
  unpoison(b.pages, static_cast<size_t>(b.pages_end - b.pages));
  if (b.is_filled) madvise(b.pages, static_cast<size_t>(b.pages_end - b.pages), MADV_DONTNEED);
  a.used[b.allocation.device] -= round_up(b.allocation.bytes, alignment);
  if (a.freed.size() >= 256) a.freed.erase(a.freed.begin());
  a.freed.push_back({b.allocation.begin, b.allocation.bytes});
  a.blocks.erase(it);
  return true;
}

const Allocation* find_device(const void* address) {
  const Block* b = block_of(address);
  return b && address >= b->allocation.begin && address < b->allocation.begin + b->allocation.bytes ? &b->allocation : nullptr;
}

bool is_device_range(const void* address) { return address >= arena().begin && address < arena().end; }

void* allocate_pinned(size_t bytes) {
  constexpr size_t most = size_t{1} << 38;           // more than hosts have; sanitizers end a program that asks the system for much more
  if (bytes > most) return nullptr;
  void* p = std::aligned_alloc(4096, round_up(std::max<size_t>(bytes, 1), 4096));
  if (p) arena().pinned[static_cast<char*>(p)] = {static_cast<char*>(p), bytes, 0};
  return p;
}

bool free_pinned(void* pointer) {
  if (arena().pinned.erase(static_cast<char*>(pointer)) == 0) return false;
  std::free(pointer);
  return true;
}

const Allocation* find_pinned(const void* address) {
  auto& pinned = arena().pinned;
  char* p = static_cast<char*>(const_cast<void*>(address));
  auto it = pinned.upper_bound(p);
  if (it == pinned.begin()) return nullptr;
  const Allocation& found = std::prev(it)->second;
  return p < found.begin + found.bytes ? &found : nullptr;
}

namespace {

std::string relative(const void* address, const char* begin, size_t bytes, const std::string& what) {
  const char* p = static_cast<const char*>(address);
  if (p == begin + bytes) return "just past the end of " + what;
  if (p > begin + bytes) return text(static_cast<size_t>(p - begin) - bytes, " bytes past the end of ", what);
  if (p < begin) return text(static_cast<size_t>(begin - p), " bytes before the beginning of ", what);
  return text("byte ", p - begin, " of ", what);
}

std::string describe_device_address(const void* address) {
  Arena& a = arena();
  char* p = static_cast<char*>(const_cast<void*>(address));
  for (auto freed = a.freed.rbegin(); freed != a.freed.rend(); ++freed)
    if (p >= freed->begin && p < freed->begin + freed->bytes)
      return relative(p, freed->begin, freed->bytes, text("an allocation of ", freed->bytes, " bytes that has been freed"));
  const Allocation* nearest = nullptr;
  auto after = a.blocks.upper_bound(p);
  if (after != a.blocks.end()) nearest = &after->second.allocation;
  if (after != a.blocks.begin()) {
    const Allocation& before = std::prev(after)->second.allocation;
    if (!nearest || p - (before.begin + before.bytes) <= nearest->begin - p) nearest = &before;
  }
  if (!nearest) return "device memory where nothing is allocated";
  return relative(p, nearest->begin, nearest->bytes, text("an allocation of ", nearest->bytes, " bytes on device ", nearest->device));
}

}  // namespace

std::string describe_address(const void* address) {
  if (is_device_range(address)) return describe_device_address(address);
  if (const int block = block_of_shared(address); block >= 0) {
    const bool is_own = block == current_block();
    const std::string whose = is_own ? text("its ", shared_bytes, " bytes of shared memory")
                                     : text("the ", shared_bytes, " bytes of shared memory of ", name_of_block(block), state_of_block(block));
    return relative(address, shared[block].begin, shared_bytes, whose);
  }
  if (reinterpret_cast<uintptr_t>(address) < 1 << 16) return text("address ", reinterpret_cast<uintptr_t>(address), ": a null pointer");
  return text("address ", address, ", which is not device memory");
}

Window::Window() {
  if (!arena().begin) reserve(arena());
  install_handler();
  arena().user = pthread_self();
}
Window::~Window() { show(none); }

void Window::show(int device) {
  Arena& a = arena();
  a.window = device;
  Block* all = std::exchange(a.open, nullptr);
  while (Block* b = all) {
    all = b->next_open;
    if (is_shown(device, *b)) b->next_open = std::exchange(a.open, b);
    else set_access(*b, false);
  }
}

void check_guards(const std::function<std::string()>& culprit) {
  for (const Block* b = arena().open; b; b = b->next_open) {
    char *begin = b->allocation.begin, *end = begin + b->allocation.bytes;
    const char* damage = find_damage(b->pages, begin);
    if (!damage) damage = find_damage(end, b->pages_end);
    if (!damage) continue;
    const std::string where = describe_device_address(damage);
    fill_guard(b->pages, begin);
    fill_guard(end, b->pages_end);
    throw Failure(cudaErrorIllegalAddress, culprit() + ": wrote to " + where + seed_note());
  }
}

// ---- shared memory ----

void begin_shared(size_t bytes) {
  shared_bytes = bytes;
  ++shared_launch;
}

char* shared_of(int block) { return shared[block].begin; }

void poison_shared(int block) {
  lay_out(shared[block]);
  if (shared_bytes) std::memset(shared[block].begin, 0xff, shared_bytes);
}

void close_shared(int block) { set_access(shared[block], true); }
void open_shared(int block) { set_access(shared[block], false); }

const char* damaged_shared(int block) {
  const Shared& s = shared[block];
  if (find_damage(front_guard(s), s.begin)) return "before";
  if (find_damage(s.begin + shared_bytes, s.end)) return "behind";
  return nullptr;
}

int block_of_shared(const void* address) {
  const char* p = static_cast<const char*>(address);
  for (int block = 0; block < most_resident_blocks; ++block) {
    const Shared& s = shared[block];
    if (s.pages && p >= s.pages - page_bytes() && p < s.end + page_bytes()) return block;
  }
  return -1;
}

// ---- the handler's stack ----

SignalStack::SignalStack() {
  stack_t ours = {};
  ours.ss_sp = signal_stack;
  ours.ss_size = sizeof signal_stack;
  sigaltstack(&ours, &previous_);
}
SignalStack::~SignalStack() { sigaltstack(&previous_, nullptr); }

}  // namespace host_cuda
