// The readers of public formats: on tiny files made here, on damaged ones, and on the real sets where they are there.
#include <doctest/doctest.h>

#include <filesystem>
#include <set>

#include <fovea/data/box_csv.h>
#include <fovea/data/cifar10.h>
#include <fovea/data/idx.h>
#include <fovea/data/image.h>
#include <fovea/data/image_folder.h>
#include <fovea/data/line_folder.h>
#include <fovea/tensor/creation.h>
#include <fovea/tensor/file.h>

#include "messages.h"
#include "source_folder.h"
#include "temporary_folder.h"

using namespace fovea;
using namespace fovea::data;
using fovea::testing::contains;
using fovea::testing::error_of;

namespace {

void write(const std::string& path, std::span<const uint8_t> bytes) {
  std::filesystem::create_directories(std::filesystem::path(path).parent_path());
  AtomicFile file(path, "test");
  file.write(bytes);
  file.commit();
}

void write_text(const std::string& path, const std::string& text) { write(path, std::span(reinterpret_cast<const uint8_t*>(text.data()), text.size())); }

void write_picture(const std::string& path, int64_t width, int64_t height, uint8_t grey) {
  write(path, encode_png({width, height, 1, std::vector<uint8_t>(static_cast<size_t>(width * height), grey)}));
}

// The folder of a real set, or nothing, with a notice.
std::string shared_data(const std::string& name) {
  const std::string folder = testing::source_folder() + "/../shared/data/" + name;
  if (std::filesystem::is_directory(folder)) return folder;
  MESSAGE("skipped: ", folder, " is not there");
  return "";
}

std::vector<uint8_t> idx_bytes(uint8_t type, const std::vector<uint32_t>& sizes, const std::vector<uint8_t>& values) {
  std::vector<uint8_t> bytes = {0, 0, type, static_cast<uint8_t>(sizes.size())};
  for (const uint32_t size : sizes)
    for (int shift = 24; shift >= 0; shift -= 8) bytes.push_back(static_cast<uint8_t>(size >> shift));
  bytes.insert(bytes.end(), values.begin(), values.end());
  return bytes;
}

}  // namespace

TEST_CASE("idx: sizes and values of every type that can be read") {
  const Tensor bytes = decode_idx(idx_bytes(0x08, {2, 3}, {1, 2, 3, 4, 5, 255}), "a");
  CHECK(bytes.shape() == Shape{2, 3});
  CHECK(bytes.to_vector<int64_t>() == std::vector<int64_t>{1, 2, 3, 4, 5, 255});
  const Tensor ints = decode_idx(idx_bytes(0x0C, {2}, {0, 0, 1, 2, 255, 255, 255, 254}), "a");
  CHECK(ints.dtype() == DType::int32);
  CHECK(ints.to_vector<int64_t>() == std::vector<int64_t>{258, -2});
  CHECK(decode_idx(idx_bytes(0x09, {2}, {255, 3}), "a").to_vector<int64_t>() == std::vector<int64_t>{-1, 3});
  CHECK(decode_idx(idx_bytes(0x0B, {2}, {1, 2, 255, 254}), "a").to_vector<int64_t>() == std::vector<int64_t>{258, -2});
  CHECK(decode_idx(idx_bytes(0x0D, {1}, {0x3F, 0xC0, 0, 0}), "a").item<float>() == 1.5f);
  CHECK(decode_idx(idx_bytes(0x0E, {1}, {0xBF, 0xF8, 0, 0, 0, 0, 0, 0}), "a").item<double>() == -1.5);
  CHECK(decode_idx(idx_bytes(0x08, {0, 28, 28}, {}), "a").shape() == Shape{0, 28, 28});
}

