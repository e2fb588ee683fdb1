// SPDX-License-Identifier: Apache-2.0
// KVM's paravirtual interface of one vCPU: its MSRs, and what has to happen in guest memory before the guest
// runs and after. On the vCPU's thread.
//
// The structures lie in memory slots, which may go while the vCPU is not in the guest. So an MSR write only
// records; memory is written when the vCPU is about to run, with the newest slots.
#pragma once

#include "x86/cpu/cpuid.h"
#include "x86/irqchip/lapic.h"
#include "x86/irqchip/vcpu_events.h"
#include "x86/mmu/mmu.h"
#include "x86/pv/async_pf.h"
#include "x86/pv/hypercalls.h"
#include "x86/pv/kvm_clock.h"
#include "x86/pv/pv_eoi.h"
#include "x86/pv/pv_features.h"
#include "x86/pv/steal_time.h"

#include <functional>
#include <utility>

namespace ring3::x86 {

// Bits of the vCPU's exit word (kvm/vcpu.h) that belong to this folder.
namespace pv_request {
constexpr u32 clock = 1u << 1;   // kvmclock's structure is out of date
constexpr u32 publish = 1u << 2; // something else waits to be written to guest memory
} // namespace pv_request

class Paravirt {
 public:
  // `exit_word`: where this vCPU finds its requests. The references must outlive this object.
  Paravirt(Mmu& mmu, const kvm::MemorySlots& slots, const kvm::Clock& clock, KvmClock& kvm_clock,
           const GuestTsc& tsc, std::atomic<u32>& exit_word)
      : mmu_(mmu), slots_(slots), clock_(clock), kvm_clock_(kvm_clock), tsc_(tsc), exit_word_(exit_word) {}
  // With the in-kernel irqchip only. `page_arrived`: see AsyncPf::attach().
  void attach(Lapic& lapic, kvm::PageWorkers& workers, std::function<void()> page_arrived) {
    lapic_ = &lapic;
    async_pf_.attach(lapic.id(), workers, std::move(page_arrived));
  }

  // The MSRs 0x11, 0x12 and 0x4b564d00 and above: may the guest use one; false: #GP. For the VMM they are all
  // there.
  bool has_msr(u32 index) const;
  bool read_msr(u32 index, u64& value) const;
  bool write_msr(u32 index, u64 value);

  PvFeatures& features() { return features_; }
  void reset(); // INIT

  // KVM_KVMCLOCK_CTRL: 0 or -EINVAL.
  int notify_paused();
  // The guest's TSC is not what it was.
  void tsc_changed() { request(pv_request::clock); }

  // The vCPU is about to run, or to see whether it can. True: all other vCPUs that show the clock have to
  // update it.
  bool prepare(u32 requests, u64 tsc_khz);
  // Now it runs.
  void offer_eoi() {
    if (lapic_ != nullptr) eoi_.offer(mmu_, *lapic_);
  }
  // Somebody looks at the APIC's state, or changes it.
  void settle_eoi() {
    if (eoi_.offered()) eoi_.settle(mmu_, *lapic_);
  }
  // KVM_RUN returns to user space.
  void leave();
  // The guest runs, and has not come out for a while.
  void poll(u64 now_ns) {
    if (steal_.due(now_ns)) request(pv_request::publish);
    async_pf_.poll(now_ns);
  }

  // See AsyncPf::put_off().
  std::optional<u32> put_off_access(u8 cpl, GuestPhys page, const std::byte* host) {
    return async_pf_.put_off(mmu_, cpl, page, host);
  }

  std::optional<s64> hypercall(const Hypercall& call, IrqChip* irqchip, u64 exits, u32 caller);

 private:
  void request(u32 bits) { exit_word_.fetch_or(bits, std::memory_order_relaxed); }
  bool writable_memory(u64 address, u64 size) const;
  bool set_async_pf_control(u64 value);
  bool set_pv_eoi(u64 value);

  Mmu& mmu_;
  const kvm::MemorySlots& slots_;
  const kvm::Clock& clock_;
  KvmClock& kvm_clock_;
  const GuestTsc& tsc_;
  std::atomic<u32>& exit_word_;
  Lapic* lapic_ = nullptr;

  PvFeatures features_;
  VcpuClock system_time_;
  StealTime steal_;
  PvEoi eoi_;
  AsyncPf async_pf_;
  bool wall_clock_wanted_ = false;
  // Whether the host may poll before it lets a halted vCPU's thread sleep. It never does.
  u64 poll_control_ = 1;
};

} // namespace ring3::x86
