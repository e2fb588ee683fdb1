// SPDX-License-Identifier: Apache-2.0
// kvmclock, the guest's paravirtual time (msr.rst: MSR_KVM_SYSTEM_TIME_NEW and MSR_KVM_WALL_CLOCK_NEW;
// timekeeping.rst): the VM's clock, and how each vCPU shows it to its guest.
#pragma once

#include "base/types.h"
#include "kvm/clock.h"
#include "x86/mmu/mmu.h"

#include <atomic>
#include <linux/kvm.h>
#include <mutex>

namespace ring3::x86 {

// The Clock's TSC and the wall clock at one moment, as far as two calls can tell.
struct HostTime {
  u64 tsc = 0;
  u64 wall_ns = 0;
};
HostTime read_host_time(const kvm::Clock& clock);

// pvclock's conversion of TSC ticks to nanoseconds: shift, multiply by a 32-bit fraction.
struct PvclockScale {
  s8 shift = 0;
  u32 multiplier = 0;

  // The most precise one for a TSC of this frequency, which is not 0.
  static PvclockScale for_khz(u64 tsc_khz);
  // What a guest computes from it.
  u64 nanoseconds(u64 ticks) const;
};

// The VM's clock: nanoseconds since the VM was made, by the Clock's TSC, because that is how guests will read
// it. Any thread.
class KvmClock {
 public:
  explicit KvmClock(const kvm::Clock& clock);

  // A moment of which all vCPUs' structures speak. If each took its own, the rounding of the multiplier would
  // let their clocks drift apart.
  struct Reference {
    u64 host_tsc = 0;
    u64 system_time = 0; // what this clock showed then
  };
  Reference reference() const;
  u64 now_ns() const;
  // Host wall-clock time at which this clock was at 0.
  u64 epoch_ns() const;

  // KVM_GET_CLOCK and KVM_SET_CLOCK (api.rst 4.29, 4.30). After a successful set() each vCPU has to update
  // its structure.
  int get(kvm_clock_data& out) const;
  int set(const kvm_clock_data& in);

  // A vCPU is about to show the clock by a TSC of this frequency. True: all are of one frequency, so that
  // they round alike and none is ever behind another. `disagrees` is set when the vCPUs that were told "true"
  // before must update their structures now.
  bool same_frequency(u64 tsc_khz, bool& disagrees);

  // MSR_KVM_WALL_CLOCK is one for the whole VM.
  u64 wall_clock_msr() const { return wall_clock_msr_.load(std::memory_order_relaxed); }
  void set_wall_clock_msr(u64 value) { wall_clock_msr_.store(value, std::memory_order_relaxed); }

 private:
  u64 at(u64 host_tsc) const;

  const kvm::Clock& clock_;
  mutable std::mutex lock_; // reference_ and the frequencies
  Reference reference_;
  u64 tsc_khz_ = 0; // 0: no vCPU has shown the clock since it was set
  bool mixed_ = false;
  std::atomic<u64> wall_clock_msr_{0};
};

// Writes struct pvclock_wall_clock: the wall-clock time at which kvmclock was at 0. Address 0 is none.
void write_wall_clock(Mmu& mmu, const KvmClock& clock, GuestPhys at);

// MSR_KVM_SYSTEM_TIME of one vCPU, on its thread.
class VcpuClock {
 public:
  u64 msr() const { return msr_; }
  void set_msr(u64 value) { msr_ = value; }
  bool active() const { return (msr_ & 1) != 0; }

  // KVM_KVMCLOCK_CTRL (api.rst 4.70): the guest was paused, and its watchdogs should know. -EINVAL if it
  // shows no clock. Needs an update().
  int notify_paused();

  // Rewrites struct pvclock_vcpu_time_info. `tsc_at_reference`: this vCPU's TSC at that moment.
  void update(Mmu& mmu, const KvmClock::Reference& reference, u64 tsc_at_reference, u64 tsc_khz, bool stable);

 private:
  u64 msr_ = 0;
  bool paused_ = false; // to be told
};

} // namespace ring3::x86
