// SPDX-License-Identifier: Apache-2.0
// The machine-check registers: MCG_*, and for each bank MCi_CTL, STATUS, ADDR, MISC and CTL2 (SDM vol. 3,
// 15.3). Nothing here ever goes wrong by itself: a VMM reports errors (x86/api/machine_check.cpp).
#pragma once

#include "x86/cpu/cpu.h"

namespace ring3::x86 {

namespace mcg {
constexpr u64 ctl_p = bit(8), cmci_p = bit(10), ser_p = bit(24); // IA32_MCG_CAP
constexpr u64 mcip = bit(2);                                     // IA32_MCG_STATUS
constexpr unsigned banks(u64 cap) { return static_cast<unsigned>(cap & 0xff); }
} // namespace mcg

namespace mci {
constexpr u64 val = bit(63), over = bit(62), uc = bit(61), pcc = bit(57), s = bit(56), ar = bit(55); // STATUS
constexpr u64 cmci_enable = bit(30), cmci_threshold = low_mask(15);                                  // CTL2
} // namespace mci

// `index` is one of them; for writing not MCG_CAP. False: not in this guest's CPU, or a value that the
// register does not take. `host`: from KVM_GET/SET_MSRS.
bool read_machine_check(Cpu& cpu, u32 index, u64& value, bool host);
bool write_machine_check(Cpu& cpu, u32 index, u64 value, bool host);

} // namespace ring3::x86
