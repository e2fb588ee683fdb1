// SPDX-License-Identifier: Apache-2.0
#include "kvm/irq_routing.h"

#include <algorithm>
#include <cerrno>
#include <optional>
#include <utility>

namespace ring3::kvm {
namespace {

std::optional<IrqRoute> parse(const kvm_irq_routing_entry& e) {
  IrqRoute route;
  route.gsi = e.gsi;
  if (e.gsi >= max_irq_routes) return std::nullopt;
  if (e.type == KVM_IRQ_ROUTING_MSI) {
    if ((e.flags & ~static_cast<u32>(KVM_MSI_VALID_DEVID)) != 0) return std::nullopt;
    route.kind = IrqRoute::Kind::Msi;
    route.msi.address_lo = e.u.msi.address_lo;
    route.msi.address_hi = e.u.msi.address_hi;
    route.msi.data = e.u.msi.data;
    route.msi.flags = e.flags;
    route.msi.devid = e.u.msi.devid;
    return route;
  }
  if (e.type != KVM_IRQ_ROUTING_IRQCHIP || e.flags != 0) return std::nullopt;
  const u32 pin = e.u.irqchip.pin;
  switch (e.u.irqchip.irqchip) {
  case KVM_IRQCHIP_PIC_MASTER:
  case KVM_IRQCHIP_PIC_SLAVE:
    if (pin >= pic_pins / 2) return std::nullopt;
    route.kind = IrqRoute::Kind::Pic;
    route.pin = pin + (e.u.irqchip.irqchip == KVM_IRQCHIP_PIC_SLAVE ? pic_pins / 2 : 0);
    return route;
  case KVM_IRQCHIP_IOAPIC:
    if (pin >= ioapic_pins) return std::nullopt;
    route.kind = IrqRoute::Kind::IoApic;
    route.pin = pin;
    return route;
  default: return std::nullopt;
  }
}

// Master and slave are two chips to the rule "one route to a chip a GSI".
bool same_chip(const IrqRoute& a, const IrqRoute& b) {
  return a.kind == b.kind && (a.kind != IrqRoute::Kind::Pic || a.pin / 8 == b.pin / 8);
}

bool may_share_gsi(const IrqRoute& a, const IrqRoute& b) {
  return a.kind != IrqRoute::Kind::Msi && b.kind != IrqRoute::Kind::Msi && !same_chip(a, b);
}

constexpr auto by_gsi = [](const IrqRoute& a, const IrqRoute& b) { return a.gsi < b.gsi; };

kvm_irq_routing_entry chip_entry(u32 gsi, u32 chip, u32 pin) {
  kvm_irq_routing_entry e{};
  e.gsi = gsi;
  e.type = KVM_IRQ_ROUTING_IRQCHIP;
  e.u.irqchip.irqchip = chip;
  e.u.irqchip.pin = pin;
  return e;
}

} // namespace

IrqRoutes::IrqRoutes() {
  pic_gsi_.fill(-1);
  ioapic_gsi_.fill(-1);
}

std::span<const IrqRoute> IrqRoutes::of(u32 gsi) const {
  IrqRoute key;
  key.gsi = gsi;
  const auto [first, last] = std::equal_range(routes_.begin(), routes_.end(), key, by_gsi);
  return {first, last};
}

IrqRouting::IrqRouting() {
  std::vector<kvm_irq_routing_entry> entries;
  for (u32 pin = 0; pin < ioapic_pins; ++pin) {
    entries.push_back(chip_entry(pin, KVM_IRQCHIP_IOAPIC, pin));
    if (pin < pic_pins)
      entries.push_back(chip_entry(pin, pin < 8 ? KVM_IRQCHIP_PIC_MASTER : KVM_IRQCHIP_PIC_SLAVE, pin % 8));
  }
  set_routing(entries);
}

int IrqRouting::set_routing(std::span<const kvm_irq_routing_entry> entries) {
  if (entries.size() > max_irq_routes) return -EINVAL;
  const auto next = std::make_shared<IrqRoutes>();
  next->routes_.reserve(entries.size());
  for (const kvm_irq_routing_entry& entry : entries) {
    const std::optional<IrqRoute> route = parse(entry);
    if (!route) return -EINVAL;
    next->routes_.push_back(*route);
    if (route->kind == IrqRoute::Kind::Pic) next->pic_gsi_[route->pin] = static_cast<int>(route->gsi);
    if (route->kind == IrqRoute::Kind::IoApic) next->ioapic_gsi_[route->pin] = static_cast<int>(route->gsi);
  }
  std::stable_sort(next->routes_.begin(), next->routes_.end(), by_gsi);
  for (std::size_t i = 0; i < next->routes_.size(); ++i) {
    // A valid GSI has at most three routes, so this inner loop is short; an invalid one ends it at once.
    for (std::size_t j = i + 1; j < next->routes_.size() && next->routes_[j].gsi == next->routes_[i].gsi; ++j)
      if (!may_share_gsi(next->routes_[i], next->routes_[j])) return -EINVAL;
  }
  std::shared_ptr<const IrqRoutes> published = next;
  const std::scoped_lock guard(lock_);
  routes_.swap(published);
  return 0;
}

std::shared_ptr<const IrqRoutes> IrqRouting::routes() const {
  const std::scoped_lock guard(lock_);
  return routes_;
}

} // namespace ring3::kvm
