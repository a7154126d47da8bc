// Mixed precision by scope: products and convolutions in a half type, what is sensitive to rounding in float32, parameters and their gradients in float32.
#pragma once

#include <optional>
#include <span>
#include <string_view>

#include <fovea/tensor/tensor.h>

namespace fovea {

// While one is alive, operations of this thread convert their arguments to the dtype that suits them (autocast_rules() below says which):
//
//     Tensor loss;
//     {
//       Autocast scope(DType::bfloat16);
//       loss = cross_entropy(model(images), labels);          // layers in bfloat16, the loss in float32
//     }
//     loss.backward();                                        // in the dtypes of the forward pass; gradients of float32 parameters are float32
//
// The conversions are recorded like any other operation. A parameter (a leaf that requires a gradient) is converted once on a stream and once in a
// recorded graph, and again after it was changed in place or moved; the copies are kept until the outermost scope ends, so a scope should hold a forward pass, not a whole
// training, and no graph's replay(), which changes parameters unseen. Arguments of float64 turn autocast off for a call.
// Scopes nest, the innermost counts. A backward pass does not autocast, wherever it is called; checkpoint() runs its function again as it ran first.
// On the CPU half types are storage: values are rounded as on a GPU, and computed in float32, which takes longer than float32 alone. With float16 small gradients
// vanish: scale the loss.
class Autocast {
 public:
  // float16 or bfloat16, else DTypeError; nullopt: off.
  explicit Autocast(std::optional<DType> dtype);
  ~Autocast();
  Autocast(const Autocast&) = delete;
  Autocast& operator=(const Autocast&) = delete;

  static Autocast disabled() { return Autocast(std::nullopt); }
  static std::optional<DType> dtype();       // of the innermost scope of this thread; nullopt where there is none, or it is off

 private:
  std::optional<DType> before_;
};

enum class AutocastPrecision : uint8_t {
  half,                                      // in the scope's dtype
  single,                                    // in float32
  widest,                                    // in the widest dtype of the arguments, which have to agree
  as_given,                                  // as without autocast: everything that has no rule
};

struct AutocastRule {
  std::string_view operation;                // the function's name
  AutocastPrecision precision;
};

std::span<const AutocastRule> autocast_rules();
AutocastPrecision autocast_precision(std::string_view operation);

namespace detail {
// x in another floating-point dtype, from the scope's copies where x is a parameter.
Tensor autocast_copy(const Tensor& x, DType dtype);
}  // namespace detail

}  // namespace fovea
