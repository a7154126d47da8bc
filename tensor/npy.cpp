#include <fovea/tensor/npy.h>

#include <algorithm>
#include <charconv>
#include <optional>
#include <vector>

#include <fovea/tensor/creation.h>
#include <fovea/tensor/elements.h>
#include <fovea/tensor/file.h>

namespace fovea {
namespace {

using Kind = ElementType::Kind;

constexpr std::string_view magic("\x93NUMPY", 6);

// The header is a Python dictionary: {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }. Python's grammar is read as far as NumPy writes it.
class HeaderReader {
 public:
  HeaderReader(std::string_view text, const std::string& what) : text_(text), what_(what) {}

  void read() {
    expect('{');
    while (!accept('}')) {
      const std::string_view key = string();
      expect(':');
      if (key == "descr") set(descr, string());
      else if (key == "fortran_order") set(fortran_order, boolean());
      else if (key == "shape") set(shape, tuple());
      else fail_at("unknown key");
      if (!accept(',')) {
        expect('}');
        break;
      }
    }
    skip_spaces();
    if (at_ != text_.size()) fail_at("text after the dictionary");
    check<FileError>(descr && fortran_order && shape, what_, ": the header lacks ", !descr ? "'descr'" : !shape ? "'shape'" : "'fortran_order'");
  }

  std::optional<std::string_view> descr;
  std::optional<bool> fortran_order;
  std::optional<std::vector<int64_t>> shape;

