// SPDX-License-Identifier: Apache-2.0
#include "machine.h"

#include <cerrno>

namespace ring3::x86 {
namespace {

using test::Machine;

constexpr u64 level = 1 << 15;
constexpr u64 masked = 1 << 16;
constexpr u32 remote_irr = 1 << 14;

TEST(IoApic, Registers) {
  Machine m;
  EXPECT_EQ(m.ioapic_read(1), 0x170011u);
  m.ioapic_write(0, 0xffffffff);
  EXPECT_EQ(m.ioapic_read(0), 0x0f000000u);
  EXPECT_EQ(m.ioapic_read(2), 0x0f000000u);
  EXPECT_EQ(m.ioapic_read(0x10), 0x10000u);
  m.redirect(23, ~u64{0});
  EXPECT_EQ(m.ioapic_read(0x3e), 0x1afffu) << "status and remote IRR are read-only";
  EXPECT_EQ(m.ioapic_read(0x40), ~0u);
  m.ioapic_write(0xff, ~0u);
  u8 page[64] = {};
  for (u32 size = 0; size <= 64; ++size)
    for (const u32 offset : {0u, 1u, 0xfu, 0x10u, 0x12u, 0x40u, 0xfffu}) {
      EXPECT_TRUE(m.chip.mmio_read(IoApic::default_base + offset, page, size));
      EXPECT_TRUE(m.chip.mmio_write(IoApic::default_base + offset, page, size));
    }
  EXPECT_FALSE(m.chip.mmio_read(IoApic::default_base + 0x1000, page, 4));
  EXPECT_FALSE(m.chip.mmio_read(IoApic::default_base - 1, page, 4));
}

TEST(IoApic, EdgeOnceAndCoalesced) {
  Machine m;
  m.redirect(20, 0x76);
  EXPECT_EQ(m.chip.set_irq_line(20, true), 1);
  EXPECT_EQ(m.chip.set_irq_line(20, true), 0);
  EXPECT_EQ(m.take(), 0x76);
  m.eoi();
  EXPECT_EQ(m.take(), -1);
  m.chip.set_irq_line(20, false);
  m.redirect(20, 0x76 | masked);
  EXPECT_EQ(m.chip.set_irq_line(20, true), -1);
  m.redirect(20, 0x76);
  EXPECT_EQ(m.take(), -1) << "a masked edge is lost";
}

TEST(IoApic, LevelUntilLowered) {
  Machine m;
  m.redirect(14, 0x77 | level);
  EXPECT_EQ(m.chip.set_irq_line(20, true), -1) << "masked";
  m.chip.set_irq_line(14, true);
  EXPECT_TRUE(m.ioapic_read(0x10 + 28) & remote_irr);
  EXPECT_EQ(m.take(), 0x77);
  EXPECT_NE(m.read(0, 0x1b0), 0u) << "TMR";
  EXPECT_EQ(m.take(), -1);
  m.eoi();
  EXPECT_EQ(m.take(), 0x77) << "still up";
  m.chip.set_irq_line(14, false);
  m.eoi();
  EXPECT_EQ(m.take(), -1);
  EXPECT_FALSE(m.ioapic_read(0x10 + 28) & remote_irr);
  m.redirect(14, 0x77 | level | masked);
  m.chip.set_irq_line(14, true);
  EXPECT_EQ(m.take(), -1);
  m.redirect(14, 0x77 | level);
  EXPECT_EQ(m.take(), 0x77) << "a level waits behind the mask";
}

TEST(IoApic, TmrFollowsTheTriggerMode) {
  Machine m;
  const auto once = [&m](u64 mode) {
    m.redirect(20, 0x79 | mode);
    m.chip.set_irq_line(20, true);
    m.chip.set_irq_line(20, false);
    EXPECT_EQ(m.take(), 0x79);
    const bool tmr = (m.read(0, 0x1b0) >> 25 & 1) != 0;
    m.eoi();
    return tmr;
  };
  EXPECT_FALSE(once(0));
  EXPECT_TRUE(once(level));
  EXPECT_TRUE(once(level));
  EXPECT_FALSE(once(0));
}

// As the kvm-unit-tests do it: the handler points the pin at another CPU while it is in service.
TEST(IoApic, ReconfiguredInService) {
  Machine m(2);
  m.redirect(14, 0x84 | level);
  m.chip.set_irq_line(14, true);
  EXPECT_EQ(m.take(), 0x84);
  m.chip.set_irq_line(14, false);
  m.ioapic_write(0x10 + 29, 1 << 24);
  m.eoi();
  EXPECT_EQ(m.take(), -1);
  EXPECT_FALSE(m.ioapic_read(0x10 + 28) & remote_irr);
  m.chip.set_irq_line(14, true);
  EXPECT_EQ(m.take(1), 0x84);
  m.redirect(14, 0x84 | u64{1} << 56); // to edge and back: frees a stuck remote IRR
  EXPECT_FALSE(m.ioapic_read(0x10 + 28) & remote_irr);
}

TEST(IoApic, NoTargetLeavesNoRemoteIrr) {
  Machine m;
  m.redirect(14, 0x84 | level | u64{9} << 56);
  EXPECT_EQ(m.chip.set_irq_line(14, true), 1) << "the PIC took it";
  EXPECT_FALSE(m.ioapic_read(0x10 + 28) & remote_irr);
}

TEST(IoApic, DeliveryModesAndDestinations) {
  Machine m(2);
  m.write(1, 0xd0, 2u << 24);
  m.redirect(20, 0x50 | 1 << 11 | u64{2} << 56);
  m.chip.set_irq_line(20, true);
  EXPECT_EQ(m.take(1), 0x50);
  m.redirect(21, 0x400 | u64{1} << 56 | level);
  m.chip.set_irq_line(21, true);
  EXPECT_EQ(m.cpus[1].events.nmis, 1);
  m.redirect(22, 0x50 | u64{0xff} << 56);
  EXPECT_EQ(m.chip.set_irq_line(22, true), 2);
}

TEST(IoApic, StormIsPutOff) {
  Machine m;
  m.redirect(20, 0x77 | level);
  m.chip.set_irq_line(20, true);
  int taken = 0;
  while (taken < 30'000 && m.take() == 0x77) {
    ++taken;
    m.eoi();
  }
  EXPECT_EQ(taken, 10'000);
  m.advance(IoApic::storm_delay_ns);
  EXPECT_EQ(m.take(), 0x77);
  m.chip.set_irq_line(20, false);
  m.eoi();
  EXPECT_EQ(m.take(), -1);
}

TEST(IoApic, Msi) {
  Machine m(2);
  kvm_msi msi{};
  msi.address_lo = 0xfee01000;
  msi.data = 0x66;
  EXPECT_EQ(m.chip.send_msi(msi), 1);
  EXPECT_EQ(m.take(1), 0x66);
  msi.address_lo = 0xfee05000;
  EXPECT_EQ(m.chip.send_msi(msi), -1);
  msi.flags = 2;
  EXPECT_EQ(m.chip.send_msi(msi), -EINVAL);
  kvm_irq_routing_entry e{};
  e.gsi = 40;
  e.type = KVM_IRQ_ROUTING_MSI;
  e.u.msi.address_lo = 0xfee00000;
  e.u.msi.data = 0x67;
  EXPECT_EQ(m.chip.set_routing({&e, 1}), 0);
  EXPECT_EQ(m.chip.set_irq_line(40, true), 1);
  EXPECT_EQ(m.chip.set_irq_line(40, false), -1);
  EXPECT_EQ(m.take(0), 0x67);
  EXPECT_EQ(m.chip.set_irq_line(4, true), -1) << "no longer routed";
}

TEST(IoApic, StateRoundTrip) {
  Machine m;
  m.redirect(14, 0x77 | level);
  m.redirect(20, 0x60);
  m.chip.set_irq_line(14, true);
  m.chip.set_irq_line(20, true);
  EXPECT_EQ(m.take(), 0x77);
  kvm_irqchip c{};
  c.chip_id = KVM_IRQCHIP_IOAPIC;
  EXPECT_EQ(m.chip.get_state(c), 0);
  EXPECT_EQ(c.chip.ioapic.base_address, 0xfec00000u);
  EXPECT_EQ(c.chip.ioapic.irr, 1u << 14) << "a sent edge is not pending";
  EXPECT_TRUE(c.chip.ioapic.redirtbl[14].fields.remote_irr);
  Machine other;
  EXPECT_EQ(other.chip.set_state(c), 0);
  EXPECT_EQ(other.take(), -1) << "in service";
  EXPECT_EQ(other.ioapic_read(0x10 + 40), 0x60u);
}

} // namespace
} // namespace ring3::x86
