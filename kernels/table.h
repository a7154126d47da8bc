// One typed function pointer for each kernel, one table for each device. There is no registration: a table is filled in one place, so static
// linking loses nothing and a test can walk the table to see what a device lacks.
//
// Conventions of every entry:
// - Views must be of one device. Kernels check nothing: shapes and dtypes were checked by the operation that calls them.
// - An output is overwritten in full unless its comment says that it accumulates. Outputs never overlap inputs, except that elementwise kernels
//   may be given y == x (same pointer and strides).
// - A view whose data is null is an argument that is not there.
// - Kernels never allocate. Where an entry takes a Workspace, the `*_workspace` entry beside it says how many bytes it wants.
// - Deterministic: sums have a fixed order, whatever the number of threads.
#pragma once

#include <span>

#include <fovea/kernels/geometry.h>
#include <fovea/kernels/range_check.h>
#include <fovea/kernels/running_statistics.h>
#include <fovea/kernels/view.h>

namespace fovea::kernels {

using Queue = void*;                         // the stream work is put on; null on the CPU

struct Workspace {
  void* data = nullptr;
  int64_t bytes = 0;
};

// y = f(x; alpha, beta)
enum class Unary : uint8_t {
  negative, absolute, sign, square, sqrt, rsqrt, reciprocal, exp, expm1, log, log1p, sin, cos, tanh, sigmoid, erf, floor, ceil, round,
  relu, relu6, gelu, gelu_tanh, silu, softplus,                              // softplus: alpha = beta, beta = threshold, as PyTorch's
  leaky_relu, elu, hardtanh,                                                 // alpha = slope | alpha | minimum, beta = maximum of hardtanh
  add_scalar, mul_scalar, rsub_scalar, rdiv_scalar, pow_scalar,              // x + alpha, x * alpha, alpha - x, alpha / x, x ^ alpha
  clamp,                                                                     // to [alpha, beta]
  logical_not, is_nan, is_finite,                                            // y is bool
};

// y = f(a, b; alpha, beta). The *_backward rows take (gradient, saved value) in that order; which value is saved is named.
enum class Binary : uint8_t {
  add, subtract, multiply, divide, power, maximum, minimum, atan2, remainder,
  relu_backward,                                                             // saved y
  tanh_backward, sigmoid_backward,                                           // saved y
  gelu_backward, gelu_tanh_backward, silu_backward, softplus_backward,       // saved x
  leaky_relu_backward, elu_backward, hardtanh_backward, clamp_backward,      // saved x; parameters as for the forward. At a bound hardtanh's slope is 0, clamp's 1
  logical_and, logical_or, logical_xor,                                      // bool
  equal, not_equal, less, less_equal, greater, greater_equal,                // y is bool
};

enum class Ternary : uint8_t {
  where,                                                                     // a ? b : c, with a bool
  add_product,                                                               // a + alpha * b * c
  add_quotient,                                                              // a + alpha * b / c
  lerp,                                                                      // a + c * (b - a)
};

struct Scalars {
  double alpha = 0, beta = 0;
};

enum class Reduce : uint8_t { sum, mean, product, max, min, sum_squares, logsumexp, any, all };
enum class ArgReduce : uint8_t { argmax, argmin };                           // the first of equals; NaN wins, as in PyTorch

enum class Distribution : uint8_t {
  uniform,                                                                   // [a, b)
  normal,                                                                    // mean a, standard deviation b
  bernoulli,                                                                 // 1 with probability a
  integers,                                                                  // uniform over a, a+1, ..., b-1
};

// Philox4x32-10 counter (kernels/philox.h): element i of an output is made from (seed, offset + i / 4) alone; what needs 64 bits, from (seed, offset + i / 2).
struct PhiloxKey {
  uint64_t seed = 0, offset = 0;
};

// What an optimizer's step is told of a group of parameters; step counts from 1.
struct SgdStep { double lr, momentum, dampening, weight_decay; bool nesterov; int64_t step; };
struct AdamStep { double lr, beta1, beta2, eps, weight_decay; bool is_decoupled; int64_t step; };          // is_decoupled: AdamW
struct RmspropStep { double lr, alpha, eps, weight_decay, momentum; bool is_centered; int64_t step; };
struct AdagradStep { double lr, lr_decay, weight_decay, eps; int64_t step; };

// Families of entries whose kernels may or may not take half types. Elementwise, memory, random, reduce and order entries take every dtype on every device.
enum class Family : uint8_t { matmul, conv, pool, norm, softmax, image, index, rnn, ctc };

class FamilySet {
 public:
  static FamilySet all() {
    FamilySet set;
    set.bits_ = ~0u;
    return set;
  }
  void add(Family f) { bits_ |= 1u << static_cast<int>(f); }
  bool has(Family f) const { return (bits_ >> static_cast<int>(f) & 1u) != 0; }

