#include <fovea/layers/container.h>

#include <typeinfo>

#include <fovea/autograd/elementwise.h>
#include <fovea/layers/activation.h>
#include <fovea/layers/norm.h>

namespace fovea::layers {
namespace {

Module& child_at(const Module& parent, int64_t index) {
  const int64_t size = static_cast<int64_t>(parent.children().size()), i = index < 0 ? index + size : index;
  check<IndexError>(i >= 0 && i < size, parent.type_name(), ": no layer ", index, "; there are ", size);
  return *parent.children()[static_cast<size_t>(i)].second;
}

}  // namespace

Module& Sequential::operator[](int64_t index) { return child_at(*this, index); }

// Batch norm and the ReLU after it are one pass over memory. A class derived from ReLU may do something else, and is called as it is.
Tensor Sequential::forward(const Tensor& x) {
  Tensor y = x;
  const auto& list = children();
  for (size_t i = 0; i < list.size(); ++i) {
    Module& child = *list[i].second;
    Module* next = i + 1 < list.size() ? list[i + 1].second.get() : nullptr;
    auto* norm = dynamic_cast<BatchNorm*>(&child);
    if (!norm || !next || typeid(*next) != typeid(ReLU)) {
      y = child(y);
      continue;
    }
    { Call call(*norm, y); }
    { Call call(*next, y); }
    y = norm->forward_relu(y);
    ++i;
  }
  return y;
}

Module& ModuleList::operator[](int64_t index) { return child_at(*this, index); }

Tensor Residual::forward(const Tensor& x) {
  const Tensor y = (*body_)(x), carried = shortcut_ ? (*shortcut_)(x) : x;
  check<ShapeError>(y.shape() == carried.shape(), "Residual: the body makes ", y.shape(), " of x ", x.shape(), ", the shortcut ",
                    carried.shape(), "; give a shortcut layer that brings x to the body's shape");
  return y + carried;
}

std::optional<ReceptiveField> Residual::own_field() const {
  return body_->receptive_field().united(shortcut_ ? shortcut_->receptive_field() : ReceptiveField{});
}

}  // namespace fovea::layers
