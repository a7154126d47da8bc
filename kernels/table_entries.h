// Walks the entries of a KernelTable by name: the meta table is filled this way, and a test asks each table what it lacks.
#pragma once

#include <cstddef>

#include <fovea/kernels/table.h>

namespace fovea::kernels {

// Calls visit(name, entry) for every entry; entry is a reference to the function pointer.
template <class Table, class Visit>
void for_each_entry(Table& t, Visit&& visit) {
#define FOVEA_ENTRY(name) visit(#name, t.name)
  FOVEA_ENTRY(unary); FOVEA_ENTRY(binary); FOVEA_ENTRY(ternary);
  FOVEA_ENTRY(copy); FOVEA_ENTRY(fill); FOVEA_ENTRY(arange);
  FOVEA_ENTRY(random); FOVEA_ENTRY(dropout);
  FOVEA_ENTRY(reduce); FOVEA_ENTRY(arg_reduce); FOVEA_ENTRY(variance); FOVEA_ENTRY(cumsum);
  FOVEA_ENTRY(sort); FOVEA_ENTRY(topk);
  FOVEA_ENTRY(gather); FOVEA_ENTRY(scatter_add); FOVEA_ENTRY(index_select); FOVEA_ENTRY(index_add); FOVEA_ENTRY(check_range);
  FOVEA_ENTRY(matmul_workspace); FOVEA_ENTRY(matmul);
  FOVEA_ENTRY(conv2d_workspace); FOVEA_ENTRY(conv2d_forward); FOVEA_ENTRY(conv2d_backward_data); FOVEA_ENTRY(conv2d_backward_weight);
  FOVEA_ENTRY(max_pool); FOVEA_ENTRY(adaptive_max_pool); FOVEA_ENTRY(max_pool_backward); FOVEA_ENTRY(avg_pool); FOVEA_ENTRY(avg_pool_backward);
  FOVEA_ENTRY(adaptive_avg_pool); FOVEA_ENTRY(adaptive_avg_pool_backward);
  FOVEA_ENTRY(batch_norm_train); FOVEA_ENTRY(batch_norm_eval); FOVEA_ENTRY(batch_norm_backward);
  FOVEA_ENTRY(group_norm); FOVEA_ENTRY(group_norm_backward); FOVEA_ENTRY(layer_norm); FOVEA_ENTRY(layer_norm_backward);
  FOVEA_ENTRY(softmax); FOVEA_ENTRY(softmax_backward); FOVEA_ENTRY(cross_entropy); FOVEA_ENTRY(cross_entropy_backward);
  FOVEA_ENTRY(resize_nearest); FOVEA_ENTRY(resize_nearest_backward); FOVEA_ENTRY(resize_bilinear); FOVEA_ENTRY(resize_bilinear_backward);
  FOVEA_ENTRY(grid_sample); FOVEA_ENTRY(grid_sample_backward);
  FOVEA_ENTRY(rnn_reserve); FOVEA_ENTRY(rnn_workspace); FOVEA_ENTRY(rnn_forward); FOVEA_ENTRY(rnn_backward);
  FOVEA_ENTRY(ctc_workspace); FOVEA_ENTRY(ctc_loss);
  FOVEA_ENTRY(sgd); FOVEA_ENTRY(adam); FOVEA_ENTRY(rmsprop); FOVEA_ENTRY(adagrad);
  FOVEA_ENTRY(gradient_norm); FOVEA_ENTRY(clip_gradients); FOVEA_ENTRY(unscale_gradients); FOVEA_ENTRY(update_scale);
#undef FOVEA_ENTRY
}

inline constexpr int num_entries = 63;
static_assert(sizeof(KernelTable) == offsetof(KernelTable, unary) + num_entries * sizeof(void (*)()), "an entry was added to KernelTable: add it to for_each_entry too");

}  // namespace fovea::kernels
