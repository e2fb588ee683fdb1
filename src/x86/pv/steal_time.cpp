// SPDX-License-Identifier: Apache-2.0
#include "x86/pv/steal_time.h"

#include "x86/pv/shared_struct.h"

#include <asm/kvm_para.h>
#include <cstddef>

namespace ring3::x86 {
namespace {

GuestPhys address(u64 msr) { return GuestPhys{msr & KVM_STEAL_VALID_BITS}; }

} // namespace

bool StealTime::set_msr(u64 value) {
  if ((value & KVM_STEAL_RESERVED_MASK) != 0 || !kvm::thread_run_delay()) return false;
  msr_ = value;
  next_ns_ = 0;
  // A VM that was saved between two calls of KVM_RUN comes back with the byte set.
  preempted_ = enabled();
  return true;
}

void StealTime::reset() { *this = StealTime{}; }

bool StealTime::enter(Mmu& mmu, u64 now_ns) {
  if (!preempted_) return false;
  preempted_ = false;
  if (now_ns - left_ns_ >= long_absence_ns) next_ns_ = now_ns;
  SharedStruct s(mmu, address(msr_), sizeof(kvm_steal_time));
  if (!s.valid()) return false;
  return (s.exchange<u8>(offsetof(kvm_steal_time, preempted), 0) & KVM_VCPU_FLUSH_TLB) != 0;
}

void StealTime::leave(Mmu& mmu, u64 now_ns) {
  if (!enabled() || preempted_) return;
  left_ns_ = now_ns;
  SharedStruct s(mmu, address(msr_), sizeof(kvm_steal_time));
  if (!s.valid()) return;
  s.store<u8>(offsetof(kvm_steal_time, preempted), KVM_VCPU_PREEMPTED);
  preempted_ = true;
}

void StealTime::record(Mmu& mmu, u64 now_ns, const std::optional<kvm::RunDelay>& delay) {
  if (!enabled()) return;
  next_ns_ = now_ns + interval_ns;
  if (!delay) return;
  // Each thread has a count of its own; a vCPU that moved to another starts from there.
  const bool same_thread = delay->thread == last_.thread && delay->ns >= last_.ns;
  const u64 stolen = same_thread ? delay->ns - last_.ns : 0;
  last_ = *delay;
  SharedStruct s(mmu, address(msr_), sizeof(kvm_steal_time));
  if (!s.valid()) return;
  const u32 version = (s.load<u32>(offsetof(kvm_steal_time, version)) + 1) | 1;
  s.store<u32>(offsetof(kvm_steal_time, version), version);
  s.store<u64>(offsetof(kvm_steal_time, steal), s.load<u64>(offsetof(kvm_steal_time, steal)) + stolen);
  s.store<u32>(offsetof(kvm_steal_time, version), version + 1);
}

} // namespace ring3::x86