 private:
  uint32_t bits_ = 0;
};

// One parameter of a step: contiguous memory of numel elements each. What is not there is null.
struct StepSlot {
  void* parameter = nullptr;                 // float32 or float64; of a half type's parameter, the copy in float32 that is stepped on
  const void* gradient = nullptr;
  void* state[3] = {};                       // of the parameter's dtype
  void* rounded = nullptr;                   // the parameter of a half type itself, see Note [Master copies]
  int64_t numel = 0;
  int64_t step = 0;                          // which of the call's steps is meant
  DType dtype = DType::float32;              // of parameter and state
  DType gradient_dtype = DType::float32;     // dtype, or float16 or bfloat16 beside float32
  DType rounded_dtype = DType::float32;      // float16 or bfloat16
  // Set together, for all slots of a call or for none: memory of the device that is read in the place of the step's lr and step, so that a recorded step goes on counting.
  const double* lr = nullptr;
  int64_t* count = nullptr;                  // steps taken so far; the call adds one
};

// Note [Master copies]
// A step is often smaller than the distance between two neighbours of a half type, and would be lost there. So a parameter of a half type is stepped on in float32
// (`parameter`) and rounded to nearest even from there (`rounded`). An element of `rounded` that is not its copy rounded was changed by somebody else since
// the last step, by loading weights for example: then it counts, and the copy starts from it again.

// What a step finds on the device, so that the host need not wait for it.
struct StepControl {
  const float* grad_scale = nullptr;         // gradients are divided by it
  const int32_t* found_inf = nullptr;        // not 0: nothing changes, and no step is counted
};

// A gradient among all of them: contiguous, of a floating-point dtype.
struct GradientSlot {
  void* data = nullptr;
  int64_t numel = 0;
  DType dtype = DType::float32;
};

// Dynamic loss scaling: the scale is multiplied by backoff after a step that found an infinity or a NaN, and by growth after `interval` steps in a row without, as long
// as it stays a normal number of float32.
struct ScaleGrowth {
  double growth, backoff;
  int64_t interval;
  constexpr void advance(bool has_found_inf, float& scale, int32_t& good_steps) const {
    good_steps = has_found_inf ? 0 : good_steps + 1;
    const bool is_raised = good_steps >= interval;
    if (is_raised) good_steps = 0;
    const double next = scale * (has_found_inf ? backoff : is_raised ? growth : 1);
    if (next >= 0x1p-126 && next <= 3.4028234663852886e38) scale = static_cast<float>(next);
  }
};

struct KernelTable {
  const char* name = "";

  // Families that compute on float16 and bfloat16 (x, y and their gradients in the half type, sums and what comments below say in float32), each added where its
  // entries are filled in. To others only float32 and float64 may be given: operations widen half types first (Note [Half types] in autograd/arguments.h).
  FamilySet computes_half;

  // --- elementwise (elementwise.cpp): views already broadcast to y's shape with zero strides; any strides ---
  void (*unary)(Queue, Unary, Scalars, const ConstView& x, const View& y);
  void (*binary)(Queue, Binary, Scalars, const ConstView& a, const ConstView& b, const View& y);
  void (*ternary)(Queue, Ternary, Scalars, const ConstView& a, const ConstView& b, const ConstView& c, const View& y);

  // --- memory (copy.cpp) ---
  void (*copy)(Queue, const ConstView& x, const View& y);                    // any strides, any pair of dtypes
  void (*fill)(Queue, double value, const View& y);
  void (*arange)(Queue, double start, double step, const View& y);           // y[i] = start + i * step, y 1-D

  // --- random numbers (random.cpp) ---
  void (*random)(Queue, Distribution, Scalars, PhiloxKey, const View& y);    // y contiguous
  void (*dropout)(Queue, double p, PhiloxKey, const ConstView& x, const View& y);   // contiguous; y = x * mask / (1 - p); the same key drops the same elements

