// Thousands of damaged files of each format: each must be read or refused with a FileError, without a large allocation. The fuzzers of tests/fuzz look
// further with the same readers; this is what every compiler can run.
#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <new>
#include <random>

#include <fovea/tensor/allocator.h>
#include <fovea/tensor/file.h>

#include "fuzz/targets.h"
#include "source_folder.h"

namespace {

std::atomic<size_t> largest_allocation{0};

void* counted(size_t bytes) {
  size_t largest = largest_allocation.load();
  while (bytes > largest && !largest_allocation.compare_exchange_weak(largest, bytes)) {}
  if (void* block = std::malloc(bytes ? bytes : 1)) return block;
  throw std::bad_alloc();
}

}  // namespace

void* operator new(size_t bytes) { return counted(bytes); }
void* operator new[](size_t bytes) { return counted(bytes); }
void operator delete(void* block) noexcept { std::free(block); }
void operator delete[](void* block) noexcept { std::free(block); }
void operator delete(void* block, size_t) noexcept { std::free(block); }
void operator delete[](void* block, size_t) noexcept { std::free(block); }

using namespace fovea;

namespace {

using File = std::vector<uint8_t>;

std::vector<File> files_in(const std::string& folder) {
  std::vector<std::string> paths;
  for (const auto& entry : std::filesystem::directory_iterator(testing::source_folder() + "/tests/fuzz/" + folder)) paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  std::vector<File> files;
  for (const std::string& path : paths) files.push_back(read_file(path, "test"));
  return files;
}

class Mutator {
 public:
  explicit Mutator(const std::vector<File>& seeds) : seeds_(seeds) {}

  File next() {
    File file = seeds_[below(seeds_.size())];
    for (size_t changes = 1 + below(4); changes > 0; --changes) change(file);
    return file;
  }

 private:
  size_t below(size_t n) { return static_cast<size_t>(random_() % n); }

  void change(File& file) {
    if (file.empty()) return file.push_back(static_cast<uint8_t>(below(256)));
    const size_t at = below(file.size()), length = 1 + below(std::min<size_t>(file.size() - at, 40));
    const auto begin = file.begin() + static_cast<ptrdiff_t>(at), end = begin + static_cast<ptrdiff_t>(length);
    switch (below(8)) {
      case 0: file[at] ^= static_cast<uint8_t>(1 << below(8)); break;
      case 1: file[at] = static_cast<uint8_t>(below(256)); break;
      case 2: put_number(file, at); break;
      case 3: file.resize(at); break;
      case 4: file.erase(begin, end); break;
      case 5: {
        const File copy(begin, end);
        file.insert(file.begin() + static_cast<ptrdiff_t>(below(file.size())), copy.begin(), copy.end());
        break;
      }
      case 6: change_digit(file, at); break;
      default: {
        const File& other = seeds_[below(seeds_.size())];
        const size_t from = below(other.size());
        for (size_t i = 0; i < length && from + i < other.size(); ++i) file[at + i] = other[from + i];
      }
    }
  }

  // A number that sizes, counts and offsets stumble over, in either byte order.
  void put_number(File& file, size_t at) {
    constexpr uint64_t awkward[] = {0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff, 0x7fffffffffffffff, 0x8000000000000000, ~uint64_t{0}};
    const uint64_t value = awkward[below(std::size(awkward))];
    const size_t bytes = size_t{1} << below(4);
    const bool is_big_endian = below(2) == 1;
    for (size_t i = 0; i < bytes && at + i < file.size(); ++i) file[at + i] = static_cast<uint8_t>(value >> (8 * (is_big_endian ? bytes - 1 - i : i)));
  }

  // Numbers in text headers: makes one longer, or another.
  void change_digit(File& file, size_t at) {
    const auto is_digit = [](uint8_t c) { return c >= '0' && c <= '9'; };
    const auto found = std::find_if(file.begin() + static_cast<ptrdiff_t>(at), file.end(), is_digit);
    if (found == file.end()) return;
    if (below(2)) *found = static_cast<uint8_t>('0' + below(10));
    else file.insert(found, 1 + below(19), static_cast<uint8_t>('9'));
  }

