// SPDX-License-Identifier: Apache-2.0
#include "x86/jit/emitter.h"

namespace ring3::x86::jit {

namespace {
bool fits8(s32 v) { return v == static_cast<s8>(v); }
} // namespace

void Emitter::rex(bool wide, u8 reg, const HostMem& m, bool force) {
  const u8 r = reg >> 3 & 1;
  const u8 x = m.index != no_reg ? m.index >> 3 & 1 : 0;
  const u8 b = m.base != no_reg ? m.base >> 3 & 1 : 0;
  const auto prefix = static_cast<u8>(0x40 | (wide ? 8 : 0) | r << 2 | x << 1 | b);
  if (prefix != 0x40 || force) byte(prefix);
}

void Emitter::rex(bool wide, u8 reg, HostReg rm, bool force) {
  const auto prefix = static_cast<u8>(0x40 | (wide ? 8 : 0) | (reg >> 3 & 1) << 2 | (rm >> 3 & 1));
  if (prefix != 0x40 || force) byte(prefix);
}

void Emitter::modrm(u8 reg, const HostMem& m, bool no_byte) {
  const auto field = static_cast<u8>((reg & 7) << 3);
  if (m.base == no_reg) {
    // Without a base: a SIB byte that names none, and always 32 bits of displacement.
    byte(field | 4);
    const u8 index = m.index == no_reg ? 4 : m.index & 7;
    byte(static_cast<u8>(m.scale << 6 | index << 3 | 5));
    raw<s32>(m.disp);
    return;
  }
  const bool needs_sib = m.index != no_reg || (m.base & 7) == 4;
  // RBP and R13 without a displacement would mean something else.
  const u8 mod = m.disp == 0 && (m.base & 7) != 5 ? 0 : fits8(m.disp) && !(no_byte && m.disp != 0) ? 1 : 2;
  byte(static_cast<u8>(mod << 6 | field | (needs_sib ? 4 : m.base & 7)));
  if (needs_sib) {
    const u8 index = m.index == no_reg ? 4 : m.index & 7;
    byte(static_cast<u8>(m.scale << 6 | index << 3 | (m.base & 7)));
  }
  if (mod == 1) byte(static_cast<u8>(m.disp));
  if (mod == 2) raw<s32>(m.disp);
}

void Emitter::movzx16(HostReg to, const HostMem& from) {
  if (from.gs) byte(0x65);
  rex(false, to, from);
  byte(0x0f);
  byte(0xb7);
  modrm(to, from);
}

void Emitter::mov_imm(HostReg to, u64 value) {
  if (value == static_cast<u32>(value)) {
    rex(false, 0, to);
    byte(static_cast<u8>(0xb8 | (to & 7)));
    raw<u32>(static_cast<u32>(value));
  } else if (static_cast<s64>(value) == static_cast<s32>(value)) {
    rex(true, 0, to);
    byte(0xc7);
    modrm(0, to);
    raw<u32>(static_cast<u32>(value));
  } else {
    rex(true, 0, to);
    byte(static_cast<u8>(0xb8 | (to & 7)));
    raw<u64>(value);
  }
}

void Emitter::shift(u8 digit, HostReg r, u8 count) {
  rex(true, 0, r);
  byte(0xc1);
  modrm(digit, r);
  byte(count);
}

void Emitter::alu_imm(bool wide, u8 digit, HostReg r, s32 value) {
  rex(wide, 0, r);
  byte(fits8(value) ? 0x83 : 0x81);
  modrm(digit, r);
  if (fits8(value)) {
    byte(static_cast<u8>(value));
  } else {
    raw<s32>(value);
  }
}

void Emitter::mem_imm(bool wide, u8 digit, const HostMem& m, s32 value) {
  op_rm(wide, fits8(value) ? 0x83 : 0x81, digit, m);
  if (fits8(value)) {
    byte(static_cast<u8>(value));
  } else {
    raw<s32>(value);
  }
}

} // namespace ring3::x86::jit
