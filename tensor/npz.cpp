#include <fovea/tensor/npz.h>

#include <fovea/tensor/elements.h>
#include <fovea/tensor/file.h>
#include <fovea/tensor/inflate.h>
#include <fovea/tensor/npy.h>

namespace fovea {
namespace {

// Names and layout as in PKWARE's APPNOTE.TXT 6.3, sections 4.3.7 (local header), 4.3.12 (central directory), 4.3.14-16 (ends), 4.5.3 (zip64 extra field).
constexpr uint32_t local_signature = 0x04034b50, central_signature = 0x02014b50, end_signature = 0x06054b50, end64_signature = 0x06064b50,
                   locator64_signature = 0x07064b50;
constexpr size_t local_size = 30, central_size = 46, end_size = 22, end64_size = 56, locator64_size = 20;
constexpr uint64_t all_ones32 = 0xffffffffu;                  // "see the zip64 field"

struct ZipEntry {
  std::string name;
  uint64_t compressed = 0, size = 0, local_offset = 0;
  uint32_t crc = 0;
  uint16_t method = 0, flags = 0;
};

class ZipReader {
 public:
  ZipReader(std::span<const uint8_t> file, const std::string& what) : file_(file), what_(what) {}

  NamedTensors read() {
    NamedTensors tensors;
    const size_t end = find_end();
    uint64_t count = number(end + 10, 2), size = number(end + 12, 4), offset = number(end + 16, 4);
    if (count == 0xffff || size == all_ones32 || offset == all_ones32) {
      require(end >= locator64_size && number(end - locator64_size, 4) == locator64_signature, "lacks its zip64 directory");
      const uint64_t end64 = number(end - locator64_size + 8, 8);
      need(end64, end64_size, "the zip64 directory's end");
      require(number(end64, 4) == end64_signature, "the zip64 directory is damaged");
      count = number(end64 + 32, 8), size = number(end64 + 40, 8), offset = number(end64 + 48, 8);
    }
    need(offset, size, "the directory");
    require(count <= size / central_size, "the directory is too small for its entries");
    uint64_t total = 0, at = offset;
    for (uint64_t i = 0; i < count; ++i) {
      const ZipEntry entry = read_central(at, offset + size);
      total += entry.compressed;
      require(total <= file_.size(), "entries overlap");       // each byte may be unpacked once only, or a small file could grow without bound
      add(tensors, entry);
    }
    return tensors;
  }

 private:
  void require(bool holds, const char* reason) const { check<FileError>(holds, what_, ": ", reason); }
  void need(uint64_t offset, uint64_t size, const std::string& part) const {
    check<FileError>(offset <= file_.size() && size <= file_.size() - offset, what_, ": ", part, " lies outside the file (", offset, " + ", size, " of ",
                     file_.size(), " bytes); the file is cut off or damaged");
  }
  uint64_t number(uint64_t at, int bytes) const {              // little-endian; the place was checked before
    uint64_t value = 0;
    for (int i = 0; i < bytes; ++i) value |= uint64_t{file_[at + i]} << (8 * i);
    return value;
  }

  // The end record is the last thing but a comment of up to 65535 bytes.
  size_t find_end() const {
    require(file_.size() >= end_size, "too short for a .npz file");
    const size_t last = file_.size() - end_size, first = last > 0xffff ? last - 0xffff : 0;
    for (size_t at = last + 1; at-- > first;)
      if (number(at, 4) == end_signature && number(at + 20, 2) == last - at) return at;
    fail<FileError>(what_, ": not a .npz file, or cut off (a zip archive's end record is missing)");
  }

  ZipEntry read_central(uint64_t& at, uint64_t end) const {
    require(at + central_size <= end && number(at, 4) == central_signature, "the directory is damaged");
    ZipEntry entry;
    entry.flags = static_cast<uint16_t>(number(at + 8, 2));
    entry.method = static_cast<uint16_t>(number(at + 10, 2));
    entry.crc = static_cast<uint32_t>(number(at + 16, 4));
    entry.compressed = number(at + 20, 4);
    entry.size = number(at + 24, 4);
    entry.local_offset = number(at + 42, 4);
    const uint64_t name_size = number(at + 28, 2), extra_size = number(at + 30, 2), comment_size = number(at + 32, 2);
    at += central_size;
    require(name_size + extra_size + comment_size <= end - at, "the directory is damaged");
    entry.name.assign(reinterpret_cast<const char*>(file_.data()) + at, name_size);
    read_extra(entry, at + name_size, at + name_size + extra_size);
    at += name_size + extra_size + comment_size;
    return entry;
  }

  // The zip64 field holds those of size, compressed size and offset, in this order, that did not fit into 32 bits.
  void read_extra(ZipEntry& entry, uint64_t at, uint64_t end) const {
    while (end - at >= 4) {
      const uint64_t tag = number(at, 2), size = number(at + 2, 2);
      at += 4;
      require(size <= end - at, "an extra field of the directory is damaged");
      uint64_t field = at;
      for (uint64_t* value : {&entry.size, &entry.compressed, &entry.local_offset}) {
        if (tag != 1 || *value != all_ones32) continue;
        require(field + 8 <= at + size, "a zip64 field is too short");
        *value = number(field, 8);
        field += 8;
      }
      at += size;
    }
  }

