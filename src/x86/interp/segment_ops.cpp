// SPDX-License-Identifier: Apache-2.0
// Instructions on segment registers, descriptor tables and descriptors.
#include "x86/cpu/segments.h"
#include "x86/interp/operands.h"

namespace ring3::x86 {

namespace {

// To a register the whole operand size is written, zero-extended; to memory always 16 bits.
Step write_selector(Cpu& c, const Insn& in, u16 v) {
  if ((in.flags & insn_flag::mem) != 0) return c.write_operand<u16>(in, v) ? Step::next : Step::abort;
  switch (in.opsize) {
  case 2: c.set_reg<u16>(in.rm, v); break;
  case 4: c.set_reg<u32>(in.rm, v); break;
  default: c.set_reg<u64>(in.rm, v);
  }
  return Step::next;
}

Step mov_from_segment(Cpu& c, const Insn& in) { return write_selector(c, in, c.state.seg[in.reg].selector); }

Step mov_to_segment(Cpu& c, const Insn& in) {
  u16 v;
  if (!read_rm<u16>(c, in, v)) return Step::abort;
  const auto seg = static_cast<Seg>(in.reg);
  if (!load_data_segment(c, seg, v)) return Step::abort;
  if (seg == Seg::ss) {
    // Consecutive loads of SS do not extend the shadow for ever.
    c.state.mov_ss_shadow = !c.state.mov_ss_shadow;
    c.update_careful();
  }
  return Step::jump;
}

template <class T> struct LoadFar {
  static Step run(Cpu& c, const Insn& in) {
    const auto seg = static_cast<Seg>(in.seg);
    const u64 at = c.effective_address(in);
    T offset;
    u16 selector;
    if (!c.read<T>(seg, at, offset) ||
        !c.read<u16>(seg, (at + sizeof(T)) & Cpu::address_mask(in.addrsize), selector) ||
        !load_data_segment(c, static_cast<Seg>(in.aux), selector)) {
      return Step::abort;
    }
    c.set_reg<T>(in.reg, offset);
    return Step::jump;
  }
};

// --- LGDT, LIDT, SGDT, SIDT ---

bool umip_blocks(Cpu& c) {
  if (c.state.cpl == 0 || (c.state.cr4 & cr4::umip) == 0) return false;
  c.gp();
  return true;
}

Step load_table(Cpu& c, const Insn& in) {
  if (c.state.cpl != 0) return c.gp();
  const auto seg = static_cast<Seg>(in.seg);
  const u64 at = c.effective_address(in);
  const u64 base_at = (at + 2) & Cpu::address_mask(in.addrsize);
  u16 limit;
  u64 base;
  if (!c.read<u16>(seg, at, limit)) return Step::abort;
  if (c.code64()) {
    if (!c.read<u64>(seg, base_at, base)) return Step::abort;
    if (!c.canonical_base(base)) return c.gp();
  } else {
    u32 v;
    if (!c.read<u32>(seg, base_at, v)) return Step::abort;
    base = in.opsize == 2 ? v & low_mask(24) : v;
  }
  (in.aux == 0 ? c.state.gdtr : c.state.idtr) = TableRegister{base, limit};
  return Step::next;
}

Step store_table(Cpu& c, const Insn& in) {
  if (umip_blocks(c)) return Step::abort;
  const TableRegister& t = in.aux == 0 ? c.state.gdtr : c.state.idtr;
  u8 image[10];
  store_raw<u16>(image, t.limit);
  store_raw<u64>(image + 2, t.base);
  return c.write_bytes(static_cast<Seg>(in.seg), c.effective_address(in), image, c.code64() ? 10 : 6)
             ? Step::next
             : Step::abort;
}

// --- LLDT, LTR, SLDT, STR ---

Step handle_lldt(Cpu& c, const Insn& in) {
  CpuState& s = c.state;
  if (s.real_or_v86()) return c.ud();
  if (s.cpl != 0) return c.gp();
  u16 v;
  if (!read_rm<u16>(c, in, v)) return Step::abort;
  Segment& ldtr = s.segment(Seg::ldtr);
  if (null_selector(v)) {
    ldtr = Segment{};
    ldtr.selector = v;
    return Step::next;
  }
  Descriptor d;
  if ((v & 4) != 0) return c.gp(selector_error(v));
  if (!read_descriptor(c, v, d, Vector::gp, 0, s.long_mode())) return Step::abort;
  if (d.s() || d.type() != system_type::ldt) return c.gp(selector_error(v));
  if (!d.present()) return c.raise(Vector::np, selector_error(v));
  if (s.long_mode() && !c.canonical_base(d.segment(v).base)) return c.gp(selector_error(v));
  ldtr = d.segment(v);
  return Step::next;
}

Step handle_ltr(Cpu& c, const Insn& in) {
  CpuState& s = c.state;
  if (s.real_or_v86()) return c.ud();
  if (s.cpl != 0) return c.gp();
  u16 v;
  if (!read_rm<u16>(c, in, v)) return Step::abort;
  if (null_selector(v)) return c.gp();
  if ((v & 4) != 0) return c.gp(selector_error(v));
  Descriptor d;
  if (!read_descriptor(c, v, d, Vector::gp, 0, s.long_mode())) return Step::abort;
  const bool available = d.type() == system_type::tss || (d.type() == system_type::tss16 && !s.long_mode());
  if (d.s() || !available) return c.gp(selector_error(v));
  if (!d.present()) return c.raise(Vector::np, selector_error(v));
  if (s.long_mode() && !c.canonical_base(d.segment(v).base)) return c.gp(selector_error(v));
  if (!set_tss_busy(c, d, true)) return Step::abort;
  s.segment(Seg::tr) = d.segment(v);
  s.segment(Seg::tr).type |= 2;
  return Step::next;
}

Step handle_sldt(Cpu& c, const Insn& in) {
  if (c.state.real_or_v86()) return c.ud();
  if (umip_blocks(c)) return Step::abort;
  return write_selector(c, in, c.state.segment(Seg::ldtr).selector);
}
Step handle_str(Cpu& c, const Insn& in) {
  if (c.state.real_or_v86()) return c.ud();
  if (umip_blocks(c)) return Step::abort;
  return write_selector(c, in, c.state.segment(Seg::tr).selector);
}

// --- LAR, LSL, VERR, VERW, ARPL ---

// Reads a descriptor without faulting on a bad selector; `found` says whether it is there.
bool peek_descriptor(Cpu& c, u16 selector, Descriptor& d, bool& found) {
  found = false;
  if (null_selector(selector)) return true;
  if (read_descriptor(c, selector, d)) {
    found = true;
    return true;
  }
  if (c.fault.vector != Vector::gp) return false; // a page fault is a page fault
  c.fault_pending = false;
  return true;
}

bool visible(const Cpu& c, u16 selector, const Descriptor& d) {
  if (d.code() && d.conforming()) return true;
  return d.dpl() >= c.state.cpl && d.dpl() >= rpl(selector);
}

void set_zf(Cpu& c, bool on) {
  c.state.flags = static_cast<u16>(on ? c.state.flags | oszapc::zf : c.state.flags & ~oszapc::zf);
}

bool lar_type_ok(const Cpu& c, u8 t) {
  switch (t) {
  case system_type::tss16:
  case system_type::tss16_busy:
  case system_type::call_gate16:
  case system_type::task_gate: return !c.state.long_mode();
  case system_type::ldt:
  case system_type::tss:
  case system_type::tss_busy:
  case system_type::call_gate: return true;
  default: return false;
  }
}

void write_sized(Cpu& c, const Insn& in, u64 v) {
  switch (in.opsize) {
  case 2: c.set_reg<u16>(in.reg, static_cast<u16>(v)); break;
  case 4: c.set_reg<u32>(in.reg, static_cast<u32>(v)); break;
  default: c.set_reg<u64>(in.reg, v);
  }
}

Step handle_lar(Cpu& c, const Insn& in) {
  if (c.state.real_or_v86()) return c.ud();
  u16 v;
  Descriptor d;
  bool found;
  if (!read_rm<u16>(c, in, v) || !peek_descriptor(c, v, d, found)) return Step::abort;
  const bool ok = found && (d.s() || lar_type_ok(c, d.type())) && visible(c, v, d);
  if (ok) write_sized(c, in, (d.raw >> 32) & 0x00f0ff00);
  set_zf(c, ok);
  return Step::next;
}

Step handle_lsl(Cpu& c, const Insn& in) {
  if (c.state.real_or_v86()) return c.ud();
  u16 v;
  Descriptor d;
  bool found;
  if (!read_rm<u16>(c, in, v) || !peek_descriptor(c, v, d, found)) return Step::abort;
  const u8 t = found ? d.type() : u8{0};
  const bool gate =
      t == system_type::call_gate16 || t == system_type::task_gate || t == system_type::call_gate;
  const bool ok = found && (d.s() || (lar_type_ok(c, t) && !gate)) && visible(c, v, d);
  if (ok) write_sized(c, in, d.segment(v).limit);
  set_zf(c, ok);
  return Step::next;
}

Step handle_verify(Cpu& c, const Insn& in) {
  if (c.state.real_or_v86()) return c.ud();
  u16 v;
  Descriptor d;
  bool found;
  if (!read_rm<u16>(c, in, v) || !peek_descriptor(c, v, d, found)) return Step::abort;
  const bool writing = in.aux != 0;
  const bool ok = found && d.s() && visible(c, v, d) &&
                  (writing ? !d.code() && (d.type() & 2) != 0 : !d.code() || (d.type() & 2) != 0);
  set_zf(c, ok);
  return Step::next;
}

Step handle_arpl(Cpu& c, const Insn& in) {
  if (c.state.real_or_v86()) return c.ud();
  const u16 source = c.reg<u16>(in.reg);
  bool raised = false;
  const auto adjust = [&](u16 v) {
    raised = rpl(v) < rpl(source);
    return raised ? static_cast<u16>((v & ~3u) | rpl(source)) : v;
  };
  if ((in.flags & insn_flag::mem) != 0) {
    const Step s = update_memory<u16>(c, in, [&](u16 v, u16&) { return adjust(v); });
    if (s != Step::next) return s;
  } else {
    c.set_reg<u16>(in.rm, adjust(c.reg<u16>(in.rm)));
  }
  set_zf(c, raised);
  return Step::next;
}

// --- FS and GS bases ---

bool bases_allowed(Cpu& c) {
  if (c.code64() && (c.state.cr4 & cr4::fsgsbase) != 0) return true;
  c.ud();
  return false;
}
Step read_base(Cpu& c, const Insn& in) {
  if (!bases_allowed(c)) return Step::abort;
  const u64 v = c.state.seg[in.aux].base;
  if (in.opsize == 8) {
    c.set_reg<u64>(in.rm, v);
  } else {
    c.set_reg<u32>(in.rm, static_cast<u32>(v));
  }
  return Step::next;
}
Step write_base(Cpu& c, const Insn& in) {
  if (!bases_allowed(c)) return Step::abort;
  const u64 v = in.opsize == 8 ? c.reg<u64>(in.rm) : c.reg<u32>(in.rm);
  if (!c.canonical_base(v)) return c.gp();
  c.state.seg[in.aux].base = v;
  c.load_segment_cache(static_cast<Seg>(in.aux));
  return Step::next;
}
Step handle_swapgs(Cpu& c, const Insn&) {
  if (!c.code64()) return c.ud();
  if (c.state.cpl != 0) return c.gp();
  std::swap(c.state.segment(Seg::gs).base, c.state.kernel_gs_base);
  c.load_segment_cache(Seg::gs);
  return Step::next;
}

Handler bind_load_far(const Decoded& d, Insn& in, Seg s) {
  in.reg = d.operand[0].reg;
  in.aux = static_cast<u8>(s);
  return by_size_not_byte<LoadFar>(d.operand_bytes);
}

} // namespace

Handler bind_segments(const Decoded& d, Insn& in, const CpuidTable& cpuid) {
  const Operand& dst = d.operand[0];
  const Operand& src = d.operand[1];
  in.opsize = d.operand_bytes;
  switch (d.op) {
  case Op::mov:
    if (dst.kind == Operand::Kind::segment) {
      in.reg = dst.reg;
      in.rm = src.reg;
      return dst.reg == static_cast<u8>(Seg::cs) ? handle_ud : mov_to_segment;
    }
    if (src.kind == Operand::Kind::segment) {
      in.reg = src.reg;
      in.rm = dst.reg;
      return mov_from_segment;
    }
    return nullptr;
  case Op::lds: return bind_load_far(d, in, Seg::ds);
  case Op::les: return bind_load_far(d, in, Seg::es);
  case Op::lfs: return bind_load_far(d, in, Seg::fs);
  case Op::lgs: return bind_load_far(d, in, Seg::gs);
  case Op::lss: return bind_load_far(d, in, Seg::ss);
  case Op::lgdt: in.aux = 0; return load_table;
  case Op::lidt: in.aux = 1; return load_table;
  case Op::sgdt: in.aux = 0; return store_table;
  case Op::sidt: in.aux = 1; return store_table;
  case Op::lldt: in.rm = dst.reg; return handle_lldt;
  case Op::ltr: in.rm = dst.reg; return handle_ltr;
  case Op::sldt: in.rm = dst.reg; return handle_sldt;
  case Op::str: in.rm = dst.reg; return handle_str;
  case Op::lar:
  case Op::lsl:
    in.reg = dst.reg;
    in.rm = src.reg;
    return d.op == Op::lar ? handle_lar : handle_lsl;
  case Op::verr: in.rm = dst.reg; return handle_verify;
  case Op::verw:
    in.rm = dst.reg;
    in.aux = 1;
    return handle_verify;
  case Op::arpl:
    in.rm = dst.reg;
    in.reg = src.reg;
    return handle_arpl;
  case Op::rdfsbase:
  case Op::rdgsbase:
  case Op::wrfsbase:
  case Op::wrgsbase:
    if (!cpuid.has(feature::fsgsbase)) return nullptr;
    in.rm = dst.reg;
    in.opsize = static_cast<u8>(dst.bits / 8);
    in.aux = static_cast<u8>(d.op == Op::rdfsbase || d.op == Op::wrfsbase ? Seg::fs : Seg::gs);
    return d.op == Op::rdfsbase || d.op == Op::rdgsbase ? read_base : write_base;
  case Op::swapgs: return handle_swapgs;
  default: return nullptr;
  }
}

} // namespace ring3::x86
