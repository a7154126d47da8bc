// Rows of contiguous tensors that are read once and kept on chip while something is found out about them and then written: softmax, cross-entropy.
//
// Note [Rows]
// A team of threads has a row: 8 lanes or a warp keep a short one in registers; a block, or a cluster of blocks with a share each (sm_90),
// keeps a longer one in shared memory. What does not fit there is read again, from the second-level cache if it can. A lane always has the
// same elements in the same order, kept or not, so what is kept changes no bit of a result.
//
// Note [Ends of rows]
// Accesses have 16 bytes whatever the length of a row, as long as the tensors begin at a multiple of that: packs begin where the number of
// an element in its tensor is a multiple of `pack`. Before the first and behind the last whole pack of a row are fewer elements than a pack:
// its ends, of which each lane has one at most.
#pragma once

#include <algorithm>
#include <array>
#include <bit>

#include <fovea/kernels/cuda/core/launch.h>
#include <fovea/kernels/cuda/core/numeric.h>
#include <fovea/kernels/cuda/core/pack.h>
#include <fovea/kernels/cuda/core/ptx.h>
#include <fovea/kernels/cuda/core/ptx_cluster.h>
#include <fovea/kernels/cuda/core/warp.h>

namespace fovea::kernels::cuda {

// Older GPUs have no clusters: their code knows of one block only, and the host asks for no more there.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
inline constexpr bool code_has_clusters = false;
#else
inline constexpr bool code_has_clusters = true;
#endif

// How many elements an access has where the widest of the types has 16 bytes of them.
template <class T, class Y> inline constexpr int row_pack = static_cast<int>(16 / std::max(sizeof(T), sizeof(Y)));

constexpr int row_group = 2;                 // packs of a lane, of each tensor, that a block looks at together

struct RowShape {
  int64_t rows = 0, size = 0;
  int64_t stashed = 0;                       // packs of each tensor that a block keeps in shared memory
};

// --- teams ---

// Several rows a warp, or one.
template <int lanes_of_row>
struct LaneTeam {
  static constexpr int threads = 128, lanes = lanes_of_row, rows_of_block = threads / lanes;
  __device__ static int lane() { return static_cast<int>(threadIdx.x) % lanes; }

  // f(row, whether there is such a row): all lanes of a warp come along.
  template <class F>
  __device__ void for_each_row(int64_t rows, const F& f) const {
    const int64_t step = static_cast<int64_t>(gridDim.x) * rows_of_block;
    for (int64_t first = static_cast<int64_t>(blockIdx.x) * rows_of_block; first < rows; first += step) {
      const int64_t row = first + static_cast<int>(threadIdx.x) / lanes;
      f(row, row < rows);
    }
  }
  template <class V, class Op>
  __device__ V reduce(V value, Op op, V) const { return warp_reduce<lanes>(value, op); }
  // The thread's number among all that have the row, and how many those are.
  __device__ static int place() { return lane(); }
  __device__ static int places() { return lanes; }
};

struct alignas(16) BlockScratch {
  double values[warp_size];
  double joined;                             // this block's share, for the others of its cluster
};

// A block, or a cluster of them.
struct BlockTeam {
  static constexpr int threads = 256;        // at most; the host asks for fewer where rows are short
  BlockScratch& scratch = shared<BlockScratch>();
  int blocks = 1, rank = 0;                  // of the cluster

  __device__ BlockTeam() {
    if constexpr (code_has_clusters) blocks = blocks_in_cluster(), rank = rank_in_cluster();
  }
  __device__ static int lane() { return static_cast<int>(threadIdx.x); }
  __device__ static int lanes() { return static_cast<int>(blockDim.x); }

