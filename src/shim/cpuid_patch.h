// SPDX-License-Identifier: Apache-2.0
// VMMs ask the processor itself whether it can do virtualization, and copy its vendor, model and XSAVE layout
// for their guests. CPUID traps for no user program, so the CPUID instructions of the program's own code are
// replaced by UD2, and the fault is answered: with the host's CPUID, but for what belongs to the processor
// that this library's KVM has.
#pragma once

#include "base/types.h"
#include "x86/cpu/cpuid.h"

#include <span>
#include <ucontext.h>

namespace ring3::shim {

// Replaces them, if the program says /dev/kvm anywhere: others have no use for it. Its constructors must not
// have run yet. Only instructions inside functions of the unwind tables (.eh_frame_hdr) that decode from the
// function's start are touched; data that looks like CPUID is not.
void patch_cpuid();

// In the handler of SIGILL: whether the context stands at a replaced instruction, which then has been
// executed on its registers.
bool emulate_cpuid(ucontext_t& context);

// The answer to such a CPUID, from the host's and from what KVM_GET_SUPPORTED_CPUID says.
x86::CpuidResult program_cpuid(u32 leaf, u32 subleaf, const x86::CpuidResult& host,
                               std::span<const kvm_cpuid_entry2> supported);

// Where `code`, which starts at a function's first instruction, has CPUID instructions: offsets.
std::vector<u64> find_cpuid(std::span<const u8> code);

} // namespace ring3::shim
