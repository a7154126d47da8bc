#include <fovea/kernels/cuda/rnn_plan.h>

#include <algorithm>
#include <limits>

namespace fovea::kernels::cuda {
namespace {

// Blocks that fill a large GPU once. A constant, not the GPU at hand: results must not depend on it.
constexpr int64_t full_gpu = 132;

int64_t tiles(int64_t size, int64_t tile) { return (size + tile - 1) / tile; }

// rnn_step.h has the same numbers.
int64_t samples_of(RnnKernel kernel) {
  switch (kernel) {
    case RnnKernel::tiny: return 8;
    case RnnKernel::slim: return 16;
    case RnnKernel::small: return 32;
    default: return 64;
  }
}

int64_t units_of(RnnKernel kernel, RnnPass pass) {
  const int64_t groups = kernel == RnnKernel::wide ? 4 : kernel == RnnKernel::medium ? 2 : 1;       // of eight columns of W for each gate
  return 8 * groups * (pass == RnnPass::backward ? 2 : 1);
}

// Products of a clock that an SM reaches, by what its registers and shared memory give a tile of this size. Estimates, to be replaced by
// measurements.
double product_rate(RnnKernel kernel, bool uses_tensor_cores, int64_t element_bytes) {
  const double share = kernel == RnnKernel::wide ? 0.85 : kernel == RnnKernel::medium ? 0.7 : 0.5;
  if (uses_tensor_cores) return share * (element_bytes == 2 ? 1200 : 600);
  return share * 128;
}
constexpr double copy_rate = 64;             // bytes of a clock that an SM gets from the L2 cache

// Clocks of the SM that gets the most tiles, for each term of the sums: copying both operands, or multiplying them, whichever takes longer.
double time_of(const RnnGeometry& g, RnnKernel kernel, RnnPass pass, bool uses_tensor_cores, int64_t element_bytes) {
  const int64_t samples = samples_of(kernel), units = units_of(kernel, pass), columns = units * (pass == RnnPass::forward ? g.gates() : 1);
  const int64_t blocks = tiles(g.hidden_size, units) * tiles(g.batch, samples) * g.directions;
  const double copies = static_cast<double>((std::min(samples, g.batch) + columns) * element_bytes) / copy_rate;
  const double products = static_cast<double>(samples * columns) / product_rate(kernel, uses_tensor_cores, element_bytes);
  return static_cast<double>(tiles(blocks, full_gpu)) * std::max(copies, products);
}

constexpr const char* names[2][2][5] = {
    {{"rnn_forward_step_tiny", "rnn_forward_step_slim", "rnn_forward_step_small", "rnn_forward_step_medium", "rnn_forward_step_wide"},
     {"", "rnn_forward_step_tensor_slim", "rnn_forward_step_tensor_small", "rnn_forward_step_tensor_medium",
      "rnn_forward_step_tensor_wide"}},
    {{"rnn_backward_step_tiny", "rnn_backward_step_slim", "rnn_backward_step_small", "rnn_backward_step_medium", "rnn_backward_step_wide"},
     {"", "rnn_backward_step_tensor_slim", "rnn_backward_step_tensor_small", "rnn_backward_step_tensor_medium",
      "rnn_backward_step_tensor_wide"}},
};

// The fastest by the estimate, of those that the batch fills at least half of; among equals the larger tile, which reads less altogether.
// float64, which is for checking gradients, has one tile.
RnnKernel fastest(const RnnGeometry& g, DType dtype, RnnPass pass, bool uses_tensor_cores) {
  if (dtype == DType::float64) return RnnKernel::slim;
  if (g.batch <= samples_of(RnnKernel::tiny) && !uses_tensor_cores) return RnnKernel::tiny;
  RnnKernel best = RnnKernel::slim;
  double best_time = std::numeric_limits<double>::infinity();
  for (const RnnKernel kernel : {RnnKernel::wide, RnnKernel::medium, RnnKernel::small, RnnKernel::slim}) {
    if (kernel != RnnKernel::slim && samples_of(kernel) >= 2 * g.batch) continue;
    const double time = time_of(g, kernel, pass, uses_tensor_cores, size_of(dtype));
    if (time < best_time) best = kernel, best_time = time;
  }
  return best;
}

}  // namespace

RnnPlan choose_rnn_kernel(const RnnGeometry& g, DType dtype, RnnPass pass, bool has_tf32) {
  const bool uses_tensor_cores = dtype == DType::float16 || dtype == DType::bfloat16 || (dtype == DType::float32 && has_tf32);
  const RnnKernel kernel = fastest(g, dtype, pass, uses_tensor_cores);
  return {kernel, uses_tensor_cores, names[static_cast<size_t>(pass)][uses_tensor_cores][static_cast<size_t>(kernel)], samples_of(kernel),
          units_of(kernel, pass)};
}

}  // namespace fovea::kernels::cuda