  template <class F>
  __device__ void for_each_row(int64_t rows, const F& f) const {
    for (int64_t row = static_cast<int64_t>(blockIdx.x) / blocks; row < rows; row += static_cast<int64_t>(gridDim.x) / blocks) f(row, true);
  }
  template <class V, class Op>
  __device__ V reduce(V value, Op op, V identity) const {
    V result = block_reduce(value, op, identity, reinterpret_cast<V*>(scratch.values));
    if constexpr (code_has_clusters) {
      if (blocks == 1) return result;
      V* const mine = reinterpret_cast<V*>(&scratch.joined);
      if (threadIdx.x == 0) *mine = result;
      sync_cluster();
      result = identity;
      for (int other = 0; other < blocks; ++other) result = op(result, *in_block(mine, other));
      sync_cluster();                        // nobody writes the next value, or leaves, while others still read this one
    }
    return result;
  }
  __device__ int place() const { return rank * lanes() + lane(); }
  __device__ int places() const { return blocks * lanes(); }
};

// --- what a lane has of a row ---

// Element j of all arrays' packs, as they are computed.
template <class T, int pack, int arrays>
struct RowPacks {
  Pack<T, pack> of[arrays];
  __device__ std::array<Accumulate<T>, arrays> values(int j) const {
    std::array<Accumulate<T>, arrays> all;
#pragma unroll
    for (int a = 0; a < arrays; ++a) all[static_cast<size_t>(a)] = widen(of[a][j]);
    return all;
  }
};

// Where the packs and the ends of a row are.
template <int pack>
struct RowSpan {
  int64_t size, packs;
  int head;                                  // elements before the first pack

  __device__ RowSpan(int64_t first, int64_t elements) : size(elements) {
    head = static_cast<int>(min(elements, static_cast<int64_t>(static_cast<unsigned>(-first) & (pack - 1u))));
    packs = (elements - head) / pack;
  }
  __device__ int64_t at(int64_t k) const { return head + k * pack; }         // the first element of pack k
  // The element at an end that a lane has, if that is less than size.
  __device__ int64_t end(int lane) const { return pack == 1 ? size : lane < head ? lane : lane + packs * pack; }
};

// f(values [arrays][n]) of n elements at once. Missing ones count as `missing`.
template <int n, class T, int pack, int arrays, class F>
__device__ void use_batch(const RowPacks<T, pack, arrays> (&packs)[n], const F& f) {
  Accumulate<T> values[arrays][n * pack];
#pragma unroll
  for (int a = 0; a < arrays; ++a)
#pragma unroll
    for (int i = 0; i < n * pack; ++i) values[a][i] = widen(packs[i / pack].of[a][i % pack]);
  f(values);
}

template <class T, int pack, int arrays>
__device__ RowPacks<T, pack, arrays> missing_packs(Accumulate<T> missing) {
  RowPacks<T, pack, arrays> packs;
#pragma unroll
  for (int a = 0; a < arrays; ++a)
#pragma unroll
    for (int j = 0; j < pack; ++j) packs.of[a][j] = narrow<T>(missing);
  return packs;
}

// The elements of row r of `arrays` tensors, `kept` packs of each lane, all of them in registers.
// Its functions: for_each_batch(f) calls f(values [arrays][n]) for all of a lane's elements, n at a time, where elements that are not there
// count as `missing`; for_each_pack(f) calls f(number of the first element, RowPacks) for those that are.
template <int lanes, int pack, int kept, int arrays, class T>
class LaneRow {
 public:
  // A row that is not there has a size of zero.
  __device__ LaneRow(const LaneTeam<lanes>& team, const RowShape& shape, const T* const (&from)[arrays], int64_t r, bool exists,
                     Accumulate<T> missing)
      : span_(r * shape.size, exists ? shape.size : 0) {
    const int64_t first = exists ? r * shape.size : 0;
#pragma unroll
    for (int k = 0; k < kept; ++k) {
      packs_[k] = missing_packs<T, pack, arrays>(missing);
      if (!has(k)) continue;
#pragma unroll
      for (int a = 0; a < arrays; ++a) packs_[k].of[a] = load_pack<T, pack>(from[a] + first + span_.at(k * lanes + team.lane()), 0);
    }
    end_[0] = missing_packs<T, 1, arrays>(missing);
    if (has_end())
#pragma unroll
      for (int a = 0; a < arrays; ++a) end_[0].of[a][0] = from[a][first + span_.end(team.lane())];
  }

