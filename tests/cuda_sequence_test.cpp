// CUDA's kernels of CTC against the CPU's, over lengths in any order, edges, and twice.
#include <doctest/doctest.h>

#include <random>

#include "cuda_sequences.h"

using namespace fovea;
using namespace fovea::testing;

namespace {

// --- CTC ---

struct CtcBatch {
  CtcGeometry g;
  Tensor logits, targets, input_lengths, target_lengths;
};

struct CtcResult {
  Tensor losses, gradient;
};

CtcBatch random_ctc(CtcGeometry g, DType dtype, unsigned seed, double scale = 1) {
  std::mt19937 generator(seed);
  CtcBatch b{g, numbers({g.time, g.batch, g.classes}, dtype, seed, scale), empty({g.batch, g.max_target}, DType::int64), empty({g.batch}, DType::int64), empty({g.batch}, DType::int64)};
  const auto draw = [&](int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(generator); };
  for (int64_t i = 0; i < b.targets.numel(); ++i) {
    const int64_t label = draw(0, g.classes - 2);
    b.targets.mutable_data<int64_t>()[i] = label < g.blank ? label : label + 1;
  }
  for (int64_t i = 0; i < g.batch; ++i) {
    b.input_lengths.mutable_data<int64_t>()[i] = i == 0 ? g.time : draw(g.time / 2, g.time);
    b.target_lengths.mutable_data<int64_t>()[i] = i == 0 ? g.max_target : draw(0, g.max_target);
  }
  return b;
}

CtcResult on_cpu(const CtcBatch& b, bool has_gradient = true) {
  const DType dtype = b.logits.dtype();
  CtcResult r{empty({b.g.batch}, dtype), empty(b.logits.shape(), dtype)};
  HostBytes scratch(cpu().ctc_workspace(b.g, dtype));
  cpu().ctc_loss(nullptr, b.g, b.logits.view(), b.targets.view(), b.input_lengths.view(), b.target_lengths.view(), r.losses.mutable_view(), {},
                 has_gradient ? r.gradient.mutable_view() : View(), scratch);
  return r;
}

CtcResult on_cuda(const CtcBatch& b, bool has_gradient = true) {
  const DType dtype = b.logits.dtype();
  const DeviceTensor logits(b.logits), targets(b.targets), input_lengths(b.input_lengths), target_lengths(b.target_lengths);
  const DeviceTensor losses = DeviceTensor::poisoned({b.g.batch}, is_half(dtype) ? DType::float32 : dtype), gradient = DeviceTensor::poisoned(b.logits.shape(), dtype);
  const DeviceBytes scratch(fovea::testing::cuda().ctc_workspace(b.g, dtype));
  fovea::testing::cuda().ctc_loss(nullptr, b.g, logits.view(), targets.view(), input_lengths.view(), target_lengths.view(), losses.view(), {}, has_gradient ? gradient.view() : View(), scratch);
  scratch.check_guards();
  return {losses.to_host(), gradient.to_host()};
}

// The CPU's answer in float64 against CUDA's in the batch's own dtype.
void check_ctc(CtcBatch b) {
  CAPTURE(b.g.time); CAPTURE(b.g.batch); CAPTURE(b.g.classes); CAPTURE(b.g.max_target); CAPTURE(b.g.blank);
  const CtcResult got = on_cuda(b), again = on_cuda(b), alone = on_cuda(b, false);
  const double relative = b.logits.dtype() == DType::float64 ? 1e-11 : 2e-5, of_gradient = rounding(b.logits.dtype());
  b.logits = widened(b.logits);
  const CtcResult want = on_cpu(b);
  CHECK(difference(got.losses, want.losses, relative, relative) == "");
  CHECK(difference(got.gradient, want.gradient, of_gradient, 2 * relative) == "");
  CHECK(same_bits(got.losses, again.losses));
  CHECK(same_bits(got.gradient, again.gradient));
  CHECK(same_bits(got.losses, alone.losses));
}

}  // namespace

TEST_CASE("cuda ctc: losses and gradients are the CPU's, for every way to hold the states") {
  for (const DType dtype : {DType::float32, DType::float64, DType::float16, DType::bfloat16}) {
    check_ctc(random_ctc({.time = 12, .batch = 3, .classes = 7, .max_target = 4, .blank = 0}, dtype, 1));
    check_ctc(random_ctc({.time = 20, .batch = 2, .classes = 200, .max_target = 9, .blank = 199}, dtype, 2));
    check_ctc(random_ctc({.time = 80, .batch = 2, .classes = 5, .max_target = 31, .blank = 2}, dtype, 3));      // fills two states a lane to the last
    check_ctc(random_ctc({.time = 90, .batch = 2, .classes = 30, .max_target = 32, .blank = 0}, dtype, 4));
    check_ctc(random_ctc({.time = 170, .batch = 1, .classes = 9, .max_target = 70, .blank = 0}, dtype, 5));
    check_ctc(random_ctc({.time = 300, .batch = 1, .classes = 40, .max_target = 140, .blank = 0}, dtype, 6));
    check_ctc(random_ctc({.time = 620, .batch = 1, .classes = 40, .max_target = 260, .blank = 0}, dtype, 7));   // a block and memory
  }
}

