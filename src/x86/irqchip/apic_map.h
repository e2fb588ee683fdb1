// SPDX-License-Identifier: Apache-2.0
// Which local APICs a message is for (SDM vol. 3, 11.6.2): physical and logical destinations, broadcasts,
// shorthands, lowest priority. Delivery takes no lock; one destination is O(1), an x2APIC cluster O(16),
// anything else O(vCPUs).
#pragma once

#include "base/types.h"
#include "x86/irqchip/apic_message.h"

#include <array>
#include <atomic>
#include <mutex>

namespace ring3::x86 {

class ApicMap {
 public:
  static constexpr u32 max_ids = 4096; // KVM_MAX_VCPU_IDS
  static constexpr u32 max_apics = 1024;

  // 0, -EINVAL for an ID or a number out of range, -EEXIST for an ID that is taken. Any thread.
  int attach(Lapic& apic);
  // The APIC with this x2APIC ID, or null. Any thread.
  Lapic* find(u32 id) const { return id < max_ids ? by_id_[id].load(std::memory_order_acquire) : nullptr; }

  // See ApicBus::deliver(). Any thread.
  int deliver(const ApicMessage& message, const Lapic* source) const;

  // Is this message, which comes from a device, for that APIC? Any thread.
  bool is_target(const ApicMessage& message, const Lapic& apic) const;

  // To call when a mode or an xAPIC ID has changed. Any thread.
  void refresh();

  // KVM's quirk, on by default: 0xff from a device is a broadcast for an x2APIC too.
  void set_device_broadcast_quirk(bool on) { broadcast_quirk_.store(on, std::memory_order_relaxed); }

  template <class Function> void for_each(Function function) const {
    const u32 n = count_.load(std::memory_order_acquire);
    for (u32 i = 0; i < n; ++i) function(*all_[i].load(std::memory_order_relaxed));
  }

 private:
  bool is_broadcast(const ApicMessage& message, const Lapic* source, const Lapic& target) const;
  template <class Function>
  void for_each_target(const ApicMessage& message, const Lapic* source, Function function) const;
  int deliver_lowest(const ApicMessage& message, const Lapic* source) const;

  std::array<std::atomic<Lapic*>, max_ids> by_id_{};
  std::array<std::atomic<Lapic*>, max_apics> all_{};
  std::atomic<u32> count_{0};
  // What makes the indexed look-ups wrong: then everyone is asked. A change in flight may be seen late, as on
  // a bus.
  std::atomic<bool> xapic_id_changed_{false};
  std::atomic<bool> all_x2apic_{false};
  std::atomic<bool> broadcast_quirk_{true};
  std::mutex lock_; // attach() and refresh()
};

} // namespace ring3::x86
