#include <doctest/doctest.h>

#include <fovea/tensor/inflate.h>
#include <fovea/tensor/npz.h>

#include "file_cases.h"
#include "source_folder.h"
#include "temporary_folder.h"

using namespace fovea;

namespace {

const std::string files = testing::source_folder() + "/tests/golden/files/";

// A stored .npz of one array, to be damaged.
std::vector<uint8_t> small_npz() {
  const TemporaryFolder folder;
  save_npz(folder / "x.npz", {{"x", counting({2, 3}, DType::float32)}});
  return read_file(folder / "x.npz", "test");
}

// Where a record with this signature begins.
size_t find(const std::vector<uint8_t>& file, std::vector<uint8_t> signature) {
  return static_cast<size_t>(std::search(file.begin(), file.end(), signature.begin(), signature.end()) - file.begin());
}
size_t local(const std::vector<uint8_t>& file) { return find(file, {'P', 'K', 3, 4}); }
size_t central(const std::vector<uint8_t>& file) { return find(file, {'P', 'K', 1, 2}); }
size_t end_record(const std::vector<uint8_t>& file) { return find(file, {'P', 'K', 5, 6}); }

void put(std::vector<uint8_t>& file, size_t at, uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) file[at + static_cast<size_t>(i)] = static_cast<uint8_t>(value >> (8 * i));
}

void check_refused(const std::vector<uint8_t>& file, const char* reason) {
  CHECK_THROWS_WITH_AS(parse_npz(file, "x.npz"), doctest::Contains(reason), FileError);
}

}  // namespace

TEST_CASE("npz: NumPy's archives, stored and deflated, are read with all types, byte orders and layouts") {
  for (const std::string name : {"stored.npz", "deflated.npz"}) {
    const NamedTensors arrays = load_npz(files + name);
    const std::pair<const char*, DType> types[] = {{"float16", DType::float16}, {"float32", DType::float32}, {"float64", DType::float64}, {"int8", DType::int32},
                                                   {"int16", DType::int32},     {"int32", DType::int32},     {"int64", DType::int64},     {"uint8", DType::uint8},
                                                   {"bool", DType::boolean},    {"big_endian_float32", DType::float32}, {"big_endian_int64", DType::int64},
                                                   {"fortran", DType::float32}};
    for (const auto& [key, dtype] : types) {
      const std::string label = key;
      CAPTURE(label);
      check_identical(arrays[key], counting({2, 3, 4}, dtype));
    }
    check_identical(arrays["fortran_matrix"], counting({3, 5}, DType::int64));
    check_identical(arrays["one_axis"], counting({7}, DType::float64));
    check_identical(arrays["scalar"], scalar(2.5));
    check_identical(arrays["empty"], empty({0, 3}));
    CHECK(arrays["uint16"].dtype() == DType::int32);
    CHECK(arrays["uint32"].dtype() == DType::int64);
    CHECK(arrays["uint32"].data<int64_t>()[23] == 23);
  }
}

TEST_CASE("npz: the order of the archive is kept") {
  const TemporaryFolder folder;
  save_npz(folder / "x.npz", {{"b", zeros({1})}, {"a", ones({2})}, {"ü/c", ones({0})}});
  const NamedTensors loaded = load_npz(folder / "x.npz");
  std::vector<std::string> names;
  for (const auto& [name, tensor] : loaded) names.push_back(name);
  CHECK(names == std::vector<std::string>{"b", "a", "ü/c"});
  check_identical(loaded["a"], ones({2}));
}

TEST_CASE("npz: an archive without arrays is one") {
  const TemporaryFolder folder;
  save_npz(folder / "x.npz", {});
  CHECK(load_npz(folder / "x.npz").empty());
}

TEST_CASE("npz: a comment after the archive is allowed, other bytes are not") {
  std::vector<uint8_t> file = small_npz();
  file.push_back('c');
  check_refused(file, "end record is missing");
  put(file, end_record(file) + 20, 1, 2);
  CHECK(parse_npz(file, "x.npz").size() == 1);
}

TEST_CASE("npz: a file cut off anywhere is refused") {
  const std::vector<uint8_t> whole = small_npz();
  for (size_t size = 0; size < whole.size(); ++size) CHECK_THROWS_AS(parse_npz(std::span(whole).first(size), "x"), FileError);
}

TEST_CASE("npz: each damaged field is refused, and the error says what is wrong") {
  const std::vector<uint8_t> good = small_npz();
  const size_t directory = central(good), end = end_record(good);
  struct Damage { size_t at; uint64_t value; int bytes; const char* reason; };
  const Damage cases[] = {
      {directory, 0, 4, "the directory is damaged"},
      {directory + 8, 1, 2, "[x]: is encrypted"},
      {directory + 10, 12, 2, "compression method 12 is not supported"},
      {directory + 10, 8, 2, "deflate data"},
      {directory + 16, 0x12345678, 4, "the checksum does not match"},
      {directory + 20, 0x7fffffff, 4, "entries overlap"},
      {directory + 24, 5, 4, "its two sizes differ"},
      {directory + 28, 0xffff, 2, "the directory is damaged"},
      {directory + 42, 0x7fffffff, 4, "lies outside the file"},
      {directory + 42, 1, 4, "the entry's header is damaged"},
      {local(good) + 26, 0xffff, 2, "lies outside the file"},
      {end + 10, 2, 2, "too small for its entries"},
      {end + 12, 0x7fffffff, 4, "the directory lies outside the file"},
      {end + 16, 0x7fffffff, 4, "the directory lies outside the file"},
      {end + 16, 0xffffffff, 4, "lacks its zip64 directory"},
  };
  for (const Damage& damage : cases) {
    CAPTURE(damage.reason);
    std::vector<uint8_t> file = good;
    put(file, damage.at, damage.value, damage.bytes);
    check_refused(file, damage.reason);
  }
}

TEST_CASE("npz: a size that the compressed bytes cannot hold is not allocated") {
  std::vector<uint8_t> file = small_npz();
  const size_t directory = central(file);
  put(file, directory + 10, 8, 2);
  put(file, directory + 24, 0x7fffffff, 4);
  check_refused(file, "announces 2147483647 bytes, more than its");
}

TEST_CASE("npz: the same entry listed many times is refused, not unpacked many times") {
  const std::vector<uint8_t> good = small_npz();
  const size_t directory = central(good), end = end_record(good);
  const std::vector<uint8_t> record(good.begin() + static_cast<ptrdiff_t>(directory), good.begin() + static_cast<ptrdiff_t>(end));
  std::vector<uint8_t> file(good.begin(), good.begin() + static_cast<ptrdiff_t>(end));
  file.insert(file.end(), record.begin(), record.end());
  file.insert(file.end(), good.begin() + static_cast<ptrdiff_t>(end), good.end());
  const size_t new_end = end_record(file);
  put(file, new_end + 10, 2, 2);
  put(file, new_end + 12, 2 * record.size(), 4);
  check_refused(file, "[x]: comes twice");
}
