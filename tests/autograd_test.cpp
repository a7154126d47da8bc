// The tape and the engine, with operations of the test's own: what is recorded, what runs, and what is said when something is wrong.
#include <doctest/doctest.h>

#include <limits>
#include <string>
#include <thread>
#include <vector>

#include <fovea/autograd/backward.h>
#include <fovea/autograd/gradcheck.h>
#include <fovea/autograd/inplace.h>
#include <fovea/autograd/shape.h>
#include <fovea/tensor/allocator.h>
#include <fovea/tensor/creation.h>

#include "devices.h"
#include "messages.h"

using namespace fovea;
using namespace fovea::testing;

namespace {

Tensor times(const Tensor& a, const Tensor& b) {
  Tensor y = empty_like(a);
  table_of(a).binary(queue_of(a), kernels::Binary::multiply, {}, a.view(), b.view(), y.mutable_view());
  return record("times", y, {a, b}, saving(a, b), [](const Saved& s, const Tensor& g) {
    return grads(s.needs(0) ? times(g, s[1]) : Tensor(), s.needs(1) ? times(g, s[0]) : Tensor());
  });
}

Tensor plus_one(const Tensor& x) {
  Tensor y = empty_like(x);
  table_of(x).unary(queue_of(x), kernels::Unary::add_scalar, {1, 0}, x.view(), y.mutable_view());
  return record("plus_one", y, {x}, saving(), [](const Saved&, const Tensor& g) { return grads(g); });
}

// e^x, which saves its own output.
Tensor exponential(const Tensor& x) {
  Tensor y = empty_like(x);
  table_of(x).unary(queue_of(x), kernels::Unary::exp, {}, x.view(), y.mutable_view());
  return record("exponential", y, {x}, saving(y), [](const Saved& s, const Tensor& g) { return grads(times(g, s[0])); });
}

// An operation whose backward function returns whatever the test wants.
Tensor odd_backward(const Tensor& x, std::function<Grads(const Tensor&)> backward) {
  return record("odd", clone(x.detach()), {x}, saving(), [backward](const Saved&, const Tensor& g) { return backward(g); });
}

Tensor total(const Tensor& x) { return sum_to(x, {}); }

Tensor leaf(std::vector<double> values) {
  Tensor x = from_vector<double>(values);
  x.set_requires_grad();
  return x;
}

// Numbers that depend on where the default generator stands.
Tensor draw() {
  const double offset = static_cast<double>(default_generator().next(3).offset);
  return arange(offset + 0.5, offset + 3, 1, DType::float64);
}

std::vector<double> values_of(const Tensor& x) { return x.to_vector<double>(); }
using Values = std::vector<double>;

}  // namespace

TEST_CASE("backward accumulates into the leaves; a second pass adds to the first") {
  const Tensor a = leaf({2, 3}), b = leaf({5, 7});
  total(times(a, b)).backward();
  CHECK(values_of(a.grad()) == Values{5, 7});
  CHECK(values_of(b.grad()) == Values{2, 3});
  total(times(a, a)).backward();
  CHECK(values_of(a.grad()) == Values{9, 13});
  a.set_grad({});
  CHECK_FALSE(a.grad().defined());
}

TEST_CASE("a tensor used several times gets the sum of its gradients") {
  const Tensor x = leaf({3});
  const Tensor square = times(x, x);
  times(square, times(square, x)).backward();              // x^5
  CHECK(values_of(x.grad()) == Values{5 * 81});
}

TEST_CASE("gradients of two tensors do not share memory after backward") {
  const Tensor a = leaf({1, 2}), b = leaf({3, 4});
  const Tensor sum = concat({a, b});
  const Tensor both = record("both", clone(a.detach()), {a, b}, saving(), [](const Saved&, const Tensor& g) { return grads(g, g); });
  total(both).backward();
  CHECK(a.grad().storage() != b.grad().storage());
}

