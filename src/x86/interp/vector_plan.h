// SPDX-License-Identifier: Apache-2.0
// How one MMX, SSE, AVX or AVX-512 instruction runs on the host: the generated function, what the processor's
// state must be for it not to fault, and the shape of its memory operand. Plans are immutable, live as long
// as the process, and are shared by all instructions that differ only in how they address memory.
#pragma once

#include "x86/cpu/cpu.h"
#include "x86/decode/decoded.h"
#include "x86/interp/host_code.h"

namespace ring3::x86 {

// Bits that must be clear or set, and which fault they cause otherwise (SDM vol. 2, 2.4, 2.8 and vol. 3,
// table 23-2).
struct VectorNeeds {
  u64 cr0_clear = cr0::ts;
  u64 cr0_set = 0;
  u64 cr4_set = 0;
  u64 xcr0_set = 0;
  u64 flags_clear = 0;
  u64 fsw_clear = 0; // MMX: no x87 exception may be pending
};

namespace vector_needs {
constexpr u64 fsw_es = 0x80;
constexpr u64 xcr0_avx = 6, xcr0_avx512 = 0xe6;
constexpr VectorNeeds mmx{.cr0_clear = cr0::em | cr0::ts, .fsw_clear = fsw_es};
constexpr VectorNeeds sse{.cr0_clear = cr0::em | cr0::ts, .cr4_set = cr4::osfxsr};
constexpr VectorNeeds sse_mmx{.cr0_clear = cr0::em | cr0::ts, .cr4_set = cr4::osfxsr, .fsw_clear = fsw_es};
constexpr VectorNeeds vex{
    .cr0_set = cr0::pe, .cr4_set = cr4::osxsave, .xcr0_set = xcr0_avx, .flags_clear = rflags::vm};
constexpr VectorNeeds evex{
    .cr0_set = cr0::pe, .cr4_set = cr4::osxsave, .xcr0_set = xcr0_avx512, .flags_clear = rflags::vm};
} // namespace vector_needs

struct VectorPlan {
  HostStub run = nullptr;
  X87Stub run_x87 = nullptr; // x87 instructions have this instead
  VectorNeeds needs;
  u16 memory_bytes = 0;
  u16 align_mask = 0;    // address bits that must be 0
  bool floating = false; // may raise SIMD exceptions, changes MXCSR
  // Masked accesses: `elements` of `element_bytes` each, enabled by the low bits of an opmask register.
  u8 element_bytes = 0;
  u8 elements = 0;
  u8 mask = 0;
  bool suppresses = false; // faults of disabled elements do not happen
  bool replicates = false; // element i serves the mask bits i, i + elements, ...
  u8 mask_bits = 0;        // of the opmask, how many count
};

// Records the fault of an instruction whose needs are not met, in the manual's order.
Step refuse_vector(Cpu& cpu, const VectorNeeds& n);
inline bool vector_needs_met(const CpuState& s, const VectorNeeds& n) {
  return ((s.cr0 & n.cr0_clear) | (~s.cr0 & n.cr0_set) | (~s.cr4 & n.cr4_set) | (~s.xcr0 & n.xcr0_set) |
          (s.system_flags & n.flags_clear) | (s.x87.fsw & n.fsw_clear)) == 0;
}

// The instruction as the host executes it: 64-bit code, memory operand [rsi], general register RAX.
struct HostForm {
  static constexpr u8 no_gpr = 0xff;
  std::array<u8, 15> bytes{};
  u8 size = 0;
  u8 gpr = no_gpr; // the guest's register number that RAX stands for
  bool gpr_written = false;

  bool operator==(const HostForm&) const = default;
};

// False: there is no such host instruction.
bool to_host_form(const Decoded& d, HostForm& out);

enum class PlanStatus : u8 { ok, absent, no_memory };
// The plan of an instruction, made or found. `absent`: not an instruction the host has.
PlanStatus find_plan(const Decoded& d, const VectorPlan*& out);

// Can the instruction run on the host as it is, given XMM, YMM, ZMM and opmask registers (no MMX ones) and
// that all of its memory operand may be accessed? VZEROUPPER and VZEROALL are ones without a plan.
bool runs_on_vector_registers(const Insn& in);
// Likewise, given MMX registers, and XMM ones too if the plan needs them. EMMS is one without a plan.
bool runs_on_mmx_registers(const Insn& in);
// Does the instruction leave its result in the arithmetic flags, all of them?
bool vector_writes_flags(const Decoded& d);

// The general register that an instruction names, and the field that does.
struct VectorGpr {
  bool in_reg = false, in_rm = false; // neither: it names none
  u8 number = 0;
};
VectorGpr vector_gpr(const Decoded& d);

// Has the legacy prefix, before the opcode.
bool has_prefix(const Decoded& d, u8 prefix);
// The mandatory prefix that selects among instructions of one opcode: 0 none, 1 66, 2 F3, 3 F2.
unsigned mandatory_prefix(const Decoded& d);

// Reads go through a host pointer when the Cpu can give one.
template <class C> inline const std::byte* read_pointer(C& cpu, GuestVirt a, u64 size) {
  if constexpr (requires { cpu.host_for_read(a, size); }) {
    return cpu.host_for_read(a, size);
  } else {
    return nullptr;
  }
}

} // namespace ring3::x86
