// SPDX-License-Identifier: Apache-2.0
#include "x86/cpu/segments.h"

namespace ring3::x86 {

namespace {

// The registers a TSS holds, whatever its width (SDM vol. 3, figures 7-2 and 7-10).
struct TaskState {
  u32 cr3 = 0, eip = 0, eflags = 0;
  u32 gpr[8] = {}; // EAX ECX EDX EBX ESP EBP ESI EDI
  u16 seg[6] = {}; // ES CS SS DS FS GS
  u16 ldt = 0;
  bool trap = false;
};

bool fault(Cpu& cpu, Vector v, u32 error) {
  cpu.raise(v, error);
  return false;
}

bool save_state(Cpu& cpu, const Segment& tr, u64 flags) {
  const CpuState& s = cpu.state;
  const GuestVirt base{tr.base};
  if ((tr.type & 8) != 0) {
    bool ok = cpu.store_system<u32>(base + 0x20, static_cast<u32>(s.rip())) &&
              cpu.store_system<u32>(base + 0x24, static_cast<u32>(flags));
    for (unsigned i = 0; ok && i < 8; ++i)
      ok = cpu.store_system<u32>(base + 0x28 + i * 4, static_cast<u32>(s.regs[i]));
    for (unsigned i = 0; ok && i < 6; ++i) ok = cpu.store_system<u16>(base + 0x48 + i * 4, s.seg[i].selector);
    return ok;
  }
  bool ok = cpu.store_system<u16>(base + 0x0e, static_cast<u16>(s.rip())) &&
            cpu.store_system<u16>(base + 0x10, static_cast<u16>(flags));
  for (unsigned i = 0; ok && i < 8; ++i)
    ok = cpu.store_system<u16>(base + 0x12 + i * 2, static_cast<u16>(s.regs[i]));
  for (unsigned i = 0; ok && i < 4; ++i) ok = cpu.store_system<u16>(base + 0x22 + i * 2, s.seg[i].selector);
  return ok;
}

bool read_state(Cpu& cpu, const Segment& tss, TaskState& t) {
  const GuestVirt base{tss.base};
  if ((tss.type & 8) != 0) {
    u16 trap = 0;
    bool ok = cpu.load_system<u32>(base + 0x1c, t.cr3) && cpu.load_system<u32>(base + 0x20, t.eip) &&
              cpu.load_system<u32>(base + 0x24, t.eflags) && cpu.load_system<u16>(base + 0x60, t.ldt) &&
              cpu.load_system<u16>(base + 0x64, trap);
    for (unsigned i = 0; ok && i < 8; ++i) ok = cpu.load_system<u32>(base + 0x28 + i * 4, t.gpr[i]);
    for (unsigned i = 0; ok && i < 6; ++i) ok = cpu.load_system<u16>(base + 0x48 + i * 4, t.seg[i]);
    t.trap = (trap & 1) != 0;
    return ok;
  }
  u16 ip = 0;
  u16 flags = 0;
  bool ok = cpu.load_system<u16>(base + 0x0e, ip) && cpu.load_system<u16>(base + 0x10, flags) &&
            cpu.load_system<u16>(base + 0x2a, t.ldt);
  for (unsigned i = 0; ok && i < 8; ++i) {
    u16 v = 0;
    ok = cpu.load_system<u16>(base + 0x12 + i * 2, v);
    t.gpr[i] = v | 0xffff0000;
  }
  for (unsigned i = 0; ok && i < 4; ++i) ok = cpu.load_system<u16>(base + 0x22 + i * 2, t.seg[i]);
  t.eip = ip;
  t.eflags = flags;
  return ok;
}

bool load_ldt(Cpu& cpu, u16 selector) {
  Segment& ldtr = cpu.state.segment(Seg::ldtr);
  if (null_selector(selector)) {
    ldtr = Segment{};
    ldtr.selector = selector;
    return true;
  }
  const u32 error = selector_error(selector);
  Descriptor d;
  if ((selector & 4) != 0) return fault(cpu, Vector::ts, error);
  if (!read_descriptor(cpu, selector, d, Vector::ts)) return false;
  if (d.s() || d.type() != system_type::ldt || !d.present()) return fault(cpu, Vector::ts, error);
  ldtr = d.segment(selector);
  return true;
}

// Segment registers of the new task: faults now belong to it (SDM vol. 3, table 7-1).
bool load_segments(Cpu& cpu, const TaskState& t) {
  CpuState& s = cpu.state;
  const u16 cs = t.seg[1];
  const u16 ss = t.seg[2];
  Descriptor code;
  if (null_selector(cs)) return fault(cpu, Vector::ts, selector_error(cs));
  if (!read_descriptor(cpu, cs, code, Vector::ts)) return false;
  const u8 ring = rpl(cs);
  if (!code.code() || (code.conforming() ? code.dpl() > ring : code.dpl() != ring)) {
    return fault(cpu, Vector::ts, selector_error(cs));
  }
  if (!code.present()) return fault(cpu, Vector::np, selector_error(cs));
  s.cpl = ring;
  Descriptor stack;
  if (null_selector(ss)) return fault(cpu, Vector::ts, selector_error(ss));
  if (!read_descriptor(cpu, ss, stack, Vector::ts)) return false;
  if (!stack.s() || stack.code() || (stack.type() & 2) == 0 || stack.dpl() != ring || rpl(ss) != ring) {
    return fault(cpu, Vector::ts, selector_error(ss));
  }
  if (!stack.present()) return fault(cpu, Vector::ss, selector_error(ss));
  if (!mark_accessed(cpu, stack) || !mark_accessed(cpu, code)) return false;
  s.segment(Seg::ss) = stack.segment(ss);
  s.segment(Seg::cs) = code.segment(cs);
  cpu.mode_changed();
  for (const Seg seg : {Seg::es, Seg::ds, Seg::fs, Seg::gs}) {
    if (!load_data_segment(cpu, seg, t.seg[static_cast<unsigned>(seg)], Vector::ts)) return false;
  }
  return true;
}

} // namespace

bool switch_task(Cpu& cpu, u16 selector, TaskSwitch reason, std::optional<u32> error, u32 ext) {
  CpuState& s = cpu.state;
  const u32 selector_code = selector_error(selector, ext);
  const Vector wrong = reason == TaskSwitch::iret ? Vector::ts : Vector::gp;

  Descriptor d;
  if (null_selector(selector) || (selector & 4) != 0) return fault(cpu, wrong, selector_code);
  if (!read_descriptor(cpu, selector, d, wrong, ext)) return false;
  const u8 type = d.type();
  const bool is_tss = !d.s() && (type & 5) == 1;
  const bool busy = (type & 2) != 0;
  if (!is_tss || busy != (reason == TaskSwitch::iret)) return fault(cpu, wrong, selector_code);
  if (!d.present()) return fault(cpu, Vector::np, selector_code);
  const Segment tss = d.segment(selector);
  const bool wide = (type & 8) != 0;
  if (tss.limit < (wide ? 0x67u : 0x2bu)) return fault(cpu, Vector::ts, selector_code);

  const Segment old_tr = s.segment(Seg::tr);
  TaskState t;
  if (!read_state(cpu, tss, t)) return false;
  u64 saved_flags = s.rflags();
  if (reason == TaskSwitch::iret) saved_flags &= ~rflags::nt;
  if (!save_state(cpu, old_tr, saved_flags)) return false;

  const bool nests = reason == TaskSwitch::call || reason == TaskSwitch::gate;
  if (!nests) {
    Descriptor old;
    if (!read_descriptor(cpu, old_tr.selector, old, Vector::ts, ext) || !set_tss_busy(cpu, old, false))
      return false;
  }
  if (nests && !cpu.store_system<u16>(GuestVirt{tss.base}, old_tr.selector)) return false;
  if (reason != TaskSwitch::iret && !set_tss_busy(cpu, d, true)) return false;

  // From here on the new task runs, and faults are its own.
  cpu.commit_rip();
  s.segment(Seg::tr) = tss;
  s.segment(Seg::tr).type |= 2;
  s.cr0 |= cr0::ts;
  if (wide && (s.cr0 & cr0::pg) != 0) {
    s.cr3 = t.cr3;
    cpu.mmu.flush_non_global();
    if ((s.cr4 & cr4::pae) != 0 && !cpu.mmu.load_pdptes(s.cr3)) return fault(cpu, Vector::gp, 0);
  }
  u64 flags = t.eflags;
  if (nests) flags |= rflags::nt;
  s.set_rflags(flags);
  cpu.rf_kept = true;
  for (unsigned i = 0; i < 8; ++i) s.regs[i] = t.gpr[i];
  s.regs[reg_rip] = t.eip;
  s.dr7 &= ~u64{0x155}; // local breakpoints belong to the old task
  cpu.debug_registers_changed();
  for (unsigned i = 0; i < 6; ++i) {
    s.seg[i] = Segment{};
    s.seg[i].selector = t.seg[i];
  }
  if (!load_ldt(cpu, t.ldt)) return false;
  if ((flags & rflags::vm) != 0) {
    s.cpl = 3;
    for (const Seg seg : {Seg::es, Seg::cs, Seg::ss, Seg::ds, Seg::fs, Seg::gs}) {
      load_real_segment(cpu, seg, t.seg[static_cast<unsigned>(seg)]);
    }
    cpu.mode_changed();
  } else if (!load_segments(cpu, t)) {
    return false;
  }
  cpu.mode_changed();
  if (s.rip() > s.segment(Seg::cs).limit) return fault(cpu, Vector::gp, 0);
  if (t.trap) cpu.set_debug_trap(dr6::bt);
  if (error) return wide ? cpu.push<u32>(*error) : cpu.push<u16>(static_cast<u16>(*error));
  return true;
}

} // namespace ring3::x86
