#include "recognizer.h"

using namespace fovea;

Recognizer::Recognizer(RecognizerOptions o)
    : features_(add("features", make_features(o))),
      dropout_(add("dropout", layers::Dropout(o.dropout))),
      rnn_(add("rnn", layers::LSTM({.input = o.channels.back() * (o.height >> o.channels.size()), .hidden = o.hidden, .layers = o.rnn_layers, .dropout = o.dropout,
                                    .bidirectional = true}))),
      head_(add("head", layers::Linear(2 * o.hidden, o.classes))) {}

layers::Sequential Recognizer::make_features(const RecognizerOptions& o) {
  check<ValueError>(o.channels.size() >= 2 && o.height > 0 && o.height % (int64_t{1} << o.channels.size()) == 0, "Recognizer: height ", o.height,
                    " must be a multiple of ", int64_t{1} << o.channels.size());
  layers::Sequential features;
  int64_t in = 1;
  for (size_t i = 0; i < o.channels.size(); ++i) {
    features.append(layers::Conv2d({.in = in, .out = o.channels[i], .kernel = 3, .padding = 1, .bias = false}));
    features.append(layers::BatchNorm2d(o.channels[i]));
    features.append(layers::ReLU());
    features.append(layers::MaxPool2d({2, i < 2 ? 2 : 1}));
    in = o.channels[i];
  }
  return features;
}

Tensor Recognizer::forward(const Tensor& x, const Tensor& steps) {
  const Tensor y = features_(x);                                                 // [batch, channels, rows, steps]
  const Tensor sequence = flatten(permute(y, {3, 0, 1, 2}), 2);                  // [steps, batch, channels * rows]
  return head_(dropout_(rnn_(dropout_(sequence), {.lengths = steps}).output));
}
