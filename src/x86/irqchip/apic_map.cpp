// SPDX-License-Identifier: Apache-2.0
#include "x86/irqchip/apic_map.h"

#include "x86/irqchip/lapic.h"

#include <algorithm>
#include <cerrno>
#include <tuple>

namespace ring3::x86 {
namespace {

constexpr u32 xapic_broadcast = 0xff;
constexpr u32 x2apic_broadcast = 0xffff'ffff;

bool is_ordinary(DeliveryMode mode) {
  return mode == DeliveryMode::Fixed || mode == DeliveryMode::LowestPriority;
}

} // namespace

int ApicMap::attach(Lapic& apic) {
  {
    const std::scoped_lock guard(lock_);
    const u32 n = count_.load(std::memory_order_relaxed);
    if (apic.id() >= max_ids || n >= max_apics) return -EINVAL;
    if (by_id_[apic.id()].load(std::memory_order_relaxed) != nullptr) return -EEXIST;
    by_id_[apic.id()].store(&apic, std::memory_order_release);
    all_[n].store(&apic, std::memory_order_relaxed);
    count_.store(n + 1, std::memory_order_release);
  }
  refresh();
  return 0;
}

void ApicMap::refresh() {
  const std::scoped_lock guard(lock_);
  bool id_changed = false;
  bool all_x2apic = true;
  for_each([&](const Lapic& apic) {
    const bool x2apic = apic.x2apic_mode();
    all_x2apic &= x2apic;
    id_changed |= !x2apic && apic.xapic_id() != (apic.id() & 0xff);
  });
  xapic_id_changed_.store(id_changed, std::memory_order_relaxed);
  all_x2apic_.store(all_x2apic, std::memory_order_relaxed);
}

bool ApicMap::is_broadcast(const ApicMessage& message, const Lapic* source, const Lapic& target) const {
  if (!target.x2apic_mode()) return message.destination == xapic_broadcast;
  if (message.destination == x2apic_broadcast) return true;
  return message.destination == xapic_broadcast && source == nullptr &&
         broadcast_quirk_.load(std::memory_order_relaxed);
}

bool ApicMap::is_target(const ApicMessage& message, const Lapic& apic) const {
  if (is_broadcast(message, nullptr, apic)) return true;
  return message.logical ? apic.matches_logical(message.destination)
                         : apic.matches_physical(message.destination);
}

template <class Function>
void ApicMap::for_each_target(const ApicMessage& message, const Lapic* source, Function function) const {
  const u32 destination = message.destination;
  if (message.shorthand != Shorthand::None) {
    for_each([&](Lapic& apic) {
      const bool self = &apic == source;
      const bool wanted =
          message.shorthand == Shorthand::AllIncludingSelf || self == (message.shorthand == Shorthand::Self);
      if (wanted && apic.enabled()) function(apic);
    });
    return;
  }
  const bool may_be_broadcast = destination == xapic_broadcast || destination == x2apic_broadcast;
  if (!may_be_broadcast) {
    if (!message.logical && !xapic_id_changed_.load(std::memory_order_relaxed)) {
      Lapic* const apic = find(destination);
      if (apic != nullptr && apic->enabled() && apic->matches_physical(destination)) function(*apic);
      return;
    }
    if (message.logical && all_x2apic_.load(std::memory_order_relaxed)) {
      const u64 first = static_cast<u64>(destination >> 16) * 16;
      for (u32 n = 0; n < 16 && first + n < max_ids; ++n) {
        Lapic* const apic = find(static_cast<u32>(first) + n);
        if (apic != nullptr && apic->enabled() && apic->matches_logical(destination)) function(*apic);
      }
      return;
    }
  }
  for_each([&](Lapic& apic) {
    if (!apic.enabled()) return;
    const bool matches =
        (may_be_broadcast && is_broadcast(message, source, apic)) ||
        (message.logical ? apic.matches_logical(destination) : apic.matches_physical(destination));
    if (matches) function(apic);
  });
}

// SDM vol. 3, 11.6.2.4: the lowest task priority, then whoever has had the fewest.
int ApicMap::deliver_lowest(const ApicMessage& message, const Lapic* source) const {
  Lapic* best = nullptr;
  std::tuple<u32, u32> best_rank;
  bool matched = false;
  for_each_target(message, source, [&](Lapic& apic) {
    matched = true;
    if (!apic.software_enabled()) return;
    const std::tuple rank{apic.task_priority_class(), apic.arbitration()};
    if (best != nullptr && rank >= best_rank) return;
    best = &apic;
    best_rank = rank;
  });
  if (best == nullptr) return matched ? 0 : -1;
  best->count_arbitration();
  return best->accept(message) ? 1 : 0;
}

int ApicMap::deliver(const ApicMessage& message, const Lapic* source) const {
  const bool to_one = message.mode == DeliveryMode::LowestPriority || message.redirection_hint;
  if (to_one && is_ordinary(message.mode)) return deliver_lowest(message, source);
  int reached = -1;
  for_each_target(message, source,
                  [&](Lapic& apic) { reached = std::max(reached, 0) + (apic.accept(message) ? 1 : 0); });
  return reached;
}

} // namespace ring3::x86
