// Clusters of blocks (sm_90): blocks that run at the same time and reach each other's shared memory, by plain reads and writes, by stores
// and copies that report to an mbarrier, and by arrivals at another block's mbarrier. Source: PTX ISA 8.x, sections "barrier.cluster",
// "mapa", "st.async", "mbarrier.arrive", "cp.async.bulk.tensor". A cluster is asked for at launch: Grid's member `cluster` (launch.h).
//
// Two rules hold for whatever touches another block's shared memory: that block must have begun, and it must not have ended. So a kernel
// has
//     sync_cluster();                           // before the first such access, after init_barrier() and fence_barrier_init()
//     ...
//     sync_cluster();                           // after the last: nobody leaves while others may still come
// Where there is no GPU, tests/host_cuda/ptx_cluster.h models the same functions; tests/cuda_ptx_cluster_test.cpp compares the two.
#pragma once

#include <cstring>
#include <type_traits>

#include <fovea/kernels/cuda/core/ptx_hopper.h>

#ifdef FOVEA_HOST_CUDA
#include <ptx_cluster.h>
#endif

namespace fovea::kernels::cuda {

#ifdef FOVEA_HOST_CUDA

using host_cuda::arrive_across;
using host_cuda::arrive_at_cluster;
using host_cuda::arrive_expecting_across;
using host_cuda::blocks_in_cluster;
using host_cuda::in_block;
using host_cuda::load_box_to_blocks;
using host_cuda::load_im2col_to_blocks;
using host_cuda::rank_in_cluster;
using host_cuda::store_async;
using host_cuda::sync_cluster;
using host_cuda::wait_for_cluster;
using host_cuda::wait_for_phase_across;

#else

// The number of this block in its cluster, the x dimension first; how many blocks the cluster has (1 where none was asked for).
__device__ inline int rank_in_cluster() {
  int rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ inline int blocks_in_cluster() {
  int blocks;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(blocks));
  return blocks;
}

// ---- the cluster's barrier ----

// Every thread of the cluster arrives, may do something else, and waits until all have arrived (those that have returned do not count).
// What a thread wrote before it arrived, to any memory of the cluster, those see that have waited. After arriving a thread must wait before
// it arrives again or returns.
__device__ inline void arrive_at_cluster() { asm volatile("barrier.cluster.arrive.release;" ::: "memory"); }
__device__ inline void wait_for_cluster() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }
__device__ inline void sync_cluster() {
  arrive_at_cluster();
  wait_for_cluster();
}

// ---- other blocks' shared memory ----

// The place in block `rank`'s shared memory (of this cluster) that corresponds to p in this block's: a pointer to read from, to write to,
// or for the functions below.
template <class T>
__device__ inline T* in_block(T* p, int rank) {
  T* there;
  asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(p), "r"(rank));
  return there;
}

// Arrival at a barrier of any block of the cluster, given by in_block(). What this thread wrote before, to that block's memory as well, is
// visible to threads there that wait_for_phase_across().
__device__ inline void arrive_across(PhasedBarrier& barrier) {
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(shared_address(&barrier)) : "memory");
}
__device__ inline void arrive_expecting_across(PhasedBarrier& barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.release.cluster.shared::cluster.b64 _, [%0], %1;" ::"r"(shared_address(&barrier)), "r"(bytes) : "memory");
}
// wait_for_phase() for a barrier of this block at which other blocks' threads or stores arrive.
__device__ inline void wait_for_phase_across(PhasedBarrier& barrier, int parity) {
  uint32_t is_complete = 0;
  while (!is_complete)
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, p;\n}"
                 : "=r"(is_complete)
                 : "r"(shared_address(&barrier)), "r"(parity)
                 : "memory");
}

