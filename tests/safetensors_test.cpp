#include <doctest/doctest.h>

#include <fovea/tensor/json.h>
#include <fovea/tensor/safetensors.h>
#include <fovea/tensor/utf8.h>

#include "file_cases.h"
#include "source_folder.h"
#include "temporary_folder.h"

using namespace fovea;

namespace {

std::vector<uint8_t> file_with(const std::string& header, size_t data_bytes) {
  std::string text;
  for (int i = 0; i < 8; ++i) text += static_cast<char>(uint64_t{header.size()} >> (8 * i));
  text += header + std::string(data_bytes, '\1');
  return {text.begin(), text.end()};
}

std::string tensor(const std::string& name, const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return str('"', name, "\":{\"dtype\":\"", dtype, "\",\"shape\":", shape, ",\"data_offsets\":", offsets, '}');
}

std::string braced(const std::string& entries) { return str('{', entries, '}'); }

void check_refused(const std::string& header, size_t data_bytes, const char* reason) {
  CAPTURE(header);
  CHECK_THROWS_WITH_AS(parse_safetensors(file_with(header, data_bytes), "x.safetensors"), doctest::Contains(reason), FileError);
}

constexpr DType all_dtypes[] = {DType::float32, DType::float64, DType::float16, DType::bfloat16, DType::int32, DType::int64, DType::uint8, DType::boolean};

}  // namespace

TEST_CASE("safetensors: PyTorch's file is read with all types, names and metadata") {
  const Safetensors file = load_safetensors(testing::source_folder() + "/tests/golden/files/torch.safetensors");
  for (const DType dtype : all_dtypes) check_identical(file.tensors[name_of(dtype)], counting({2, 3, 4}, dtype));
  check_identical(file.tensors["int8"], counting({2, 3, 4}, DType::int32));
  check_identical(file.tensors["int16"], counting({2, 3, 4}, DType::int32));
  check_identical(file.tensors["scalar"], scalar(2.5));
  check_identical(file.tensors["empty"], empty({0, 3}));
  check_identical(file.tensors["naïve \"name\"\n"], ones({1}));
  CHECK(file.metadata == Metadata{{"format", "pt"}, {"note", "ü \\ \" \t \U0001f600"}});
}

TEST_CASE("safetensors: every dtype and shape comes back, in order, with the metadata") {
  const TemporaryFolder folder;
  NamedTensors tensors;
  for (const DType dtype : all_dtypes)
    for (const Shape& shape : {Shape{}, Shape{3}, Shape{0, 2}, Shape{5, 7}}) tensors.add(str(name_of(dtype), shape), counting(shape, dtype));
  const Metadata metadata = {{"", ""}, {"control", std::string("\0\1\n\x1f", 4)}, {"quote\"", "back\\slash"}, {"unicode", "é€😀"}};
  save_safetensors(folder / "x.safetensors", tensors, metadata);
  const Safetensors file = load_safetensors(folder / "x.safetensors");
  CHECK(file.metadata == metadata);
  REQUIRE(file.tensors.size() == tensors.size());
  for (auto a = tensors.begin(), b = file.tensors.begin(); a != tensors.end(); ++a, ++b) {
    CHECK(a->first == b->first);
    check_identical(b->second, a->second);
  }
}

TEST_CASE("safetensors: elements are aligned to their size, whatever the order of the tensors") {
  const TemporaryFolder folder;
  save_safetensors(folder / "x", {{"a", counting({3}, DType::uint8)}, {"b", counting({2}, DType::float64)}, {"c", counting({1}, DType::float32)}});
  const std::vector<uint8_t> bytes = read_file(folder / "x", "test");
  const std::string text(bytes.begin(), bytes.end());
  CHECK(bytes[0] % 8 == 0);
  CHECK(text.find("\"b\":{\"dtype\":\"F64\",\"shape\":[2],\"data_offsets\":[0,16]}") != std::string::npos);
  CHECK(text.find("\"c\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[16,20]}") != std::string::npos);
  CHECK(text.find("\"a\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[20,23]}") != std::string::npos);
}

TEST_CASE("safetensors: a file without tensors is one") {
  const TemporaryFolder folder;
  save_safetensors(folder / "x", {}, {{"k", "v"}});
  CHECK(load_safetensors(folder / "x").tensors.empty());
  CHECK(load_safetensors(folder / "x").metadata.at("k") == "v");
  CHECK(parse_safetensors(file_with("{}", 0), "x").tensors.empty());
}

