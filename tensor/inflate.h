// Decompression of deflate data (RFC 1951), as .npz and .gz files hold it.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

namespace fovea {

// Fills `out` from a raw deflate stream that must hold exactly so many bytes; FileError beginning with `what` otherwise.
void inflate(std::span<const uint8_t> compressed, std::span<uint8_t> out, const std::string& what);

// The most bytes that so many compressed ones can stand for: deflate's shortest code is 2 bits for 258 bytes.
// A file that claims more is damaged, and its claim must not be allocated.
int64_t max_inflated_bytes(int64_t compressed_bytes);

// The contents of a gzip file (RFC 1952) of one member, with its checksum checked; FileError beginning with `what` if it is damaged or unpacks
// to more than max_bytes.
std::vector<uint8_t> gunzip(std::span<const uint8_t> file, const std::string& what, int64_t max_bytes = std::numeric_limits<int64_t>::max());

// read_file, and gunzip when the file begins like a gzip file, whatever its name; neither form may have more than max_bytes.
std::vector<uint8_t> read_maybe_gzip(const std::string& path, const std::string& what, int64_t max_bytes = int64_t{1} << 31);

// The checksum of zip, gzip and PNG (CRC-32, polynomial 0xEDB88320). To go on with more data, pass what the data before gave.
uint32_t crc32(std::span<const uint8_t> data, uint32_t crc = 0);

}  // namespace fovea
