#include <doctest/doctest.h>

#include <cmath>
#include <functional>

#include <fovea/data/image.h>
#include <fovea/kernels/error.h>
#include <fovea/tensor/creation.h>
#include <fovea/tensor/file.h>
#include <fovea/tensor/image_file.h>

#include "temporary_folder.h"

using namespace fovea;

namespace {

ImageBytes gradient(int64_t width, int64_t height, int64_t channels) {
  ImageBytes image{width, height, channels, {}};
  for (int64_t i = 0; i < width * height * channels; ++i) image.pixels.push_back(static_cast<uint8_t>(i * 7 + i / 50));
  return image;
}

std::vector<uint8_t> cut(std::vector<uint8_t> bytes, size_t size) { bytes.resize(size); return bytes; }

void put_big_endian_32(std::vector<uint8_t>& bytes, size_t at, uint32_t value) {
  for (size_t i = 0; i < 4; ++i) bytes[at + i] = static_cast<uint8_t>(value >> (24 - 8 * i));
}

std::string message_of(const std::function<void()>& f) {
  try { f(); } catch (const FileError& e) { return e.what(); }
  return "no FileError";
}

}  // namespace

TEST_CASE("png: what is written is read back byte for byte, for 1 to 4 channels and odd sizes") {
  const TemporaryFolder folder;
  for (int64_t channels = 1; channels <= 4; ++channels)
    for (auto [width, height] : {std::pair<int64_t, int64_t>{1, 1}, {7, 3}, {64, 33}}) {
      const ImageBytes image = gradient(width, height, channels);
      write_image_bytes(folder / "a.png", image);
      const ImageBytes read = read_image_bytes(folder / "a.png");
      CHECK(read.width == width);
      CHECK(read.height == height);
      CHECK(read.channels == channels);
      CHECK(read.pixels == image.pixels);
    }
}

TEST_CASE("jpeg: a smooth picture comes back nearly the same") {
  ImageBytes image{40, 24, 3, {}};
  for (int64_t y = 0; y < 24; ++y)
    for (int64_t x = 0; x < 40; ++x)
      for (int64_t c = 0; c < 3; ++c) image.pixels.push_back(static_cast<uint8_t>(x * 3 + y * 2 + c * 20));
  const ImageBytes read = decode_image(encode_jpeg(image, 95), "a.jpg");
  REQUIRE(read.pixels.size() == image.pixels.size());
  int worst = 0;
  for (size_t i = 0; i < image.pixels.size(); ++i) worst = std::max(worst, std::abs(int{read.pixels[i]} - int{image.pixels[i]}));
  CHECK(worst <= 12);
}

TEST_CASE("bmp: rows from the bottom and the order of colours are undone") {
  // 2 x 2, 24 bits: bottom row blue, green; top row red, white; each row filled up to 8 bytes.
  std::vector<uint8_t> bmp = {'B', 'M', 70, 0, 0, 0, 0, 0, 0, 0, 54, 0, 0, 0, 40, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 1, 0, 24, 0, 0, 0, 0, 0, 16, 0, 0, 0};
  bmp.resize(54);
  for (int v : {255, 0, 0, 0, 255, 0, 0, 0, 0, 0, 255, 255, 255, 255, 0, 0}) bmp.push_back(static_cast<uint8_t>(v));
  const ImageBytes image = decode_image(bmp, "a.bmp");
  CHECK(image.pixels == std::vector<uint8_t>{255, 0, 0, 255, 255, 255, 0, 0, 255, 0, 255, 0});
  const ImageBytes grey = decode_image(bmp, "a.bmp", 1);
  CHECK(grey.pixels[1] == 255);
  CHECK(grey.pixels[0] < grey.pixels[3]);       // red is darker than green
}

TEST_CASE("image files: a picture cut off anywhere is an error or a picture, never more") {
  for (const std::vector<uint8_t>& whole : {encode_png(gradient(31, 17, 3)), encode_jpeg(gradient(31, 17, 3))})
    for (size_t size = 0; size < whole.size(); size += 3) {
      try {
        const ImageBytes image = decode_image(cut(whole, size), "cut");       // a JPEG may end early
        CHECK(image.pixels.size() == 31 * 17 * 3);
      } catch (const FileError& e) {
        CHECK(std::string(e.what()).starts_with("cut: "));
      }
    }
  CHECK_THROWS_AS(decode_image(cut(encode_png(gradient(31, 17, 3)), 100), "cut"), FileError);
}

TEST_CASE("image files: a header that claims a huge picture is refused before it is decoded") {
  std::vector<uint8_t> png = encode_png(gradient(8, 8, 1));
  put_big_endian_32(png, 16, 20000);
  put_big_endian_32(png, 20, 20000);
  const std::string message = message_of([&] { decode_image(png, "huge.png"); });
  CHECK(message.find("huge.png") != std::string::npos);
  CHECK(message.find("20000 x 20000") != std::string::npos);
  put_big_endian_32(png, 16, 0x7FFFFFFF);
  CHECK_THROWS_AS(decode_image(png, "huge.png"), FileError);
}

TEST_CASE("image files: data that unpacks to far more than the header's size is refused") {
  // A large black picture packs well; its header is then changed to one pixel.
  std::vector<uint8_t> png = encode_png(ImageBytes{8000, 4000, 1, std::vector<uint8_t>(8000 * 4000)});
  put_big_endian_32(png, 16, 1);
  put_big_endian_32(png, 20, 1);
  CHECK_THROWS_AS(decode_image(png, "bomb.png"), FileError);
}

