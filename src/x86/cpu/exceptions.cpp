// SPDX-License-Identifier: Apache-2.0
// Delivery of interrupts and exceptions (SDM vol. 3, 6.10 to 6.15, and 20.1.4 for real mode).
#include "x86/cpu/segments.h"

namespace ring3::x86 {

namespace {

// Writes a frame below `sp` as the ring that will own it, checking everything before RSP or anything else
// changes.
class FrameWriter {
 public:
  FrameWriter(Cpu& cpu, u64 base, u64 sp, u64 mask, u8 ring, u32 stack_error, bool wide64)
      : cpu_(cpu), base_(base), sp_(sp), mask_(mask), ring_(ring), error_(stack_error), wide64_(wide64) {}

  // Checks limits for `bytes` below the stack pointer against a segment; #SS otherwise.
  bool fits(const Segment& ss, u64 bytes) {
    if (wide64_) return true;
    const u64 last = (sp_ - 1) & mask_;
    const u64 first = (sp_ - bytes) & mask_;
    if (first > last) return fail();
    if (ss.expand_down()) {
      if (first <= ss.limit || last > (ss.db ? 0xffffffffu : 0xffffu)) return fail();
    } else if (last > ss.limit) {
      return fail();
    }
    return true;
  }

  template <class T> bool push(T v) {
    sp_ = (sp_ - sizeof(T)) & mask_;
    u64 at = base_ + sp_;
    if (!wide64_) at &= low_mask(32);
    // The frame belongs to the new ring: its rights decide.
    const u8 old = cpu_.state.cpl;
    cpu_.state.cpl = ring_;
    const bool ok = cpu_.store_as_ring<T>(GuestVirt{at}, v);
    cpu_.state.cpl = old;
    if (!ok && cpu_.fault_pending && cpu_.fault.vector == Vector::ss) cpu_.fault.error_code = error_;
    return ok;
  }
  u64 sp() const { return sp_; }

