// SPDX-License-Identifier: Apache-2.0
// Far jumps, calls and returns, call gates, and IRET (SDM vol. 2, JMP, CALL, RET, IRET; vol. 3, 5.8
// and 20.3).
#include "x86/cpu/segments.h"

namespace ring3::x86 {

namespace {

bool fault(Cpu& cpu, Vector v, u32 error) {
  cpu.raise(v, error);
  return false;
}

bool target_ok(Cpu& cpu, const Descriptor& code, u64 offset) {
  if (cpu.state.long_mode() && code.l()) {
    return cpu.canonical(offset) ? true : fault(cpu, Vector::gp, 0);
  }
  return offset <= code.segment(0).limit ? true : fault(cpu, Vector::gp, 0);
}

u64 truncate(u64 v, u8 opsize) {
  return v & (opsize == 2 ? low_mask(16) : opsize == 4 ? low_mask(32) : ~u64{0});
}

// Privilege checks for a far jump or call straight to a code segment, at the current ring.
bool check_direct_code(Cpu& cpu, u16 selector, const Descriptor& d) {
  const u8 cpl = cpu.state.cpl;
  const u32 error = selector_error(selector);
  if (cpu.state.long_mode() && d.l() && d.db()) return fault(cpu, Vector::gp, error);
  if (d.conforming() ? d.dpl() > cpl : (rpl(selector) > cpl || d.dpl() != cpl))
    return fault(cpu, Vector::gp, error);
  return d.present() ? true : fault(cpu, Vector::np, error);
}

bool push_sized(Cpu& cpu, u64 v, u8 opsize) {
  switch (opsize) {
  case 2: return cpu.push<u16>(static_cast<u16>(v));
  case 4: return cpu.push<u32>(static_cast<u32>(v));
  default: return cpu.push<u64>(v);
  }
}

bool read_stack(Cpu& cpu, u64 at, u8 opsize, u64& v) {
  at &= cpu.stack_mask();
  switch (opsize) {
  case 2: {
    u16 x;
    if (!cpu.read<u16>(Seg::ss, at, x)) return false;
    v = x;
    return true;
  }
  case 4: {
    u32 x;
    if (!cpu.read<u32>(Seg::ss, at, x)) return false;
    v = x;
    return true;
  }
  default: return cpu.read<u64>(Seg::ss, at, v);
  }
}

// --- call gates (SDM vol. 3, 5.8.3 and 5.8.4) ---

bool check_gate(Cpu& cpu, u16 selector, const Descriptor& gate) {
  const u32 error = selector_error(selector);
  if (gate.dpl() < cpu.state.cpl || gate.dpl() < rpl(selector)) return fault(cpu, Vector::gp, error);
  return gate.present() ? true : fault(cpu, Vector::np, error);
}

bool read_gate_target(Cpu& cpu, const Descriptor& gate, bool jump, Descriptor& code) {
  const u16 target = gate.gate_selector();
  if (null_selector(target)) return fault(cpu, Vector::gp, 0);
  if (!read_descriptor(cpu, target, code)) return false;
  const u32 error = selector_error(target);
  const u8 cpl = cpu.state.cpl;
  if (!code.code() || code.dpl() > cpl) return fault(cpu, Vector::gp, error);
  if (jump && !code.conforming() && code.dpl() != cpl) return fault(cpu, Vector::gp, error);
  if (cpu.state.long_mode() && (!code.l() || code.db())) return fault(cpu, Vector::gp, error);
  return code.present() ? true : fault(cpu, Vector::np, error);
}

bool call_inner_ring(Cpu& cpu, const Descriptor& gate, Descriptor& code, u8 size) {
  CpuState& s = cpu.state;
  const u8 ring = code.dpl();
  const u64 offset = truncate(gate.gate_offset(), size);
  u16 new_ss;
  u64 new_sp;
  if (!read_tss_stack(cpu, ring, new_ss, new_sp, 0)) return false;
  if (!target_ok(cpu, code, offset)) return false;
  const Segment old_ss = s.segment(Seg::ss);
  const Segment old_cs = s.segment(Seg::cs);
  const u64 old_sp = s.regs[rsp];
  const u64 return_ip = s.rip();
  const CpuState before = s;

  if (s.long_mode()) {
    if (!cpu.canonical(new_sp)) return fault(cpu, Vector::ss, 0);
    const u8 old_cpl = s.cpl;
    s.cpl = ring;
    const bool ok = cpu.store_as_ring<u64>(GuestVirt{new_sp - 8}, old_ss.selector) &&
                    cpu.store_as_ring<u64>(GuestVirt{new_sp - 16}, old_sp) &&
                    cpu.store_as_ring<u64>(GuestVirt{new_sp - 24}, old_cs.selector) &&
                    cpu.store_as_ring<u64>(GuestVirt{new_sp - 32}, return_ip);
    s.cpl = old_cpl;
    if (!ok || !mark_accessed(cpu, code)) return false;
    set_code_segment(cpu, gate.gate_selector(), code, ring);
    set_null_stack_segment(cpu, ring);
    s.regs[rsp] = new_sp - 32;
    s.regs[reg_rip] = offset;
    return true;
  }

  const u32 ss_error = selector_error(new_ss);
  if (null_selector(new_ss)) return fault(cpu, Vector::ts, 0);
  Descriptor stack;
  if (!read_descriptor(cpu, new_ss, stack, Vector::ts)) return false;
  if (rpl(new_ss) != ring || stack.dpl() != ring || !stack.s() || stack.code() || (stack.type() & 2) == 0) {
    return fault(cpu, Vector::ts, ss_error);
  }
  if (!stack.present()) return fault(cpu, Vector::ss, ss_error);
  const auto parameters = static_cast<unsigned>(field(gate.raw, 36, 32));
  u64 copied[32];
  for (unsigned i = 0; i < parameters; ++i) {
    if (!read_stack(cpu, cpu.sp() + u64{i} * size, size, copied[i])) return false;
  }
  if (!mark_accessed(cpu, stack) || !mark_accessed(cpu, code)) return false;
  s.cpl = ring;
  s.segment(Seg::cs) = code.segment(static_cast<u16>((gate.gate_selector() & ~3u) | ring));
  set_stack_segment(cpu, new_ss, stack);
  s.regs[rsp] = new_sp;
  bool ok = push_sized(cpu, old_ss.selector, size) && push_sized(cpu, old_sp, size);
  for (unsigned i = parameters; ok && i > 0; --i) ok = push_sized(cpu, copied[i - 1], size);
  ok = ok && push_sized(cpu, old_cs.selector, size) && push_sized(cpu, return_ip, size);
  if (!ok) {
    s = before;
    cpu.mode_changed();
    return false;
  }
  s.regs[reg_rip] = offset;
  return true;
}

bool call_gate(Cpu& cpu, u16 selector, Descriptor& gate, bool jump) {
  CpuState& s = cpu.state;
  if (!check_gate(cpu, selector, gate)) return false;
  const u8 size = s.long_mode() ? 8 : gate.type() == system_type::call_gate ? 4 : 2;
  if (s.long_mode() && field(gate.high, 12, 8) != 0) return fault(cpu, Vector::gp, selector_error(selector));
  Descriptor code;
  if (!read_gate_target(cpu, gate, jump, code)) return false;
  if (!jump && !code.conforming() && code.dpl() < s.cpl) return call_inner_ring(cpu, gate, code, size);
  const u64 offset = truncate(gate.gate_offset(), size);
  if (!target_ok(cpu, code, offset)) return false;
  if (!jump) {
    const u64 old_sp = s.regs[rsp];
    if (!push_sized(cpu, s.segment(Seg::cs).selector, size)) return false;
    if (!push_sized(cpu, s.rip(), size)) {
      s.regs[rsp] = old_sp;
      return false;
    }
  }
  if (!mark_accessed(cpu, code)) return false;
  set_code_segment(cpu, gate.gate_selector(), code, s.cpl);
  s.regs[reg_rip] = offset;
  return true;
}

// Jump or call to a selector that names a system descriptor.
bool system_transfer(Cpu& cpu, u16 selector, Descriptor& d, bool jump) {
  const u32 error = selector_error(selector);
  const u8 t = d.type();
  if (cpu.state.long_mode()) {
    if (t != system_type::call_gate) return fault(cpu, Vector::gp, error);
    if (!read_descriptor(cpu, selector, d, Vector::gp, 0, true)) return false;
    return call_gate(cpu, selector, d, jump);
  }
  switch (t) {
  case system_type::call_gate:
  case system_type::call_gate16: return call_gate(cpu, selector, d, jump);
  case system_type::task_gate:
    if (!check_gate(cpu, selector, d)) return false;
    return switch_task(cpu, d.gate_selector(), jump ? TaskSwitch::jump : TaskSwitch::call, std::nullopt, 0);
  case system_type::tss:
  case system_type::tss16:
    if (d.dpl() < cpu.state.cpl || d.dpl() < rpl(selector)) return fault(cpu, Vector::gp, error);
    return switch_task(cpu, selector, jump ? TaskSwitch::jump : TaskSwitch::call, std::nullopt, 0);
  default: return fault(cpu, Vector::gp, error);
  }
}

} // namespace

bool far_jump(Cpu& cpu, u16 selector, u64 offset, u8 opsize) {
  CpuState& s = cpu.state;
  offset = truncate(offset, opsize);
  if (s.real_or_v86()) {
    if (offset > s.segment(Seg::cs).limit) return fault(cpu, Vector::gp, 0);
    load_real_segment(cpu, Seg::cs, selector);
    s.regs[reg_rip] = offset;
    return true;
  }
  if (null_selector(selector)) return fault(cpu, Vector::gp, 0);
  Descriptor d;
  if (!read_descriptor(cpu, selector, d)) return false;
  if (!d.s()) return system_transfer(cpu, selector, d, true);
  if (!d.code()) return fault(cpu, Vector::gp, selector_error(selector));
  if (!check_direct_code(cpu, selector, d) || !target_ok(cpu, d, offset) || !mark_accessed(cpu, d))
    return false;
  set_code_segment(cpu, selector, d, s.cpl);
  s.regs[reg_rip] = offset;
  return true;
}

bool far_call(Cpu& cpu, u16 selector, u64 offset, u8 opsize) {
  CpuState& s = cpu.state;
  offset = truncate(offset, opsize);
  Descriptor d;
  if (!s.real_or_v86()) {
    if (null_selector(selector)) return fault(cpu, Vector::gp, 0);
    if (!read_descriptor(cpu, selector, d)) return false;
    if (!d.s()) return system_transfer(cpu, selector, d, false);
    if (!d.code()) return fault(cpu, Vector::gp, selector_error(selector));
    if (!check_direct_code(cpu, selector, d) || !target_ok(cpu, d, offset)) return false;
  } else if (offset > s.segment(Seg::cs).limit) {
    return fault(cpu, Vector::gp, 0);
  }
  const u64 old_sp = s.regs[rsp];
  if (!push_sized(cpu, s.segment(Seg::cs).selector, opsize)) return false;
  if (!push_sized(cpu, s.rip(), opsize)) {
    s.regs[rsp] = old_sp;
    return false;
  }
  if (s.real_or_v86()) {
    load_real_segment(cpu, Seg::cs, selector);
  } else {
    if (!mark_accessed(cpu, d)) {
      s.regs[rsp] = old_sp;
      return false;
    }
    set_code_segment(cpu, selector, d, s.cpl);
  }
  s.regs[reg_rip] = offset;
  return true;
}

namespace {

// What RET far and IRET share: going back to a code segment at the same or an outer ring.
struct ReturnFrame {
  u64 ip = 0;
  u16 cs = 0;
  u64 sp = 0;
  u16 ss = 0;
};

bool check_return_code(Cpu& cpu, u16 selector, Descriptor& d) {
  if (null_selector(selector)) return fault(cpu, Vector::gp, 0);
  if (!read_descriptor(cpu, selector, d)) return false;
  const u32 error = selector_error(selector);
  const u8 ring = rpl(selector);
  if (!d.code() || ring < cpu.state.cpl) return fault(cpu, Vector::gp, error);
  if (cpu.state.long_mode() && d.l() && d.db()) return fault(cpu, Vector::gp, error);
  if (d.conforming() ? d.dpl() > ring : d.dpl() != ring) return fault(cpu, Vector::gp, error);
  return d.present() ? true : fault(cpu, Vector::np, error);
}

// Checks the stack segment that a return to another ring (or a 64-bit IRET) loads.
bool check_return_stack(Cpu& cpu, u16 selector, const Descriptor& code, Descriptor& d, bool& null_ss) {
  null_ss = false;
  if (null_selector(selector)) {
    if (!(cpu.state.long_mode() && code.l()) || rpl(selector) == 3) return fault(cpu, Vector::gp, 0);
    null_ss = true;
    return true;
  }
  return read_descriptor(cpu, selector, d);
}

bool check_stack_descriptor(Cpu& cpu, u16 selector, u8 ring, const Descriptor& d) {
  const u32 error = selector_error(selector);
  if (rpl(selector) != ring || d.dpl() != ring || !d.s() || d.code() || (d.type() & 2) == 0) {
    return fault(cpu, Vector::gp, error);
  }
  return d.present() ? true : fault(cpu, Vector::ss, error);
}

bool finish_return(Cpu& cpu, const ReturnFrame& f, Descriptor& code, bool with_stack, u64 release) {
  CpuState& s = cpu.state;
  const u8 ring = rpl(f.cs);
  const u8 old_ring = s.cpl;
  Descriptor stack;
  bool null_ss = false;
  if (with_stack) {
    if (!check_return_stack(cpu, f.ss, code, stack, null_ss)) return false;
    if (null_ss && rpl(f.ss) != ring) return fault(cpu, Vector::gp, 0);
    if (!null_ss && !check_stack_descriptor(cpu, f.ss, ring, stack)) return false;
  }
  if (!target_ok(cpu, code, f.ip)) return false;
  if (!mark_accessed(cpu, code) || (with_stack && !null_ss && !mark_accessed(cpu, stack))) return false;
  s.cpl = ring;
  s.segment(Seg::cs) = code.segment(f.cs);
  if (with_stack) {
    if (null_ss) {
      Segment& ss = s.segment(Seg::ss);
      ss = Segment{};
      ss.selector = f.ss;
      ss.dpl = ring;
    } else {
      s.segment(Seg::ss) = stack.segment(f.ss);
    }
  }
  cpu.mode_changed();
  if (with_stack) {
    if (cpu.code64()) {
      s.regs[rsp] = f.sp;
    } else if (cpu.stack_mask() == low_mask(16)) {
      s.regs[rsp] = (s.regs[rsp] & ~low_mask(16)) | (f.sp & low_mask(16));
    } else {
      s.regs[rsp] = f.sp & low_mask(32);
    }
  }
  cpu.set_sp(cpu.sp() + release);
  s.regs[reg_rip] = f.ip;
  if (ring > old_ring) null_inaccessible_segments(cpu);
  return true;
}

} // namespace

bool far_return(Cpu& cpu, u8 opsize, u16 extra) {
  CpuState& s = cpu.state;
  ReturnFrame f;
  u64 cs;
  const u64 sp = cpu.sp();
  if (!read_stack(cpu, sp, opsize, f.ip) || !read_stack(cpu, sp + opsize, opsize, cs)) return false;
  f.cs = static_cast<u16>(cs);
  if (s.real_or_v86()) {
    if (f.ip > s.segment(Seg::cs).limit) return fault(cpu, Vector::gp, 0);
    load_real_segment(cpu, Seg::cs, f.cs);
    cpu.set_sp(sp + 2u * opsize + extra);
    s.regs[reg_rip] = f.ip;
    return true;
  }
  Descriptor code;
  if (!check_return_code(cpu, f.cs, code)) return false;
  const bool outer = rpl(f.cs) > s.cpl;
  if (!outer) return finish_return(cpu, f, code, false, 2u * opsize + extra);
  u64 ss;
  if (!read_stack(cpu, sp + 2u * opsize + extra, opsize, f.sp) ||
      !read_stack(cpu, sp + 3u * opsize + extra, opsize, ss)) {
    return false;
  }
  f.ss = static_cast<u16>(ss);
  return finish_return(cpu, f, code, true, extra);
}

namespace {

// RFLAGS from an interrupt return: what CPL and IOPL let it change.
void load_flags(Cpu& cpu, u64 image, u8 opsize, u8 old_cpl) {
  CpuState& s = cpu.state;
  u64 mask = rflags::arithmetic | rflags::tf | rflags::df | rflags::nt;
  if (opsize > 2) mask |= rflags::rf | rflags::ac | rflags::id;
  if (old_cpl <= s.iopl()) mask |= rflags::if_;
  if (old_cpl == 0) {
    mask |= rflags::iopl;
    if (opsize > 2) mask |= rflags::vif | rflags::vip;
  }
  s.set_rflags((s.rflags() & ~mask) | (image & mask));
  cpu.rf_kept = true;
}

bool return_to_v86(Cpu& cpu, u64 ip, u16 cs, u64 flags) {
  CpuState& s = cpu.state;
  const u64 sp = cpu.sp();
  u64 w[6];
  for (unsigned i = 0; i < 6; ++i) {
    if (!read_stack(cpu, sp + 12 + u64{i} * 4, 4, w[i])) return false;
  }
  if (ip > 0xffff) return fault(cpu, Vector::gp, 0);
  s.set_rflags(flags);
  s.system_flags |= rflags::vm;
  s.cpl = 3;
  load_real_segment(cpu, Seg::cs, cs);
  load_real_segment(cpu, Seg::ss, static_cast<u16>(w[1]));
  load_real_segment(cpu, Seg::es, static_cast<u16>(w[2]));
  load_real_segment(cpu, Seg::ds, static_cast<u16>(w[3]));
  load_real_segment(cpu, Seg::fs, static_cast<u16>(w[4]));
  load_real_segment(cpu, Seg::gs, static_cast<u16>(w[5]));
  s.regs[rsp] = w[0] & low_mask(32);
  s.regs[reg_rip] = ip & 0xffff;
  cpu.rf_kept = true;
  cpu.mode_changed();
  return true;
}

} // namespace

bool interrupt_return(Cpu& cpu, u8 opsize) {
  CpuState& s = cpu.state;
  const u8 old_cpl = s.cpl;
  if (s.v8086() && s.iopl() < 3) {
    const bool vme = (s.cr4 & cr4::vme) != 0;
    if (!vme || opsize != 2) return fault(cpu, Vector::gp, 0);
    u64 ip, cs, flags;
    const u64 sp = cpu.sp();
    if (!read_stack(cpu, sp, 2, ip) || !read_stack(cpu, sp + 2, 2, cs) || !read_stack(cpu, sp + 4, 2, flags))
      return false;
    // Virtual interrupt flag instead of IF (SDM vol. 3, 20.3.3.4).
    if (((flags & rflags::if_) != 0 && (s.system_flags & rflags::vip) != 0) || (flags & rflags::tf) != 0) {
      return fault(cpu, Vector::gp, 0);
    }
    const u64 mask = rflags::arithmetic | rflags::df | rflags::nt;
    u64 image = (s.rflags() & ~mask) | (flags & mask);
    image = with_bits(image, rflags::vif, (flags & rflags::if_) != 0);
    s.set_rflags(image);
    load_real_segment(cpu, Seg::cs, static_cast<u16>(cs));
    cpu.set_sp(sp + 6);
    s.regs[reg_rip] = ip;
    cpu.mode_changed();
    return true;
  }
  if (s.protected_mode() && !s.v8086() && (s.system_flags & rflags::nt) != 0) {
    if (s.long_mode()) return fault(cpu, Vector::gp, 0);
    u16 link;
    if (!cpu.load_system<u16>(GuestVirt{s.segment(Seg::tr).base}, link)) return false;
    return switch_task(cpu, link, TaskSwitch::iret, std::nullopt, 0);
  }
  ReturnFrame f;
  u64 cs;
  u64 flags;
  const u64 sp = cpu.sp();
  if (!read_stack(cpu, sp, opsize, f.ip) || !read_stack(cpu, sp + opsize, opsize, cs) ||
      !read_stack(cpu, sp + 2u * opsize, opsize, flags)) {
    return false;
  }
  f.cs = static_cast<u16>(cs);
  if (s.real_or_v86()) {
    if (f.ip > s.segment(Seg::cs).limit) return fault(cpu, Vector::gp, 0);
    load_real_segment(cpu, Seg::cs, f.cs);
    cpu.set_sp(sp + 3u * opsize);
    s.regs[reg_rip] = f.ip;
    // In virtual-8086 mode IOPL is not for the guest to change.
    load_flags(cpu, flags, opsize, s.v8086() ? 3 : 0);
    s.nmi_blocked = false;
    cpu.mode_changed();
    return true;
  }
  if (opsize == 4 && (flags & rflags::vm) != 0 && old_cpl == 0 && !s.long_mode()) {
    if (!return_to_v86(cpu, f.ip, f.cs, flags)) return false;
    s.nmi_blocked = false;
    return true;
  }
  Descriptor code;
  if (!check_return_code(cpu, f.cs, code)) return false;
  // 64-bit mode always pops SS:RSP; otherwise only a change of ring does.
  const bool with_stack = cpu.code64() || rpl(f.cs) > old_cpl;
  if (with_stack) {
    u64 ss;
    if (!read_stack(cpu, sp + 3u * opsize, opsize, f.sp) || !read_stack(cpu, sp + 4u * opsize, opsize, ss))
      return false;
    f.ss = static_cast<u16>(ss);
  }
  if (!finish_return(cpu, f, code, with_stack, with_stack ? 0 : 3u * opsize)) return false;
  load_flags(cpu, flags, opsize, old_cpl);
  s.nmi_blocked = false;
  cpu.mode_changed();
  return true;
}

} // namespace ring3::x86