  const std::vector<File>& seeds_;
  std::mt19937_64 random_{20240917};
};

// growth: how many bytes of memory a byte of the file may stand for, on top of what small objects and messages take.
void attack(const std::string& format, uint64_t (*read)(fuzz::Bytes), int files, size_t growth) {
  CAPTURE(format);
  constexpr size_t base = 1 << 16;
  const std::vector<File> seeds = files_in("seeds/" + format);
  REQUIRE(!seeds.empty());
  for (const File& seed : seeds) CHECK(fuzz::stands(read, seed));
  Mutator mutator(seeds);
  allocator::clear();
  allocator::set_limit(int64_t{1} << 21);
  size_t worst = 0;
  int refused = 0;
  for (int i = 0; i < files; ++i) {
    const File file = mutator.next();
    largest_allocation = 0;
    allocator::reset_peak();
    const int64_t before = allocator::stats().active_bytes;
    if (!fuzz::stands(read, file)) ++refused;
    const size_t tensors = static_cast<size_t>(allocator::stats().peak_bytes - before);
    const size_t allowed = base + growth * file.size(), used = std::max(largest_allocation.load(), tensors);
    if (used > allowed) FAIL_CHECK("file ", i, " of ", file.size(), " bytes made the reader allocate ", used);
    worst = std::max(worst, used);
  }
  allocator::set_limit(0);
  CHECK(refused > files / 10);
  CHECK(refused < files);
  MESSAGE(format, ": ", refused, " of ", files, " refused, largest allocation ", worst, " bytes");
}

}  // namespace

TEST_CASE("hostile files: npy") { attack("npy", fuzz::read_npy, 5000, 8); }
TEST_CASE("hostile files: npz") { attack("npz", fuzz::read_npz, 5000, 2 * 1032); }
TEST_CASE("hostile files: gzip") { attack("gzip", fuzz::read_gzip, 5000, 1032); }
TEST_CASE("hostile files: idx") { attack("idx", fuzz::read_idx, 5000, 8); }
TEST_CASE("hostile files: safetensors") { attack("safetensors", fuzz::read_safetensors, 5000, 64); }
TEST_CASE("hostile files: checkpoint") { attack("checkpoint", fuzz::read_checkpoint, 5000, 64); }
TEST_CASE("hostile files: pictures") { attack("image", fuzz::read_image, 5000, 1 << 12); }

TEST_CASE("hostile files: what once made a reader stumble") {
  for (const File& file : files_in("found/idx")) CHECK(!fuzz::stands(fuzz::read_idx, file));       // no elements, but sizes whose product overflows
  for (const File& file : files_in("found/gzip")) fuzz::stands(fuzz::read_gzip, file);              // a stored block of no bytes
  for (const File& file : files_in("found/image")) fuzz::stands(fuzz::read_image, file);            // Huffman tables too long or never defined; an empty first chunk
}

TEST_CASE("hostile files: a short file that claims terabytes is refused without allocating") {
  const auto refused = [](uint64_t (*read)(fuzz::Bytes), const std::string& text) {
    const File file(text.begin(), text.end());
    largest_allocation = 0;
    CHECK(!fuzz::stands(read, file));
    CHECK(largest_allocation < 4096);
  };
  const std::string header = "{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776,), }";
  refused(fuzz::read_npy, std::string("\x93NUMPY\x01\x00", 8) + static_cast<char>(header.size()) + '\0' + header);
  const std::string entry = "{\"a\":{\"dtype\":\"U8\",\"shape\":[1099511627776],\"data_offsets\":[0,1099511627776]}}";
  refused(fuzz::read_safetensors, static_cast<char>(entry.size()) + std::string(7, '\0') + entry);
  refused(fuzz::read_safetensors, std::string("\0\xe1\xf5\5\0\0\0\0", 8) + "{}");
  refused(fuzz::read_idx, std::string("\0\0\x0e\3\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", 16));
  refused(fuzz::read_gzip, std::string("\x1f\x8b\x08\0\0\0\0\0\0\0", 10) + std::string("\3\0\0\0\0\0\xff\xff\xff\xff", 10));
}
