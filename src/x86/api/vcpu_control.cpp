// SPDX-License-Identifier: Apache-2.0
// What a VMM tunes about a vCPU, and what it asks of one beyond its state.
#include "x86/api/vcpu.h"
#include "x86/api/vm.h"

#include <cerrno>

namespace ring3::x86 {

int Vcpu::set_tsc_khz(u64 khz) {
  if (khz > Vm::max_tsc_khz) return -EINVAL;
  tsc_khz_ = khz == 0 ? vm_.clock().tsc_khz() : khz;
  tsc_changed();
  return 0;
}

void Vcpu::set_tsc_offset(u64 offset) {
  vm_.tsc_sync().note_offset(offset, tsc_khz_);
  cpu_.state.tsc_offset = offset;
  tsc_changed();
}

// The TPR is never trapped here, whatever is asked, so there is nothing to report and no page to keep it in;
// KVM is the same where the processor has FlexPriority.
int Vcpu::tpr_access_reporting(kvm_tpr_access_ctl& control) {
  if (lapic_ == nullptr) return -EINVAL;
  if (control.flags != 0) return -EINVAL;
  return 0;
}
int Vcpu::set_vapic_addr(u64 address) {
  if (lapic_ == nullptr) return -EINVAL;
  if (address == 0) return 0;
  return vm_.slots().snapshot().find(GuestPhys{address}) != nullptr ? 0 : -EINVAL;
}

int Vcpu::enable_capability(const kvm_enable_cap& cap) {
  if (cap.flags != 0) return -EINVAL;
  switch (cap.cap) {
  case KVM_CAP_ENFORCE_PV_FEATURE_CPUID: enforce_pv_cpuid(cap.args[0] != 0); return 0;
  default: return -EINVAL;
  }
}

} // namespace ring3::x86
