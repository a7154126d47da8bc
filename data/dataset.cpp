#include <fovea/data/dataset.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include <fovea/data/shuffle.h>
#include <fovea/tensor/creation.h>
#include <fovea/tensor/image_tensor.h>

namespace fovea::data {
namespace {

Split split_by_mask(const DatasetPtr& whole, const std::vector<bool>& is_held_out, const char* op) {
  std::vector<int64_t> training, held_out;
  for (size_t i = 0; i < is_held_out.size(); ++i) (is_held_out[i] ? held_out : training).push_back(static_cast<int64_t>(i));
  check<ValueError>(!training.empty() && !held_out.empty(), op, ": ", training.size(), " samples for training and ", held_out.size(),
                    " held out; neither part may be empty, choose another fraction");
  return {std::make_shared<Subset>(whole, std::move(training)), std::make_shared<Subset>(whole, std::move(held_out))};
}

void check_split(const DatasetPtr& whole, double fraction, const char* op) {
  check<ValueError>(whole != nullptr, op, ": there is no set");
  check<ValueError>(fraction > 0 && fraction < 1, op, ": fraction must lie between 0 and 1, got ", fraction);
}

// What each pixel of a resized axis takes from the source: `count` weights from `first` on.
struct Taps {
  int64_t first = 0;
  std::vector<float> weights;
};

std::vector<Taps> triangle_taps(int64_t from, int64_t to) {
  const double step = static_cast<double>(from) / static_cast<double>(to), reach = std::max(step, 1.0);
  std::vector<Taps> taps(static_cast<size_t>(to));
  for (int64_t i = 0; i < to; ++i) {
    Taps& tap = taps[static_cast<size_t>(i)];
    const double centre = (static_cast<double>(i) + 0.5) * step - 0.5;
    tap.first = std::clamp<int64_t>(static_cast<int64_t>(std::floor(centre - reach)) + 1, 0, from - 1);
    const int64_t last = std::clamp<int64_t>(static_cast<int64_t>(std::ceil(centre + reach)) - 1, tap.first, from - 1);
    double sum = 0;
    for (int64_t j = tap.first; j <= last; ++j) sum += std::max(0.0, 1 - std::abs(static_cast<double>(j) - centre) / reach);
    for (int64_t j = tap.first; j <= last; ++j) {
      const double weight = std::max(0.0, 1 - std::abs(static_cast<double>(j) - centre) / reach);
      tap.weights.push_back(static_cast<float>(sum > 0 ? weight / sum : 1.0 / static_cast<double>(last - tap.first + 1)));
    }
  }
  return taps;
}

}  // namespace

void Dataset::check_index(int64_t i, const char* name) const {
  check<IndexError>(i >= 0 && i < size(), name, ": there is no sample ", i, ", only 0 .. ", size() - 1);
}

Subset::Subset(DatasetPtr whole, std::vector<int64_t> indices) : whole_(std::move(whole)), indices_(std::move(indices)) {
  for (const int64_t i : indices_) check<IndexError>(i >= 0 && i < whole_->size(), "Subset: there is no sample ", i, " in a set of ", whole_->size());
}

Sample Subset::get(int64_t i) const {
  check_index(i, "Subset");
  return whole_->get(indices_[static_cast<size_t>(i)]);
}

std::string Subset::group(int64_t i) const {
  check_index(i, "Subset");
  return whole_->group(indices_[static_cast<size_t>(i)]);
}

Split split_by_group(const DatasetPtr& whole, double fraction, uint64_t seed) {
  check_split(whole, fraction, "split_by_group");
  std::map<std::string, std::vector<int64_t>> members;
  for (int64_t i = 0; i < whole->size(); ++i) members[whole->group(i)].push_back(i);
  std::vector<const std::vector<int64_t>*> groups;
  for (const auto& [name, indices] : members) groups.push_back(&indices);
  shuffle(groups, RandomStream(seed));
  std::vector<bool> is_held_out(static_cast<size_t>(whole->size()));
  const auto wanted = static_cast<int64_t>(std::ceil(fraction * static_cast<double>(whole->size())));
  int64_t count = 0;
  for (const auto* indices : groups) {
    if (count >= wanted) break;
    for (const int64_t i : *indices) is_held_out[static_cast<size_t>(i)] = true;
    count += static_cast<int64_t>(indices->size());
  }
  return split_by_mask(whole, is_held_out, "split_by_group");
}

Split split_at_random(const DatasetPtr& whole, double fraction, uint64_t seed) {
  check_split(whole, fraction, "split_at_random");
  std::vector<int64_t> order(static_cast<size_t>(whole->size()));
  std::iota(order.begin(), order.end(), 0);
  shuffle(order, RandomStream(seed));
  order.resize(static_cast<size_t>(std::llround(fraction * static_cast<double>(whole->size()))));
  std::vector<bool> is_held_out(static_cast<size_t>(whole->size()));
  for (const int64_t i : order) is_held_out[static_cast<size_t>(i)] = true;
  return split_by_mask(whole, is_held_out, "split_at_random");
}

ImageArray::ImageArray(Tensor images, std::vector<int64_t> labels) : images_(std::move(images)), labels_(std::move(labels)) {
  check<ShapeError>(images_.rank() == 3 || images_.rank() == 4, "ImageArray: images must be [N,C,H,W] or [N,H,W], got ", images_.shape());
  check<ShapeError>(images_.size(0) == size(), "ImageArray: ", images_.size(0), " images but ", size(), " labels");
  images_.data<uint8_t>();                     // uint8, on the CPU and contiguous, or an error
}

Sample ImageArray::get(int64_t i) const {
  check_index(i, "ImageArray");
  const bool has_channels = images_.rank() == 4;
  Sample sample;
  sample.image = empty({has_channels ? images_.size(1) : 1, images_.size(-2), images_.size(-1)}, Device::cpu());
  const int64_t values = sample.image.numel();
  const uint8_t* from = images_.data<uint8_t>() + i * values;
  float* to = sample.image.mutable_data<float>();
  for (int64_t k = 0; k < values; ++k) to[k] = static_cast<float>(from[k]) / 255;
  sample.label = labels_[static_cast<size_t>(i)];
  return sample;
}

SyntheticLines::SyntheticLines(SyntheticHandwritingOptions options, uint64_t seed, int64_t size, int64_t first)
    : options_(options), seed_(seed), size_(size), first_(first) {
  check<ValueError>(size >= 0 && first >= 0, "SyntheticLines: size and first must not be negative, got ", size, " and ", first);
}

Sample SyntheticLines::get(int64_t i) const {
  check_index(i, "SyntheticLines");
  HandwritingLine line = draw_handwriting(options_, seed_, static_cast<uint64_t>(first_ + i));
  Sample sample;
  sample.image = image_to_float(line.image);
  sample.text = std::move(line.text);
  return sample;
}

Transform compose(std::vector<Transform> transforms) {
  return [transforms = std::move(transforms)](Sample& sample, RandomStream& random) {
    for (const Transform& transform : transforms) transform(sample, random);
  };
}

Transform encode_text(Alphabet alphabet) {
  return [alphabet = std::move(alphabet)](Sample& sample, RandomStream&) { sample.target = alphabet.encode(sample.text); };
}

Transform invert() {
  return [](Sample& sample, RandomStream&) {
    float* values = sample.image.mutable_data<float>();
    for (int64_t i = 0; i < sample.image.numel(); ++i) values[i] = 1 - values[i];
  };
}

Transform normalise(std::vector<float> mean, std::vector<float> deviation) {
  check<ShapeError>(mean.size() == deviation.size(), "normalise: ", mean.size(), " means but ", deviation.size(), " deviations");
  for (const float d : deviation) check<ValueError>(d > 0, "normalise: deviations must be above 0, got ", d);
  return [mean = std::move(mean), deviation = std::move(deviation)](Sample& sample, RandomStream&) {
    const int64_t channels = sample.image.size(0), pixels = sample.image.size(1) * sample.image.size(2);
    check<ShapeError>(channels == static_cast<int64_t>(mean.size()), "normalise: the image ", sample.image.shape(), " has ", channels, " channels, but ",
                      mean.size(), " means were given");
    float* values = sample.image.mutable_data<float>();
    for (int64_t i = 0; i < sample.image.numel(); ++i) values[i] = (values[i] - mean[static_cast<size_t>(i / pixels)]) / deviation[static_cast<size_t>(i / pixels)];
  };
}

Tensor resize_image(const Tensor& image, int64_t height, int64_t width) {
  check<ShapeError>(image.rank() == 3, "resize_image: image must be [C,H,W], got ", image.shape());
  check<ShapeError>(image.numel() > 0 && height > 0 && width > 0, "resize_image: cannot make ", height, " x ", width, " pixels of ", image.shape());
  const int64_t channels = image.size(0), from_height = image.size(1), from_width = image.size(2);
  checked_numel({channels, height, width}, "resize_image");
  Tensor resized = empty({channels, height, width}, Device::cpu());          // first: it says so where there is no room
  const std::vector<Taps> rows = triangle_taps(from_height, height), columns = triangle_taps(from_width, width);
  std::vector<float> line(static_cast<size_t>(from_width));
  const float* from = image.data<float>();
  float* to = resized.mutable_data<float>();
  for (int64_t c = 0; c < channels; ++c, from += from_height * from_width)
    for (const Taps& row : rows) {
      std::fill(line.begin(), line.end(), 0.0f);
      for (size_t k = 0; k < row.weights.size(); ++k) {
        const float* source = from + (row.first + static_cast<int64_t>(k)) * from_width;
        for (int64_t x = 0; x < from_width; ++x) line[static_cast<size_t>(x)] += row.weights[k] * source[x];
      }
      for (const Taps& column : columns) {
        float sum = 0;
        for (size_t k = 0; k < column.weights.size(); ++k) sum += column.weights[k] * line[static_cast<size_t>(column.first) + k];
        *to++ = sum;
      }
    }
  return resized;
}

Transform resize_to_height(int64_t height, int64_t max_width) {
  check<ValueError>(height >= 1 && max_width >= 1, "resize_to_height: height and max_width must be at least 1, got ", height, " and ", max_width);
  return [height, max_width](Sample& sample, RandomStream&) {
    const int64_t own_height = sample.image.size(1), own_width = sample.image.size(2);
    const double ratio = static_cast<double>(height) / static_cast<double>(own_height);
    const int64_t width = std::max<int64_t>(1, std::llround(ratio * static_cast<double>(own_width)));
    check<FileError>(width <= max_width, sample.name.empty() ? "resize_to_height" : sample.name, ": the picture of ", own_width, " x ", own_height,
                     " pixels would be ", width, " pixels wide at a height of ", height, ", at most ", max_width, " are taken");
    if (own_height != height) sample.image = resize_image(sample.image, height, width);
  };
}

Transform resize_to(int64_t height, int64_t width) {
  return [height, width](Sample& sample, RandomStream&) { sample.image = resize_image(sample.image, height, width); };
}

}  // namespace fovea::data
