#include <doctest/doctest.h>

#include <fstream>
#include <limits>
#include <map>
#include <sstream>

#include <fovea/autograd/shape.h>
#include <fovea/tensor/npz.h>
#include <fovea/tensor/print.h>

#include "file_cases.h"
#include "source_folder.h"

using namespace fovea;

namespace {

const std::string golden = testing::source_folder() + "/tests/golden/";

// "NAME PRECISION" -> what NumPy printed
std::map<std::string, std::string> numpy_texts() {
  std::map<std::string, std::string> texts;
  std::ifstream file(golden + "print.txt");
  std::string line, key;
  while (std::getline(file, line)) {
    if (line.starts_with("# ")) key = line.substr(2);
    else texts[key] += (texts[key].empty() ? "" : "\n") + line;
  }
  return texts;
}

std::string streamed(const Tensor& x) {
  std::ostringstream out;
  out << x;
  return out.str();
}

}  // namespace

TEST_CASE("print: every array looks as NumPy prints it") {
  const NamedTensors arrays = load_npz(golden + "print.npz");
  std::map<std::string, std::string> texts = numpy_texts();
  CHECK(texts.size() == 2 * arrays.size());
  for (const auto& [name, x] : arrays) {
    for (const int precision : {4, 8}) {
      const std::string label = name;
      CAPTURE(label);
      std::string expected = texts.at(str(name, ' ', precision));
      if (x.dtype() != DType::float32) expected += str(' ', x.dtype());
      CHECK(to_string(x, {.precision = precision}) == expected);
    }
  }
}

TEST_CASE("print: views show what they show, not what lies in memory") {
  const Tensor x = counting({2, 3}, DType::float32);
  CHECK(streamed(x) == "[[-3. -2. -1.]\n [ 0.  1.  2.]]");
  CHECK(streamed(transpose(x)) == "[[-3.  0.]\n [-2.  1.]\n [-1.  2.]]");
  CHECK(streamed(flip(select(x, 0, 1), {0})) == "[2. 1. 0.]");
  CHECK(streamed(expand(scalar(7), {3})) == "[7. 7. 7.]");
}

TEST_CASE("print: bfloat16 shows as many digits as it has") {
  CHECK(streamed(to(tensor({0.1, 3.140625, -2}), DType::bfloat16)) == "[ 0.1   3.14 -2.  ] bfloat16");
  CHECK(streamed(to(tensor({0.1}), DType::float16)) == "[0.1] float16");
}

TEST_CASE("print: tensors without elements or data say what they are") {
  CHECK(streamed(Tensor()) == "undefined");
  CHECK(streamed(empty({0})) == "[]");
  CHECK(streamed(empty({0, 3})) == "[] [0,3]");
  CHECK(streamed(empty({2, 0}, DType::int64)) == "[] int64 [2,0]");
  CHECK(streamed(empty({2, 3}, Device::meta())) == "meta [2,3]");
}

TEST_CASE("print: options change the threshold, the edges and the width") {
  const Tensor x = to(arange(10), DType::float32);
  CHECK(to_string(x, {.threshold = 5}) == "[0. 1. 2. ... 7. 8. 9.]");
  CHECK(to_string(x, {.threshold = 5, .edge_items = 1}) == "[0. ... 9.]");
  CHECK(to_string(x, {.threshold = 5, .edge_items = 0}) == "[...]");
  CHECK(to_string(x, {.threshold = 5, .edge_items = 5}) == "[0. 1. 2. 3. 4. 5. 6. 7. 8. 9.]");
  CHECK(to_string(x, {.line_width = 12}) == "[0. 1. 2.\n 3. 4. 5.\n 6. 7. 8.\n 9.]");
  CHECK(to_string(tensor({1.25, 2}), {.precision = 0}) == "[1. 2.]");
  CHECK_THROWS_AS(to_string(x, {.precision = -1}), ValueError);
}

TEST_CASE("print: to_text gives the shortest text that reads back as the same number") {
  CHECK(to_text(0.1f) == "0.1");
  CHECK(to_text(0.1) == "0.1");
  CHECK(to_text(static_cast<double>(0.1f)) == "0.10000000149011612");
  CHECK(to_text(std::numeric_limits<double>::quiet_NaN()) == "nan");
  CHECK(to_text(-std::numeric_limits<float>::infinity()) == "-inf");
}
