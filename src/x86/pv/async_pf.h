// SPDX-License-Identifier: Apache-2.0
// Asynchronous page faults (msr.rst, MSR_KVM_ASYNC_PF_EN, _INT and _ACK; KVM_FEATURE_ASYNC_PF_INT). An access
// of the guest would sleep in the host, because the VMM's page behind it is not in memory. Instead, a thread
// touches the page, and the guest gets a #PF that says "page not present" (the reason, in a structure in its
// memory, and a token in CR2). It may let something else run. When the page is there, an interrupt says so
// (the same token, in the structure), and the guest tries again.
//
// Asked is at a miss of the software TLB only. What is in it and leaves memory is waited for, as a page is
// that cannot be put off.
//
// On the vCPU's thread.
#pragma once

#include "kvm/page_workers.h"
#include "x86/irqchip/lapic.h"
#include "x86/mmu/mmu.h"
#include "x86/pv/pv_features.h"

#include <memory>
#include <optional>
#include <vector>

namespace ring3::x86 {

class AsyncPf {
 public:
  static constexpr std::size_t max_outstanding = kvm::FetchedPages::max_expected; // KVM's number
  static constexpr u64 look_interval_ns = 100'000'000;

  AsyncPf() = default;
  ~AsyncPf() { forget(); }
  AsyncPf(const AsyncPf&) = delete;
  AsyncPf& operator=(const AsyncPf&) = delete;

  // Before anything else. `arrived`: any thread calls it when a page has come. Without, nothing is ever put
  // off.
  void attach(u32 vcpu_id, kvm::PageWorkers& workers, std::function<void()> arrived);

  u64 control() const { return control_; }
  u64 vector() const { return vector_; }
  bool enabled() const { return enables(control_); }

  // False: reserved bits, or delivery that this guest does not have.
  static bool well_formed(u64 control, const PvFeatures& features);
  // Whether events can be delivered with this value, to the address in it.
  static bool enables(u64 control);

  // What is outstanding is forgotten if this disables events. If not, the guest is told to wake up everybody
  // who waits, since that is how a VM goes on which was restored: nobody else knows of the old tokens.
  void set_control(u64 value);
  bool set_vector(u64 value);
  void reset(); // INIT

  // The guest, at `cpl`, can take a #PF and is about to touch a page. The token, if it shall have one instead
  // and is to come back later; the reason is in its memory then.
  std::optional<u32> put_off(Mmu& mmu, u8 cpl, GuestPhys page, const std::byte* host);

  // Is there something for deliver()?
  bool ready() const { return enabled() && (wake_all_ || (fetched_ && !fetched_->empty())); }
  // Tells the guest of one page that has come, unless it has not taken note yet of the one before it.
  void deliver(Mmu& mmu, Lapic& apic);

  // Whether it is time to ask the host about swap again.
  void poll(u64 now_ns);

 private:
  struct Outstanding {
    u32 token;
    GuestPhys page;
    bool reported; // the guest waits for it
  };

  GuestPhys address() const { return GuestPhys{control_ & ~u64{63}}; }
  u32 next_token();
  void forget();

  u64 control_ = 0;
  u64 vector_ = 0;
  u32 vcpu_id_ = 0;
  u32 counter_ = 0;
  bool wake_all_ = false;
  u64 next_look_ns_ = 0;
  kvm::PageWorkers* workers_ = nullptr;
  std::function<void()> arrived_;
  std::vector<Outstanding> outstanding_;
  std::vector<GuestPhys> gone_; // could not be brought: the next access shall see for itself
  // What comes for a guest that does not wait any more goes to an object that is not this one.
  std::shared_ptr<kvm::FetchedPages> fetched_;
};

} // namespace ring3::x86
