#include <fovea/layers/flatten.h>

namespace fovea::layers {

Tensor Unflatten::forward(const Tensor& x) {
  const int axis = wrap_axis(axis_, x.rank(), "Unflatten");
  Shape sizes = sizes_, shape;
  int unknown = -1;
  for (int i = 0; i < sizes.rank(); ++i) {
    if (sizes[i] != -1) continue;
    check<ShapeError>(unknown < 0, "Unflatten: at most one size may be -1, got ", sizes_);
    unknown = i;
    sizes[i] = 1;
  }
  const int64_t known = checked_numel(sizes, "Unflatten");
  if (unknown >= 0 && known > 0) sizes[unknown] = x.shape()[axis] / known;
  check<ShapeError>(sizes.numel() == x.shape()[axis], "Unflatten: axis ", axis, " of x ", x.shape(), " does not split into ", sizes_);
  for (int i = 0; i < x.rank(); ++i) {
    if (i != axis) shape.push_back(x.shape()[i]);
    else for (int64_t size : sizes) shape.push_back(size);
  }
  return reshape(x, shape);
}

}  // namespace fovea::layers
