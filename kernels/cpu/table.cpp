// The CPU's table: each family's file fills in its own entries.
#include <fovea/kernels/table.h>

namespace fovea::kernels {

void add_conv(KernelTable&);
void add_matmul(KernelTable&);
void add_copy(KernelTable&);
void add_elementwise(KernelTable&);
void add_reduce(KernelTable&);
void add_ctc(KernelTable&);

const KernelTable& cpu_table() {
  static const KernelTable table = [] {
    KernelTable t{};
    t.name = "cpu";
    add_conv(t);
    add_matmul(t);
    add_copy(t);
    add_elementwise(t);
    add_reduce(t);
    add_ctc(t);
    return t;
  }();
  return table;
}

}  // namespace fovea::kernels
