// SPDX-License-Identifier: Apache-2.0
// The calls of a VM that concern eventfds, coalesced writes, dirty pages and statistics.
#include "x86/api/vcpu.h"
#include "x86/api/vcpu_report.h"
#include "x86/api/vm.h"

#include <cerrno>
#include <fmt/format.h>

namespace ring3::x86 {

int Vm::coalesced_zone(const kvm_coalesced_mmio_zone& zone, bool add) {
  return add ? coalesced_.add(zone) : coalesced_.remove(zone);
}

int Vm::irqfd(const kvm_irqfd& args) {
  // In KVM's order: unknown flags, then whether there are chips, then the descriptors.
  constexpr u32 known = KVM_IRQFD_FLAG_DEASSIGN | KVM_IRQFD_FLAG_RESAMPLE;
  const bool assigns = (args.flags & KVM_IRQFD_FLAG_DEASSIGN) == 0;
  if ((args.flags & ~known) != 0) return -EINVAL;
  if (assigns) {
    const std::scoped_lock guard(lock_);
    if (!irqchip_) return -EINVAL;
    if ((args.flags & KVM_IRQFD_FLAG_RESAMPLE) != 0 && !irqchip_->has_pic()) return -EINVAL;
  }
  return irqfds_.control(args);
}

void Vm::drive_line(u32 gsi, bool level, kvm::IrqFds::Source source) {
  const bool resampled = source == kvm::IrqFds::Source::resampled;
  irqchip_->set_irq_line(gsi, level, resampled ? IrqChip::resampler_source : IrqChip::user_source);
}

int Vm::clear_dirty_log(const kvm_clear_dirty_log& args, std::span<const u64> bitmap) {
  const std::scoped_lock guard(lock_);
  bool cleared = false;
  const int result = slots_.clear_dirty_log(args, bitmap, cleared);
  if (cleared) revoke_writes();
  return result;
}

int Vm::set_manual_dirty_protect(u64 flags) {
  const std::scoped_lock guard(lock_);
  return slots_.dirty_log().set_manual_protect(flags);
}

int Vm::enable_dirty_ring(u32 bytes) {
  const std::scoped_lock guard(lock_);
  return slots_.dirty_log().enable_ring(bytes, !vcpus_.empty());
}

int Vm::reset_dirty_rings() {
  const std::scoped_lock guard(lock_);
  if (!slots_.dirty_log().uses_ring()) return -EINVAL;
  u32 count = 0;
  for (const auto& v : vcpus_)
    count += v->generic().dirty_ring()->reset([this](u32 slot, u64 page) { slots_.reset_dirty(slot, page); });
  if (count != 0) revoke_writes();
  return static_cast<int>(count);
}

void Vm::revoke_writes() {
  const u64 valid_from = slots_.dirty_log().revoke_writes();
  // A vCPU that sleeps or is in user space will see the number when it comes back.
  for (const auto& v : vcpus_) v->generic().post_quietly(kvm::request::protect);
  for (const auto& v : vcpus_) v->generic().wait_for_revoked_writes(valid_from);
  ++stats_->remote_tlb_flush_requests;
  ++stats_->remote_tlb_flush;
}

void Vm::count_pages() {
  const kvm::MappingSizes sizes = slots_.mapping_sizes();
  stats_->pages_4k.set(sizes.pages_4k);
  stats_->pages_2m.set(sizes.pages_2m);
}

void Vm::refresh_stats() {
  const std::scoped_lock guard(lock_);
  count_pages();
}

int Vm::open_stats() {
  const std::scoped_lock guard(lock_);
  count_pages();
  return stats_.open();
}

std::string Vm::stats_json() {
  const std::scoped_lock guard(lock_);
  count_pages();
  std::string out =
      fmt::format("\"vm\":{{{}}},\"vcpus\":[", kvm::stats_json(kvm::StatsLayout::vm(), &*stats_));
  for (const auto& v : vcpus_) {
    out += fmt::format("{}{{{}{}}}", v == vcpus_.front() ? "" : ",",
                       vcpu_members(v->generic().id(), v->instructions(), v->generic().stats()),
                       v->executor_stats_json());
  }
  return out + ']';
}

} // namespace ring3::x86
