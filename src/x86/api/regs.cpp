// SPDX-License-Identifier: Apache-2.0
// KVM_GET/SET_REGS, SREGS, MSRS, CPUID2 and MP_STATE (api.rst 4.11 to 4.20, 4.38).
#include "x86/api/vcpu.h"
#include "x86/api/vm.h"
#include "x86/cpu/control_registers.h"
#include "x86/cpu/msr_table.h"
#include "x86/decode/block_cache.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <utility>

namespace ring3::x86 {

namespace {

kvm_segment to_kvm(const Segment& s) {
  kvm_segment k{};
  k.base = s.base;
  k.limit = s.limit;
  k.selector = s.selector;
  k.type = s.type;
  k.present = s.present;
  k.dpl = s.dpl;
  k.db = s.db;
  k.s = s.s;
  k.l = s.l;
  k.g = s.g;
  k.avl = s.avl;
  k.unusable = !s.present;
  return k;
}

Segment from_kvm(const kvm_segment& k) {
  Segment s;
  s.base = k.base;
  s.limit = k.limit;
  s.selector = k.selector;
  s.type = k.type & 15;
  s.present = k.present != 0 && k.unusable == 0;
  s.dpl = k.dpl & 3;
  s.db = k.db != 0;
  s.s = k.s != 0;
  s.l = k.l != 0;
  s.g = k.g != 0;
  s.avl = k.avl != 0;
  return s;
}

} // namespace

int Vcpu::get_regs(kvm_regs& out) {
  const CpuState& s = cpu_.state;
  out = {s.regs[rax], s.regs[rbx], s.regs[rcx], s.regs[rdx], s.regs[rsi], s.regs[rdi],
         s.regs[rsp], s.regs[rbp], s.regs[r8],  s.regs[r9],  s.regs[r10], s.regs[r11],
         s.regs[r12], s.regs[r13], s.regs[r14], s.regs[r15], s.rip(),     s.rflags()};
  return 0;
}

int Vcpu::set_regs(const kvm_regs& in) {
  CpuState& s = cpu_.state;
  s.regs[rax] = in.rax;
  s.regs[rbx] = in.rbx;
  s.regs[rcx] = in.rcx;
  s.regs[rdx] = in.rdx;
  s.regs[rsi] = in.rsi;
  s.regs[rdi] = in.rdi;
  s.regs[rsp] = in.rsp;
  s.regs[rbp] = in.rbp;
  s.regs[r8] = in.r8;
  s.regs[r9] = in.r9;
  s.regs[r10] = in.r10;
  s.regs[r11] = in.r11;
  s.regs[r12] = in.r12;
  s.regs[r13] = in.r13;
  s.regs[r14] = in.r14;
  s.regs[r15] = in.r15;
  if (in.rip != s.rip()) abandon_instruction();
  // As KVM: who writes registers has done with an exception that has not happened yet.
  if (queued_ && queued_->pending) queued_.reset();
  s.regs[reg_rip] = in.rip;
  s.set_rflags(in.rflags);
  cpu_.mode_changed();
  return 0;
}

// kvm_sregs and kvm_sregs2 have these in common.
template <class Sregs> void Vcpu::get_common_sregs(Sregs& out) {
  const CpuState& s = cpu_.state;
  out = {};
  out.cs = to_kvm(s.segment(Seg::cs));
  out.ds = to_kvm(s.segment(Seg::ds));
  out.es = to_kvm(s.segment(Seg::es));
  out.fs = to_kvm(s.segment(Seg::fs));
  out.gs = to_kvm(s.segment(Seg::gs));
  out.ss = to_kvm(s.segment(Seg::ss));
  out.tr = to_kvm(s.segment(Seg::tr));
  out.ldt = to_kvm(s.segment(Seg::ldtr));
  out.gdt.base = s.gdtr.base;
  out.gdt.limit = s.gdtr.limit;
  out.idt.base = s.idtr.base;
  out.idt.limit = s.idtr.limit;
  out.cr0 = s.cr0;
  out.cr2 = s.cr2;
  out.cr3 = s.cr3;
  out.cr4 = s.cr4;
  out.cr8 = cr8();
  out.efer = s.efer;
  out.apic_base = apic_base();
}

int Vcpu::get_sregs(kvm_sregs& out) {
  get_common_sregs(out);
  std::optional<u8> vector = lapic_ == nullptr ? user_interrupt_ : std::nullopt;
  if (queued_ && queued_->type == EventType::external) vector = queued_->vector;
  if (vector) out.interrupt_bitmap[*vector / 64] |= bit(*vector % 64);
  return 0;
}

template <class Sregs> int Vcpu::set_common_sregs(const Sregs& in) {
  CpuState& s = cpu_.state;
  // The combinations that no processor can be in.
  if ((in.cr0 >> 32) != 0 || (in.cr4 & ~cr4_allowed(cpu_.cpuid)) != 0) return -EINVAL;
  if ((in.cr0 & cr0::pg) != 0 && (in.cr0 & cr0::pe) == 0) return -EINVAL;
  if ((in.cr0 & cr0::nw) != 0 && (in.cr0 & cr0::cd) == 0) return -EINVAL;
  if ((in.efer & ~efer_allowed(cpu_.cpuid)) != 0) return -EINVAL;
  if ((in.efer & efer::lme) != 0 && (in.cr0 & cr0::pg) != 0) {
    if ((in.cr4 & cr4::pae) == 0 || (in.efer & efer::lma) == 0) return -EINVAL;
    if ((in.cr3 & cpu_.mmu.phys_reserved()) != 0) return -EINVAL;
  } else if ((in.efer & efer::lma) != 0 || in.cs.l != 0) {
    return -EINVAL;
  }
  if (!set_apic_base(in.apic_base, true)) return -EINVAL;

  s.segment(Seg::cs) = from_kvm(in.cs);
  s.segment(Seg::ds) = from_kvm(in.ds);
  s.segment(Seg::es) = from_kvm(in.es);
  s.segment(Seg::fs) = from_kvm(in.fs);
  s.segment(Seg::gs) = from_kvm(in.gs);
  s.segment(Seg::ss) = from_kvm(in.ss);
  s.segment(Seg::tr) = from_kvm(in.tr);
  s.segment(Seg::ldtr) = from_kvm(in.ldt);
  s.gdtr = {in.gdt.base, in.gdt.limit};
  s.idtr = {in.idt.base, in.idt.limit};
  s.cr0 = (in.cr0 & cr0::all) | cr0::et;
  s.cr2 = in.cr2;
  s.cr3 = in.cr3;
  s.cr4 = in.cr4;
  s.efer = in.efer;
  if (lapic_ != nullptr) {
    lapic_->set_cr8(in.cr8 & 15);
  } else {
    user_apic_.cr8 = in.cr8 & 15;
  }
  s.cpl = s.protected_mode() ? s.segment(Seg::ss).dpl : u8{0};
  if (s.v8086()) s.cpl = 3;
  cpu_.mmu.select_context((s.cr4 & cr4::pcide) != 0 ? static_cast<u16>(s.cr3 & 0xfff) : u16{0});
  cpu_.mmu.flush_all();
  return 0;
}

bool Vcpu::pae_paging() const {
  const CpuState& s = cpu_.state;
  return (s.cr0 & cr0::pg) != 0 && (s.cr4 & cr4::pae) != 0 && !s.long_mode();
}

int Vcpu::set_sregs(const kvm_sregs& in) {
  if (const int result = set_common_sregs(in); result != 0) return result;
  if (pae_paging()) {
    cpu_.mmu.refresh_slots();
    cpu_.mmu.load_pdptes(cpu_.state.cr3);
  }
  for (unsigned i = 0; i < 4 && lapic_ == nullptr; ++i) {
    if (in.interrupt_bitmap[i] == 0) continue;
    user_interrupt_ =
        static_cast<u8>(i * 64 + static_cast<unsigned>(std::countr_zero(in.interrupt_bitmap[i])));
    break;
  }
  cpu_.mode_changed();
  return 0;
}

int Vcpu::get_sregs2(kvm_sregs2& out) {
  get_common_sregs(out);
  if (!pae_paging()) return 0;
  for (unsigned i = 0; i < 4; ++i) out.pdptrs[i] = cpu_.state.pdpte[i];
  out.flags = KVM_SREGS2_FLAGS_PDPTRS_VALID;
  return 0;
}

int Vcpu::set_sregs2(const kvm_sregs2& in) {
  const bool pdptrs = (in.flags & KVM_SREGS2_FLAGS_PDPTRS_VALID) != 0;
  const bool pae = (in.cr0 & cr0::pg) != 0 && (in.cr4 & cr4::pae) != 0 && (in.efer & efer::lma) == 0;
  if ((in.flags & ~u64{KVM_SREGS2_FLAGS_PDPTRS_VALID}) != 0 || (pdptrs && !pae)) return -EINVAL;
  if (const int result = set_common_sregs(in); result != 0) return result;
  if (pdptrs) {
    for (unsigned i = 0; i < 4; ++i) cpu_.state.pdpte[i] = in.pdptrs[i];
  } else if (pae_paging()) {
    cpu_.mmu.refresh_slots();
    cpu_.mmu.load_pdptes(cpu_.state.cr3);
  }
  cpu_.mode_changed();
  return 0;
}

int Vcpu::set_cpuid(std::span<const kvm_cpuid_entry2> entries) {
  if (entries.size() > 256) return -E2BIG;
  std::vector<kvm_cpuid_entry2> table(entries.begin(), entries.end());
  // A guest whose HLT is no exit cannot be woken by a hypercall, says KVM.
  if (settings().exits_disabled(KVM_X86_DISABLE_EXITS_HLT)) withhold_unhalt(table);
  CpuidTable cpuid;
  cpuid.set(table);
  if (!settings().has_quirk(KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT))
    cpuid.set_feature(feature::monitor, (cpu_.state.misc_enable & misc_enable_mwait) != 0);
  // A guest that has run has seen its CPU. Setting the same again is what VMMs do after a reset.
  if (has_run_) return cpu_.cpuid.same(cpuid.current(cpu_.state), cpu_.state) ? 0 : -EINVAL;
  const auto sizes = std::ranges::find(table, u32{0x80000008}, &kvm_cpuid_entry2::function);
  const u32 linear_bits = sizes == table.end() ? 0 : sizes->eax >> 8 & 0xff;
  if (linear_bits != 48 && linear_bits != 57 && linear_bits != 0) return -EINVAL;
  cpu_.cpuid = std::move(cpuid);
  pv_.features().set_cpuid(table);
  cpu_.mmu.set_max_phys_bits(cpu_.cpuid.max_phys_bits());
  cpu_.mmu.set_gbpages(cpu_.cpuid.has(feature::pdpe1gb));
  cpu_.mmu.flush_all();
  cpu_.forget_code();
  machine_check_changed();
  return 0;
}

int Vcpu::get_mp_state(kvm_mp_state& out) {
  switch (cpu_.state.activity) {
  case Activity::halted:
    // Without our irqchip it cannot be set again, so as KVM, whose processors then wait in the guest.
    out.mp_state = lapic_ == nullptr || unhalt_posted_.load() ? KVM_MP_STATE_RUNNABLE : KVM_MP_STATE_HALTED;
    break;
  case Activity::wait_for_init: out.mp_state = KVM_MP_STATE_UNINITIALIZED; break;
  case Activity::wait_for_sipi: out.mp_state = KVM_MP_STATE_INIT_RECEIVED; break;
  default: out.mp_state = KVM_MP_STATE_RUNNABLE;
  }
  return 0;
}

int Vcpu::set_mp_state(const kvm_mp_state& in) {
  if (lapic_ == nullptr && in.mp_state != KVM_MP_STATE_RUNNABLE) return -EINVAL;
  // INIT waits for the end of SMM, and a pending SMI goes before it: what waits is said by the vCPU's events.
  const bool init = in.mp_state == KVM_MP_STATE_INIT_RECEIVED || in.mp_state == KVM_MP_STATE_SIPI_RECEIVED;
  if (init && (cpu_.state.in_smm || smi_posted_.load())) return -EINVAL;
  switch (in.mp_state) {
  case KVM_MP_STATE_RUNNABLE: cpu_.state.activity = Activity::running; break;
  case KVM_MP_STATE_UNINITIALIZED: cpu_.state.activity = Activity::wait_for_init; break;
  case KVM_MP_STATE_INIT_RECEIVED: cpu_.state.activity = Activity::wait_for_sipi; break;
  case KVM_MP_STATE_HALTED: cpu_.state.activity = Activity::halted; break;
  case KVM_MP_STATE_SIPI_RECEIVED: cpu_.state.activity = Activity::running; break;
  default: return -EINVAL;
  }
  return 0;
}

int Vcpu::get_msrs(std::span<kvm_msr_entry> entries) {
  int done = 0;
  for (kvm_msr_entry& e : entries) {
    u64 value = 0;
    if (!read_msr(cpu_, e.index, value, true)) break;
    e.data = value;
    ++done;
  }
  return done;
}

int Vcpu::set_msrs(std::span<const kvm_msr_entry> entries) {
  int done = 0;
  for (const kvm_msr_entry& e : entries) {
    if (!write_msr(cpu_, e.index, e.data, true)) break;
    ++done;
  }
  return done;
}

} // namespace ring3::x86