 private:
  bool fail() {
    cpu_.raise(Vector::ss, error_);
    return false;
  }
  Cpu& cpu_;
  u64 base_, sp_, mask_;
  u8 ring_;
  u32 error_;
  bool wide64_;
};

bool contributory(Vector v) {
  switch (v) {
  case Vector::de:
  case Vector::ts:
  case Vector::np:
  case Vector::ss:
  case Vector::gp:
  case Vector::cp: return true;
  default: return false;
  }
}

bool is_software(EventType t) {
  return t == EventType::software_interrupt || t == EventType::software_exception;
}

bool deliver_real(Cpu& cpu, u8 vector) {
  CpuState& s = cpu.state;
  if (u64{vector} * 4 + 3 > s.idtr.limit) {
    cpu.raise(Vector::gp, 0);
    return false;
  }
  u16 ip;
  u16 cs;
  const GuestVirt entry{(s.idtr.base + u64{vector} * 4) & low_mask(32)};
  if (!cpu.load_system<u16>(entry, ip) || !cpu.load_system<u16>(entry + 2, cs)) return false;
  FrameWriter frame(cpu, s.segment(Seg::ss).base, cpu.sp(), 0xffff, 0, 0, false);
  if (!frame.push<u16>(static_cast<u16>(s.rflags())) || !frame.push<u16>(s.segment(Seg::cs).selector) ||
      !frame.push<u16>(static_cast<u16>(s.rip()))) {
    return false;
  }
  cpu.set_sp(frame.sp());
  s.system_flags &= ~(rflags::if_ | rflags::tf | rflags::ac | rflags::rf);
  load_real_segment(cpu, Seg::cs, cs);
  s.regs[reg_rip] = ip;
  cpu.mode_changed();
  return true;
}

// The gate's target code segment and the ring that results. False: #GP or #NP.
bool check_gate_target(Cpu& cpu, u16 selector, u32 ext, Descriptor& code, u8& ring) {
  if (null_selector(selector)) {
    cpu.raise(Vector::gp, ext);
    return false;
  }
  if (!read_descriptor(cpu, selector, code, Vector::gp, ext)) return false;
  const u32 error = selector_error(selector, ext);
  if (!code.code() || code.dpl() > cpu.state.cpl) {
    cpu.raise(Vector::gp, error);
    return false;
  }
  if (cpu.state.long_mode() && (!code.l() || code.db())) {
    cpu.raise(Vector::gp, error);
    return false;
  }
  if (!code.present()) {
    cpu.raise(Vector::np, error);
    return false;
  }
  ring = code.conforming() ? cpu.state.cpl : code.dpl();
  return true;
}

void clear_flags_for_handler(Cpu& cpu, bool interrupt_gate) {
  CpuState& s = cpu.state;
  s.system_flags &= ~(rflags::tf | rflags::vm | rflags::rf | rflags::nt);
  if (interrupt_gate) s.system_flags &= ~rflags::if_;
}

bool deliver_long(Cpu& cpu, u8 vector, EventType type, std::optional<u32> error) {
  CpuState& s = cpu.state;
  const u32 ext = is_software(type) ? 0 : 1;
  const u32 gate_error = u32{vector} * 8 + 2 + ext;
  if (u64{vector} * 16 + 15 > s.idtr.limit) {
    cpu.raise(Vector::gp, gate_error);
    return false;
  }
  Descriptor gate;
  const GuestVirt at{s.idtr.base + u64{vector} * 16};
  if (!cpu.load_system<u64>(at, gate.raw) || !cpu.load_system<u64>(at + 8, gate.high)) return false;
  if (gate.s() || (gate.type() != system_type::interrupt_gate && gate.type() != system_type::trap_gate) ||
      (is_software(type) && gate.dpl() < s.cpl)) {
    cpu.raise(Vector::gp, gate_error);
    return false;
  }
  if (!gate.present()) {
    cpu.raise(Vector::np, gate_error);
    return false;
  }
  const u16 selector = gate.gate_selector();
  Descriptor code;
  u8 ring;
  if (!check_gate_target(cpu, selector, ext, code, ring)) return false;

  const auto ist = static_cast<unsigned>(field(gate.raw, 34, 32));
  u64 sp = s.regs[rsp];
  if (ist != 0) {
    if (!read_tss_ist(cpu, ist, sp, ext)) return false;
  } else if (ring < s.cpl) {
    u16 ignored;
    if (!read_tss_stack(cpu, ring, ignored, sp, ext)) return false;
  }
  if (!cpu.canonical(sp)) {
    cpu.raise(Vector::ss, ext);
    return false;
  }
  const u64 target = gate.gate_offset();
  if (!cpu.canonical(target)) {
    cpu.raise(Vector::gp, ext);
    return false;
  }
  FrameWriter frame(cpu, 0, sp & ~u64{15}, ~u64{0}, ring, ext, true);
  if (!frame.push<u64>(s.segment(Seg::ss).selector) || !frame.push<u64>(s.regs[rsp]) ||
      !frame.push<u64>(s.rflags()) || !frame.push<u64>(s.segment(Seg::cs).selector) ||
      !frame.push<u64>(s.rip()) || (error && !frame.push<u64>(*error))) {
    return false;
  }
  if (!mark_accessed(cpu, code)) return false;
  const u8 old_ring = s.cpl;
  s.regs[rsp] = frame.sp();
  s.regs[reg_rip] = target;
  clear_flags_for_handler(cpu, gate.type() == system_type::interrupt_gate);
  s.cpl = ring;
  s.segment(Seg::cs) = code.segment(static_cast<u16>((selector & ~3u) | ring));
  if (ring != old_ring) {
    Segment& ss = s.segment(Seg::ss);
    ss = Segment{};
    ss.selector = ring;
    ss.dpl = ring;
  }
  cpu.mode_changed();
  return true;
}

template <class T> bool deliver_protected_frame(Cpu& cpu, const Descriptor& gate, const Descriptor& code_in,
                                                u8 ring, u32 ext, std::optional<u32> error) {
  CpuState& s = cpu.state;
  Descriptor code = code_in;
  const bool from_v86 = s.v8086();
  const u64 target = sizeof(T) == 2 ? gate.gate_offset() & 0xffff : gate.gate_offset() & low_mask(32);
  if (target > code.segment(0).limit) {
    cpu.raise(Vector::gp, ext);
    return false;
  }
  const u64 frame_words = (ring < s.cpl ? 5u : 3u) + (from_v86 ? 4u : 0u) + (error ? 1u : 0u);
  const u16 selector = gate.gate_selector();

  if (ring < s.cpl) {
    u16 new_ss;
    u64 new_sp;
    if (!read_tss_stack(cpu, ring, new_ss, new_sp, ext)) return false;
    const u32 ss_error = selector_error(new_ss, ext);
    if (null_selector(new_ss)) {
      cpu.raise(Vector::ts, ext);
      return false;
    }
    Descriptor stack;
    if (!read_descriptor(cpu, new_ss, stack, Vector::ts, ext)) return false;
    if (rpl(new_ss) != ring || stack.dpl() != ring || !stack.s() || stack.code() || (stack.type() & 2) == 0) {
      cpu.raise(Vector::ts, ss_error);
      return false;
    }
    if (!stack.present()) {
      cpu.raise(Vector::ss, ss_error);
      return false;
    }
    const Segment stack_segment = stack.segment(new_ss);
    FrameWriter frame(cpu, stack_segment.base, new_sp, stack_segment.db ? low_mask(32) : low_mask(16), ring,
                      ss_error, false);
    if (!frame.fits(stack_segment, frame_words * sizeof(T))) return false;
    if (from_v86) {
      for (const Seg seg : {Seg::gs, Seg::fs, Seg::ds, Seg::es}) {
        if (!frame.push<T>(s.segment(seg).selector)) return false;
      }
    }
    if (!frame.push<T>(s.segment(Seg::ss).selector) || !frame.push<T>(static_cast<T>(s.regs[rsp])) ||
        !frame.push<T>(static_cast<T>(s.rflags())) || !frame.push<T>(s.segment(Seg::cs).selector) ||
        !frame.push<T>(static_cast<T>(s.rip())) || (error && !frame.push<T>(static_cast<T>(*error)))) {
      return false;
    }
    if (!mark_accessed(cpu, stack) || !mark_accessed(cpu, code)) return false;
    if (from_v86) {
      s.system_flags &= ~rflags::vm;
      for (const Seg seg : {Seg::gs, Seg::fs, Seg::ds, Seg::es}) s.segment(seg) = Segment{};
    }
    s.segment(Seg::ss) = stack.segment(new_ss);
    s.cpl = ring;
    s.segment(Seg::cs) = code.segment(static_cast<u16>((selector & ~3u) | ring));
    cpu.mode_changed();
    cpu.set_sp(frame.sp());
  } else {
    if (from_v86) {
      // A handler for virtual-8086 code must be in ring 0 (SDM vol. 3, 20.3.1.1).
      cpu.raise(Vector::gp, selector_error(selector, ext));
      return false;
    }
    const Segment& ss = s.segment(Seg::ss);
    FrameWriter frame(cpu, ss.base, cpu.sp(), cpu.stack_mask(), s.cpl, ext, false);
    if (!frame.fits(ss, frame_words * sizeof(T))) return false;
    if (!frame.push<T>(static_cast<T>(s.rflags())) || !frame.push<T>(s.segment(Seg::cs).selector) ||
        !frame.push<T>(static_cast<T>(s.rip())) || (error && !frame.push<T>(static_cast<T>(*error)))) {
      return false;
    }
    if (!mark_accessed(cpu, code)) return false;
    cpu.set_sp(frame.sp());
    s.segment(Seg::cs) = code.segment(static_cast<u16>((selector & ~3u) | s.cpl));
  }
  s.regs[reg_rip] = target;
  clear_flags_for_handler(cpu, (gate.type() & 7) == 6);
  cpu.mode_changed();
  return true;
}

bool deliver_protected(Cpu& cpu, u8 vector, EventType type, std::optional<u32> error) {
  CpuState& s = cpu.state;
  const u32 ext = is_software(type) ? 0 : 1;
  const u32 gate_error = u32{vector} * 8 + 2 + ext;
  if (u64{vector} * 8 + 7 > s.idtr.limit) {
    cpu.raise(Vector::gp, gate_error);
    return false;
  }
  Descriptor gate;
  if (!cpu.load_system<u64>(GuestVirt{(s.idtr.base + u64{vector} * 8) & low_mask(32)}, gate.raw))
    return false;
  const u8 t = gate.type();
  const bool known = !gate.s() && (t == system_type::task_gate || t == system_type::interrupt_gate16 ||
                                   t == system_type::trap_gate16 || t == system_type::interrupt_gate ||
                                   t == system_type::trap_gate);
  if (!known || (is_software(type) && gate.dpl() < s.cpl)) {
    cpu.raise(Vector::gp, gate_error);
    return false;
  }
  if (!gate.present()) {
    cpu.raise(Vector::np, gate_error);
    return false;
  }
  if (t == system_type::task_gate)
    return switch_task(cpu, gate.gate_selector(), TaskSwitch::gate, error, ext);
  Descriptor code;
  u8 ring;
  if (!check_gate_target(cpu, gate.gate_selector(), ext, code, ring)) return false;
  if ((t & 8) != 0) return deliver_protected_frame<u32>(cpu, gate, code, ring, ext, error);
  return deliver_protected_frame<u16>(cpu, gate, code, ring, ext, error);
}

} // namespace

bool Cpu::deliver_event(EventType type, u8 vector, std::optional<u32> error) {
  state.sti_shadow = state.mov_ss_shadow = false;
  fault_pending = false;
  trap_suppressed_ = true;
  delivering_ = true;
  bool ok;
  if (!state.protected_mode()) {
    ok = deliver_real(*this, vector);
  } else if (state.long_mode()) {
    ok = deliver_long(*this, vector, type, error);
  } else {
    ok = deliver_protected(*this, vector, type, error);
  }
  delivering_ = false;
  // What a device wrote before it raised the interrupt is visible to the handler and everything after it.
  if (ok && (type == EventType::external || type == EventType::nmi)) synchronize_code();
  return ok;
}

bool Cpu::deliver_nmi() {
  if (!deliver_event(EventType::nmi, 2, std::nullopt)) {
    if (!fault_pending) return false;
    state.nmi_blocked = true;
    const Fault f = fault;
    return deliver_fault(f);
  }
  state.nmi_blocked = true;
  return true;
}

bool Cpu::deliver_fault(const Fault& cause) {
  Fault f = cause;
  bool first = true;
  Vector previous = Vector::db; // benign
  // #AC while #AC is being delivered is benign for ever: processors hang there. Here the instruction faults
  // anew after a while, so that the run loop sees its exit word.
  constexpr unsigned max_rounds = 8;
  for (unsigned round = 0;; ++round) {
    if (round == max_rounds) return true;
    if (!first) {
      if (previous == Vector::df) {
        request_exit(CpuExit::shutdown);
        return false;
      }
      const bool doubles = (contributory(previous) && contributory(f.vector)) ||
                           (previous == Vector::pf && (f.vector == Vector::pf || contributory(f.vector)));
      if (doubles) f = Fault{.vector = Vector::df, .error_code = 0, .cr2 = f.cr2};
    }
    if (f.vector == Vector::pf && !f.reinjected) state.cr2 = f.cr2;
    if (f.vector == Vector::db && !f.reinjected) {
      // DR6's B0-B3 are replaced, BS and friends accumulate (SDM vol. 3, 17.2.3); GD is cleared for the
      // handler.
      state.dr6 = (state.dr6 & ~u64{0xf}) | f.dr6_bits | dr6::fixed1;
      if ((state.dr7 & bit(13)) != 0) {
        state.dr7 &= ~bit(13);
        debug_registers_changed();
      }
    }
    // Faults save RF=1 so that the instruction breakpoint does not hit again; traps save it as it is.
    const bool trap = f.vector == Vector::db && (f.dr6_bits & 0xf) == 0;
    const bool is_fault =
        f.vector != Vector::df && f.vector != Vector::mc && !trap && !f.trap && !f.reinjected;
    const u64 old_rf = state.system_flags & rflags::rf;
    if (is_fault) state.system_flags |= rflags::rf;
    std::optional<u32> error;
    if (has_error_code(f.vector) && state.protected_mode()) error = f.error_code;
    const bool ok = deliver_event(EventType::exception, static_cast<u8>(f.vector), error);
    if (ok) return true;
    if (is_fault) state.system_flags = (state.system_flags & ~rflags::rf) | old_rf;
    if (!fault_pending) return false;
    previous = f.vector;
    f = fault;
    fault_pending = false;
    first = false;
  }
}

} // namespace ring3::x86
