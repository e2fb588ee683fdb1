// SPDX-License-Identifier: Apache-2.0
// A decoded instruction, small enough to be cached by the hundred thousand, ready to execute.
#pragma once

#include "base/types.h"

#include <type_traits>

namespace ring3::x86 {

class Cpu;
struct Insn;
struct VectorPlan; // interp/vector: how to run it on the host

// What an instruction's handler tells the interpreter's loop.
enum class Step : u8 {
  next,  // done, continue with the instruction that follows in the block
  jump,  // done, RIP was written or something changed that the block's decoding depends on: look the block up
         // again
  abort, // not done: a fault or an exit is recorded in the Cpu, RIP goes back to this instruction
};

using Handler = Step (*)(Cpu&, const Insn&);

namespace insn_flag {
constexpr u8 lock = 1, rep = 2, repne = 4, mem = 8, split_page = 16, far_operand = 32;
} // namespace insn_flag

// Register operands are byte offsets into CpuState::regs, so that AH is rax * 8 + 1 and every width uses one
// formula.
struct Insn {
  Handler handler;
  u64 imm;   // immediate, sign-extended to the operand size's rule; or branch displacement; or moffs address
  s32 disp;  // displacement of the memory operand
  u8 base;   // index into regs: Gpr, reg_zero or reg_rip
  u8 index;  // likewise
  u8 scale;  // shift count 0-3
  u8 seg;    // Seg of the memory operand, overrides applied
  u8 reg;    // byte offset of the ModRM.reg (or opcode-register) operand, or a number for CRn, DRn, Sreg, cc
  u8 rm;     // byte offset of the ModRM.rm operand when it is a register
  u8 aux;    // third operand: VEX.vvvv register offset, or second immediate
  u8 len;    // instruction length in bytes
  u8 opsize; // operand size in bytes: 1, 2, 4, 8
  u8 addrsize;            // address size in bytes: 2, 4, 8
  u8 flags;               // insn_flag
  u8 vvvv;                // spare register number of VEX forms
  const VectorPlan* plan; // vector and x87 instructions
};
static_assert(sizeof(Insn) <= 48);
static_assert(std::is_trivially_copyable_v<Insn>);

} // namespace ring3::x86
