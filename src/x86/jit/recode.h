// SPDX-License-Identifier: Apache-2.0
// Copies a guest instruction for the host: the same operation on other registers and another memory operand.
#pragma once

#include "x86/decode/decoded.h"
#include "x86/jit/emitter.h"

#include <array>
#include <optional>

namespace ring3::x86::jit {

// The host register of each guest register; no_reg: it has none.
using RegisterMap = std::array<HostReg, 16>;

// What the fields of an instruction that may be copied name.
struct CopyForm {
  bool reg_is_gpr = false; // ModRM.reg is a register and not part of the opcode
  bool byte_reg = false;   // of 8 bits
  bool byte_rm = false;
  bool opcode_reg = false; // the register is in the opcode's low three bits
  bool vvvv = false;       // VEX.vvvv is a register
};

// Null: not one that runs on the host as it is. 64-bit code only. Register operands beyond those in ModRM and
// the opcode are implied (RAX of MUL, CL of shifts) and have to be in their own host registers.
std::optional<CopyForm> copy_form(const Decoded& d);

// Writes those prefixes of a legacy instruction that are not in its new memory operand: no segment, no
// address size, and no REX, which the caller puts behind them. The offset of the opcode.
unsigned copy_prefixes(Emitter& e, const Decoded& d);

// Whether it can be written at all with this map: AH to BH cannot be named together with registers that need
// a prefix. `memory`: the operand to take the place of the guest's.
bool can_copy(const Decoded& d, const CopyForm& f, const RegisterMap& map, bool memory);

// The instruction. `memory` is null if ModRM names a register, or nothing.
void copy(Emitter& e, const Decoded& d, const CopyForm& f, const RegisterMap& map, const HostMem* memory);

} // namespace ring3::x86::jit
