// SPDX-License-Identifier: Apache-2.0
// A vCPU as its local APIC sees it.
#pragma once

#include "base/types.h"

namespace ring3::x86 {

// Every call may come from any thread; each makes the vCPU look at its events soon, and wakes it if it is
// halted or waiting for SIPI.
class VcpuEvents {
 public:
  virtual ~VcpuEvents() = default;
  // The APIC has, or may have, something to deliver: ask Lapic::highest_pending() again.
  virtual void event_pending() = 0;
  virtual void post_nmi() = 0;
  virtual void post_smi() = 0;
  virtual void post_init() = 0;
  virtual void post_startup(u8 vector) = 0; // SIPI: start at vector << 12
  virtual void post_unhalt() = 0; // ends a HLT, the next one if the vCPU is not halted (KVM_HC_KICK_CPU)
  // On the vCPU's own thread: an interrupt has ended that came from the I/O APIC in user space.
  virtual void report_eoi(u8) {}
};

// Converts between the guest's TSC and the Clock: for the TSC-deadline timer, and for paravirtual clocks.
class GuestTsc {
 public:
  virtual ~GuestTsc() = default;
  // The Clock time, in nanoseconds, at which the guest's TSC reaches `tsc` (now or earlier if it has passed
  // it).
  virtual u64 clock_ns_at(u64 tsc) const = 0;
  // What the guest's TSC shows when the Clock's shows this, be it before the vCPU was made (modulo 2^64).
  virtual u64 tsc_at(u64 host_tsc) const = 0;
};

} // namespace ring3::x86
