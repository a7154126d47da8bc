// The tape: how an operation records itself, and what a backward pass finds.
//
// An operation checks, allocates, computes and records:
//
//     Tensor relu(const Tensor& x) {
//       const cuda::Range range("relu");
//       Tensor y = empty_like(x);
//       table_of(x).unary(queue_of(x), Unary::relu, {}, x.view(), y.mutable_view());
//       return record("relu", y, {x}, saving(y), [](const Saved& s, const Tensor& g) { return grads(relu_backward(g, s[0])); });
//     }
//
// The range is for profilers (kernels/cuda/nvtx.h); views, which compute nothing, have none. The engine makes that of the backward.
//
// The backward function gets the gradient of the output and returns one gradient for each input, in the order of the inputs; undefined means zero.
// It is written with differentiable functions, so that second derivatives come free: under create_graph they are recorded in turn.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <string>
#include <type_traits>
#include <unordered_set>
#include <utility>
#include <vector>

#include <fovea/kernels/cuda/nvtx.h>
#include <fovea/tensor/tensor.h>

namespace fovea {

using Grads = std::vector<Tensor>;

// grads(a, b): the gradients of the inputs, in order.
template <class... T>
Grads grads(T&&... values) {
  Grads list;
  list.reserve(sizeof...(values));
  (list.push_back(std::forward<T>(values)), ...);
  return list;
}

// --- grad mode: whether operations record themselves; one switch a thread ---
bool grad_mode();

class GradMode {                             // switches for the life of the object
 public:
  explicit GradMode(bool enabled);
  ~GradMode();
  GradMode(const GradMode&) = delete;
  GradMode& operator=(const GradMode&) = delete;

 private:
  bool was_enabled_;
};

class NoGrad : GradMode {
 public:
  NoGrad() : GradMode(false) {}
};

// While one is alive, a backward pass checks each operation's gradients, and the first that turns out NaN raises an AutogradError with its name.
class AnomalyMode {
 public:
  AnomalyMode();
  ~AnomalyMode();
  AnomalyMode(const AnomalyMode&) = delete;
  AnomalyMode& operator=(const AnomalyMode&) = delete;
  static bool is_on();

 private:
  bool was_on_;
};

struct Node;

// The node that made a tensor, and which of its outputs the tensor is. No node: the tensor needs no gradient.
struct Edge {
  std::shared_ptr<Node> node;
  int output = 0;
};

// A tensor kept for the backward pass. An output of the node itself is kept without its place in the graph (the node would own itself) and gets it back when read.
struct SavedTensor {
  Tensor tensor;
  uint32_t version = 0;
  int output = -1;                           // which output of the node this is; -1: not an output
};

// What a backward function may read: the saved tensors, and which inputs need a gradient at all.
class Saved {
 public:
  Saved(const std::shared_ptr<Node>& node, const std::unordered_set<const Node*>* wanted) : node_(node), wanted_(wanted) {}
  Tensor operator[](int i) const;            // AutogradError naming the operation if the tensor was changed in place since
  bool needs(int input) const;               // false: return an undefined gradient for this input and save the work
  bool is_for_leaves() const { return wanted_ == nullptr; }       // backward(), which accumulates into grad() of leaves; false in grad(), which must not

 private:
  const std::shared_ptr<Node>& node_;
  const std::unordered_set<const Node*>* wanted_;   // the nodes that lead to what grad() was asked for; null: all
};

using Backward = std::function<Grads(const Saved&, const Grads& output_grads)>;
using Hook = std::function<Tensor(const Tensor& gradient)>;           // an undefined result leaves the gradient as it is

// What an output of a node looked like, to make a zero gradient of it.
struct OutputInfo {
  Shape shape;
  DType dtype;
  Device device;
};

// Note [Sequence numbers are a topological order]
// A node is numbered when it is recorded, after all nodes that made its inputs. So popping the largest number first never meets a node some of
// whose consumers have not run, and the engine needs neither recursion nor counts of consumers.
struct Node {
  const char* name = "";
  uint64_t sequence = 0;
  std::vector<Edge> inputs;
  std::vector<SavedTensor> saved;
  std::vector<OutputInfo> outputs;
  Backward backward;
  std::vector<std::pair<int, Hook>> hooks;   // on the gradient of an output
  std::weak_ptr<Tensor::Impl> leaf;          // of a node with is_leaf: the tensor whose grad() it accumulates into
  bool is_leaf = false;
  bool was_freed = false;                    // a backward pass without retain_graph has been here

