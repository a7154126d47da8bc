// .safetensors files (the format of github.com/huggingface/safetensors): named tensors and text metadata, without code that runs on loading.
//
// Eight bytes of header size, a JSON header, then the elements, little-endian and without gaps. All our dtypes are written; types that Tensor has no dtype for are
// widened when read (tensor/elements.h). Tensors come in the order of the header, which is the order they were saved in; in the data, wider elements stand
// first, so that each tensor is aligned to its element size.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>

#include <fovea/tensor/named_tensors.h>

namespace fovea {

using Metadata = std::map<std::string, std::string>;

struct Safetensors {
  NamedTensors tensors;
  Metadata metadata;
};

Safetensors load_safetensors(const std::string& path);                        // FileError with path and reason if it is damaged
void save_safetensors(const std::string& path, const NamedTensors& tensors, const Metadata& metadata = {});   // atomically (tensor/file.h)

Safetensors parse_safetensors(std::span<const uint8_t> file, const std::string& what);   // from memory; `what` begins every error message

}  // namespace fovea
