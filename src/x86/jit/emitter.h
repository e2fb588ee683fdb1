// SPDX-License-Identifier: Apache-2.0
// Writes host instructions: the few forms that the translator adds around the guest's own. Bytes go to one
// mapping of the code cache, and run in another; distances between them are the same in both.
#pragma once

#include "base/bits.h"
#include "x86/cpu/state.h"
#include "x86/jit/host_memory.h"

#include <cstring>
#include <span>

namespace ring3::x86::jit {

// Condition codes as encoded in Jcc (SDM vol. 2, table B-10).
enum class Cond : u8 { o, no, b, nb, e, ne, be, nbe, s, ns, p, np, l, nl, le, nle };

class Emitter {
 public:
  explicit Emitter(std::span<u8> room) : begin_(room.data()), at_(room.data()), end_(begin_ + room.size()) {}

  u8* here() const { return at_; }
  u8* begin() const { return begin_; }
  std::size_t size() const { return static_cast<std::size_t>(at_ - begin_); }
  // Something did not fit: what was written is of no use.
  bool overflowed() const { return overflowed_; }

  void byte(u8 b) {
    if (at_ == end_) {
      overflowed_ = true;
      return;
    }
    *at_++ = b;
  }
  void bytes(std::span<const u8> all) {
    for (const u8 b : all) byte(b);
  }
  template <class T> void raw(T v) {
    u8 b[sizeof(T)];
    std::memcpy(b, &v, sizeof(T));
    bytes(b);
  }

  // ModRM, SIB and displacement for a register field of 3 bits; REX bits are the caller's.
  // `no_byte`: the displacement, if there is one, takes four bytes.
  void modrm(u8 reg, const HostMem& m, bool no_byte = false);
  void modrm(u8 reg, HostReg rm) { byte(static_cast<u8>(0xc0 | (reg & 7) << 3 | (rm & 7))); }
  // The REX prefix for these operands, if one is needed.
  void rex(bool wide, u8 reg, const HostMem& m, bool force = false);
  void rex(bool wide, u8 reg, HostReg rm, bool force = false);

  // --- moves; 64 bits unless the name says otherwise ---
  void mov(HostReg to, HostReg from) { op_rr(true, 0x8b, to, from); }
  void mov(HostReg to, const HostMem& from) { op_rm(true, 0x8b, to, from); }
  void mov(const HostMem& to, HostReg from) { op_rm(true, 0x89, from, to); }
  void mov16(const HostMem& to, HostReg from) {
    byte_prefix(to, 0x66);
    op_rm_after_prefix(false, 0x89, from, to);
  }
  void movzx16(HostReg to, const HostMem& from);
  // The shortest form; keeps the flags.
  void mov_imm(HostReg to, u64 value);
  void mov_imm(const HostMem& to, s32 value) { // sign-extended
    op_rm(true, 0xc7, 0, to);
    raw<s32>(value);
  }
  void mov16_imm(const HostMem& to, u16 value) {
    byte_prefix(to, 0x66);
    op_rm_after_prefix(false, 0xc7, 0, to);
    raw<u16>(value);
  }
  void lea(HostReg to, const HostMem& from) { op_rm(true, 0x8d, to, from); }
  void lea32(HostReg to, const HostMem& from) { op_rm(false, 0x8d, to, from); }

  // --- arithmetic ---
  void shr(HostReg r, u8 count) { shift(5, r, count); }
  void shl(HostReg r, u8 count) { shift(4, r, count); }
  void and32(HostReg r, u32 value) { alu_imm(false, 4, r, static_cast<s32>(value)); }
  void and_(HostReg r, s32 value) { alu_imm(true, 4, r, value); }
  void add(HostReg r, const HostMem& m) { op_rm(true, 0x03, r, m); }
  void xor32(HostReg to, HostReg from) { op_rr(false, 0x33, to, from); }
  void cmp(HostReg r, const HostMem& m) { op_rm(true, 0x3b, r, m); }
  void cmp_imm(const HostMem& m, s32 value) { mem_imm(true, 7, m, value); }
  void cmp32_imm(const HostMem& m, s32 value) { mem_imm(false, 7, m, value); }
  void sub32_imm(const HostMem& m, s32 value) { mem_imm(false, 5, m, value); }
  void add32_imm(const HostMem& m, s32 value) { mem_imm(false, 0, m, value); }
  // With eight bytes in the code; the rel32 to be aimed at them is at the address returned.
  u8* cmp_literal(HostReg r) {
    rex(true, r, HostReg{rbp});
    byte(0x3b);
    byte(static_cast<u8>((r & 7) << 3 | 5)); // RIP and a displacement
    return rel32();
  }
  // --- of 64 bits if `wide`, else of 32 ---
  void mov(bool wide, HostReg to, HostReg from) { op_rr(wide, 0x8b, to, from); }
  void mov(bool wide, HostReg to, const HostMem& from) { op_rm(wide, 0x8b, to, from); }
  void mov(bool wide, const HostMem& to, HostReg from) { op_rm(wide, 0x89, from, to); }
  void cmp(bool wide, HostReg a, HostReg b) { op_rr(wide, 0x3b, a, b); }
  void cmp_imm(bool wide, HostReg r, s32 value) { alu_imm(wide, 7, r, value); }
  // EDX:EAX or RDX:RAX by the register.
  void divide(bool wide, bool is_signed, HostReg r) {
    const u8 digit = is_signed ? 7 : 6;
    rex(wide, digit, r);
    byte(0xf7);
    modrm(digit, r);
  }
  void sar(bool wide, HostReg r, u8 count) {
    rex(wide, 7, r);
    byte(0xc1);
    modrm(7, r);
    byte(count);
  }

