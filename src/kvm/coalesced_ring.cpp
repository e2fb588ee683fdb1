// SPDX-License-Identifier: Apache-2.0
#include "kvm/coalesced_ring.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <memory>
#include <utility>

namespace ring3::kvm {

void CoalescedRing::attach(kvm_coalesced_mmio_ring* page) {
  const std::scoped_lock guard(ring_lock_);
  if (ring_ == nullptr) ring_ = page;
}

int CoalescedRing::add(const kvm_coalesced_mmio_zone& zone) {
  if (zone.pio > 1) return -EINVAL;
  Published<Table>& zones = zones_[zone.pio != 0 ? std::to_underlying(IoSpace::pio) : 0];
  const std::scoped_lock guard(lock_);
  auto next =
      zones.latest() == nullptr ? std::make_unique<Table>() : std::make_unique<Table>(*zones.latest());
  if (next->size() >= max_zones) return -ENOSPC;
  next->push_back({.address = zone.addr, .size = zone.size});
  zones.publish(std::move(next));
  return 0;
}

int CoalescedRing::remove(const kvm_coalesced_mmio_zone& zone) {
  if (zone.pio > 1) return -EINVAL;
  Published<Table>& zones = zones_[zone.pio != 0 ? std::to_underlying(IoSpace::pio) : 0];
  const std::scoped_lock guard(lock_);
  if (zones.latest() == nullptr) return 0;
  auto next = std::make_unique<Table>(*zones.latest());
  if (std::erase_if(*next, [&zone](const Zone& z) { return z.includes(zone.addr, zone.size); }) == 0)
    return 0;
  if (next->empty()) next.reset();
  zones.publish(std::move(next));
  return 0;
}

bool CoalescedRing::write(IoSpace space, u64 address, std::span<const std::byte> data) {
  const Published<Table>& zones = zones_[std::to_underlying(space)];
  if (zones.empty()) return false;
  const auto table = zones.read();
  if (table.get() == nullptr || data.size() > sizeof kvm_coalesced_mmio::data) return false;
  if (std::ranges::none_of(*table.get(), [&](const Zone& z) { return z.includes(address, data.size()); }))
    return false;

  const std::scoped_lock guard(ring_lock_);
  if (ring_ == nullptr) return false;
  // Both indices are the VMM's to write: each is read once and checked before it is used.
  const std::atomic_ref<u32> first(ring_->first);
  const std::atomic_ref<u32> last(ring_->last);
  const u32 at = last.load(std::memory_order_relaxed);
  if (at >= entries) return false;
  const u32 after = (at + 1) % entries;
  if (after == first.load(std::memory_order_acquire)) return false;
  kvm_coalesced_mmio entry{};
  entry.phys_addr = address;
  entry.len = static_cast<u32>(data.size());
  entry.pio = space == IoSpace::pio ? 1 : 0;
  std::memcpy(entry.data, data.data(), data.size());
  std::memcpy(reinterpret_cast<std::byte*>(ring_) + header_bytes + at * sizeof entry, &entry, sizeof entry);
  last.store(after, std::memory_order_release);
  return true;
}

} // namespace ring3::kvm
