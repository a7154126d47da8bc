// Samples, sets of samples, and how to cut and change them.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <fovea/data/random_stream.h>
#include <fovea/data/synthetic_handwriting.h>
#include <fovea/data/text.h>
#include <fovea/tensor/tensor.h>

namespace fovea::data {

// A box in pixels from the upper left corner; the right and lower edges are exclusive.
struct Box {
  float left = 0, top = 0, right = 0, bottom = 0;
  int64_t label = 0;
};

// A picture with what is known of it. A set fills what it has; the rest keeps its default.
struct Sample {
  std::string name;                            // where it comes from, for errors: the path of its picture; empty if it was made
  Tensor image;                                // [C,H,W] float32, 0 .. 1
  int64_t label = -1;                          // the class; -1: none
  std::string text;                            // UTF-8
  std::vector<int64_t> target;                 // the text as labels (see encode_text)
  std::vector<Box> boxes;
  std::string group;                           // page, writer, patient ...: what must not be in two parts of a split
};

class Dataset {
 public:
  virtual ~Dataset() = default;
  virtual int64_t size() const = 0;
  // Sample i, with an image that is the caller's to change. Called by several threads at once. IndexError when i is not in 0 .. size() - 1.
  virtual Sample get(int64_t i) const = 0;
  // get(i).group, without reading the picture.
  virtual std::string group(int64_t i) const = 0;

 protected:
  void check_index(int64_t i, const char* name) const;
};
using DatasetPtr = std::shared_ptr<const Dataset>;

// Some samples of another set, in the given order.
class Subset : public Dataset {
 public:
  Subset(DatasetPtr whole, std::vector<int64_t> indices);
  int64_t size() const override { return static_cast<int64_t>(indices_.size()); }
  Sample get(int64_t i) const override;
  std::string group(int64_t i) const override;
  const std::vector<int64_t>& indices() const { return indices_; }

 private:
  DatasetPtr whole_;
  std::vector<int64_t> indices_;
};

struct Split {
  std::shared_ptr<const Subset> training, held_out;
};
// Whole groups, drawn by `seed`, are held out until they make up at least `fraction` of the samples; both parts keep the order of the whole.
// ValueError if either part would be empty.
Split split_by_group(const DatasetPtr& whole, double fraction, uint64_t seed);
// round(fraction * size) samples, drawn by `seed`, are held out.
Split split_at_random(const DatasetPtr& whole, double fraction, uint64_t seed);

// Pictures of one size in memory, for example those of MNIST and CIFAR-10.
class ImageArray : public Dataset {
 public:
  // images: [N,C,H,W] or [N,H,W] uint8, contiguous. labels: N.
  ImageArray(Tensor images, std::vector<int64_t> labels);
  int64_t size() const override { return static_cast<int64_t>(labels_.size()); }
  Sample get(int64_t i) const override;
  std::string group(int64_t) const override { return ""; }
  const Tensor& images() const { return images_; }
  const std::vector<int64_t>& labels() const { return labels_; }

 private:
  Tensor images_;
  std::vector<int64_t> labels_;
};

// Lines first .. first + size - 1 of a stream of drawn handwriting.
class SyntheticLines : public Dataset {
 public:
  SyntheticLines(SyntheticHandwritingOptions options, uint64_t seed, int64_t size = int64_t{1} << 40, int64_t first = 0);
  int64_t size() const override { return size_; }
  Sample get(int64_t i) const override;
  std::string group(int64_t) const override { return ""; }

 private:
  SyntheticHandwritingOptions options_;
  uint64_t seed_;
  int64_t size_, first_;
};

// Changes a sample, drawing what it needs from the stream.
using Transform = std::function<void(Sample&, RandomStream&)>;

Transform compose(std::vector<Transform> transforms);                    // one after the other
Transform encode_text(Alphabet alphabet);                                // target = alphabet.encode(text)
Transform invert();                                                       // 1 - image: ink on paper becomes light on dark, so that padding with 0 is paper
Transform normalise(std::vector<float> mean, std::vector<float> deviation);      // (image - mean) / deviation, one value a channel
// Keeps the ratio of the sides; averages over the source pixels under each pixel. FileError, naming the sample, when it would be wider than max_width.
Transform resize_to_height(int64_t height, int64_t max_width = int64_t{1} << 20);
Transform resize_to(int64_t height, int64_t width);

// [C,H,W] float32 to [C,height,width]: bilinear when growing, the mean of the covered area when shrinking (a triangle as wide as the step).
Tensor resize_image(const Tensor& image, int64_t height, int64_t width);

}  // namespace fovea::data
