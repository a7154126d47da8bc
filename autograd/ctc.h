// Connectionist temporal classification: training on label sequences without knowing where in the input each label stands, and reading by the best path.
#pragma once

#include <vector>

#include <fovea/autograd/softmax.h>

namespace fovea {

struct CtcOptions {
  int64_t blank = 0;
  Reduction reduction = Reduction::mean;     // mean: each loss divided by its target's length (at least 1), then averaged over the batch, as PyTorch
  bool zero_infinity = false;                // a sample too short for its target costs 0 instead of infinity; its gradient is zero either way
};

// -ln of the probability that the scores spell the targets.   Source: Graves et al. 2006, "Connectionist temporal classification".
// logits: [time, batch, classes], float32, float64 or a half type; log-probabilities are as good, normalising them again changes nothing.
// targets: integers, [batch, longest target] (what stands past a target's length does not matter) or all targets one after the other, [sum of lengths].
// input_lengths, target_lengths: integers, [batch]. A sample needs as many steps as it has labels, and one more for each label that equals the one before.
// A sample with too few steps has an infinite loss and no gradient; a very long target among short ones costs no memory for that.
// IndexError names the sample whose label is no class or the blank, or whose length does not fit; on CUDA from whatever waits for the device next (cuda::synchronize(),
// item(), ...): until then the loss of that sample is NaN and has no gradient. Nothing waits for the device. Of targets one after the other,
// lengths that do not add up to their number are a ShapeError on the CPU, such an IndexError on CUDA. Differentiable once.
Tensor ctc_loss(const Tensor& logits, const Tensor& targets, const Tensor& input_lengths, const Tensor& target_lengths, const CtcOptions& options = {});

struct CtcCharacter {
  int64_t label = 0;
  double confidence = 0;                     // the largest probability that the label has on its steps
  int64_t first_step = 0, last_step = 0;     // the run of steps where it is the most probable class
};

struct CtcReading {
  std::vector<CtcCharacter> characters;
  double confidence = 1;                     // geometric mean of the most probable class's probability over all steps; 1 where there are none

  std::vector<int64_t> labels() const;
};

// Reads by the best path: the most probable class of each step, repeats merged, blanks left out. input_lengths as above, or undefined: all steps count. Waits once for
// the device.
std::vector<CtcReading> ctc_best_path(const Tensor& logits, const Tensor& input_lengths = {}, int64_t blank = 0);

}  // namespace fovea