  // --- reductions (reduce.cpp, scan.cpp): y has x's rank, reduced axes of size 1; any strides; float32 or wider accumulation ---
  void (*reduce)(Queue, Reduce, const ConstView& x, const View& y);
  void (*arg_reduce)(Queue, ArgReduce, int axis, const ConstView& x, const View& y);        // y int64
  // x and y floating-point; y, over axes as in reduce, is the sum of squared deviations from the mean divided by max(0, count - correction): x is read once.
  void (*variance)(Queue, double correction, const ConstView& x, const View& y);
  void (*cumsum)(Queue, int axis, bool is_reversed, const ConstView& x, const View& y);

  // --- order (sort.cpp): stable, NaN counts as the largest; values and indices (int64) along `axis`; any strides ---
  void (*sort)(Queue, int axis, bool is_descending, const ConstView& x, const View& values, const View& indices);
  void (*topk)(Queue, int axis, bool is_largest, const ConstView& x, const View& values, const View& indices);   // k = values.size(axis)

  // --- indexing (index.cpp): index int64, looked at by check_range before; any strides. CUDA's kernels, which run before anybody knows what check_range has found,
  //     read 0 for an index out of range, and add nothing there. ---
  void (*gather)(Queue, int axis, const ConstView& x, const ConstView& index, const View& y);              // y[..i..] = x[..index[..i..]..]
  void (*scatter_add)(Queue, int axis, const ConstView& index, const ConstView& source, const View& y);    // accumulates into y
  void (*index_select)(Queue, int axis, const ConstView& x, const ConstView& index, const View& y);        // index 1-D
  void (*index_add)(Queue, int axis, const ConstView& index, const ConstView& source, const View& y);      // accumulates into y
  // IndexError about the first value (row-major) that is not allowed: at once on the CPU, from the next wait on CUDA. values int64; with `lengths` (int64, contiguous, may be
  // absent) only the first lengths[row] of each row along the last axis count.
  void (*check_range)(Queue, const RangeCheck&, const ConstView& values, const ConstView& lengths);

  // --- matrix product (matmul.cpp): a [..,m,k], b [..,k,n], y [..,m,n], equal batch axes (zero strides broadcast), any strides; y = alpha a b + beta y.
  //     bias [n] (or null) is added; with beta == 0, y is not read. ---
  int64_t (*matmul_workspace)(const MatmulGeometry&, DType);
  void (*matmul)(Queue, const MatmulGeometry&, Scalars alpha_beta, const ConstView& a, const ConstView& b, const ConstView& bias, const View& y, Workspace);

  // --- convolution (conv.cpp, conv_depthwise.cpp): contiguous NCHW / OIHW; on CUDA each of x, y, weight and their gradients may lie channels-last instead ([n,h,w,c] in
  //     memory, shapes as ever): strides say so. bias and dbias have x's dtype ---
  int64_t (*conv2d_workspace)(const ConvGeometry&, DType);                   // enough for any of the three; dweight or dbias may be absent
  void (*conv2d_forward)(Queue, const ConvGeometry&, const ConstView& x, const ConstView& weight, const ConstView& bias, const View& y, Workspace);
  void (*conv2d_backward_data)(Queue, const ConvGeometry&, const ConstView& dy, const ConstView& weight, const View& dx, Workspace);
  void (*conv2d_backward_weight)(Queue, const ConvGeometry&, const ConstView& x, const ConstView& dy, const View& dweight, const View& dbias, Workspace);

  // --- pooling (pool.cpp, adaptive_pool.cpp): contiguous NCHW, or on CUDA all of a call's tensors channels-last; indices int64 (may be absent) hold h * w positions within a
  //     plane, as PyTorch's ---
  void (*max_pool)(Queue, const PoolGeometry&, const ConstView& x, const View& y, const View& indices);
  void (*adaptive_max_pool)(Queue, const AdaptivePoolGeometry&, const ConstView& x, const View& y, const View& indices);
  // Planes = first two axes. windows: those that the indices were found in, or null where they may be anywhere; then everything is contiguous.
  void (*max_pool_backward)(Queue, const PoolGeometry* windows, const ConstView& dy, const ConstView& indices, const View& dx);
  void (*avg_pool)(Queue, const PoolGeometry&, const ConstView& x, const View& y);
  void (*avg_pool_backward)(Queue, const PoolGeometry&, const ConstView& dy, const View& dx);
  void (*adaptive_avg_pool)(Queue, const AdaptivePoolGeometry&, const ConstView& x, const View& y);
  void (*adaptive_avg_pool_backward)(Queue, const AdaptivePoolGeometry&, const ConstView& dy, const View& dx);

