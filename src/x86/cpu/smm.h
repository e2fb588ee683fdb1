// SPDX-License-Identifier: Apache-2.0
// System-management mode (SDM vol. 3, chapter 32; APM vol. 2, chapter 10), as KVM has it: the state save area
// is AMD64's for guests with long mode and the P6's for the others, with the interrupt shadow in a byte that
// both reserve; there is neither I/O restart nor auto-halt restart. In SMM a vCPU sees the second address
// space of the memory slots.
#pragma once

#include "x86/cpu/cpu.h"

namespace ring3::x86 {

// Takes an SMI: saves the state at SMBASE + 0xfe00 and goes to SMBASE + 0x8000 in real-address mode. False:
// that is no memory that can be written. The state is undefined then, as KVM leaves it when it ends such a
// VM.
bool enter_smm(Cpu& cpu);

// RSM: loads what the area says now, and SMBASE with it. False: shutdown, because the area cannot be read or
// holds a state that no processor can be in. Nothing of the state before is left then.
bool leave_smm(Cpu& cpu);

// Only whether the processor is in SMM (KVM_SET_VCPU_EVENTS): which address space it sees.
void set_smm(Cpu& cpu, bool in_smm);

} // namespace ring3::x86
