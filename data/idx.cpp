#include <fovea/data/idx.h>

#include <filesystem>

#include <fovea/tensor/elements.h>
#include <fovea/tensor/inflate.h>

namespace fovea::data {
namespace {

uint32_t big_endian_32(std::span<const uint8_t> bytes, size_t at) {
  return uint32_t{bytes[at]} << 24 | uint32_t{bytes[at + 1]} << 16 | uint32_t{bytes[at + 2]} << 8 | uint32_t{bytes[at + 3]};
}

ElementType element_type(uint8_t type, const std::string& name) {
  using Kind = ElementType::Kind;
  switch (type) {
    case 0x08: return {Kind::natural, 1, true};
    case 0x09: return {Kind::integer, 1, true};
    case 0x0B: return {Kind::integer, 2, true};
    case 0x0C: return {Kind::integer, 4, true};
    case 0x0D: return {Kind::real, 4, true};
    case 0x0E: return {Kind::real, 8, true};
    default: fail<FileError>(name, ": IDX type ", int{type}, " is unknown; there are 8 (uint8), 9 (int8), 11 (int16), 12 (int32), 13 (float32) and 14 (float64)");
  }
}

std::string with_or_without_gz(const std::string& path) { return std::filesystem::exists(path) ? path : path + ".gz"; }

}  // namespace

Tensor decode_idx(std::span<const uint8_t> bytes, const std::string& name) {
  check<FileError>(bytes.size() >= 4 && bytes[0] == 0 && bytes[1] == 0, name, ": not an IDX file (it must begin with two zero bytes), or cut short");
  const ElementType type = element_type(bytes[2], name);
  const int rank = bytes[3];
  const size_t header = 4 + 4 * static_cast<size_t>(rank);
  check<FileError>(rank >= 1 && rank <= max_rank, name, ": has rank ", rank, ", expected 1 to ", max_rank);
  check<FileError>(bytes.size() >= header, name, ": is cut short in its header");
  Shape shape;
  for (int axis = 0; axis < rank; ++axis) shape.push_back(big_endian_32(bytes, 4 + 4 * static_cast<size_t>(axis)));
  return tensor_from_elements(bytes.subspan(header), type, shape, name);
}

Tensor read_idx(const std::string& path, int64_t max_bytes) { return decode_idx(read_maybe_gzip(path, "read_idx", max_bytes), path); }

std::shared_ptr<const ImageArray> read_idx_images(const std::string& images_path, const std::string& labels_path) {
  const Tensor images = read_idx(images_path), labels = read_idx(labels_path);
  check<FileError>(images.rank() == 3 && images.dtype() == DType::uint8, images_path, ": expected [N,H,W] uint8, got ", images.shape(), " ", images.dtype());
  check<FileError>(labels.rank() == 1 && labels.dtype() == DType::uint8, labels_path, ": expected [N] uint8, got ", labels.shape(), " ", labels.dtype());
  check<FileError>(images.size(0) == labels.size(0), images_path, " has ", images.size(0), " images, but ", labels_path, " has ", labels.size(0), " labels");
  return std::make_shared<ImageArray>(images, labels.to_vector<int64_t>());
}

std::shared_ptr<const ImageArray> read_mnist(const std::string& folder, bool training) {
  const std::string start = folder + (training ? "/train" : "/t10k");
  return read_idx_images(with_or_without_gz(start + "-images-idx3-ubyte"), with_or_without_gz(start + "-labels-idx1-ubyte"));
}

}  // namespace fovea::data
