// SPDX-License-Identifier: Apache-2.0
#include "x86/cpu/cpuid.h"

#include "x86/cpu/xsave_layout.h"

#include <algorithm>

namespace ring3::x86 {

namespace {

u32 register_of(const kvm_cpuid_entry2& e, CpuidReg r) {
  switch (r) {
  case CpuidReg::eax: return e.eax;
  case CpuidReg::ebx: return e.ebx;
  case CpuidReg::ecx: return e.ecx;
  default: return e.edx;
  }
}

} // namespace

void CpuidTable::set(std::span<const kvm_cpuid_entry2> entries) {
  entries_.assign(entries.begin(), entries.end());
  const kvm_cpuid_entry2* vendor = find(0, 0);
  amd_ = vendor != nullptr && vendor->ebx == 0x68747541 && vendor->edx == 0x69746e65; // "Auth" "enti"
  const kvm_cpuid_entry2* sizes = find(0x80000008, 0);
  max_phys_bits_ = 36;
  if (sizes != nullptr && (sizes->eax & 0xff) != 0) max_phys_bits_ = std::clamp(sizes->eax & 0xffu, 32u, 52u);
  const kvm_cpuid_entry2* d0 = find(0xd, 0);
  xcr0_allowed_ = d0 != nullptr ? (u64{d0->edx} << 32 | d0->eax) | 1 : 1;
  const kvm_cpuid_entry2* d1 = find(0xd, 1);
  xss_allowed_ = d1 != nullptr && (d1->eax & 8) != 0 ? u64{d1->edx} << 32 | d1->ecx : 0;
}

const kvm_cpuid_entry2* CpuidTable::find(u32 leaf, u32 subleaf) const {
  for (const kvm_cpuid_entry2& e : entries_) {
    if (e.function != leaf) continue;
    if ((e.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX) != 0 && e.index != subleaf) continue;
    return &e;
  }
  return nullptr;
}

bool CpuidTable::has(Feature f) const {
  if (f == feature::always) return true;
  const kvm_cpuid_entry2* e = find(f.leaf, f.subleaf);
  return e != nullptr && (register_of(*e, f.reg) >> f.bit & 1) != 0;
}

void CpuidTable::set_feature(Feature f, bool on) {
  for (kvm_cpuid_entry2& e : entries_) {
    if (e.function != f.leaf || ((e.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX) != 0 && e.index != f.subleaf))
      continue;
    u32& reg = f.reg == CpuidReg::eax   ? e.eax
               : f.reg == CpuidReg::ebx ? e.ebx
               : f.reg == CpuidReg::ecx ? e.ecx
                                        : e.edx;
    reg = static_cast<u32>(with_bits(reg, bit(f.bit), on));
    return;
  }
}

CpuidResult CpuidTable::query(u32 leaf, u32 subleaf, const CpuState& state) const {
  const kvm_cpuid_entry2* e = find(leaf, subleaf);
  if (e == nullptr) {
    // Beyond the last leaf of its range, Intel repeats the last basic leaf and AMD gives zeros; a known leaf
    // with an unknown subleaf gives zeros, but the topology leaves keep ECX and the x2APIC ID (SDM vol. 2,
    // CPUID).
    const bool hypervisor_leaf = leaf >> 28 == 4; // each hypervisor has 256 of them
    const kvm_cpuid_entry2* range = find(leaf & (hypervisor_leaf ? 0xffffff00 : 0x80000000), 0);
    const bool beyond = range != nullptr && leaf > range->eax;
    if (beyond && !amd_) {
      const kvm_cpuid_entry2* basic = find(0, 0);
      if (basic != nullptr && basic->eax != leaf) return query(basic->eax, subleaf, state);
    }
    CpuidResult r;
    if (leaf == 0xb || leaf == 0x1f) {
      r.ecx = subleaf & 0xff;
      if (const kvm_cpuid_entry2* first = find(leaf, 0)) r.edx = first->edx;
    }
    return r;
  }
  return with_state(*e, state);
}

std::vector<kvm_cpuid_entry2> CpuidTable::current(const CpuState& state) const {
  std::vector<kvm_cpuid_entry2> out = entries_;
  for (kvm_cpuid_entry2& e : out) {
    const CpuidResult r = with_state(e, state);
    e.eax = r.eax;
    e.ebx = r.ebx;
    e.ecx = r.ecx;
    e.edx = r.edx;
  }
  return out;
}

bool CpuidTable::same(std::span<const kvm_cpuid_entry2> entries, const CpuState& state) const {
  return std::ranges::equal(entries, entries_, [&](const kvm_cpuid_entry2& a, const kvm_cpuid_entry2& b) {
    if (a.function != b.function || a.index != b.index || a.flags != b.flags) return false;
    return with_state(a, state) == with_state(b, state);
  });
}

CpuidResult CpuidTable::with_state(const kvm_cpuid_entry2& entry, const CpuState& state) const {
  CpuidResult r{entry.eax, entry.ebx, entry.ecx, entry.edx};
  const u32 subleaf = entry.index;
  switch (entry.function) {
  case 1:
    r.ecx = static_cast<u32>(with_bits(r.ecx, bit(27), (state.cr4 & cr4::osxsave) != 0));
    if (!state.apic_enabled) r.edx &= ~(1u << 9);
    break;
  case 0x80000001:
    if (amd_ && !state.apic_enabled) r.edx &= ~(1u << 9);
    break;
  case 7:
    if (subleaf == 0) r.ecx = static_cast<u32>(with_bits(r.ecx, bit(4), (state.cr4 & cr4::pke) != 0));
    break;
  case 0xd:
    // EBX: the size of the XSAVE area that the enabled components need.
    if (subleaf == 0) r.ebx = xsave::standard_size(state.xcr0);
    if (subleaf == 1 && (r.eax & 0xa) != 0) r.ebx = xsave::compacted_size(state.xcr0 | state.xss);
    break;
  default: break;
  }
  return r;
}

} // namespace ring3::x86
