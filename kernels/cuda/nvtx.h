// Ranges of NVTX: names that Nsight Systems draws over stretches of a thread's time, and over the kernels that were launched meanwhile. In a build without CUDA a Range
// is nothing but a look at a switch that is off.
#pragma once

#include <atomic>
#include <string>

namespace fovea::cuda {

namespace detail {
extern std::atomic<int> range_switch;                         // 0: off; 1: on; -1: nobody has looked into the environment yet
bool read_range_switch();
}  // namespace detail

// While on, these are ranges, one within the other: calls of modules ("head: Linear"), operations ("linear"; in a backward pass "linear backward"), launches of kernels by the
// names that last_kernel() gives, runs of graphs, and every Range of the program's own. Off, unless FOVEA_NVTX=1 is in the environment; without CUDA always off.
void set_ranges(bool is_on);
inline bool has_ranges() {
  const int state = detail::range_switch.load(std::memory_order_relaxed);
  return state != 0 && (state > 0 || detail::read_range_switch());
}

// Begins with the object and ends with it. Ranges of one thread lie within each other, so the objects belong into scopes.
//
//     const cuda::Range range("validation");
class Range {
 public:
  explicit Range(const char* name, const char* suffix = "") : is_open_(has_ranges()) {
    if (is_open_) [[unlikely]] open(name, suffix);
  }
  explicit Range(const std::string& name) : Range(name.c_str()) {}
  ~Range() {
    if (is_open_) [[unlikely]] close();
  }
  Range(const Range&) = delete;
  Range& operator=(const Range&) = delete;

 private:
  static void open(const char* name, const char* suffix);
  static void close() noexcept;

  bool is_open_;                                              // the switch may be turned meanwhile
};

}  // namespace fovea::cuda
