// Errors: exceptions derived from fovea::Error whose text names the operation, the argument, what was got and what was expected.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace fovea {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class ShapeError : public Error { using Error::Error; };      // sizes, ranks or axes that do not fit
class DTypeError : public Error { using Error::Error; };      // an element type the operation does not take
class DeviceError : public Error { using Error::Error; };     // a missing device, or arguments on different ones
class IndexError : public Error { using Error::Error; };      // an index or a label out of range
class ValueError : public Error { using Error::Error; };      // any other bad argument
class AutogradError : public Error { using Error::Error; };   // a backward pass that cannot be run
class MemoryError : public Error { using Error::Error; };     // out of memory, or over the allocator's limit
class FileError : public Error { using Error::Error; };       // files that cannot be read or written, or are damaged

// str(a, b, ...) prints its arguments one after the other.
template <class... Args>
std::string str(const Args&... args) {
  std::ostringstream out;
  (out << ... << args);
  return out.str();
}

template <class E = Error, class... Args>
[[noreturn]] void fail(const Args&... args) {
  throw E(str(args...));
}

// The text is put together only when the condition does not hold.
template <class E = Error, class... Args>
inline void check(bool condition, const Args&... args) {
  if (!condition) [[unlikely]] fail<E>(args...);
}

}  // namespace fovea
