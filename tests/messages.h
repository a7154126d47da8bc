// What errors say.
#pragma once

#include <string>

#include <fovea/tensor/creation.h>

namespace fovea::testing {

// The text of the error of type E that f throws; "" if it throws none. Where tensors are made on a CUDA device by default, f's work there is waited for: a value out of
// range is found only then; that it was found there is left out of the text.
template <class E = Error, class F>
std::string error_of(const F& f) {
  const bool is_on_cuda = default_device().kind == Device::Kind::cuda;
  try {
    f();
    if (is_on_cuda) cuda::synchronize(default_device().index);
  } catch (const E& error) {
    const std::string text = error.what();
    return is_on_cuda ? text.substr(0, text.find(" (found on cuda:")) : text;
  }
  return "";
}

inline bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace fovea::testing
