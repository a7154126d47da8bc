// Dynamic loss scaling for float16 (Micikevicius et al. 2018, "Mixed precision training"), with the defaults of torch.amp.GradScaler.
//
//     optim::GradScaler scaler;
//     scaler.scale(loss).backward();
//     scaler.unscale(optimizer);                                    // only where somebody looks at the gradients before the step
//     optim::clip_grad_norm(optimizer.parameters(), 1.0);
//     scaler.step(optimizer);
//     scaler.update();
//
// Small gradients would vanish in float16, so the loss, and with it every gradient, is multiplied by a scale. A step whose gradients are infinite or NaN somewhere is
// left out and lowers the scale; many good steps in a row raise it; it stays a normal number of float32. Scale and counts live on the gradients'
// device. With a capturable optimizer nothing waits for the device, and all of the above may be recorded (cuda::Graph); else step() waits for one number.
#pragma once

#include <vector>

#include <fovea/optim/optimizer.h>

namespace fovea::optim {

struct GradScalerOptions {
  double init_scale = 65536, growth_factor = 2, backoff_factor = 0.5;
  int64_t growth_interval = 2000;            // good steps in a row before the scale grows
  bool enabled = true;                       // false: scale() returns the loss, step() is the optimizer's, unscale() and update() do nothing
};

struct DeviceGradients;                      // gradients.h

class GradScaler {
 public:
  explicit GradScaler(GradScalerOptions options = {});               // ValueError for factors and intervals that make no sense

  // loss times the scale, in float32 for a loss of a half type.
  Tensor scale(const Tensor& loss);
  // Divides the optimizer's gradients by the scale, once between two update()s, and notes whether one is infinite or NaN. DTypeError for a float16 gradient, whose small
  // values would be lost: step() reads those in float32.
  void unscale(Optimizer& optimizer);
  // optimizer.step() with gradients divided by the scale (in the step itself, unless unscale() did it), unless one is infinite or NaN. Once between two update()s.
  // All parameters with gradients must be on the device of the loss: DeviceError.
  void step(Optimizer& optimizer);
  // After the steps: adapts the scale to what they found.
  void update();

  double current_scale() const;              // waits for the device
  // "scale" (float32), "good_steps" (int32) and the options, to be kept with a checkpoint (TrainingState::tensors).
  NamedTensors state() const;
  void load_state(const NamedTensors& state);                        // ValueError for what is missing or unfit; the scaler is then as it was

 private:
  struct Use {                               // of an optimizer since the last update()
    const Optimizer* optimizer;
    bool is_unscaled = false, has_stepped = false;
  };

  void check_options(const GradScalerOptions& options) const;
  void make(Device device);
  Use& use_of(const Optimizer& optimizer);
  int32_t* found_by(const Use& use);
  std::vector<DeviceGradients> checked_gradients(const Optimizer& optimizer) const;
  void look_for_inf(const std::vector<DeviceGradients>& devices, const Use& use, bool is_written);

  GradScalerOptions options_;
  Tensor scale_, good_steps_, found_inf_;    // found_inf_: one for each use
  std::vector<Use> uses_;
};

}  // namespace fovea::optim