 private:
  [[noreturn]] void fail_at(const char* reason) const {
    fail<FileError>(what_, ": the .npy header cannot be read: ", reason, " at character ", at_, " of ", text_.size());
  }
  template <class T>
  void set(std::optional<T>& field, T value) {
    if (field) fail_at("a key comes twice");
    field = std::move(value);
  }
  void skip_spaces() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\t')) ++at_;
  }
  bool accept(char c) {
    skip_spaces();
    if (at_ == text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  void expect(char c) {
    if (!accept(c)) fail_at((std::string("expected ") + c).c_str());
  }
  std::string_view string() {
    skip_spaces();
    if (at_ < text_.size() && text_[at_] == '[') fail_at("structured arrays are not supported: expected a string");
    const char quote = accept('"') ? '"' : '\'';
    if (quote == '\'') expect('\'');
    const size_t end = text_.find(quote, at_);
    if (end == std::string_view::npos) fail_at("a string without end");
    const std::string_view value = text_.substr(at_, end - at_);
    at_ = end + 1;
    return value;
  }
  bool boolean() {
    skip_spaces();
    for (const bool value : {false, true}) {
      const std::string_view word = value ? "True" : "False";
      if (text_.substr(at_, word.size()) != word) continue;
      at_ += word.size();
      return value;
    }
    fail_at("expected True or False");
  }
  int64_t integer() {
    skip_spaces();
    int64_t value = 0;
    const auto [end, error] = std::from_chars(text_.data() + at_, text_.data() + text_.size(), value);
    if (error != std::errc()) fail_at("expected a number of 64 bits");
    at_ = static_cast<size_t>(end - text_.data());
    if (at_ < text_.size() && text_[at_] == 'L') ++at_;         // as Python 2 wrote them
    return value;
  }
  std::vector<int64_t> tuple() {
    std::vector<int64_t> values;
    expect('(');
    while (!accept(')')) {
      if (values.size() == max_rank) fail_at("more than 8 axes are not supported");
      values.push_back(integer());
      if (!accept(',')) {
        expect(')');
        break;
      }
    }
    return values;
  }

  std::string_view text_;
  const std::string& what_;
  size_t at_ = 0;
};

ElementType parse_descr(std::string_view descr, const std::string& what) {
  const auto require = [&](bool holds) {
    check<FileError>(holds, what, ": element type '", descr, "' is not supported, expected one like '<f4', '<i8', '|u1' or '|b1'");
  };
  require(descr.size() == 3 && std::string_view("<>|=").find(descr[0]) != std::string_view::npos);
  ElementType type;
  type.is_big_endian = descr[0] == '>';
  type.bytes = descr[2] - '0';
  const bool is_power_of_two = type.bytes == 1 || type.bytes == 2 || type.bytes == 4 || type.bytes == 8;
  require(is_power_of_two);
  switch (descr[1]) {
    case 'f': type.kind = Kind::real; require(type.bytes > 1); break;
    case 'i': type.kind = Kind::integer; break;
    case 'u': type.kind = Kind::natural; break;
    case 'b': type.kind = Kind::boolean; require(type.bytes == 1); break;
    default: require(false);
  }
  return type;
}

const char* descr_of(DType dtype, const std::string& what) {
  switch (dtype) {
    case DType::float32: return "<f4";
    case DType::float64: return "<f8";
    case DType::float16: return "<f2";
    case DType::int32: return "<i4";
    case DType::int64: return "<i8";
    case DType::uint8: return "|u1";
    case DType::boolean: return "|b1";
    case DType::bfloat16: break;
  }
  fail<DTypeError>(what, ": NumPy has no bfloat16; convert with to(x, DType::float32), or save as .safetensors");
}

// Elements stored with the first axis running fastest, put into row-major order.
Tensor from_fortran_order(std::span<const uint8_t> bytes, ElementType type, const Shape& shape, const std::string& what) {
  Shape reversed = shape;
  std::reverse(&reversed[0], &reversed[0] + reversed.rank());
  const Tensor stored = tensor_from_elements(bytes, type, reversed, what);
  ConstView transposed = stored.view();
  for (int i = 0; i < shape.rank(); ++i) {
    transposed.shape[i] = shape[i];
    transposed.strides[i] = stored.strides()[shape.rank() - 1 - i];
  }
  Tensor x = empty(shape, {stored.dtype(), Device::cpu()});
  if (x.numel() > 0) table_of(x).copy(queue_of(x), transposed, x.mutable_view());
  return x;
}

}  // namespace

Tensor parse_npy(std::span<const uint8_t> file, const std::string& what) {
  const std::string_view text(reinterpret_cast<const char*>(file.data()), file.size());
  check<FileError>(text.substr(0, magic.size()) == magic, what, ": not a .npy file (it does not begin with \\x93NUMPY)");
  check<FileError>(file.size() >= 10, what, ": cut off in the header");
  const int version = file[6];
  check<FileError>(version >= 1 && version <= 3, what, ": .npy version ", version, " is not known, expected 1, 2 or 3");
  const size_t begin = version == 1 ? 10 : 12;
  check<FileError>(file.size() >= begin, what, ": cut off in the header");
  size_t header_size = size_t{file[8]} | size_t{file[9]} << 8;
  if (version > 1) header_size |= size_t{file[10]} << 16 | size_t{file[11]} << 24;
  check<FileError>(header_size <= file.size() - begin, what, ": the header claims ", header_size, " bytes, the file has ", file.size() - begin, " left");

  HeaderReader header(text.substr(begin, header_size), what);
  header.read();
  const ElementType type = parse_descr(*header.descr, what);
  const std::vector<int64_t>& sizes = *header.shape;
  const int64_t expected = checked_bytes(sizes, type.bytes, what);
  const std::span<const uint8_t> elements = file.subspan(begin + header_size);
  const Shape shape{std::span<const int64_t>(sizes)};
  check<FileError>(static_cast<int64_t>(elements.size()) == expected, what, ": has ", elements.size(), " bytes of elements, shape ", shape, " needs ", expected);
  return *header.fortran_order && shape.rank() > 1 ? from_fortran_order(elements, type, shape, what) : tensor_from_elements(elements, type, shape, what);
}

std::string npy_header(const Tensor& x, const std::string& what) {
  std::string dictionary = str("{'descr': '", descr_of(x.dtype(), what), "', 'fortran_order': False, 'shape': (");
  for (int i = 0; i < x.rank(); ++i) dictionary += str(i ? ", " : "", x.shape()[i]);
  dictionary += x.rank() == 1 ? ",), }" : "), }";
  const size_t fixed = magic.size() + 4;
  dictionary.append(63 - (fixed + dictionary.size()) % 64, ' ');      // the elements begin at a multiple of 64 bytes
  dictionary += '\n';
  std::string header(magic);
  header += {'\x01', '\x00', static_cast<char>(dictionary.size() & 0xff), static_cast<char>(dictionary.size() >> 8)};
  return header + dictionary;
}

Tensor load_npy(const std::string& path) { return parse_npy(read_file(path, "load_npy"), "load_npy: " + path); }

void save_npy(const std::string& path, const Tensor& x) {
  const Tensor source = contiguous_on_cpu(x, "save_npy");
  const std::string header = npy_header(source, "save_npy");
  AtomicFile file(path, "save_npy");
  file.write(header);
  file.write(bytes_of(source));
  file.commit();
}

}  // namespace fovea
