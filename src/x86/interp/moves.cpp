// SPDX-License-Identifier: Apache-2.0
// Data movement, exchanges, conversions, and conditional moves.
#include "x86/interp/host_ops.h"
#include "x86/interp/operands.h"

namespace ring3::x86 {

namespace {

template <class T> struct MovRegReg {
  static Step run(Cpu& c, const Insn& in) {
    c.set_reg<T>(in.rm, c.reg<T>(in.reg));
    return Step::next;
  }
};
template <class T> struct MovRegImm {
  static Step run(Cpu& c, const Insn& in) {
    c.set_reg<T>(in.rm, static_cast<T>(in.imm));
    return Step::next;
  }
};
template <class T> struct MovRegMem {
  static Step run(Cpu& c, const Insn& in) {
    T v;
    if (!c.read_operand<T>(in, v)) return Step::abort;
    c.set_reg<T>(in.reg, v);
    return Step::next;
  }
};
template <class T> struct MovMemReg {
  static Step run(Cpu& c, const Insn& in) {
    return c.write_operand<T>(in, c.reg<T>(in.reg)) ? Step::next : Step::abort;
  }
};
template <class T> struct MovMemImm {
  static Step run(Cpu& c, const Insn& in) {
    return c.write_operand<T>(in, static_cast<T>(in.imm)) ? Step::next : Step::abort;
  }
};
// MOV with a 64-bit absolute address: in.imm is the address.
template <class T> struct MovRegMoffs {
  static Step run(Cpu& c, const Insn& in) {
    T v;
    if (!c.read<T>(static_cast<Seg>(in.seg), in.imm & Cpu::address_mask(in.addrsize), v)) return Step::abort;
    c.set_reg<T>(in.reg, v);
    return Step::next;
  }
};
template <class T> struct MovMoffsReg {
  static Step run(Cpu& c, const Insn& in) {
    return c.write<T>(static_cast<Seg>(in.seg), in.imm & Cpu::address_mask(in.addrsize), c.reg<T>(in.reg))
               ? Step::next
               : Step::abort;
  }
};

Handler bind_mov(const Decoded& d, Insn& in) {
  const Operand& dst = d.operand[0];
  const Operand& src = d.operand[1];
  const auto size = static_cast<u8>(dst.bits / 8);
  if (is_imm(src)) in.imm = src.value;
  const bool moffs = d.map == 0 && d.opcode >= 0xa0 && d.opcode <= 0xa3;
  if (is_mem(dst)) {
    in.reg = src.reg;
    if (moffs) {
      in.imm = static_cast<u64>(d.displacement);
      return by_size<MovMoffsReg>(size);
    }
    if (is_gpr(src)) return by_size<MovMemReg>(size);
    return is_imm(src) ? by_size<MovMemImm>(size) : nullptr;
  }
  if (!is_gpr(dst)) return nullptr;
  in.rm = dst.reg;
  if (is_mem(src)) {
    in.reg = dst.reg;
    if (moffs) {
      in.imm = static_cast<u64>(d.displacement);
      return by_size<MovRegMoffs>(size);
    }
    return by_size<MovRegMem>(size);
  }
  if (is_imm(src)) return by_size<MovRegImm>(size);
  if (!is_gpr(src)) return nullptr;
  in.reg = src.reg;
  return by_size<MovRegReg>(size);
}

// --- extension ---

template <class To, class From> Step extend(Cpu& c, const Insn& in) {
  From v;
  if (!read_rm<From>(c, in, v)) return Step::abort;
  c.set_reg<To>(in.reg, static_cast<To>(v));
  return Step::next;
}
// Sign extension goes through the signed type of the source.
template <class To, class From> Step extend_signed(Cpu& c, const Insn& in) {
  From v;
  if (!read_rm<From>(c, in, v)) return Step::abort;
  c.set_reg<To>(in.reg, static_cast<To>(static_cast<s64>(static_cast<std::make_signed_t<From>>(v))));
  return Step::next;
}

Handler bind_extend(const Decoded& d, Insn& in, bool sign) {
  in.reg = d.operand[0].reg;
  in.rm = d.operand[1].reg;
  const unsigned to = d.operand[0].bits;
  const unsigned from = d.operand[1].bits;
  if (from == 8) {
    if (to == 16) return sign ? extend_signed<u16, u8> : extend<u16, u8>;
    if (to == 32) return sign ? extend_signed<u32, u8> : extend<u32, u8>;
    return sign ? extend_signed<u64, u8> : extend<u64, u8>;
  }
  if (from == 16) {
    if (to == 16) return extend<u16, u16>;
    if (to == 32) return sign ? extend_signed<u32, u16> : extend<u32, u16>;
    return sign ? extend_signed<u64, u16> : extend<u64, u16>;
  }
  if (to == 16) return extend<u16, u16>; // MOVSXD with a 16-bit operand moves 16 bits
  if (to == 32) return extend<u32, u32>;
  return sign ? extend_signed<u64, u32> : extend<u64, u32>;
}

template <class T> struct Lea {
  static Step run(Cpu& c, const Insn& in) {
    c.set_reg<T>(in.reg, static_cast<T>(c.effective_address(in)));
    return Step::next;
  }
};

// --- exchanges ---

template <class T> struct XchgReg {
  static Step run(Cpu& c, const Insn& in) {
    const T a = c.reg<T>(in.rm);
    const T b = c.reg<T>(in.reg);
    c.set_reg<T>(in.rm, b);
    c.set_reg<T>(in.reg, a);
    return Step::next;
  }
};
template <class T> struct XchgMem {
  static Step run(Cpu& c, const Insn& in) {
    const T v = c.reg<T>(in.reg);
    T old{};
    // XCHG with memory is locked whether it says so or not (SDM vol. 3, 8.1.2.1).
    const Step s =
        update_memory_at<T>(c, static_cast<Seg>(in.seg), c.effective_address(in), true, [&](T m, u16&) {
          old = m;
          return v;
        });
    if (s == Step::next) c.set_reg<T>(in.reg, old);
    return s;
  }
};

template <class T> struct XaddReg {
  static Step run(Cpu& c, const Insn& in) {
    const T a = c.reg<T>(in.rm);
    const T b = c.reg<T>(in.reg);
    const T sum = host::Add::run<T>(a, b, c.state.flags);
    c.set_reg<T>(in.reg, a);
    c.set_reg<T>(in.rm, sum);
    return Step::next;
  }
};
template <class T> struct XaddMem {
  static Step run(Cpu& c, const Insn& in) {
    const T v = c.reg<T>(in.reg);
    T old{};
    const Step s = update_memory<T>(c, in, [&](T m, u16& f) {
      old = m;
      return host::Add::run<T>(m, v, f);
    });
    if (s == Step::next) c.set_reg<T>(in.reg, old);
    return s;
  }
};

template <class T> struct CmpxchgReg {
  static Step run(Cpu& c, const Insn& in) {
    const T old = c.reg<T>(in.rm);
    const T acc = c.reg<T>(rax * 8);
    host::Sub::run<T>(acc, old, c.state.flags);
    if (acc == old) {
      c.set_reg<T>(in.rm, c.reg<T>(in.reg));
    } else {
      c.set_reg<T>(rax * 8, old);
    }
    return Step::next;
  }
};
template <class T> struct CmpxchgMem {
  static Step run(Cpu& c, const Insn& in) {
    const T acc = c.reg<T>(rax * 8);
    const T v = c.reg<T>(in.reg);
    T old{};
    // The destination is written in either case, with its own value when the comparison fails.
    const Step s = update_memory<T>(c, in, [&](T m, u16& f) {
      old = m;
      host::Sub::run<T>(acc, m, f);
      return m == acc ? v : m;
    });
    if (s == Step::next && old != acc) c.set_reg<T>(rax * 8, old);
    return s;
  }
};

Step handle_cmpxchg8b(Cpu& c, const Insn& in) {
  const u64 expected = u64{c.reg<u32>(rdx * 8)} << 32 | c.reg<u32>(rax * 8);
  const u64 desired = u64{c.reg<u32>(rcx * 8)} << 32 | c.reg<u32>(rbx * 8);
  u64 old = 0;
  const Step s = update_memory<u64>(c, in, [&](u64 m, u16& f) {
    old = m;
    f = static_cast<u16>(m == expected ? f | oszapc::zf : f & ~oszapc::zf);
    return m == expected ? desired : m;
  });
  if (s == Step::next && old != expected) {
    c.set_reg<u32>(rax * 8, static_cast<u32>(old));
    c.set_reg<u32>(rdx * 8, static_cast<u32>(old >> 32));
  }
  return s;
}

Step handle_cmpxchg16b(Cpu& c, const Insn& in) {
  GuestVirt a;
  const auto seg = static_cast<Seg>(in.seg);
  if (!c.linear(seg, c.effective_address(in), 16, true, a)) return Step::abort;
  if ((a.value & 15) != 0) return c.gp();
  u64 lo = c.state.regs[rax];
  u64 hi = c.state.regs[rdx];
  bool equal;
  if (std::byte* p = c.host_for_update(a, 16, seg)) {
    equal = guest_cmpxchg16(p, lo, hi, c.state.regs[rbx], c.state.regs[rcx]);
    c.update_done();
  } else {
    if (c.fault_pending) return Step::abort;
    u64 m[2];
    if (!c.load<u64>(a, m[0], seg) || !c.load<u64>(a + 8, m[1], seg)) return Step::abort;
    equal = m[0] == lo && m[1] == hi;
    lo = m[0];
    hi = m[1];
    const u64 v[2] = {equal ? c.state.regs[rbx] : lo, equal ? c.state.regs[rcx] : hi};
    if (!c.store<u64>(a, v[0], seg) || !c.store<u64>(a + 8, v[1], seg)) return Step::abort;
  }
  if (equal) {
    c.state.flags |= oszapc::zf;
  } else {
    c.state.flags &= static_cast<u16>(~oszapc::zf);
    c.state.regs[rax] = lo;
    c.state.regs[rdx] = hi;
  }
  return Step::next;
}

template <class T> T swap_bytes(T v) {
  if constexpr (sizeof(T) == 2) return static_cast<T>(v << 8 | v >> 8);
  if constexpr (sizeof(T) == 4) return __builtin_bswap32(v);
  if constexpr (sizeof(T) == 8) return __builtin_bswap64(v);
  return v;
}
template <class T> struct Bswap {
  static Step run(Cpu& c, const Insn& in) {
    // BSWAP of a 16-bit register is undefined; processors clear it.
    c.set_reg<T>(in.rm, sizeof(T) == 2 ? T{0} : swap_bytes<T>(c.reg<T>(in.rm)));
    return Step::next;
  }
};
template <class T> struct MovbeLoad {
  static Step run(Cpu& c, const Insn& in) {
    T v;
    if (!c.read_operand<T>(in, v)) return Step::abort;
    c.set_reg<T>(in.reg, swap_bytes<T>(v));
    return Step::next;
  }
};
template <class T> struct MovbeStore {
  static Step run(Cpu& c, const Insn& in) {
    return c.write_operand<T>(in, swap_bytes<T>(c.reg<T>(in.reg))) ? Step::next : Step::abort;
  }
};

Step handle_xlat(Cpu& c, const Insn& in) {
  const u64 at = (c.state.regs[rbx] + c.reg<u8>(rax * 8)) & Cpu::address_mask(in.addrsize);
  u8 v;
  if (!c.read<u8>(static_cast<Seg>(in.seg), at, v)) return Step::abort;
  c.set_reg<u8>(rax * 8, v);
  return Step::next;
}

// --- AL/AX/EAX sign extension ---

template <class To, class From> Step widen_accumulator(Cpu& c, const Insn&) {
  c.set_reg<To>(rax * 8, static_cast<To>(
                             static_cast<s64>(static_cast<std::make_signed_t<From>>(c.reg<From>(rax * 8)))));
  return Step::next;
}
template <class T> struct SignToDx {
  static Step run(Cpu& c, const Insn&) {
    c.set_reg<T>(rdx * 8,
                 static_cast<T>(static_cast<std::make_signed_t<T>>(c.reg<T>(rax * 8)) < 0 ? ~T{0} : T{0}));
    return Step::next;
  }
};

Step handle_lahf(Cpu& c, const Insn&) {
  c.set_reg<u8>(rax * 8 + 1, static_cast<u8>((c.state.flags >> 8 & 0xd5) | 2));
  return Step::next;
}
Step handle_sahf(Cpu& c, const Insn&) {
  c.state.flags = static_cast<u16>((c.state.flags & 1) | (c.reg<u8>(rax * 8 + 1) & 0xd5) << 8);
  return Step::next;
}
Step handle_salc(Cpu& c, const Insn&) {
  c.set_reg<u8>(rax * 8, (c.state.flags & oszapc::cf) != 0 ? 0xff : 0);
  return Step::next;
}

// --- conditional ---

template <class T> struct Cmov {
  static Step run(Cpu& c, const Insn& in) {
    T v;
    if (!read_rm<T>(c, in, v)) return Step::abort; // memory is read whatever the condition says
    // A 32-bit CMOV clears the upper half even when it moves nothing.
    c.set_reg<T>(in.reg, condition_holds(in.aux, c.state.flags) ? v : c.reg<T>(in.reg));
    return Step::next;
  }
};
Step setcc_reg(Cpu& c, const Insn& in) {
  c.set_reg<u8>(in.rm, condition_holds(in.aux, c.state.flags) ? 1 : 0);
  return Step::next;
}
Step setcc_mem(Cpu& c, const Insn& in) {
  return c.write_operand<u8>(in, condition_holds(in.aux, c.state.flags) ? 1 : 0) ? Step::next : Step::abort;
}

} // namespace

Handler bind_moves(const Decoded& d, Insn& in, const CpuidTable& cpuid) {
  const auto size = static_cast<u8>(d.operand[0].bits / 8);
  const bool mem0 = is_mem(d.operand[0]);
  in.aux = d.condition;
  switch (d.op) {
  case Op::mov:
  case Op::movnti: return bind_mov(d, in);
  case Op::movzx: return bind_extend(d, in, false);
  case Op::movsx:
  case Op::movsxd: return bind_extend(d, in, true);
  case Op::lea:
    if (!d.has_memory) return nullptr;
    in.reg = d.operand[0].reg;
    return by_size_not_byte<Lea>(size);
  case Op::xchg: {
    const bool mem1 = is_mem(d.operand[1]);
    in.rm = d.operand[0].reg;
    in.reg = mem1 ? d.operand[0].reg : d.operand[1].reg;
    return mem0 || mem1 ? by_size<XchgMem>(size) : by_size<XchgReg>(size);
  }
  case Op::xadd:
    in.rm = d.operand[0].reg;
    in.reg = d.operand[1].reg;
    return mem0 ? by_size<XaddMem>(size) : by_size<XaddReg>(size);
  case Op::cmpxchg:
    in.rm = d.operand[0].reg;
    in.reg = d.operand[1].reg;
    return mem0 ? by_size<CmpxchgMem>(size) : by_size<CmpxchgReg>(size);
  case Op::cmpxchg8b: return cpuid.has(feature::cx8) ? handle_cmpxchg8b : nullptr;
  case Op::cmpxchg16b: return handle_cmpxchg16b;
  case Op::bswap: in.rm = d.operand[0].reg; return by_size_not_byte<Bswap>(size);
  case Op::movbe:
    in.reg = mem0 ? d.operand[1].reg : d.operand[0].reg;
    return mem0 ? by_size_not_byte<MovbeStore>(size) : by_size_not_byte<MovbeLoad>(size);
  case Op::xlat:
    // The operand is implicit; decode reports its segment.
    in.seg = static_cast<u8>(d.has_memory ? d.segment : Seg::ds);
    return handle_xlat;
  case Op::cbw: return widen_accumulator<u16, u8>;
  case Op::cwde: return widen_accumulator<u32, u16>;
  case Op::cdqe: return widen_accumulator<u64, u32>;
  case Op::cwd: return SignToDx<u16>::run;
  case Op::cdq: return SignToDx<u32>::run;
  case Op::cqo: return SignToDx<u64>::run;
  case Op::lahf: return d.code_bits == 64 && !cpuid.has(feature::lahf_lm) ? nullptr : handle_lahf;
  case Op::sahf: return d.code_bits == 64 && !cpuid.has(feature::lahf_lm) ? nullptr : handle_sahf;
  case Op::salc: return handle_salc;
  case Op::cmovcc:
    in.reg = d.operand[0].reg;
    in.rm = d.operand[1].reg;
    return by_size_not_byte<Cmov>(size);
  case Op::setcc: in.rm = d.operand[0].reg; return mem0 ? setcc_mem : setcc_reg;
  default: return nullptr;
  }
}

} // namespace ring3::x86
