// SPDX-License-Identifier: Apache-2.0
// Writing control and debug registers with the architecture's checks (SDM vol. 3, 2.5, 4.1, 17.2). False: #GP
// recorded (or whatever the comment says), nothing changed. Used by MOV, LMSW, RSM and the KVM state calls.
#pragma once

#include "x86/cpu/cpu.h"

namespace ring3::x86 {

bool write_cr0(Cpu& cpu, u64 value);
bool write_cr3(Cpu& cpu, u64 value);
bool write_cr4(Cpu& cpu, u64 value);
bool write_efer(Cpu& cpu, u64 value);
// CR4 bits that this guest's CPUID allows.
u64 cr4_allowed(const CpuidTable& cpuid);
u64 efer_allowed(const CpuidTable& cpuid);

} // namespace ring3::x86