  // --- normalisation (norm.cpp, group_norm.cpp): contiguous; gamma, beta and any gradient may be absent; mean and invstd (1/sqrt(var+eps)) are float32 or wider.
  //     Beside a half x, everything with a value a channel is float32: gamma, beta and their gradients, mean, invstd, variance.
  //     Batch norm, y = relu(norm(x) + residual): the residual may be absent, the ReLU left out. x, residual, y, dy, dx and dresidual are either all contiguous or
  //     all channels-last ---
  void (*batch_norm_train)(Queue, const NormGeometry&, bool has_relu, const ConstView& x, const ConstView& residual, const ConstView& gamma, const ConstView& beta,
                           const View& y, const View& mean, const View& invstd, const RunningUpdate&);      // biased variance inside
  void (*batch_norm_eval)(Queue, const NormGeometry&, bool has_relu, const ConstView& x, const ConstView& residual, const ConstView& gamma, const ConstView& beta,
                          const ConstView& mean, const ConstView& variance, const View& y);
  // y is read only when has_relu (dy counts where y > 0); dresidual is dy where it counts.
  void (*batch_norm_backward)(Queue, const NormGeometry&, bool has_relu, const ConstView& dy, const ConstView& x, const ConstView& y, const ConstView& gamma,
                              const ConstView& mean, const ConstView& invstd, const View& dx, const View& dresidual, const View& dgamma, const View& dbeta);
  void (*group_norm)(Queue, const NormGeometry&, const ConstView& x, const ConstView& gamma, const ConstView& beta,
                     const View& y, const View& mean, const View& invstd);                                  // mean, invstd [n, groups] (may be absent); gamma, beta [channels]
  void (*group_norm_backward)(Queue, const NormGeometry&, const ConstView& dy, const ConstView& x, const ConstView& gamma,
                              const ConstView& mean, const ConstView& invstd, const View& dx, const View& dgamma, const View& dbeta);
  void (*layer_norm)(Queue, const NormGeometry&, const ConstView& x, const ConstView& gamma, const ConstView& beta,
                     const View& y, const View& mean, const View& invstd);                                  // n rows of `spatial`; gamma, beta [spatial]
  void (*layer_norm_backward)(Queue, const NormGeometry&, const ConstView& dy, const ConstView& x, const ConstView& gamma,
                              const ConstView& mean, const ConstView& invstd, const View& dx, const View& dgamma, const View& dbeta);

  // --- softmax and cross-entropy (softmax.cpp): contiguous; on CUDA y and dy beside a half x and dx may be float32 ---
  void (*softmax)(Queue, const AxisGeometry&, bool is_log, const ConstView& x, const View& y);
  void (*softmax_backward)(Queue, const AxisGeometry&, bool is_log, const ConstView& dy, const ConstView& y, const View& dx);
  // logits contiguous, targets int64 [rows]; a row whose target is ignore_index counts for nothing. losses: [rows], or of one element under a reduction;
  // divisor (of one element, written and read for a mean only): the sum of the rows' weights. Beside half logits, losses, divisor, class_weights and dlosses are float32.
  void (*cross_entropy)(Queue, const CrossEntropyGeometry&, const ConstView& logits, const ConstView& targets, const ConstView& class_weights, const View& losses,
                        const View& divisor);
  // dlosses: of the shape of losses, or with zero strides.
  void (*cross_entropy_backward)(Queue, const CrossEntropyGeometry&, const ConstView& dlosses, const ConstView& divisor, const ConstView& logits, const ConstView& targets,
                                 const ConstView& class_weights, const View& dlogits);

  // --- images (image.cpp): contiguous ---
  void (*resize_nearest)(Queue, const ResizeGeometry&, const ConstView& x, const View& y);
  void (*resize_nearest_backward)(Queue, const ResizeGeometry&, const ConstView& dy, const View& dx);
  void (*resize_bilinear)(Queue, const ResizeGeometry&, const ConstView& x, const View& y);
  void (*resize_bilinear_backward)(Queue, const ResizeGeometry&, const ConstView& dy, const View& dx);
  // x [n,c,h,w], grid [n,out_h,out_w,2] in [-1,1] as (x,y), zero padding, bilinear
  void (*grid_sample)(Queue, bool align_corners, const ConstView& x, const ConstView& grid, const View& y);
  void (*grid_sample_backward)(Queue, bool align_corners, const ConstView& dy, const ConstView& x, const ConstView& grid, const View& dx, const View& dgrid);

