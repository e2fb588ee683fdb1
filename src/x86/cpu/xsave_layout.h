// SPDX-License-Identifier: Apache-2.0
// Where each state component lies in an XSAVE area (SDM vol. 1, 13.4 and 13.5; CPUID leaf 0xD reports the
// same numbers), and copying between CpuState and such an area. CPUID, the XSAVE instructions and
// KVM_GET/SET_XSAVE use this.
#pragma once

#include "base/bits.h"
#include "x86/cpu/state.h"

#include <array>
#include <span>

namespace ring3::x86::xsave {

namespace component {
constexpr unsigned x87 = 0, sse = 1, avx = 2, opmask = 5, zmm_hi256 = 6, hi16_zmm = 7, pkru = 9;
} // namespace component

struct Component {
  unsigned index;
  u32 offset; // in the standard format
  u32 size;
  bool align64 = false; // in the compacted format: starts at a multiple of 64
};

constexpr u32 legacy_size = 512;
constexpr u32 header_size = 64;
constexpr u32 extended_offset = legacy_size + header_size;

// The extended components there are, by number. None is a supervisor component: IA32_XSS may only be 0.
constexpr std::array<Component, 5> components{{
    {component::avx, 576, 256},
    {component::opmask, 1088, 64},
    {component::zmm_hi256, 1152, 512},
    {component::hi16_zmm, 1664, 1024},
    {component::pkru, 2688, 8},
}};

constexpr u64 supported_xcr0 = bit(component::x87) | bit(component::sse) | bit(component::avx) |
                               bit(component::opmask) | bit(component::zmm_hi256) | bit(component::hi16_zmm) |
                               bit(component::pkru);
constexpr u64 supported_xss = 0;
constexpr u64 compacted = bit(63); // XCOMP_BV
constexpr u32 max_size = 2696;

constexpr u32 standard_size(u64 mask) {
  u32 size = extended_offset;
  for (const Component& c : components) {
    if ((mask >> c.index & 1) != 0 && c.offset + c.size > size) size = c.offset + c.size;
  }
  return size;
}

// Where component `index` starts in a compacted area with the components of `mask`; for index 63 its size.
constexpr u32 compacted_offset(u64 mask, unsigned index) {
  u32 at = extended_offset;
  for (const Component& c : components) {
    if ((mask >> c.index & 1) == 0 && c.index != index) continue;
    if (c.align64) at = (at + 63) & ~u32{63};
    if (c.index == index) return at;
    at += c.size;
  }
  return at;
}
constexpr u32 compacted_size(u64 mask) { return compacted_offset(mask, 63); }

static_assert(standard_size(supported_xcr0) == max_size);

// May XCR0 have this value (SDM vol. 1, 13.3)?
constexpr bool valid_xcr0(u64 v) {
  if ((v & ~supported_xcr0) != 0 || (v & 1) == 0) return false;
  const u64 avx512 = bit(component::opmask) | bit(component::zmm_hi256) | bit(component::hi16_zmm);
  if ((v & bit(component::avx)) != 0 && (v & bit(component::sse)) == 0) return false;
  if ((v & avx512) != 0 && ((v & avx512) != avx512 || (v & bit(component::avx)) == 0)) return false;
  return true;
}

constexpr u32 mxcsr_mask = 0xffff;

// Components that are not in their initial configuration (XINUSE).
u64 in_use(const CpuState& s);
// One component to and from its place (for x87 and sse: the legacy area's start). MXCSR belongs to neither.
void store(const CpuState& s, unsigned index, std::byte* at);
void load(CpuState& s, unsigned index, const std::byte* at);
void initialise(CpuState& s, unsigned index);

// A whole area in standard format, max_size bytes, as KVM_GET_XSAVE gives it: XSTATE_BV says what is in use.
void store_standard(const CpuState& s, u64 xcr0, std::span<std::byte> area);
// False: reserved bits are set in XSTATE_BV or MXCSR; nothing has changed then.
bool load_standard(CpuState& s, u64 xcr0, std::span<const std::byte> area);

} // namespace ring3::x86::xsave