  void test(HostReg a, HostReg b) { op_rr(true, 0x85, a, b); }

  void test8_imm(const HostMem& m, u8 value) {
    op_rm(false, 0xf6, 0, m);
    byte(value);
  }
  void test8_imm(HostReg r, u8 value) {
    rex(false, 0, r, true);
    byte(0xf6);
    modrm(0, r);
    byte(value);
  }
  void cmp8_imm(const HostMem& m, u8 value) {
    op_rm(false, 0x80, 7, m);
    byte(value);
  }
  void and_imm(const HostMem& m, s32 value) { mem_imm(true, 4, m, value); }
  void or_imm(const HostMem& m, s32 value) { mem_imm(true, 1, m, value); }
  void mov8_imm(const HostMem& m, u8 value) {
    op_rm(false, 0xc6, 0, m);
    byte(value);
  }
  void mov8(const HostMem& to, HostReg from) { // RAX to RBX, R8 to R15
    op_rm(false, 0x88, from, to);
  }
  void or8(const HostMem& to, HostReg from) { // likewise
    op_rm(false, 0x08, from, to);
  }
  void or8_imm(const HostMem& m, u8 value) {
    op_rm(false, 0x80, 1, m);
    byte(value);
  }
  void movzx8(HostReg to, const HostMem& from) {
    if (from.gs) byte(0x65);
    rex(false, to, from);
    bytes_of(0x0f, 0xb6);
    modrm(to, from);
  }
  void load_host_mxcsr(const HostMem& m) { state_op(false, 2, m); }

  void stmxcsr(const HostMem& m) { state_op(false, 3, m); }
  void fxsave64(const HostMem& m) { state_op(true, 0, m); }
  void fxrstor64(const HostMem& m) { state_op(true, 1, m); }
  void fldcw(const HostMem& m) { op_rm(false, 0xd9, 5, m); }
  void emms() { bytes_of(0x0f, 0x77); }

  // BT of a word: CF becomes the bit.
  void bt16(const HostMem& m, u8 number) {
    byte_prefix(m, 0x66);
    rex(false, 4, m);
    bytes_of(0x0f, 0xba);
    modrm(4, m);
    byte(number);
  }

  // Sign-extended from 16, 32 or 64 bits to 64.
  void movsx(HostReg to, HostReg from, unsigned bits) {
    if (bits == 64) return mov(to, from);
    rex(true, to, from);
    if (bits == 16) byte(0x0f);
    byte(bits == 16 ? 0xbf : 0x63);
    modrm(to, from);
  }
  void movzx8(HostReg to, HostReg from) { // RAX to RBX, R8 to R15
    rex(false, to, from);
    bytes_of(0x0f, 0xb6);
    modrm(to, from);
  }
  void cmov(Cond c, HostReg to, HostReg from) {
    rex(true, to, from);
    bytes_of(0x0f, static_cast<u8>(0x40 | static_cast<u8>(c)));
    modrm(to, from);
  }
  void sub(HostReg to, HostReg from) { op_rr(true, 0x2b, to, from); }
  void or_(HostReg to, HostReg from) { op_rr(true, 0x0b, to, from); }
  void or_(HostReg to, const HostMem& from) { op_rm(true, 0x0b, to, from); }
  void xor_(HostReg to, const HostMem& from) { op_rm(true, 0x33, to, from); }
  void xor32_imm(HostReg r, u32 value) { alu_imm(false, 6, r, static_cast<s32>(value)); }
  void add32_imm(HostReg r, s32 value) { alu_imm(false, 0, r, value); }
  void test32_imm(HostReg r, u32 value) {
    rex(false, 0, r);
    byte(0xf7);
    modrm(0, r);
    raw<u32>(value);
  }
  void test(bool wide, HostReg a, HostReg b) { op_rr(wide, 0x85, a, b); }
  void xor_imm(const HostMem& m, s32 value) { mem_imm(true, 6, m, value); }
  // A string instruction, by its opcode for bytes.
  void rep(u8 opcode, unsigned size) {
    if (size == 2) byte(0x66);
    byte(0xf3);
    if (size == 8) byte(0x48);
    byte(static_cast<u8>(opcode | (size == 1 ? 0 : 1)));
  }
  void pushfq() { byte(0x9c); }
  void rdtsc() { bytes_of(0x0f, 0x31); }
  void host_pause() { bytes_of(0xf3, 0x90); }
  void host_lfence() { bytes_of(0x0f, 0xae, 0xe8); }