TEST_CASE("safetensors: damaged headers are refused, and the error says what is wrong") {
  const std::string a = tensor("a", "F32", "[2]", "[0,8]");
  check_refused("", 0, "does not begin with {");
  check_refused(" {}", 0, "does not begin with {");
  check_refused("{", 0, "expected \"");
  check_refused("{}x", 0, "text after the end");
  check_refused("{\"a\":1}", 0, "expected {");
  check_refused(braced(a + ","), 8, "expected \"");
  check_refused(braced(a + "," + a), 8, "[a]: begins at byte 0 of the data, where the tensor before ends at 8; they overlap");
  check_refused(braced(a + "," + tensor("a", "F32", "[2]", "[8,16]")), 16, "[a]: comes twice");
  check_refused(braced(a + "," + tensor("b", "F32", "[2]", "[4,12]")), 12, "they overlap");
  check_refused(braced(a + "," + tensor("b", "F32", "[2]", "[12,20]")), 20, "there is a gap");
  check_refused(braced(a), 7, "ends at byte 8 of the data, which has 7");
  check_refused(braced(a), 9, "has 1 bytes that belong to no tensor");
  check_refused(braced(tensor("a", "F32", "[3]", "[0,8]")), 8, "data_offsets span 8 bytes, shape [3] needs 12");
  check_refused(braced(tensor("a", "F32", "[2]", "[8,0]")), 8, "the second not below the first");
  check_refused(braced(tensor("a", "F32", "[2]", "[-8,0]")), 8, "none negative");
  check_refused(braced(tensor("a", "F32", "[2]", "[0]")), 8, "must be two numbers");
  check_refused(braced(tensor("a", "F32", "[2]", "[0,8,8]")), 8, "more than 2 numbers");
  check_refused(braced(tensor("a", "F32", "[-2]", "[0,8]")), 8, "negative size");
  check_refused(braced(tensor("a", "F32", "[2.0]", "[0,8]")), 8, "not a fraction");
  check_refused(braced(tensor("a", "F32", "[02]", "[0,8]")), 8, "leading zero");
  check_refused(braced(tensor("a", "F32", "[1,1,1,1,1,1,1,1,2]", "[0,8]")), 8, "more than 8 numbers");
  check_refused(braced(tensor("a", "F32", "[4294967296,4294967296]", "[0,8]")), 8, "larger than memory can address");
  check_refused(braced(tensor("a", "F32", "[99999999999999999999]", "[0,8]")), 8, "expected an integer of 64 bits");
  check_refused(braced(tensor("a", "F8_E4M3", "[8]", "[0,8]")), 8, "dtype \"F8_E4M3\" is not supported");
  check_refused(braced(tensor("a", "U64", "[1]", "[0,8]")), 8, "64-bit unsigned integers");
  check_refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8, "[a]: lacks data_offsets");
  check_refused("{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "dtype comes twice");
  check_refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8],\"x\":{}}}", 8, "unknown key \"x\"");
  check_refused("{\"__metadata__\":{\"k\":1}}", 0, "expected \"");
  check_refused("{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}}", 0, "metadata \"k\" comes twice");
  check_refused("{\"__metadata__\":{},\"__metadata__\":{}}", 0, "__metadata__ comes twice");
  check_refused("{\"\xff\":{}}", 0, "not UTF-8");
  check_refused(std::string(200000, '['), 0, "does not begin with {");
  check_refused(str("{\"a\":", std::string(200000, '{')), 0, "expected \"");
}

TEST_CASE("safetensors: sizes of the header that cannot be are refused before anything is read") {
  std::vector<uint8_t> file = file_with("{}", 0);
  for (const uint64_t size : {uint64_t{3}, uint64_t{100'000'000}, uint64_t{100'000'001}, uint64_t{1} << 40, ~uint64_t{0}}) {
    for (int i = 0; i < 8; ++i) file[static_cast<size_t>(i)] = static_cast<uint8_t>(size >> (8 * i));
    CHECK_THROWS_WITH_AS(parse_safetensors(file, "x"), doctest::Contains("the header claims"), FileError);
  }
}

TEST_CASE("safetensors: a file cut off anywhere is refused") {
  const TemporaryFolder folder;
  save_safetensors(folder / "x", {{"a", counting({3}, DType::float32)}, {"b", counting({2}, DType::uint8)}}, {{"k", "v"}});
  const std::vector<uint8_t> whole = read_file(folder / "x", "test");
  for (size_t size = 0; size < whole.size(); ++size) CHECK_THROWS_AS(parse_safetensors(std::span(whole).first(size), "x"), FileError);
}

TEST_CASE("safetensors: what cannot be written is refused, and the old file stays") {
  const TemporaryFolder folder;
  const std::string path = folder / "x";
  save_safetensors(path, {{"a", ones({2})}});
  CHECK_THROWS_AS(save_safetensors(path, {{"__metadata__", ones({2})}}), ValueError);
  CHECK_THROWS_WITH_AS(save_safetensors(path, {{"\xff", ones({2})}}), doctest::Contains("not UTF-8"), ValueError);
  CHECK_THROWS_AS(save_safetensors(path, {{"a", ones({2})}}, {{"k", "\xc0\x80"}}), ValueError);
  CHECK_THROWS_AS(save_safetensors(path, {{"a", Tensor()}}), ValueError);
  CHECK_THROWS_AS(save_safetensors(path, {{"a", Tensor(std::make_shared<Storage>(8, Device::meta()), {2}, {1}, 0, DType::float32)}}), DeviceError);
  check_identical(load_safetensors(path).tensors["a"], ones({2}));
  CHECK(!std::filesystem::exists(path + ".partial"));
}

TEST_CASE("json: strings are read with every escape and refused where they are not JSON") {
  const std::string what = "test";
  CHECK(JsonReader(R"("a\"\\\/\b\f\n\r\t\u00e9\u20ac\ud83d\ude00")", what).string() == "a\"\\/\b\f\n\r\té€😀");
  for (const std::string text : {"\"", "\"\\", "\"\\u12\"", "\"\\u12g4\"", "\"\\x\"", "\"\n\"", "\"\\ud83d\"", "\"\\ude00\"", "\"\\ud83d\\u0041\"", "a", ""}) {
    CAPTURE(text);
    CHECK_THROWS_AS(JsonReader(text, what).string(), FileError);
  }
}

TEST_CASE("json: only well-formed UTF-8 is taken") {
  for (const std::string text : {"", "abc", "é", "€", "😀", "\xf4\x8f\xbf\xbf"}) CHECK(is_utf8(text));
  for (const std::string text : {"\x80", "\xc3", "\xc0\x80", "\xe0\x80\x80", "\xed\xa0\x80", "\xf0\x80\x80\x80", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff"})
    CHECK(!is_utf8(text));
}
