// A number for each of the two axes of an image: one for both, or {h, w}.
#pragma once

#include <cstdint>
#include <ostream>

namespace fovea {

struct Pair {
  int64_t h, w;
  Pair(int64_t both) : h(both), w(both) {}
  Pair(int64_t h, int64_t w) : h(h), w(w) {}
  bool operator==(const Pair&) const = default;
};

// 3, or [3,1] where the two differ.
inline std::ostream& operator<<(std::ostream& out, const Pair& pair) {
  if (pair.h == pair.w) return out << pair.h;
  return out << '[' << pair.h << ',' << pair.w << ']';
}

}  // namespace fovea
