#include <fovea/layers/dropout.h>

#include <fovea/autograd/random.h>

namespace fovea::layers {
namespace {

double checked(double p, const char* layer) {
  check<ValueError>(p >= 0 && p <= 1, layer, ": p is a probability, got ", p);
  return p;
}

}  // namespace

Dropout::Dropout(double p) : p_(checked(p, "Dropout")) {}
Dropout2d::Dropout2d(double p) : p_(checked(p, "Dropout2d")) {}

// On meta nothing is drawn: asking for shapes must not change what the next step draws.
Tensor Dropout::forward(const Tensor& x) { return is_training() && p_ > 0 && !x.is_meta() ? dropout(x, p_) : x; }
Tensor Dropout2d::forward(const Tensor& x) { return is_training() && p_ > 0 && !x.is_meta() ? feature_dropout(x, p_) : x; }

}  // namespace fovea::layers
