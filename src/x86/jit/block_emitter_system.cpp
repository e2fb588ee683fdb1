// SPDX-License-Identifier: Apache-2.0
// Instructions on flags, control registers and the rest of the processor's state, where they are a few words
// of the Cpu. Whatever may fault or has consequences goes to the handlers.
#include "x86/jit/block_emitter.h"

#include <utility>

namespace ring3::x86::jit {

namespace {
// Bits of control registers, for TEST of one byte.
constexpr u8 tsd = 1u << 2;      // CR4, byte 0
constexpr u8 fsgsbase = 1u << 0; // byte 2
constexpr u8 osxsave = 1u << 2;  // byte 2
static_assert(cr4::tsd == tsd && cr4::fsgsbase == u64{fsgsbase} << 16 && cr4::osxsave == u64{osxsave} << 16);
} // namespace

bool BlockEmitter::system(unsigned i) {
  const Decoded& d = source_[i].decoded;
  switch (d.op) {
  case Op::pushf:
  case Op::pushfd:
  case Op::pushfq: return push_flags(i);
  case Op::popf:
  case Op::popfd:
  case Op::popfq: return pop_flags(i);
  case Op::cld:
  case Op::std:
    put_flags_aside(i);
    if (d.op == Op::cld) {
      e_.and_imm(HostMem::in_cpu(l_.system_flags), ~static_cast<s32>(rflags::df));
    } else {
      e_.or_imm(HostMem::in_cpu(l_.system_flags), static_cast<s32>(rflags::df));
    }
    return true;
  case Op::stac:
  case Op::clac: {
    put_flags_aside(i);
    e_.cmp8_imm(HostMem::in_cpu(l_.cpl), 0);
    handler_when(Cond::ne, i);
    const bool set = d.op == Op::stac;
    if (set) {
      e_.or_imm(HostMem::in_cpu(l_.system_flags), static_cast<s32>(rflags::ac));
    } else {
      e_.and_imm(HostMem::in_cpu(l_.system_flags), ~static_cast<s32>(rflags::ac));
    }
    // As Cpu::flags_changed() would. In CPL 0 no alignment is checked, and watchpoints are the interpreter's.
    e_.mov(scratch_a, HostMem::in_cpu(l_.supervisor_tlb + (set ? 8 : 0)));
    e_.mov(HostMem::in_cpu(l_.tlb), scratch_a);
    e_.mov(frame::tlb, scratch_a);
    e_.mov(HostMem::in_cpu(l_.code_tlb), scratch_a);
    return true;
  }
  case Op::pause: {
    // As Cpu::note_pause() does.
    const HostMem left = HostMem::in_cpu(l_.pauses_left);
    put_flags_aside(i);
    e_.cmp32_imm(left, 1);
    handler_when(Cond::le, i);
    e_.sub32_imm(left, 1);
    e_.host_pause();
    return true;
  }
  case Op::rdtsc:
  case Op::rdtscp: return time_stamp(i);
  case Op::rdpid: {
    const HostReg to = plan_.map[d.operand[0].reg >> 3];
    if (to == no_reg) return false;
    e_.mov(to, HostMem::in_cpu(l_.tsc_aux));
    return true;
  }
  case Op::xgetbv:
    put_flags_aside(i);
    e_.test8_imm(HostMem::in_cpu(l_.cr4 + 2), osxsave);
    handler_when(Cond::e, i);
    e_.test(false, rcx, rcx);
    handler_when(Cond::ne, i);
    e_.mov(false, HostReg{rax}, HostMem::in_cpu(l_.xcr0));
    e_.mov(false, HostReg{rdx}, HostMem::in_cpu(l_.xcr0 + 4));
    return true;
  case Op::rdfsbase:
  case Op::rdgsbase:
  case Op::wrfsbase:
  case Op::wrgsbase: return segment_base(i);
  case Op::clflush:
  case Op::clflushopt:
  case Op::clwb: {
    // The address is checked, and nothing follows from it.
    const auto p = place_of(i);
    HostMem ignored;
    return p && lookup(*p, 1, false, i, ignored);
  }
  case Op::mov: return from_special_register(i);
  default: return false;
  }
}

bool BlockEmitter::push_flags(unsigned i) {
  if (source_[i].decoded.operand_bytes != 8) return false;
  HostMem at;
  if (!lookup(stack_place(-8), 8, true, i, at)) return false;
  if (!in_host_) {
    fetch_flags(true);
  } else if (!in_memory_ && live_after_[i] != 0) {
    keep_flags_now(scratch_a);
  }
  e_.pushfq();
  e_.pop(scratch_a);
  e_.and32(scratch_a, rflags::arithmetic);
  // Without RF: there is none in translated code, nor VM.
  e_.or_(scratch_a, HostMem::in_cpu(l_.system_flags));
  e_.mov(at, scratch_a);
  e_.lea(guest_rsp, HostMem::at(guest_rsp, -8));
  host_flags_lost();
  return true;
}

// What it may change without consequences: arithmetic flags, and IF in ring 0 while nobody waits for it.
bool BlockEmitter::pop_flags(unsigned i) {
  if (source_[i].decoded.operand_bytes != 8) return false;
  constexpr u64 fixed = rflags::tf | rflags::df | rflags::iopl | rflags::nt | rflags::ac | rflags::id;
  const HostMem system_flags = HostMem::in_cpu(l_.system_flags);
  HostMem at;
  if (!lookup(stack_place(0), 8, false, i, at)) return false;
  e_.mov(scratch_a, at);
  host_flags_lost();
  e_.mov(scratch_b, HostReg{scratch_a});
  e_.xor_(scratch_b, system_flags);
  e_.test32_imm(scratch_b, static_cast<u32>(fixed));
  handler_when(Cond::ne, i);
  e_.test32_imm(scratch_b, static_cast<u32>(rflags::if_));
  u8* const same = e_.jcc(Cond::e);
  e_.cmp8_imm(HostMem::in_cpu(l_.cpl), 0);
  handler_when(Cond::ne, i);
  e_.cmp8_imm(HostMem::in_cpu(l_.window_wanted), 0);
  handler_when(Cond::ne, i);
  e_.xor_imm(system_flags, static_cast<s32>(rflags::if_));
  e_.aim_here(same);
  // Into the form of CpuState::flags.
  e_.mov(scratch_b, HostReg{scratch_a});
  e_.and32(scratch_a, 0xd5);
  e_.shl(scratch_a, 8);
  e_.shr(scratch_b, 11);
  e_.and32(scratch_b, oszapc::of);
  e_.or_(scratch_a, scratch_b);
  e_.mov16(HostMem::in_cpu(l_.flags), scratch_a);
  e_.lea(guest_rsp, HostMem::at(guest_rsp, 8));
  in_memory_ = true;
  return true;
}

bool BlockEmitter::time_stamp(unsigned i) {
  if (l_.runs_twice) return false;
  const Decoded& d = source_[i].decoded;
  put_flags_aside(i);
  e_.cmp8_imm(HostMem::in_cpu(l_.tsc_is_host), 0);
  handler_when(Cond::e, i);
  e_.test8_imm(HostMem::in_cpu(l_.cr4), tsd);
  handler_when(Cond::ne, i);
  if (d.op == Op::rdtscp) {
    e_.host_lfence(); // it waits for what is before it
    e_.mov(false, HostReg{rcx}, HostMem::in_cpu(l_.tsc_aux));
  }
  e_.rdtsc();
  e_.shl(rdx, 32);
  e_.or_(rax, rdx);
  e_.add(rax, HostMem::in_cpu(l_.tsc_offset));
  e_.mov(HostReg{rdx}, HostReg{rax});
  e_.shr(rdx, 32);
  e_.mov(false, HostReg{rax}, HostReg{rax});
  return true;
}

bool BlockEmitter::segment_base(unsigned i) {
  const Decoded& d = source_[i].decoded;
  const HostReg r = plan_.map[d.operand[0].reg >> 3];
  if (r == no_reg) return false;
  const bool fs = d.op == Op::rdfsbase || d.op == Op::wrfsbase;
  const bool wide = d.operand[0].bits == 64;
  const HostMem base = HostMem::in_cpu(fs ? l_.fs_base : l_.gs_base);
  put_flags_aside(i);
  e_.test8_imm(HostMem::in_cpu(l_.cr4 + 2), fsgsbase);
  handler_when(Cond::e, i);
  if (d.op == Op::rdfsbase || d.op == Op::rdgsbase) {
    e_.mov(wide, r, base);
    return true;
  }
  e_.mov(wide, scratch_a, r);
  if (wide) {
    // Canonical in 48 bits; the handler knows of more.
    e_.mov(scratch_b, HostReg{scratch_a});
    e_.shl(scratch_b, 16);
    e_.sar(true, scratch_b, 16);
    e_.cmp(true, scratch_a, scratch_b);
    handler_when(Cond::ne, i);
  }
  e_.mov(base, scratch_a);
  e_.mov(HostMem::in_cpu(l_.segment_base[static_cast<unsigned>(fs ? Seg::fs : Seg::gs)]), scratch_a);
  return true;
}

// MOV from segment and control registers, to general ones.
bool BlockEmitter::from_special_register(unsigned i) {
  const Decoded& d = source_[i].decoded;
  const Operand& from = d.operand[1];
  if (d.operand[0].kind != Operand::Kind::gpr) return false;
  const HostReg to = plan_.map[d.operand[0].reg >> 3];
  if (to == no_reg) return false;
  if (from.kind == Operand::Kind::segment) {
    const HostMem selector = HostMem::in_cpu(l_.segment_selector[from.reg]);
    if (d.operand_bytes == 2) {
      e_.load(2, to, selector);
    } else {
      e_.movzx16(to, selector);
    }
    return true;
  }
  if (from.kind != Operand::Kind::control) return false;
  s32 at = 0;
  switch (from.reg) {
  case 0: at = l_.cr0; break;
  case 2: at = l_.cr2; break;
  case 3: at = l_.cr3; break;
  case 4: at = l_.cr4; break;
  default: return false;
  }
  put_flags_aside(i);
  e_.cmp8_imm(HostMem::in_cpu(l_.cpl), 0);
  handler_when(Cond::ne, i);
  e_.mov(to, HostMem::in_cpu(at));
  return true;
}

} // namespace ring3::x86::jit