// Starts a store of 4, 8 or 16 bytes; when it has arrived it counts sizeof(T) bytes at `barrier`. Both are in the same block's memory,
// given by in_block().
template <class T>
__device__ inline void store_async(T& to, const std::type_identity_t<T>& value, PhasedBarrier& barrier) {
  static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16), "st.async stores 4, 8 or 16 bytes");
  uint32_t bits[sizeof(T) / 4];
  std::memcpy(bits, &value, sizeof(T));
  if constexpr (sizeof(T) == 4)
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];"
                 ::"r"(shared_address(&to)), "r"(bits[0]), "r"(shared_address(&barrier))
                 : "memory");
  else if constexpr (sizeof(T) == 8)
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];"
                 ::"r"(shared_address(&to)), "r"(bits[0]), "r"(bits[1]), "r"(shared_address(&barrier))
                 : "memory");
  else
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];"
                 ::"r"(shared_address(&to)), "r"(bits[0]), "r"(bits[1]), "r"(bits[2]), "r"(bits[3]), "r"(shared_address(&barrier))
                 : "memory");
}

// ---- copies to several blocks at once ----

// load_box() to the same place in the shared memory of each block whose bit is set in `blocks`; in each, all of the box's bytes arrive at
// the same barrier there.
template <int rank>
__device__ inline void load_box_to_blocks(void* to, const TensorMap& map, PhasedBarrier& barrier, const int (&at)[rank], uint16_t blocks) {
  static_assert(rank >= 1 && rank <= 5);
  if constexpr (rank == 1)
    asm volatile("cp.async.bulk.tensor.1d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
                 "[%0], [%1, {%3}], [%2], %4;"
                 ::"r"(shared_address(to)), "l"(&map), "r"(shared_address(&barrier)),
                 "r"(at[0]), "h"(blocks)
                 : "memory");
  else if constexpr (rank == 2)
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
                 "[%0], [%1, {%3, %4}], [%2], %5;"
                 ::"r"(shared_address(to)), "l"(&map), "r"(shared_address(&barrier)),
                 "r"(at[0]), "r"(at[1]), "h"(blocks)
                 : "memory");
  else if constexpr (rank == 3)
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
                 "[%0], [%1, {%3, %4, %5}], [%2], %6;"
                 ::"r"(shared_address(to)), "l"(&map), "r"(shared_address(&barrier)),
                 "r"(at[0]), "r"(at[1]), "r"(at[2]), "h"(blocks)
                 : "memory");
  else if constexpr (rank == 4)
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
                 "[%0], [%1, {%3, %4, %5, %6}], [%2], %7;"
                 ::"r"(shared_address(to)), "l"(&map), "r"(shared_address(&barrier)),
                 "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "h"(blocks)
                 : "memory");
  else if constexpr (rank == 5)
    asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
                 "[%0], [%1, {%3, %4, %5, %6, %7}], [%2], %8;"
                 ::"r"(shared_address(to)), "l"(&map), "r"(shared_address(&barrier)),
                 "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4]), "h"(blocks)
                 : "memory");
}

// The same of load_im2col().
template <int rank>
__device__ inline void load_im2col_to_blocks(void* to, const TensorMap& map, PhasedBarrier& barrier, const int (&at)[rank],
                                             const uint16_t (&offsets)[rank - 2], uint16_t blocks) {
  static_assert(rank >= 3 && rank <= 5);
  if constexpr (rank == 3)
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes.multicast::cluster "
                 "[%0], [%1, {%3, %4, %5}], [%2], {%6}, %7;"
                 ::"r"(shared_address(to)), "l"(&map), "r"(shared_address(&barrier)),
                 "r"(at[0]), "r"(at[1]), "r"(at[2]), "h"(offsets[0]), "h"(blocks)
                 : "memory");
  else if constexpr (rank == 4)
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes.multicast::cluster "
                 "[%0], [%1, {%3, %4, %5, %6}], [%2], {%7, %8}, %9;"
                 ::"r"(shared_address(to)), "l"(&map), "r"(shared_address(&barrier)),
                 "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "h"(offsets[0]), "h"(offsets[1]), "h"(blocks)
                 : "memory");
  else if constexpr (rank == 5)
    asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes.multicast::cluster "
                 "[%0], [%1, {%3, %4, %5, %6, %7}], [%2], {%8, %9, %10}, %11;"
                 ::"r"(shared_address(to)), "l"(&map), "r"(shared_address(&barrier)),
                 "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4]), "h"(offsets[0]), "h"(offsets[1]), "h"(offsets[2]), "h"(blocks)
                 : "memory");
}

#endif

}  // namespace fovea::kernels::cuda
