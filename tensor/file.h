// Whole files, in and out.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

namespace fovea {

// The bytes of a regular file. FileError that begins with `what` and the path if it cannot be read or has more than max_bytes.
std::vector<uint8_t> read_file(const std::string& path, const std::string& what, int64_t max_bytes = std::numeric_limits<int64_t>::max());

// A file that appears whole or not at all. It is written as path.partial and takes its name in commit(), after it has reached the disk. Whatever goes
// wrong before (an error, a full disk, kill -9), a file that had the name stays as it was; what kill -9 leaves behind is overwritten by the next writer.
// FileError beginning with `what` and the path if something cannot be done, or if another writer is at it.
class AtomicFile {
 public:
  AtomicFile(std::string path, std::string what);
  ~AtomicFile();                             // without commit(): takes the unfinished file away
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(std::span<const uint8_t> bytes);
  void write(const std::string& text) { write({reinterpret_cast<const uint8_t*>(text.data()), text.size()}); }
  void commit();

 private:
  [[noreturn]] void fail_with_errno(const char* action) const;

  std::string path_, partial_, what_;
  int descriptor_ = -1;
};

}  // namespace fovea
