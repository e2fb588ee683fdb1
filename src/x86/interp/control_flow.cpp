// SPDX-License-Identifier: Apache-2.0
// Jumps, calls, returns, loops, software interrupts, and the fast system calls.
#include "x86/cpu/segments.h"
#include "x86/interp/operands.h"

namespace ring3::x86 {

namespace {

Step jump_to(Cpu& c, u64 target, u8 opsize) { return c.jump_near(target, opsize) ? Step::jump : Step::abort; }

Step jump_relative(Cpu& c, const Insn& in) { return jump_to(c, c.state.rip() + in.imm, in.opsize); }

Step handle_jcc(Cpu& c, const Insn& in) {
  if (!condition_holds(in.aux, c.state.flags)) return Step::jump;
  return jump_relative(c, in);
}

// 64-bit code: a direct target next to canonical code is checked where it is fetched.
template <u8 Condition> Step handle_jcc64(Cpu& c, const Insn& in) {
  if (condition_holds(Condition, c.state.flags)) return jump_to(c, c.state.rip() + in.imm, 8);
  return Step::jump;
}

constexpr Handler jcc64[16] = {handle_jcc64<0>,  handle_jcc64<1>,  handle_jcc64<2>,  handle_jcc64<3>,
                               handle_jcc64<4>,  handle_jcc64<5>,  handle_jcc64<6>,  handle_jcc64<7>,
                               handle_jcc64<8>,  handle_jcc64<9>,  handle_jcc64<10>, handle_jcc64<11>,
                               handle_jcc64<12>, handle_jcc64<13>, handle_jcc64<14>, handle_jcc64<15>};

Step handle_jcxz(Cpu& c, const Insn& in) {
  if ((c.state.regs[rcx] & Cpu::address_mask(in.addrsize)) != 0) return Step::jump;
  return jump_relative(c, in);
}

// LOOP, LOOPE, LOOPNE: aux 0, 1, 2.
Step handle_loop(Cpu& c, const Insn& in) {
  const u64 mask = Cpu::address_mask(in.addrsize);
  const u64 count = (c.state.regs[rcx] - 1) & mask;
  const bool zf = (c.state.flags & oszapc::zf) != 0;
  if (count != 0 && (in.aux == 0 || zf == (in.aux == 1))) {
    if (!c.jump_near(c.state.rip() + in.imm, in.opsize)) return Step::abort;
  }
  c.state.regs[rcx] = in.addrsize == 2 ? (c.state.regs[rcx] & ~mask) | count : count;
  return Step::jump;
}

template <class T> struct JumpIndirect {
  static Step run(Cpu& c, const Insn& in) {
    T target;
    return read_rm<T>(c, in, target) ? jump_to(c, target, sizeof(T)) : Step::abort;
  }
};

template <class T> Step call_to(Cpu& c, u64 target) {
  const u64 return_ip = c.state.rip();
  // Check the target first: a fault there must not leave a pushed return address behind.
  if (!c.jump_near(target, sizeof(T))) return Step::abort;
  return c.push<T>(static_cast<T>(return_ip)) ? Step::jump : Step::abort;
}
template <class T> struct CallRelative {
  static Step run(Cpu& c, const Insn& in) { return call_to<T>(c, c.state.rip() + in.imm); }
};
template <class T> struct CallIndirect {
  static Step run(Cpu& c, const Insn& in) {
    T target;
    return read_rm<T>(c, in, target) ? call_to<T>(c, target) : Step::abort;
  }
};
template <class T> struct Return {
  static Step run(Cpu& c, const Insn& in) {
    T target;
    if (!c.read<T>(Seg::ss, c.sp(), target) || !c.jump_near(target, sizeof(T))) return Step::abort;
    c.set_sp(c.sp() + sizeof(T) + in.imm);
    return Step::jump;
  }
};

// --- far ---

bool read_far_pointer(Cpu& c, const Insn& in, u64& offset, u16& selector) {
  const auto seg = static_cast<Seg>(in.seg);
  const u64 at = c.effective_address(in);
  const u64 selector_at = (at + in.opsize) & Cpu::address_mask(in.addrsize);
  switch (in.opsize) {
  case 2: {
    u16 v;
    if (!c.read<u16>(seg, at, v)) return false;
    offset = v;
    break;
  }
  case 4: {
    u32 v;
    if (!c.read<u32>(seg, at, v)) return false;
    offset = v;
    break;
  }
  default:
    if (!c.read<u64>(seg, at, offset)) return false;
  }
  return c.read<u16>(seg, selector_at, selector);
}

Step done(bool ok) { return ok ? Step::jump : Step::abort; }

Step jump_far_direct(Cpu& c, const Insn& in) {
  return done(far_jump(c, static_cast<u16>(in.disp), in.imm, in.opsize));
}
Step call_far_direct(Cpu& c, const Insn& in) {
  return done(far_call(c, static_cast<u16>(in.disp), in.imm, in.opsize));
}
Step jump_far_indirect(Cpu& c, const Insn& in) {
  u64 offset;
  u16 selector;
  return done(read_far_pointer(c, in, offset, selector) && far_jump(c, selector, offset, in.opsize));
}
Step call_far_indirect(Cpu& c, const Insn& in) {
  u64 offset;
  u16 selector;
  return done(read_far_pointer(c, in, offset, selector) && far_call(c, selector, offset, in.opsize));
}
Step return_far(Cpu& c, const Insn& in) { return done(far_return(c, in.opsize, static_cast<u16>(in.imm))); }
Step handle_iret(Cpu& c, const Insn& in) {
  if (!interrupt_return(c, in.opsize)) return Step::abort;
  return c.events_may_have_changed();
}

// --- software interrupts ---

// Virtual-8086 INT n (SDM vol. 3, 20.3.3.4): through the guest's own vector table when the redirection bitmap
// says so.
bool redirected_to_v86(Cpu& c, u8 vector, bool& redirect) {
  const Segment& tr = c.state.segment(Seg::tr);
  redirect = false;
  if ((c.state.cr4 & cr4::vme) == 0) return true;
  u16 io_base;
  if (tr.limit < 103 || !c.load_system<u16>(GuestVirt{tr.base + 102}, io_base)) return !c.fault_pending;
  if (io_base < 32) return true;
  const u64 at = u64{io_base} - 32 + vector / 8;
  u8 map;
  if (at > tr.limit) return true;
  if (!c.load_system<u8>(GuestVirt{tr.base + at}, map)) return false;
  redirect = (map >> (vector & 7) & 1) == 0;
  return true;
}

Step interrupt_v86(Cpu& c, u8 vector) {
  CpuState& s = c.state;
  bool redirect;
  if (!redirected_to_v86(c, vector, redirect)) return Step::abort;
  if (!redirect) {
    if (s.iopl() < 3) return c.gp();
    return done(c.deliver_event(EventType::software_interrupt, vector, std::nullopt));
  }
  u16 ip;
  u16 cs;
  if (!c.load_system<u16>(GuestVirt{u64{vector} * 4}, ip) ||
      !c.load_system<u16>(GuestVirt{u64{vector} * 4 + 2}, cs)) {
    return Step::abort;
  }
  u64 image = s.rflags() & ~(rflags::vm | rflags::rf);
  if (s.iopl() < 3) image = with_bits(image, rflags::if_, (image & rflags::vif) != 0) | rflags::iopl;
  const u64 old_sp = s.regs[rsp];
  if (!c.push<u16>(static_cast<u16>(image)) || !c.push<u16>(s.segment(Seg::cs).selector) ||
      !c.push<u16>(static_cast<u16>(s.rip()))) {
    s.regs[rsp] = old_sp;
    return Step::abort;
  }
  s.system_flags &= ~(rflags::tf | rflags::nt | (s.iopl() < 3 ? rflags::vif : rflags::if_));
  load_real_segment(c, Seg::cs, cs);
  s.regs[reg_rip] = ip;
  c.mode_changed();
  return Step::jump;
}

Step handle_int(Cpu& c, const Insn& in) {
  const auto vector = static_cast<u8>(in.imm);
  if (c.state.v8086()) return interrupt_v86(c, vector);
  return done(c.deliver_event(EventType::software_interrupt, vector, std::nullopt));
}
Step handle_int3(Cpu& c, const Insn&) {
  if (c.debugger.software_breakpoints) {
    c.stop_for_debugger(Vector::bp, 0);
    return Step::abort;
  }
  return done(c.deliver_event(EventType::software_exception, 3, std::nullopt));
}
Step handle_into(Cpu& c, const Insn&) {
  if ((c.state.flags & oszapc::of) == 0) return Step::jump;
  return done(c.deliver_event(EventType::software_exception, 4, std::nullopt));
}
// ICEBP is a #DB of its own: it takes breakpoints held back by MOV SS with it, and a single-step trap is
// lost.
Step handle_int1(Cpu& c, const Insn&) {
  if (c.debugger.takes(0)) {
    c.stop_for_debugger(Vector::db, 0);
    return Step::abort;
  }
  const u64 held = c.pending_db();
  c.pending_db() = 0;
  if (!c.deliver_event(EventType::icebp, 1, std::nullopt)) {
    c.pending_db() = held;
    return Step::abort;
  }
  c.state.dr6 = (c.state.dr6 & ~u64{0xf}) | (held & 0xf);
  if ((c.state.dr7 & bit(13)) != 0) {
    c.state.dr7 &= ~bit(13);
    c.debug_registers_changed();
  }
  return Step::jump;
}

template <class T> struct Bound {
  static Step run(Cpu& c, const Insn& in) {
    using S = std::make_signed_t<T>;
    const auto seg = static_cast<Seg>(in.seg);
    const u64 at = c.effective_address(in);
    T low;
    T high;
    if (!c.read<T>(seg, at, low) ||
        !c.read<T>(seg, (at + sizeof(T)) & Cpu::address_mask(in.addrsize), high)) {
      return Step::abort;
    }
    const S v = static_cast<S>(c.reg<T>(in.reg));
    if (v < static_cast<S>(low) || v > static_cast<S>(high)) return c.raise(Vector::br);
    return Step::next;
  }
};

// --- fast system calls (SDM vol. 2) ---

constexpr Segment flat_segment(u8 type, u8 dpl, bool l, bool db) {
  return {
      .type = type, .s = true, .dpl = dpl, .present = true, .l = l, .db = db, .g = true, .limit = 0xffffffff};
}
constexpr u8 data_type = 3, code_type = 0xb;
constexpr Segment kernel_code64 = flat_segment(code_type, 0, true, false);
constexpr Segment kernel_code32 = flat_segment(code_type, 0, false, true);
constexpr Segment kernel_stack = flat_segment(data_type, 0, false, true);
constexpr Segment user_code64 = flat_segment(code_type, 3, true, false);
constexpr Segment user_code32 = flat_segment(code_type, 3, false, true);
constexpr Segment user_stack = flat_segment(data_type, 3, false, true);

// Copied as it lies in memory: one that was just put together from its parts would be waited for.
void load_flat(Cpu& c, Seg name, unsigned selector, const Segment& kind) {
  Segment& to = c.state.segment(name);
  to = kind;
  to.selector = static_cast<u16>(selector);
}

// After an instruction of 64-bit code if `was64`.
void ring_changed(Cpu& c, bool was64) {
  if (was64 && c.state.code64()) return c.flags_changed();
  c.mode_changed();
}

// SYSCALL and SYSRET trap when the flags they load have TF set, not when it was set before.
void trap_by_new_flags(Cpu& c) {
  c.suppress_trap();
  if ((c.state.system_flags & rflags::tf) != 0) c.set_debug_trap(dr6::bs);
}

Step handle_syscall(Cpu& c, const Insn&) {
  CpuState& s = c.state;
  const bool amd = c.cpuid.amd();
  const bool was64 = c.code64();
  if ((s.efer & efer::sce) == 0) return c.ud();
  if (!amd && !was64) return c.ud();
  if (!s.protected_mode()) return c.ud();
  const u64 flags = s.rflags();
  const auto selector = static_cast<unsigned>(field(s.star, 47, 32) & 0xfffc);
  if (s.long_mode()) {
    s.regs[rcx] = s.rip();
    s.regs[r11] = flags & ~rflags::rf;
    s.regs[reg_rip] = was64 ? s.lstar : s.cstar;
    s.set_rflags(flags & ~s.sfmask & ~rflags::rf);
    load_flat(c, Seg::cs, selector, kernel_code64);
  } else {
    s.regs[rcx] = static_cast<u32>(s.rip());
    s.regs[reg_rip] = static_cast<u32>(s.star);
    s.system_flags &= ~(rflags::vm | rflags::if_ | rflags::rf);
    load_flat(c, Seg::cs, selector, kernel_code32);
  }
  load_flat(c, Seg::ss, selector + 8, kernel_stack);
  s.cpl = 0;
  ring_changed(c, was64);
  trap_by_new_flags(c);
  return Step::jump;
}

Step handle_sysret(Cpu& c, const Insn& in) {
  CpuState& s = c.state;
  const bool amd = c.cpuid.amd();
  const bool was64 = c.code64();
  if ((s.efer & efer::sce) == 0) return c.ud();
  if (!amd && !was64) return c.ud();
  if (!s.protected_mode() || s.cpl != 0) return c.gp();
  const auto selector = static_cast<unsigned>(field(s.star, 63, 48));
  const bool to64 = in.opsize == 8;
  if (s.long_mode()) {
    if (to64 && !amd && !c.canonical(s.regs[rcx])) return c.gp();
    const u64 allowed = rflags::all & ~(rflags::rf | rflags::vm);
    s.set_rflags(s.regs[r11] & allowed);
    s.regs[reg_rip] = to64 ? s.regs[rcx] : static_cast<u32>(s.regs[rcx]);
    load_flat(c, Seg::cs, (to64 ? selector + 16 : selector) | 3, to64 ? user_code64 : user_code32);
  } else {
    s.system_flags |= rflags::if_;
    s.regs[reg_rip] = static_cast<u32>(s.regs[rcx]);
    load_flat(c, Seg::cs, selector | 3, user_code32);
  }
  load_flat(c, Seg::ss, (selector + 8) | 3, user_stack);
  s.cpl = 3;
  ring_changed(c, was64);
  trap_by_new_flags(c);
  return c.events_may_have_changed();
}

Step handle_sysenter(Cpu& c, const Insn&) {
  CpuState& s = c.state;
  if (c.cpuid.amd() && s.long_mode()) return c.ud();
  if (!s.protected_mode() || null_selector(static_cast<u16>(s.sysenter_cs))) return c.gp();
  const auto selector = static_cast<unsigned>(s.sysenter_cs & 0xfffc);
  const bool wide = s.long_mode();
  s.system_flags &= ~(rflags::vm | rflags::if_ | rflags::rf);
  s.regs[rsp] = wide ? s.sysenter_esp : static_cast<u32>(s.sysenter_esp);
  s.regs[reg_rip] = wide ? s.sysenter_eip : static_cast<u32>(s.sysenter_eip);
  load_flat(c, Seg::cs, selector, wide ? kernel_code64 : kernel_code32);
  load_flat(c, Seg::ss, selector + 8, kernel_stack);
  s.cpl = 0;
  c.mode_changed();
  return Step::jump;
}

Step handle_sysexit(Cpu& c, const Insn& in) {
  CpuState& s = c.state;
  if (c.cpuid.amd() && s.long_mode()) return c.ud();
  if (!s.protected_mode() || s.cpl != 0 || null_selector(static_cast<u16>(s.sysenter_cs))) return c.gp();
  const bool to64 = in.opsize == 8;
  if (to64 && (!c.canonical(s.regs[rcx]) || !c.canonical(s.regs[rdx]))) return c.gp();
  const auto base = static_cast<unsigned>(s.sysenter_cs & 0xfffc);
  const u64 sp = to64 ? s.regs[rcx] : static_cast<u32>(s.regs[rcx]);
  const u64 ip = to64 ? s.regs[rdx] : static_cast<u32>(s.regs[rdx]);
  load_flat(c, Seg::cs, (base + (to64 ? 32 : 16)) | 3, to64 ? user_code64 : user_code32);
  load_flat(c, Seg::ss, (base + (to64 ? 40 : 24)) | 3, user_stack);
  s.cpl = 3;
  s.regs[rsp] = sp;
  s.regs[reg_rip] = ip;
  c.mode_changed();
  return c.events_may_have_changed();
}

u8 near_size(const Decoded& d) {
  // Near branches are 64 bits wide in 64-bit code whatever the prefixes (Intel; AMD honours 66).
  return d.code_bits == 64 ? 8 : d.operand_bytes;
}

Handler bind_jump_or_call(const Decoded& d, Insn& in, bool call) {
  const Operand& o = d.operand[0];
  if (o.kind == Operand::Kind::far_pointer) {
    in.imm = o.value;
    in.disp = o.selector;
    in.opsize = d.operand_bytes;
    return call ? call_far_direct : jump_far_direct;
  }
  if (is_imm(o)) {
    in.imm = o.value;
    in.opsize = near_size(d);
    return call ? by_size_not_byte<CallRelative>(in.opsize) : jump_relative;
  }
  const bool far = is_mem(o) && ((d.modrm >> 3) & 7) == (call ? 3 : 5);
  if (far) {
    in.opsize = d.operand_bytes;
    return call ? call_far_indirect : jump_far_indirect;
  }
  in.rm = o.reg;
  in.opsize = near_size(d);
  return call ? by_size_not_byte<CallIndirect>(in.opsize) : by_size_not_byte<JumpIndirect>(in.opsize);
}

} // namespace

Handler bind_control_flow(const Decoded& d, Insn& in, const CpuidTable& cpuid) {
  switch (d.op) {
  case Op::jcc:
    in.imm = d.operand[0].value;
    in.aux = d.condition;
    in.opsize = near_size(d);
    return d.code_bits == 64 ? jcc64[d.condition] : handle_jcc;
  case Op::jcxz:
  case Op::jecxz:
  case Op::jrcxz:
    in.imm = d.operand[0].value;
    in.opsize = near_size(d);
    return handle_jcxz;
  case Op::loop:
  case Op::loope:
  case Op::loopne:
    in.imm = d.operand[0].value;
    in.opsize = near_size(d);
    in.aux = d.op == Op::loop ? 0 : d.op == Op::loope ? 1 : 2;
    return handle_loop;
  case Op::jmp: return bind_jump_or_call(d, in, false);
  case Op::call: return bind_jump_or_call(d, in, true);
  case Op::ret:
    in.imm = is_imm(d.operand[0]) ? d.operand[0].value & 0xffff : 0;
    if (d.opcode == 0xca || d.opcode == 0xcb) return return_far;
    return by_size_not_byte<Return>(near_size(d));
  case Op::iret:
  case Op::iretd:
  case Op::iretq: return handle_iret;
  case Op::int_: in.imm = d.operand[0].value; return handle_int;
  case Op::int3: return handle_int3;
  case Op::int1: return handle_int1;
  case Op::into: return handle_into;
  case Op::bound:
    in.reg = d.operand[0].reg;
    return d.operand[0].bits == 16 ? Bound<u16>::run : Bound<u32>::run;
  case Op::ud0:
  case Op::ud1:
  case Op::ud2: return handle_ud;
  case Op::syscall: return cpuid.has(feature::syscall) ? handle_syscall : nullptr;
  case Op::sysret: return cpuid.has(feature::syscall) ? handle_sysret : nullptr;
  case Op::sysenter: return cpuid.has(feature::sep) ? handle_sysenter : nullptr;
  case Op::sysexit: return cpuid.has(feature::sep) ? handle_sysexit : nullptr;
  default: return nullptr;
  }
}

} // namespace ring3::x86
