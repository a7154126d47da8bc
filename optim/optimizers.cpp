#include <fovea/optim/optimizers.h>

#include <cmath>

namespace fovea::optim {
namespace {

constexpr const char* not_negative = "a finite number that is not negative";
constexpr const char* below_one = "in [0, 1)";

bool is_not_negative(double value) { return std::isfinite(value) && value >= 0; }
bool is_below_one(double value) { return value >= 0 && value < 1; }

// Options that are true or false are kept as 1 or 0.
void visit_bool(const char* name, bool& option, const std::function<void(const char*, double&)>& visit) {
  double value = option;
  visit(name, value);
  option = value != 0;
}

}  // namespace

SGD::SGD(const std::vector<Group<SGDOptions>>& groups) : Optimizer("SGD") {
  for (const auto& group : groups) {
    options_.push_back(group.options);
    add_group(group.name, group.parameters);
  }
}

void SGD::update(DeviceStep& call) {
  std::vector<kernels::SgdStep> steps;
  for (const auto& [group, step] : call.steps) {
    const SGDOptions& o = options_[group];
    steps.push_back({o.lr, o.momentum, o.dampening, o.weight_decay, o.nesterov, step});
  }
  call.table.sgd(call.queue, steps, call.slots, call.control);
}

std::vector<const char*> SGD::buffer_names(size_t group) const {
  if (options_[group].momentum == 0) return {};
  return {"momentum_buffer"};
}

void SGD::visit_options(size_t group, const VisitOption& visit) {
  SGDOptions& o = options_[group];
  visit("lr", o.lr);
  visit("momentum", o.momentum);
  visit("dampening", o.dampening);
  visit("weight_decay", o.weight_decay);
  visit_bool("nesterov", o.nesterov, visit);
}

void SGD::check_options(size_t group) const {
  const SGDOptions& o = options_[group];
  require(is_not_negative(o.lr), "lr", o.lr, not_negative);
  require(is_not_negative(o.momentum), "momentum", o.momentum, not_negative);
  require(std::isfinite(o.dampening), "dampening", o.dampening, "finite");
  require(is_not_negative(o.weight_decay), "weight_decay", o.weight_decay, not_negative);
  require(!o.nesterov || o.momentum > 0, "momentum", o.momentum, "above zero for Nesterov momentum");
  require(!o.nesterov || o.dampening == 0, "dampening", o.dampening, "zero for Nesterov momentum");
}

Adam::Adam(const char* name, const std::vector<Group<AdamOptions>>& groups, bool is_decoupled) : Optimizer(name), is_decoupled_(is_decoupled) {
  for (const auto& group : groups) {
    options_.push_back(group.options);
    add_group(group.name, group.parameters);
  }
}

void Adam::update(DeviceStep& call) {
  std::vector<kernels::AdamStep> steps;
  for (const auto& [group, step] : call.steps) {
    const AdamOptions& o = options_[group];
    steps.push_back({o.lr, o.beta1, o.beta2, o.eps, o.weight_decay, is_decoupled_, step});
  }
  call.table.adam(call.queue, steps, call.slots, call.control);
}

std::vector<const char*> Adam::buffer_names(size_t) const { return {"exp_avg", "exp_avg_sq"}; }

void Adam::visit_options(size_t group, const VisitOption& visit) {
  AdamOptions& o = options_[group];
  visit("lr", o.lr);
  visit("beta1", o.beta1);
  visit("beta2", o.beta2);
  visit("eps", o.eps);
  visit("weight_decay", o.weight_decay);
}

void Adam::check_options(size_t group) const {
  const AdamOptions& o = options_[group];
  require(is_not_negative(o.lr), "lr", o.lr, not_negative);
  require(is_below_one(o.beta1), "beta1", o.beta1, below_one);
  require(is_below_one(o.beta2), "beta2", o.beta2, below_one);
  require(is_not_negative(o.eps), "eps", o.eps, not_negative);
  require(is_not_negative(o.weight_decay), "weight_decay", o.weight_decay, not_negative);
}

namespace {

std::vector<Group<AdamOptions>> as_adam_groups(const std::vector<Group<AdamWOptions>>& groups) {
  std::vector<Group<AdamOptions>> result;
  for (const auto& [name, parameters, o] : groups) result.push_back({name, parameters, {o.lr, o.beta1, o.beta2, o.eps, o.weight_decay}});
  return result;
}

}  // namespace

AdamW::AdamW(const std::vector<Group<AdamWOptions>>& groups) : Adam("AdamW", as_adam_groups(groups), true) {}

RMSprop::RMSprop(const std::vector<Group<RMSpropOptions>>& groups) : Optimizer("RMSprop") {
  for (const auto& group : groups) {
    options_.push_back(group.options);
    add_group(group.name, group.parameters);
  }
}

void RMSprop::update(DeviceStep& call) {
  std::vector<kernels::RmspropStep> steps;
  for (const auto& [group, step] : call.steps) {
    const RMSpropOptions& o = options_[group];
    steps.push_back({o.lr, o.alpha, o.eps, o.weight_decay, o.momentum, o.centered, step});
  }
  for (kernels::StepSlot& slot : call.slots)                         // the kernel's third state is grad_avg, whether there is a second or not
    if (steps[static_cast<size_t>(slot.step)].momentum == 0) std::swap(slot.state[1], slot.state[2]);
  call.table.rmsprop(call.queue, steps, call.slots, call.control);
}

std::vector<const char*> RMSprop::buffer_names(size_t group) const {
  std::vector<const char*> names = {"square_avg"};
  if (options_[group].momentum > 0) names.push_back("momentum_buffer");
  if (options_[group].centered) names.push_back("grad_avg");
  return names;
}

void RMSprop::visit_options(size_t group, const VisitOption& visit) {
  RMSpropOptions& o = options_[group];
  visit("lr", o.lr);
  visit("alpha", o.alpha);
  visit("eps", o.eps);
  visit("weight_decay", o.weight_decay);
  visit("momentum", o.momentum);
  visit_bool("centered", o.centered, visit);
}

void RMSprop::check_options(size_t group) const {
  const RMSpropOptions& o = options_[group];
  require(is_not_negative(o.lr), "lr", o.lr, not_negative);
  require(is_not_negative(o.alpha), "alpha", o.alpha, not_negative);
  require(is_not_negative(o.eps), "eps", o.eps, not_negative);
  require(is_not_negative(o.weight_decay), "weight_decay", o.weight_decay, not_negative);
  require(is_not_negative(o.momentum), "momentum", o.momentum, not_negative);
}

Adagrad::Adagrad(const std::vector<Group<AdagradOptions>>& groups) : Optimizer("Adagrad") {
  for (const auto& group : groups) {
    options_.push_back(group.options);
    add_group(group.name, group.parameters);
  }
}

void Adagrad::update(DeviceStep& call) {
  std::vector<kernels::AdagradStep> steps;
  for (const auto& [group, step] : call.steps) {
    const AdagradOptions& o = options_[group];
    steps.push_back({o.lr, o.lr_decay, o.weight_decay, o.eps, step});
  }
  call.table.adagrad(call.queue, steps, call.slots, call.control);
}

std::vector<const char*> Adagrad::buffer_names(size_t) const { return {"sum"}; }

void Adagrad::visit_options(size_t group, const VisitOption& visit) {
  AdagradOptions& o = options_[group];
  visit("lr", o.lr);
  visit("lr_decay", o.lr_decay);
  visit("weight_decay", o.weight_decay);
  visit("initial_accumulator_value", o.initial_accumulator_value);
  visit("eps", o.eps);
}

void Adagrad::check_options(size_t group) const {
  const AdagradOptions& o = options_[group];
  require(is_not_negative(o.lr), "lr", o.lr, not_negative);
  require(is_not_negative(o.lr_decay), "lr_decay", o.lr_decay, not_negative);
  require(is_not_negative(o.weight_decay), "weight_decay", o.weight_decay, not_negative);
  require(is_not_negative(o.initial_accumulator_value), "initial_accumulator_value", o.initial_accumulator_value, not_negative);
  require(is_not_negative(o.eps), "eps", o.eps, not_negative);
}

}  // namespace fovea::optim
