// Decompression of deflate data (RFC 1951), as .npz and .gz files hold it.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace fovea {

// Fills `out` from a raw deflate stream that must hold exactly so many bytes; FileError beginning with `what` otherwise.
void inflate(std::span<const uint8_t> compressed, std::span<uint8_t> out, const std::string& what);

// The most bytes that so many compressed ones can stand for: deflate's shortest code is 2 bits for 258 bytes.
// A file that claims more is damaged, and its claim must not be allocated.
int64_t max_inflated_bytes(int64_t compressed_bytes);

// The contents of a gzip file (RFC 1952) of one member, with its checksum checked; FileError beginning with `what` if it is damaged.
std::vector<uint8_t> gunzip(std::span<const uint8_t> file, const std::string& what);

// The checksum of zip, gzip and PNG (CRC-32, polynomial 0xEDB88320). To go on with more data, pass what the data before gave.
uint32_t crc32(std::span<const uint8_t> data, uint32_t crc = 0);

}  // namespace fovea
