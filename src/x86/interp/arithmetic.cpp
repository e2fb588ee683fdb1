// SPDX-License-Identifier: Apache-2.0
// Addition, subtraction, logic, multiplication, division, BCD and flag instructions.
#include "x86/interp/host_ops.h"
#include "x86/interp/operands.h"

namespace ring3::x86 {

namespace {

// --- two operands: ADD and its like ---

template <class Op, bool Writes, class T> struct Binary {
  static Step reg_reg(Cpu& c, const Insn& in) {
    const T r = Op::template run<T>(c.reg<T>(in.rm), c.reg<T>(in.reg), c.state.flags);
    if constexpr (Writes) c.set_reg<T>(in.rm, r);
    return Step::next;
  }
  static Step reg_imm(Cpu& c, const Insn& in) {
    const T r = Op::template run<T>(c.reg<T>(in.rm), static_cast<T>(in.imm), c.state.flags);
    if constexpr (Writes) c.set_reg<T>(in.rm, r);
    return Step::next;
  }
  static Step reg_mem(Cpu& c, const Insn& in) {
    T b;
    if (!c.read_operand<T>(in, b)) return Step::abort;
    const T r = Op::template run<T>(c.reg<T>(in.reg), b, c.state.flags);
    if constexpr (Writes) c.set_reg<T>(in.reg, r);
    return Step::next;
  }
  static Step memory(Cpu& c, const Insn& in, T b) {
    if constexpr (Writes) {
      return update_memory<T>(c, in, [b](T a, u16& f) { return Op::template run<T>(a, b, f); });
    } else {
      T a;
      if (!c.read_operand<T>(in, a)) return Step::abort;
      Op::template run<T>(a, b, c.state.flags);
      return Step::next;
    }
  }
  static Step mem_reg(Cpu& c, const Insn& in) { return memory(c, in, c.reg<T>(in.reg)); }
  static Step mem_imm(Cpu& c, const Insn& in) { return memory(c, in, static_cast<T>(in.imm)); }
};

template <class Op, bool Writes, class T> Handler binary_form(const Decoded& d, Insn& in) {
  using B = Binary<Op, Writes, T>;
  const Operand& dst = d.operand[0];
  const Operand& src = d.operand[1];
  if (is_imm(src)) in.imm = src.value;
  if (is_mem(dst)) {
    if (is_imm(src)) {
      if (d.disp_size == 64) return nullptr;
      return B::mem_imm;
    }
    in.reg = src.reg;
    return B::mem_reg;
  }
  if (is_mem(src)) {
    in.reg = dst.reg;
    return B::reg_mem;
  }
  in.rm = dst.reg;
  if (is_imm(src)) return B::reg_imm;
  in.reg = src.reg;
  return B::reg_reg;
}

template <class Op, bool Writes = true> Handler binary(const Decoded& d, Insn& in) {
  switch (d.operand[0].bits) {
  case 8: return binary_form<Op, Writes, u8>(d, in);
  case 16: return binary_form<Op, Writes, u16>(d, in);
  case 32: return binary_form<Op, Writes, u32>(d, in);
  default: return binary_form<Op, Writes, u64>(d, in);
  }
}

// --- one operand ---

template <class Op, class T> struct Unary {
  static Step reg(Cpu& c, const Insn& in) {
    c.set_reg<T>(in.rm, Op::template run<T>(c.reg<T>(in.rm), c.state.flags));
    return Step::next;
  }
  static Step mem(Cpu& c, const Insn& in) {
    return update_memory<T>(c, in, [](T a, u16& f) { return Op::template run<T>(a, f); });
  }
};

template <class Op> Handler unary(const Decoded& d, Insn& in) {
  const bool mem = is_mem(d.operand[0]);
  in.rm = d.operand[0].reg;
  switch (d.operand[0].bits) {
  case 8: return mem ? Unary<Op, u8>::mem : Unary<Op, u8>::reg;
  case 16: return mem ? Unary<Op, u16>::mem : Unary<Op, u16>::reg;
  case 32: return mem ? Unary<Op, u32>::mem : Unary<Op, u32>::reg;
  default: return mem ? Unary<Op, u64>::mem : Unary<Op, u64>::reg;
  }
}

// --- multiplication and division ---

// One-operand MUL and IMUL: RDX:RAX = RAX * b (AX = AL * b for bytes). The undefined flags are the host's.
#define RING3_MULTIPLY(name, text)                                                                           \
  struct name {                                                                                              \
    template <class T> static void run(u64& low, u64& high, T b, u16& flags) {                               \
      u64 f = flags;                                                                                         \
      u64 x = low;                                                                                           \
      u64 d = high;                                                                                          \
      asm("addb $0x7f, %%al\n\tsahf\n\tmov %[x], %%rax\n\t" text                                             \
          " %[b]\n\tmov %%rax, %[x]\n\tlahf\n\tseto %%al"                                                    \
          : [x] "+&r"(x), "+&a"(f), "+&d"(d)                                                                 \
          : [b] "r"(b)                                                                                       \
          : "cc");                                                                                           \
      low = x;                                                                                               \
      high = d;                                                                                              \
      flags = static_cast<u16>(f);                                                                           \
    }                                                                                                        \
  };
RING3_MULTIPLY(Mul, "mul")
RING3_MULTIPLY(ImulWide, "imul")
#undef RING3_MULTIPLY

template <class Op, class T> Step multiply_wide(Cpu& c, const Insn& in) {
  T b;
  if (!read_rm<T>(c, in, b)) return Step::abort;
  u64 low = c.state.regs[rax];
  u64 high = c.state.regs[rdx];
  Op::template run<T>(low, high, b, c.state.flags);
  if constexpr (sizeof(T) == 1) {
    c.set_reg<u16>(rax * 8, static_cast<u16>(low));
  } else {
    c.set_reg<T>(rax * 8, static_cast<T>(low));
    c.set_reg<T>(rdx * 8, static_cast<T>(high));
  }
  return Step::next;
}
template <class T> struct MulWide {
  static Step run(Cpu& c, const Insn& in) { return multiply_wide<Mul, T>(c, in); }
};
template <class T> struct ImulWideForm {
  static Step run(Cpu& c, const Insn& in) { return multiply_wide<ImulWide, T>(c, in); }
};

template <class T> struct ImulTwo {
  static Step run(Cpu& c, const Insn& in) {
    T b;
    if (!read_rm<T>(c, in, b)) return Step::abort;
    c.set_reg<T>(in.reg, host::Imul::run<T>(c.reg<T>(in.reg), b, c.state.flags));
    return Step::next;
  }
};
template <class T> struct ImulThree {
  static Step run(Cpu& c, const Insn& in) {
    T b;
    if (!read_rm<T>(c, in, b)) return Step::abort;
    c.set_reg<T>(in.reg, host::Imul::run<T>(b, static_cast<T>(in.imm), c.state.flags));
    return Step::next;
  }
};

// Division: the quotient must fit, checked before the host could fault. Flags are undefined and left alone.
template <class T> struct Div {
  static Step run(Cpu& c, const Insn& in) {
    T b;
    if (!read_rm<T>(c, in, b)) return Step::abort;
    if (b == 0) return c.raise(Vector::de);
    if constexpr (sizeof(T) == 1) {
      const u16 a = c.reg<u16>(rax * 8);
      const u32 q = a / b;
      if (q > 0xff) return c.raise(Vector::de);
      c.set_reg<u16>(rax * 8, static_cast<u16>(q | (a % b) << 8));
    } else {
      const T high = c.reg<T>(rdx * 8);
      if (high >= b) return c.raise(Vector::de);
      const u128 a = static_cast<u128>(high) << (8 * sizeof(T)) | c.reg<T>(rax * 8);
      T q;
      T r;
      if constexpr (sizeof(T) == 8) {
        asm("divq %[b]" : "=a"(q), "=d"(r) : "a"(c.reg<T>(rax * 8)), "d"(high), [b] "r"(b) : "cc");
      } else {
        q = static_cast<T>(static_cast<u64>(a) / b);
        r = static_cast<T>(static_cast<u64>(a) % b);
      }
      c.set_reg<T>(rax * 8, q);
      c.set_reg<T>(rdx * 8, r);
    }
    return Step::next;
  }
};

template <class T> struct Idiv {
  using S = std::make_signed_t<T>;
  static Step run(Cpu& c, const Insn& in) {
    T b;
    if (!read_rm<T>(c, in, b)) return Step::abort;
    if (b == 0) return c.raise(Vector::de);
    s128 a;
    if constexpr (sizeof(T) == 1) {
      a = static_cast<s16>(c.reg<u16>(rax * 8));
    } else {
      const u128 raw = static_cast<u128>(c.reg<T>(rdx * 8)) << (8 * sizeof(T)) | c.reg<T>(rax * 8);
      constexpr unsigned shift = 128 - 16 * sizeof(T);
      a = static_cast<s128>(raw << shift) >> shift;
    }
    const s128 divisor = static_cast<S>(b);
    // -2^127 / -1 would overflow the host's own arithmetic; its quotient does not fit anyway.
    if (divisor == -1 && a < -(static_cast<s128>(1) << 64)) return c.raise(Vector::de);
    const s128 q = a / divisor;
    const s128 r = a % divisor;
    if (q != static_cast<S>(q)) return c.raise(Vector::de);
    if constexpr (sizeof(T) == 1) {
      c.set_reg<u16>(rax * 8, static_cast<u16>((static_cast<u16>(q) & 0xff) | static_cast<u16>(r) << 8));
    } else {
      c.set_reg<T>(rax * 8, static_cast<T>(q));
      c.set_reg<T>(rdx * 8, static_cast<T>(r));
    }
    return Step::next;
  }
};

// --- BCD (16- and 32-bit code only; SDM vol. 2) ---

void set_result_flags(Cpu& c, u8 al, bool cf, bool af) {
  u16 f = 0;
  host::And::run<u8>(al, al, f);
  f = static_cast<u16>(f & (oszapc::sf | oszapc::zf | oszapc::pf));
  if (cf) f |= oszapc::cf;
  if (af) f |= oszapc::af;
  c.state.flags = f;
}

Step handle_daa_das(Cpu& c, const Insn& in) {
  const bool subtract = in.aux != 0;
  const u8 old_al = c.reg<u8>(rax * 8);
  const bool old_cf = (c.state.flags & oszapc::cf) != 0;
  const bool old_af = (c.state.flags & oszapc::af) != 0;
  unsigned al = old_al;
  bool cf = false;
  bool af = false;
  if ((old_al & 15) > 9 || old_af) {
    cf = old_cf || (subtract ? old_al < 6 : old_al > 0xf9);
    al = subtract ? al - 6 : al + 6;
    af = true;
  }
  if (old_al > 0x99 || old_cf) {
    al = subtract ? al - 0x60 : al + 0x60;
    cf = true;
  } else if (!subtract) {
    cf = false;
  }
  c.set_reg<u8>(rax * 8, static_cast<u8>(al));
  set_result_flags(c, static_cast<u8>(al), cf, af);
  return Step::next;
}

Step handle_aaa_aas(Cpu& c, const Insn& in) {
  const bool subtract = in.aux != 0;
  u16 ax = c.reg<u16>(rax * 8);
  const bool adjust = (ax & 15) > 9 || (c.state.flags & oszapc::af) != 0;
  if (adjust) ax = static_cast<u16>(subtract ? ax - 0x106 : ax + 0x106);
  ax &= 0xff0f;
  c.set_reg<u16>(rax * 8, ax);
  set_result_flags(c, static_cast<u8>(ax), adjust, adjust);
  return Step::next;
}

Step handle_aam(Cpu& c, const Insn& in) {
  const auto base = static_cast<u8>(in.imm);
  if (base == 0) return c.raise(Vector::de);
  const u8 al = c.reg<u8>(rax * 8);
  c.set_reg<u16>(rax * 8, static_cast<u16>((al / base) << 8 | al % base));
  set_result_flags(c, al % base, false, false);
  return Step::next;
}

Step handle_aad(Cpu& c, const Insn& in) {
  const u16 ax = c.reg<u16>(rax * 8);
  const auto al = static_cast<u8>((ax & 0xff) + (ax >> 8) * static_cast<u8>(in.imm));
  c.set_reg<u16>(rax * 8, al);
  set_result_flags(c, al, false, false);
  return Step::next;
}

// --- flags ---

Step handle_clc(Cpu& c, const Insn&) {
  c.state.flags &= static_cast<u16>(~oszapc::cf);
  return Step::next;
}
Step handle_stc(Cpu& c, const Insn&) {
  c.state.flags |= oszapc::cf;
  return Step::next;
}
Step handle_cmc(Cpu& c, const Insn&) {
  c.state.flags ^= oszapc::cf;
  return Step::next;
}
Step handle_cld(Cpu& c, const Insn&) {
  c.state.system_flags &= ~rflags::df;
  return Step::next;
}
Step handle_std(Cpu& c, const Insn&) {
  c.state.system_flags |= rflags::df;
  return Step::next;
}

template <class Op, class T> Step carry_extended(Cpu& c, const Insn& in) {
  T b;
  if (!read_rm<T>(c, in, b)) return Step::abort;
  c.set_reg<T>(in.reg, Op::template run<T>(c.reg<T>(in.reg), b, c.state.flags));
  return Step::next;
}

template <class Op> Handler bind_carry_extended(const Decoded& d, Insn& in) {
  in.reg = d.operand[0].reg;
  in.rm = d.operand[1].reg;
  return d.operand_bytes == 8 ? carry_extended<Op, u64> : carry_extended<Op, u32>;
}

Handler bind_imul(const Decoded& d, Insn& in) {
  const u8 size = static_cast<u8>(d.operand[0].bits / 8);
  if (d.visible_operands == 1) {
    in.rm = d.operand[0].reg;
    return by_size<ImulWideForm>(size);
  }
  in.reg = d.operand[0].reg;
  in.rm = d.operand[1].reg;
  if (d.visible_operands == 2) return by_size_not_byte<ImulTwo>(size);
  in.imm = d.operand[2].value;
  return by_size_not_byte<ImulThree>(size);
}

} // namespace

Handler bind_arithmetic(const Decoded& d, Insn& in, const CpuidTable&) {
  const auto size = static_cast<u8>(d.operand[0].bits / 8);
  switch (d.op) {
  case Op::add: return binary<host::Add>(d, in);
  case Op::or_: return binary<host::Or>(d, in);
  case Op::adc: return binary<host::Adc>(d, in);
  case Op::sbb: return binary<host::Sbb>(d, in);
  case Op::and_: return binary<host::And>(d, in);
  case Op::sub: return binary<host::Sub>(d, in);
  case Op::xor_: return binary<host::Xor>(d, in);
  case Op::cmp: return binary<host::Sub, false>(d, in);
  case Op::test: return binary<host::And, false>(d, in);
  case Op::inc: return unary<host::Inc>(d, in);
  case Op::dec: return unary<host::Dec>(d, in);
  case Op::neg: return unary<host::Neg>(d, in);
  case Op::not_: return unary<host::Not>(d, in);
  case Op::mul: in.rm = d.operand[0].reg; return by_size<MulWide>(size);
  case Op::imul: return bind_imul(d, in);
  case Op::div: in.rm = d.operand[0].reg; return by_size<Div>(size);
  case Op::idiv: in.rm = d.operand[0].reg; return by_size<Idiv>(size);
  case Op::adcx: return bind_carry_extended<host::Adcx>(d, in);
  case Op::adox: return bind_carry_extended<host::Adox>(d, in);
  case Op::das: in.aux = 1; return handle_daa_das;
  case Op::daa: return handle_daa_das;
  case Op::aas: in.aux = 1; return handle_aaa_aas;
  case Op::aaa: return handle_aaa_aas;
  case Op::aam: in.imm = d.operand[0].value; return handle_aam;
  case Op::aad: in.imm = d.operand[0].value; return handle_aad;
  case Op::clc: return handle_clc;
  case Op::stc: return handle_stc;
  case Op::cmc: return handle_cmc;
  case Op::cld: return handle_cld;
  case Op::std: return handle_std;
  default: return nullptr;
  }
}

} // namespace ring3::x86
