// SPDX-License-Identifier: Apache-2.0
// Builds a little-endian structure field by field: ACPI tables, boot parameter blocks, archive headers.
#pragma once

#include "base/types.h"

#include <cstddef>
#include <span>
#include <string_view>
#include <vector>

namespace ring3::vmm {

class ByteWriter {
 public:
  ByteWriter& u8v(u8 v) { return number(v, 1); }
  ByteWriter& u16v(u16 v) { return number(v, 2); }
  ByteWriter& u32v(u32 v) { return number(v, 4); }
  ByteWriter& u64v(u64 v) { return number(v, 8); }
  ByteWriter& text(std::string_view s) {
    for (char c : s) bytes_.push_back(static_cast<std::byte>(c));
    return *this;
  }
  // Exactly n bytes: the text, then `pad`.
  ByteWriter& padded(std::string_view s, std::size_t n, char pad = ' ') {
    for (std::size_t i = 0; i < n; ++i) bytes_.push_back(static_cast<std::byte>(i < s.size() ? s[i] : pad));
    return *this;
  }
  ByteWriter& append(std::span<const std::byte> more) {
    bytes_.insert(bytes_.end(), more.begin(), more.end());
    return *this;
  }
  ByteWriter& zeros(std::size_t n) {
    bytes_.insert(bytes_.end(), n, std::byte{0});
    return *this;
  }
  ByteWriter& align(std::size_t n) { return zeros((n - bytes_.size() % n) % n); }

  // Overwrites an earlier field of `size` bytes.
  void patch(std::size_t offset, u64 value, unsigned size) {
    for (unsigned i = 0; i < size && offset + i < bytes_.size(); ++i)
      bytes_[offset + i] = static_cast<std::byte>(value >> (8 * i));
  }

  std::size_t size() const { return bytes_.size(); }
  const std::vector<std::byte>& bytes() const { return bytes_; }
  std::vector<std::byte> take() { return std::move(bytes_); }

 private:
  ByteWriter& number(u64 v, unsigned size) {
    for (unsigned i = 0; i < size; ++i) bytes_.push_back(static_cast<std::byte>(v >> (8 * i)));
    return *this;
  }
  std::vector<std::byte> bytes_;
};

} // namespace ring3::vmm
