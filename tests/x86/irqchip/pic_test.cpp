// SPDX-License-Identifier: Apache-2.0
#include "machine.h"

#include <cerrno>

namespace ring3::x86 {
namespace {

using test::Machine;

struct PicTest : testing::Test {
  PicTest() { m.init_pic(); }
  void line(u32 gsi, bool level) { m.chip.set_irq_line(gsi, level); }
  void pulse(u32 gsi) {
    line(gsi, true);
    line(gsi, false);
  }
  int take() { return m.chip.pic_pending() ? m.chip.pic_acknowledge() : -1; }
  Machine m;
};

TEST_F(PicTest, EdgesAndPriorities) {
  pulse(4);
  pulse(3);
  EXPECT_GT(m.cpus[0].events.events, 0);
  EXPECT_EQ(take(), 0x23);
  EXPECT_EQ(take(), -1) << "4 is below 3";
  pulse(1);
  EXPECT_EQ(take(), 0x21);
  m.out(0x20, 0x20);
  m.out(0x20, 0x20);
  EXPECT_EQ(take(), 0x24);
  line(5, true);
  m.out(0x20, 0x64); // specific EOI
  EXPECT_EQ(take(), 0x25);
  m.out(0x20, 0x65);
  EXPECT_EQ(take(), -1) << "an edge interrupts once";
  EXPECT_EQ(m.chip.set_irq_line(6, true), 1 + 0) << "the I/O APIC has it masked";
  line(6, false);
  m.out(0x21, 0x40);
  EXPECT_EQ(m.chip.set_irq_line(6, true), -1);
  EXPECT_EQ(take(), -1);
  m.out(0x21, 0);
  EXPECT_EQ(take(), 0x26);
}

TEST_F(PicTest, SlaveAndSpurious) {
  pulse(12);
  EXPECT_EQ(take(), 0x2c);
  m.out(0x20, 0x0b);
  m.out(0xa0, 0x0b);
  EXPECT_EQ(m.in(0x20), 4);
  EXPECT_EQ(m.in(0xa0), 0x10);
  m.out(0xa0, 0x20);
  m.out(0x20, 0x20);
  m.out(0x4d1, 0x02);
  line(9, true);
  line(9, false); // a level that goes away
  EXPECT_EQ(m.chip.pic_acknowledge(), 0x2f);
  m.out(0x20, 0x20);
  EXPECT_EQ(m.chip.pic_acknowledge(), 0x27);
  EXPECT_EQ(m.in(0x20), 0) << "a spurious interrupt is not in service";
}

TEST_F(PicTest, LevelAndElcr) {
  m.out(0x4d0, 0xff);
  m.out(0x4d1, 0xff);
  EXPECT_EQ(m.in(0x4d0), 0xf8);
  EXPECT_EQ(m.in(0x4d1), 0xde);
  line(10, true);
  EXPECT_EQ(take(), 0x2a);
  m.out(0xa0, 0x20);
  m.out(0x20, 0x20);
  EXPECT_EQ(take(), 0x2a) << "still up";
  line(10, false);
  m.out(0xa0, 0x20);
  m.out(0x20, 0x20);
  EXPECT_EQ(take(), -1);
}

TEST_F(PicTest, SharedLineIsUpWhileAnyoneHoldsIt) {
  m.out(0x4d1, 0x04);
  m.chip.set_irq_line(10, true, 0);
  m.chip.set_irq_line(10, true, 1);
  m.chip.set_irq_line(10, false, 0);
  EXPECT_EQ(take(), 0x2a);
  m.chip.set_irq_line(10, false, 1);
  m.out(0xa0, 0x20);
  m.out(0x20, 0x20);
  EXPECT_EQ(take(), -1);
}

TEST_F(PicTest, Rotation) {
  pulse(0);
  EXPECT_EQ(take(), 0x20);
  m.out(0x20, 0xa0); // rotate on EOI: 0 becomes the lowest
  pulse(0);
  pulse(7);
  EXPECT_EQ(take(), 0x27);
  m.out(0x20, 0x20);
  EXPECT_EQ(take(), 0x20);
  m.out(0x20, 0x20);
  m.out(0x20, 0xc4); // 4 is the lowest: 5 comes first
  pulse(4);
  pulse(5);
  EXPECT_EQ(take(), 0x25);
}

TEST_F(PicTest, SpecialMaskMode) {
  pulse(1);
  EXPECT_EQ(take(), 0x21);
  pulse(6);
  EXPECT_EQ(take(), -1);
  m.out(0x21, 0x02);
  EXPECT_EQ(take(), -1);
  m.out(0x20, 0x68); // a masked line in service blocks nobody
  EXPECT_EQ(take(), 0x26);
  m.out(0x20, 0x20);
  m.out(0x20, 0x0b);
  EXPECT_EQ(m.in(0x20), 0x02) << "not cleared by the non-specific EOI";
}

TEST_F(PicTest, AutoEoiAndPoll) {
  m.init_pic(3);
  pulse(3);
  EXPECT_EQ(take(), 0x23);
  m.out(0x20, 0x0b);
  EXPECT_EQ(m.in(0x20), 0);
  m.init_pic(1);
  m.out(0x20, 0x0c);
  EXPECT_EQ(m.in(0x20), 0) << "nothing pending";
  pulse(5);
  m.out(0x20, 0x0c);
  EXPECT_EQ(m.in(0x20), 0x85);
  m.out(0x20, 0x0b);
  EXPECT_EQ(m.in(0x20), 0x20);
  EXPECT_FALSE(m.chip.pic_pending());
}

TEST_F(PicTest, WideAccessIsBytes) {
  u32 value = 0;
  m.out(0x21, 0x5a);
  EXPECT_TRUE(m.chip.pio_read(0x20, 2, value));
  EXPECT_EQ(value >> 8, 0x5au);
  EXPECT_TRUE(m.chip.pio_read(0x21, 4, value));
  EXPECT_EQ(value, 0xffffff5au);
  EXPECT_FALSE(m.chip.pio_read(0x22, 1, value));
  EXPECT_FALSE(m.chip.pio_read(0x40, 1, value)) << "no PIT";
  EXPECT_FALSE(m.chip.pio_write(0x61, 1, 0));
}

TEST_F(PicTest, StateRoundTrip) {
  pulse(3);
  EXPECT_EQ(take(), 0x23);
  pulse(1);
  kvm_irqchip c{};
  c.chip_id = KVM_IRQCHIP_PIC_MASTER;
  EXPECT_EQ(m.chip.get_state(c), 0);
  EXPECT_EQ(c.chip.pic.irq_base, 0x20);
  EXPECT_EQ(c.chip.pic.isr, 8);
  EXPECT_EQ(c.chip.pic.irr, 2);
  Machine other;
  EXPECT_EQ(other.chip.set_state(c), 0);
  EXPECT_TRUE(other.chip.pic_pending());
  EXPECT_EQ(other.chip.pic_acknowledge(), 0x21);
  c.chip_id = 3;
  EXPECT_EQ(m.chip.get_state(c), -EINVAL);
  EXPECT_EQ(m.chip.set_state(c), -EINVAL);
}

} // namespace
} // namespace ring3::x86
