// SPDX-License-Identifier: Apache-2.0
#include "machine.h"

#include <cerrno>

namespace ring3::x86 {
namespace {

using test::Machine;

struct PitTest : testing::Test {
  PitTest() {
    m.init_pic();
    EXPECT_EQ(m.chip.create_pit({.flags = KVM_PIT_SPEAKER_DUMMY, .pad = {}}), 0);
  }
  void load(u32 channel, u8 mode, u16 count) {
    m.out(0x43, static_cast<u8>(channel << 6 | 0x30 | mode << 1));
    m.out(static_cast<u16>(0x40 + channel), static_cast<u8>(count));
    m.out(static_cast<u16>(0x40 + channel), static_cast<u8>(count >> 8));
  }
  u16 counter(u32 channel) {
    m.out(0x43, static_cast<u8>(channel << 6));
    const u8 low = m.in(static_cast<u16>(0x40 + channel));
    return static_cast<u16>(m.in(static_cast<u16>(0x40 + channel)) << 8 | low);
  }
  bool output2() { return (m.in(0x61) & 0x20) != 0; }
  void ticks(u64 n) { m.advance((n * 1'000'000'000 + Pit::frequency_hz - 1) / Pit::frequency_hz); }
  bool irq0() {
    if (!m.chip.pic_pending()) return false;
    EXPECT_EQ(m.chip.pic_acknowledge(), 0x20);
    m.out(0x20, 0x20);
    return true;
  }
  Machine m;
};

TEST_F(PitTest, Creation) {
  EXPECT_EQ(m.chip.create_pit({}), -EEXIST);
  Machine other;
  EXPECT_EQ(other.chip.create_pit({.flags = 2, .pad = {}}), -EINVAL);
  kvm_pit_state2 s{};
  EXPECT_EQ(other.chip.get_pit_state(s), -ENXIO);
  EXPECT_EQ(other.chip.set_pit_reinject(false), -ENXIO);
  EXPECT_EQ(other.chip.create_pit({}), 0);
  u32 value = 0;
  EXPECT_FALSE(other.chip.pio_read(0x61, 1, value));
  EXPECT_TRUE(other.chip.pio_read(0x43, 1, value));
  ticks(1'000'000);
  EXPECT_FALSE(irq0()) << "not programmed";
}

TEST_F(PitTest, RateGenerator) {
  load(0, 2, 11932); // 100 Hz
  int n = 0;
  for (int i = 0; i < 1000; ++i) {
    m.advance(1'000'000);
    n += irq0();
  }
  EXPECT_NEAR(n, 100, 1);
}

TEST_F(PitTest, OneShot) {
  load(0, 0, 1193);
  ticks(1192);
  EXPECT_FALSE(irq0());
  EXPECT_LE(counter(0), 1);
  ticks(2);
  EXPECT_TRUE(irq0());
  ticks(100000);
  EXPECT_FALSE(irq0());
}

TEST_F(PitTest, TicksWaitForAcknowledgement) {
  load(0, 2, 11932);
  m.advance(50'100'000); // five ticks, all at once
  int n = 0;
  while (irq0()) ++n;
  EXPECT_EQ(n, 5);
  m.advance(30'000'000);
  m.out(0x21, 1);
  m.out(0x21, 0); // unmasking forgets what is owed
  n = 0;
  while (irq0()) ++n;
  EXPECT_EQ(n, 1);
  EXPECT_EQ(m.chip.set_pit_reinject(false), 0);
  m.advance(50'000'000);
  n = 0;
  while (irq0()) ++n;
  EXPECT_EQ(n, 1);
}

TEST_F(PitTest, ReinjectionThroughTheIoApic) {
  m.out(0x21, 0xff);
  m.redirect(0, 0x40);
  load(0, 2, 11932);
  m.advance(50'100'000);
  int n = 0;
  while (m.take() == 0x40) {
    ++n;
    m.eoi();
  }
  EXPECT_EQ(n, 5);
}

TEST_F(PitTest, FastPeriodIsStretched) {
  load(0, 2, 2);
  EXPECT_GE(m.timers.next_deadline(), m.clock.now + Pit::min_period_ns);
}

TEST_F(PitTest, ReadingTheCounter) {
  load(0, 2, 1000);
  EXPECT_EQ(counter(0), 1000);
  ticks(300);
  EXPECT_NEAR(counter(0), 700, 1);
  m.out(0x43, 0x00);
  ticks(100);
  EXPECT_NEAR(m.in(0x40) | m.in(0x40) << 8, 700, 1) << "latched";
  const int direct = m.in(0x40) | m.in(0x40) << 8;
  EXPECT_NEAR(direct, 600, 1);
  m.out(0x43, 0xc2); // read-back: status and count of counter 0
  EXPECT_EQ(m.in(0x40), 0x80 | 0x30 | 2 << 1);
  EXPECT_NEAR(m.in(0x40) | m.in(0x40) << 8, 600, 1);
  m.out(0x43, 0x34);
  m.out(0x43, 0xe2);
  EXPECT_TRUE(m.in(0x40) & 0x40) << "null count until loaded";
  load(0, 2, 0);
  ticks(1);
  EXPECT_NEAR(counter(0), 0xffff, 1);
}

TEST_F(PitTest, Bcd) {
  m.out(0x43, 0x31 | 2 << 1);
  m.out(0x40, 0x00);
  m.out(0x40, 0x10); // 1000
  ticks(250);
  const u16 c = counter(0);
  EXPECT_TRUE(c == 0x750 || c == 0x749 || c == 0x751) << std::hex << c;
}

TEST_F(PitTest, GateAndOutputOfCounter2) {
  m.out(0x61, 0);
  load(2, 0, 1193);
  EXPECT_FALSE(output2());
  ticks(5000);
  EXPECT_FALSE(output2()) << "gate low";
  m.out(0x61, 3);
  EXPECT_EQ(m.in(0x61) & 3, 3);
  ticks(600);
  EXPECT_FALSE(output2());
  m.out(0x61, 0); // pauses
  ticks(5000);
  m.out(0x61, 1);
  ticks(580);
  EXPECT_FALSE(output2());
  ticks(20);
  EXPECT_TRUE(output2());
}

TEST_F(PitTest, OutputsByMode) {
  m.out(0x61, 1);
  load(2, 3, 1000); // square wave
  EXPECT_TRUE(output2());
  ticks(501);
  EXPECT_FALSE(output2());
  ticks(501);
  EXPECT_TRUE(output2());
  m.out(0x61, 0);
  load(2, 1, 1000); // hardware one-shot
  ticks(10);
  EXPECT_TRUE(output2()) << "waits for its trigger";
  m.out(0x61, 1);
  EXPECT_FALSE(output2());
  m.out(0x61, 0);
  ticks(999);
  EXPECT_FALSE(output2());
  ticks(2);
  EXPECT_TRUE(output2());
  m.out(0x61, 1);
  EXPECT_FALSE(output2()) << "triggered again";
  load(2, 4, 1000);
  EXPECT_TRUE(output2());
  ticks(1000);
  EXPECT_FALSE(output2()) << "strobe";
  ticks(1);
  EXPECT_TRUE(output2());
}

TEST_F(PitTest, StateRoundTrip) {
  load(0, 2, 11932);
  m.out(0x61, 2);
  kvm_pit_state2 s{};
  EXPECT_EQ(m.chip.get_pit_state(s), 0);
  EXPECT_EQ(s.channels[0].count, 11932u);
  EXPECT_EQ(s.channels[2].mode, 0xff);
  EXPECT_EQ(s.flags, KVM_PIT_FLAGS_SPEAKER_DATA_ON + 0u);
  load(0, 0, 0);
  EXPECT_EQ(m.chip.set_pit_state(s), 0);
  m.advance(10'100'000);
  EXPECT_TRUE(irq0());
  m.advance(10'100'000);
  EXPECT_TRUE(irq0());
  s.flags = KVM_PIT_FLAGS_HPET_LEGACY;
  EXPECT_EQ(m.chip.set_pit_state(s), 0);
  m.advance(100'000'000);
  EXPECT_FALSE(irq0());
  std::memset(&s, 0xff, sizeof s);
  EXPECT_EQ(m.chip.set_pit_state(s), 0);
  for (u16 port = 0x40; port < 0x44; ++port) m.in(port);
}

TEST_F(PitTest, OldNmiWatchdog) {
  m.write(0, 0x350, 0x400);
  load(0, 2, 11932);
  m.advance(10'100'000);
  EXPECT_EQ(m.cpus[0].events.nmis, 1);
}

} // namespace
} // namespace ring3::x86
