// SPDX-License-Identifier: Apache-2.0
// What the integer families share: operand forms, choosing a handler by operand size, and read-modify-write
// of memory.
#pragma once

#include "x86/interp/bind.h"

namespace ring3::x86 {

// The handler of a class template for an operand size of 1, 2, 4 or 8 bytes.
template <template <class> class H> Handler by_size(u8 bytes) {
  switch (bytes) {
  case 1: return H<u8>::run;
  case 2: return H<u16>::run;
  case 4: return H<u32>::run;
  default: return H<u64>::run;
  }
}
template <template <class> class H> Handler by_size_not_byte(u8 bytes) {
  switch (bytes) {
  case 2: return H<u16>::run;
  case 4: return H<u32>::run;
  default: return H<u64>::run;
  }
}

inline bool is_gpr(const Operand& o) { return o.kind == Operand::Kind::gpr; }
inline bool is_mem(const Operand& o) { return o.kind == Operand::Kind::mem; }
inline bool is_imm(const Operand& o) { return o.kind == Operand::Kind::imm; }

// DS or what a prefix names instead, for operands that are implied: the source of a string instruction, [rAX]
// of MONITOR and CLZERO. The decoder describes only operands that are written out.
inline Seg overridden_segment(const Decoded& d) {
  Seg s = Seg::ds;
  for (unsigned i = 0; i < d.length; ++i) {
    switch (d.bytes[i]) {
    case 0x26: s = Seg::es; break;
    case 0x2e: s = Seg::cs; break;
    case 0x36: s = Seg::ss; break;
    case 0x3e: s = Seg::ds; break;
    case 0x64: s = Seg::fs; break;
    case 0x65: s = Seg::gs; break;
    case 0x66:
    case 0x67:
    case 0xf0:
    case 0xf2:
    case 0xf3: break;
    default: return d.code_bits == 64 && s != Seg::fs && s != Seg::gs ? Seg::ds : s;
    }
  }
  return s;
}

// Locked operations that straddle a page have no single host address to lock: one of them at a time. The CPU
// knows that it holds the lock, because memory that is gone takes the thread out of the middle.
class SplitLock {
 public:
  SplitLock(Cpu& cpu, bool take) : cpu_(cpu) {
    if (take) cpu.take_split_lock();
  }
  ~SplitLock() { cpu_.release_split_lock(); }
  SplitLock(const SplitLock&) = delete;
  SplitLock& operator=(const SplitLock&) = delete;

 private:
  Cpu& cpu_;
};

// new = f(old, flags) on a memory operand, atomically with a LOCK prefix or when `always_locked`.
template <class T, class F> Step update_memory_at(Cpu& cpu, Seg seg, u64 offset, bool locked, F f) {
  GuestVirt a;
  if (!cpu.linear(seg, offset, sizeof(T), true, a)) return Step::abort;
  if (std::byte* p = cpu.host_for_update(a, sizeof(T), seg)) [[likely]] {
    T old = guest_load<T>(p);
    u16 flags = cpu.state.flags;
    T value = f(old, flags);
    if (locked) {
      while (!guest_cmpxchg<T>(p, old, value)) {
        flags = cpu.state.flags;
        value = f(old, flags);
      }
    } else {
      guest_store<T>(p, value);
    }
    cpu.state.flags = flags;
    cpu.update_done();
    return Step::next;
  }
  if (cpu.fault_pending) return Step::abort;
  // A fault on the second page is one of a write.
  if (a.page_offset() > page_size - sizeof(T) && !cpu.probe_write(seg, offset, sizeof(T))) return Step::abort;
  const SplitLock guard(cpu, locked);
  T old;
  if (!cpu.load<T>(a, old, seg)) return Step::abort;
  u16 flags = cpu.state.flags;
  if (!cpu.store<T>(a, f(old, flags), seg)) return Step::abort;
  cpu.state.flags = flags;
  return Step::next;
}

template <class T, class F> Step update_memory(Cpu& cpu, const Insn& in, F f) {
  return update_memory_at<T>(cpu, static_cast<Seg>(in.seg), cpu.effective_address(in),
                             (in.flags & insn_flag::lock) != 0, f);
}

// The ModRM.rm operand, from a register or from memory. False: abort.
template <class T> bool read_rm(Cpu& cpu, const Insn& in, T& v) {
  if ((in.flags & insn_flag::mem) != 0) return cpu.read_operand<T>(in, v);
  v = cpu.reg<T>(in.rm);
  return true;
}

// The condition of Jcc, SETcc and CMOVcc (SDM vol. 2, appendix B, table B-10).
inline bool condition_holds(u8 cc, u16 f) {
  bool r;
  switch (cc >> 1) {
  case 0: r = (f & oszapc::of) != 0; break;
  case 1: r = (f & oszapc::cf) != 0; break;
  case 2: r = (f & oszapc::zf) != 0; break;
  case 3: r = (f & (oszapc::cf | oszapc::zf)) != 0; break;
  case 4: r = (f & oszapc::sf) != 0; break;
  case 5: r = (f & oszapc::pf) != 0; break;
  case 6: r = ((f >> 15) & 1) != (f & 1); break;
  default: r = (f & oszapc::zf) != 0 || ((f >> 15) & 1) != (f & 1); break;
  }
  return r != ((cc & 1) != 0);
}

} // namespace ring3::x86
