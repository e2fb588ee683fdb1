// SPDX-License-Identifier: Apache-2.0
// The few host instructions that stubs are made of, as bytes (SDM vol. 2, chapter 2). Stubs take CpuState in
// RDI and the memory operand's address in RSI.
#pragma once

#include "base/types.h"
#include "x86/cpu/state.h"

#include <array>
#include <cstddef>
#include <initializer_list>
#include <span>

namespace ring3::x86::host {

constexpr u32 default_mxcsr = 0x1f80;
constexpr u64 mxcsr_offset = offsetof(CpuState, x87) + offsetof(X87State, mxcsr);
constexpr u64 flags_offset = offsetof(CpuState, flags);

class Emitter {
 public:
  void byte(unsigned b) { code_[size_++] = static_cast<u8>(b); }
  void bytes(std::initializer_list<unsigned> list) {
    for (const unsigned b : list) byte(b);
  }
  void bytes(std::span<const u8> list) {
    for (const u8 b : list) byte(b);
  }
  void u32_(u32 v) {
    for (unsigned i = 0; i < 4; ++i) byte(v >> (8 * i) & 0xff);
  }
  std::span<const u8> span() const { return {code_.data(), size_}; }
  unsigned size() const { return size_; }
  void patch(unsigned at, unsigned b) { code_[at] = static_cast<u8>(b); }

  // A 64-bit general register (0-2) from or to [rdi + offset].
  void load_gpr(unsigned reg, u64 offset) { gpr(0x8b, reg, offset); }
  void store_gpr(unsigned reg, u64 offset) { gpr(0x89, reg, offset); }
  // XMM with MOVAPS, which leaves the upper part alone.
  void load_xmm(unsigned reg) { legacy_vector(0x28, reg); }
  void store_xmm(unsigned reg) { legacy_vector(0x29, reg); }
  void load_vector(unsigned reg, unsigned bits) { vector(0x28, reg, bits); }
  void store_vector(unsigned reg, unsigned bits) { vector(0x29, reg, bits); }
  void load_mask(unsigned reg, bool wide) { mask(0x90, reg, wide); }
  void store_mask(unsigned reg, bool wide) { mask(0x91, reg, wide); }
  void load_mmx(unsigned reg) { mmx(0x6f, reg); }
  // What an MMX instruction writes also sets the register's exponent (SDM vol. 1, 9.5).
  void store_mmx(unsigned reg) {
    mmx(0x7f, reg);
    bytes({0x66, 0xc7});
    at_rdi(0, mmx_offset(reg) + 8);
    bytes({0xff, 0xff});
  }
  void load_mxcsr(u64 offset) {
    bytes({0x0f, 0xae});
    at_rdi(2, offset);
  }
  void store_mxcsr(u64 offset) {
    bytes({0x0f, 0xae});
    at_rdi(3, offset);
  }
  void at_rdi(unsigned reg, u64 offset) {
    byte(0x87 | (reg & 7) << 3);
    u32_(static_cast<u32>(offset));
  }

  static constexpr u64 vector_offset(unsigned reg) { return offsetof(CpuState, vector) + reg * 64; }
  static constexpr u64 mask_offset(unsigned reg) {
    return offsetof(CpuState, vector) + offsetof(VectorState, k) + reg * 8;
  }
  static constexpr u64 mmx_offset(unsigned reg) {
    return offsetof(CpuState, x87) + offsetof(X87State, st) + reg * 16;
  }

 private:
  void gpr(unsigned opcode, unsigned reg, u64 offset) {
    bytes({0x48, opcode});
    at_rdi(reg, offset);
  }
  void legacy_vector(unsigned opcode, unsigned reg) {
    if (reg >= 8) byte(0x44);
    bytes({0x0f, opcode});
    at_rdi(reg, vector_offset(reg));
  }
  void vector(unsigned opcode, unsigned reg, unsigned bits) {
    if (reg < 16 && bits <= 256) {
      bytes({0xc5, (reg < 8 ? 0x80U : 0) | 0x78 | (bits == 256 ? 4U : 0), opcode});
    } else {
      // EVEX.512 whatever the size, since shorter forms need AVX512VL.
      bytes({0x62, (reg & 8 ? 0U : 0x80) | 0x60 | (reg & 16 ? 0U : 0x10) | 1, 0x7c, 0x48, opcode});
    }
    at_rdi(reg, vector_offset(reg));
  }
  void mask(unsigned opcode, unsigned reg, bool wide) {
    if (wide) {
      bytes({0xc4, 0xe1, 0xf8, opcode});
    } else {
      bytes({0xc5, 0xf8, opcode});
    }
    at_rdi(reg, mask_offset(reg));
  }
  void mmx(unsigned opcode, unsigned reg) {
    bytes({0x0f, opcode});
    at_rdi(reg, mmx_offset(reg));
  }

  std::array<u8, 1024> code_{};
  unsigned size_ = 0;
};

} // namespace ring3::x86::host
