// Optimizers over lists of parameters, and whole training steps.
#include <memory>
#include <optional>

#include <fovea/fovea.h>

#include "../../examples/handwriting/recognizer.h"
#include "../../tests/default_device.h"
#include "problem.h"
#include "resnet.h"

namespace fovea::benchmarks {

Bottleneck::Bottleneck(int64_t in, int64_t width, int64_t stride)
    : body_(add("body", layers::Sequential(layers::Conv2d({.in = in, .out = width, .bias = false}), layers::BatchNorm2d(width), layers::ReLU(),
                                           layers::Conv2d({.in = width, .out = width, .kernel = 3, .stride = stride, .padding = 1, .bias = false}),
                                           layers::BatchNorm2d(width), layers::ReLU(), layers::Conv2d({.in = width, .out = 4 * width, .bias = false})))),
      norm_(add("norm", layers::BatchNorm2d(4 * width))),
      shortcut_(add("shortcut", layers::Sequential())) {
  if (in == 4 * width && stride == 1) return;
  shortcut_.append(layers::Conv2d({.in = in, .out = 4 * width, .stride = stride, .bias = false}));
  shortcut_.append(layers::BatchNorm2d(4 * width));
}

Tensor Bottleneck::forward(const Tensor& x) { return norm_.forward_add_relu(body_(x), shortcut_.size() == 0 ? x : shortcut_(x)); }

layers::Sequential ResNet50::make_body() {
  layers::Sequential body(layers::Conv2d({.in = 3, .out = 64, .kernel = 7, .stride = 2, .padding = 3, .bias = false}), layers::BatchNorm2d(64), layers::ReLU(),
                          layers::MaxPool2d(3, {.stride = 2, .padding = 1}));
  const int64_t blocks[] = {3, 4, 6, 3};
  int64_t in = 64, width = 64;
  for (int stage = 0; stage < 4; ++stage, width *= 2) {
    for (int64_t block = 0; block < blocks[stage]; ++block) {
      body.append(Bottleneck(in, width, stage > 0 && block == 0 ? 2 : 1));
      in = 4 * width;
    }
  }
  return body;
}

ResNet50::ResNet50(int64_t classes) : body_(add("body", make_body())), head_(add("head", layers::Linear(2048, classes))) {}

Tensor ResNet50::forward(const Tensor& x) { return head_(global_avg_pool(body_(x))); }

namespace {

using testing::DefaultDevice;

Recognizer recognizer_of(int64_t height, int64_t classes) {
  return Recognizer({.height = height, .classes = classes, .channels = {32, 64, 128, 128}, .hidden = 128});
}

// resnet50, crnn (the recognizer's), or COUNTxSIZE: so many parameters of so many elements.
std::vector<Shape> parameter_shapes(const std::string& list) {
  const size_t times = list.find('x');
  if (list != "resnet50" && list != "crnn" && times != std::string::npos) {
    const int64_t count = std::atoll(list.c_str()), size = std::atoll(list.c_str() + times + 1);
    check<ValueError>(count > 0 && size > 0, "shapes: \"", list, "\" is no list of parameters");
    return std::vector<Shape>(static_cast<size_t>(count), Shape{size});
  }
  check<ValueError>(list == "resnet50" || list == "crnn", "shapes: \"", list, "\" is no list of parameters; there are resnet50, crnn and COUNTxSIZE");
  std::vector<Shape> shapes;
  const DefaultDevice on_cpu(Device::cpu());
  const NamedTensors named = list == "crnn" ? recognizer_of(32, 80).named_parameters() : ResNet50().named_parameters();
  for (const auto& [name, parameter] : named) shapes.push_back(parameter.shape());
  return shapes;
}

std::shared_ptr<optim::Optimizer> make_optimizer(const std::string& op, const NamedTensors& parameters) {
  if (op == "sgd") return std::make_shared<optim::SGD>(parameters, optim::SGDOptions{.lr = 0.01, .momentum = 0.9, .weight_decay = 1e-4});
  if (op == "adam") return std::make_shared<optim::Adam>(parameters, optim::AdamOptions{.lr = 1e-3});
  if (op == "adamw" || op == "clip_adamw") return std::make_shared<optim::AdamW>(parameters, optim::AdamWOptions{.lr = 1e-3});
  if (op == "rmsprop") return std::make_shared<optim::RMSprop>(parameters, optim::RMSpropOptions{.lr = 1e-3});
  if (op == "adagrad") return std::make_shared<optim::Adagrad>(parameters, optim::AdagradOptions{.lr = 1e-3});
  fail<ValueError>("shapes: ", op, " is no operation of the optimizer family");
}

// Numbers of four bytes that a step moves for each number of a parameter: parameter, gradient and state read; parameter and state written.
double words_per_parameter(const std::string& op) { return op == "sgd" || op == "rmsprop" || op == "adagrad" ? 5 : 7; }

// One step of training: forward and loss (of a row in a half type under Autocast, as mixed precision has it), backward, update. Returns the loss.
Run training_run(const Row& row, std::shared_ptr<layers::Module> net, std::shared_ptr<optim::Optimizer> optimizer, std::function<Tensor()> loss_of, double max_norm) {
  // A recorded step reads learning rate and step count on the device; an eager one is a user's, who need not ask for that.
  if (row.direction == "graph") optimizer->set_capturable();
  const std::optional<DType> half = row.element() == DType::float32 ? std::nullopt : std::optional(row.element());
  return [=] {
    net->zero_grad();
    Tensor loss;
    {
      const Autocast scope(half);
      loss = loss_of();
    }
    loss.backward();
    if (max_norm > 0) optim::clip_grad_norm_async(net->named_parameters(), max_norm);
    optimizer->step();
    return Tensors{loss.detach()};
  };
}

// float32 whatever the row's dtype: Autocast converts them.
Tensor random_pictures(const Row& row, const Shape& shape) { return row.is_channels_last() ? channels_last(randn(shape)) : randn(shape); }

}  // namespace

// Inputs: the parameters, then their gradients. Outputs: the parameters after a step. All of them are compared, after the first.
Problem optimizer_problem(const Row& row) {
  const std::vector<Shape> shapes = parameter_shapes(row.text("parameters"));
  double elements = 0;
  for (const Shape& shape : shapes) elements += static_cast<double>(shape.numel());
  Problem p;
  p.works_in_place = true;
  p.bytes = 4 * elements * (words_per_parameter(row.op) + (row.op == "clip_adamw" ? 1 : 0));      // for the norm the gradients are read once more
  p.make_inputs = [=] {
    Tensors in;
    for (int i = 0; i < 2; ++i)
      for (const Shape& shape : shapes) in.push_back(randn(shape) * 0.1);
    return in;
  };
  p.bind = [=, op = row.op, count = shapes.size()](const Tensors& in) {
    NamedTensors parameters;
    for (size_t i = 0; i < count; ++i) {
      Tensor parameter = in[i].detach();
      parameter.set_requires_grad();
      parameter.set_grad(in[count + i]);
      parameters.add(std::to_string(i), parameter);
    }
    const auto optimizer = make_optimizer(op, parameters);
    optimizer->set_capturable();                                  // so that a graph of steps counts them
    return Run([=] {
      if (op == "clip_adamw") optim::clip_grad_norm_async(parameters, 1.0);
      optimizer->step();
      Tensors out;
      for (const auto& [name, parameter] : parameters) out.push_back(parameter.detach());
      return out;
    });
  };
  return p;
}

// Inputs: pictures, and labels or targets with their lengths. The output is a step's loss. Compared: the second step's (ResNet-50: the first's), of a part of
// the batch, from one seed on both devices.
Problem step_problem(const Row& row) {
  const int64_t batch = row["batch"], height = row["height"], width = row["width"], classes = row["classes"];
  Problem p;
  p.reference_dtype = DType::float32;
  p.works_in_place = p.compares_samples = true;
  p.compared_runs = 2;
  p.sample_inputs = [](const Tensors& in) {
    Tensors part;
    for (const Tensor& t : in) part.push_back(narrow(t, 0, 0, std::min<int64_t>(2, t.size(0))));
    return part;
  };
  if (row.op == "crnn_step") {
    const int64_t target = row["target"];
    const DefaultDevice on_cpu(Device::cpu());
    p.flops = 3.0 * static_cast<double>(recognizer_of(height, classes).cost({batch, 1, height, width}).flops);
    p.make_inputs = [=] {
      return Tensors{random_pictures(row, {batch, 1, height, width}), randint(1, classes, {batch, target}),
                     full({batch}, static_cast<double>(Recognizer::steps(width)), DType::int64), full({batch}, static_cast<double>(target), DType::int64)};
    };
    p.bind = [=](const Tensors& in) {
      const DefaultDevice beside(in[0].device());
      manual_seed(1);
      auto net = std::make_shared<Recognizer>(recognizer_of(height, classes));
      auto adam = std::make_shared<optim::Adam>(net->named_parameters(), optim::AdamOptions{.lr = 1e-3});
      return training_run(row, net, adam, [net = net.get(), in] { return ctc_loss((*net)(in[0]), in[1], in[2], in[3]); }, 5.0);
    };
    return p;
  }
  check<ValueError>(row.op == "resnet50_step", "shapes: ", row.op, " is no operation of the steps family");
  // The first step's loss: of two pictures the second one's changes by some percent when the pictures change by a millionth, on one device alone.
  p.compared_runs = 1;
  const DefaultDevice on_cpu(Device::cpu());
  p.flops = 3.0 * static_cast<double>(ResNet50(classes).cost({batch, 3, height, width}).flops);
  p.make_inputs = [=] { return Tensors{random_pictures(row, {batch, 3, height, width}), randint(0, classes, {batch})}; };
  p.bind = [=](const Tensors& in) {
    const DefaultDevice beside(in[0].device());
    manual_seed(1);
    auto net = std::make_shared<ResNet50>(classes);
    auto sgd = std::make_shared<optim::SGD>(net->named_parameters(), optim::SGDOptions{.lr = 0.01, .momentum = 0.9, .weight_decay = 1e-4});
    return training_run(row, net, sgd, [net = net.get(), in] { return cross_entropy((*net)(in[0]), in[1]); }, 0);
  };
  return p;
}

}  // namespace fovea::benchmarks
