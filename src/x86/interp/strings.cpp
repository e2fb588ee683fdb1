// SPDX-License-Identifier: Apache-2.0
// String instructions and port I/O (SDM vol. 2, REP; vol. 1, 18.5 for port permissions).
//
// Repeated moves and stores run page by page on host memory when both sides are plain RAM; otherwise one
// element at a time, each of them restartable.
#include "x86/interp/host_ops.h"
#include "x86/interp/operands.h"

#include <algorithm>

namespace ring3::x86 {

namespace {

struct Strings {
  Cpu& c;
  const Insn& in;
  u64 mask;
  explicit Strings(Cpu& cpu, const Insn& insn) : c(cpu), in(insn), mask(Cpu::address_mask(insn.addrsize)) {}

  u64 si() const { return c.state.regs[rsi] & mask; }
  u64 di() const { return c.state.regs[rdi] & mask; }
  u64 count() const { return c.state.regs[rcx] & mask; }
  Seg source() const { return static_cast<Seg>(in.seg); }
  bool down() const { return (c.state.system_flags & rflags::df) != 0; }
  bool repeated() const { return (in.flags & (insn_flag::rep | insn_flag::repne)) != 0; }

  void advance(Gpr r, u64 bytes) { set(r, c.state.regs[r] + (down() ? -bytes : bytes)); }
  void consume(u64 n) { set(rcx, c.state.regs[rcx] - n); }

