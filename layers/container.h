// Modules made of modules.
#pragma once

#include <fovea/layers/module.h>

namespace fovea::layers {

// x as it is; for a branch that is not there.
class Identity : public Module {
 public:
  Tensor forward(const Tensor& x) override { return x; }

 protected:
  std::optional<Cost> own_cost(const Shape&) const override { return Cost{}; }
};

// One after the other. Children are named "0", "1", ..., or as they are added.
class Sequential : public Module {
 public:
  Sequential() = default;
  template <class... M>
    requires(sizeof...(M) > 0 && (std::is_base_of_v<Module, M> && ...))
  explicit Sequential(M... modules) {
    (append(std::move(modules)), ...);
  }

  using Module::add;                         // add("conv", Conv2d(...))
  template <class M> M& append(M module) { return add(std::to_string(size()), std::move(module)); }
  int64_t size() const { return static_cast<int64_t>(children().size()); }
  Module& operator[](int64_t index);         // negative counts from the back
  Module& operator[](const std::string& name) { return layer(name); }
  using Module::operator();

  Tensor forward(const Tensor& x) override;
};

// Modules under numbers, for a forward that says itself how it uses them.
class ModuleList : public Module {
 public:
  ModuleList() = default;
  template <class... M>
    requires(sizeof...(M) > 0 && (std::is_base_of_v<Module, M> && ...))
  explicit ModuleList(M... modules) {
    (append(std::move(modules)), ...);
  }

  template <class M> M& append(M module) { return add(std::to_string(size()), std::move(module)); }
  int64_t size() const { return static_cast<int64_t>(children().size()); }
  Module& operator[](int64_t index);
};

// x + body(x), or shortcut(x) + body(x). Children "body" and "shortcut".
class Residual : public Module {
 public:
  template <class Body>
    requires(std::is_base_of_v<Module, Body> && !std::is_same_v<Body, Residual>)
  explicit Residual(Body body) : body_(&add("body", std::move(body))) {}
  template <class Body, class Shortcut>
  Residual(Body body, Shortcut shortcut) : body_(&add("body", std::move(body))), shortcut_(&add("shortcut", std::move(shortcut))) {}

  Tensor forward(const Tensor& x) override;

 protected:
  std::optional<ReceptiveField> own_field() const override;

 private:
  Module* body_;
  Module* shortcut_ = nullptr;
};

}  // namespace fovea::layers
