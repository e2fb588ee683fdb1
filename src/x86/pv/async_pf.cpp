// SPDX-License-Identifier: Apache-2.0
#include "x86/pv/async_pf.h"

#include "base/bits.h"
#include "kvm/residency.h"
#include "x86/pv/shared_struct.h"

#include <algorithm>
#include <asm/kvm_para.h>
#include <cstddef>
#include <utility>

namespace ring3::x86 {
namespace {

constexpr u32 wake_all_token = ~u32{0};
constexpr u64 flags_at = offsetof(kvm_vcpu_pv_apf_data, flags);
constexpr u64 token_at = offsetof(kvm_vcpu_pv_apf_data, token);
constexpr u64 used_size = token_at + sizeof(u32); // the rest is padding, as KVM has it

} // namespace

void AsyncPf::attach(u32 vcpu_id, kvm::PageWorkers& workers, std::function<void()> arrived) {
  vcpu_id_ = vcpu_id;
  workers_ = &workers;
  arrived_ = std::move(arrived);
  outstanding_.reserve(max_outstanding);
  gone_.reserve(max_outstanding);
}

bool AsyncPf::well_formed(u64 control, const PvFeatures& features) {
  constexpr u64 reserved = bit(4) | bit(5);
  if ((control & reserved) != 0) return false;
  if ((control & KVM_ASYNC_PF_DELIVERY_AS_PF_VMEXIT) != 0 && !features.has(KVM_FEATURE_ASYNC_PF_VMEXIT))
    return false;
  return (control & KVM_ASYNC_PF_DELIVERY_AS_INT) == 0 || features.has(KVM_FEATURE_ASYNC_PF_INT);
}

bool AsyncPf::enables(u64 control) {
  constexpr u64 both = KVM_ASYNC_PF_ENABLED | KVM_ASYNC_PF_DELIVERY_AS_INT;
  return (control & both) == both;
}

void AsyncPf::set_control(u64 value) {
  control_ = value;
  if (!enabled()) return forget();
  // As KVM: not in front of pages that have come, of which the guest hears anyway.
  if (!fetched_ || fetched_->empty()) wake_all_ = true;
}

bool AsyncPf::set_vector(u64 value) {
  if ((value & ~u64{0xff}) != 0) return false;
  vector_ = value;
  return true;
}

void AsyncPf::forget() {
  wake_all_ = false;
  outstanding_.clear();
  gone_.clear();
  if (fetched_) fetched_->forget();
  fetched_.reset();
}

void AsyncPf::reset() {
  control_ = vector_ = 0;
  forget();
}

// KVM's form: unique among the outstanding ones of all vCPUs. Guests use 0 and all ones for other things.
u32 AsyncPf::next_token() {
  u32 token;
  do {
    token = ++counter_ << 12 | vcpu_id_;
  } while (counter_ << 12 == 0 || token == wake_all_token);
  return token;
}

std::optional<u32> AsyncPf::put_off(Mmu& mmu, u8 cpl, GuestPhys page, const std::byte* host) {
  if (!enabled() || workers_ == nullptr) return std::nullopt;
  if (cpl == 0 && (control_ & KVM_ASYNC_PF_SEND_ALWAYS) == 0) return std::nullopt;
  if (!kvm::Residency::of_process().may_block(host)) return std::nullopt;
  if (std::erase(gone_, page) != 0) return std::nullopt;
  // Somebody else in the guest wants a page that is on its way. KVM halts then; this vCPU sleeps with the
  // host.
  if (outstanding_.size() >= max_outstanding ||
      std::ranges::any_of(outstanding_, [page](const Outstanding& o) { return o.page == page; }))
    return std::nullopt;
  SharedStruct s(mmu, address(), used_size);
  if (!s.valid()) return std::nullopt;

  if (!fetched_) fetched_ = std::make_shared<kvm::FetchedPages>(arrived_);
  const u32 token = next_token();
  outstanding_.push_back({token, page, false});
  if (!workers_->fetch(host, token, fetched_)) {
    outstanding_.pop_back();
    return std::nullopt;
  }
  // This may be the end of KVM_RUN, if the VMM has taken that memory away.
  s.store<u32>(flags_at, KVM_PV_REASON_PAGE_NOT_PRESENT);
  outstanding_.back().reported = true;
  return token;
}

void AsyncPf::deliver(Mmu& mmu, Lapic& apic) {
  while (ready()) {
    if (!apic.enabled() || !apic.software_enabled()) return;
    SharedStruct s(mmu, address(), used_size);
    if (!s.valid() || s.load<u32>(token_at) != 0) return;
    u32 token = wake_all_token;
    bool tell = true;
    // Each store comes before what it stands for is forgotten: it may end KVM_RUN.
    if (wake_all_) {
      s.store<u32>(token_at, token);
      wake_all_ = false;
    } else {
      const kvm::FetchedPage fetched = *fetched_->first();
      token = fetched.token;
      const auto o = std::ranges::find(outstanding_, token, &Outstanding::token);
      tell = o != outstanding_.end() && o->reported;
      if (tell) s.store<u32>(token_at, token);
      fetched_->drop_first();
      if (o == outstanding_.end()) continue;
      if (!fetched.there && gone_.size() < max_outstanding) gone_.push_back(o->page);
      outstanding_.erase(o);
    }
    if (!tell) continue;
    apic.accept({.destination = apic.id(), .vector = static_cast<u8>(vector_)});
    return;
  }
}

void AsyncPf::poll(u64 now_ns) {
  if (now_ns < next_look_ns_ || !enabled()) return;
  next_look_ns_ = now_ns + look_interval_ns;
  kvm::Residency::of_process().look_for_swap();
}

} // namespace ring3::x86