  // --- recurrent layers (rnn.cpp): contiguous; see RnnGeometry. One layer; weights of both directions come as arrays of two. ---
  // lengths int64 [batch] or null. After a sample's length y is zero and the state stays as it was; the reverse direction starts at its last valid step.
  // h0, c0, h_n, c_n [directions, batch, hidden]. reserve (may be null when no backward follows) holds what backward needs.
  struct RnnWeights { ConstView w_ih[2], w_hh[2], b_ih[2], b_hh[2]; };       // biases may be absent
  struct RnnGradients { View w_ih[2], w_hh[2], b_ih[2], b_hh[2]; };          // overwritten; each may be absent, as may dx, dh0 and dc0
  int64_t (*rnn_reserve)(const RnnGeometry&, DType);                         // bytes
  int64_t (*rnn_workspace)(const RnnGeometry&, DType);                       // enough for forward and for backward
  void (*rnn_forward)(Queue, const RnnGeometry&, const ConstView& x, const ConstView& lengths, const ConstView& h0, const ConstView& c0, const RnnWeights&,
                      const View& y, const View& h_n, const View& c_n, Workspace reserve, Workspace);
  void (*rnn_backward)(Queue, const RnnGeometry&, const ConstView& x, const ConstView& lengths, const ConstView& h0, const ConstView& c0, const RnnWeights&,
                       const ConstView& y, Workspace reserve, const ConstView& dy, const ConstView& dh_n, const ConstView& dc_n,
                       const View& dx, const View& dh0, const View& dc0, const RnnGradients&, Workspace);

  // --- CTC (ctc.cpp): contiguous logits [time,batch,classes]; targets int64 [batch,max_target]; lengths int64 [batch] ---
  // On CUDA targets may also stand one after the other, [sum of lengths]; max_target is then no less than the longest, or more than `time`.
  // The scores are log-softmax of `logits` over classes; normalising log-probabilities again changes nothing, so either may be given.
  // losses: [batch], -ln p(target), or of one element under a reduction; weights (written under a reduction only; may be absent): [batch], what each sample's loss counts for.
  // dlogits (if there) is the gradient of the sum of all samples' losses, whatever the reduction. Beside half logits, losses and weights are float32; the workspace is
  // asked for by logits' dtype.
  int64_t (*ctc_workspace)(const CtcGeometry&, DType);
  void (*ctc_loss)(Queue, const CtcGeometry&, const ConstView& logits, const ConstView& targets, const ConstView& input_lengths,
                   const ConstView& target_lengths, const View& losses, const View& weights, const View& dlogits, Workspace);

  // --- optimizers (optimizer.cpp): in place, over all parameters of a device at once; slots[i] is stepped as steps[slots[i].step] says ---
  void (*sgd)(Queue, std::span<const SgdStep> steps, std::span<const StepSlot> slots, const StepControl&);           // state: momentum_buffer where momentum != 0
  void (*adam)(Queue, std::span<const AdamStep> steps, std::span<const StepSlot> slots, const StepControl&);         // state: exp_avg, exp_avg_sq
  void (*rmsprop)(Queue, std::span<const RmspropStep> steps, std::span<const StepSlot> slots, const StepControl&);   // state: square_avg, momentum_buffer, grad_avg
  void (*adagrad)(Queue, std::span<const AdagradStep> steps, std::span<const StepSlot> slots, const StepControl&);   // state: sum
  // norm = the square root of the sum of all squares, or the largest magnitude (NaN wins); 0 without gradients.
  void (*gradient_norm)(Queue, bool is_infinity, std::span<const GradientSlot>, double* norm);
  // Gradients are multiplied by max_norm / (norm + 1e-6), unless that is 1 or more; norm lies on the device.
  void (*clip_gradients)(Queue, double max_norm, const double* norm, std::span<const GradientSlot>);
  // found_inf becomes 1 if a gradient divided by scale is infinite or NaN somewhere, else it stays. The quotients overwrite the gradients if is_written.
  void (*unscale_gradients)(Queue, bool is_written, const float* scale, std::span<const GradientSlot>, int32_t* found_inf);
  // found_inf [count] is set to zero; good_steps counts the steps in a row without an infinity.
  void (*update_scale)(Queue, const ScaleGrowth&, float* scale, int32_t* good_steps, int32_t* found_inf, int64_t count);
};

// The table of a device. DeviceError with a remedy when this build or machine has no such device.
const KernelTable& for_device(Device device);

// The three tables behind it; cuda_table() lives in kernels/cuda/, or in kernels/cuda/no_cuda.cpp where CUDA is not built.
const KernelTable& cpu_table();
const KernelTable& meta_table();                                              // every entry does nothing: shapes without data
const KernelTable& cuda_table(int index);

}  // namespace fovea::kernels
