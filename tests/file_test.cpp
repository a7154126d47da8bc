#include <doctest/doctest.h>

#include <fovea/kernels/error.h>
#include <fovea/tensor/file.h>
#include <fovea/tensor/inflate.h>
#include <fovea/tensor/named_tensors.h>

#include <filesystem>

#include "temporary_folder.h"

using namespace fovea;

namespace {

// gzip.compress(b"fovea " * 20 + bytes(range(32)), 9, mtime=0), by Python
const std::vector<uint8_t> gz = {
    0x1f, 0x8b, 0x08, 0x00, 0x00, 0x00, 0x00, 0x00, 0x02, 0x03, 0x4b, 0xcb, 0x2f, 0x4b, 0x4d, 0x54, 0x48, 0xa3, 0x3b, 0xc9, 0xc0, 0xc8, 0xc4,
    0xcc, 0xc2, 0xca, 0xc6, 0xce, 0xc1, 0xc9, 0xc5, 0xcd, 0xc3, 0xcb, 0xc7, 0x2f, 0x20, 0x28, 0x24, 0x2c, 0x22, 0x2a, 0x26, 0x2e, 0x21, 0x29,
    0x25, 0x2d, 0x23, 0x2b, 0x27, 0x0f, 0x00, 0x1c, 0x50, 0x50, 0x84, 0x98, 0x00, 0x00, 0x00};

// "fovea fovea fovea\n" three times, packed by Python's gzip; the second one with a file name in its header.
const std::vector<uint8_t> packed_text = {31, 139, 8,  0,  0,  0,   0,   0,  2,  3, 75, 203, 47,  75,  77,  84, 72, 67,
                                          144, 92, 105, 68, 136, 0, 0, 245, 171, 208, 215, 54, 0, 0, 0};
const std::vector<uint8_t> packed_with_name = {31, 139, 8,  8,  0,  0,  0,  0,  2,   255, 110, 97,  109, 101, 46, 116, 120, 116, 0,   75,  203, 47, 75, 77,
                                               84, 72,  67, 144, 92, 105, 68, 136, 0, 0,   245, 171, 208, 215, 54, 0,   0,   0};

std::vector<uint8_t> plain() {
  std::vector<uint8_t> bytes;
  for (int i = 0; i < 20; ++i)
    for (const char c : std::string("fovea ")) bytes.push_back(static_cast<uint8_t>(c));
  for (int i = 0; i < 32; ++i) bytes.push_back(static_cast<uint8_t>(i));
  return bytes;
}

std::vector<uint8_t> bytes_of(const std::string& text) { return {text.begin(), text.end()}; }

}  // namespace

TEST_CASE("crc32 gives the standard's check value, in one piece or in two") {
  const std::vector<uint8_t> digits = bytes_of("123456789");
  CHECK(crc32(digits) == 0xcbf43926u);
  CHECK(crc32(std::span(digits).subspan(4), crc32(std::span(digits).first(4))) == 0xcbf43926u);
  CHECK(crc32({}) == 0);
}

TEST_CASE("gunzip reads what gzip wrote, and refuses every damaged byte that matters") {
  CHECK(gunzip(gz, "test") == plain());
  for (size_t size = 0; size < gz.size(); ++size) CHECK_THROWS_AS(gunzip(std::span(gz).first(size), "test"), FileError);
  for (size_t i = 10; i < gz.size(); ++i) {                 // the ten bytes before hold the time and the system, which do not matter
    std::vector<uint8_t> damaged = gz;
    damaged[i] ^= 0x41;
    CHECK_THROWS_AS(gunzip(damaged, "test"), FileError);
  }
}

TEST_CASE("gunzip reads a stream whose last code ends with its last byte") {
  const std::string text = "fovea fovea fovea\nfovea fovea fovea\nfovea fovea fovea\n";
  CHECK(gunzip(packed_text, "a.gz") == bytes_of(text));
  CHECK(gunzip(packed_with_name, "a.gz") == bytes_of(text));
  for (size_t size = 0; size < packed_with_name.size(); ++size)
    CHECK_THROWS_AS(gunzip(std::span(packed_with_name).first(size), "a.gz"), FileError);
  CHECK_THROWS_AS(gunzip(packed_text, "a.gz", 53), FileError);
}

