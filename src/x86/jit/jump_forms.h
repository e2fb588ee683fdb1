// SPDX-License-Identifier: Apache-2.0
// What ends a block for the interpreter, and is followed by traces: the near jumps of 64-bit code whose
// destination is known when they are translated, or is where a call came from.
#pragma once

#include "x86/decode/decoded.h"

namespace ring3::x86::jit {

enum class JumpForm : u8 {
  none,      // something else
  jump,      // JMP, Jcc and CALL by a displacement
  condition, //
  call,      //
  ret,       // RET, which releases few bytes if any
  behind,    // STI: no jump, but blocks end with it, since the next instruction still comes before interrupts
};

JumpForm jump_form(const Decoded& d);

} // namespace ring3::x86::jit
