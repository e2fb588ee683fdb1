// SPDX-License-Identifier: Apache-2.0
// A number that tells one layout of shared data from another (FNV-1a). Not for what somebody could forge.
#pragma once

#include "base/types.h"

#include <string_view>

namespace ring3 {

class Fingerprint {
 public:
  constexpr Fingerprint& add(u64 number) {
    for (unsigned i = 0; i < 8; ++i) add_byte(static_cast<u8>(number >> 8 * i));
    return *this;
  }
  constexpr Fingerprint& add(std::string_view text) {
    for (const char c : text) add_byte(static_cast<u8>(c));
    return add(text.size());
  }
  // Never 0.
  constexpr u64 value() const { return value_ != 0 ? value_ : 1; }

 private:
  constexpr void add_byte(u8 b) { value_ = (value_ ^ b) * 0x100000001b3; }
  u64 value_ = 0xcbf29ce484222325;
};

} // namespace ring3
