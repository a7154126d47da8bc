#include <fovea/autograd/autocast.h>

#include <unordered_map>

#include <fovea/autograd/arguments.h>
#include <fovea/autograd/shape.h>
#include <fovea/autograd/tape.h>
#include <fovea/kernels/cuda/graph.h>

namespace fovea {
namespace {

using enum AutocastPrecision;

// Half where tensor cores do the work and sums are kept in float32. Single where a function is steep or a sum long: what comes out would be wrong by more than
// its own rounding. Norms have no rule: they take x as it comes, and keep statistics and parameters in float32.
constexpr AutocastRule rules[] = {
    {"matmul", half},       {"linear", half},          {"conv1d", half},           {"conv2d", half},     {"conv_transpose1d", half}, {"conv_transpose2d", half},
    {"lstm", half},         {"gru", half},             {"rnn", half},              {"lstm_cell", half},  {"gru_cell", half},         {"rnn_cell", half},
    {"dot", half},          {"outer", half},

    {"softmax", single},    {"log_softmax", single},   {"cross_entropy", single},  {"nll_loss", single}, {"ctc_loss", single},  {"Loss", single},           // Loss: all of fovea::layers
    {"sum", single},        {"mean", single},          {"prod", single},           {"var", single},      {"stddev", single},         {"norm", single},
    {"logsumexp", single},  {"cumsum", single},
    {"exp", single},        {"expm1", single},         {"log", single},            {"log1p", single},    {"pow", single},            {"rsqrt", single},
    {"reciprocal", single},

    {"concat", widest},     {"stack", widest},         {"scatter_add", widest},    {"index_add", widest}, {"grid_sample", widest},
};

// A parameter's copy in a half type, good while the parameter has this memory (Module::to gives it other) in this version, for the stream that it is made on and the
// recording of a graph that it is made in.
struct Copy {
  Tensor parameter, copy;                    // the parameter is held, so that its address is not given to another
  std::shared_ptr<Storage> storage;          // held for the same reason
  uint32_t version = 0;
  kernels::Queue queue = nullptr;
  uint64_t recording = 0;
  bool is_good_for(const Tensor& x, DType dtype) const {
    return copy && copy.dtype() == dtype && version == x.version() && storage == x.storage() && queue == queue_of(x) && recording == cuda::recording();
  }
};

struct State {
  std::optional<DType> dtype;
  int depth = 0;                             // scopes that are alive
  std::unordered_map<const Tensor::Impl*, Copy> copies;
};

thread_local State state;

}  // namespace

std::span<const AutocastRule> autocast_rules() { return rules; }

AutocastPrecision autocast_precision(std::string_view operation) {
  for (const AutocastRule& rule : rules)
    if (rule.operation == operation) return rule.precision;
  return as_given;
}

Autocast::Autocast(std::optional<DType> dtype) : before_(state.dtype) {
  check<DTypeError>(!dtype || detail::is_half(*dtype), "Autocast: takes float16 or bfloat16, got ", dtype.value_or(DType::float32),
                    "; Autocast::disabled() turns it off");
  state.dtype = dtype;
  ++state.depth;
}

Autocast::~Autocast() {
  state.dtype = before_;
  if (--state.depth == 0) state.copies.clear();
}

std::optional<DType> Autocast::dtype() { return state.dtype; }

// Note [Each use of a copy has its own node]
// What the scope keeps is the converted memory alone, and every use records a conversion of its own. So a use under NoGrad takes nothing from a later one, one backward
// pass may free its graph while another still needs the copy, and the gradients of all uses are added up in the parameter's own dtype.
Tensor detail::autocast_copy(const Tensor& x, DType dtype) {
  if (!x.requires_grad() || !x.is_leaf()) return to(x, dtype);
  Copy& kept = state.copies[&x.impl()];
  if (!kept.is_good_for(x, dtype)) kept = {x, to(x.detach(), dtype), x.storage(), x.version(), queue_of(x), cuda::recording()};
  return record("to", kept.copy.detach(), {x}, saving(), [source = x.dtype()](const Saved&, const Tensor& g) { return grads(to(g, source)); });
}

}  // namespace fovea
