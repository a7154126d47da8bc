#include <doctest/doctest.h>

#include <atomic>
#include <cmath>
#include <map>
#include <set>

#include <fovea/data/loader.h>
#include <fovea/tensor/creation.h>

using namespace fovea;
using namespace fovea::data;

namespace {

// Sample i is a picture of i everywhere, 1 x 2 x (3 + 7 i mod 11), in the group i / 5.
class Numbers : public Dataset {
 public:
  explicit Numbers(int64_t size) : size_(size) {}
  int64_t size() const override { return size_; }
  std::string group(int64_t i) const override { return str("group ", i / 5); }
  Sample get(int64_t i) const override {
    check_index(i, "Numbers");
    if (i == failing) throw FileError("sample is damaged");
    Sample sample;
    sample.image = full({1, 2, 3 + 7 * i % 11}, static_cast<double>(i));
    sample.label = i;
    sample.text = str(i);
    sample.target.assign(static_cast<size_t>(i % 4), i);
    sample.group = group(i);
    return sample;
  }
  std::atomic<int64_t> failing{-1};

 private:
  int64_t size_;
};

// Everything a loader gives over some epochs, as one text to compare.
std::string read_all(DataLoader& loader, int64_t epochs, int64_t most_batches = 1 << 30) {
  std::string text;
  for (int64_t batches = 0; loader.position().epoch < epochs && batches < most_batches; ++batches) {
    const std::optional<Batch> batch = loader.next();
    if (!batch) {
      text += "end\n";
      --batches;
      continue;
    }
    for (const int64_t i : batch->indices) text += str(i, " ");
    text += str(batch->images.shape(), batch->images.data<float>()[0], "\n");
  }
  return text;
}

Transform add_noise() {
  return [](Sample& sample, RandomStream& random) { sample.image.mutable_data<float>()[0] = random.uniform(); };
}

}  // namespace

TEST_CASE("loader: the batches are the same for every number of workers") {
  const auto numbers = std::make_shared<Numbers>(53);
  LoaderOptions options{.batch_size = 4, .shuffle = true, .bucket_batches = 3, .seed = 7, .transform = add_noise()};
  std::string expected;
  for (const int workers : {0, 1, 2, 5}) {
    options.workers = workers;
    DataLoader loader(numbers, options);
    const std::string got = read_all(loader, 3);
    if (workers == 0) expected = got;
    CHECK(got == expected);
  }
}

TEST_CASE("loader: from any position on, the batches that would have come do come") {
  const auto numbers = std::make_shared<Numbers>(37);
  const LoaderOptions options{.batch_size = 5, .shuffle = true, .workers = 2, .bucket_batches = 3, .seed = 1, .transform = add_noise()};
  for (int64_t stop = 0; stop < 17; ++stop) {
    DataLoader whole(numbers, options), resumed(numbers, options);
    read_all(whole, 3, stop);
    resumed.seek(whole.position());
    CHECK(read_all(resumed, 3) == read_all(whole, 3));
  }
}

TEST_CASE("loader: an epoch has every sample once, shuffled anew in each, and the same again for the same seed") {
  const auto numbers = std::make_shared<Numbers>(40);
  LoaderOptions options{.batch_size = 7, .shuffle = true, .seed = 3};
  DataLoader loader(numbers, options), same(numbers, options);
  options.seed = 4;
  DataLoader other(numbers, options);
  std::vector<int64_t> epochs[2];
  for (auto& epoch : epochs) {
    while (const auto batch = loader.next()) epoch.insert(epoch.end(), batch->indices.begin(), batch->indices.end());
    CHECK(std::set<int64_t>(epoch.begin(), epoch.end()).size() == 40);
    CHECK(epoch.size() == 40);
  }
  CHECK(epochs[0] != epochs[1]);
  loader.seek({0, 0});
  const std::string first = read_all(loader, 1);
  CHECK(first == read_all(same, 1));
  CHECK(first != read_all(other, 1));
}

TEST_CASE("loader: the order is not shuffled unless asked, and drop_last leaves the rest out") {
  const auto numbers = std::make_shared<Numbers>(10);
  DataLoader all(numbers, {.batch_size = 4});
  CHECK(all.batches_per_epoch() == 3);
  CHECK(all.next()->indices == std::vector<int64_t>{0, 1, 2, 3});
  all.next();
  CHECK(all.next()->indices == std::vector<int64_t>{8, 9});
  CHECK(!all.next());
  CHECK(all.position() == LoaderPosition{1, 0});
  DataLoader full_only(numbers, {.batch_size = 4, .drop_last = true});
  CHECK(full_only.batches_per_epoch() == 2);
  full_only.next();
  full_only.next();
  CHECK(!full_only.next());
  DataLoader none(std::make_shared<Numbers>(0), {});
  CHECK(!none.next());
  CHECK(!none.next());
}

