// The CPU's table: each family's file fills in its own entries.
#include <fovea/kernels/table.h>

namespace fovea::kernels {

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

const KernelTable& cpu_table() {
  static const KernelTable table = [] {
    KernelTable t{};
    t.name = "cpu";
    add_conv(t);
    add_matmul(t);
    add_copy(t);
    add_elementwise(t);
    add_optimizer(t);
    add_random(t);
    add_reduce(t);
    add_rnn(t);
    add_ctc(t);
    add_batch_norm(t);
    add_group_norm(t);
    add_softmax(t);
    add_pool(t);
    add_adaptive_pool(t);
    add_scan(t);
    add_index(t);
    add_sort(t);
    add_image(t);
    return t;
  }();
  return table;
}

}  // namespace fovea::kernels
