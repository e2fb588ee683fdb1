// SPDX-License-Identifier: Apache-2.0
#include "x86/interp/bind.h"

namespace ring3::x86 {

namespace {

constexpr Binder binders[] = {bind_moves,   bind_arithmetic, bind_shifts,
                              bind_bits,    bind_stack,      bind_control_flow,
                              bind_strings, bind_segments,   bind_control_registers,
                              bind_system,  bind_state_save, bind_vector,
                              bind_x87};

// Instructions after which RIP, the mode, or the meaning of what follows may be another.
bool op_ends_block(const Decoded& d) {
  switch (d.op) {
  case Op::jcc:
  case Op::jmp:
  case Op::call:
  case Op::ret:
  case Op::jcxz:
  case Op::jecxz:
  case Op::jrcxz:
  case Op::loop:
  case Op::loope:
  case Op::loopne:
  case Op::iret:
  case Op::iretd:
  case Op::iretq:
  case Op::int_:
  case Op::int1:
  case Op::int3:
  case Op::into:
  case Op::syscall:
  case Op::sysret:
  case Op::sysenter:
  case Op::sysexit:
  case Op::hlt:
  case Op::sti:
  case Op::popf:
  case Op::popfd:
  case Op::popfq:
  case Op::lss:
  case Op::rsm:
  case Op::ud0:
  case Op::ud1:
  case Op::ud2: return true;
  case Op::mov:
  case Op::pop:
    for (unsigned i = 0; i < d.visible_operands; ++i) {
      const Operand& o = d.operand[i];
      if (o.kind == Operand::Kind::debug) return true;
      if ((o.kind == Operand::Kind::control || o.kind == Operand::Kind::segment) && o.written) return true;
    }
    return false;
  default: return false;
  }
}

} // namespace

Step handle_ud(Cpu& cpu, const Insn&) { return cpu.ud(); }
Step handle_too_long(Cpu& cpu, const Insn&) { return cpu.gp(); }
Step handle_block_end(Cpu&, const Insn&) { return Step::jump; }

void bind(const Decoded& d, const CpuidTable& cpuid, Insn& in, bool& ends) {
  in = Insn{};
  in.len = d.length;
  in.opsize = d.operand_bytes;
  in.addrsize = d.address_bytes;
  in.base = in.index = reg_zero;
  in.flags = static_cast<u8>((d.lock ? insn_flag::lock : 0) | (d.rep ? insn_flag::rep : 0) |
                             (d.repne ? insn_flag::repne : 0) | (d.has_memory ? insn_flag::mem : 0));
  if (d.has_memory) {
    in.base = d.base;
    in.index = d.vsib ? reg_zero : d.index;
    in.scale = d.scale;
    in.disp = static_cast<s32>(d.displacement);
    in.seg = static_cast<u8>(d.segment);
    if (d.disp_size == 64) in.imm = static_cast<u64>(d.displacement);
    if (d.disp_size <= 32 && d.base == reg_zero && d.address_bytes == 4)
      in.disp = static_cast<s32>(d.displacement);
  }
  ends = false;
  // These two ask CPUID when they execute: a quirk may have them work without it.
  const bool asks_later = d.op == Op::monitor || d.op == Op::mwait;
  if (!asks_later && (!cpuid.has(d.feature) || !cpuid.has(d.feature2))) {
    in.handler = handle_ud;
    ends = true;
    return;
  }
  for (const Binder b : binders) {
    in.handler = b(d, in, cpuid);
    if (in.handler != nullptr) break;
  }
  if (in.handler == nullptr) in.handler = handle_ud;
  ends = in.handler == handle_ud || op_ends_block(d);
}

} // namespace ring3::x86