  // --- of `size` bytes: 1 (RAX to RBX, R8 to R15), 2, 4 or 8 ---
  void load(unsigned size, HostReg to, const HostMem& from) { sized(0x8a, size, to, from); }
  void store(unsigned size, const HostMem& to, HostReg from) { sized(0x88, size, from, to); }
  void compare(unsigned size, HostReg a, const HostMem& b) { sized(0x3a, size, a, b); }
  // An opcode after 0F. Prefixes are the caller's: no GS.
  void op_0f_rm(bool wide, u8 opcode, u8 reg, const HostMem& m) {
    rex(wide, reg, m);
    bytes_of(0x0f, opcode);
    modrm(reg, m);
  }

  // --- flags; see oszapc ---
  void lahf() { byte(0x9f); }
  void sahf() { byte(0x9e); }
  void seto_al() { bytes_of(0x0f, 0x90, 0xc0); }
  void add_al_7f() { bytes_of(0x04, 0x7f); }

  // --- control ---
  // The rel32 to be aimed later is at the address returned.
  u8* jcc(Cond c) {
    bytes_of(0x0f, static_cast<u8>(0x80 | static_cast<u8>(c)));
    return rel32();
  }
  u8* jmp() {
    byte(0xe9);
    return rel32();
  }
  void jmp(const HostMem& m) { op_rm(false, 0xff, 4, m); }
  void jmp(HostReg r) {
    rex(false, 0, r);
    byte(0xff);
    modrm(4, r);
  }
  void call(HostReg r) {
    rex(false, 0, r);
    byte(0xff);
    modrm(2, r);
  }
  void ret() { byte(0xc3); }
  void push(HostReg r) {
    rex(false, 0, r);
    byte(static_cast<u8>(0x50 | (r & 7)));
  }
  void pop(HostReg r) {
    rex(false, 0, r);
    byte(static_cast<u8>(0x58 | (r & 7)));
  }
  void lea_rsp(s8 displacement) { // ADD without flags
    bytes_of(0x48, 0x8d, 0x64, 0x24, static_cast<u8>(displacement));
  }

  // Aims a rel32 at a place in the same mapping.
  static void aim(u8* field, const u8* target) {
    const auto distance = static_cast<s32>(target - (field + 4));
    std::memcpy(field, &distance, sizeof distance);
  }
  void aim_here(u8* field) const {
    if (!overflowed_) aim(field, at_);
  }

  void op_rm(bool wide, u8 opcode, u8 reg, const HostMem& m) {
    if (m.gs) byte(0x65);
    op_rm_after_prefix(wide, opcode, reg, m);
  }

 private:
  template <class... B> void bytes_of(B... b) { (byte(static_cast<u8>(b)), ...); }
  // The opcode is that for bytes.
  void sized(u8 opcode, unsigned size, HostReg reg, const HostMem& m) {
    if (size == 2) byte_prefix(m, 0x66);
    if (size != 2 && m.gs) byte(0x65);
    op_rm_after_prefix(size == 8, static_cast<u8>(opcode | (size == 1 ? 0 : 1)), reg, m);
  }
  void state_op(bool wide, u8 digit, const HostMem& m) { // 0F AE
    if (m.gs) byte(0x65);
    rex(wide, digit, m);
    bytes_of(0x0f, 0xae);
    modrm(digit, m);
  }
  void byte_prefix(const HostMem& m, u8 prefix) {
    if (m.gs) byte(0x65);
    byte(prefix);
  }
  void op_rm_after_prefix(bool wide, u8 opcode, u8 reg, const HostMem& m) {
    rex(wide, reg, m);
    byte(opcode);
    modrm(reg, m);
  }
  void op_rr(bool wide, u8 opcode, HostReg reg, HostReg rm) {
    rex(wide, reg, rm);
    byte(opcode);
    modrm(reg, rm);
  }
  void shift(u8 digit, HostReg r, u8 count);
  void alu_imm(bool wide, u8 digit, HostReg r, s32 value);
  void mem_imm(bool wide, u8 digit, const HostMem& m, s32 value);
  u8* rel32() {
    u8* const field = at_;
    raw<u32>(0);
    return overflowed_ ? begin_ : field; // somewhere that may be written
  }

  u8* begin_;
  u8* at_;
  u8* end_;
  bool overflowed_ = false;
};

} // namespace ring3::x86::jit
