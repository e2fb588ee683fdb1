// SPDX-License-Identifier: Apache-2.0
// Bit tests, bit scans, BMI, CRC32 and random numbers.
#include "x86/interp/host_ops.h"
#include "x86/interp/operands.h"

namespace ring3::x86 {

namespace {

// --- BT, BTS, BTR, BTC ---

template <class Op, bool Writes, class T> struct BitTest {
  static T count(Cpu& c, const Insn& in) { return in.aux != 0 ? c.reg<T>(in.reg) : static_cast<T>(in.imm); }
  static Step reg(Cpu& c, const Insn& in) {
    const auto n = static_cast<T>(count(c, in) & (sizeof(T) * 8 - 1));
    const T r = Op::template run<T>(c.reg<T>(in.rm), n, c.state.flags);
    if constexpr (Writes) c.set_reg<T>(in.rm, r);
    return Step::next;
  }
  static Step mem(Cpu& c, const Insn& in) {
    constexpr unsigned bits = sizeof(T) * 8;
    const T index = count(c, in);
    u64 offset = c.effective_address(in);
    if (in.aux != 0) {
      // A register count reaches beyond the operand, signed.
      const s64 words = static_cast<s64>(static_cast<std::make_signed_t<T>>(index)) >> (bits == 16   ? 4
                                                                                        : bits == 32 ? 5
                                                                                                     : 6);
      offset = (offset + static_cast<u64>(words) * sizeof(T)) & Cpu::address_mask(in.addrsize);
    }
    const auto n = static_cast<T>(index & (bits - 1));
    const auto seg = static_cast<Seg>(in.seg);
    if constexpr (Writes) {
      return update_memory_at<T>(c, seg, offset, (in.flags & insn_flag::lock) != 0,
                                 [n](T a, u16& f) { return Op::template run<T>(a, n, f); });
    } else {
      T a;
      if (!c.read<T>(seg, offset, a)) return Step::abort;
      Op::template run<T>(a, n, c.state.flags);
      return Step::next;
    }
  }
};

template <class Op, bool Writes> Handler bind_bit_test(const Decoded& d, Insn& in) {
  const bool mem = is_mem(d.operand[0]);
  in.rm = d.operand[0].reg;
  in.aux = is_gpr(d.operand[1]) ? 1 : 0;
  if (in.aux != 0) {
    in.reg = d.operand[1].reg;
  } else {
    in.imm = d.operand[1].value;
  }
  switch (d.operand[0].bits) {
  case 16: return mem ? BitTest<Op, Writes, u16>::mem : BitTest<Op, Writes, u16>::reg;
  case 32: return mem ? BitTest<Op, Writes, u32>::mem : BitTest<Op, Writes, u32>::reg;
  default: return mem ? BitTest<Op, Writes, u64>::mem : BitTest<Op, Writes, u64>::reg;
  }
}

// --- scans and counts: dst = f(src), the old dst matters to BSF and BSR of zero ---

template <class Op, class T> Step scan(Cpu& c, const Insn& in) {
  T v;
  if (!read_rm<T>(c, in, v)) return Step::abort;
  c.set_reg<T>(in.reg, Op::template run<T>(c.reg<T>(in.reg), v, c.state.flags));
  return Step::next;
}
// BSF and BSR leave the destination alone when the source is zero, the upper half of a 64-bit register
// included.
template <class Op, class T> Step bit_scan(Cpu& c, const Insn& in) {
  T v;
  if (!read_rm<T>(c, in, v)) return Step::abort;
  const T r = Op::template run<T>(c.reg<T>(in.reg), v, c.state.flags);
  if (v != 0) c.set_reg<T>(in.reg, r);
  return Step::next;
}
template <class Op> Handler bind_scan(const Decoded& d, Insn& in) {
  in.reg = d.operand[0].reg;
  in.rm = d.operand[1].reg;
  switch (d.operand[0].bits) {
  case 16: return scan<Op, u16>;
  case 32: return scan<Op, u32>;
  default: return scan<Op, u64>;
  }
}
template <class Op> Handler bind_bit_scan(const Decoded& d, Insn& in) {
  in.reg = d.operand[0].reg;
  in.rm = d.operand[1].reg;
  switch (d.operand[0].bits) {
  case 16: return bit_scan<Op, u16>;
  case 32: return bit_scan<Op, u32>;
  default: return bit_scan<Op, u64>;
  }
}

// --- BMI ---

template <class Op, class T> Step lowest_bit(Cpu& c, const Insn& in) {
  T v;
  if (!read_rm<T>(c, in, v)) return Step::abort;
  c.set_reg<T>(in.reg, Op::template run<T>(T{0}, v, c.state.flags));
  return Step::next;
}
template <class Op> Handler bind_lowest_bit(const Decoded& d, Insn& in) {
  in.reg = d.operand[0].reg;
  in.rm = d.operand[1].reg;
  return d.operand[0].bits == 64 ? lowest_bit<Op, u64> : lowest_bit<Op, u32>;
}

// a op b with b the ModRM operand (ANDN, PDEP, PEXT), or a the ModRM operand (BEXTR, BZHI).
template <class Op, bool RmFirst, class T> Step ternary(Cpu& c, const Insn& in) {
  T v;
  if (!read_rm<T>(c, in, v)) return Step::abort;
  const T other = c.reg<T>(in.aux);
  c.set_reg<T>(in.reg, RmFirst ? Op::template run<T>(v, other, c.state.flags)
                               : Op::template run<T>(other, v, c.state.flags));
  return Step::next;
}
template <class Op, bool RmFirst> Handler bind_ternary(const Decoded& d, Insn& in) {
  in.reg = d.operand[0].reg;
  in.rm = d.operand[RmFirst ? 1 : 2].reg;
  in.aux = d.operand[RmFirst ? 2 : 1].reg;
  return d.operand[0].bits == 64 ? ternary<Op, RmFirst, u64> : ternary<Op, RmFirst, u32>;
}

template <class T> struct Mulx {
  static Step run(Cpu& c, const Insn& in) {
    T v;
    if (!read_rm<T>(c, in, v)) return Step::abort;
    const u128 p = static_cast<u128>(c.reg<T>(rdx * 8)) * v;
    // When both destinations are one register, the high half wins.
    c.set_reg<T>(in.aux, static_cast<T>(p));
    c.set_reg<T>(in.reg, static_cast<T>(p >> (8 * sizeof(T))));
    return Step::next;
  }
};

template <class T> struct Crc32 {
  static Step run(Cpu& c, const Insn& in) {
    T v;
    if (!read_rm<T>(c, in, v)) return Step::abort;
    u64 crc = c.reg<u32>(in.reg);
    if constexpr (sizeof(T) == 8) {
      asm("crc32q %[v], %[c]" : [c] "+r"(crc) : [v] "r"(v));
    } else {
      auto narrow = static_cast<u32>(crc);
      if constexpr (sizeof(T) == 1) asm("crc32b %[v], %[c]" : [c] "+r"(narrow) : [v] "q"(v));
      if constexpr (sizeof(T) == 2) asm("crc32w %[v], %[c]" : [c] "+r"(narrow) : [v] "r"(v));
      if constexpr (sizeof(T) == 4) asm("crc32l %[v], %[c]" : [c] "+r"(narrow) : [v] "r"(v));
      crc = narrow;
    }
    c.state.regs[in.reg / 8] = static_cast<u32>(crc);
    return Step::next;
  }
};

template <bool Seed, class T> Step random(Cpu& c, const Insn& in) {
  u64 v = 0;
  bool ok = false;
  if constexpr (Seed) {
    asm volatile("rdseed %0" : "=r"(v), "=@ccc"(ok));
  } else {
    asm volatile("rdrand %0" : "=r"(v), "=@ccc"(ok));
  }
  c.set_reg<T>(in.rm, ok ? static_cast<T>(v) : T{0});
  c.state.flags = ok ? oszapc::cf : u16{0};
  return Step::next;
}
template <bool Seed> Handler bind_random(const Decoded& d, Insn& in) {
  in.rm = d.operand[0].reg;
  switch (d.operand[0].bits) {
  case 16: return random<Seed, u16>;
  case 32: return random<Seed, u32>;
  default: return random<Seed, u64>;
  }
}

} // namespace

Handler bind_bits(const Decoded& d, Insn& in, const CpuidTable& cpuid) {
  switch (d.op) {
  case Op::bt: return bind_bit_test<host::Bt, false>(d, in);
  case Op::bts: return bind_bit_test<host::Bts, true>(d, in);
  case Op::btr: return bind_bit_test<host::Btr, true>(d, in);
  case Op::btc: return bind_bit_test<host::Btc, true>(d, in);
  case Op::bsf: return bind_bit_scan<host::Bsf>(d, in);
  case Op::bsr: return bind_bit_scan<host::Bsr>(d, in);
  // Without the feature the prefix is ignored and the older scan is what runs.
  case Op::tzcnt:
    return cpuid.has(feature::bmi1) ? bind_scan<host::Tzcnt>(d, in) : bind_bit_scan<host::Bsf>(d, in);
  case Op::lzcnt:
    return cpuid.has(feature::abm) ? bind_scan<host::Lzcnt>(d, in) : bind_bit_scan<host::Bsr>(d, in);
  case Op::popcnt: return bind_scan<host::Popcnt>(d, in);
  case Op::andn: return bind_ternary<host::Andn, false>(d, in);
  case Op::bextr: return bind_ternary<host::Bextr, true>(d, in);
  case Op::bzhi: return bind_ternary<host::Bzhi, true>(d, in);
  case Op::pdep: return bind_ternary<host::Pdep, false>(d, in);
  case Op::pext: return bind_ternary<host::Pext, false>(d, in);
  case Op::blsi: return bind_lowest_bit<host::Blsi>(d, in);
  case Op::blsr: return bind_lowest_bit<host::Blsr>(d, in);
  case Op::blsmsk: return bind_lowest_bit<host::Blsmsk>(d, in);
  case Op::mulx:
    in.reg = d.operand[0].reg;
    in.aux = d.operand[1].reg;
    in.rm = d.operand[2].reg;
    return d.operand[0].bits == 64 ? Mulx<u64>::run : Mulx<u32>::run;
  case Op::crc32:
    in.reg = d.operand[0].reg;
    in.rm = d.operand[1].reg;
    return cpuid.has(feature::sse42) ? by_size<Crc32>(static_cast<u8>(d.operand[1].bits / 8)) : nullptr;
  case Op::rdrand: return bind_random<false>(d, in);
  case Op::rdseed: return bind_random<true>(d, in);
  default: return nullptr;
  }
}

} // namespace ring3::x86
