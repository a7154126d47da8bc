#include <fovea/tensor/safetensors.h>

#include <algorithm>
#include <optional>

#include <fovea/tensor/elements.h>
#include <fovea/tensor/file.h>
#include <fovea/tensor/json.h>
#include <fovea/tensor/utf8.h>

namespace fovea {
namespace {

using Kind = ElementType::Kind;

constexpr uint64_t max_header_bytes = 100'000'000;             // as the format's own reader has it
constexpr std::string_view metadata_key = "__metadata__";

struct TypeName {
  const char* name;
  ElementType type;
};
constexpr TypeName type_names[] = {
    {"F32", {Kind::real, 4}},    {"F64", {Kind::real, 8}},    {"F16", {Kind::real, 2}},    {"BF16", {Kind::brain, 2}},  {"I8", {Kind::integer, 1}},
    {"I16", {Kind::integer, 2}}, {"I32", {Kind::integer, 4}}, {"I64", {Kind::integer, 8}}, {"U8", {Kind::natural, 1}},  {"U16", {Kind::natural, 2}},
    {"U32", {Kind::natural, 4}}, {"U64", {Kind::natural, 8}}, {"BOOL", {Kind::boolean, 1}},
};

const char* type_name_of(DType dtype) {
  switch (dtype) {
    case DType::float32: return "F32";
    case DType::float64: return "F64";
    case DType::float16: return "F16";
    case DType::bfloat16: return "BF16";
    case DType::int32: return "I32";
    case DType::int64: return "I64";
    case DType::uint8: return "U8";
    case DType::boolean: return "BOOL";
  }
  return "";
}

struct TensorInfo {
  std::string name;
  ElementType type;
  Shape shape;
  int64_t begin = 0, end = 0;
};

class HeaderReader {
 public:
  HeaderReader(std::string_view text, const std::string& what) : json_(text, what), what_(what) {}

  std::vector<TensorInfo> read(Metadata& metadata) {
    std::vector<TensorInfo> infos;
    bool has_metadata = false;
    json_.object([&](const std::string& key) {
      if (key != metadata_key) return infos.push_back(tensor(key));
      if (has_metadata) json_.fail_here("__metadata__ comes twice");
      has_metadata = true;
      json_.object([&](const std::string& name) {
        if (metadata.contains(name)) json_.fail_here("metadata " + json_quoted(name) + " comes twice");
        std::string value = json_.string();
        metadata.emplace(name, std::move(value));
      });
    });
    json_.end();
    return infos;
  }

 private:
  template <class T>
  void set(std::optional<T>& field, T value, const char* name) {
    if (field) json_.fail_here(std::string(name) + " comes twice");
    field = std::move(value);
  }

  std::vector<int64_t> integers(size_t at_most) {
    std::vector<int64_t> values;
    json_.array([&] {
      if (values.size() == at_most) json_.fail_here("more than " + std::to_string(at_most) + " numbers are not supported here");
      values.push_back(json_.integer());
    });
    return values;
  }

  ElementType type() {
    const std::string name = json_.string();
    for (const TypeName& candidate : type_names)
      if (name == candidate.name) return candidate.type;
    json_.fail_here("dtype " + json_quoted(name) + " is not supported");
  }

  TensorInfo tensor(const std::string& name) {
    std::optional<ElementType> type;
    std::optional<std::vector<int64_t>> shape, offsets;
    json_.object([&](const std::string& key) {
      if (key == "dtype") set(type, this->type(), "dtype");
      else if (key == "shape") set(shape, integers(max_rank), "shape");
      else if (key == "data_offsets") set(offsets, integers(2), "data_offsets");
      else json_.fail_here("unknown key " + json_quoted(key));
    });
    const std::string what = what_ + " [" + name + "]";
    check<FileError>(type && shape && offsets, what, ": lacks ", !type ? "dtype" : !shape ? "shape" : "data_offsets");
    check<FileError>(offsets->size() == 2 && (*offsets)[0] >= 0 && (*offsets)[0] <= (*offsets)[1], what,
                     ": data_offsets must be two numbers, the second not below the first and none negative");
    TensorInfo info{name, *type, Shape(), (*offsets)[0], (*offsets)[1]};
    const int64_t expected = checked_bytes(*shape, type->bytes, what);
    info.shape = Shape{std::span<const int64_t>(*shape)};
    check<FileError>(info.end - info.begin == expected, what, ": data_offsets span ", info.end - info.begin, " bytes, shape ", info.shape, " needs ", expected);
    return info;
  }

