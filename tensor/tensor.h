// Tensor: a cheap handle on shared storage, with a shape, strides, an offset, a dtype, a device and one slot for autograd.
//
// Copying a Tensor copies the handle. Views (autograd/shape.h) share storage, and with it the version counter that tells a backward pass whether a saved
// tensor was changed in place. What a tensor can be asked is a member; what is computed from it is a free function: sum(x), relu(x), reshape(x, {2, -1}).
#pragma once

#include <atomic>
#include <iosfwd>
#include <memory>
#include <string>
#include <vector>

#include <fovea/kernels/cuda/runtime.h>
#include <fovea/kernels/table.h>
#include <fovea/kernels/view.h>

namespace fovea {

class Index;

// Memory of one device. Freed, or given back to its owner, with the last tensor that uses it.
class Storage {
 public:
  Storage(int64_t bytes, Device device);
  Storage(void* data, int64_t bytes, Device device, std::shared_ptr<const void> owner);   // memory that somebody else owns and `owner` keeps alive
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  void* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  Device device() const { return device_; }
  uint32_t version() const { return version_.load(std::memory_order_relaxed); }
  void bump_version() { version_.fetch_add(1, std::memory_order_relaxed); }

 private:
  void* data_ = nullptr;
  int64_t bytes_ = 0;
  Device device_;
  std::shared_ptr<const void> owner_;
  std::atomic<uint32_t> version_{0};
};

// What autograd hangs on a tensor (autograd/tape.h). Opaque here.
struct AutogradSlot {
  virtual ~AutogradSlot() = default;
};

class Tensor {
 public:
  Tensor() = default;                          // no tensor: defined() is false
  Tensor(std::shared_ptr<Storage> storage, Shape shape, Strides strides, int64_t offset, DType dtype);
  Tensor(const Tensor&) = default;
  Tensor(Tensor&&) noexcept = default;
  // Makes this handle stand for another tensor. Of a variable only: x[0] = y would change a handle that is gone at once, not x; copy_(x[0], y) writes.
  Tensor& operator=(const Tensor&) & = default;
  Tensor& operator=(Tensor&&) & noexcept = default;

  bool defined() const { return impl_ != nullptr; }
  explicit operator bool() const { return defined(); }           // says nothing of the elements: if (x.item() > 0), if (all(mask).item<bool>())

  const Shape& shape() const { return impl().shape; }
  const Strides& strides() const { return impl().strides; }      // in elements
  int rank() const { return shape().rank(); }
  int64_t size(int64_t axis) const;                              // negative axes count from the back
  int64_t numel() const { return impl().numel; }
  int64_t nbytes() const { return numel() * size_of(dtype()); }
  DType dtype() const { return impl().dtype; }
  Device device() const { return impl().storage->device(); }
  bool is_meta() const { return device().kind == Device::Kind::meta; }
  bool is_contiguous() const;
  int64_t offset() const { return impl().offset; }               // in elements, from the start of the storage
  const std::shared_ptr<Storage>& storage() const { return impl().storage; }
  uint32_t version() const { return impl().storage->version(); }
  bool is_same(const Tensor& other) const { return impl_ == other.impl_; }   // the very same handle, not merely equal values

  // Memory as kernels see it. mutable_view() is for filling a tensor that was just made; in-place changes of a tensor somebody else
  // may hold go through the functions of autograd/inplace.h (add_, copy_, ...), which also bump the version.
  ConstView view() const;
  View mutable_view() const;

  // Elements of a contiguous CPU tensor. DTypeError, DeviceError or ShapeError when T, the device or the layout is another.
  template <class T> const T* data() const { return static_cast<const T*>(checked_data(dtype_of<T>)); }
  template <class T> T* mutable_data() {
    void* p = checked_data(dtype_of<T>);
    impl().storage->bump_version();
    return static_cast<T*>(p);
  }
  // The value of a tensor with one element, converted to T. This and to_vector() wait for the device that computes it.
  template <class T = double> T item() const {
    if constexpr (std::is_same_v<T, int64_t>) return item_as_int64();
    else return static_cast<T>(item_as_double());
  }
  // All elements in row-major order, converted to T (float, double, int32_t, int64_t or uint8_t).
  template <class T> std::vector<T> to_vector() const;

  Tensor detach() const;                                         // the same memory, cut off from the graph

  // --- autograd's members; defined in autograd/ ---
  bool requires_grad() const;
  Tensor& set_requires_grad(bool requires_grad = true) &;       // of a leaf: a floating-point tensor that no recorded operation made
  Tensor set_requires_grad(bool requires_grad = true) && { return set_requires_grad(requires_grad); }
  bool is_leaf() const;
  Tensor grad() const;                                           // undefined before the first backward()
  void set_grad(const Tensor& gradient) const;                   // undefined clears it
  // Accumulates d(this)/d(leaf) into grad() of every leaf. `gradient` defaults to one, and may only be left out for a tensor of one element.
  // If it throws, what already ran has accumulated and was freed: compute the output anew before the next try.
  void backward(const Tensor& gradient = {}, bool retain_graph = false, bool create_graph = false) const;
  // x[{0, slice(1, 5), ellipsis, newaxis}], x[3], x[mask], x[indices] (autograd/indexing.h)
  Tensor operator[](std::initializer_list<Index> indices) const;
  Tensor operator[](const Index& index) const;

  struct Impl {
    std::shared_ptr<Storage> storage;
    Shape shape;
    Strides strides;
    int64_t offset = 0;
    int64_t numel = 0;
    DType dtype = DType::float32;
    std::shared_ptr<AutogradSlot> autograd;
  };
  Impl& impl() const {
    if (!impl_) [[unlikely]] fail_undefined();
    return *impl_;
  }
  const std::shared_ptr<Impl>& impl_pointer() const { return impl_; }
  static Tensor from_impl(std::shared_ptr<Impl> impl);          // the handle again, from what impl_pointer() gave

 private:
  [[noreturn]] static void fail_undefined();
  void* checked_data(DType dtype) const;
  double item_as_double() const;
  int64_t item_as_int64() const;
  Tensor checked_item() const;

  std::shared_ptr<Impl> impl_;
};

// Where kernels for a tensor are put: the thread's current stream of its CUDA device (kernels/cuda/runtime.h); nothing on the CPU.
inline kernels::Queue queue_of(const Tensor& x) {
  const Device device = x.device();
  return device.kind == Device::Kind::cuda ? cuda::queue_on(device.index) : nullptr;
}
inline const kernels::KernelTable& table_of(const Tensor& x) { return kernels::for_device(x.device()); }

// Scratch memory for a kernel; alive as long as this is.
class Scratch {
 public:
  Scratch(int64_t bytes, Device device);
  operator kernels::Workspace() const { return {storage_ ? storage_->data() : nullptr, bytes_}; }

 private:
  int64_t bytes_;
  std::shared_ptr<Storage> storage_;
};

}  // namespace fovea
