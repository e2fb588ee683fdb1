// SPDX-License-Identifier: Apache-2.0
// What the vector handlers share.
#pragma once

#include "x86/interp/bind.h"
#include "x86/interp/vector_plan.h"

namespace ring3::x86 {

// Handlers for memory forms with an opmask, for conditional moves of elements, and for gathers and scatters;
// null if the instruction is none of them.
Handler bind_vector_masked(const Decoded& d, Insn& in);
Handler bind_vector_special(const Decoded& d, Insn& in);
// One of those for an opmask, or for elements that a vector selects, whose instruction the host can run as it
// is if all of the operand may be accessed.
bool is_masked_vector_handler(Handler h);

// A stub stopped at an unmasked exception (SDM vol. 1, 11.5.1).
inline Step simd_exception(Cpu& cpu) {
  return (cpu.state.cr4 & cr4::osxmmexcpt) != 0 ? cpu.raise(Vector::xm) : cpu.ud();
}

// The x87 registers become the MMX registers (SDM vol. 1, 9.5.1): TOP is 0, all are valid.
void set_x87_top(X87State& x, unsigned top);
inline void enter_mmx(X87State& x) {
  if ((x.fsw & 0x3800) != 0) set_x87_top(x, 0);
  x.ftw = 0xff;
}

// The linear address of the memory operand, checked for alignment too.
inline bool vector_address(Cpu& cpu, const Insn& in, const VectorPlan& p, bool write, GuestVirt& a) {
  if (!cpu.linear(static_cast<Seg>(in.seg), cpu.effective_address(in), p.memory_bytes, write, a))
    return false;
  if ((a.value & p.align_mask) != 0) {
    cpu.gp();
    return false;
  }
  return true;
}

// Copies the operand in pieces that the fast path of Cpu::load takes.
inline bool read_vector(Cpu& cpu, GuestVirt a, Seg s, unsigned bytes, std::byte* out) {
  switch (bytes) {
  case 1: return cpu.load<u8>(a, *reinterpret_cast<u8*>(out), s);
  case 2: return cpu.load<u16>(a, *reinterpret_cast<u16*>(out), s);
  case 4: return cpu.load<u32>(a, *reinterpret_cast<u32*>(out), s);
  default:
    for (unsigned i = 0; i < bytes; i += 8) {
      if (!cpu.load<u64>(a + i, *reinterpret_cast<u64*>(out + i), s)) return false;
    }
    return true;
  }
}

constexpr unsigned max_vector_bytes = 64;

} // namespace ring3::x86
