// SPDX-License-Identifier: Apache-2.0
// Bit and field helpers.
#pragma once

#include "base/types.h"

#include <cstring>
#include <type_traits>

namespace ring3 {

// Bit n as a 64-bit mask, 0 <= n < 64.
constexpr u64 bit(unsigned n) { return u64{1} << n; }

// The low n bits set, 0 <= n <= 64.
constexpr u64 low_mask(unsigned n) { return n >= 64 ? ~u64{0} : bit(n) - 1; }

// Bits hi..lo of v, right-aligned.
constexpr u64 field(u64 v, unsigned hi, unsigned lo) { return (v >> lo) & low_mask(hi - lo + 1); }

// v with its bits hi..lo replaced by f.
constexpr u64 with_field(u64 v, unsigned hi, unsigned lo, u64 f) {
  const u64 mask = low_mask(hi - lo + 1) << lo;
  return (v & ~mask) | ((f << lo) & mask);
}

// v with the bits of mask set or cleared.
constexpr u64 with_bits(u64 v, u64 mask, bool on) { return on ? v | mask : v & ~mask; }

// The value of the low `bits` bits of v, sign-extended to 64.
constexpr u64 sign_extend(u64 v, unsigned bits) {
  const unsigned shift = 64 - bits;
  return static_cast<u64>(static_cast<s64>(v << shift) >> shift);
}

// Unaligned, alias-safe access to raw bytes.
template <class T> T load_raw(const void* p) {
  static_assert(std::is_trivially_copyable_v<T>);
  T v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class T> void store_raw(void* p, const T& v) {
  static_assert(std::is_trivially_copyable_v<T>);
  std::memcpy(p, &v, sizeof v);
}

} // namespace ring3
