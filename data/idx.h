// IDX files, the format of MNIST (LeCun, Cortes & Burges): big-endian; two zero bytes, a type, a rank, the sizes, the values.
#pragma once

#include <memory>
#include <span>
#include <string>

#include <fovea/data/dataset.h>

namespace fovea::data {

// uint8, int32 (for 8, 16 and 32 bits with a sign), float32 or float64, by the file's type; packed by gzip or not. FileError when it is damaged, of another type, or over max_bytes.
Tensor read_idx(const std::string& path, int64_t max_bytes = int64_t{1} << 31);
Tensor decode_idx(std::span<const uint8_t> bytes, const std::string& name);

// [N,1,H,W] pictures and their labels, out of two files.
std::shared_ptr<const ImageArray> read_idx_images(const std::string& images_path, const std::string& labels_path);
// The folder's train-images-idx3-ubyte and train-labels-idx1-ubyte, or t10k-..., with or without .gz.
std::shared_ptr<const ImageArray> read_mnist(const std::string& folder, bool training);

}  // namespace fovea::data
