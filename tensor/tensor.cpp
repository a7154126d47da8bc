#include <fovea/tensor/tensor.h>

#include <fovea/kernels/cuda/allocator.h>
#include <fovea/tensor/allocator.h>
#include <fovea/tensor/creation.h>
#include <fovea/tensor/elements.h>

namespace fovea {

Storage::Storage(int64_t bytes, Device device) : bytes_(bytes), device_(device) {
  switch (device.kind) {
    case Device::Kind::cpu: data_ = allocator::allocate(bytes); break;
    case Device::Kind::meta: break;
    case Device::Kind::cuda: data_ = cuda::allocator::allocate(bytes, device.index); break;   // throws where there is no such device
  }
}

Storage::Storage(void* data, int64_t bytes, Device device, std::shared_ptr<const void> owner)
    : data_(data), bytes_(bytes), device_(device), owner_(std::move(owner)) {}

Storage::~Storage() {
  if (owner_) return;
  if (device_.kind == Device::Kind::cpu) allocator::release(data_, bytes_);
  if (device_.kind == Device::Kind::cuda) cuda::allocator::release(data_, bytes_, device_.index);
}

Tensor::Tensor(std::shared_ptr<Storage> storage, Shape shape, Strides strides, int64_t offset, DType dtype) : impl_(std::make_shared<Impl>()) {
  impl_->storage = std::move(storage);
  impl_->shape = shape;
  impl_->strides = strides;
  impl_->offset = offset;
  impl_->numel = shape.numel();
  impl_->dtype = dtype;
}

Tensor Tensor::from_impl(std::shared_ptr<Impl> impl) {
  Tensor x;
  x.impl_ = std::move(impl);
  return x;
}

int64_t Tensor::size(int64_t axis) const { return shape()[wrap_axis(axis, rank(), "size")]; }

bool Tensor::is_contiguous() const { return ConstView::strides_are_contiguous(shape(), strides()); }

View Tensor::mutable_view() const {
  const Impl& t = impl();
  View v;
  v.data = t.storage->data() ? static_cast<char*>(t.storage->data()) + t.offset * size_of(t.dtype) : nullptr;
  v.dtype = t.dtype;
  v.shape = t.shape;
  v.strides = t.strides;
  return v;
}

ConstView Tensor::view() const { return mutable_view(); }

Tensor Tensor::detach() const {
  const Impl& t = impl();
  return Tensor(t.storage, t.shape, t.strides, t.offset, t.dtype);
}

void Tensor::fail_undefined() { fail<ValueError>("an undefined tensor was used (a default-constructed Tensor, or a gradient that is not there)"); }

void* Tensor::checked_data(DType dtype) const {
  check<DTypeError>(dtype == this->dtype(), "data: the tensor is ", this->dtype(), ", asked for ", dtype);
  check<DeviceError>(device().kind == Device::Kind::cpu, "data: the tensor is on ", device(), "; copy it with to(x, Device::cpu())");
  check<ShapeError>(is_contiguous(), "data: the tensor of shape ", shape(), " is not contiguous (strides ", strides(), "); use contiguous(x)");
  return mutable_view().data;
}

// The element on the CPU.
Tensor Tensor::checked_item() const {
  check<ShapeError>(numel() == 1, "item: takes a tensor with one element, got shape ", shape());
  return contiguous_on_cpu(*this, "item");
}

double Tensor::item_as_double() const {
  const Tensor x = checked_item();
  return dispatch(dtype(), [&](auto zero) { return static_cast<double>(*static_cast<const decltype(zero)*>(x.view().data)); });
}

int64_t Tensor::item_as_int64() const {
  const Tensor x = checked_item();
  return dispatch(dtype(), [&](auto zero) { return static_cast<int64_t>(*static_cast<const decltype(zero)*>(x.view().data)); });
}

template <class T>
std::vector<T> Tensor::to_vector() const {
  const bool is_on_cpu = device().kind == Device::Kind::cpu;
  const Tensor x = is_on_cpu ? *this : contiguous_on_cpu(*this, "to_vector");
  std::vector<T> values;
  try {
    values.resize(static_cast<size_t>(numel()));
  } catch (const std::exception&) {                        // bad_alloc or length_error: a small tensor may be expanded to any size
    fail<MemoryError>("to_vector: out of memory for the ", numel(), " elements of a tensor of shape ", shape());
  }
  View target;
  target.data = values.data();
  target.dtype = dtype_of<T>;
  target.shape = shape();
  target.strides = contiguous_strides(shape());
  if (numel() > 0) kernels::cpu_table().copy(nullptr, x.view(), target);
  return values;
}
template std::vector<float> Tensor::to_vector() const;
template std::vector<double> Tensor::to_vector() const;
template std::vector<int32_t> Tensor::to_vector() const;
template std::vector<int64_t> Tensor::to_vector() const;
template std::vector<uint8_t> Tensor::to_vector() const;

Scratch::Scratch(int64_t bytes, Device device) : bytes_(bytes) {
  if (bytes > 0) storage_ = std::make_shared<Storage>(bytes, device);
}

}  // namespace fovea
