// SPDX-License-Identifier: Apache-2.0
// System instructions, hints, fences and cache control.
#include "x86/api/vm_settings.h"
#include "x86/cpu/control_registers.h"
#include "x86/cpu/msr_table.h"
#include "x86/cpu/segments.h"
#include "x86/cpu/smm.h"
#include "x86/cpu/xsave_layout.h"
#include "x86/interp/operands.h"

#include <linux/kvm.h>
#include <linux/kvm_para.h>
#include <utility>

namespace ring3::x86 {

namespace {

void set32(Cpu& c, Gpr r, u32 v) { c.state.regs[r] = v; }
u64 edx_eax(const Cpu& c) { return u64{c.reg<u32>(rdx * 8)} << 32 | c.reg<u32>(rax * 8); }
void set_edx_eax(Cpu& c, u64 v) {
  set32(c, rax, static_cast<u32>(v));
  set32(c, rdx, static_cast<u32>(v >> 32));
}

Step nothing(Cpu&, const Insn&) { return Step::next; }
Step fence(Cpu&, const Insn&) {
  asm volatile("mfence" ::: "memory");
  return Step::next;
}
Step pause(Cpu& c, const Insn&) {
  c.note_pause();
  return Step::next;
}
// CLFLUSH and its kind check the address as a load does.
Step flush_line(Cpu& c, const Insn& in) {
  u8 ignored;
  return c.read_operand<u8>(in, ignored) ? Step::next : Step::abort;
}
Step serialize(Cpu& c, const Insn&) {
  c.synchronize_code();
  return Step::jump;
}

// --- interrupts ---

Step handle_cli(Cpu& c, const Insn&) {
  CpuState& s = c.state;
  if (s.protected_mode() && s.cpl > s.iopl()) {
    const bool pvi = s.cpl == 3 && !s.v8086() && (s.cr4 & cr4::pvi) != 0;
    const bool vme = s.v8086() && (s.cr4 & cr4::vme) != 0;
    if (!pvi && !vme) return c.gp();
    s.system_flags &= ~rflags::vif;
    return Step::next;
  }
  s.system_flags &= ~rflags::if_;
  return Step::next;
}
Step handle_sti(Cpu& c, const Insn&) {
  CpuState& s = c.state;
  if (s.protected_mode() && s.cpl > s.iopl()) {
    const bool pvi = s.cpl == 3 && !s.v8086() && (s.cr4 & cr4::pvi) != 0;
    const bool vme = s.v8086() && (s.cr4 & cr4::vme) != 0;
    if ((!pvi && !vme) || (s.system_flags & rflags::vip) != 0) return c.gp();
    s.system_flags |= rflags::vif;
    return Step::jump;
  }
  if ((s.system_flags & rflags::if_) == 0) {
    s.system_flags |= rflags::if_;
    s.sti_shadow = true;
    c.update_careful();
  }
  return Step::jump;
}
Step handle_hlt(Cpu& c, const Insn&) {
  if (c.state.cpl != 0) return c.gp();
  c.state.activity = Activity::halted;
  c.request_exit(CpuExit::halt);
  return Step::jump;
}
bool has_mwait(const Cpu& c) {
  return c.platform.settings().has_quirk(KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS) ||
         c.cpuid.has(feature::monitor);
}
// MONITOR arms nothing: MWAIT is a hint that may end at once (SDM vol. 3, 8.10.3), and ends with the next
// event.
Step handle_monitor(Cpu& c, const Insn& in) {
  if (c.state.cpl != 0 || !has_mwait(c)) return c.ud();
  if (c.reg<u32>(rcx * 8) != 0) return c.gp();
  u8 ignored;
  return c.read<u8>(static_cast<Seg>(in.seg), c.state.regs[rax] & Cpu::address_mask(in.addrsize), ignored)
             ? Step::next
             : Step::abort;
}
Step handle_mwait(Cpu& c, const Insn&) {
  if (c.state.cpl != 0 || !has_mwait(c)) return c.ud();
  if ((c.reg<u32>(rcx * 8) & ~1u) != 0) return c.gp();
  c.note_pause();
  return Step::next;
}

// --- system-management mode ---

Step handle_rsm(Cpu& c, const Insn&) {
  if (!c.state.in_smm) return c.ud();
  if (!leave_smm(c)) {
    c.request_exit(CpuExit::shutdown); // a state that no processor can be in (SDM vol. 3, 32.4.1)
    return Step::jump;
  }
  c.suppress_trap();
  c.rf_kept = true; // RFLAGS is the interrupted program's
  c.exit_word.fetch_or(Cpu::exit_left_smm, std::memory_order_relaxed);
  return Step::jump;
}

// --- identification and time ---

Step handle_cpuid(Cpu& c, const Insn&) {
  const CpuidResult r = c.cpuid.query(c.reg<u32>(rax * 8), c.reg<u32>(rcx * 8), c.state);
  set32(c, rax, r.eax);
  set32(c, rbx, r.ebx);
  set32(c, rcx, r.ecx);
  set32(c, rdx, r.edx);
  c.synchronize_code();
  return Step::jump;
}
bool tsc_allowed(Cpu& c) {
  if ((c.state.cr4 & cr4::tsd) == 0 || c.state.cpl == 0) return true;
  c.gp();
  return false;
}
Step handle_rdtsc(Cpu& c, const Insn&) {
  if (!tsc_allowed(c)) return Step::abort;
  set_edx_eax(c, c.guest_tsc());
  return Step::next;
}
Step handle_rdtscp(Cpu& c, const Insn&) {
  if (!tsc_allowed(c)) return Step::abort;
  set_edx_eax(c, c.guest_tsc());
  set32(c, rcx, static_cast<u32>(c.state.tsc_aux));
  return Step::next;
}
Step handle_rdpid(Cpu& c, const Insn& in) {
  c.state.regs[in.rm / 8] = c.state.tsc_aux;
  return Step::next;
}

// --- model-specific registers ---

// What this guest cannot have, or is denied: #GP, unless the VMM wants to answer itself (api.rst 7.21).
Step refuse_msr(Cpu& c, u32 index, bool write, u64 value, u32 reason) {
  if ((c.platform.settings().msr_exits.load(std::memory_order_relaxed) & reason) == 0) return c.gp();
  c.ask_for_msr(index, write, value, reason);
  return Step::abort;
}
u32 msr_failure(u32 index) {
  return msr_exists(index) ? KVM_MSR_EXIT_REASON_INVAL : KVM_MSR_EXIT_REASON_UNKNOWN;
}
Step handle_rdmsr(Cpu& c, const Insn&) {
  if (c.state.cpl != 0) return c.gp();
  const u32 index = c.reg<u32>(rcx * 8);
  u64 v = 0;
  if (const auto answer = c.msr_answer(index, false)) {
    if (answer->refused) return c.gp();
    v = answer->data;
  } else if (!c.platform.settings().msr_allowed(index, false)) {
    return refuse_msr(c, index, false, 0, KVM_MSR_EXIT_REASON_FILTER);
  } else if (!read_msr(c, index, v)) {
    return refuse_msr(c, index, false, 0, msr_failure(index));
  }
  set_edx_eax(c, v);
  return Step::next;
}
Step handle_wrmsr(Cpu& c, const Insn&) {
  if (c.state.cpl != 0) return c.gp();
  const u32 index = c.reg<u32>(rcx * 8);
  const u64 v = edx_eax(c);
  if (const auto answer = c.msr_answer(index, true)) {
    if (answer->refused) return c.gp();
  } else if (!c.platform.settings().msr_allowed(index, true)) {
    return refuse_msr(c, index, true, v, KVM_MSR_EXIT_REASON_FILTER);
  } else if (!write_msr(c, index, v)) {
    return refuse_msr(c, index, true, v, msr_failure(index));
  }
  return c.events_may_have_changed();
}
// No performance counters: every index is out of range.
Step handle_rdpmc(Cpu& c, const Insn&) { return c.gp(); }

// --- translation ---

Step handle_invlpg(Cpu& c, const Insn& in) {
  if (c.state.cpl != 0) return c.gp();
  GuestVirt a{c.effective_address(in)};
  const Seg s = static_cast<Seg>(in.seg);
  if (c.code64()) {
    if (s == Seg::fs || s == Seg::gs) a = a + c.state.segment(s).base;
    if (!c.canonical(a.value)) return Step::next; // nothing can be cached there
  } else {
    a = GuestVirt{(a.value + c.state.segment(s).base) & low_mask(32)};
  }
  c.mmu.flush_page(a);
  return Step::jump;
}
Step handle_invpcid(Cpu& c, const Insn& in) {
  if (!c.state.protected_mode() || c.state.v8086()) return c.state.protected_mode() ? c.gp() : c.ud();
  if (c.state.cpl != 0) return c.gp();
  const u64 type = c.code64() ? c.reg<u64>(in.reg) : c.reg<u32>(in.reg);
  u64 descriptor[2];
  if (!c.read_bytes(static_cast<Seg>(in.seg), c.effective_address(in), descriptor, 16)) return Step::abort;
  const u64 pcid = descriptor[0];
  const bool pcide = (c.state.cr4 & cr4::pcide) != 0;
  if (type > 3) return c.gp();
  if (type < 2 && ((pcid >> 12) != 0 || (!pcide && pcid != 0))) return c.gp();
  if (type >= 2 && (pcid >> 12) != 0) return c.gp();
  if (type == 0 && !c.canonical_base(descriptor[1])) return c.gp();
  switch (type) {
  case 0: c.mmu.flush_page_of(GuestVirt{descriptor[1]}, static_cast<u16>(pcid)); break;
  case 1: c.mmu.flush_pcid(static_cast<u16>(pcid)); break;
  case 2: c.mmu.flush_all(); break;
  default: c.mmu.flush_all_contexts_non_global();
  }
  return Step::jump;
}
Step handle_wbinvd(Cpu& c, const Insn&) {
  if (c.state.cpl != 0) return c.gp();
  c.synchronize_code();
  return Step::jump;
}

// --- protection keys and extended control registers ---

Step handle_rdpkru(Cpu& c, const Insn&) {
  if ((c.state.cr4 & cr4::pke) == 0) return c.ud();
  if (c.reg<u32>(rcx * 8) != 0) return c.gp();
  set32(c, rax, c.state.pkru);
  set32(c, rdx, 0);
  return Step::next;
}
Step handle_wrpkru(Cpu& c, const Insn&) {
  if ((c.state.cr4 & cr4::pke) == 0) return c.ud();
  if (c.reg<u32>(rcx * 8) != 0 || c.reg<u32>(rdx * 8) != 0) return c.gp();
  const u32 before = std::exchange(c.state.pkru, c.reg<u32>(rax * 8));
  if (c.state.pkru != before) c.mmu.flush_all(); // entries were filled under the old rights
  return Step::next;
}
Step handle_xgetbv(Cpu& c, const Insn&) {
  if ((c.state.cr4 & cr4::osxsave) == 0) return c.ud();
  const u32 index = c.reg<u32>(rcx * 8);
  if (index == 0) {
    set_edx_eax(c, c.state.xcr0);
  } else if (index == 1 && c.cpuid.has(feature::xgetbv1)) {
    set_edx_eax(c, c.state.xcr0 & xsave::in_use(c.state));
  } else {
    return c.gp();
  }
  return Step::next;
}
Step handle_xsetbv(Cpu& c, const Insn&) {
  if ((c.state.cr4 & cr4::osxsave) == 0) return c.ud();
  if (c.state.cpl != 0 || c.reg<u32>(rcx * 8) != 0) return c.gp();
  const u64 v = edx_eax(c);
  if (!xsave::valid_xcr0(v) || (v & ~c.cpuid.xcr0_allowed()) != 0) return c.gp();
  c.state.xcr0 = v;
  return Step::jump;
}

Step handle_clac_stac(Cpu& c, const Insn& in) {
  if (c.state.cpl != 0) return c.ud();
  c.state.system_flags = with_bits(c.state.system_flags, rflags::ac, in.aux != 0);
  c.flags_changed();
  return Step::next;
}

Step handle_hypercall(Cpu& c, const Insn&) {
  const bool wide = c.code64();
  const auto argument = [&](Gpr r) { return wide ? c.state.regs[r] : c.reg<u32>(static_cast<u8>(r * 8)); };
  std::optional<s64> result = -KVM_EPERM;
  if (c.state.cpl == 0) {
    result = c.platform.hypercall(argument(rax), {argument(rbx), argument(rcx), argument(rdx), argument(rsi)},
                                  wide);
  }
  u64 value = static_cast<u64>(result.value_or(0));
  if (!result && !c.ask_user_space(value)) return Step::abort;
  c.state.regs[rax] = wide ? value : static_cast<u32>(value);
  return c.events_may_have_changed();
}
// The other vendor's instruction. Unless the VMM has switched that quirk off, KVM replaces it by this
// vendor's, which is then executed (api.rst 7.31, KVM_X86_QUIRK_FIX_HYPERCALL_INSN). The store has the
// guest's own rights.
Step handle_foreign_hypercall(Cpu& c, const Insn& in) {
  if (!c.platform.settings().has_quirk(KVM_X86_QUIRK_FIX_HYPERCALL_INSN)) return c.ud();
  constexpr u8 vmcall[] = {0x0f, 0x01, 0xc1};
  constexpr u8 vmmcall[] = {0x0f, 0x01, 0xd9};
  const u64 start = (c.state.rip() - in.len) & c.ip_mask();
  GuestVirt at{start};
  if (!c.code64()) at = GuestVirt{(start + c.state.segment(Seg::cs).base) & low_mask(32)};
  if (!c.write_linear(at, c.cpuid.amd() ? vmmcall : vmcall, sizeof vmcall)) return Step::abort;
  c.state.regs[reg_rip] = (start + sizeof vmcall) & c.ip_mask();
  return handle_hypercall(c, in);
}

Step handle_clzero(Cpu& c, const Insn& in) {
  const u64 at = c.state.regs[rax] & Cpu::address_mask(in.addrsize) & ~u64{63};
  constexpr u8 zeros[64] = {};
  return c.write_bytes(static_cast<Seg>(in.seg), at, zeros, sizeof zeros) ? Step::next : Step::abort;
}

} // namespace

Handler bind_system(const Decoded& d, Insn& in, const CpuidTable& cpuid) {
  in.rm = d.operand[0].reg;
  switch (d.op) {
  case Op::nop:
  case Op::endbr32:
  case Op::endbr64:
  case Op::rdsspd:
  case Op::rdsspq:
  case Op::prefetch:
  case Op::prefetchw:
  case Op::prefetchwt1:
  case Op::prefetchnta:
  case Op::prefetcht0:
  case Op::prefetcht1:
  case Op::prefetcht2:
  case Op::cldemote: return nothing;
  case Op::pause: return pause;
  case Op::lfence:
  case Op::mfence:
  case Op::sfence: return fence;
  case Op::clflush:
  case Op::clflushopt:
  case Op::clwb: return flush_line;
  case Op::serialize: return serialize;
  case Op::cli: return handle_cli;
  case Op::sti: return handle_sti;
  case Op::hlt: return handle_hlt;
  case Op::rsm: return handle_rsm;
  case Op::monitor: in.seg = static_cast<u8>(overridden_segment(d)); return handle_monitor;
  case Op::mwait: return handle_mwait;
  case Op::cpuid: return handle_cpuid;
  case Op::rdtsc: return cpuid.has(feature::tsc) ? handle_rdtsc : nullptr;
  case Op::rdtscp: return handle_rdtscp;
  case Op::rdpid: return handle_rdpid;
  case Op::rdmsr: return handle_rdmsr;
  case Op::wrmsr: return handle_wrmsr;
  case Op::rdpmc: return handle_rdpmc;
  case Op::invlpg: return handle_invlpg;
  case Op::invpcid: in.reg = d.operand[0].reg; return handle_invpcid;
  case Op::invd:
  case Op::wbinvd: return handle_wbinvd;
  case Op::rdpkru: return handle_rdpkru;
  case Op::wrpkru: return handle_wrpkru;
  case Op::xgetbv: return handle_xgetbv;
  case Op::xsetbv: return handle_xsetbv;
  case Op::clac: return handle_clac_stac;
  case Op::stac: in.aux = 1; return handle_clac_stac;
  case Op::vmcall: return cpuid.amd() ? handle_foreign_hypercall : handle_hypercall;
  case Op::vmmcall: return cpuid.amd() ? handle_hypercall : handle_foreign_hypercall;
  case Op::clzero: in.seg = static_cast<u8>(overridden_segment(d)); return handle_clzero;
  default: return nullptr;
  }
}

} // namespace ring3::x86
