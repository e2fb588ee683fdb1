// SPDX-License-Identifier: Apache-2.0
// Small host functions generated at run time: each loads the registers that one guest instruction uses,
// executes it on the host processor and stores the results. One cache for the process, shared by all vCPU
// threads.
#pragma once

#include "base/types.h"
#include "x86/cpu/features.h"
#include "x86/cpu/state.h"

#include <span>

namespace ring3::x86 {

// What a generated function does: 0, or 1 if an unmasked SIMD floating-point exception stopped it, in which
// case only MXCSR has changed. `memory` replaces the instruction's memory operand.
using HostStub = u32 (*)(CpuState*, void* memory);
// Likewise for x87: the image is an XSAVE area with the x87 component. Takes and returns flags in oszapc
// form.
using X87Stub = u32 (*)(void* xsave_area, void* memory, u32 flags);

namespace host {

// Copies code into executable memory that is never writable at the address it runs at. Null when there is no
// more memory, or the process may not have any that is executable.
const void* publish_code(std::span<const u8> code);

// Does the processor we run on have the feature, and does the operating system enable its state?
bool has_feature(Feature f);
bool has_avx();    // YMM registers
bool has_avx512(); // ZMM and opmask registers
bool has_avx512bw();

// Makes unmasked SIMD exceptions inside generated code end the function with 1. Idempotent; publish_code()
// does it.
void install_exception_handler();

// For a process that has a SIGFPE handler of its own: ours is not installed, and that handler asks
// exception_resume(), which says whether the exception at `rip` was raised by generated code, and where to go
// on.
void leave_exceptions_to_caller();
bool exception_resume(u64& rip);

} // namespace host

} // namespace ring3::x86
