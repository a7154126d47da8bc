// The recognizer: CNN -> BiLSTM -> CTC (Shi, Bai & Yao 2015, "An end-to-end trainable neural network for image-based sequence recognition").
#pragma once

#include <cstdint>
#include <vector>

#include <fovea/fovea.h>

struct RecognizerOptions {
  int64_t height = 32;                                       // of the line pictures; a multiple of 2 ^ channels.size()
  int64_t classes = 0;                                       // characters of the alphabet, and the blank (class 0)
  std::vector<int64_t> channels = {16, 32, 64, 96};         // of the convolutions; each halves the height, the first two also the width
  int64_t hidden = 128;                                      // units of the LSTM, each direction
  int64_t rnn_layers = 2;
  double dropout = 0.0;                                      // before, between and after the LSTM's layers
};

// Far above what is useful; without them an option or a file could ask for any amount of memory and time.
constexpr int64_t largest_height = 512, largest_width = 4096, most_rnn_layers = 16;      // largest_width: units or channels of a layer

class Recognizer : public fovea::layers::Module {
 public:
  explicit Recognizer(RecognizerOptions options);
  // x [batch, 1, height, width], ink 1 on paper 0 -> logits [width / 4, batch, classes]
  fovea::Tensor forward(const fovea::Tensor& x) override { return forward(x, {}); }
  // steps int64 [batch]: how many of the width / 4 steps are a line's own, the rest is padding; undefined: all.
  fovea::Tensor forward(const fovea::Tensor& x, const fovea::Tensor& steps);
  fovea::Device device() const { return head_.weight.device(); }
  static int64_t steps(int64_t width) { return width / 4; }

 private:
  static fovea::layers::Sequential make_features(const RecognizerOptions& options);

  fovea::layers::Sequential& features_;
  fovea::layers::Dropout& dropout_;
  fovea::layers::LSTM& rnn_;
  fovea::layers::Linear& head_;
};
