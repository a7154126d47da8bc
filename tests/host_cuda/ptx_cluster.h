// The model of the functions in kernels/cuda/core/ptx_cluster.h, under the same names and with the same meaning. A misuse ends the kernel with a sentence.
#pragma once

#include "ptx_hopper.h"

// The line that is reported is the caller's: default arguments are evaluated there.
#define HOST_CUDA_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

namespace host_cuda {

// ---- the cluster (block.cpp) ----

int rank_in_cluster();
int blocks_in_cluster();
void arrive_at_cluster(HOST_CUDA_SITE);
void wait_for_cluster(HOST_CUDA_SITE);
inline void sync_cluster(HOST_CUDA_SITE) {
  arrive_at_cluster(file, line);
  wait_for_cluster(file, line);
}

void* map_to_block(const void* p, int rank, Site site);
template <class T>
T* in_block(T* p, int rank, HOST_CUDA_SITE) { return static_cast<T*>(map_to_block(p, rank, {file, line})); }

// ---- barriers with phases of other blocks, and what arrives at them (ptx_hopper.cpp) ----

void arrive_across(PhasedBarrier& barrier, HOST_CUDA_SITE);
void arrive_expecting_across(PhasedBarrier& barrier, int bytes, HOST_CUDA_SITE);
inline void wait_for_phase_across(PhasedBarrier& barrier, int parity, HOST_CUDA_SITE) { wait_for_phase(barrier, parity, file, line); }

void start_value(void* to, const void* value, int bytes, PhasedBarrier& barrier, Site site);
template <class T>
void store_async(T& to, const std::type_identity_t<T>& value, PhasedBarrier& barrier, HOST_CUDA_SITE) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
  start_value(&to, &value, sizeof(T), barrier, {file, line});
}

template <int rank, class Map>
void load_box_to_blocks(void* to, const Map& map, PhasedBarrier& barrier, const int (&at)[rank], uint16_t blocks, HOST_CUDA_SITE) {
  start_box(to, &map, barrier, at, rank, blocks, {file, line});
}
template <int rank, class Map>
void load_im2col_to_blocks(void* to, const Map& map, PhasedBarrier& barrier, const int (&at)[rank], const uint16_t (&offsets)[rank - 2], uint16_t blocks,
                           HOST_CUDA_SITE) {
  start_im2col(to, &map, barrier, at, offsets, rank, blocks, {file, line});
}

}  // namespace host_cuda

#undef HOST_CUDA_SITE