  template <class F>
  __device__ void for_each_batch(const F& f) const {
    constexpr int n = pack == 1 || kept < 4 ? kept : 4;
#pragma unroll
    for (int k = 0; k < kept; k += n) {
      RowPacks<T, pack, arrays> batch[n];
#pragma unroll
      for (int u = 0; u < n; ++u) batch[u] = packs_[k + u];
      use_batch(batch, f);
    }
    if constexpr (pack > 1) use_batch(end_, f);
  }
  template <class F>
  __device__ void for_each_pack(const F& f) const {
#pragma unroll
    for (int k = 0; k < kept; ++k)
      if (has(k)) f(span_.at(k * lanes + LaneTeam<lanes>::lane()), packs_[k]);
    if (has_end()) f(span_.end(LaneTeam<lanes>::lane()), end_[0]);
  }

 private:
  __device__ bool has(int k) const { return k * lanes + LaneTeam<lanes>::lane() < span_.packs; }
  __device__ bool has_end() const { return pack > 1 && span_.end(LaneTeam<lanes>::lane()) < span_.size; }

  RowSpan<pack> span_;
  RowPacks<T, pack, arrays> packs_[kept];
  RowPacks<T, 1, arrays> end_[1];
};

// The same for a block's share, in its shared memory behind the scratch of its team. A lane reads what it copied itself: no barrier is needed.
template <int pack, int arrays, class T>
class BlockRow {
 public:
  __device__ BlockRow(const BlockTeam& team, const RowShape& shape, const T* const (&from)[arrays], int64_t r, bool exists,
                      Accumulate<T> missing)
      : span_(r * shape.size, exists ? shape.size : 0), missing_(missing), memory_(reinterpret_cast<Pack<T, pack>*>(&team.scratch + 1)),
        stashed_(shape.stashed) {
    const int64_t share = ceil_div<int64_t>(span_.packs, team.blocks);
    first_ = min(span_.packs, share * team.rank);
    count_ = min(span_.packs - first_, share);
#pragma unroll
    for (int a = 0; a < arrays; ++a) from_[a] = from[a] + (exists ? r * shape.size : 0);
    const int64_t kept = min(count_, stashed_);
#pragma unroll 4
    for (int64_t k = team.lane(); k < kept; k += team.lanes()) {
#pragma unroll
      for (int a = 0; a < arrays; ++a) start_copy(memory_ + a * stashed_ + k, from_[a] + span_.at(first_ + k));
    }
    commit_copies();
    end_ = team.rank == 0 ? span_.end(team.lane()) : span_.size;
    ends_[0] = missing_packs<T, 1, arrays>(missing);
    if (end_ < span_.size)
#pragma unroll
      for (int a = 0; a < arrays; ++a) ends_[0].of[a][0] = from_[a][end_];
    wait_for_copies<0>();
  }

  template <class F>
  __device__ void for_each_batch(const F& f) const {
    for_each_group([&](int64_t, const RowPacks<T, pack, arrays>(&packs)[row_group]) { use_batch(packs, f); });
    if constexpr (pack > 1) use_batch(ends_, f);
  }
  template <class F>
  __device__ void for_each_pack(const F& f) const {
    for_each_group([&](int64_t k, const RowPacks<T, pack, arrays>(&packs)[row_group]) {
#pragma unroll
      for (int u = 0; u < row_group; ++u)
        if (k + u * BlockTeam::lanes() < count_) f(span_.at(first_ + k + u * BlockTeam::lanes()), packs[u]);
    });
    if (end_ < span_.size) f(end_, ends_[0]);
  }

 private:

  // Elements of two bytes are too short for a copy beside the computation.
  __device__ static void start_copy(Pack<T, pack>* to, const T* from) {
    if constexpr (sizeof(Pack<T, pack>) >= 4) copy_async<sizeof(Pack<T, pack>)>(to, from, true);
    else *to = load_pack<T, pack>(from, 0);
  }

  // f(k, packs): a lane's packs k, k + lanes, ... of the block's share.
  template <class F>
  __device__ void for_each_group(const F& f) const {
    for (int64_t k = BlockTeam::lane(); k < count_; k += row_group * BlockTeam::lanes()) {
      RowPacks<T, pack, arrays> packs[row_group];
#pragma unroll
      for (int u = 0; u < row_group; ++u) {
        const int64_t at = k + u * BlockTeam::lanes();
        packs[u] = missing_packs<T, pack, arrays>(missing_);
        if (at >= count_) continue;
#pragma unroll
        for (int a = 0; a < arrays; ++a)
          packs[u].of[a] = at < stashed_ ? memory_[a * stashed_ + at] : load_pack<T, pack>(from_[a] + span_.at(first_ + at), 0);
      }
      f(k, packs);
    }
  }

