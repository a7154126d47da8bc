// The tasks of rows where there is no device, for --check-vendor.
#include <fovea/fovea.h>

#include "../../tests/default_device.h"
#include "problem.h"

namespace fovea::benchmarks {

namespace {

// Strides as random_input and a clone of it have them.
Array array_of_shape(const Row& row, DType dtype, const std::vector<int64_t>& shape) {
  Array a{.data = nullptr, .dtype = dtype, .shape = shape, .strides = std::vector<int64_t>(shape.size()), .values = {}};
  std::vector<size_t> order;                                      // of axes, the slowest first
  for (size_t axis = 0; axis < shape.size(); ++axis) order.push_back(axis);
  if (shape.size() == 4 && row.is_channels_last()) order = {0, 2, 3, 1};
  int64_t stride = 1;
  for (size_t i = shape.size(); i > 0; stride *= shape[order[--i]]) a.strides[order[i - 1]] = stride;
  return a;
}

std::vector<Array> outputs_of(const Row& row, const std::vector<Array>& in) {
  const auto like = [&](const Array& x) { return array_of_shape(row, x.dtype, x.shape); };
  const auto values = [](int64_t count) { return Array{.data = nullptr, .dtype = DType::float32, .shape = {count}, .strides = {1}, .values = {}}; };
  if (row.family == "conv") {
    const ConvGeometry g = row.conv();
    if (row.direction == "forward") return {array_of_shape(row, row.element(), {g.n, g.k, g.out_h(), g.out_w()})};
    if (row.direction == "backward_data") return {array_of_shape(row, row.element(), {g.n, g.c, g.h, g.w})};
    return {array_of_shape(row, row.element(), {g.k, g.group_c(), g.r, g.s})};
  }
  if (row.family == "gemm") {
    const int64_t batch = row["batch"], m = row["m"], n = row["n"];
    return {array_of_shape(row, row.element(), batch == 1 ? std::vector<int64_t>{m, n} : std::vector<int64_t>{batch, m, n})};
  }
  if (row.family == "lstm") {
    std::vector<Array> out{like(in[1])};                          // y, as large as its gradient
    if (!row.has_backward()) return out;
    out.push_back(like(in[0]));
    for (size_t i = 3; i < in.size(); ++i) out.push_back(like(in[i]));
    return out;
  }
  if (row.family == "ctc") return {values(row["batch"]), like(in[0])};
  if (row.family == "pooling") {
    const PoolGeometry g = row.pool();
    if (row.direction == "backward") return {like(in[0])};
    return {array_of_shape(row, row.element(), {g.n, g.c, g.out_h(), g.out_w()})};
  }
  if (row.family == "batchnorm" && row.direction == "backward") {
    std::vector<Array> out{like(in[0]), values(row["c"]), values(row["c"])};
    if (row.op == "batch_norm_add_relu") out.push_back(like(in[3]));
    return out;
  }
  std::vector<Array> out{like(in[0])};
  if (row.has_backward()) out.push_back(like(in[0]));
  return out;
}

}  // namespace

Task described_task(const Row& row) {
  const testing::DefaultDevice on_cpu(Device::cpu());
  // One sample is enough to know all strides; the batch is then set to what it should be.
  Row small = row;
  const bool has_batch = row.family == "conv" || row.family == "batchnorm" || row.family == "pooling" || row.family == "softmax";
  if (has_batch) small.values["n"] = std::to_string(1);
  std::vector<Array> inputs = arrays_of(problem_of(small).make_inputs());
  for (size_t i = 0; i < inputs.size() && has_batch; ++i) {
    const bool is_weight = row.family == "conv" && i == 1 && row.direction != "backward_weight";
    if (inputs[i].shape.size() > 1 && !is_weight) inputs[i].shape[0] = row["n"];
  }
  for (Array& a : inputs) a.data = nullptr;
  std::vector<Array> outputs = outputs_of(row, inputs);
  return {.op = row.op, .direction = row.direction, .allows_tf32 = row.allows_tf32(), .values = row.values, .inputs = std::move(inputs), .outputs = std::move(outputs)};
}

}  // namespace fovea::benchmarks
