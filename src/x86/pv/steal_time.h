// SPDX-License-Identifier: Apache-2.0
// Steal time and the "preempted" byte beside it (msr.rst, MSR_KVM_STEAL_TIME), by which other vCPUs leave TLB
// flushes to be made at the next entry (cpuid.rst, KVM_FEATURE_PV_TLB_FLUSH). On the vCPU's thread.
#pragma once

#include "base/types.h"
#include "kvm/run_delay.h"
#include "x86/mmu/mmu.h"

#include <optional>

namespace ring3::x86 {

class StealTime {
 public:
  // Asking the host costs a system call, and guests look a few hundred times a second. But what was stolen
  // from the thread while it was in user space the guest sees at once.
  static constexpr u64 interval_ns = 1'000'000;
  static constexpr u64 long_absence_ns = 50'000;

  u64 msr() const { return msr_; }
  // False: reserved bits, or the host keeps no such statistics.
  bool set_msr(u64 value);
  void reset();
  bool enabled() const { return (msr_ & 1) != 0; }

  // The vCPU is about to run, or to see whether it can. True: another vCPU has asked for the flush of this
  // one's TLB.
  bool enter(Mmu& mmu, u64 now_ns);
  // It goes back to user space. (A vCPU that waits for an interrupt is idle, not preempted: guests'
  // schedulers prefer an idle CPU for waking tasks, and KVM does not call it preempted either.)
  void leave(Mmu& mmu, u64 now_ns);

  bool due(u64 now_ns) const { return enabled() && now_ns >= next_ns_; }
  // Adds what the host has taken since the last time.
  void record(Mmu& mmu, u64 now_ns, const std::optional<kvm::RunDelay>& delay);

 private:
  u64 msr_ = 0;
  u64 next_ns_ = 0;
  bool preempted_ = false; // the byte says so, or may say so
  u64 left_ns_ = 0;
  kvm::RunDelay last_;
};

} // namespace ring3::x86
