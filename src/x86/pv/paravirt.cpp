// SPDX-License-Identifier: Apache-2.0
#include "x86/pv/paravirt.h"

#include <asm/kvm_para.h>

namespace ring3::x86 {

bool Paravirt::has_msr(u32 index) const {
  switch (index) {
  case MSR_KVM_WALL_CLOCK:
  case MSR_KVM_SYSTEM_TIME: return features_.has(KVM_FEATURE_CLOCKSOURCE);
  case MSR_KVM_WALL_CLOCK_NEW:
  case MSR_KVM_SYSTEM_TIME_NEW: return features_.has(KVM_FEATURE_CLOCKSOURCE2);
  case MSR_KVM_ASYNC_PF_EN: return features_.has(KVM_FEATURE_ASYNC_PF);
  case MSR_KVM_STEAL_TIME: return features_.has(KVM_FEATURE_STEAL_TIME);
  case MSR_KVM_PV_EOI_EN: return features_.has(KVM_FEATURE_PV_EOI);
  case MSR_KVM_POLL_CONTROL: return features_.has(KVM_FEATURE_POLL_CONTROL);
  case MSR_KVM_ASYNC_PF_INT:
  case MSR_KVM_ASYNC_PF_ACK: return features_.has(KVM_FEATURE_ASYNC_PF_INT);
  default: return false;
  }
}

bool Paravirt::read_msr(u32 index, u64& value) const {
  switch (index) {
  case MSR_KVM_WALL_CLOCK:
  case MSR_KVM_WALL_CLOCK_NEW: value = kvm_clock_.wall_clock_msr(); return true;
  case MSR_KVM_SYSTEM_TIME:
  case MSR_KVM_SYSTEM_TIME_NEW: value = system_time_.msr(); return true;
  case MSR_KVM_ASYNC_PF_EN: value = async_pf_.control(); return true;
  case MSR_KVM_STEAL_TIME: value = steal_.msr(); return true;
  case MSR_KVM_PV_EOI_EN: value = eoi_.msr(); return true;
  case MSR_KVM_POLL_CONTROL: value = poll_control_; return true;
  case MSR_KVM_ASYNC_PF_INT: value = async_pf_.vector(); return true;
  case MSR_KVM_ASYNC_PF_ACK: value = 0; return true;
  default: return false;
  }
}

bool Paravirt::write_msr(u32 index, u64 value) {
  switch (index) {
  case MSR_KVM_WALL_CLOCK:
  case MSR_KVM_WALL_CLOCK_NEW:
    kvm_clock_.set_wall_clock_msr(value);
    wall_clock_wanted_ = true;
    request(pv_request::publish);
    return true;
  case MSR_KVM_SYSTEM_TIME:
  case MSR_KVM_SYSTEM_TIME_NEW:
    system_time_.set_msr(value);
    request(pv_request::clock);
    return true;
  case MSR_KVM_ASYNC_PF_EN: return set_async_pf_control(value);
  case MSR_KVM_STEAL_TIME:
    if (!steal_.set_msr(value)) return false;
    request(pv_request::publish);
    return true;
  case MSR_KVM_PV_EOI_EN: return set_pv_eoi(value);
  case MSR_KVM_POLL_CONTROL:
    if ((value & ~u64{1}) != 0) return false;
    poll_control_ = value;
    return true;
  case MSR_KVM_ASYNC_PF_INT:
    // KVM refuses 0 as well, unlike that of _EN. But QEMU (-cpu host, kernel-irqchip=off) writes it unasked
    // and then ends itself.
    return lapic_ != nullptr ? async_pf_.set_vector(value) : value == 0;
  case MSR_KVM_ASYNC_PF_ACK:
    // The guest has room for the next token.
    if ((value & 1) != 0 && async_pf_.ready()) request(pv_request::publish);
    return true;
  default: return false;
  }
}

bool Paravirt::writable_memory(u64 address, u64 size) const {
  const GuestPhys at{address};
  if (at.page_offset() + size > page_size) return false;
  // The Mmu's own view may be older than this, outside KVM_RUN.
  const kvm::SlotSnapshot slots = slots_.snapshot();
  const kvm::MemorySlot* const slot = slots.find(at);
  return slot != nullptr && !slot->read_only();
}

bool Paravirt::set_async_pf_control(u64 value) {
  if (!AsyncPf::well_formed(value, features_)) return false;
  if (lapic_ == nullptr) return value == 0;
  if (AsyncPf::enables(value) && !writable_memory(value & ~u64{63}, sizeof(u64))) return false;
  async_pf_.set_control(value);
  if (async_pf_.ready()) request(pv_request::publish);
  return true;
}

bool Paravirt::set_pv_eoi(u64 value) {
  if (!PvEoi::well_formed(value)) return false;
  if ((value & KVM_MSR_ENABLED) != 0 && !writable_memory(value & ~u64{KVM_MSR_ENABLED}, sizeof(u8)))
    return false;
  settle_eoi();
  eoi_.set_msr(value);
  return true;
}

void Paravirt::reset() {
  system_time_ = VcpuClock{};
  steal_.reset();
  eoi_.reset();
  async_pf_.reset();
}

int Paravirt::notify_paused() {
  const int result = system_time_.notify_paused();
  if (result == 0) request(pv_request::clock);
  return result;
}

bool Paravirt::prepare(u32 requests, u64 tsc_khz) {
  settle_eoi();
  if (steal_.enabled()) {
    const u64 now = clock_.now_ns();
    if (steal_.enter(mmu_, now) && features_.has(KVM_FEATURE_PV_TLB_FLUSH)) mmu_.flush_all();
    if (steal_.due(now)) steal_.record(mmu_, now, kvm::thread_run_delay());
  }
  if (wall_clock_wanted_) {
    wall_clock_wanted_ = false;
    write_wall_clock(mmu_, kvm_clock_, GuestPhys{kvm_clock_.wall_clock_msr()});
  }
  if (lapic_ != nullptr && async_pf_.ready()) async_pf_.deliver(mmu_, *lapic_);
  bool disagrees = false;
  if ((requests & pv_request::clock) != 0 && system_time_.active()) {
    const bool stable = kvm_clock_.same_frequency(tsc_khz, disagrees);
    const KvmClock::Reference reference = kvm_clock_.reference();
    system_time_.update(mmu_, reference, tsc_.tsc_at(reference.host_tsc), tsc_khz, stable);
  }
  return disagrees;
}

void Paravirt::leave() {
  settle_eoi();
  if (steal_.enabled()) steal_.leave(mmu_, clock_.now_ns());
}

std::optional<s64> Paravirt::hypercall(const Hypercall& call, IrqChip* irqchip, u64 exits, u32 caller) {
  return kvm_hypercall({.irqchip = irqchip,
                        .mmu = mmu_,
                        .features = features_,
                        .clock = clock_,
                        .tsc = tsc_,
                        .exits = exits,
                        .caller = caller},
                       call);
}

} // namespace ring3::x86
