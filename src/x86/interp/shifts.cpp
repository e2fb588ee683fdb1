// SPDX-License-Identifier: Apache-2.0
// Shifts and rotates.
#include "x86/interp/host_ops.h"
#include "x86/interp/operands.h"

namespace ring3::x86 {

namespace {

template <class Op, class T> struct Shift {
  static Step reg_imm(Cpu& c, const Insn& in) {
    c.set_reg<T>(in.rm, Op::template run<T>(c.reg<T>(in.rm), static_cast<u8>(in.imm), c.state.flags));
    return Step::next;
  }
  static Step reg_cl(Cpu& c, const Insn& in) {
    c.set_reg<T>(in.rm, Op::template run<T>(c.reg<T>(in.rm), c.reg<u8>(rcx * 8), c.state.flags));
    return Step::next;
  }
  static Step mem_imm(Cpu& c, const Insn& in) {
    return update_memory<T>(
        c, in, [n = static_cast<u8>(in.imm)](T a, u16& f) { return Op::template run<T>(a, n, f); });
  }
  static Step mem_cl(Cpu& c, const Insn& in) {
    return update_memory<T>(c, in,
                            [n = c.reg<u8>(rcx * 8)](T a, u16& f) { return Op::template run<T>(a, n, f); });
  }
};

template <class Op, class T> Handler shift_form(const Decoded& d, Insn& in) {
  using S = Shift<Op, T>;
  const bool by_cl = is_gpr(d.operand[1]);
  in.rm = d.operand[0].reg;
  in.imm = is_imm(d.operand[1]) ? d.operand[1].value : 1;
  if (is_mem(d.operand[0])) return by_cl ? S::mem_cl : S::mem_imm;
  return by_cl ? S::reg_cl : S::reg_imm;
}

template <class Op> Handler shift(const Decoded& d, Insn& in) {
  switch (d.operand[0].bits) {
  case 8: return shift_form<Op, u8>(d, in);
  case 16: return shift_form<Op, u16>(d, in);
  case 32: return shift_form<Op, u32>(d, in);
  default: return shift_form<Op, u64>(d, in);
  }
}

template <class Op, class T> Step double_shift(Cpu& c, const Insn& in) {
  const u8 n = in.aux != 0 ? c.reg<u8>(rcx * 8) : static_cast<u8>(in.imm);
  const T b = c.reg<T>(in.reg);
  if ((in.flags & insn_flag::mem) != 0) {
    return update_memory<T>(c, in, [=](T a, u16& f) { return Op::template run<T>(a, b, n, f); });
  }
  c.set_reg<T>(in.rm, Op::template run<T>(c.reg<T>(in.rm), b, n, c.state.flags));
  return Step::next;
}

template <class Op> Handler bind_double_shift(const Decoded& d, Insn& in) {
  in.rm = d.operand[0].reg;
  in.reg = d.operand[1].reg;
  in.aux = is_gpr(d.operand[2]) ? 1 : 0;
  if (is_imm(d.operand[2])) in.imm = d.operand[2].value;
  switch (d.operand[0].bits) {
  case 16: return double_shift<Op, u16>;
  case 32: return double_shift<Op, u32>;
  default: return double_shift<Op, u64>;
  }
}

// SARX, SHLX, SHRX: dst, src (register or memory), count register. RORX: dst, src, immediate.
template <class Op, class T> Step shift_without_flags(Cpu& c, const Insn& in) {
  T a;
  if (!read_rm<T>(c, in, a)) return Step::abort;
  u16 ignored = 0;
  c.set_reg<T>(in.reg, Op::template run<T>(a, c.reg<T>(in.aux), ignored));
  return Step::next;
}
template <class Op> Handler bind_shift_without_flags(const Decoded& d, Insn& in) {
  in.reg = d.operand[0].reg;
  in.rm = d.operand[1].reg;
  in.aux = d.operand[2].reg;
  return d.operand[0].bits == 64 ? shift_without_flags<Op, u64> : shift_without_flags<Op, u32>;
}
template <class T> struct Rorx {
  static Step run(Cpu& c, const Insn& in) {
    T a;
    if (!read_rm<T>(c, in, a)) return Step::abort;
    u16 ignored = 0;
    c.set_reg<T>(in.reg, host::Ror::run<T>(a, static_cast<u8>(in.imm), ignored));
    return Step::next;
  }
};

} // namespace

Handler bind_shifts(const Decoded& d, Insn& in, const CpuidTable&) {
  switch (d.op) {
  case Op::rol: return shift<host::Rol>(d, in);
  case Op::ror: return shift<host::Ror>(d, in);
  case Op::rcl: return shift<host::Rcl>(d, in);
  case Op::rcr: return shift<host::Rcr>(d, in);
  case Op::shl: return shift<host::Shl>(d, in);
  case Op::shr: return shift<host::Shr>(d, in);
  case Op::sar: return shift<host::Sar>(d, in);
  case Op::shld: return bind_double_shift<host::Shld>(d, in);
  case Op::shrd: return bind_double_shift<host::Shrd>(d, in);
  case Op::sarx: return bind_shift_without_flags<host::Sarx>(d, in);
  case Op::shlx: return bind_shift_without_flags<host::Shlx>(d, in);
  case Op::shrx: return bind_shift_without_flags<host::Shrx>(d, in);
  case Op::rorx:
    in.reg = d.operand[0].reg;
    in.rm = d.operand[1].reg;
    in.imm = d.operand[2].value;
    return d.operand[0].bits == 64 ? Rorx<u64>::run : Rorx<u32>::run;
  default: return nullptr;
  }
}

} // namespace ring3::x86
