// SPDX-License-Identifier: Apache-2.0
// Everything the decoder knows about one instruction. Transient: the interpreter's binders turn it into an
// Insn.
#pragma once

#include "base/types.h"
#include "x86/cpu/features.h"
#include "x86/cpu/state.h"
#include "x86/decode/op.h"

#include <array>

namespace ring3::x86 {

struct Operand {
  enum class Kind : u8 {
    none,
    gpr,
    mem,
    imm,
    far_pointer,
    segment,
    control,
    debug,
    mmx,
    xmm,
    ymm,
    zmm,
    mask,
    x87,
    other
  };
  Kind kind = Kind::none;
  u8 reg = 0;   // register number; for gpr the byte offset into CpuState::regs
  u16 bits = 0; // operand size
  bool read = false;
  bool written = false;
  bool hidden = false;  // not in the assembly text: AF, RSP of PUSH and the like
  u64 value = 0;        // imm; offset of a far pointer
  u16 selector = 0;     // far pointer
  u16 element_bits = 0; // vectors: size of one element
};

enum class Encoding : u8 { legacy, vex, evex };

struct Decoded {
  Op op = Op::invalid;
  u8 length = 0;
  u8 code_bits = 64;    // 16, 32 or 64: the mode it was decoded for
  u8 operand_bytes = 4; // effective operand size: 1, 2, 4, 8
  u8 address_bytes = 8;
  u8 condition = 0; // Jcc, SETcc, CMOVcc: the low four opcode bits
  bool lock = false, rep = false, repne = false;
  bool operand_size_prefix = false;
  Encoding encoding = Encoding::legacy;
  u8 opcode = 0;
  u8 map = 0;          // 0: one byte, 1: 0F, 2: 0F38, 3: 0F3A
  u16 vector_bits = 0; // VEX.L / EVEX.L'L as 128, 256, 512
  u16 mnemonic = 0;    // the decoder library's number, for tables keyed by it inside decode/ and for messages
  Feature feature;     // what CPUID must offer
  Feature feature2;    // AVX-512 forms that need VL too

  bool has_memory = false;
  bool vsib = false;         // the index is a vector register: gathers and scatters
  bool address_only = false; // LEA and the like: no access
  u8 base = reg_zero, index = reg_zero, scale = 0;
  Seg segment = Seg::ds;
  s64 displacement = 0; // or the absolute address of MOV moffs
  u16 memory_bits = 0;
  bool memory_read = false, memory_written = false;
  bool rip_relative = false;

  std::array<Operand, 10> operand;
  u8 operands = 0;
  u8 visible_operands = 0;

  // Where things lie in the bytes (offset 0: absent), so that the instruction can be rewritten for the host.
  std::array<u8, 15> bytes{};
  u8 modrm = 0;
  u8 modrm_offset = 0, sib_offset = 0, disp_offset = 0, disp_size = 0, imm_offset = 0, imm_size = 0;
  u8 rex_offset = 0xff, vex_offset = 0xff, evex_offset = 0xff; // of the first byte
  bool evex_z = false, evex_b = false;
  u8 evex_mask = 0; // opmask register, 0: none
  bool branch_relative = false;

  const Operand& visible(unsigned i) const { return operand[i]; }
};

enum class DecodeStatus : u8 { ok, need_more, invalid, too_long };

// What Decoded::mnemonic stands for, in lower case.
const char* mnemonic_name(u16 mnemonic);

// Decodes one instruction of `size` available bytes for 16-, 32- or 64-bit code.
DecodeStatus decode(const u8* bytes, u64 size, unsigned code_bits, Decoded& out);

} // namespace ring3::x86
