#include <fovea/tensor/file.h>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>

#include <fovea/kernels/error.h>

namespace fovea {
namespace {

// Closes on the way out, whichever way that is.
struct Descriptor {
  int value = -1;
  ~Descriptor() { if (value >= 0) ::close(value); }
};

std::string folder_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

// The file that a symbolic link leads to, so that the link stays and the file behind it is replaced. A link to nothing is followed too.
std::string resolved(const std::string& path) {
  constexpr int most_links = 40;                           // as the system allows; then open() says what is wrong
  std::filesystem::path target = path;
  std::error_code error, is_missing;                       // a link may lead to nothing yet
  for (int i = 0; i < most_links && !error && std::filesystem::is_symlink(target, is_missing); ++i) target = target.parent_path() / std::filesystem::read_symlink(target, error);
  return error || target.empty() ? path : target.string();
}

}  // namespace

std::vector<uint8_t> read_file(const std::string& path, const std::string& what, int64_t max_bytes) {
  const Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};     // O_NONBLOCK: do not wait for the other end of a pipe
  check<FileError>(file.value >= 0, what, ": cannot open ", path, ": ", std::strerror(errno));
  struct stat info = {};
  check<FileError>(::fstat(file.value, &info) == 0, what, ": cannot read ", path, ": ", std::strerror(errno));
  check<FileError>(S_ISREG(info.st_mode), what, ": ", path, S_ISDIR(info.st_mode) ? " is a folder" : " is not a regular file", ", expected a file");
  check<FileError>(info.st_size <= max_bytes, what, ": ", path, " has ", info.st_size, " bytes, at most ", max_bytes, " were expected");
  std::vector<uint8_t> bytes(static_cast<size_t>(info.st_size));
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t count = ::read(file.value, bytes.data() + done, bytes.size() - done);
    if (count < 0 && errno == EINTR) continue;
    check<FileError>(count >= 0, what, ": cannot read ", path, ": ", std::strerror(errno));
    check<FileError>(count > 0, what, ": ", path, " became shorter while it was read");
    done += static_cast<size_t>(count);
  }
  return bytes;
}

// Note [One name for the unfinished file]
// A name of its own for each writer would leave one more file behind for each kill -9. With one name, a lock keeps two writers apart. The writer before may
// have renamed the file between our open and our lock: then the name leads to another file (or none) now, and we open anew.
AtomicFile::AtomicFile(std::string path, std::string what) : path_(resolved(path)), partial_(path_ + ".partial"), what_(std::move(what)) {
  struct stat info = {};
  check<FileError>(::stat(path_.c_str(), &info) != 0 || S_ISREG(info.st_mode), what_, ": cannot write ", path_, ": it is there and is not a regular file");
  for (;;) {
    descriptor_ = ::open(partial_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666);
    if (descriptor_ < 0) fail_with_errno("cannot create");
    if (::flock(descriptor_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
      ::close(descriptor_);
      fail<FileError>(what_, ": cannot write ", path_, ": another writer is at it");
    }
    struct stat by_name = {};
    const bool is_ours = ::stat(partial_.c_str(), &by_name) == 0 && ::fstat(descriptor_, &info) == 0 && by_name.st_ino == info.st_ino;
    if (is_ours) break;
    ::close(descriptor_);
  }
  if (::ftruncate(descriptor_, 0) != 0) {
    const int error = errno;
    ::close(descriptor_);
    errno = error;
    fail_with_errno("cannot write");
  }
}

AtomicFile::~AtomicFile() {
  if (descriptor_ < 0) return;
  ::unlink(partial_.c_str());
  ::close(descriptor_);
}

void AtomicFile::fail_with_errno(const char* action) const {
  const int error = errno;
  fail<FileError>(what_, ": ", action, " ", path_, ": ", std::strerror(error), error == ENOSPC || error == EFBIG || error == EDQUOT ? "; make room, or write elsewhere" : "");
}

void AtomicFile::write(std::span<const uint8_t> bytes) {
  check<ValueError>(descriptor_ >= 0, what_, ": ", path_, " was committed, no more can be written");
  constexpr size_t piece = size_t{1} << 30;              // some systems write at most 2 GiB at once
  while (!bytes.empty()) {
    const ssize_t count = ::write(descriptor_, bytes.data(), std::min(bytes.size(), piece));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail_with_errno("cannot write");
    bytes = bytes.subspan(static_cast<size_t>(count));
  }
}

void AtomicFile::commit() {
  check<ValueError>(descriptor_ >= 0, what_, ": ", path_, " was committed already");
  if (::fsync(descriptor_) != 0) fail_with_errno("cannot write");
  if (::rename(partial_.c_str(), path_.c_str()) != 0) fail_with_errno("cannot rename the finished file to");
  ::close(descriptor_);
  descriptor_ = -1;
  // The new name reaches the disk with its folder. Where the system refuses that, the file itself is complete none the less.
  const Descriptor folder{::open(folder_of(path_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  if (folder.value >= 0) ::fsync(folder.value);
}

}  // namespace fovea