TEST_CASE("cuda ctc: peaky scores, no labels, one step, samples that cannot be") {
  check_ctc(random_ctc({.time = 40, .batch = 3, .classes = 6, .max_target = 8, .blank = 0}, DType::float32, 8, 30));
  check_ctc(random_ctc({.time = 5, .batch = 3, .classes = 4, .max_target = 0, .blank = 1}, DType::float32, 9));
  check_ctc(random_ctc({.time = 1, .batch = 4, .classes = 3, .max_target = 1, .blank = 0}, DType::float64, 10));
  for (const bool zero_infinity : {false, true}) {
    CtcBatch b = random_ctc({.time = 4, .batch = 3, .classes = 4, .max_target = 6, .blank = 0, .zero_infinity = zero_infinity}, DType::float32, 11);
    check_ctc(b);                                        // sample 0 has more labels than steps
    b.input_lengths.mutable_data<int64_t>()[1] = 0;
    b.target_lengths.mutable_data<int64_t>()[1] = 0;
    b.input_lengths.mutable_data<int64_t>()[2] = 0;
    b.target_lengths.mutable_data<int64_t>()[2] = 2;
    check_ctc(b);
  }
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    CtcBatch repeats = random_ctc({.time = 9, .batch = 1, .classes = 3, .max_target = 4, .blank = 0}, dtype, 12);
    for (int64_t i = 0; i < 4; ++i) repeats.targets.mutable_data<int64_t>()[i] = 2;
    check_ctc(repeats);
  }
}

TEST_CASE("cuda ctc: labels and lengths out of range make their own sample's loss NaN, without a gradient, and nothing else") {
  for (const int64_t max_target : {int64_t{4}, int64_t{260}}) {                          // in registers, in memory
    const CtcBatch good = random_ctc({.time = 2 * max_target + 4, .batch = 8, .classes = 7, .max_target = max_target, .blank = 0}, DType::float32, 14);
    CtcBatch b = good;
    b.targets = copied_to(good.targets, Device::cpu()), b.input_lengths = copied_to(good.input_lengths, Device::cpu()), b.target_lengths = copied_to(good.target_lengths, Device::cpu());
    int64_t *labels = b.targets.mutable_data<int64_t>(), *times = b.input_lengths.mutable_data<int64_t>(), *lengths = b.target_lengths.mutable_data<int64_t>();
    for (int64_t i = 1; i < 8; ++i) times[i] = b.g.time, lengths[i] = 2;
    CtcBatch fine = b;
    fine.targets = copied_to(b.targets, Device::cpu()), fine.input_lengths = copied_to(b.input_lengths, Device::cpu()), fine.target_lengths = copied_to(b.target_lengths, Device::cpu());
    labels[1 * max_target] = 7;
    labels[2 * max_target + 1] = -1;
    labels[3 * max_target + 1] = 0;                                                         // the blank
    times[4] = b.g.time + 1000;
    lengths[5] = int64_t{1} << 40;
    lengths[6] = -3;
    labels[7 * max_target + 2] = 1000;                                                      // past the end: nobody's business
    const CtcResult got = on_cuda(b), want = on_cuda(fine);
    const int64_t classes = b.g.classes;
    for (int64_t i = 0; i < 8; ++i) {
      CAPTURE(i);
      const bool is_bad = i >= 1 && i <= 6;
      const float loss = got.losses.data<float>()[i];
      CHECK((is_bad ? std::isnan(loss) : loss == want.losses.data<float>()[i]));
      for (int64_t t = 0; t < b.g.time; ++t)
        for (int64_t k = 0; k < classes; ++k) {
          const int64_t at = (t * 8 + i) * classes + k;
          if (got.gradient.data<float>()[at] != (is_bad ? 0 : want.gradient.data<float>()[at])) FAIL_CHECK("gradient of step " << t << ", class " << k);
        }
    }
  }
}