TEST_CASE("gunzip does not believe a size that the compressed bytes cannot hold") {
  std::vector<uint8_t> bomb = gz;
  for (size_t i = bomb.size() - 4; i < bomb.size(); ++i) bomb[i] = 0xf0;
  CHECK_THROWS_WITH_AS(gunzip(bomb, "x.gz"), doctest::Contains("x.gz: announces 4042322160 bytes"), FileError);
}

TEST_CASE("a file written atomically comes back, and no unfinished one stays") {
  const TemporaryFolder folder;
  const std::string path = folder / "a.bin";
  for (const std::string text : {"first", "second, longer", ""}) {
    AtomicFile file(path, "test");
    file.write(text);
    file.commit();
    CHECK(read_file(path, "test") == bytes_of(text));
  }
  CHECK(!std::filesystem::exists(path + ".partial"));
}

TEST_CASE("a symbolic link stays, and the file that it leads to is replaced") {
  const TemporaryFolder folder;
  for (const char* target : {"real.bin", "real.bin"}) {                      // at first there is nothing where the link leads
    if (!std::filesystem::is_symlink(folder / "link.bin")) std::filesystem::create_symlink(target, folder / "link.bin");
    AtomicFile file(folder / "link.bin", "test");
    file.write("through");
    file.commit();
    CHECK(std::filesystem::is_symlink(folder / "link.bin"));
    CHECK(!std::filesystem::is_symlink(folder / "real.bin"));
    CHECK(read_file(folder / "real.bin", "test") == bytes_of("through"));
  }
}

TEST_CASE("without commit the old file stays") {
  const TemporaryFolder folder;
  const std::string path = folder / "a.bin";
  {
    AtomicFile file(path, "test");
    file.write("old");
    file.commit();
  }
  {
    AtomicFile file(path, "test");
    file.write("new");
  }
  CHECK(read_file(path, "test") == bytes_of("old"));
  CHECK(!std::filesystem::exists(path + ".partial"));
}

TEST_CASE("two writers of one file do not mix: the second gets an error") {
  const TemporaryFolder folder;
  AtomicFile first(folder / "a.bin", "test");
  CHECK_THROWS_WITH_AS(AtomicFile(folder / "a.bin", "test"), doctest::Contains("another writer"), FileError);
  first.write("one");
  first.commit();
  CHECK(read_file(folder / "a.bin", "test") == bytes_of("one"));
}

TEST_CASE("what kill -9 left of an unfinished file is written over") {
  const TemporaryFolder folder;
  {
    AtomicFile leftover(folder / "a.bin.partial", "test");
    leftover.write("much longer than what follows");
    leftover.commit();
  }
  AtomicFile file(folder / "a.bin", "test");
  file.write("short");
  file.commit();
  CHECK(read_file(folder / "a.bin", "test") == bytes_of("short"));
}

TEST_CASE("files that cannot be read or written give errors with path and reason") {
  const TemporaryFolder folder;
  CHECK_THROWS_WITH_AS(read_file(folder / "none", "load"), doctest::Contains("No such file"), FileError);
  CHECK_THROWS_WITH_AS(read_file(folder / "", "load"), doctest::Contains("is a folder"), FileError);
  CHECK_THROWS_WITH_AS(read_file("/dev/zero", "load"), doctest::Contains("not a regular file"), FileError);
  CHECK_THROWS_WITH_AS(AtomicFile(folder / "no/such/folder/a.bin", "save"), doctest::Contains("No such file or directory"), FileError);
  CHECK_THROWS_WITH_AS(AtomicFile(folder / "", "save"), doctest::Contains("not a regular file"), FileError);
  AtomicFile file(folder / "five", "save");
  file.write("12345");
  file.commit();
  CHECK_THROWS_WITH_AS(read_file(folder / "five", "load", 4), doctest::Contains("has 5 bytes, at most 4"), FileError);
}

TEST_CASE("named tensors keep their order, refuse a second of one name and suggest the nearest") {
  NamedTensors list;
  list.add("features.0.weight", Tensor());
  list.add("head.bias", Tensor());
  CHECK(list.begin()->first == "features.0.weight");
  CHECK(list.contains("head.bias"));
  CHECK(!list.contains("head"));
  CHECK_THROWS_WITH_AS(list.add("head.bias", Tensor()), doctest::Contains("\"head.bias\" is there already"), ValueError);
  CHECK_THROWS_WITH_AS(list["featurs.0.weight"], doctest::Contains("did you mean \"features.0.weight\"?"), ValueError);
  CHECK_THROWS_WITH_AS(list["xyz"], "no tensor \"xyz\" among 2", ValueError);
}