TEST_CASE("a graph a million nodes deep is built, run and freed") {
  const int64_t depth = less_on_a_device(1000000, 20000), before = allocator_stats().active_bytes;
  {
    const Tensor x = leaf({1});
    Tensor y = x;
    for (int64_t i = 0; i < depth; ++i) y = plus_one(y);
    CHECK(y.item() == static_cast<double>(depth + 1));
    y.backward();
    CHECK(x.grad().item() == 1);
  }
  {
    Tensor y = leaf({1});
    for (int64_t i = 0; i < depth; ++i) y = plus_one(y);    // freed without having run
  }
  {
    Tensor y = leaf({1});
    const Tensor one = leaf({1});
    for (int64_t i = 0; i < depth / 10; ++i) y = times(y, one);      // owned through what was saved as well
    y.backward({}, true);
    CHECK(one.grad().item() == static_cast<double>(depth / 10));
  }
  CHECK(allocator_stats().active_bytes == before);
}

TEST_CASE("without recording: NoGrad, detach, constants") {
  const Tensor x = leaf({2});
  {
    NoGrad no_grad;
    CHECK_FALSE(grad_mode());
    CHECK_FALSE(times(x, x).requires_grad());
    GradMode on(true);
    CHECK(times(x, x).requires_grad());
  }
  CHECK(grad_mode());
  CHECK_FALSE(x.detach().requires_grad());
  CHECK(times(x, x).requires_grad());
  CHECK_FALSE(times(x.detach(), x.detach()).requires_grad());
  CHECK(made_by(times(x, x)) == "times");
  CHECK(made_by(x) == "leaf");
  CHECK(made_by(x.detach()) == "");
  bool other_thread_records = false;
  {
    NoGrad no_grad;
    std::thread([&] { other_thread_records = grad_mode(); }).join();
  }
  CHECK(other_thread_records);
}

TEST_CASE("a value that nobody needs for backward is not kept") {
  const int64_t before = allocator_stats().active_bytes;
  const Tensor x = leaf({1});
  const int64_t one = allocator_stats().active_bytes - before;
  Tensor y = plus_one(x);
  for (int i = 0; i < 10; ++i) y = plus_one(y);
  CHECK(allocator_stats().active_bytes == before + 2 * one);      // x and the last y
}

TEST_CASE("grad: of leaves and of tensors in between, and grad() of leaves stays alone") {
  const Tensor x = leaf({3}), unused = leaf({1});
  const Tensor square = times(x, x);
  const Tensor y = times(square, x);
  const std::vector<Tensor> result = grad({y}, {x, square}, {}, {.retain_graph = true});
  CHECK(values_of(result[0]) == Values{27});
  CHECK(values_of(result[1]) == Values{3});
  CHECK_FALSE(x.grad().defined());
  CHECK(values_of(grad({y}, {y}, {}, {.retain_graph = true})[0]) == Values{1});
  CHECK(contains(error_of<AutogradError>([&] { grad({y}, {unused}, {}, {.retain_graph = true}); }), "allow_unused"));
  const std::vector<Tensor> partly = grad({y}, {unused, x}, {}, {.allow_unused = true});
  CHECK_FALSE(partly[0].defined());
  CHECK(values_of(partly[1]) == Values{27});
  CHECK(contains(error_of<AutogradError>([&] { grad({y}, {x.detach()}); }), "set_requires_grad"));
}

TEST_CASE("grad computes only what leads to its inputs") {
  const Tensor x = leaf({2}), w = leaf({3});
  int calls = 0;
  const Tensor branch = odd_backward(w, [&](const Tensor& g) {
    ++calls;
    return grads(g);
  });
  CHECK(values_of(grad({times(x, branch)}, {x})[0]) == Values{3});
  CHECK(calls == 0);
}

TEST_CASE("several outputs and their gradients") {
  const Tensor x = leaf({1, 2});
  const Tensor a = times(x, x), b = plus_one(x);
  backward({a, b}, {from_vector<double>({1, 10}), from_vector<double>({100, 1000})});
  CHECK(values_of(x.grad()) == Values{102, 1040});
  CHECK_THROWS_AS(backward({plus_one(x)}, {scalar(1, DType::float64), scalar(1, DType::float64)}), ValueError);
  CHECK(contains(error_of<ShapeError>([&] { plus_one(x).backward(scalar(1, DType::float64)); }), "[2]"));
}

TEST_CASE("an output that cannot be run backwards says why") {
  const Tensor x = leaf({1, 2});
  CHECK(contains(error_of<AutogradError>([&] { plus_one(x).backward(); }), "one element"));
  CHECK(contains(error_of<AutogradError>([&] { total(x.detach()).backward(); }), "does not depend on any tensor that requires a gradient"));
}

