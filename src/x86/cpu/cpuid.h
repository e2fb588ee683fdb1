// SPDX-License-Identifier: Apache-2.0
// The guest's CPUID table as KVM_SET_CPUID2 gave it, with the parts that the CPU itself computes (SDM vol. 2,
// CPUID).
#pragma once

#include "x86/cpu/features.h"
#include "x86/cpu/state.h"

#include <linux/kvm.h>
#include <span>
#include <vector>

namespace ring3::x86 {

struct CpuidResult {
  u32 eax = 0, ebx = 0, ecx = 0, edx = 0;
  bool operator==(const CpuidResult&) const = default;
};

class CpuidTable {
 public:
  void set(std::span<const kvm_cpuid_entry2> entries);
  std::span<const kvm_cpuid_entry2> entries() const { return entries_; }
  // Before the VMM has said what the CPU has, it may set whatever this hypervisor can do, as in KVM.
  bool given() const { return !entries_.empty(); }
  // The table with the bits that depend on the CPU's state as they are: what KVM_GET_CPUID2 shows.
  std::vector<kvm_cpuid_entry2> current(const CpuState& state) const;
  // Whether set() would leave the table as it is. The VMM may have it from current().
  bool same(std::span<const kvm_cpuid_entry2> entries, const CpuState& state) const;

  // What the CPUID instruction returns, out-of-range leaves and state-dependent bits included.
  CpuidResult query(u32 leaf, u32 subleaf, const CpuState& state) const;

  // Is the bit set in the table? feature::always is.
  bool has(Feature f) const;

  // Switches a bit of a leaf that is there: CPUID bits that follow a register.
  void set_feature(Feature f, bool on);

  bool amd() const { return amd_; }
  unsigned max_phys_bits() const { return max_phys_bits_; }
  // XCR0 bits the guest may set, and IA32_XSS bits.
  u64 xcr0_allowed() const { return xcr0_allowed_; }
  u64 xss_allowed() const { return xss_allowed_; }

 private:
  const kvm_cpuid_entry2* find(u32 leaf, u32 subleaf) const;
  CpuidResult with_state(const kvm_cpuid_entry2& entry, const CpuState& state) const;

  std::vector<kvm_cpuid_entry2> entries_;
  bool amd_ = false;
  unsigned max_phys_bits_ = 36;
  u64 xcr0_allowed_ = 1;
  u64 xss_allowed_ = 0;
};

} // namespace ring3::x86
