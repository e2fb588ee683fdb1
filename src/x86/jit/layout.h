// SPDX-License-Identifier: Apache-2.0
// Where translated code finds things: displacements from the host's GS base, which is the Cpu's address.
#pragma once

#include "x86/cpu/state.h"
#include "x86/jit/host_memory.h"

namespace ring3::x86::jit {

struct Layout {
  s32 regs = 0; // CpuState::regs
  s32 flags = 0;
  s32 exit_word = 0;
  const void* far_exit_word = nullptr; // if it is too far away for a displacement
  s32 tlb = 0;                         // pointer to the TLB table of the mode
  s32 segment_base[seg_count] = {};
  s32 budget = 0;
  s32 jumps = 0;
  s32 cpl = 0;
  s32 system_flags = 0;
  s32 gs_base = 0; // that in CpuState::seg
  s32 kernel_gs_base = 0;
  s32 vectors_usable = 0;
  s32 vectors_live = 0;
  s32 host_mxcsr = 0;
  s32 x87 = 0; // CpuState::x87
  s32 x87_image = 0;
  s32 x87_control = 0;
  s32 x87_used = 0;
  s32 host_fcw = 0;
  s32 string_run = 0;
  s32 segment_selector[seg_count] = {};
  s32 fs_base = 0; // as gs_base
  s32 cr0 = 0, cr2 = 0, cr3 = 0, cr4 = 0, xcr0 = 0;
  s32 tsc_offset = 0, tsc_aux = 0;
  s32 window_wanted = 0;
  s32 pauses_left = 0;
  s32 code_tlb = 0;
  s32 supervisor_tlb = 0; // two pointers: with EFLAGS.AC clear, and set
  s32 tsc_is_host = 0;
  bool runs_twice = false; // what gives another result each time is the handlers'

  HostMem reg(unsigned guest) const { return HostMem::in_cpu(regs + static_cast<s32>(guest * 8)); }
};

// What translated code keeps where the host's RSP points to. Processors treat such words nearly as registers,
// which they do with no other memory.
namespace frame {
constexpr unsigned addends = 8;
constexpr s32 size = 40 + 8 * s32{addends};
constexpr HostMem budget = HostMem::at(rsp, 0);    // Context::budget, while no C++ code runs
constexpr HostMem saved_rax = HostMem::at(rsp, 8); // while the flags go through AX
constexpr HostMem target = HostMem::at(rsp, 16);   // of a call, while its return address is pushed
constexpr HostMem tlb = HostMem::at(rsp, 24);      // Layout::tlb, Context::jumps, likewise
constexpr HostMem jumps = HostMem::at(rsp, 32);
// What lookups have found that several runs of instructions share (lookup_groups); 0: nothing.
constexpr HostMem addend(unsigned slot) { return HostMem::at(rsp, 40 + static_cast<s32>(slot * 8)); }
} // namespace frame

// Guest RSP is here: the host's own stays the host's stack.
constexpr HostReg guest_rsp = r9;
// The translator's own.
constexpr HostReg scratch_a = r10, scratch_b = r11;
// In these the guest's registers of the same number are, between blocks. R9 to R11 of the guest are in
// CpuState, or where a block has put them.
constexpr HostReg identity[] = {rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r12, r13, r14, r15};

} // namespace ring3::x86::jit