TEST_CASE("loader: bucketing leaves less padding, and no sample out") {
  const auto numbers = std::make_shared<Numbers>(200);
  int64_t padding[2] = {};
  for (const int64_t bucket : {0, 10}) {
    DataLoader loader(numbers, {.batch_size = 8, .shuffle = true, .bucket_batches = bucket});
    std::set<int64_t> seen;
    while (const auto batch = loader.next()) {
      for (const int64_t width : batch->widths.to_vector<int64_t>()) padding[bucket > 0] += batch->images.size(3) - width;
      seen.insert(batch->indices.begin(), batch->indices.end());
    }
    CHECK(seen.size() == 200);
  }
  CHECK(padding[1] * 3 < padding[0]);
}

TEST_CASE("collate: pictures are padded at the right, and lengths, labels and texts go with them") {
  const Numbers numbers(20);
  const Batch batch = collate({numbers.get(1), numbers.get(0), numbers.get(6)}, {1, 0, 6}, -1, 4);
  CHECK(batch.images.shape() == Shape{3, 1, 2, 12});
  CHECK(batch.widths.to_vector<int64_t>() == std::vector<int64_t>{10, 3, 12});
  CHECK(batch.labels.to_vector<int64_t>() == std::vector<int64_t>{1, 0, 6});
  CHECK(batch.targets.to_vector<int64_t>() == std::vector<int64_t>{1, 0, 0, 0, 6, 6});
  CHECK(batch.target_lengths.to_vector<int64_t>() == std::vector<int64_t>{1, 0, 2});
  CHECK(batch.texts == std::vector<std::string>{"1", "0", "6"});
  const float* rows = batch.images.data<float>();
  for (int64_t x = 0; x < 12; ++x) {
    CHECK(rows[x] == (x < 10 ? 1 : -1));
    CHECK(rows[24 + 12 + x] == (x < 3 ? 0 : -1));
    CHECK(rows[48 + x] == 6);
  }
  CHECK(!collate({numbers.get(0)}, {0}).targets.defined());
  Sample tall = numbers.get(3);
  tall.image = zeros({1, 5, 3});
  CHECK_THROWS_WITH_AS(collate({numbers.get(1), tall}, {1, 3}), doctest::Contains("sample 3 is [1,5,3], but sample 1 is [1,2,10]"), ShapeError);
  CHECK_THROWS_AS(collate({}, {}), ValueError);
}

TEST_CASE("loader: an exception of a worker is thrown by next, which can be called again") {
  const auto numbers = std::make_shared<Numbers>(30);
  for (const int workers : {0, 3}) {
    numbers->failing = 13;
    DataLoader loader(numbers, {.batch_size = 4, .workers = workers});
    for (int64_t i = 0; i < 3; ++i) CHECK(loader.next()->indices[0] == 4 * i);
    CHECK_THROWS_WITH_AS(loader.next(), "sample is damaged", FileError);
    CHECK_THROWS_AS(loader.next(), FileError);
    CHECK(loader.position() == LoaderPosition{0, 3});
    numbers->failing = -1;
    CHECK(loader.next()->indices == std::vector<int64_t>{12, 13, 14, 15});
    loader.seek({0, 7});
    CHECK(loader.next()->indices == std::vector<int64_t>{28, 29});
  }
}

TEST_CASE("loader: can be destroyed and moved about while its workers are busy") {
  const auto lines = std::make_shared<SyntheticLines>(SyntheticHandwritingOptions{}, 1);
  for (int i = 0; i < 5; ++i) {
    DataLoader loader(lines, {.batch_size = 4, .workers = 3, .bucket_batches = 4});
    if (i > 0) loader.next();
    if (i > 1) loader.seek({0, 100 * i});
    if (i > 2) CHECK(loader.next()->images.size(0) == 4);
  }
}

TEST_CASE("loader: an endless set goes on, and cannot be shuffled") {
  const auto lines = std::make_shared<SyntheticLines>(SyntheticHandwritingOptions{}, 1);
  DataLoader loader(lines, {.batch_size = 2, .workers = 1, .transform = compose({invert(), encode_text(Alphabet(handwriting_characters()))})});
  loader.seek({0, 1000000});
  const std::optional<Batch> batch = loader.next();
  CHECK(batch->indices == std::vector<int64_t>{2000000, 2000001});
  CHECK(batch->texts[1] == draw_handwriting({}, 1, 2000001).text);
  CHECK(batch->target_lengths.to_vector<int64_t>()[1] == static_cast<int64_t>(batch->texts[1].size()));
  CHECK_THROWS_AS(DataLoader(lines, {.shuffle = true}), ValueError);
}

TEST_CASE("loader: options that cannot be are refused") {
  const auto numbers = std::make_shared<Numbers>(3);
  CHECK_THROWS_AS(DataLoader(nullptr, {}), ValueError);
  CHECK_THROWS_AS(DataLoader(numbers, {.batch_size = 0}), ValueError);
  CHECK_THROWS_AS(DataLoader(numbers, {.workers = -1}), ValueError);
  DataLoader loader(numbers, {.batch_size = 2});
  CHECK_THROWS_AS(loader.seek({0, 3}), IndexError);
  loader.seek({0, 2});
  CHECK(!loader.next());
}

