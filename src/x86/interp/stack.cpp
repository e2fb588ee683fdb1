// SPDX-License-Identifier: Apache-2.0
// PUSH, POP, PUSHA, PUSHF, ENTER and LEAVE.
#include "x86/cpu/segments.h"
#include "x86/interp/operands.h"

namespace ring3::x86 {

namespace {

template <class T> struct PushReg {
  static Step run(Cpu& c, const Insn& in) { return c.push<T>(c.reg<T>(in.rm)) ? Step::next : Step::abort; }
};
template <class T> struct PushImm {
  static Step run(Cpu& c, const Insn& in) {
    return c.push<T>(static_cast<T>(in.imm)) ? Step::next : Step::abort;
  }
};
template <class T> struct PushMem {
  static Step run(Cpu& c, const Insn& in) {
    T v;
    return c.read_operand<T>(in, v) && c.push<T>(v) ? Step::next : Step::abort;
  }
};
template <class T> struct PopReg {
  static Step run(Cpu& c, const Insn& in) {
    T v;
    if (!c.pop<T>(v)) return Step::abort;
    c.set_reg<T>(in.rm, v);
    return Step::next;
  }
};
template <class T> struct PopMem {
  static Step run(Cpu& c, const Insn& in) {
    // The address is computed with the stack pointer already moved (SDM vol. 2, POP).
    const u64 old = c.state.regs[rsp];
    T v;
    if (!c.pop<T>(v)) return Step::abort;
    if (c.write_operand<T>(in, v)) return Step::next;
    c.state.regs[rsp] = old;
    return Step::abort;
  }
};

// A pushed selector occupies a whole slot, but with a 32-bit operand current Intel processors write only its
// 16 bits; AMD's write all of it.
template <class T> struct PushSegment {
  static Step run(Cpu& c, const Insn& in) {
    const u16 v = c.state.seg[in.reg].selector;
    if (sizeof(T) == 4 && !c.cpuid.amd()) {
      const u64 at = (c.sp() - 4) & c.stack_mask();
      if (!c.write<u16>(Seg::ss, at, v)) return Step::abort;
      c.set_sp(at);
      return Step::next;
    }
    return c.push<T>(v) ? Step::next : Step::abort;
  }
};
template <class T> struct PopSegment {
  static Step run(Cpu& c, const Insn& in) {
    const u64 at = c.sp();
    u16 v;
    if (!c.read<u16>(Seg::ss, at, v)) return Step::abort;
    const auto seg = static_cast<Seg>(in.reg);
    if (!load_data_segment(c, seg, v)) return Step::abort;
    c.set_sp(at + sizeof(T));
    if (seg == Seg::ss) {
      c.state.mov_ss_shadow = !c.state.mov_ss_shadow;
      c.update_careful();
    }
    return Step::jump;
  }
};

template <class T> struct Pusha {
  static Step run(Cpu& c, const Insn&) {
    const T original = c.reg<T>(rsp * 8);
    const u64 old = c.state.regs[rsp];
    for (u8 r = 0; r < 8; ++r) {
      if (!c.push<T>(r == rsp ? original : c.reg<T>(static_cast<u8>(r * 8)))) {
        c.state.regs[rsp] = old;
        return Step::abort;
      }
    }
    return Step::next;
  }
};
template <class T> struct Popa {
  static Step run(Cpu& c, const Insn&) {
    T v[8];
    const u64 sp = c.sp();
    for (unsigned i = 0; i < 8; ++i) {
      if (!c.read<T>(Seg::ss, (sp + i * sizeof(T)) & c.stack_mask(), v[i])) return Step::abort;
    }
    for (unsigned i = 0; i < 8; ++i) {
      const unsigned r = 7 - i;
      if (r != rsp) c.set_reg<T>(static_cast<u8>(r * 8), v[i]);
    }
    c.set_sp(sp + 8 * sizeof(T));
    return Step::next;
  }
};

template <class T> struct Pushf {
  static Step run(Cpu& c, const Insn&) {
    CpuState& s = c.state;
    u64 f = s.rflags() & ~(rflags::vm | rflags::rf);
    if (s.v8086() && s.iopl() < 3) {
      if ((s.cr4 & cr4::vme) == 0 || sizeof(T) != 2) return c.gp();
      // VME: the guest sees VIF as IF and IOPL 3 (SDM vol. 3, 20.3.3.4).
      f = with_bits(f, rflags::if_, (f & rflags::vif) != 0) | rflags::iopl;
    }
    return c.push<T>(static_cast<T>(f)) ? Step::next : Step::abort;
  }
};
template <class T> struct Popf {
  static Step run(Cpu& c, const Insn&) {
    CpuState& s = c.state;
    const bool restricted_v86 = s.v8086() && s.iopl() < 3;
    if (restricted_v86 && ((s.cr4 & cr4::vme) == 0 || sizeof(T) != 2)) return c.gp();
    const u64 old_sp = s.regs[rsp];
    T v;
    if (!c.pop<T>(v)) return Step::abort;
    u64 image = v;
    u64 mask = rflags::arithmetic | rflags::tf | rflags::df | rflags::nt;
    if (sizeof(T) > 2) mask |= rflags::ac | rflags::id;
    if (restricted_v86) {
      if (((image & rflags::if_) != 0 && (s.system_flags & rflags::vip) != 0) || (image & rflags::tf) != 0) {
        s.regs[rsp] = old_sp;
        return c.gp();
      }
      image = with_bits(image, rflags::vif, (image & rflags::if_) != 0);
      mask |= rflags::vif;
    } else {
      if (s.cpl <= s.iopl()) mask |= rflags::if_;
      if (s.cpl == 0) mask |= rflags::iopl;
    }
    s.set_rflags(((s.rflags() & ~mask) | (image & mask)) & ~rflags::rf);
    c.flags_changed();
    return c.events_may_have_changed();
  }
};

template <class T> struct Enter {
  static Step run(Cpu& c, const Insn& in) {
    const auto size = static_cast<u16>(in.imm);
    const unsigned level = in.aux & 31u;
    const u64 old_sp = c.state.regs[rsp];
    const u64 mask = c.stack_mask();
    const auto give_up = [&] {
      c.state.regs[rsp] = old_sp;
      return Step::abort;
    };
    u64 frame_bp = c.state.regs[rbp];
    if (!c.push<T>(c.reg<T>(rbp * 8))) return give_up();
    const u64 frame = c.sp();
    if (level > 0) {
      for (unsigned i = 1; i < level; ++i) {
        frame_bp = (frame_bp & ~mask) | ((frame_bp - sizeof(T)) & mask);
        T v;
        if (!c.read<T>(Seg::ss, frame_bp & mask, v) || !c.push<T>(v)) return give_up();
      }
      if (!c.push<T>(static_cast<T>(frame))) return give_up();
    }
    // The last word of the new frame must be writable before anything is committed.
    const u64 new_sp = (c.sp() - size) & mask;
    if (!c.probe_write(Seg::ss, new_sp, sizeof(T))) return give_up();
    c.set_reg<T>(rbp * 8, static_cast<T>(frame));
    c.set_sp(new_sp);
    return Step::next;
  }
};
template <class T> struct Leave {
  static Step run(Cpu& c, const Insn&) {
    const u64 at = c.state.regs[rbp] & c.stack_mask();
    T v;
    if (!c.read<T>(Seg::ss, at, v)) return Step::abort;
    c.set_sp(at + sizeof(T));
    c.set_reg<T>(rbp * 8, v);
    return Step::next;
  }
};

} // namespace

Handler bind_stack(const Decoded& d, Insn& in, const CpuidTable&) {
  // The width of the stack slot: the effective operand size, which is 64 bits by default in 64-bit code.
  u8 size = d.operand_bytes;
  const bool long_code = d.code_bits == 64;
  if (long_code) size = d.operand_size_prefix ? 2 : 8;
  if (long_code && d.rex_offset != 0xff && (d.bytes[d.rex_offset] & 8) != 0) size = 8;
  const Operand& o = d.operand[0];
  switch (d.op) {
  case Op::push:
    if (o.kind == Operand::Kind::segment) {
      in.reg = o.reg;
      return by_size_not_byte<PushSegment>(size);
    }
    if (is_imm(o)) {
      in.imm = o.value;
      return by_size_not_byte<PushImm>(size);
    }
    in.rm = o.reg;
    return is_mem(o) ? by_size_not_byte<PushMem>(size) : by_size_not_byte<PushReg>(size);
  case Op::pop:
    if (o.kind == Operand::Kind::segment) {
      in.reg = o.reg;
      return by_size_not_byte<PopSegment>(size);
    }
    in.rm = o.reg;
    return is_mem(o) ? by_size_not_byte<PopMem>(size) : by_size_not_byte<PopReg>(size);
  case Op::pusha: return Pusha<u16>::run;
  case Op::pushad: return Pusha<u32>::run;
  case Op::popa: return Popa<u16>::run;
  case Op::popad: return Popa<u32>::run;
  case Op::pushf:
  case Op::pushfd:
  case Op::pushfq: return by_size_not_byte<Pushf>(size);
  case Op::popf:
  case Op::popfd:
  case Op::popfq: return by_size_not_byte<Popf>(size);
  case Op::enter:
    in.imm = d.operand[0].value;
    in.aux = static_cast<u8>(d.operand[1].value);
    return by_size_not_byte<Enter>(size);
  case Op::leave: return by_size_not_byte<Leave>(size);
  default: return nullptr;
  }
}

} // namespace ring3::x86
