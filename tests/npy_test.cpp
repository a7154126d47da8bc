#include <doctest/doctest.h>

#include <fovea/tensor/creation.h>
#include <fovea/tensor/npy.h>

#include "file_cases.h"
#include "source_folder.h"
#include "temporary_folder.h"

using namespace fovea;

namespace {

const std::string files = testing::source_folder() + "/tests/golden/files/";

// A .npy file with this header and so many bytes of elements.
std::vector<uint8_t> npy(const std::string& header, size_t element_bytes, uint8_t version = 1) {
  std::string text = std::string("\x93NUMPY") + static_cast<char>(version) + '\0';
  text += static_cast<char>(header.size() & 0xff);
  text += static_cast<char>(header.size() >> 8);
  if (version > 1) text += std::string(2, '\0');
  text += header + std::string(element_bytes, '\1');
  return {text.begin(), text.end()};
}

}  // namespace

TEST_CASE("npy: every dtype comes back as it was, of every rank") {
  const TemporaryFolder folder;
  for (const DType dtype : {DType::float32, DType::float64, DType::float16, DType::int32, DType::int64, DType::uint8, DType::boolean}) {
    for (const Shape& shape : {Shape{}, Shape{1}, Shape{0}, Shape{5}, Shape{2, 0, 3}, Shape{3, 4}, Shape{1, 2, 1, 2, 1, 2, 1, 2}}) {
      const Tensor x = counting(shape, dtype);
      save_npy(folder / "x.npy", x);
      check_identical(load_npy(folder / "x.npy"), x);
    }
  }
}

TEST_CASE("npy: strided tensors are written in row-major order") {
  const TemporaryFolder folder;
  const Tensor x = counting({3, 4}, DType::float32);
  const Tensor transposed(x.storage(), {4, 3}, {1, 4}, 0, DType::float32);
  save_npy(folder / "x.npy", transposed);
  CHECK(load_npy(folder / "x.npy").to_vector<double>() == std::vector<double>{-3, 1, 5, -2, 2, 6, -1, 3, 7, 0, 4, 8});
}

TEST_CASE("npy: our file of a matrix is NumPy's, byte for byte") {
  const TemporaryFolder folder;
  save_npy(folder / "x.npy", counting({3, 4}, DType::float32));
  CHECK(read_file(folder / "x.npy", "test") == read_file(files + "matrix.npy", "test"));
}

TEST_CASE("npy: NumPy's versions 1, 2 and 3 are read") {
  for (const std::string name : {"matrix", "version2", "version3"}) check_identical(load_npy(files + name + ".npy"), counting({3, 4}, DType::float32));
}

TEST_CASE("npy: bfloat16, which NumPy does not know, is refused with a remedy, and no file is made") {
  const TemporaryFolder folder;
  CHECK_THROWS_WITH_AS(save_npy(folder / "x.npy", counting({2}, DType::bfloat16)), doctest::Contains("convert with to(x, DType::float32)"), DTypeError);
  CHECK(std::filesystem::is_empty(folder.path()));
}

TEST_CASE("npy: a damaged header is refused, and the error says what is wrong") {
  const std::pair<std::string, const char*> cases[] = {
      {"", "expected {"},
      {"{'descr': '<f4', 'fortran_order': False}", "lacks 'shape'"},
      {"{'fortran_order': False, 'shape': (2,)}", "lacks 'descr'"},
      {"{'descr': '<f4', 'shape': (2,)}", "lacks 'fortran_order'"},
      {"{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (2,)}", "a key comes twice"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'x': 1}", "unknown key"},
      {"{'descr': '<f4', 'fortran_order': false, 'shape': (2,)}", "expected True or False"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (2,)} x", "text after the dictionary"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (2,", "expected a number"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (2 2)}", "expected )"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': [2]}", "expected ("},
      {"{'descr': '<f4", "a string without end"},
      {"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,)}", "structured arrays are not supported"},
      {"{'descr': '<f3', 'fortran_order': False, 'shape': (2,)}", "element type '<f3' is not supported"},
      {"{'descr': '<c8', 'fortran_order': False, 'shape': (2,)}", "element type '<c8' is not supported"},
      {"{'descr': '|O', 'fortran_order': False, 'shape': (2,)}", "element type '|O' is not supported"},
      {"{'descr': '<u8', 'fortran_order': False, 'shape': (1,)}", "64-bit unsigned integers"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (-2,)}", "negative size (-2)"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (3,)}", "has 8 bytes of elements, shape [3] needs 12"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", "has 8 bytes of elements, shape [1] needs 4"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296)}", "larger than memory can address"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (0, 9223372036854775807, 9)}", "larger than memory can address"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,)}", "expected a number of 64 bits"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1, 1, 1, 1, 1, 1, 1, 2)}", "more than 8 axes"},
  };
  for (const auto& [header, reason] : cases) {
    const std::string label = header;
    CAPTURE(label);
    CHECK_THROWS_WITH_AS(parse_npy(npy(header, 8), "x.npy"), doctest::Contains(reason), FileError);
    CHECK_THROWS_WITH_AS(parse_npy(npy(header, 8, 2), "x.npy"), doctest::Contains("x.npy: "), FileError);
  }
  CHECK_THROWS_WITH_AS(parse_npy(npy("{}", 8, 4), "x.npy"), doctest::Contains("version 4"), FileError);
}

TEST_CASE("npy: a file cut off anywhere is refused") {
  const std::vector<uint8_t> whole = read_file(files + "matrix.npy", "test");
  for (size_t size = 0; size < whole.size(); ++size) CHECK_THROWS_AS(parse_npy(std::span(whole).first(size), "x"), FileError);
}

TEST_CASE("npy: a bool that is neither 0 nor 1 is true") {
  const Tensor x = parse_npy(npy("{'descr': '|b1', 'fortran_order': False, 'shape': (3,)}", 3), "x");
  CHECK(x.to_vector<uint8_t>() == std::vector<uint8_t>{1, 1, 1});
  std::vector<uint8_t> file = npy("{'descr': '|b1', 'fortran_order': False, 'shape': (3,)}", 3);
  file.back() = 0xff;
  CHECK(*parse_npy(file, "x").view().as<uint8_t>() == 1);
  CHECK(parse_npy(file, "x").view().as<uint8_t>()[2] == 1);
}

TEST_CASE("npy: errors of reading and writing name the path") {
  const TemporaryFolder folder;
  CHECK_THROWS_WITH_AS(load_npy(folder / "none.npy"), doctest::Contains("none.npy: No such file"), FileError);
  CHECK_THROWS_WITH_AS(save_npy(folder / "no/x.npy", zeros({1})), doctest::Contains("no/x.npy: No such file"), FileError);
}