TEST_CASE("idx: cut, oversized and hostile files are errors before anything is allocated") {
  const std::vector<uint8_t> whole = idx_bytes(0x08, {2, 3}, {1, 2, 3, 4, 5, 6});
  for (size_t size = 0; size < whole.size(); ++size) CHECK_THROWS_AS(decode_idx(std::span(whole).first(size), "a"), FileError);
  std::vector<uint8_t> longer = whole;
  longer.push_back(0);
  CHECK_THROWS_WITH_AS(decode_idx(longer, "a.idx"), doctest::Contains("a.idx: shape [2,3] does not fit 7 bytes"), FileError);
  CHECK_THROWS_AS(decode_idx(idx_bytes(0x08, {0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF}, {1}), "a"), FileError);
  CHECK_THROWS_AS(decode_idx(idx_bytes(0x08, {1, 1, 1, 1, 1, 1, 1, 1, 1}, {1}), "a"), FileError);
  CHECK_THROWS_AS(decode_idx(idx_bytes(0x08, {}, {1}), "a"), FileError);
  CHECK_THROWS_WITH_AS(decode_idx(idx_bytes(0x0A, {1}, {0, 1}), "a"), doctest::Contains("IDX type 10 is unknown"), FileError);
}

TEST_CASE("idx: pictures and labels must go together") {
  const TemporaryFolder folder;
  write(folder / "train-images-idx3-ubyte", idx_bytes(0x08, {2, 1, 2}, {0, 255, 51, 0}));
  write(folder / "train-labels-idx1-ubyte", idx_bytes(0x08, {2}, {7, 3}));
  const auto mnist = read_mnist(folder.path(), true);
  CHECK(mnist->size() == 2);
  CHECK(mnist->get(1).image.to_vector<float>() == std::vector<float>{0.2f, 0});
  CHECK(mnist->get(1).label == 3);
  write(folder / "train-labels-idx1-ubyte", idx_bytes(0x08, {3}, {7, 3, 1}));
  CHECK_THROWS_WITH_AS(read_mnist(folder.path(), true), doctest::Contains("has 3 labels"), FileError);
  CHECK_THROWS_WITH_AS(read_mnist(folder.path(), false), doctest::Contains("t10k-images-idx3-ubyte.gz"), FileError);
}

TEST_CASE("cifar-10: records in several files; damaged ones are errors") {
  const TemporaryFolder folder;
  std::vector<uint8_t> record(3073, 9);
  record[1 + 1024 + 33] = 200;
  write(folder / "a.bin", record);
  record[0] = 4;
  write(folder / "b.bin", record);
  const auto images = read_cifar10({folder / "a.bin", folder / "b.bin"});
  CHECK(images->images().shape() == Shape{2, 3, 32, 32});
  CHECK(images->labels() == std::vector<int64_t>{9, 4});
  CHECK(images->get(0).image.data<float>()[1024 + 33] == 200 / 255.0f);
  record[0] = 10;
  write(folder / "b.bin", record);
  CHECK_THROWS_WITH_AS(read_cifar10({folder / "b.bin"}), doctest::Contains("record 0 has label 10"), FileError);
  record.pop_back();
  write(folder / "b.bin", record);
  CHECK_THROWS_WITH_AS(read_cifar10({folder / "b.bin"}), doctest::Contains("3072 bytes, expected a multiple of 3073"), FileError);
  write(folder / "b.bin", {});
  CHECK_THROWS_AS(read_cifar10({folder / "b.bin"}), FileError);
}

TEST_CASE("image folder: classes and pictures in the order of their names, other files left out") {
  const TemporaryFolder folder;
  write_picture(folder / "dog/2.png", 4, 3, 51);
  write_picture(folder / "dog/1.PNG", 4, 3, 102);
  write_picture(folder / "cat/9.png", 4, 3, 255);
  write_text(folder / "cat/notes.txt", "no picture");
  write_text(folder / "README", "no class");
  const ImageFolder images(folder.path(), 1);
  CHECK(images.classes() == std::vector<std::string>{"cat", "dog"});
  CHECK(images.size() == 3);
  CHECK(images.get(0).label == 0);
  CHECK(images.get(1).image.data<float>()[0] == 0.4f);
  CHECK(images.get(2).label == 1);
  CHECK(ImageFolder(folder.path()).get(0).image.shape() == Shape{3, 3, 4});
  CHECK_THROWS_AS(images.get(3), IndexError);
  CHECK_THROWS_AS(ImageFolder(folder / "dog"), FileError);
  CHECK_THROWS_AS(ImageFolder(folder / "none"), FileError);
  write_text(folder / "cat/a.png", "broken");
  CHECK_THROWS_WITH_AS(ImageFolder(folder.path()).get(1), doctest::Contains("a.png"), FileError);
}