TEST_CASE("image files: flipped bits never crash the reader") {
  const ImageLimits small{1 << 16, 1 << 20};
  for (const std::vector<uint8_t>& whole : {encode_png(gradient(20, 20, 3)), encode_jpeg(gradient(20, 20, 3))})
    for (size_t at = 0; at < whole.size(); ++at) {
      std::vector<uint8_t> damaged = whole;
      damaged[at] ^= static_cast<uint8_t>(1 << (at % 8));
      try { decode_image(damaged, "damaged", 0, small); } catch (const FileError&) {}
    }
}

TEST_CASE("jpeg: a code table with more than 256 codes is refused before it is decoded") {
  std::vector<uint8_t> jpeg = encode_jpeg(gradient(8, 8, 1));
  size_t table = 0;
  while (jpeg[table] != 0xFF || jpeg[table + 1] != 0xC4) ++table;
  jpeg[table + 6] = 255;
  jpeg[table + 7] = 255;
  CHECK(message_of([&] { decode_image(jpeg, "codes.jpg"); }).find("Huffman") != std::string::npos);
}

TEST_CASE("image files: errors name the path and the reason") {
  const TemporaryFolder folder;
  CHECK(message_of([&] { read_image_bytes(folder / "none.png"); }).find("none.png: No such file") != std::string::npos);
  CHECK(message_of([&] { read_image_bytes(folder.path()); }).find("is a folder") != std::string::npos);
  CHECK(message_of([&] { write_image_bytes(folder / "a.gif", gradient(2, 2, 1)); }).find(".png, .jpg or .jpeg") != std::string::npos);
  CHECK(message_of([&] { write_image_bytes(folder / "no/such/a.png", gradient(2, 2, 1)); }).find("No such file") != std::string::npos);
  CHECK_THROWS_AS(encode_png(ImageBytes{2, 2, 1, {1, 2, 3}}), ShapeError);
  CHECK_THROWS_AS(encode_png(ImageBytes{}), ShapeError);
  CHECK_THROWS_AS(encode_jpeg(gradient(2, 2, 4)), ShapeError);
  AtomicFile text(folder / "text.png", "test");
  text.write(std::string("not a picture"));
  text.commit();
  CHECK(message_of([&] { read_image_bytes(folder / "text.png"); }).find("not a PNG, JPEG or BMP picture") != std::string::npos);
}

TEST_CASE("image tensors: [channels, height, width], both ways, uint8 and float") {
  const TemporaryFolder folder;
  const ImageBytes image = gradient(5, 4, 3);
  const Tensor bytes = image_to_uint8(image), real = image_to_float(image);
  CHECK(bytes.shape() == Shape{3, 4, 5});
  CHECK(bytes.data<uint8_t>()[1 * 20 + 2 * 5 + 3] == image.pixels[(2 * 5 + 3) * 3 + 1]);
  CHECK(real.data<float>()[2 * 20 + 1] == image.pixels[1 * 3 + 2] / 255.0f);
  CHECK(image_from_tensor(bytes).pixels == image.pixels);
  CHECK(image_from_tensor(real).pixels == image.pixels);
  data::write_image(folder / "a.png", real);
  CHECK(data::read_image(folder / "a.png").to_vector<uint8_t>() == bytes.to_vector<uint8_t>());
  CHECK(data::read_image_float(folder / "a.png").to_vector<float>() == real.to_vector<float>());
  CHECK(data::read_image(folder / "a.png", 1).shape() == Shape{1, 4, 5});
}

TEST_CASE("image tensors: values outside 0 .. 1 are clamped, views are followed, other tensors refused") {
  const Tensor x = from_vector(std::vector<float>{-1, 0.5f, 2, NAN, 1, 0}, {2, 3});
  CHECK(image_from_tensor(x).pixels == std::vector<uint8_t>{0, 128, 255, 0, 255, 0});
  const Tensor turned(x.storage(), {3, 2}, {1, 3}, 0, DType::float32);
  CHECK(image_from_tensor(turned).pixels == std::vector<uint8_t>{0, 0, 128, 255, 255, 0});
  CHECK_THROWS_AS(image_from_tensor(zeros({5, 4, 4})), ShapeError);
  CHECK_THROWS_AS(image_from_tensor(zeros({4})), ShapeError);
  CHECK_THROWS_AS(image_from_tensor(zeros({4, 4}, DType::int64)), DTypeError);
}

TEST_CASE("jpeg: a table that is too long is found wherever stb would find it") {
  const std::vector<uint8_t> counts(16, 255);
  const auto with_table = [&](const std::vector<uint8_t>& start, uint8_t length) {
    std::vector<uint8_t> bytes = start;
    for (const int byte : {0xFF, 0xC4, 0x00, int{length}, 0x00}) bytes.push_back(static_cast<uint8_t>(byte));
    bytes.insert(bytes.end(), counts.begin(), counts.end());
    bytes.resize(bytes.size() + 5000);
    return bytes;
  };
  for (const std::vector<uint8_t>& start : {std::vector<uint8_t>{0xFF, 0xD8}, {0xFF, 0xFF, 0xFF, 0xD8}, {0xFF, 0xD8, 0xFF, 0xFE, 0, 5, 1, 2, 3},
                                            {0xFF, 0xD8, 0xFF, 0xFE, 0, 2, 7, 7, 0xFF, 0xFF}})
    for (const uint8_t length : {19, 3}) {      // the second one ends before its counts do
      const auto bytes = with_table(start, length);
      CHECK(message_of([&] { decode_image(bytes, "codes.jpg"); }).find("Huffman") != std::string::npos);
    }
}
