// SPDX-License-Identifier: Apache-2.0
#include "x86/pv/pv_eoi.h"

#include "x86/pv/shared_struct.h"

#include <asm/kvm_para.h>

namespace ring3::x86 {

void PvEoi::offer(Mmu& mmu, const Lapic& apic) {
  if ((msr_ & KVM_MSR_ENABLED) == 0 || offered_ || !apic.eoi_is_private()) return;
  SharedStruct s(mmu, GuestPhys{msr_ & ~u64{KVM_MSR_ENABLED}}, sizeof(u8));
  if (!s.valid()) return;
  s.store<u8>(0, KVM_PV_EOI_ENABLED);
  offered_ = true;
}

void PvEoi::settle(Mmu& mmu, Lapic& apic) {
  if (!offered_) return;
  offered_ = false;
  SharedStruct s(mmu, GuestPhys{msr_ & ~u64{KVM_MSR_ENABLED}}, sizeof(u8));
  // Memory that is gone cannot say that the guest has ended the interrupt: it has to write to the APIC.
  if (!s.valid()) return;
  if ((s.load<u8>(0) & KVM_PV_EOI_MASK) != 0) {
    s.store<u8>(0, KVM_PV_EOI_DISABLED);
  } else {
    apic.end_of_interrupt();
  }
}

} // namespace ring3::x86