TEST_CASE("cuda ctc: sum and mean of the losses, with what each sample counts for, and targets one after the other") {
  for (const DType dtype : {DType::float32, DType::float64, DType::bfloat16})
    for (const Reduction reduction : {Reduction::sum, Reduction::mean})
      for (const bool is_joined : {false, true})
        for (const int64_t batch : {0, 1, 5, 300})
          for (const bool has_gradient : {false, true}) {
            CAPTURE(name_of(dtype)); CAPTURE(batch); CAPTURE(is_joined); CAPTURE(has_gradient);
            CtcGeometry g{.time = 6, .batch = batch, .classes = 5, .max_target = 3, .blank = 0, .zero_infinity = true, .reduction = reduction};
            const CtcBatch b = random_ctc(g, dtype, 21);
            const DType wide = is_half(dtype) ? DType::float32 : dtype;
            const Tensor logits = widened(b.logits);
            Tensor want = empty({}, DType::float64), want_weights = empty({batch}, DType::float64), want_dx = empty(b.logits.shape(), DType::float64);
            HostBytes scratch(cpu().ctc_workspace(g, DType::float64));
            cpu().ctc_loss(nullptr, g, logits.view(), b.targets.view(), b.input_lengths.view(), b.target_lengths.view(), want.mutable_view(), want_weights.mutable_view(),
                           has_gradient ? want_dx.mutable_view() : View(), scratch);
            std::vector<int64_t> joined;
            for (int64_t i = 0; i < batch; ++i)
              for (int64_t k = 0; k < b.target_lengths.data<int64_t>()[i]; ++k) joined.push_back(b.targets.data<int64_t>()[i * g.max_target + k]);
            if (is_joined) g.max_target = g.time + 1;                // a bound: nobody has looked for the longest
            const DeviceTensor x(b.logits), targets(is_joined ? from_vector(joined) : b.targets), times(b.input_lengths), lengths(b.target_lengths);
            const DeviceTensor total = DeviceTensor::poisoned({}, wide), weights = DeviceTensor::poisoned({batch}, wide), dx = DeviceTensor::poisoned(b.logits.shape(), dtype);
            const DeviceBytes memory(fovea::testing::cuda().ctc_workspace(g, dtype));
            fovea::testing::cuda().ctc_loss(nullptr, g, x.view(), targets.view(), times.view(), lengths.view(), total.view(), weights.view(),
                                            has_gradient ? dx.view() : View(), memory);
            memory.check_guards();
            const double relative = dtype == DType::float64 ? 1e-11 : 2e-5;
            CHECK(difference(total.to_host(), want, relative, relative) == "");
            CHECK(difference(weights.to_host(), want_weights, relative, 0) == "");
            if (has_gradient) CHECK(difference(dx.to_host(), want_dx, rounding(dtype), 2 * relative) == "");
          }
}

TEST_CASE("cuda ctc: targets one after the other, with lengths that lead out of them") {
  const CtcBatch b = random_ctc({.time = 8, .batch = 4, .classes = 5, .max_target = 3, .blank = 0}, DType::float32, 22);
  const auto losses = [&](const std::vector<int64_t>& lengths) {
    const DeviceTensor x(b.logits), targets(from_vector<int64_t>({1, 2, 3, 4, 1, 2})), times(full({4}, 8, DType::int64)), of_targets(from_vector(lengths));
    const DeviceTensor result = DeviceTensor::poisoned({4}, DType::float32), dx = DeviceTensor::poisoned(b.logits.shape(), DType::float32);
    CtcGeometry g = b.g;
    g.max_target = 6;
    const DeviceBytes memory(fovea::testing::cuda().ctc_workspace(g, DType::float32));
    fovea::testing::cuda().ctc_loss(nullptr, g, x.view(), targets.view(), times.view(), of_targets.view(), result.view(), {}, dx.view(), memory);
    memory.check_guards();
    for (const float v : dx.to_host().to_vector<float>()) CHECK(std::isfinite(v));
    return result.to_host().to_vector<float>();
  };
  const auto is_bad = [&](const std::vector<int64_t>& lengths) {
    std::string bad;
    for (const float loss : losses(lengths)) bad += std::isnan(loss) ? 'x' : '.';
    return bad;
  };
  CHECK(is_bad({2, 1, 0, 3}) == "....");
  CHECK(is_bad({2, 1, 0, 4}) == "...x");
  CHECK(is_bad({2, 7, 0, 1}) == ".xxx");
  CHECK(is_bad({-3, 1, 3, 2}) == "xxx.");
  CHECK(is_bad({2, 1, int64_t{1} << 40, 3}) == "..xx");
}

TEST_CASE("cuda ctc: a NaN reaches its own sample and no other") {
  CtcBatch b = random_ctc({.time = 10, .batch = 3, .classes = 5, .max_target = 3, .blank = 0}, DType::float32, 13);
  b.logits.mutable_data<float>()[(2 * 3 + 1) * 5 + 4] = std::numeric_limits<float>::quiet_NaN();
  check_ctc(b);
  CHECK(std::isnan(on_cuda(b).losses.to_vector<double>()[1]));
  CHECK(!std::isnan(on_cuda(b).losses.to_vector<double>()[0]));
}
