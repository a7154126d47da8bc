#include <fovea/optim/gradients.h>

#include <algorithm>

#include <fovea/autograd/shape.h>
#include <fovea/autograd/tape.h>

namespace fovea::optim {

void DeviceGradients::store() const {
  for (size_t i = 0; i < originals.size(); ++i) {
    const Tensor& gradient = originals[i];
    if (!gradient.is_same(contiguous[i])) table().copy(queue(), contiguous[i].view(), gradient.mutable_view());
    gradient.storage()->bump_version();
  }
}

std::vector<DeviceGradients> gradients_of(const NamedTensors& parameters) {
  NoGrad no_grad;
  std::vector<DeviceGradients> devices;
  for (const auto& entry : parameters) {
    const Tensor gradient = entry.second.defined() ? entry.second.grad() : Tensor();
    if (!gradient.defined()) continue;
    const auto is_here = [&](const DeviceGradients& d) { return d.device == gradient.device(); };
    auto place = std::find_if(devices.begin(), devices.end(), is_here);
    if (place == devices.end()) place = devices.insert(devices.end(), DeviceGradients{gradient.device(), {}, {}, {}});
    place->originals.push_back(gradient);
    place->contiguous.push_back(fovea::contiguous(gradient));
    const View view = place->contiguous.back().mutable_view();
    place->slots.push_back({view.data, view.numel(), view.dtype});
  }
  return devices;
}

}  // namespace fovea::optim
