// SPDX-License-Identifier: Apache-2.0
#include "x86/cpu/control_registers.h"

namespace ring3::x86 {

namespace {

bool gp(Cpu& cpu) {
  cpu.gp();
  return false;
}

u16 pcid_of(const CpuState& s) {
  return (s.cr4 & cr4::pcide) != 0 ? static_cast<u16>(s.cr3 & 0xfff) : u16{0};
}

struct Cr4Feature {
  u64 bit;
  Feature feature;
};
constexpr Cr4Feature cr4_features[] = {
    {cr4::vme | cr4::pvi, feature::vme},
    {cr4::tsd, feature::tsc},
    {cr4::de, feature::de},
    {cr4::pse, feature::pse},
    {cr4::pae, feature::pae},
    {cr4::mce, feature::mce},
    {cr4::pge, feature::pge},
    {cr4::pce, feature::always},
    {cr4::osfxsr, feature::fxsr},
    {cr4::osxmmexcpt, feature::sse},
    {cr4::umip, feature::umip},
    {cr4::la57, feature::la57},
    {cr4::fsgsbase, feature::fsgsbase},
    {cr4::pcide, feature::pcid},
    {cr4::osxsave, feature::xsave},
    {cr4::smep, feature::smep},
    {cr4::smap, feature::smap},
    {cr4::pke, feature::pku},
    {cr4::pks, feature::pks},
};

} // namespace

u64 cr4_allowed(const CpuidTable& cpuid) {
  u64 allowed = 0;
  for (const Cr4Feature& f : cr4_features) {
    if (!cpuid.given() || cpuid.has(f.feature)) allowed |= f.bit;
  }
  return allowed;
}

u64 efer_allowed(const CpuidTable& cpuid) {
  if (!cpuid.given()) return efer::sce | efer::lme | efer::lma | efer::nxe | efer::ffxsr;
  u64 allowed = 0;
  if (cpuid.has(feature::syscall)) allowed |= efer::sce;
  if (cpuid.has(feature::lm)) allowed |= efer::lme | efer::lma;
  if (cpuid.has(feature::nx)) allowed |= efer::nxe;
  if (cpuid.has(feature::ffxsr)) allowed |= efer::ffxsr;
  return allowed;
}

bool write_cr0(Cpu& cpu, u64 value) {
  CpuState& s = cpu.state;
  if ((value >> 32) != 0) return gp(cpu);
  value = (value & cr0::all) | cr0::et;
  if ((value & cr0::pg) != 0 && (value & cr0::pe) == 0) return gp(cpu);
  if ((value & cr0::nw) != 0 && (value & cr0::cd) == 0) return gp(cpu);
  const u64 changed = value ^ s.cr0;
  const bool pg = (value & cr0::pg) != 0;
  bool activate = false;
  if ((changed & cr0::pg) != 0) {
    if (pg) {
      if ((s.efer & efer::lme) != 0) {
        if ((s.cr4 & cr4::pae) == 0 || s.segment(Seg::cs).l) return gp(cpu);
        activate = true;
      }
    } else {
      if (cpu.code64() || (s.cr4 & cr4::pcide) != 0) return gp(cpu);
    }
  }
  // PAE paging reads its four pointers when paging or caching control changes (SDM vol. 3, 4.4.1).
  const bool pae_paging = pg && (s.cr4 & cr4::pae) != 0 && !activate && ((s.efer & efer::lma) == 0 || !pg);
  if (pae_paging && (changed & (cr0::cd | cr0::nw | cr0::pg)) != 0 && !cpu.mmu.load_pdptes(s.cr3))
    return gp(cpu);
  if (activate) s.efer |= efer::lma;
  if (!pg) s.efer &= ~efer::lma;
  s.cr0 = value;
  if ((changed & (cr0::pg | cr0::pe | cr0::wp | cr0::cd | cr0::nw)) != 0) cpu.mmu.flush_all();
  if ((changed & cr0::pe) != 0 && (value & cr0::pe) == 0) s.cpl = 0;
  cpu.mode_changed();
  return true;
}

bool write_cr3(Cpu& cpu, u64 value) {
  CpuState& s = cpu.state;
  const bool pcide = (s.cr4 & cr4::pcide) != 0;
  bool keep = false;
  if (s.long_mode()) {
    if (pcide) {
      keep = (value & bit(63)) != 0;
      value &= ~bit(63);
    }
    if ((value & cpu.mmu.phys_reserved()) != 0) return gp(cpu);
  } else {
    value &= low_mask(32);
    if ((s.cr0 & cr0::pg) != 0 && (s.cr4 & cr4::pae) != 0 && !cpu.mmu.load_pdptes(value)) return gp(cpu);
  }
  s.cr3 = value;
  cpu.mmu.select_context(pcid_of(s));
  if (!keep) cpu.mmu.flush_non_global();
  cpu.flags_changed();
  return true;
}

bool write_cr4(Cpu& cpu, u64 value) {
  CpuState& s = cpu.state;
  if ((value & ~cr4_allowed(cpu.cpuid)) != 0) return gp(cpu);
  const u64 changed = value ^ s.cr4;
  if (s.long_mode()) {
    if ((value & cr4::pae) == 0 || (changed & cr4::la57) != 0) return gp(cpu);
  }
  if ((changed & value & cr4::pcide) != 0 && (!s.long_mode() || (s.cr3 & 0xfff) != 0)) return gp(cpu);
  constexpr u64 reload = cr4::pae | cr4::pge | cr4::pse | cr4::smep;
  const bool pae_paging = (s.cr0 & cr0::pg) != 0 && (value & cr4::pae) != 0 && !s.long_mode();
  if (pae_paging && (changed & reload) != 0) {
    const u64 old = s.cr4;
    s.cr4 = value;
    const bool ok = cpu.mmu.load_pdptes(s.cr3);
    s.cr4 = old;
    if (!ok) return gp(cpu);
  }
  s.cr4 = value;
  constexpr u64 flush = reload | cr4::smap | cr4::pke | cr4::pks | cr4::la57 | cr4::pcide;
  if ((changed & flush) != 0) {
    cpu.mmu.flush_all();
    cpu.mmu.select_context(pcid_of(s));
  }
  cpu.mode_changed();
  return true;
}

bool write_efer(Cpu& cpu, u64 value) {
  CpuState& s = cpu.state;
  if ((value & ~efer_allowed(cpu.cpuid)) != 0) return gp(cpu);
  if ((s.cr0 & cr0::pg) != 0 && ((value ^ s.efer) & efer::lme) != 0) return gp(cpu);
  value = (value & ~efer::lma) | (s.efer & efer::lma); // LMA is read-only: writes to it are ignored
  const u64 changed = value ^ s.efer;
  s.efer = value;
  if ((changed & efer::nxe) != 0) cpu.mmu.flush_all();
  cpu.mode_changed();
  return true;
}

} // namespace ring3::x86