TEST_CASE("backward twice: an error that names the operation, or retain_graph") {
  const Tensor x = leaf({3});
  const Tensor y = times(x, x);
  y.backward({}, true);
  y.backward();
  CHECK(values_of(x.grad()) == Values{12});
  const std::string text = error_of<AutogradError>([&] { y.backward(); });
  CHECK(contains(text, "'times'"));
  CHECK(contains(text, "retain_graph"));
  CHECK(values_of(x.grad()) == Values{12});
}

TEST_CASE("second and third derivatives through create_graph") {
  const Tensor x = leaf({2});
  const Tensor y = times(times(x, x), times(x, x));        // x^4
  const Tensor first = grad({y}, {x}, {}, {.create_graph = true})[0];
  const Tensor second = grad({first}, {x}, {}, {.create_graph = true})[0];
  const Tensor third = grad({second}, {x})[0];
  CHECK(values_of(first) == Values{32});
  CHECK(values_of(second) == Values{48});
  CHECK(values_of(third) == Values{48});
  const Tensor z = leaf({0.5});
  const Tensor d = grad({exponential(z)}, {z}, {}, {.create_graph = true})[0];      // saves its output
  CHECK(values_of(grad({d}, {z})[0])[0] == doctest::Approx(1.6487212707));
}

TEST_CASE("a tensor changed in place after it was saved is noticed, and the operation is named") {
  const Tensor x = leaf({1, 2});
  Tensor y = plus_one(x);
  const Tensor z = total(times(y, y));
  copy_(y.detach(), full({2}, 9, DType::float64));
  const std::string text = error_of<AutogradError>([&] { z.backward(); });
  CHECK(contains(text, "'times'"));
  CHECK(contains(text, "in place"));
  CHECK(contains(text, "[2]"));
  Tensor e = exponential(x);
  copy_(e.detach(), full({2}, 9, DType::float64));         // an operation's own output
  CHECK(contains(error_of<AutogradError>([&] { total(e).backward(); }), "'exponential'"));
}

TEST_CASE("change_in_place: parameters under NoGrad, values in the graph, and where it is refused") {
  const Tensor x = leaf({1, 2});
  auto add_one_ = [](const Tensor& t) {
    change_in_place("add_one_", t, {}, [&] {
      table_of(t).unary(queue_of(t), kernels::Unary::add_scalar, {1, 0}, t.view(), t.mutable_view());
    }, [&] { return plus_one(t); });
  };
  {
    NoGrad no_grad;
    add_one_(x);
  }
  CHECK(values_of(x) == Values{2, 3});
  const std::string text = error_of<AutogradError>([&] { add_one_(x); });
  CHECK(contains(text, "add_one_"));
  CHECK(contains(text, "NoGrad"));
  CHECK(values_of(x) == Values{2, 3});
  const Tensor y = plus_one(x);
  add_one_(y);
  CHECK(made_by(y) == "plus_one");
  total(times(y, y)).backward();
  CHECK(values_of(x.grad()) == Values{8, 10});
  const Tensor base = plus_one(x), view = narrow(base, 0, 0, 1);
  CHECK(contains(error_of<AutogradError>([&] { add_one_(view); }), "shares memory"));
}

TEST_CASE("hooks see and may replace a gradient, in the middle and at a leaf") {
  const Tensor x = leaf({1, 2});
  const Tensor y = plus_one(x);
  Values seen;
  register_hook(y, [&](const Tensor& g) {
    seen = values_of(g);
    return times(g, full({2}, 10, DType::float64));
  });
  int leaf_calls = 0;
  register_hook(x, [&](const Tensor&) {
    ++leaf_calls;
    return Tensor();
  });
  total(times(y, y)).backward();
  CHECK(seen == Values{4, 6});
  CHECK(values_of(x.grad()) == Values{40, 60});
  CHECK(leaf_calls == 1);
  CHECK(contains(error_of<AutogradError>([&] { register_hook(x.detach(), [](const Tensor&) { return Tensor(); }); }), "register_hook"));

  const Tensor z = plus_one(leaf({1, 2}));
  register_hook(z, [](const Tensor&) { return zeros({3}, DType::float64); });
  CHECK(contains(error_of<ShapeError>([&] { total(z).backward(); }), "plus_one"));
  const Tensor w = leaf({1, 2});
  register_hook(w, [](const Tensor&) { return zeros({3}, DType::float64); });
  CHECK(contains(error_of<ShapeError>([&] { total(plus_one(w)).backward(); }), "a hook on a leaf turned a gradient of shape [2] into [3]"));
  CHECK_FALSE(w.grad().defined());

  const Tensor v = leaf({1, 2});
  register_hook(v, [](const Tensor& g) { return times(g, g); });
  CHECK(values_of(grad({total(times(v, v))}, {v})[0]) == Values{4, 16});
}

