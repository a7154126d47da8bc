#include <fovea/kernels/table.h>

#include <fovea/kernels/table_entries.h>

namespace fovea::kernels {
namespace {

// Points an entry, whatever its signature, at a function that does nothing and returns zero.
template <class R, class... Args>
void set_to_nothing(R (*&entry)(Args...)) {
  entry = [](Args...) -> R { return R(); };
}

}  // namespace

const KernelTable& meta_table() {
  static const KernelTable table = [] {
    KernelTable t{};
    t.name = "meta";
    t.computes_half = FamilySet::all();
    for_each_entry(t, [](const char*, auto& entry) { set_to_nothing(entry); });
    return t;
  }();
  return table;
}

const KernelTable& for_device(Device device) {
  switch (device.kind) {
    case Device::Kind::cpu: return cpu_table();
    case Device::Kind::cuda: return cuda_table(device.index);
    case Device::Kind::meta: return meta_table();
  }
  fail<DeviceError>("unknown device");
}

}  // namespace fovea::kernels