TEST_CASE("box csv: boxes gather under their picture, labels are the same for every split") {
  const TemporaryFolder folder;
  const std::string heading = "file,width,height,class,xmin,ymin,xmax,ymax,split\n";
  write_picture(folder / "a.png", 8, 6, 255);
  write_text(folder / "boxes.csv", heading + "a.png,8,6,WBC,0.5,1,8,6,train\nb.png,8,6,RBC,1,1,2,2,val\r\n\na.png,8,6,RBC,1,1,2,2,train\n");
  const BoxImages all(folder / "boxes.csv", folder.path()), training(folder / "boxes.csv", folder.path(), "train");
  CHECK(all.size() == 2);
  CHECK(training.size() == 1);
  CHECK(training.classes() == std::vector<std::string>{"RBC", "WBC"});
  const Sample sample = training.get(0);
  CHECK(sample.image.shape() == Shape{3, 6, 8});
  REQUIRE(sample.boxes.size() == 2);
  CHECK(sample.boxes[0].left == 0.5f);
  CHECK(sample.boxes[0].label == 1);
  CHECK(sample.boxes[1].label == 0);
  CHECK_THROWS_AS(all.get(1), FileError);       // b.png is not there
  CHECK_THROWS_AS(BoxImages(folder / "boxes.csv", folder.path(), "test"), FileError);
  const auto refuse = [&](const std::string& text, const char* message) {
    write_text(folder / "bad.csv", text);
    CHECK_THROWS_WITH_AS(BoxImages(folder / "bad.csv", folder.path()), doctest::Contains(message), FileError);
  };
  refuse(heading + "a.png,8,6,RBC,1,1,9,2,train\n", "line 2: the box 1,1 .. 9,2 is empty or not within 8 x 6");
  refuse(heading + "a.png,8,6,RBC,1,1,nan,2,train\n", "line 2: xmax is \"nan\", expected a number");
  refuse(heading + "a.png,8,6,RBC,1,1,1e999,2,train\n", "expected a number");
  refuse(heading + "a.png,8,6,RBC,1,1,2\n", "line 2: has 7 fields, expected 9");
  refuse("file,class\na.png,RBC\n", "has no column \"width\", only file, class");
  refuse("", "is empty, expected a heading line");
  refuse(heading, "has no boxes");
}