  RowSpan<pack> span_;
  Accumulate<T> missing_;
  Pack<T, pack>* memory_;
  int64_t stashed_, first_, count_, end_;
  const T* from_[arrays];
  RowPacks<T, 1, arrays> ends_[1];
};

// f(i, values of the arrays) for each element of a lane.
template <class Row, class F>
__device__ void for_each_element(const Row& row, const F& f) {
  row.for_each_pack([&]<class T, int pack, int arrays>(int64_t first, const RowPacks<T, pack, arrays>& packs) {
#pragma unroll
    for (int j = 0; j < pack; ++j) f(first + j, packs.values(j));
  });
}

// Writes a pack to global memory in one access. Where its elements have been computed one after the other, nvcc makes a store of each if
// it is not told.
template <class T, int n>
__device__ inline void write_pack(T* to, const Pack<T, n>& pack) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(pack) == 16) return __stwb(reinterpret_cast<uint4*>(to), std::bit_cast<uint4>(pack));
  if constexpr (sizeof(pack) == 8) return __stwb(reinterpret_cast<uint2*>(to), std::bit_cast<uint2>(pack));
#endif
  store_pack<T, n>(to, 0, pack);
}

// Writes f(i, values of the arrays) to element i of the row that begins at `out`.
template <class Y, class Row, class F>
__device__ void store_row(Y* out, const Row& row, const F& f) {
  row.for_each_pack([&]<class T, int pack, int arrays>(int64_t first, const RowPacks<T, pack, arrays>& packs) {
    Pack<Y, pack> results;
#pragma unroll
    for (int j = 0; j < pack; ++j) results[j] = narrow<Y>(f(first + j, packs.values(j)));
    write_pack<Y, pack>(out + first, results);
  });
}

// Writes one value to all of row r of `out`.
template <int pack, class Y, class Team>
__device__ void fill_row(const Team& team, Y* out, int64_t r, int64_t size, Y value) {
  const RowSpan<pack> span(r * size, size);
  Y* const row = out + r * size;
  Pack<Y, pack> values;
#pragma unroll
  for (int j = 0; j < pack; ++j) values[j] = value;
  for (int64_t k = team.place(); k < span.packs; k += team.places()) store_pack<Y, pack>(row + span.at(k), 0, values);
  if (span.end(team.place()) < size) row[span.end(team.place())] = value;
}

// --- which team has a row ---

template <int lanes, int kept, bool is_packed>
struct LaneLayout {
  using Team = LaneTeam<lanes>;
  static constexpr int residents(size_t bytes) { return is_packed && kept > 2 ? (bytes == 8 ? 4 : 5) : (bytes == 8 ? 6 : 8); }
  template <class T, class Y> static constexpr int pack = is_packed ? row_pack<T, Y> : 1;
  template <class T, class Y> static constexpr int most = is_packed ? lanes * kept * row_pack<T, Y> : lanes * kept;      // elements of a row
  template <int arrays, class T, class Y> using Row = LaneRow<lanes, pack<T, Y>, kept, arrays, T>;
};
template <bool is_packed>
struct BlockLayout {
  using Team = BlockTeam;
  static constexpr int residents(size_t bytes) { return bytes == 8 ? 2 : 3; }
  template <class T, class Y> static constexpr int pack = is_packed ? row_pack<T, Y> : 1;
  template <int arrays, class T, class Y> using Row = BlockRow<pack<T, Y>, arrays, T>;
};

// How many blocks a multiprocessor of 65536 registers should have room for, which limits a thread's registers: for __launch_bounds__.
template <class Layout, class T> inline constexpr int row_residents = Layout::residents(sizeof(T));
template <class Layout> inline constexpr int row_threads = Layout::Team::threads;

// Do this device and the code that it runs know of clusters? A GPU of sm_90 may run code that was compiled for older ones and is translated
// when it is loaded.
inline bool has_clusters(int device) {
  int is_able = 0;
  check_cuda(cudaDeviceGetAttribute(&is_able, cudaDevAttrClusterLaunch, device), "asking for the device");
#ifdef __CUDA_ARCH_LIST__
  int major = 0, minor = 0;
  check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "asking for the device's compute capability");
  check_cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "asking for the device's compute capability");
  bool has_code = false;
  for (const int architecture : {__CUDA_ARCH_LIST__}) has_code |= architecture >= 900 && architecture <= 100 * major + 10 * minor;
  return is_able != 0 && has_code;