  void add(NamedTensors& tensors, const ZipEntry& entry) const {
    std::string name = entry.name;
    if (name.ends_with(".npy")) name.resize(name.size() - 4);
    const std::string what = what_ + " [" + name + "]";
    check<FileError>(!tensors.contains(name), what, ": comes twice");
    check<FileError>((entry.flags & 1) == 0, what, ": is encrypted");
    check<FileError>(entry.method == 0 || entry.method == 8, what, ": compression method ", entry.method, " is not supported, expected 0 (stored) or 8 (deflated)");
    need(entry.local_offset, local_size, "entry \"" + name + "\"");
    check<FileError>(number(entry.local_offset, 4) == local_signature, what, ": the entry's header is damaged");
    const uint64_t begin = entry.local_offset + local_size + number(entry.local_offset + 26, 2) + number(entry.local_offset + 28, 2);
    need(begin, entry.compressed, "entry \"" + name + "\"");
    const auto stored = file_.subspan(begin, entry.compressed);
    if (entry.method == 0) {
      check<FileError>(entry.size == entry.compressed, what, ": is stored, but its two sizes differ");
      tensors.add(name, parse_entry(stored, entry, what));
      return;
    }
    check<FileError>(entry.size <= static_cast<uint64_t>(max_inflated_bytes(static_cast<int64_t>(entry.compressed))), what, ": announces ", entry.size,
                     " bytes, more than its ", entry.compressed, " compressed bytes can hold");
    std::vector<uint8_t> inflated(entry.size);
    inflate(stored, inflated, what);
    tensors.add(name, parse_entry(inflated, entry, what));
  }

  static Tensor parse_entry(std::span<const uint8_t> bytes, const ZipEntry& entry, const std::string& what) {
    check<FileError>(crc32(bytes) == entry.crc, what, ": the checksum does not match; the file is damaged");
    return parse_npy(bytes, what);
  }

  std::span<const uint8_t> file_;
  const std::string& what_;
};

void put(std::string& out, uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) out += static_cast<char>(value >> (8 * i));
}

// The fields that the local header and the central directory share.
void put_common(std::string& out, const ZipEntry& entry) {
  put(out, 20, 2);                                             // version needed to extract
  put(out, 0x800, 2);                                          // names are UTF-8
  put(out, 0, 2);                                              // stored
  put(out, 0, 2);                                              // time and date: 1980-01-01, so that equal tensors give equal files
  put(out, 0x21, 2);
  put(out, entry.crc, 4);
  put(out, entry.size, 4);
  put(out, entry.size, 4);
  put(out, entry.name.size(), 2);
  put(out, 0, 2);                                              // no extra field
}

std::string local_header(const ZipEntry& entry) {
  std::string out;
  put(out, local_signature, 4);
  put_common(out, entry);
  return out + entry.name;
}

std::string central_header(const ZipEntry& entry) {
  std::string out;
  put(out, central_signature, 4);
  put(out, 20, 2);
  put_common(out, entry);
  put(out, 0, 6);                                              // no comment, disk 0, no attributes
  put(out, 0, 4);
  put(out, entry.local_offset, 4);
  return out + entry.name;
}

}  // namespace

NamedTensors parse_npz(std::span<const uint8_t> file, const std::string& what) { return ZipReader(file, what).read(); }

NamedTensors load_npz(const std::string& path) { return parse_npz(read_file(path, "load_npz"), "load_npz: " + path); }

void save_npz(const std::string& path, const NamedTensors& tensors) {
  check<ValueError>(tensors.size() < 0xffff, "save_npz: ", tensors.size(), " tensors are too many for one .npz file; save as .safetensors");
  AtomicFile file(path, "save_npz");
  std::string directory;
  uint64_t offset = 0;
  for (const auto& [name, tensor] : tensors) {
    const std::string what = "save_npz: \"" + name + "\"";
    const Tensor source = contiguous_on_cpu(tensor, what);
    const std::string header = npy_header(source, what);
    ZipEntry entry{.name = name + ".npy", .size = header.size() + static_cast<uint64_t>(source.nbytes()), .local_offset = offset};
    check<ValueError>(entry.name.size() <= 0xffff, "save_npz: a name of ", name.size(), " bytes is too long");
    entry.crc = crc32(bytes_of(source), crc32({reinterpret_cast<const uint8_t*>(header.data()), header.size()}));
    const std::string local = local_header(entry);
    offset += local.size() + entry.size;
    directory += central_header(entry);
    check<ValueError>(offset + directory.size() < all_ones32, what, ": the file would have more than 4 GiB; save as .safetensors");
    file.write(local);
    file.write(header);
    file.write(bytes_of(source));
  }
  std::string end;
  put(end, end_signature, 4);
  put(end, 0, 4);                                              // one disk
  put(end, tensors.size(), 2);
  put(end, tensors.size(), 2);
  put(end, directory.size(), 4);
  put(end, offset, 4);
  put(end, 0, 2);                                              // no comment
  file.write(directory);
  file.write(end);
  file.commit();
}

}  // namespace fovea
