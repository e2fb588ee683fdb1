// SPDX-License-Identifier: Apache-2.0
// KVM_CAP_EXIT_ON_EMULATION_FAILURE (api.rst 7.27).
//
// On hardware KVM emulates the instructions that reach a device, and its emulator does not know all of them;
// a VMM that switches this on has one of its own and takes them over. Ours knows them all, and executes them
// for every other VMM; for this one it leaves the same instructions as KVM.
#pragma once

#include "base/types.h"

#include <span>

namespace ring3::x86 {

// Does KVM's emulator (Linux 6.12) know the instruction that these bytes begin with? Looked at for memory
// operands only: x87, MMX and vector instructions other than plain moves are unknown to it, and some newer
// ones.
bool kvm_emulates(std::span<const u8> code, bool code64);

} // namespace ring3::x86