TEST_CASE("an accumulate hook runs after grad() was updated, and may drop it") {
  const Tensor x = leaf({2});
  Values seen;
  register_accumulate_hook(x, [&](const Tensor& t) {
    seen.push_back(t.grad().item());
    t.set_grad({});
  });
  times(x, x).backward();
  times(x, x).backward();
  CHECK(seen == Values{4, 4});
  CHECK_FALSE(x.grad().defined());
  CHECK_THROWS_AS(register_accumulate_hook(times(x, x), [](const Tensor&) {}), AutogradError);
}

TEST_CASE("anomaly mode names the operation whose gradient first became NaN") {
  const Tensor x = leaf({1});
  auto run = [&] {
    const Tensor bad = odd_backward(plus_one(x), [](const Tensor& g) { return grads(full_like(g, std::numeric_limits<double>::quiet_NaN())); });
    plus_one(bad).backward();
  };
  CHECK_NOTHROW(run());
  x.set_grad({});
  AnomalyMode anomaly;
  const std::string text = error_of<AutogradError>(run);
  CHECK(contains(text, "'odd'"));
  CHECK(contains(text, "NaN"));
  CHECK_FALSE(x.grad().defined());
}

TEST_CASE("a backward function that returns nonsense is reported with the operation's name") {
  const Tensor x = leaf({1, 2});
  CHECK(contains(error_of<AutogradError>([&] { total(odd_backward(x, [](const Tensor&) { return grads(zeros({3}, DType::float64)); })).backward(); }), "'odd'"));
  CHECK(contains(error_of<AutogradError>([&] { total(odd_backward(x, [](const Tensor&) { return grads(zeros({2})); })).backward(); }), "float32"));
  CHECK(contains(error_of<AutogradError>([&] { total(odd_backward(x, [](const Tensor&) { return Grads(); })).backward(); }), "0 gradients for 1 inputs"));
  CHECK_NOTHROW(total(odd_backward(x, [](const Tensor&) { return grads(Tensor()); })).backward());        // undefined: zero
  CHECK_FALSE(x.grad().defined());
}

TEST_CASE("checkpoint: the same gradients and the same random numbers, at less memory") {
  const Tensor x = leaf({0.1, 0.2, 0.3}), w = leaf({0.2, 0.2, 0.2});
  auto noisy = [&w](const std::vector<Tensor>& in) {
    return exponential(times(times(in[0], w), draw()));
  };
  manual_seed(4);
  const Tensor plain = noisy({x});
  total(plain).backward();
  const Values dx = values_of(x.grad()), dw = values_of(w.grad());
  x.set_grad({});
  w.set_grad({});
  manual_seed(4);
  const Tensor saved = checkpoint(noisy, {x});
  CHECK(values_of(saved) == values_of(plain));
  const Values drawn_after = values_of(draw());
  total(saved).backward();
  CHECK(values_of(x.grad()) == dx);
  CHECK(values_of(w.grad()) == dw);
  manual_seed(4);
  noisy({x});
  CHECK(values_of(draw()) == drawn_after);     // the second run left the generator where it was
  CHECK_FALSE(checkpoint(noisy, {x.detach()}).requires_grad());
  const Tensor again = checkpoint(noisy, {x});
  CHECK(contains(error_of<AutogradError>([&] { grad({total(again)}, {x}, {}, {.create_graph = true}); }), "checkpoint"));
}

