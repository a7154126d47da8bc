// What errors say.
#pragma once

#include <string>

#include <fovea/kernels/error.h>

namespace fovea::testing {

// The text of the error of type E that f throws; "" if it throws none.
template <class E = Error, class F>
std::string error_of(const F& f) {
  try {
    f();
  } catch (const E& error) {
    return error.what();
  }
  return "";
}

inline bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace fovea::testing
