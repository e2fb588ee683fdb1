// SPDX-License-Identifier: Apache-2.0
// From a decoded instruction to one that can be executed: each family of the interpreter offers a binder that
// picks the handler for an instruction and fills the Insn's operand fields, or returns null if the
// instruction is not its own.
#pragma once

#include "x86/cpu/cpu.h"
#include "x86/decode/decoded.h"
#include "x86/decode/insn.h"

namespace ring3::x86 {

using Binder = Handler (*)(const Decoded&, Insn&, const CpuidTable&);

Handler bind_moves(const Decoded& d, Insn& in, const CpuidTable& cpuid);
Handler bind_arithmetic(const Decoded& d, Insn& in, const CpuidTable& cpuid);
Handler bind_shifts(const Decoded& d, Insn& in, const CpuidTable& cpuid);
Handler bind_bits(const Decoded& d, Insn& in, const CpuidTable& cpuid);
Handler bind_stack(const Decoded& d, Insn& in, const CpuidTable& cpuid);
Handler bind_control_flow(const Decoded& d, Insn& in, const CpuidTable& cpuid);
Handler bind_strings(const Decoded& d, Insn& in, const CpuidTable& cpuid);
Handler bind_segments(const Decoded& d, Insn& in, const CpuidTable& cpuid);
Handler bind_system(const Decoded& d, Insn& in, const CpuidTable& cpuid);
Handler bind_control_registers(const Decoded& d, Insn& in, const CpuidTable& cpuid);
Handler bind_state_save(const Decoded& d, Insn& in, const CpuidTable& cpuid);
Handler bind_vector(const Decoded& d, Insn& in, const CpuidTable& cpuid);
Handler bind_x87(const Decoded& d, Insn& in, const CpuidTable& cpuid);

// Fills the fields every family needs, then asks the families in turn. Instructions that CPUID does not
// offer, or that nobody has, get the #UD handler. Sets `ends` when the block must end after this instruction.
void bind(const Decoded& d, const CpuidTable& cpuid, Insn& in, bool& ends);

Step handle_ud(Cpu& cpu, const Insn& in);
Step handle_too_long(Cpu& cpu, const Insn& in);  // #GP(0): more than 15 bytes
Step handle_block_end(Cpu& cpu, const Insn& in); // not an instruction: the sentinel after the last one

} // namespace ring3::x86
