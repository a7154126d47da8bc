// The binary form of CIFAR-10 (Krizhevsky 2009): records of a label byte and 3 x 32 x 32 bytes, red, green and blue plane.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include <fovea/data/dataset.h>

namespace fovea::data {

inline constexpr std::array<const char*, 10> cifar10_classes = {"airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"};

// [N,3,32,32] pictures of all files one after the other; each packed by gzip or not. FileError for a damaged file or a label above 9.
std::shared_ptr<const ImageArray> read_cifar10(const std::vector<std::string>& paths);

}  // namespace fovea::data