  ~Node();
};

// What hangs in a tensor's slot.
struct AutogradMeta : AutogradSlot {
  Edge edge;                                 // of the operation that made the tensor; for a leaf that requires a gradient, its accumulating node
  bool is_leaf = true;
  bool requires_grad = false;
  Tensor grad;
  std::mutex accumulating;                   // held while a backward pass adds to grad: passes of several threads may meet in a leaf
  std::vector<Hook> hooks;                   // of a leaf, on each gradient that arrives
  std::vector<std::function<void(const Tensor&)>> accumulate_hooks;   // of a leaf, after grad() was updated
};

AutogradMeta* autograd_meta(const Tensor& x);          // null if the tensor has none
AutogradMeta& make_autograd_meta(const Tensor& x);     // makes it if need be
Edge gradient_edge(const Tensor& x);                   // where gradients of x go
// Note [A leaf has its node from the start]
// The accumulating node of a leaf is made when it comes to require a gradient, not when it is first used: forward passes of several threads may share a
// leaf, and must not each make a node of their own. Made anew when the leaf changes its dtype or device.
void make_leaf_node(const Tensor& x);

// References to tensors, for calls like record(name, y, {a, b}, ...). They live as long as the call.
class TensorRefs {
 public:
  TensorRefs() = default;
  struct Ref {
    const Tensor* tensor;
    Ref(const Tensor& t) : tensor(&t) {}
  };
  TensorRefs(std::initializer_list<Ref> list) : size_(list.size()) { refs_ = list.begin(); }
  TensorRefs(const std::vector<Tensor>& list) : tensors_(list.data()), size_(list.size()) {}
  size_t size() const { return size_; }
  const Tensor& operator[](size_t i) const { return refs_ ? *refs_[i].tensor : tensors_[i]; }

 private:
  const Ref* refs_ = nullptr;
  const Tensor* tensors_ = nullptr;
  size_t size_ = 0;
};

// saving(a, b): what the backward function will read as s[0], s[1]. Undefined tensors may be saved and come back undefined.
template <size_t N>
struct Saving {
  const Tensor* tensors[N ? N : 1];
  static constexpr size_t size = N;
};
template <class... T>
Saving<sizeof...(T)> saving(const T&... tensors) { return {{&tensors...}}; }
inline Saving<0> saving() { return {}; }

// Does grad mode and any of the inputs ask for recording?
bool should_record(const TensorRefs& inputs);

// Puts the outputs on the tape. Not templates: called once an operation is known to be recorded.
void attach(const char* name, std::vector<Tensor*> outputs, const TensorRefs& inputs, const Tensor* const* saved, size_t num_saved, Backward backward);

// One output; `backward` is callable as Grads(const Saved&, const Tensor& output_gradient).
template <size_t N, class F>
Tensor record(const char* name, Tensor y, const TensorRefs& inputs, const Saving<N>& saved, F backward) {
  if (should_record(inputs))
    attach(name, {&y}, inputs, saved.tensors, N, [f = std::move(backward)](const Saved& s, const Grads& g) -> Grads { return f(s, g[0]); });
  return y;
}

// Several outputs; `backward` is callable as Grads(const Saved&, const Grads& output_gradients), with undefined where no gradient arrived.
// Outputs of a dtype that has no gradient (indices) must not be among them.
template <size_t N, class F>
void record_outputs(const char* name, std::vector<Tensor*> outputs, const TensorRefs& inputs, const Saving<N>& saved, F backward) {
  if (should_record(inputs)) attach(name, std::move(outputs), inputs, saved.tensors, N, std::move(backward));
}

// A tensor that a hook may watch: `hook` gets the gradient of x in a backward pass and may return another in its place.
void register_hook(const Tensor& x, Hook hook);
// Called with the leaf after a backward pass has accumulated into its grad().
void register_accumulate_hook(const Tensor& leaf, std::function<void(const Tensor&)> hook);

// An in-place change of x by `op`, from x and `others`. Where nothing has to be recorded, write() is called to change the memory. Otherwise x takes the value and the
// place in the graph of value(), the same computation out of place; AutogradError if x is a leaf that requires a gradient, or shares its memory with other
// tensors (they would not learn of the change). Either way the version is bumped, so that a backward pass that saved the old value notices.
void change_in_place(const char* op, const Tensor& x, const TensorRefs& others, const std::function<void()>& write, const std::function<Tensor()>& value);

// The name of the operation that made x, "leaf" or "" (for messages).
std::string made_by(const Tensor& x);

}  // namespace fovea
