// SPDX-License-Identifier: Apache-2.0
#include "x86/jit/jump_forms.h"

namespace ring3::x86::jit {

JumpForm jump_form(const Decoded& d) {
  const Operand& o = d.operand[0];
  const bool number = o.kind == Operand::Kind::imm;
  if (d.op == Op::sti) return JumpForm::behind;
  if (d.operand_bytes != 8) return JumpForm::none;
  switch (d.op) {
  case Op::jcc: return number ? JumpForm::condition : JumpForm::none;
  case Op::jmp: return number ? JumpForm::jump : JumpForm::none;
  case Op::call: return number ? JumpForm::call : JumpForm::none;
  case Op::ret:
    // Not a far one, which is the same operation of the decoder.
    return (d.opcode & 0xfe) == 0xc2 && (!number || o.value <= 64) ? JumpForm::ret : JumpForm::none;
  default: return JumpForm::none;
  }
}

} // namespace ring3::x86::jit