TEST_CASE("checkpoint: grad() leaves the grad() of leaves alone, also of those that only the function knows, and of checkpoints inside") {
  const Tensor x = leaf({0.1, 0.2, 0.3}), y = leaf({1, 2, 3}), w = leaf({0.2, 0.3, 0.4});
  const auto product = [&w](const std::vector<Tensor>& in) { return times(times(in[0], in[1]), w); };
  const auto nested = [&](const std::vector<Tensor>& in) { return checkpoint(product, in); };
  const Values expected = values_of(grad({total(product({x, y}))}, {x})[0]);
  for (const auto& fn : {std::function<Tensor(const std::vector<Tensor>&)>(product), std::function<Tensor(const std::vector<Tensor>&)>(nested)}) {
    CHECK(values_of(grad({total(checkpoint(fn, {x, y}))}, {x})[0]) == expected);
    for (const Tensor& t : {x, y, w}) CHECK_FALSE(t.grad().defined());
  }
  CHECK_THROWS_AS(grad({total(checkpoint(product, {x, y}))}, {w}), AutogradError);
  const auto first_only = [](const std::vector<Tensor>& in) { return times(in[0], in[0]); };
  CHECK_FALSE(grad({total(checkpoint(first_only, {x, y}))}, {y}, {}, {.allow_unused = true})[0].defined());
}

TEST_CASE("leaves: what can require a gradient") {
  CHECK_THROWS_AS(arange(3).set_requires_grad(), DTypeError);
  const Tensor x = leaf({1});
  Tensor y = times(x, x);
  CHECK(contains(error_of<AutogradError>([&] { y.set_requires_grad(false); }), "'times'"));
  CHECK_FALSE(y.is_leaf());
  Tensor z = leaf({1});
  z.set_requires_grad(false);
  CHECK_FALSE(times(z, z).requires_grad());
  CHECK_THROWS_AS(x.set_grad(zeros({2}, DType::float64)), ShapeError);
}

TEST_CASE("gradcheck accepts right gradients and catches wrong ones") {
  const Tensor x = leaf({0.3, -1.2, 2.0});
  auto right = [](const std::vector<Tensor>& in) { return exponential(times(in[0], in[0])); };
  CHECK(gradcheck(right, {x}) == "");
  CHECK(gradgradcheck(right, {x}) == "");
  auto wrong = [](const std::vector<Tensor>& in) {
    return odd_backward(times(in[0], in[0]), [](const Tensor& g) { return grads(times(g, full({3}, 1.01, DType::float64))); });
  };
  CHECK(contains(gradcheck(wrong, {x}), "backward gives"));
  // The first derivative is right, the second is missing: the backward function leaves the graph.
  auto cut = [](const std::vector<Tensor>& in) {
    const Tensor& t = in[0];
    return record("cut", times(t.detach(), t.detach()), {t}, saving(t), [](const Saved& s, const Tensor& g) {
      return grads(times(times(g, s[0].detach()), full({3}, 2, DType::float64)));
    });
  };
  CHECK(gradcheck(cut, {x}) == "");
  CHECK(contains(gradgradcheck(cut, {x}), "backward gives"));
  CHECK_THROWS_AS(gradcheck(right, {x.detach()}), AutogradError);
  Tensor single = zeros({3});
  single.set_requires_grad();
  CHECK_THROWS_AS(gradcheck(right, {single}), DTypeError);
}

TEST_CASE("saved tensors are freed by the backward pass that used them") {
  const Tensor x = leaf(Values(1000, 1.0));
  const int64_t before = allocator_stats().active_bytes;
  const Tensor y = total(exponential(times(x, x)));
  CHECK(allocator_stats().active_bytes >= before + 8000);
  y.backward();
  x.set_grad({});
  CHECK(allocator_stats().active_bytes < before + 8000);
}

// Each thread runs forward and backward over a leaf that all share, and that nobody has used before.
TEST_CASE("threads that share a leaf lose no gradient") {
  constexpr int threads = 4, rounds = 50;
  for (int round = 0; round < rounds; ++round) {
    const Tensor w = leaf({1, 2, 3});
    std::vector<std::thread> workers;
    for (int i = 0; i < threads; ++i) workers.emplace_back([&w] { total(times(w, w)).backward(); });
    for (std::thread& worker : workers) worker.join();
    REQUIRE(w.grad().to_vector<double>() == std::vector<double>{2.0 * threads, 4.0 * threads, 6.0 * threads});
  }
}
