// SPDX-License-Identifier: Apache-2.0
// MOV to and from control and debug registers, LMSW, SMSW, CLTS.
#include "x86/cpu/control_registers.h"
#include "x86/interp/operands.h"

namespace ring3::x86 {

namespace {

// In 64-bit code these moves are 64 bits wide, elsewhere 32, whatever the prefixes.
u64 read_gpr(Cpu& c, u8 offset) { return c.code64() ? c.reg<u64>(offset) : c.reg<u32>(offset); }
void write_gpr(Cpu& c, u8 offset, u64 v) {
  if (c.code64()) {
    c.set_reg<u64>(offset, v);
  } else {
    c.set_reg<u32>(offset, static_cast<u32>(v));
  }
}

Step read_cr(Cpu& c, const Insn& in) {
  const CpuState& s = c.state;
  if (s.cpl != 0) return c.gp();
  u64 v = 0;
  switch (in.reg) {
  case 0: v = s.cr0; break;
  case 2: v = s.cr2; break;
  case 3: v = s.cr3; break;
  case 4: v = s.cr4; break;
  case 8: v = c.platform.cr8(); break;
  default: return c.ud();
  }
  write_gpr(c, in.rm, v);
  return Step::next;
}

Step write_cr(Cpu& c, const Insn& in) {
  if (c.state.cpl != 0) return c.gp();
  const u64 v = read_gpr(c, in.rm);
  bool ok = true;
  switch (in.reg) {
  case 0: ok = write_cr0(c, v); break;
  case 2: c.state.cr2 = v; break;
  case 3: ok = write_cr3(c, v); break;
  case 4: ok = write_cr4(c, v); break;
  case 8:
    if ((v & ~u64{15}) != 0) return c.gp();
    c.platform.set_cr8(static_cast<u8>(v));
    return c.events_may_have_changed();
  default: return c.ud();
  }
  return ok ? Step::jump : Step::abort;
}

// DR4 and DR5 name DR6 and DR7 unless CR4.DE is set (SDM vol. 3, 17.2.2). False: fault recorded.
bool debug_register(Cpu& c, u8& n) {
  if (c.state.cpl != 0) {
    c.gp();
    return false;
  }
  if (n == 4 || n == 5) {
    if ((c.state.cr4 & cr4::de) != 0) {
      c.ud();
      return false;
    }
    n = static_cast<u8>(n + 2);
  }
  if (n > 7) {
    c.ud();
    return false;
  }
  if ((c.active_dr7() & bit(13)) != 0) {
    c.record_fault(Fault{.vector = Vector::db, .dr6_bits = dr6::bd});
    return false;
  }
  return true;
}

Step read_dr(Cpu& c, const Insn& in) {
  u8 n = in.reg;
  if (!debug_register(c, n)) return Step::abort;
  write_gpr(c, in.rm, n == 6 ? c.state.dr6 : n == 7 ? c.state.dr7 : c.state.dr[n]);
  return Step::jump;
}

Step write_dr(Cpu& c, const Insn& in) {
  u8 n = in.reg;
  if (!debug_register(c, n)) return Step::abort;
  const u64 v = read_gpr(c, in.rm);
  if (n >= 6 && (v >> 32) != 0) return c.gp();
  if (n == 6) {
    c.state.dr6 = (v & 0xe00f) | dr6::fixed1;
  } else if (n == 7) {
    c.state.dr7 = (v & 0xffff2bff) | 0x400;
  } else {
    c.state.dr[n] = v;
  }
  c.debug_registers_changed();
  return Step::jump;
}

Step handle_clts(Cpu& c, const Insn&) {
  if (c.state.cpl != 0) return c.gp();
  c.state.cr0 &= ~cr0::ts;
  return Step::next;
}

Step handle_lmsw(Cpu& c, const Insn& in) {
  if (c.state.cpl != 0) return c.gp();
  u16 v;
  if (!read_rm<u16>(c, in, v)) return Step::abort;
  // LMSW can set PE but not clear it.
  const u64 low = (v & 0xfu) | (c.state.cr0 & cr0::pe);
  return write_cr0(c, (c.state.cr0 & ~u64{0xf}) | low) ? Step::jump : Step::abort;
}

Step handle_smsw(Cpu& c, const Insn& in) {
  if (c.state.cpl > 0 && (c.state.cr4 & cr4::umip) != 0) return c.gp();
  if ((in.flags & insn_flag::mem) != 0) {
    return c.write_operand<u16>(in, static_cast<u16>(c.state.cr0)) ? Step::next : Step::abort;
  }
  switch (in.opsize) {
  case 2: c.set_reg<u16>(in.rm, static_cast<u16>(c.state.cr0)); break;
  case 4: c.set_reg<u32>(in.rm, static_cast<u32>(c.state.cr0)); break;
  default: c.set_reg<u64>(in.rm, c.state.cr0);
  }
  return Step::next;
}

} // namespace

Handler bind_control_registers(const Decoded& d, Insn& in, const CpuidTable&) {
  const Operand& dst = d.operand[0];
  const Operand& src = d.operand[1];
  switch (d.op) {
  case Op::mov:
    if (dst.kind == Operand::Kind::control || dst.kind == Operand::Kind::debug) {
      in.reg = dst.reg;
      in.rm = src.reg;
      return dst.kind == Operand::Kind::control ? write_cr : write_dr;
    }
    if (src.kind == Operand::Kind::control || src.kind == Operand::Kind::debug) {
      in.reg = src.reg;
      in.rm = dst.reg;
      return src.kind == Operand::Kind::control ? read_cr : read_dr;
    }
    return nullptr;
  case Op::clts: return handle_clts;
  case Op::lmsw: in.rm = dst.reg; return handle_lmsw;
  case Op::smsw:
    in.rm = dst.reg;
    in.opsize = static_cast<u8>(dst.bits / 8);
    return handle_smsw;
  default: return nullptr;
  }
}

} // namespace ring3::x86