TEST_CASE("split by group: no group is in both parts, and the parts make up the whole") {
  const auto numbers = std::make_shared<Numbers>(103);
  const Split split = split_by_group(numbers, 0.2, 5);
  CHECK(split.held_out->size() >= 21);
  CHECK(split.held_out->size() <= 26);
  CHECK(split.training->size() + split.held_out->size() == 103);
  std::map<std::string, int> part;
  for (const auto& [subset, number] : {std::pair{split.training, 1}, std::pair{split.held_out, 2}})
    for (int64_t i = 0; i < subset->size(); ++i) {
      part[subset->group(i)] |= number;
      CHECK(subset->get(i).label == subset->indices()[static_cast<size_t>(i)]);
    }
  for (const auto& [group, parts] : part) CHECK(parts != 3);
  CHECK(split_by_group(numbers, 0.2, 5).held_out->indices() == split.held_out->indices());
  CHECK(split_by_group(numbers, 0.2, 6).held_out->indices() != split.held_out->indices());
  CHECK_THROWS_AS(split_by_group(std::make_shared<Numbers>(4), 0.5, 1), ValueError);      // one group only
  CHECK_THROWS_AS(split_by_group(numbers, 0, 1), ValueError);
  CHECK_THROWS_AS(split_by_group(numbers, NAN, 1), ValueError);
  CHECK(split_at_random(numbers, 0.2, 1).held_out->size() == 21);
  CHECK_THROWS_AS(Subset(numbers, {103}), IndexError);
  CHECK_THROWS_AS(split.training->get(-1), IndexError);
}

TEST_CASE("image array: bytes become numbers from 0 to 1") {
  const ImageArray images(from_vector(std::vector<uint8_t>{0, 255, 51, 102}, {2, 1, 2}), {4, 9});
  const Sample sample = images.get(1);
  CHECK(sample.image.shape() == Shape{1, 1, 2});
  CHECK(sample.image.to_vector<float>() == std::vector<float>{51 / 255.0f, 102 / 255.0f});
  CHECK(sample.label == 9);
  CHECK_THROWS_AS(images.get(2), IndexError);
  CHECK_THROWS_AS(ImageArray(zeros({2, 1, 2}, DType::uint8), {1}), ShapeError);
  CHECK_THROWS_AS(ImageArray(zeros({1, 1, 2}), {1}), DTypeError);
}

TEST_CASE("resize: a constant stays, a ramp stays a ramp, and shrinking averages") {
  const Tensor flat = resize_image(full({2, 7, 5}, 0.25), 3, 11);
  for (const float v : flat.to_vector<float>()) CHECK(v == doctest::Approx(0.25f));
  const Tensor ramp = resize_image(from_vector(std::vector<float>{0, 1, 2, 3}, {1, 1, 4}), 1, 8);
  const std::vector<float> expected = {0, 0.25f, 0.75f, 1.25f, 1.75f, 2.25f, 2.75f, 3};      // as bilinear with half-pixel centres
  for (int64_t i = 0; i < 8; ++i) CHECK(ramp.data<float>()[i] == doctest::Approx(expected[static_cast<size_t>(i)]));
  std::vector<float> stripes(64);
  for (size_t i = 0; i < 64; ++i) stripes[i] = i % 2;
  const Tensor grey = resize_image(from_vector(stripes, {1, 1, 64}), 1, 16);
  for (int64_t i = 1; i < 15; ++i) CHECK(grey.data<float>()[i] == doctest::Approx(0.5f).epsilon(0.01));
  CHECK_THROWS_AS(resize_image(zeros({1, 0, 4}), 2, 2), ShapeError);
}

TEST_CASE("transforms: inverting, normalising and resizing") {
  RandomStream random(1);
  Sample sample;
  sample.image = from_vector(std::vector<float>{0, 0.25f, 1, 0.5f}, {2, 1, 2});
  compose({invert(), normalise({0.5f, 0}, {0.5f, 2})})(sample, random);
  CHECK(sample.image.to_vector<float>() == std::vector<float>{1, 0.5f, 0, 0.25f});
  CHECK_THROWS_AS(normalise({1}, {1})(sample, random), ShapeError);
  CHECK_THROWS_AS(normalise({1}, {0}), ValueError);
  resize_to_height(3)(sample, random);
  CHECK(sample.image.shape() == Shape{2, 3, 6});
  sample.name = "wide.png";
  CHECK_THROWS_WITH_AS(resize_to_height(30, 59)(sample, random),
                       "wide.png: the picture of 6 x 3 pixels would be 60 pixels wide at a height of 30, at most 59 are taken", FileError);
  CHECK(sample.image.shape() == Shape{2, 3, 6});
  CHECK_THROWS_AS(resize_to_height(3, 5)(sample, random), FileError);      // one that has the height already is no exception
  CHECK_THROWS_AS(resize_to_height(0), ValueError);
  resize_to(2, 2)(sample, random);
  CHECK(sample.image.shape() == Shape{2, 2, 2});
}
