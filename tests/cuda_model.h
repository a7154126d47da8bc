// What the tests of the model of CUDA share: memory, seeds, and the sentences that the model ends a kernel with.
#pragma once

#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include <fovea/kernels/cuda/core/launch.h>

#include "messages.h"

#define CHECK_CONTAINS(text, part) CHECK_MESSAGE(contains(text, part), "\"" << (text) << "\" should contain \"" << (part) << "\"")

namespace fovea::testing {

using kernels::cuda::Grid;
using kernels::cuda::launch;

inline constexpr int num_seeds = 20;

inline void for_every_seed(const std::function<void()>& f) {
  for (int seed = 1; seed <= num_seeds; ++seed) {
    CAPTURE(seed);
    host_cuda::set_seed(static_cast<uint64_t>(seed));
    f();
  }
}

// Device memory that is freed again.
template <class T>
class Buffer {
 public:
  explicit Buffer(size_t n) : n_(n) { REQUIRE(cudaMalloc(&data_, n * sizeof(T)) == cudaSuccess); }
  explicit Buffer(const std::vector<T>& values) : Buffer(values.size()) { REQUIRE(cudaMemcpy(data_, values.data(), n_ * sizeof(T), cudaMemcpyHostToDevice) == cudaSuccess); }
  ~Buffer() { cudaFree(data_); }
  Buffer(const Buffer&) = delete;
  T* get() const { return data_; }
  std::vector<T> values() const {
    std::vector<T> host(n_);
    REQUIRE(cudaMemcpy(host.data(), data_, n_ * sizeof(T), cudaMemcpyDeviceToHost) == cudaSuccess);
    return host;
  }

 private:
  T* data_ = nullptr;
  size_t n_;
};

inline std::vector<int> numbers(int n) {
  std::vector<int> v(static_cast<size_t>(n));
  std::iota(v.begin(), v.end(), 1);
  return v;
}

// The sentence that the model ends a launch with; "" when it finds nothing.
template <class... P, class... A>
std::string complaint(Grid grid, void (*kernel)(P...), A... arguments) {
  launch(nullptr, "planted", grid, kernel, arguments...);
  const cudaError_t result = cudaDeviceSynchronize();
  return result == cudaSuccess ? "" : cudaGetErrorString(result);
}

// What a child process that runs `f` writes to stderr.
inline std::string said_by_child(const std::function<void()>& f) {
  int pipes[2];
  REQUIRE(pipe(pipes) == 0);
  const pid_t child = fork();
  if (child == 0) {
    dup2(pipes[1], STDERR_FILENO);
    f();
    _exit(0);
  }
  close(pipes[1]);
  std::string said;
  char part[256];
  for (ssize_t n; (n = read(pipes[0], part, sizeof part)) > 0;) said.append(part, static_cast<size_t>(n));
  close(pipes[0]);
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  return said;
}

}  // namespace fovea::testing
