// SPDX-License-Identifier: Apache-2.0
// The address spaces as distinct types: mixing guest-physical, guest-linear and host addresses does not
// compile.
#pragma once

#include "base/types.h"

#include <compare>

namespace ring3 {

constexpr unsigned page_shift = 12;
constexpr u64 page_size = u64{1} << page_shift;
constexpr u64 page_offset_mask = page_size - 1;

template <class Space> struct Address {
  u64 value = 0;

  constexpr Address() = default;
  constexpr explicit Address(u64 v) : value(v) {}

  constexpr Address operator+(u64 n) const { return Address{value + n}; }
  constexpr Address operator-(u64 n) const { return Address{value - n}; }
  constexpr u64 operator-(Address other) const { return value - other.value; }
  constexpr auto operator<=>(const Address&) const = default;

  // First address of the 4 KiB page, and the offset into it.
  constexpr Address page() const { return Address{value & ~page_offset_mask}; }
  constexpr u64 page_offset() const { return value & page_offset_mask; }
  // Page frame number.
  constexpr u64 frame() const { return value >> page_shift; }
};

// What the guest's page tables map to; KVM calls it GPA.
using GuestPhys = Address<struct GuestPhysSpace>;
// After segmentation, before paging: the SDM's linear address; KVM calls it GVA.
using GuestVirt = Address<struct GuestVirtSpace>;

// Host addresses are pointers (std::byte*), never integers.

} // namespace ring3
