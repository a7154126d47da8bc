#include <fovea/data/cifar10.h>

#include <algorithm>

#include <fovea/tensor/creation.h>
#include <fovea/tensor/inflate.h>

namespace fovea::data {

std::shared_ptr<const ImageArray> read_cifar10(const std::vector<std::string>& paths) {
  constexpr size_t pixels = 3 * 32 * 32, record = 1 + pixels;
  std::vector<int64_t> labels;
  std::vector<uint8_t> images;
  for (const std::string& path : paths) {
    const std::vector<uint8_t> bytes = read_maybe_gzip(path, "read_cifar10");
    check<FileError>(!bytes.empty() && bytes.size() % record == 0, path, ": has ", bytes.size(), " bytes, expected a multiple of ", record,
                     " (the length of a CIFAR-10 record)");
    for (size_t at = 0; at < bytes.size(); at += record) {
      check<FileError>(bytes[at] < cifar10_classes.size(), path, ": record ", at / record, " has label ", int{bytes[at]}, ", expected 0 to 9");
      labels.push_back(bytes[at]);
      images.insert(images.end(), bytes.begin() + static_cast<int64_t>(at) + 1, bytes.begin() + static_cast<int64_t>(at + record));
    }
  }
  Tensor x = empty({static_cast<int64_t>(labels.size()), 3, 32, 32}, {DType::uint8, Device::cpu()});
  std::copy(images.begin(), images.end(), x.mutable_data<uint8_t>());
  return std::make_shared<ImageArray>(x, std::move(labels));
}

}  // namespace fovea::data
