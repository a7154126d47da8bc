// Softmax, its logarithm, and the cross-entropy between scores and labels. float32, float64 or a half type, whose sums are float32. Differentiable twice.
#pragma once

#include <fovea/autograd/tape.h>
#include <fovea/kernels/geometry.h>

namespace fovea {

Tensor softmax(const Tensor& x, int64_t axis = -1);           // e^x / sum e^x along the axis
Tensor log_softmax(const Tensor& x, int64_t axis = -1);       // x - log sum e^x

struct CrossEntropyOptions {
  Tensor weight = {};                        // [classes]: weight of each class
  int64_t ignore_index = -100;               // a sample with this label counts for nothing, not even in the mean
  Reduction reduction = Reduction::mean;     // mean: divided by the sum of the samples' weights (NaN where there is none), as PyTorch
  double label_smoothing = 0;                // how much of the target is spread evenly over all classes, in [0, 1]
};

// -log softmax(logits)[label], for logits [n, classes], [n, classes, ...] or [classes] and labels of integers without the classes axis.
// IndexError for a label that is neither in [0, classes) nor ignore_index; on CUDA from whatever waits for the device next (cuda::synchronize(), item(), ...): until then the
// loss of its sample is NaN and has no gradient, so that one bad label does no harm to the weights.   Label smoothing: Szegedy et al. 2016, section 7.
Tensor cross_entropy(const Tensor& logits, const Tensor& labels, const CrossEntropyOptions& options = {});

// -log_probabilities[label], for what log_softmax gives: cross_entropy without the softmax. Shapes, options (but for label_smoothing) and errors as there.
Tensor nll_loss(const Tensor& log_probabilities, const Tensor& labels, const CrossEntropyOptions& options = {});

}  // namespace fovea
