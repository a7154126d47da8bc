// Putting things into a random order.
#pragma once

#include <utility>
#include <vector>

#include <fovea/data/random_stream.h>

namespace fovea::data {

// Every order is equally likely (Fisher & Yates; Durstenfeld 1964).
template <class T>
void shuffle(std::vector<T>& values, RandomStream random) {
  for (size_t i = values.size(); i > 1; --i) std::swap(values[i - 1], values[static_cast<size_t>(random.integer(static_cast<int64_t>(i)))]);
}

}  // namespace fovea::data