TEST_CASE("line folder: texts, groups and alphabet") {
  const TemporaryFolder folder;
  write_picture(folder / "0.png", 40, 12, 255);
  write_text(folder / "lines.tsv", "file\tpage\tline_no\thand\ttext\n0.png\tp1\t1\tann\tl\u2019\u00E9t\u00E9\n1.png\tp2\t1\tann\tb \"c\"\n");
  const LineFolder pages(folder.path()), hands(folder.path(), LineGroup::hand);
  CHECK(pages.size() == 2);
  CHECK(pages.group(1) == "p2");
  CHECK(hands.group(1) == "ann");
  CHECK(pages.alphabet().characters() == " \"bclt\u00E9\u2019");
  const Sample sample = pages.get(0);
  CHECK(sample.image.shape() == Shape{1, 12, 40});
  CHECK(sample.text == "l\u2019\u00E9t\u00E9");
  CHECK(sample.group == "p1");
  CHECK_THROWS_WITH_AS(pages.get(1), doctest::Contains("1.png"), FileError);
  write_text(folder / "lines.tsv", "file\tpage\tline_no\thand\ttext\n0.png\tp1\t1\tann\ta\xFF\n");
  CHECK_THROWS_WITH_AS(LineFolder(folder.path()), doctest::Contains("line 2: the text is not UTF-8"), FileError);
  write_text(folder / "lines.tsv", "file\tpage\tline_no\thand\ttext\n0.png\tp1\t1\tann\t\n");
  CHECK_THROWS_WITH_AS(LineFolder(folder.path()), doctest::Contains("line 2: the text is empty"), FileError);
  write_text(folder / "lines.tsv", std::string("file\tpage\tline_no\thand\ttext\n0.png\0x\tp1\t1\tann\ta\n", 47));
  CHECK_THROWS_WITH_AS(LineFolder(folder.path()), doctest::Contains("line 2: the file name is cut by a NUL byte"), FileError);
  CHECK_THROWS_AS(LineFolder(folder / "none"), FileError);
  write_text(folder / "lines.tsv", std::string(100000, 'x') + "\n");      // no table: its heading is not quoted in full
  const std::string error = error_of([&] { LineFolder(folder.path()); });
  CHECK(contains(error, "has no column \"file\", only xxx"));
  CHECK(error.size() < 400);
}

TEST_CASE("real data: MNIST") {
  const std::string folder = shared_data("mnist");
  if (folder.empty()) return;
  const auto training = read_mnist(folder, true), test = read_mnist(folder, false);
  CHECK(training->size() == 60000);
  CHECK(test->size() == 10000);
  CHECK(training->get(0).image.shape() == Shape{1, 28, 28});
  CHECK(std::vector<int64_t>(training->labels().begin(), training->labels().begin() + 5) == std::vector<int64_t>{5, 0, 4, 1, 9});
  double sum = 0;
  const uint8_t* pixels = training->images().data<uint8_t>();
  for (int64_t i = 0; i < training->images().numel(); ++i) sum += pixels[i];
  CHECK(sum / static_cast<double>(training->images().numel()) / 255 == doctest::Approx(0.1307).epsilon(0.001));
}

TEST_CASE("real data: CIFAR-10, sign digits, blood cells and handwriting lines") {
  if (const std::string folder = shared_data("cifar10_subset"); !folder.empty()) {
    const auto images = read_cifar10({folder + "/test_1000.bin.gz"});
    CHECK(images->size() == 1000);
    for (int64_t i = 0; i < 1000; ++i) CHECK(images->labels()[static_cast<size_t>(i)] == i % 10);
  }
  if (const std::string folder = shared_data("sign_digits"); !folder.empty()) {
    const ImageFolder images(folder, 1);
    CHECK(images.size() == 1649);
    CHECK(images.classes().size() == 10);
    CHECK(images.get(1648).image.shape() == Shape{1, 64, 64});
  }
  if (const std::string folder = shared_data("bccd"); !folder.empty()) {
    const BoxImages images(folder + "/boxes.csv", folder + "/images", "train");
    CHECK(images.size() == 205);
    CHECK(images.classes() == std::vector<std::string>{"Platelets", "RBC", "WBC"});
    CHECK(images.get(0).image.shape() == Shape{3, 120, 160});
  }
  if (const std::string folder = shared_data("handwriting_lines"); !folder.empty()) {
    const auto notebook = std::make_shared<LineFolder>(folder + "/notebook_fr");
    CHECK(notebook->size() == 1705);
    CHECK(notebook->alphabet().size() == 107);
    CHECK(notebook->get(17).image.size(1) == 48);
    const Split split = split_by_group(notebook, 0.1, 1);
    CHECK(split.held_out->size() >= 171);
    const LineFolder wills(folder + "/wills_fr", LineGroup::hand);
    std::set<std::string> hands;
    for (int64_t i = 0; i < wills.size(); ++i) hands.insert(wills.group(i));
    CHECK(hands.size() == 113);
  }
}
