// The table of CUDA devices: each family's file fills in its own entries. What no file fills in throws an error with the entry's name.
#include <fovea/kernels/cuda/table.h>

#include <array>
#include <mutex>
#include <string_view>
#include <utility>

#include <fovea/kernels/table_entries.h>

namespace fovea::kernels {
namespace cuda {

void add_conv(KernelTable&);
void add_matmul(KernelTable&);
void add_copy(KernelTable&);
void add_elementwise(KernelTable&);
void add_optimizer(KernelTable&);
void add_random(KernelTable&);
void add_reduce(KernelTable&);
void add_rnn(KernelTable&);
void add_ctc(KernelTable&);
void add_batch_norm(KernelTable&);
void add_group_norm(KernelTable&);
void add_softmax(KernelTable&);
void add_pool(KernelTable&);
void add_adaptive_pool(KernelTable&);
void add_scan(KernelTable&);
void add_index(KernelTable&);
void add_sort(KernelTable&);
void add_image(KernelTable&);

}  // namespace cuda

namespace {

// Stands in for an entry that is not there. An entry is a plain function pointer, so the name cannot travel with it: entries of one signature get a slot each,
// which is a function of its own.
template <int slot, class R, class... Args>
struct Missing {
  static inline const char* name = "";
  static R call(Args...) { fail<DeviceError>("cuda: no kernel `", name, "` in this build; copy the arguments with to(x, Device::cpu())"); }
};

constexpr int slots = 16;                    // more than any signature has entries

template <class R, class... Args>
void set_to_missing(const char* name, R (*&entry)(Args...)) {
  [&]<int... slot>(std::integer_sequence<int, slot...>) {
    const std::array<R (*)(Args...), slots> calls = {&Missing<slot, R, Args...>::call...};
    const std::array<const char**, slots> names = {&Missing<slot, R, Args...>::name...};
    size_t i = 0;
    while (i < slots && **names[i] && std::string_view(*names[i]) != name) ++i;
    check<DeviceError>(i < slots, "cuda_table: more than ", slots, " entries have the signature of `", name, "`");
    entry = calls[i];
    *names[i] = name;
  }(std::make_integer_sequence<int, slots>());
}

KernelTable filled_table() {
  KernelTable t{};
  t.name = "cuda";
  cuda::fill_with_missing(t);
  cuda::add_conv(t);
  cuda::add_matmul(t);
  cuda::add_copy(t);
  cuda::add_elementwise(t);
  cuda::add_optimizer(t);
  cuda::add_random(t);
  cuda::add_reduce(t);
  cuda::add_rnn(t);
  cuda::add_ctc(t);
  cuda::add_batch_norm(t);
  cuda::add_group_norm(t);
  cuda::add_softmax(t);
  cuda::add_pool(t);
  cuda::add_adaptive_pool(t);
  cuda::add_scan(t);
  cuda::add_index(t);
  cuda::add_sort(t);
  cuda::add_image(t);
  return t;
}

}  // namespace

namespace cuda {

void fill_with_missing(KernelTable& table) {
  static std::mutex mutex;                   // the names are shared
  std::lock_guard lock(mutex);
  for_each_entry(table, [](const char* name, auto& entry) { set_to_missing(name, entry); });
}

std::vector<std::string> missing_entries() {
  const KernelTable filled = filled_table();
  std::vector<std::pair<std::string, void (*)()>> entries;
  for_each_entry(filled, [&](const char* name, auto entry) { entries.emplace_back(name, reinterpret_cast<void (*)()>(entry)); });
  KernelTable none{};
  fill_with_missing(none);
  std::vector<std::string> missing;
  size_t i = 0;
  for_each_entry(none, [&](const char*, auto entry) {
    if (entries[i].second == reinterpret_cast<void (*)()>(entry)) missing.push_back(entries[i].first);
    ++i;
  });
  return missing;
}

}  // namespace cuda

const KernelTable& cuda_table(int index) {
  fovea::cuda::check_device(index);
  static const KernelTable table = filled_table();
  return table;
}

}  // namespace fovea::kernels
