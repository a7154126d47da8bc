// SGD, Adam, AdamW, RMSprop and Adagrad: torch.optim's arithmetic and defaults. The formulas stand at the kernels (kernels/cpu/optimizer.cpp).
#pragma once

#include <fovea/optim/optimizer.h>

namespace fovea::optim {

struct SGDOptions {
  double lr = 1e-3, momentum = 0, dampening = 0, weight_decay = 0;
  bool nesterov = false;
};

class SGD final : public Optimizer {
 public:
  explicit SGD(const NamedTensors& parameters, SGDOptions options = {}) : SGD({{"default", parameters, options}}) {}
  explicit SGD(const std::vector<Group<SGDOptions>>& groups);

 private:
  void update(DeviceStep& step) override;
  std::vector<const char*> buffer_names(size_t group) const override;
  void visit_options(size_t group, const VisitOption& visit) override;
  void check_options(size_t group) const override;

  std::vector<SGDOptions> options_;
};

struct AdamOptions {
  double lr = 1e-3, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0;
};

// Kingma & Ba 2015. weight_decay is added to the gradient.
class Adam : public Optimizer {
 public:
  explicit Adam(const NamedTensors& parameters, AdamOptions options = {}) : Adam({{"default", parameters, options}}) {}
  explicit Adam(const std::vector<Group<AdamOptions>>& groups) : Adam("Adam", groups, false) {}

 protected:
  Adam(const char* name, const std::vector<Group<AdamOptions>>& groups, bool is_decoupled);

 private:
  void update(DeviceStep& step) override;
  std::vector<const char*> buffer_names(size_t group) const override;
  void visit_options(size_t group, const VisitOption& visit) override;
  void check_options(size_t group) const override;

  std::vector<AdamOptions> options_;
  bool is_decoupled_;
};

struct AdamWOptions {
  double lr = 1e-3, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 1e-2;
};

// Loshchilov & Hutter 2019: the decay goes to the parameter itself, not through the moments.
class AdamW final : public Adam {
 public:
  explicit AdamW(const NamedTensors& parameters, AdamWOptions options = {}) : AdamW({{"default", parameters, options}}) {}
  explicit AdamW(const std::vector<Group<AdamWOptions>>& groups);
};

struct RMSpropOptions {
  double lr = 1e-2, alpha = 0.99, eps = 1e-8, weight_decay = 0, momentum = 0;
  bool centered = false;
};

class RMSprop final : public Optimizer {
 public:
  explicit RMSprop(const NamedTensors& parameters, RMSpropOptions options = {}) : RMSprop({{"default", parameters, options}}) {}
  explicit RMSprop(const std::vector<Group<RMSpropOptions>>& groups);

 private:
  void update(DeviceStep& step) override;
  std::vector<const char*> buffer_names(size_t group) const override;
  void visit_options(size_t group, const VisitOption& visit) override;
  void check_options(size_t group) const override;

  std::vector<RMSpropOptions> options_;
};

struct AdagradOptions {
  double lr = 1e-2, lr_decay = 0, weight_decay = 0, initial_accumulator_value = 0, eps = 1e-10;
};

// Duchi, Hazan & Singer 2011.
class Adagrad final : public Optimizer {
 public:
  explicit Adagrad(const NamedTensors& parameters, AdagradOptions options = {}) : Adagrad({{"default", parameters, options}}) {}
  explicit Adagrad(const std::vector<Group<AdagradOptions>>& groups);

 private:
  void update(DeviceStep& step) override;
  std::vector<const char*> buffer_names(size_t group) const override;
  double initial_value(size_t group) const override { return options_[group].initial_accumulator_value; }
  void visit_options(size_t group, const VisitOption& visit) override;
  void check_options(size_t group) const override;

  std::vector<AdagradOptions> options_;
};

}  // namespace fovea::optim
