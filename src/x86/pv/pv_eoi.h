// SPDX-License-Identifier: Apache-2.0
// PV EOI (msr.rst, MSR_KVM_PV_EOI_EN): the guest ends an interrupt by clearing a bit in its memory. The offer
// stands only while this vCPU executes; whoever looks at the local APIC's state settles it first. On the
// vCPU's thread.
#pragma once

#include "base/types.h"
#include "x86/irqchip/lapic.h"
#include "x86/mmu/mmu.h"

namespace ring3::x86 {

class PvEoi {
 public:
  u64 msr() const { return msr_; }
  // The caller has settled and has checked the address.
  void set_msr(u64 value) { msr_ = value; }
  void reset() { *this = PvEoi{}; }
  bool offered() const { return offered_; }

  static bool well_formed(u64 value) { return (value & 2) == 0; }

  // Before the guest runs: offers it if there is one interrupt in service that nobody but the APIC has to
  // hear the end of, and none waiting.
  void offer(Mmu& mmu, const Lapic& apic);
  // The guest's answer: it has cleared the bit, which ends the interrupt; or it has not, and the offer ends.
  void settle(Mmu& mmu, Lapic& apic);

 private:
  u64 msr_ = 0;
  bool offered_ = false;
};

} // namespace ring3::x86