  JsonReader json_;
  const std::string& what_;
};

// The tensors must fill the data without gap or overlap.
void check_offsets(const std::vector<TensorInfo>& infos, int64_t data_bytes, const std::string& what) {
  std::vector<const TensorInfo*> by_offset;
  for (const TensorInfo& info : infos) by_offset.push_back(&info);
  std::sort(by_offset.begin(), by_offset.end(), [](const TensorInfo* a, const TensorInfo* b) {
    return a->begin != b->begin ? a->begin < b->begin : a->end < b->end;
  });
  int64_t at = 0;
  for (const TensorInfo* info : by_offset) {
    check<FileError>(info->begin == at, what, " [", info->name, "]: begins at byte ", info->begin, " of the data, where the tensor before ends at ", at,
                     info->begin < at ? "; they overlap" : "; there is a gap");
    check<FileError>(info->end <= data_bytes, what, " [", info->name, "]: ends at byte ", info->end, " of the data, which has ", data_bytes,
                     "; the file is cut off or damaged");
    at = info->end;
  }
  check<FileError>(at == data_bytes, what, ": has ", data_bytes - at, " bytes that belong to no tensor");
}

struct Placed {
  const std::string* name;
  Tensor tensor;
  int64_t begin = 0;
};

// Gives each tensor its place in the data, and returns the order in which they stand there.
std::vector<size_t> place(std::vector<Placed>& list) {
  std::vector<size_t> order(list.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return size_of(list[a].tensor.dtype()) > size_of(list[b].tensor.dtype()); });
  int64_t at = 0;
  for (const size_t i : order) {
    list[i].begin = at;
    at += list[i].tensor.nbytes();
  }
  return order;
}

std::string header_text(const std::vector<Placed>& list, const Metadata& metadata) {
  std::string text = "{";
  const auto separate = [&] { if (text.back() != '{') text += ','; };
  if (!metadata.empty()) {
    text += str('"', metadata_key, "\":{");
    for (const auto& [key, value] : metadata) {
      separate();
      text += json_quoted(key) + ':' + json_quoted(value);
    }
    text += '}';
  }
  for (const Placed& item : list) {
    separate();
    text += str(json_quoted(*item.name), ":{\"dtype\":\"", type_name_of(item.tensor.dtype()), "\",\"shape\":", item.tensor.shape(), ",\"data_offsets\":[", item.begin,
                ',', item.begin + item.tensor.nbytes(), "]}");
  }
  text += '}';
  text.append((8 - text.size() % 8) % 8, ' ');                 // the data begins at a multiple of 8 bytes
  return text;
}

void check_text(const std::string& text, const char* kind) {
  check<ValueError>(is_utf8(text), "save_safetensors: ", kind, " \"", text, "\" is not UTF-8");
}

}  // namespace

Safetensors parse_safetensors(std::span<const uint8_t> file, const std::string& what) {
  check<FileError>(file.size() >= 8, what, ": too short for a .safetensors file");
  uint64_t header_bytes = 0;
  for (int i = 0; i < 8; ++i) header_bytes |= uint64_t{file[i]} << (8 * i);
  check<FileError>(header_bytes <= max_header_bytes, what, ": the header claims ", header_bytes, " bytes, at most ", max_header_bytes,
                   " are allowed; not a .safetensors file, or damaged");
  check<FileError>(header_bytes <= file.size() - 8, what, ": the header claims ", header_bytes, " bytes, the file has ", file.size() - 8, " left; it is cut off or damaged");
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + 8, header_bytes);
  check<FileError>(text.starts_with('{'), what, ": the header does not begin with {; not a .safetensors file, or damaged");
  const auto data = file.subspan(8 + header_bytes);

  Safetensors result;
  const std::vector<TensorInfo> infos = HeaderReader(text, what).read(result.metadata);
  check_offsets(infos, static_cast<int64_t>(data.size()), what);
  for (const TensorInfo& info : infos) {
    check<FileError>(!result.tensors.contains(info.name), what, " [", info.name, "]: comes twice");
    const auto bytes = data.subspan(static_cast<size_t>(info.begin), static_cast<size_t>(info.end - info.begin));
    result.tensors.add(info.name, tensor_from_elements(bytes, info.type, info.shape, what + " [" + info.name + "]"));
  }
  return result;
}

Safetensors load_safetensors(const std::string& path) { return parse_safetensors(read_file(path, "load_safetensors"), "load_safetensors: " + path); }

void save_safetensors(const std::string& path, const NamedTensors& tensors, const Metadata& metadata) {
  std::vector<Placed> list;
  for (const auto& [name, tensor] : tensors) {
    check<ValueError>(name != metadata_key, "save_safetensors: a tensor cannot be named ", metadata_key);
    check_text(name, "the name");
    list.push_back({&name, contiguous_on_cpu(tensor, "save_safetensors: \"" + name + "\"")});
  }
  for (const auto& [key, value] : metadata) {
    check_text(key, "the metadata key");
    check_text(value, "the metadata value");
  }
  const std::vector<size_t> order = place(list);
  const std::string text = header_text(list, metadata);
  check<ValueError>(text.size() <= max_header_bytes, "save_safetensors: the names and metadata take ", text.size(), " bytes, at most ", max_header_bytes, " are allowed");
  std::string length;
  for (int i = 0; i < 8; ++i) length += static_cast<char>(uint64_t{text.size()} >> (8 * i));
  AtomicFile file(path, "save_safetensors");
  file.write(length);
  file.write(text);
  for (const size_t i : order) file.write(bytes_of(list[i].tensor));
  file.commit();
}

}  // namespace fovea
