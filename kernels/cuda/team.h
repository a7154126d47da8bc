// Blocks whose threads work for several results at once: a team of `lanes` threads each. Used where one result alone would not fill a block, or where neighbouring
// results lie beside each other in memory (then neighbouring threads belong to different teams, so that reads stay in order).
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdlib>
#include <type_traits>

#include <fovea/kernels/cuda/core/device.h>

namespace fovea::kernels::cuda {

inline constexpr int team_threads = 256;

struct Team {
  int width = 1, lanes = team_threads;       // results of a block, and the threads of each: powers of two whose product is team_threads
  bool is_row = true;                        // a team's threads are neighbours

  __device__ int member() const { return static_cast<int>(threadIdx.x) / (is_row ? lanes : 1) % width; }
  __device__ int lane() const { return static_cast<int>(threadIdx.x) / (is_row ? 1 : width) % lanes; }
  __device__ int step() const { return is_row ? 1 : width; }       // from a lane to the next, in threads
};

inline int power_of_two_from(int64_t n, int most) {
  int power = 1;
  while (power < n && power < most) power *= 2;
  return power;
}

// Each result is folded over `items` that lie beside each other.
inline Team row_team(int64_t items) {
  const int lanes = power_of_two_from(items, team_threads);
  return {team_threads / lanes, lanes, true};
}

// The same, where a thread reads four packs of them at once: each lane has so many before more lanes help, but eight packs are always read side by side.
inline Team row_team_of_packs(int64_t packs) { return row_team(std::max(ceil_div<int64_t>(packs, 4), std::min<int64_t>(packs, 8))); }

// `results` lie beside each other, and each is folded over `items` far apart.
inline Team column_team(int64_t results, int64_t items) {
  const int width = power_of_two_from(results, warp_size), lanes = power_of_two_from(items, team_threads / width);
  return {team_threads / lanes, lanes, false};
}

// How many blocks share the fold behind one result: as many as make a grid of about `blocks_wanted`, while each thread keeps `least` items. The shape alone decides.
inline int64_t splits_for(int64_t blocks, int64_t items_per_lane, int64_t blocks_wanted = 1024, int64_t least = 16) {
  const int64_t wanted = blocks_wanted / (blocks > 1 ? blocks : 1), most = items_per_lane / least;
  const int64_t splits = wanted < most ? wanted : most;
  return splits > 1 ? splits : 1;
}

// A value a thread, in the shared memory at `scratch`: the first word of all threads, then the second of all, so that what neighbours read
// at once lies in different banks, however long a value is.
template <class Value>
struct TeamValues {
  using Word = std::conditional_t<sizeof(Value) % 8 == 0, uint64_t, uint32_t>;
  static constexpr int words = static_cast<int>(sizeof(Value) / sizeof(Word));
  static_assert(sizeof(Value) % sizeof(Word) == 0, "values are whole words");
  Word* memory;

  __device__ explicit TeamValues(Value* scratch) : memory(reinterpret_cast<Word*>(scratch)) {}
  __device__ void put(int thread, const Value& value) const {
    const auto all = std::bit_cast<std::array<Word, words>>(value);
#pragma unroll
    for (int i = 0; i < words; ++i) memory[i * team_threads + thread] = all[static_cast<size_t>(i)];
  }
  __device__ Value get(int thread) const {
    std::array<Word, words> all;
#pragma unroll
    for (int i = 0; i < words; ++i) all[static_cast<size_t>(i)] = memory[i * team_threads + thread];
    return std::bit_cast<Value>(all);
  }
};

// A value as shuffle(word) gives each of its words.
template <class Value, class Shuffle>
__device__ inline Value shuffle_words(const Value& value, const Shuffle& shuffle) {
  using Word = typename TeamValues<Value>::Word;
  auto all = std::bit_cast<std::array<Word, TeamValues<Value>::words>>(value);
#pragma unroll
  for (Word& word : all) word = shuffle(word);
  return std::bit_cast<Value>(all);
}

// Joins the values of `width` neighbouring lanes (a power of two); the first of them has the result.
template <class Value, class Join>
__device__ inline Value join_lanes_of_warp(Value value, int width, const Join& join) {
  for (int distance = width / 2; distance > 0; distance /= 2)
    value = join(value, shuffle_words(value, [&](auto word) { return __shfl_down_sync(0xffffffffu, word, static_cast<unsigned>(distance), width); }));
  return value;
}

// Joins the values of a team's lanes in a fixed order; every lane gets the result. scratch: one value a thread, free for reuse afterwards. All threads of the block call it.
template <class Value, class Join>
__device__ inline Value team_reduce(const Team& team, const Value& value, const Join& join, Value* scratch) {
  if (team.lanes == 1) return value;
  if (team.is_row && team.lanes <= warp_size) {
    const Value joined = join_lanes_of_warp(value, team.lanes, join);
    return shuffle_words(joined, [&](auto word) { return __shfl_sync(0xffffffffu, word, 0, team.lanes); });
  }
  const int thread = static_cast<int>(threadIdx.x), lane = team.lane(), step = team.step();
  const TeamValues<Value> values(scratch);
  if (team.is_row) {                         // warp by warp, then in the order of the warps
    const Value joined = join_lanes_of_warp(value, warp_size, join);
    if (lane % warp_size == 0) values.put(thread / warp_size, joined);
    __syncthreads();
    const int first = (thread - lane) / warp_size, warps = team.lanes / warp_size;
    Value result = values.get(first);
    for (int warp = 1; warp < warps; ++warp) result = join(result, values.get(first + warp));
    __syncthreads();
    return result;
  }
  values.put(thread, value);
  __syncthreads();
  for (int half = team.lanes / 2; half > 0; half /= 2) {
    if (lane < half) values.put(thread, join(values.get(thread), values.get(thread + half * step)));
    __syncthreads();
  }
  const Value result = values.get(thread - lane * step);
  __syncthreads();
  return result;
}

}  // namespace fovea::kernels::cuda