 private:
  void set(Gpr r, u64 v) {
    c.state.regs[r] = in.addrsize == 2 ? (c.state.regs[r] & ~mask) | (v & mask) : v & mask;
  }
};

// Elements that fit before either operand leaves its page, going up.
u64 elements_in_page(u64 address, u64 size) { return (page_size - (address & page_offset_mask)) / size; }

// The loop every string instruction shares. `one` does one element and says whether it completed; `more` says
// whether REPE/REPNE goes on; `fast` may do several elements at once and returns how many (0: use `one`).
template <class One, class More, class Fast> Step repeat(Strings& s, One one, More more, Fast fast) {
  Cpu& c = s.c;
  if (!s.repeated()) return one() ? Step::next : Step::abort;
  // After an answer from user space, as far as that goes: what follows may be asked of it anew, and events
  // come first.
  u64 budget = c.replaying() ? c.answered_elements() : c.careful() ? 1 : Cpu::string_batch;
  while (s.count() != 0) {
    if (budget == 0) {
      // Come back to this very instruction after events have been looked at.
      c.state.regs[reg_rip] = (c.state.regs[reg_rip] - s.in.len) & c.ip_mask();
      c.rf_kept = true;
      return Step::jump;
    }
    if (budget > 1) {
      const u64 n = fast(std::min(s.count(), budget));
      if (n != 0) {
        s.consume(n);
        budget -= std::min(budget, n);
        continue;
      }
    }
    if (!one()) return Step::abort;
    s.consume(1);
    c.element_done();
    --budget;
    if (!more()) break;
  }
  return Step::next;
}

constexpr auto always = [] { return true; };
constexpr auto no_fast_path = [](u64) { return u64{0}; };

template <class T> struct Movs {
  static Step run(Cpu& c, const Insn& in) {
    Strings s(c, in);
    const auto one = [&] {
      T v;
      if (!c.read<T>(s.source(), s.si(), v) || !c.write<T>(Seg::es, s.di(), v)) return false;
      s.advance(rsi, sizeof(T));
      s.advance(rdi, sizeof(T));
      return true;
    };
    const auto fast = [&](u64 most) -> u64 {
      if (s.down()) return 0;
      GuestVirt from;
      GuestVirt to;
      u64 n = std::min({most, elements_in_page(s.si(), sizeof(T)), elements_in_page(s.di(), sizeof(T))});
      if (n < 2) return 0;
      u64 bytes = n * sizeof(T);
      if (!c.probe_fast(s.source(), s.si(), bytes, false, from) ||
          !c.probe_fast(Seg::es, s.di(), bytes, true, to))
        return 0;
      std::byte* src = c.fast_host(from, false);
      std::byte* dst = c.fast_host(to, true);
      if (src == nullptr || dst == nullptr) return 0;
      n = std::min({n, elements_in_page(from.value, sizeof(T)), elements_in_page(to.value, sizeof(T))});
      if (n < 2) return 0;
      bytes = n * sizeof(T);
      u64 left = n;
      // The host's own instruction has the guest's semantics, overlap included.
      if constexpr (sizeof(T) == 1) asm volatile("rep movsb" : "+S"(src), "+D"(dst), "+c"(left) : : "memory");
      if constexpr (sizeof(T) == 2) asm volatile("rep movsw" : "+S"(src), "+D"(dst), "+c"(left) : : "memory");
      if constexpr (sizeof(T) == 4) asm volatile("rep movsl" : "+S"(src), "+D"(dst), "+c"(left) : : "memory");
      if constexpr (sizeof(T) == 8) asm volatile("rep movsq" : "+S"(src), "+D"(dst), "+c"(left) : : "memory");
      s.advance(rsi, bytes);
      s.advance(rdi, bytes);
      return n;
    };
    return repeat(s, one, always, fast);
  }
};

template <class T> struct Stos {
  static Step run(Cpu& c, const Insn& in) {
    Strings s(c, in);
    const T v = c.reg<T>(rax * 8);
    const auto one = [&] {
      if (!c.write<T>(Seg::es, s.di(), v)) return false;
      s.advance(rdi, sizeof(T));
      return true;
    };
    const auto fast = [&](u64 most) -> u64 {
      if (s.down()) return 0;
      GuestVirt to;
      u64 n = std::min(most, elements_in_page(s.di(), sizeof(T)));
      if (n < 2 || !c.probe_fast(Seg::es, s.di(), n * sizeof(T), true, to)) return 0;
      std::byte* dst = c.fast_host(to, true);
      if (dst == nullptr) return 0;
      n = std::min(n, elements_in_page(to.value, sizeof(T)));
      if (n < 2) return 0;
      u64 left = n;
      if constexpr (sizeof(T) == 1) asm volatile("rep stosb" : "+D"(dst), "+c"(left) : "a"(v) : "memory");
      if constexpr (sizeof(T) == 2) asm volatile("rep stosw" : "+D"(dst), "+c"(left) : "a"(v) : "memory");
      if constexpr (sizeof(T) == 4) asm volatile("rep stosl" : "+D"(dst), "+c"(left) : "a"(v) : "memory");
      if constexpr (sizeof(T) == 8) asm volatile("rep stosq" : "+D"(dst), "+c"(left) : "a"(v) : "memory");
      s.advance(rdi, n * sizeof(T));
      return n;
    };
    return repeat(s, one, always, fast);
  }
};

template <class T> struct Lods {
  static Step run(Cpu& c, const Insn& in) {
    Strings s(c, in);
    const auto one = [&] {
      T v;
      if (!c.read<T>(s.source(), s.si(), v)) return false;
      c.set_reg<T>(rax * 8, v);
      s.advance(rsi, sizeof(T));
      return true;
    };
    return repeat(s, one, always, no_fast_path);
  }
};

template <class T> struct Cmps {
  static Step run(Cpu& c, const Insn& in) {
    Strings s(c, in);
    const auto one = [&] {
      T a;
      T b;
      if (!c.read<T>(s.source(), s.si(), a) || !c.read<T>(Seg::es, s.di(), b)) return false;
      host::Sub::run<T>(a, b, c.state.flags);
      s.advance(rsi, sizeof(T));
      s.advance(rdi, sizeof(T));
      return true;
    };
    const bool while_equal = (in.flags & insn_flag::rep) != 0;
    const auto more = [&] { return ((c.state.flags & oszapc::zf) != 0) == while_equal; };
    return repeat(s, one, more, no_fast_path);
  }
};

template <class T> struct Scas {
  static Step run(Cpu& c, const Insn& in) {
    Strings s(c, in);
    const auto one = [&] {
      T b;
      if (!c.read<T>(Seg::es, s.di(), b)) return false;
      host::Sub::run<T>(c.reg<T>(rax * 8), b, c.state.flags);
      s.advance(rdi, sizeof(T));
      return true;
    };
    const bool while_equal = (in.flags & insn_flag::rep) != 0;
    const auto more = [&] { return ((c.state.flags & oszapc::zf) != 0) == while_equal; };
    return repeat(s, one, more, no_fast_path);
  }
};

// --- ports ---

// The I/O permission bitmap (SDM vol. 1, 18.5.2). False: fault recorded.
bool port_allowed(Cpu& c, u16 port, u8 size) {
  const CpuState& s = c.state;
  if (!s.protected_mode() || (!s.v8086() && s.cpl <= s.iopl())) return true;
  const Segment& tr = s.segment(Seg::tr);
  const auto refuse = [&] {
    c.gp();
    return false;
  };
  if (!tr.usable() || (tr.type & 8) == 0 || tr.limit < 103) return refuse();
  u16 base;
  if (!c.load_system<u16>(GuestVirt{tr.base + 102}, base)) return false;
  const u64 at = u64{base} + port / 8;
  if (at + 1 > tr.limit) return refuse();
  u16 map;
  if (!c.load_system<u16>(GuestVirt{tr.base + at}, map)) return false;
  return (map >> (port & 7) & ((1u << size) - 1)) == 0 ? true : refuse();
}

template <class T> Step port_in(Cpu& c, u16 port) {
  u32 v;
  if (!port_allowed(c, port, sizeof(T)) || !c.port_read(port, sizeof(T), v)) return Step::abort;
  c.set_reg<T>(rax * 8, static_cast<T>(v));
  return Step::next;
}
template <class T> Step port_out(Cpu& c, u16 port) {
  return port_allowed(c, port, sizeof(T)) && c.port_write(port, sizeof(T), c.reg<T>(rax * 8)) ? Step::next
                                                                                              : Step::abort;
}
template <class T> struct InImm {
  static Step run(Cpu& c, const Insn& in) { return port_in<T>(c, static_cast<u8>(in.imm)); }
};
template <class T> struct InDx {
  static Step run(Cpu& c, const Insn&) { return port_in<T>(c, c.reg<u16>(rdx * 8)); }
};
template <class T> struct OutImm {
  static Step run(Cpu& c, const Insn& in) { return port_out<T>(c, static_cast<u8>(in.imm)); }
};
template <class T> struct OutDx {
  static Step run(Cpu& c, const Insn&) { return port_out<T>(c, c.reg<u16>(rdx * 8)); }
};

// How many elements of a repeated INS a device may deliver at once: all of them will have a place.
template <class T> u32 read_ahead(Strings& s) {
  if (!s.repeated() || s.down() || s.c.careful()) return 1;
  const u64 n =
      std::min({s.count(), elements_in_page(s.di(), sizeof(T)), u64{StringInput::capacity / sizeof(T)}});
  if (n < 2) return 1;
  const bool room = s.c.probe_write(Seg::es, s.di(), n * sizeof(T));
  s.c.fault_pending = false;
  return room ? static_cast<u32>(n) : 1;
}
template <class T> struct Ins {
  static Step run(Cpu& c, const Insn& in) {
    Strings s(c, in);
    const u16 port = c.reg<u16>(rdx * 8);
    if (!port_allowed(c, port, sizeof(T))) return Step::abort;
    const auto one = [&] {
      // The store must be known to succeed before the device is read.
      if (!c.probe_write(Seg::es, s.di(), sizeof(T))) return false;
      u32 v;
      if (!c.port_read(port, sizeof(T), v, true, read_ahead<T>(s)) ||
          !c.write<T>(Seg::es, s.di(), static_cast<T>(v)))
        return false;
      s.advance(rdi, sizeof(T));
      return true;
    };
    return repeat(s, one, always, no_fast_path);
  }
};
template <class T> struct Outs {
  static Step run(Cpu& c, const Insn& in) {
    Strings s(c, in);
    const u16 port = c.reg<u16>(rdx * 8);
    if (!port_allowed(c, port, sizeof(T))) return Step::abort;
    const auto one = [&] {
      T v;
      if (!c.read<T>(s.source(), s.si(), v) || !c.port_write(port, sizeof(T), v, true)) return false;
      s.advance(rsi, sizeof(T));
      return true;
    };
    return repeat(s, one, always, no_fast_path);
  }
};

} // namespace

Handler bind_strings(const Decoded& d, Insn& in, const CpuidTable&) {
  if (d.op >= Op::movsb && d.op <= Op::outsd) in.seg = static_cast<u8>(overridden_segment(d));
  switch (d.op) {
  case Op::movsb: return Movs<u8>::run;
  case Op::movsw: return Movs<u16>::run;
  case Op::movsd: return Movs<u32>::run;
  case Op::movsq: return Movs<u64>::run;
  case Op::stosb: return Stos<u8>::run;
  case Op::stosw: return Stos<u16>::run;
  case Op::stosd: return Stos<u32>::run;
  case Op::stosq: return Stos<u64>::run;
  case Op::lodsb: return Lods<u8>::run;
  case Op::lodsw: return Lods<u16>::run;
  case Op::lodsd: return Lods<u32>::run;
  case Op::lodsq: return Lods<u64>::run;
  case Op::cmpsb: return Cmps<u8>::run;
  case Op::cmpsw: return Cmps<u16>::run;
  case Op::cmpsd: return Cmps<u32>::run;
  case Op::cmpsq: return Cmps<u64>::run;
  case Op::scasb: return Scas<u8>::run;
  case Op::scasw: return Scas<u16>::run;
  case Op::scasd: return Scas<u32>::run;
  case Op::scasq: return Scas<u64>::run;
  case Op::insb: return Ins<u8>::run;
  case Op::insw: return Ins<u16>::run;
  case Op::insd: return Ins<u32>::run;
  case Op::outsb: return Outs<u8>::run;
  case Op::outsw: return Outs<u16>::run;
  case Op::outsd: return Outs<u32>::run;
  case Op::in: {
    const Operand& port = d.operand[1];
    const unsigned bits = d.operand[0].bits;
    if (is_imm(port)) {
      in.imm = port.value;
      return bits == 8 ? InImm<u8>::run : bits == 16 ? InImm<u16>::run : InImm<u32>::run;
    }
    return bits == 8 ? InDx<u8>::run : bits == 16 ? InDx<u16>::run : InDx<u32>::run;
  }
  case Op::out: {
    const Operand& port = d.operand[0];
    const unsigned bits = d.operand[1].bits;
    if (is_imm(port)) {
      in.imm = port.value;
      return bits == 8 ? OutImm<u8>::run : bits == 16 ? OutImm<u16>::run : OutImm<u32>::run;
    }
    return bits == 8 ? OutDx<u8>::run : bits == 16 ? OutDx<u16>::run : OutDx<u32>::run;
  }
  default: return nullptr;
  }
}

} // namespace ring3::x86
