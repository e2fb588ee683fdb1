// SPDX-License-Identifier: Apache-2.0
// KVM's paravirtual features as CPUID tells of them (Documentation/virt/kvm/x86/cpuid.rst).
#pragma once

#include "base/types.h"

#include <linux/kvm.h>
#include <span>
#include <vector>

namespace ring3::x86 {

// Leaves 0x40000000 and 0x40000001 with all that this hypervisor does, for KVM_GET_SUPPORTED_CPUID.
std::vector<kvm_cpuid_entry2> kvm_cpuid_leaves();

// The feature bits that a guest's CPUID has. KVM's leaves may start at any 0x40000000 + n * 0x100, after
// another hypervisor's.
u32 kvm_features_in(std::span<const kvm_cpuid_entry2> entries);

// What one guest may use. Everything, unless the VMM wants its CPUID to be obeyed
// (KVM_CAP_ENFORCE_PV_FEATURE_CPUID, api.rst 8.28).
class PvFeatures {
 public:
  void set_cpuid(std::span<const kvm_cpuid_entry2> entries) { bits_ = kvm_features_in(entries); }
  void enforce(bool on) { enforced_ = on; }
  bool has(unsigned feature) const { return !enforced_ || (bits_ >> feature & 1) != 0; }

 private:
  u32 bits_ = 0;
  bool enforced_ = false;
};

// Takes KVM_FEATURE_PV_UNHALT out of the leaf that kvm_features_in() finds.
void withhold_unhalt(std::span<kvm_cpuid_entry2> entries);

} // namespace ring3::x86