#else
  return is_able != 0;
#endif
}

// Whether rows can be shared out to clusters here, and how much shared memory a block may have.
struct RowDevice {
  bool has_clusters = false;
  int64_t shared_bytes = 48 << 10;
};
inline RowDevice row_device() {
  int device = 0, shared_bytes = 0;
  check_cuda(cudaGetDevice(&device), "asking for the device");
  check_cuda(cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "asking for the shared memory of a block");
  return {has_clusters(device), shared_bytes};
}

struct RowPlan {
  RowShape shape;
  Grid grid;
};

inline RowPlan plan_row_lanes(int64_t rows, int64_t size, int rows_of_block, int64_t most_blocks) {
  const int64_t blocks = std::min(ceil_div<int64_t>(rows, rows_of_block), most_blocks);
  return {{rows, size, 0}, {dim3(static_cast<unsigned>(blocks)), dim3(LaneTeam<warp_size>::threads), sizeof(BlockScratch)}};
}

// As many blocks a row as make each share so small that three blocks' fit a multiprocessor of sm_90: one reads while another writes. Where
// a cluster of 8 is not enough, or there are none, as much is kept as leaves room for two.
inline RowPlan plan_row_blocks(int64_t rows, int64_t size, int pack, int64_t pack_bytes, int arrays, int64_t most_blocks) {
  constexpr int64_t third = 64 << 10, half = 112 << 10;
  constexpr int most_cluster = 8;
  const RowDevice device = row_device();
  const int64_t packs = size / pack, bytes = pack_bytes * arrays;
  int cluster = 1;
  while (device.has_clusters && cluster < most_cluster && ceil_div<int64_t>(packs, cluster) * bytes > third) cluster *= 2;
  const int64_t share = ceil_div<int64_t>(packs, cluster);
  const int threads = share <= 1024 ? BlockTeam::threads / 2 : BlockTeam::threads;
  const int64_t scratch = static_cast<int64_t>(sizeof(BlockScratch)), round = threads * row_group;
  const int64_t room = std::min(half, device.shared_bytes - scratch) / bytes;
  const int64_t stashed = share <= room ? share : room / round * round;
  const int64_t blocks = std::min(rows, most_blocks / cluster) * cluster;
  Grid grid{dim3(static_cast<unsigned>(blocks)), dim3(static_cast<unsigned>(threads)), static_cast<size_t>(scratch + stashed * bytes)};
  grid.cluster = dim3(static_cast<unsigned>(cluster));
  return {{rows, size, stashed}, grid};
}

// Calls f(layout, plan) with the layout for rows of `arrays` tensors of T that are read and one of Y that is written.
template <class T, class Y, int arrays, class F>
void with_rows(int64_t rows, int64_t size, bool is_aligned, int64_t most_blocks, const F& f) {
  const auto in_lanes = [&]<int lanes, int kept, bool is_packed>(LaneLayout<lanes, kept, is_packed> layout) {
    f(layout, plan_row_lanes(rows, size, LaneTeam<lanes>::rows_of_block, most_blocks));
  };
  const auto in_blocks = [&]<bool is_packed>(BlockLayout<is_packed> layout) {
    constexpr int pack = BlockLayout<is_packed>::template pack<T, Y>;
    f(layout, plan_row_blocks(rows, size, pack, static_cast<int64_t>(pack * sizeof(T)), arrays, most_blocks));
  };
  using Few = LaneLayout<8, 8, false>;
  using Some = LaneLayout<warp_size, 2, true>;
  using Many = LaneLayout<warp_size, row_pack<T, Y> == 8 ? 4 : 8, true>;
  if (size <= Few::most<T, Y>) in_lanes(Few{});
  else if (!is_aligned) in_blocks(BlockLayout<false>{});
  else if (size <= Some::most<T, Y>) in_lanes(Some{});
  else if (size <= Many::template most<T, Y>) in_lanes(Many{});
  else in_blocks(BlockLayout<true>{});
}

}  // namespace fovea::kernels::cuda
