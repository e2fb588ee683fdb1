// SPDX-License-Identifier: Apache-2.0
#include "x86/cpu/xsave_layout.h"

#include <algorithm>
#include <cstring>

namespace ring3::x86::xsave {

namespace {

constexpr u32 xmm_offset = 160, st_offset = 32;
constexpr u32 mxcsr_at = 24, mxcsr_mask_at = 28;
constexpr u32 xstate_bv_at = 512;

bool all_zero(const void* p, std::size_t n) {
  const auto* b = static_cast<const u8*>(p);
  return std::all_of(b, b + n, [](u8 v) { return v == 0; });
}

// [from, to) of the registers [first, last) is zero.
bool slices_zero(const VectorState& v, unsigned first, unsigned last, unsigned from, unsigned to) {
  for (unsigned i = first; i < last; ++i) {
    if (!all_zero(v.zmm[i] + from, to - from)) return false;
  }
  return true;
}

struct Slice {
  unsigned first, last, from, to;
};

// The part of the vector registers that a component is.
constexpr Slice slice_of(unsigned index) {
  switch (index) {
  case component::sse: return {0, 16, 0, 16};
  case component::avx: return {0, 16, 16, 32};
  case component::zmm_hi256: return {0, 16, 32, 64};
  default: return {16, 32, 0, 64};
  }
}

bool initial(const CpuState& s, unsigned index) {
  switch (index) {
  case component::x87: {
    const X87State& x = s.x87;
    return x.fcw == 0x37f && x.fsw == 0 && x.ftw == 0 && x.fop == 0 && x.fip == 0 && x.fdp == 0 &&
           all_zero(x.st, sizeof x.st);
  }
  case component::opmask: return all_zero(s.vector.k, sizeof s.vector.k);
  case component::pkru: return s.pkru == 0;
  default: {
    const Slice c = slice_of(index);
    return slices_zero(s.vector, c.first, c.last, c.from, c.to);
  }
  }
}

} // namespace

u64 in_use(const CpuState& s) {
  u64 mask = 0;
  for (unsigned i = 0; i <= component::pkru; ++i) {
    if ((supported_xcr0 >> i & 1) != 0 && !initial(s, i)) mask |= bit(i);
  }
  return mask;
}

void store(const CpuState& s, unsigned index, std::byte* at) {
  switch (index) {
  case component::x87:
    std::memcpy(at, &s.x87, mxcsr_at);
    for (unsigned i = 0; i < 8; ++i) {
      std::memcpy(at + st_offset + i * 16, s.x87.st[i], 10);
      std::memset(at + st_offset + i * 16 + 10, 0, 6);
    }
    break;
  case component::opmask: std::memcpy(at, s.vector.k, sizeof s.vector.k); break;
  case component::pkru: store_raw<u64>(at, s.pkru); break;
  default: {
    const Slice c = slice_of(index);
    if (index == component::sse) at += xmm_offset;
    for (unsigned i = c.first; i < c.last; ++i, at += c.to - c.from)
      std::memcpy(at, s.vector.zmm[i] + c.from, c.to - c.from);
  }
  }
}

void load(CpuState& s, unsigned index, const std::byte* at) {
  switch (index) {
  case component::x87: {
    std::memcpy(static_cast<void*>(&s.x87), at, mxcsr_at); // MXCSR follows
    s.x87.reserved = 0;
    for (unsigned i = 0; i < 8; ++i) {
      std::memcpy(s.x87.st[i], at + st_offset + i * 16, 10);
      std::memset(s.x87.st[i] + 10, 0, 6);
    }
    s.x87.fcw = static_cast<u16>((s.x87.fcw & 0x1f7f) | 0x40);
    s.x87.fop &= 0x7ff;
    // ES and B say what the flags and masks say (SDM vol. 1, 8.1.3.3).
    s.x87.fsw &= 0x7f7f;
    if ((s.x87.fsw & ~s.x87.fcw & 0x3f) != 0) s.x87.fsw |= 0x8080;
    break;
  }
  case component::opmask: std::memcpy(s.vector.k, at, sizeof s.vector.k); break;
  case component::pkru: s.pkru = load_raw<u32>(at); break;
  default: {
    const Slice c = slice_of(index);
    if (index == component::sse) at += xmm_offset;
    for (unsigned i = c.first; i < c.last; ++i, at += c.to - c.from)
      std::memcpy(s.vector.zmm[i] + c.from, at, c.to - c.from);
  }
  }
}

void initialise(CpuState& s, unsigned index) {
  switch (index) {
  case component::x87: {
    const u32 mxcsr = s.x87.mxcsr;
    s.x87 = X87State{};
    s.x87.mxcsr = mxcsr;
    break;
  }
  case component::opmask: std::memset(s.vector.k, 0, sizeof s.vector.k); break;
  case component::pkru: s.pkru = 0; break;
  default: {
    const Slice c = slice_of(index);
    for (unsigned i = c.first; i < c.last; ++i) std::memset(s.vector.zmm[i] + c.from, 0, c.to - c.from);
  }
  }
}

void store_standard(const CpuState& s, u64 xcr0, std::span<std::byte> area) {
  std::memset(area.data(), 0, area.size());
  xcr0 &= supported_xcr0;
  if (area.size() < standard_size(xcr0)) return;
  store(s, component::x87, area.data());
  store(s, component::sse, area.data());
  store_raw<u32>(area.data() + mxcsr_at, s.x87.mxcsr);
  store_raw<u32>(area.data() + mxcsr_mask_at, mxcsr_mask);
  for (const Component& c : components) {
    if ((xcr0 >> c.index & 1) != 0) store(s, c.index, area.data() + c.offset);
  }
  u64 bv = in_use(s) & (xcr0 | 3);
  if (s.x87.mxcsr != 0x1f80) bv |= bit(component::sse);
  store_raw<u64>(area.data() + xstate_bv_at, bv);
}

bool load_standard(CpuState& s, u64 xcr0, std::span<const std::byte> area) {
  xcr0 = (xcr0 & supported_xcr0) | 3;
  if (area.size() < standard_size(xcr0)) return false;
  const u64 bv = load_raw<u64>(area.data() + xstate_bv_at);
  const u32 mxcsr = load_raw<u32>(area.data() + mxcsr_at);
  if ((bv & ~xcr0) != 0 || (mxcsr & ~mxcsr_mask) != 0) return false;
  for (unsigned i = 0; i < 2; ++i) {
    if ((bv >> i & 1) != 0) {
      load(s, i, area.data());
    } else {
      initialise(s, i);
    }
  }
  for (const Component& c : components) {
    if ((xcr0 >> c.index & 1) == 0) continue;
    if ((bv >> c.index & 1) != 0) {
      load(s, c.index, area.data() + c.offset);
    } else {
      initialise(s, c.index);
    }
  }
  s.x87.mxcsr = (bv & (bit(component::sse) | bit(component::avx))) != 0 ? mxcsr : 0x1f80;
  return true;
}

} // namespace ring3::x86::xsave
