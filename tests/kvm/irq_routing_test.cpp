// SPDX-License-Identifier: Apache-2.0
#include "kvm/irq_routing.h"

#include <cerrno>
#include <gtest/gtest.h>
#include <vector>

namespace ring3::kvm {
namespace {

kvm_irq_routing_entry chip(u32 gsi, u32 which, u32 pin) {
  kvm_irq_routing_entry e{};
  e.gsi = gsi;
  e.type = KVM_IRQ_ROUTING_IRQCHIP;
  e.u.irqchip = {.irqchip = which, .pin = pin};
  return e;
}

kvm_irq_routing_entry msi(u32 gsi) {
  kvm_irq_routing_entry e{};
  e.gsi = gsi;
  e.type = KVM_IRQ_ROUTING_MSI;
  e.u.msi.data = 0x30;
  return e;
}

TEST(IrqRouting, DefaultIsKvms) {
  const IrqRouting routing;
  const auto routes = routing.routes();
  for (u32 gsi = 0; gsi < 24; ++gsi) {
    EXPECT_EQ(routes->of(gsi).size(), gsi < 16 ? 2u : 1u);
    EXPECT_EQ(routes->gsi_of_ioapic(gsi), static_cast<int>(gsi));
    for (const IrqRoute& r : routes->of(gsi)) EXPECT_EQ(r.pin, gsi);
  }
  EXPECT_EQ(routes->gsi_of_pic(15), 15);
  EXPECT_TRUE(routes->of(24).empty());
  EXPECT_TRUE(routes->of(~0u).empty());
}

TEST(IrqRouting, SetsAndRejects) {
  IrqRouting routing;
  const auto set = [&routing](std::vector<kvm_irq_routing_entry> v) { return routing.set_routing(v); };
  EXPECT_EQ(set({chip(0, KVM_IRQCHIP_PIC_MASTER, 0), chip(0, KVM_IRQCHIP_IOAPIC, 2), msi(4095)}), 0);
  const auto kept = routing.routes();
  EXPECT_EQ(kept->gsi_of_ioapic(2), 0);
  EXPECT_EQ(kept->gsi_of_ioapic(0), -1);
  EXPECT_EQ(kept->of(4095)[0].msi.data, 0x30u);
  EXPECT_EQ(set({msi(4096)}), -EINVAL);
  EXPECT_EQ(set({chip(0, KVM_IRQCHIP_IOAPIC, 24)}), -EINVAL);
  EXPECT_EQ(set({chip(0, KVM_IRQCHIP_PIC_SLAVE, 8)}), -EINVAL);
  EXPECT_EQ(set({chip(0, 3, 0)}), -EINVAL);
  EXPECT_EQ(set({msi(1), msi(1)}), -EINVAL);
  EXPECT_EQ(set({msi(1), chip(1, KVM_IRQCHIP_IOAPIC, 1)}), -EINVAL);
  EXPECT_EQ(set({chip(1, KVM_IRQCHIP_IOAPIC, 1), chip(1, KVM_IRQCHIP_IOAPIC, 2)}), -EINVAL);
  auto flagged = chip(1, KVM_IRQCHIP_IOAPIC, 1);
  flagged.flags = 1;
  EXPECT_EQ(set({flagged}), -EINVAL);
  EXPECT_EQ(set(std::vector(4097, msi(0))), -EINVAL);
  EXPECT_EQ(routing.routes(), kept) << "errors change nothing";
  EXPECT_EQ(set({}), 0);
  EXPECT_TRUE(routing.routes()->of(0).empty());
}

} // namespace
} // namespace ring3::kvm
