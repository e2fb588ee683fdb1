// SPDX-License-Identifier: Apache-2.0
// The guests' time stamp counters: how a vCPU's follows from the Clock's, and how the vCPUs of a VM stay in
// step (api.rst 4.55, 4.56; Documentation/virt/kvm/x86/timekeeping.rst).
#pragma once

#include "base/types.h"
#include "kvm/clock.h"

#include <mutex>

namespace ring3::x86 {

// ticks * to / from, exact for any 64-bit result.
constexpr u64 scale_ticks(u64 ticks, u64 to_khz, u64 from_khz) {
  if (to_khz == from_khz) return ticks;
  return static_cast<u64>(static_cast<unsigned __int128>(ticks) * to_khz / from_khz);
}

// The VM's part. Any thread.
class TscSync {
 public:
  explicit TscSync(const kvm::Clock& clock) : clock_(clock) {}

  // The offset of a vCPU whose counter a VMM wants to be `value` now. VMMs write the counters of all vCPUs
  // one after another and mean them to be the same: a value within a second of what the last one written
  // would show now, or 0, gets the offset of that one, as in KVM.
  u64 offset_for(u64 value, u64 khz);

  // A VMM has given a vCPU this offset itself (KVM_VCPU_TSC_OFFSET): what is written next is measured by it.
  void note_offset(u64 offset, u64 khz);

 private:
  const kvm::Clock& clock_;
  std::mutex lock_;
  bool any_ = false;
  u64 khz_ = 0, offset_ = 0;
};

} // namespace ring3::x86
