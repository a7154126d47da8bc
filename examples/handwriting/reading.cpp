#include "reading.h"

#include <algorithm>
#include <chrono>
#include <cmath>

using namespace fovea;

namespace {

// Paper and ink as the brightest and darkest tenth and hundredth of the pixels, and everything between them on a straight line.
void stretch_contrast(Tensor& image) {
  std::vector<float> sorted = image.to_vector<float>();
  if (sorted.empty()) return;
  const auto at = [&](double share) {
    const auto position = sorted.begin() + static_cast<std::ptrdiff_t>(share * static_cast<double>(sorted.size() - 1));
    std::nth_element(sorted.begin(), position, sorted.end());
    return *position;
  };
  const float ink = at(0.01), paper = at(0.9), range = std::max(paper - ink, 0.06f);       // an empty line must not turn into a line of noise
  float* pixels = image.mutable_data<float>();
  for (int64_t i = 0; i < image.numel(); ++i) pixels[i] = std::clamp((paper - pixels[i]) / range, 0.0f, 1.0f);
}

// No line of writing is longer than 200 times its height; and a layer's output for one picture must stay below 256 MB, whatever a model file asks for.
int64_t widest_line(const RecognizerOptions& o) {
  constexpr int64_t most_values = int64_t{1} << 26;
  int64_t values_a_pixel = 1;
  for (size_t i = 0; i < o.channels.size(); ++i)             // each layer before halves the height, the first two also the width
    values_a_pixel = std::max(values_a_pixel, o.channels[i] >> (i + std::min<size_t>(i, 2)));
  return std::min(200 * o.height, most_values / (o.height * values_a_pixel));
}

}  // namespace

data::Transform prepare(const RecognizerOptions& options) {
  return data::compose({data::resize_to_height(options.height, widest_line(options)), [](data::Sample& sample, data::RandomStream&) { stretch_contrast(sample.image); }});
}

Tensor prepare_picture(const std::string& path, const RecognizerOptions& options) {
  data::Sample sample;
  sample.name = path;
  sample.image = data::read_image_float(path, 1);
  data::RandomStream unused(0);
  prepare(options)(sample, unused);
  return sample.image;
}

Tensor steps_of(const Tensor& widths) {
  std::vector<int64_t> steps = widths.to_vector<int64_t>();
  for (int64_t& s : steps) s = std::max<int64_t>(Recognizer::steps(s), 1);
  return from_vector(steps);
}

std::vector<Reading> read_logits(const Tensor& logits, const Tensor& steps, const data::Alphabet& alphabet) {
  std::vector<Reading> readings;
  for (const CtcReading& best : ctc_best_path(logits, steps)) readings.push_back({alphabet.decode(best.labels()), best.confidence});
  return readings;
}

std::vector<Reading> read_lines(const Model& model, const Tensor& images, const Tensor& steps) {
  const Device device = model.network->device();
  const Tensor own_steps = to(steps, device);
  return read_logits(model.network->forward(to(images, device), own_steps), own_steps, model.alphabet);
}

Evaluation evaluate(const Model& model, const data::DatasetPtr& lines, int64_t batch_size) {
  NoGrad no_grad;
  const auto start = std::chrono::steady_clock::now();
  const bool was_training = model.network->is_training();
  model.network->eval();
  Evaluation result;
  result.readings.resize(static_cast<size_t>(lines->size()));
  constexpr int64_t sorted_batches = 32;                     // so many are in memory together
  data::DataLoader loader(lines, {.batch_size = batch_size, .bucket_batches = sorted_batches, .width_multiple = 4, .transform = prepare(model.options)});
  while (auto batch = loader.next()) {
    const Tensor steps = steps_of(batch->widths);
    const std::vector<Reading> readings = read_lines(model, batch->images, steps);
    for (size_t i = 0; i < readings.size(); ++i) {
      check<ValueError>(std::isfinite(readings[i].confidence), "the network's answers are not numbers (NaN)");
      result.characters += data::character_errors(batch->texts[i], readings[i].text);
      result.words += data::word_errors(batch->texts[i], readings[i].text);
      result.readings[static_cast<size_t>(batch->indices[i])] = readings[i];
    }
  }
  model.network->train(was_training);
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}
